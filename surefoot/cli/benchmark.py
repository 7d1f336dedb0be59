"""`surefoot benchmark attacks [MODEL ...]`."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table

from surefoot.benchmark import PEERS, AttackBenchmark, Line, Subject
from surefoot.cli.models import pick_device
from surefoot.cli.options import Common, parse, split_name, split_names, unknown
from surefoot.cli.output import EvaluationProgress, commit, print_json, say, stdout
from surefoot.core.geometry import check_radius
from surefoot.data import Batches, Split
from surefoot.evaluation.passes import seeded
from surefoot.evaluation.worker import predictions
from surefoot.models import MODELS, build_model
from surefoot.recipes import load_run
from surefoot.report.tables import percent

OVERVIEW = """usage: surefoot benchmark WHAT ...

Measure what things cost on this machine.

  attacks  attacks, against the limit of their arithmetic and against other libraries

`surefoot benchmark WHAT --help` tells more."""

ATTACKS = """Time attacks against the limit, a forward pass and an input gradient a step, and against torchattacks,
foolbox and ART where they are installed: in one process, in turns, medians of the rounds. MODEL is a run's folder, or
a network's name for random weights and noise as images, which the network itself has labelled; without one, lenet-plus
and resnet-18 with random weights."""


@dataclass(frozen=True)
class AttackOptions(AttackBenchmark, Common):
    """What `surefoot benchmark attacks` takes beside the models."""

    eps: float | None = None
    """l-infinity radius of PGD in pixel units: 8/255; None is the recipe's, or 0.3 for grey and 8/255 for colour."""
    step_size: float | None = None
    """Step size of PGD: 2/255; None is the recipe's, or 0.01 for grey and 2/255 for colour."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; `auto` takes an accelerator where there is one."""
    data_dir: Path | None = None
    """A folder of parquet shards; None is $SUREFOOT_DATA, or the hub."""
    records: Path | None = None
    """A file to append the lines to, as `--json` prints them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eps", "step_size"):
            if getattr(self, name) is not None:
                check_radius(name, getattr(self, name), positive=name == "step_size")


def run(args: list[str]) -> int:
    """Measure; exit code 0, or 1 where something of ours failed."""
    if args and args[0] in ("-h", "--help"):
        print(OVERVIEW)
        return 0
    what, rest = split_name(args)
    if what is None:
        raise ValueError(f"benchmark needs what to measure, for example `surefoot benchmark {next(iter(WHAT))}`.")
    if what not in WHAT:
        raise unknown("benchmark of", what, WHAT, "surefoot benchmark --help")
    return WHAT[what](rest)


def run_attacks(args: list[str]) -> int:
    """`surefoot benchmark attacks`."""
    names, rest = split_names(args)
    options = parse(AttackOptions, rest, prog="surefoot benchmark attacks", description=ATTACKS)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with contextlib.suppress(RuntimeError):  # it can be set once a process; nothing here runs side by side
        torch.set_num_interop_threads(1)
    device = pick_device(options.device)
    for peer in options.peers:
        if PEERS[peer].version() is None:
            say(f"{peer} is not installed and left out; `pip install {PEERS[peer].package}` puts it in.")
    options = dataclasses.replace(options, peers=tuple(peer for peer in options.peers if PEERS[peer].version()))
    # All are opened before the first is measured: a wrong name shall not show after an hour.
    subjects = [open_subject(name, options, device) for name in names or ("lenet-plus", "resnet-18")]
    own_commit, failed = commit(), False
    for subject in subjects:
        lines = []
        with EvaluationProgress(subject.name) as progress:
            for line in options(subject, on_turn=progress):
                lines.append(line)
                keep(line, options, own_commit)
                failed |= line.error is not None and line.library not in PEERS
        if not options.json:
            for _, race in itertools.groupby(lines, race_of):
                stdout.print(line_table(list(race)))
    return int(failed)


WHAT: dict[str, Callable[[list[str]], int]] = {"attacks": run_attacks}


def keep(line: Line, options: AttackOptions, own_commit: str | None) -> None:
    """Print and write a line, as far as that was asked for, and say what failed."""
    fields = {**dataclasses.asdict(line), "commit": own_commit}
    if options.json:
        print_json(fields)
    if options.records is not None:
        options.records.parent.mkdir(parents=True, exist_ok=True)
        with open(options.records, "a", encoding="utf-8") as file:
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")
    if line.error is not None:
        say(f"{line.library} failed in {line.attack} on {line.model}: {line.error}")


def open_subject(name: str, options: AttackOptions, device: torch.device) -> Subject:
    """A run's model and test images, or a network of that name with random weights and noise.

    Raises:
        ValueError: it is neither, or the run cannot be used.
    """
    images = max(options.batch_size, options.num_examples if "accuracy" in options.attacks else 1)
    if (Path(name) / "recipe.json").exists():
        trained = load_run(Path(name))
        dataset = trained.load_data(options.data_dir)
        split = Split(dataset.test.images[:images], dataset.test.labels[:images])
        (inputs, labels), *_ = Batches(split, images, device=device)
        model, recipe = trained.load_model(dataset).to(device), trained.recipe
        eps, step_size, source = recipe.eps, recipe.attack_step_size, recipe.dataset
    elif name in MODELS:
        channels, size = (1, 8) if name == "digits-net" else (1, 28) if name.startswith(("lenet", "mnist")) else (3, 32)
        with seeded(0):
            model = build_model(name, num_classes=10, in_channels=channels, image_size=size).eval().to(device)
            inputs = torch.rand(images, channels, size, size).to(device)
        labels = torch.cat([predictions(model, batch) for batch in torch.split(inputs, options.batch_size)])
        (eps, step_size), source = ((0.3, 0.01) if channels == 1 else (8 / 255, 2 / 255)), None
    else:
        raise unknown("run or network", name, MODELS, "surefoot list networks")
    return Subject(
        name,
        model,
        inputs,
        labels,
        eps=eps if options.eps is None else options.eps,
        step_size=step_size if options.step_size is None else options.step_size,
        dataset=source,
    )


def race_of(line: Line) -> tuple[str, str | None]:
    """What tells a line's race from the ones before and after it."""
    return line.attack, None if line.attack == "accuracy" else line.precision


def line_table(lines: Sequence[Line]) -> Table:
    """One race as a table, a row a contestant; times over the limit's and over the fastest other library's."""
    first = lines[0]
    what = {"pgd": f"PGD-{first.steps}", "accuracy": f"accuracy under PGD-{first.steps}", "deepfool": "DeepFool"}
    where = f"batch {first.batch}, {first.device}, {first.threads} threads"
    table = Table(title=f"{first.model}, {what.get(first.attack, 'C&W')}, {where}", title_justify="left")
    for name in ("library", "images", "ms/image", "/limit", "/peer", "robust %", "mean l2"):
        table.add_column(name, justify="left" if name == "library" else "right")
    theirs = [line.seconds / line.images for line in lines if line.library in PEERS and line.seconds is not None]
    for line in lines:
        each = None if line.seconds is None else line.seconds / line.images
        table.add_row(
            f"{line.library} {line.precision}",
            str(line.images),
            "failed" if each is None else f"{1000 * each:.2f}",
            "" if line.ratio_to_limit is None else f"{line.ratio_to_limit:.2f}",
            "" if each is None or not theirs else f"{each / min(theirs):.2f}",
            "" if line.robust_accuracy is None else percent(line.robust_accuracy),
            "" if line.mean_l2 is None else f"{line.mean_l2:.3f}",
        )
    return table
