"""`surefoot audit MODEL ...`."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from surefoot.audit import Audit
from surefoot.audit.audit import DRAWS, REQUIRED
from surefoot.audit.audit import audit as examine
from surefoot.audit.record import Check
from surefoot.cli.calibration import Confusion, Facts, Truth, controls
from surefoot.cli.models import (
    RECOGNISED_BY,
    ModelOptions,
    Opened,
    open_model,
    open_source,
    pick_device,
    training_curves,
)
from surefoot.cli.options import parse, split_names
from surefoot.cli.output import Spinner, commit, duration, print_json, say, stdout
from surefoot.core.files import write_text
from surefoot.evaluation import recognise
from surefoot.models.wrappers import Averaged
from surefoot.report.page import write_page

DESCRIPTION = """Is a model robust, or does it only look so? Twelve checks, a verdict and its evidence. A MODEL is a
run's folder, or package.module:factory with --weights, --dataset and --eps. Exit code: 0 robust, 3 masked,
4 inconclusive, 5 not robust; of several models the first of 3, 4, 5, 0 that any of them has. --calibrate audits models
whose truth is known instead, and prints how often it is found: 0 where it is, 1 where it is not."""

WORST_FIRST = (3, 4, 5, 0)
LEARNED_FROM = 5000  # training images that substitutes learn a model's answers on


@dataclass(frozen=True)
class Options(ModelOptions):
    """What `surefoot audit` takes beside the models."""

    num_examples: int | None = 256
    """Only the first so many images; None is all."""
    batch_size: int = 128
    """Images at a time."""
    require: float = REQUIRED
    """The worst-case accuracy that counts as robust: its 95 % interval must lie above."""
    budget: float | None = None
    """Minutes a model: more buy a more thorough audit, fewer a quicker one. None takes at most about 4."""
    out: Path | None = None
    """Where the page goes; None is RUN/report.html of a single run, and audit.html otherwise."""
    calibrate: bool = False
    """Audit models whose truth is known: given runs, or those of the digits, and masks on them."""
    runs: Path = Path("runs/calibration")
    """With --calibrate: where the models of the digits are, or are trained to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.require < 1:
            raise ValueError(f"--require is {self.require:g}; it is a share of the images, above 0 and below 1.")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"--budget is {self.budget:g}; it is in minutes, above 0.")
        if self.eps is not None and not 0 < self.eps <= 1:
            raise ValueError(f"--eps is {self.eps:g}; it is a radius in pixel units, above 0 and at most 1: 8/255.")


def run(args: list[str]) -> int:
    """Audit each model; the exit code is the verdict."""
    names, rest = split_names(args)
    if not names and not {"-h", "--help", "--calibrate"} & set(rest):
        raise ValueError("audit needs a model, for example `surefoot audit runs/demo/sat-r2/0`.")
    options = parse(Options, rest, prog=f"surefoot audit {' '.join(names) or 'MODEL'}", description=DESCRIPTION)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.calibrate:
        return calibrate(names, options)
    command = " ".join(map(shlex.quote, ["surefoot", "audit", *args]))
    opened = [open_model(name, options) for name in names]
    audits = []
    for each in opened:
        found = audit_one(each, options, command)
        audits.append(dataclasses.replace(found, curves=[*found.curves, *training_curves(each.folder)]))
        if each.folder is not None:
            write_text(each.folder / "audit.json", audits[-1].to_json() + "\n")
        if options.json:
            print_json(json.loads(audits[-1].to_json()))
        else:
            show(audits[-1])
    page = page_path(opened, options)
    write_page(audits, page)
    say(f"The page with all evidence is {page}.")
    return next(code for code in WORST_FIRST if code in {each.exit_code() for each in audits})


def page_path(opened: Sequence[Opened], options: Options) -> Path:
    """Where the page goes."""
    if options.out is not None:
        return options.out
    folder = opened[0].folder if len(opened) == 1 else None
    return Path("audit.html") if folder is None else folder / "report.html"


def audit_one(opened: Opened, options: Options, command: str | None) -> Audit:
    """Recognise a model and audit it.

    Raises:
        ValueError: the radius is neither given nor known, or the model is refused.
    """
    eps = opened.settings.get("eps")
    if eps is None:
        raise ValueError(f"{opened.name} needs --eps, which only a run knows by itself.")
    device = pick_device(options.device)
    split = getattr(opened.dataset, options.split)
    inputs = split.images[: options.num_examples].to(device).float() / 255
    labels = split.labels[: options.num_examples].to(device)
    known_range = ":" not in opened.name or options.mean is not None or options.std is not None
    model, said = recognise(
        opened.model.to(device),
        inputs[:RECOGNISED_BY],
        labels[:RECOGNISED_BY],
        draws=options.draws or DRAWS,
        check_range=not known_range,
    )
    if options.draws is None and not isinstance(model, Averaged):
        said = [each for each in said if "is not needed" not in each]
    sources = None
    if options.source is not None:
        sources = {options.source: open_source(options.source, opened, options).model.to(device)}
    with Spinner(opened.name) as spinner:
        return examine(
            model,
            inputs,
            labels,
            eps,
            name=opened.name,
            required=options.require,
            others=opened.dataset.train.images[:LEARNED_FROM].to(device).float() / 255,
            sources=sources,
            notes=said,
            classes=[str(each) for each in range(opened.dataset.num_classes)],
            budget_minutes=options.budget,
            batch_size=options.batch_size,
            seed=options.seed,
            about={
                "dataset": opened.about["dataset"],
                "recipe": opened.about["recipe"],
                "split": options.split,
                "commit": commit(),
                "command": command,
            },
            progress=spinner,
        )


def calibrate(names: list[str], options: Options) -> int:
    """Audit the controls and print how often their truth was found; 1 where what must not happen did."""
    pairs: list[tuple[Truth, Audit]] = []
    for control in controls(names, options.runs, options):
        truth = control.facts.truth(options.require)
        found = audit_one(control.opened, options, None)
        pairs.append((truth, found))
        if options.json:
            print_json(calibration_record(truth, control.facts, found))
        else:
            stdout.print(f"[bold]{escape(found.model)}[/bold]: truly {truth}. {escape(found.sentence)}")
    confusion = Confusion.of(pairs)
    if options.json:
        counts = {f"{truth}, called {verdict}": count for (truth, verdict), count in confusion.counts.items()}
        print_json({"confusion": counts, "faults": confusion.faults()})
    else:
        stdout.print(confusion.table())
        for fault in confusion.faults() or ["Nothing happened that must not."]:
            stdout.print(fault)
    return 1 if confusion.faults() else 0


def calibration_record(truth: Truth, facts: Facts, found: Audit) -> dict[str, Any]:
    """An audit without its pictures, what the model truly is, and why."""
    fields = dataclasses.asdict(found)
    for name in ("surfaces", "pictures", "curves", "command"):
        del fields[name]
    for check in fields["checks"]:
        check["samples"] = len(check["samples"])
    return {"truth": truth, "facts": dataclasses.asdict(facts), **fields}


def show(found: Audit) -> None:
    """The verdict on top, then the checks: those that failed first."""
    colour = {"robust": "green", "not robust": "yellow", "masked": "red", "inconclusive": "magenta"}[found.verdict]
    stdout.print()
    stdout.print(f"[bold]{escape(found.model)}[/bold]")
    name, _, rest = found.sentence.partition(" at ")
    stdout.print(f"[bold {colour}]{name}[/bold {colour}] at {escape(rest)}")
    for warning in found.warnings:
        stdout.print(f"[yellow]Warning:[/yellow] {escape(warning)}")
    stdout.print()
    table = Table.grid(padding=(0, 2))
    for outcome, (mark, style) in ANSWERS.items():
        for check in found.checks:
            if check.outcome == outcome:
                table.add_row(f"[{style}]{mark}[/{style}]", told(check))
    stdout.print(table)
    stdout.print(
        f"\n{found.num_examples} {found.split} images, clean accuracy {100 * found.clean_accuracy:.1f} %, "
        f"{len(found.attacks)} attacks, {duration(found.seconds)}. By chance alone a sound model fails one of the "
        "checks in at most 1 audit of 100."
    )


ANSWERS = {"failed": ("failed", "red"), "unclear": ("cannot tell", "magenta"), "passed": ("passed", "green")}


def told(check: Check) -> str:
    """A question and what was measured."""
    return f"[bold]{escape(check.question)}[/bold]\n{escape(check.measured)}"
