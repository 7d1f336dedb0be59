"""Chooses the verb, and turns every expected error into one sentence and an exit code."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module

import surefoot
from surefoot.core.programs import reader_gone

VERBS = {
    "demo": "train five models on embedded digits and see which are robust (about two minutes, no network)",
    "train": "train a recipe, from its name and any field you change",
    "evaluate": "measure a model's accuracy on clean images and under attack",
    "audit": "say whether a model is robust or only masks its gradients",
    "reproduce": "train and measure what the paper's tables and figures show, beside its numbers",
    "benchmark": "time attacks and training steps against their limits",
    "list": "show the recipes, networks, data sets, attacks and objectives",
}

OVERVIEW = """usage: surefoot VERB ...

Single-step adversarial training that stays robust, and a check that a model is.

{verbs}

`surefoot VERB --help` tells more.  Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted;
of audit: 0 robust, 3 masked, 4 inconclusive, 5 not robust."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: without the program's name; None takes `sys.argv`.

    Returns:
        0 done (audit: robust), 1 failed, 2 wrong usage or input, 130 interrupted, 141 nobody reads what is printed;
        audit: 3 masked, 4 inconclusive, 5 not robust.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed, or this is a Windows program without a console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a sign that a terminal lacks must not cost a result
        code = chosen(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # tyro's --help and wrong options
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as stop:
        print(f"\nsurefoot: interrupted. {stop}".rstrip(), file=sys.stderr)
        return 130
    except BrokenPipeError:
        return reader_gone()
    except (ValueError, FileNotFoundError) as error:
        print(f"surefoot: {sentence(error)}", file=sys.stderr)
        return 2
    except (OSError, expected_failures()) as error:
        print(f"surefoot: {sentence(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not told_of_memory(error):
            raise
        return 1


def chosen(args: list[str]) -> int:
    """Run the verb that was asked for."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(OVERVIEW.format(verbs="\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items())))
        return 0 if args else 2
    if args[0] == "--version":
        print(f"surefoot {surefoot.__version__}")
        return 0
    verb, rest = args[0], args[1:]
    # Notes of the libraries below to their own users; ours get ours.
    warnings.filterwarnings("ignore")
    if verb not in VERBS:
        from surefoot.cli.options import unknown

        raise unknown("verb", verb, VERBS, "surefoot --help")
    run: Callable[[list[str]], int] = import_module(f"surefoot.cli.{verb}").run
    return run(rest)


def expected_failures() -> type[Exception]:
    """What may go wrong with good input; imported only where something did."""
    from surefoot.training import TrainingDiverged

    return TrainingDiverged


def sentence(error: Exception) -> str:
    """What to tell: the error's own words, or where the system refused a path, which path, why and what to do.

    >>> sentence(IsADirectoryError(21, "Is a directory", "run/recipe.json"))
    'run/recipe.json cannot be used (Is a directory); give another path, or mend this one.'
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror}); give another path, or mend this one."
    return str(error)


def told_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Say so where the memory was not enough; False where it is another error."""
    from surefoot.core.failures import in_one_line
    from surefoot.evaluation.stages import is_out_of_memory

    if isinstance(error, RuntimeError) and not is_out_of_memory(error):
        return False
    print(f"surefoot: the memory is not enough ({in_one_line(error)}); give a smaller --batch-size.", file=sys.stderr)
    return True
