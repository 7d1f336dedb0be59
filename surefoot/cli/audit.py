"""`surefoot audit MODEL ...`."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from surefoot.audit import Audit
from surefoot.audit.audit import DRAWS
from surefoot.audit.audit import audit as examine
from surefoot.audit.record import Check
from surefoot.cli.calibration import Confusion, Facts, Truth, controls
from surefoot.cli.models import (
    AtOneRadius,
    Opened,
    check_factories,
    given_radius,
    open_models,
    open_source,
    pick_device,
    recognised,
    training_curves,
)
from surefoot.cli.options import parse, split_names
from surefoot.cli.output import Spinner, commit, duration, print_json, say, stdout
from surefoot.core.files import check_can_write, write_text
from surefoot.models.wrappers import Averaged
from surefoot.report.page import check_page, write_page

DESCRIPTION = """Is a model robust, or does it only look so? Twelve checks, a verdict and its evidence. A MODEL is a
run's folder, or package.module:factory with --weights, --dataset and --eps. Exit code: 0 robust, 3 masked,
4 inconclusive, 5 not robust; of several models the first of 3, 4, 5, 0 that any of them has. --calibrate audits models
whose truth is known instead, and prints how often it is found: 0 where it is, 1 where it is not."""

WORST_FIRST = (3, 4, 5, 0)
LEARNED_FROM = 5000  # training images that substitutes learn a model's answers on


@dataclass(frozen=True)
class Options(AtOneRadius):
    """What `surefoot audit` takes beside the models."""

    source: str | None = None
    """For the check by transfer: the model (run or package.module:factory) to craft on; None trains small ones."""
    num_examples: int | None = 256
    """Only the first N images; None takes all."""
    batch_size: int = 128
    """Images at a time."""
    require: float | None = None
    """Worst-case accuracy above which its 95 % interval counts as robust; None: 0.1, or 1 / classes if more."""
    budget: float | None = None
    """Minutes per model: more make the audit more thorough, fewer quicker. None takes about 4 at most."""
    out: Path | None = None
    """Where the page goes; None is RUN/report.html of a single run, and audit.html otherwise."""
    calibrate: bool = False
    """Audit models whose truth is known: given runs, or those of the digits, and masks on them."""
    runs: Path = Path("runs/calibration")
    """With --calibrate: where the models of the digits are, or are trained to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.require is not None and not 0 < self.require < 1:
            raise ValueError(f"--require is {self.require:g}; it is a share of the images, above 0 and below 1.")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"--budget is {self.budget:g}; it is in minutes, above 0.")
        if self.eps is not None and not 0 < self.eps <= 1:
            raise ValueError(f"--eps is {self.eps:g}; it is a radius in pixel units, above 0 and at most 1: 8/255.")


def run(args: list[str]) -> int:
    """Audit each model; the exit code is the verdict."""
    names, rest = split_names(args)
    if not names and not {"-h", "--help", "--calibrate"} & set(rest):
        raise ValueError("audit needs a model, before any option: for example `surefoot audit runs/demo/sat-r2/0`.")
    options = parse(Options, rest, prog=f"surefoot audit {' '.join(names) or 'MODEL'}", description=DESCRIPTION)
    options.set_threads()
    command = shlex.join(["surefoot", "audit", *args])
    if options.calibrate:
        check_factories(names, options)
        try:
            return calibrate(names, options)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Trained models are kept; start again with: {command}") from None
    stdout.lasting = True
    opened = open_models(names, options)
    radii = [given_radius(each, options) for each in opened]
    page = page_path(opened, options)
    check_can_write(page, "--out" if options.out is not None else "the page (--out)")
    check_page(page)
    audits: list[Audit] = []
    try:
        for each, eps in zip(opened, radii, strict=True):
            curves = training_curves(each.folder)  # first: what is wrong with them is said before the long wait
            found = audit_one(each, eps, options, command)
            audits.append(dataclasses.replace(found, curves=[*found.curves, *curves]))
            if each.folder is not None:
                write_result(each.folder / "audit.json", audits[-1].to_json() + "\n")
            if options.json:
                print_json(json.loads(audits[-1].to_json()))
            else:
                show(audits[-1])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(told_so_far(audits, opened, command)) from None
    write_page(audits, page)
    say(f"The page with all evidence is {page}.")
    return next(code for code in WORST_FIRST if code in {each.exit_code() for each in audits})


def write_result(file: Path, text: str) -> None:
    """Write a file beside the verdict, which is not lost where that fails."""
    try:
        write_text(file, text)
    except OSError as error:
        say(f"{error} The verdict and the page do not need it.")


def told_so_far(audits: Sequence[Audit], opened: Sequence[Opened], command: str) -> str:
    """What an interrupted audit leaves, and how to begin it again."""
    kept = [str(each.folder / "audit.json") for each, _ in zip(opened, audits, strict=False) if each.folder is not None]
    done = f"{len(audits)} of {len(opened)} audits are done" + (f", in {' and '.join(kept)}" if kept else "")
    begin = "An unfinished audit is not kept" if not audits else f"{done}; an unfinished one is not kept"
    return f"{begin}; start again with: {command}"


def page_path(opened: Sequence[Opened], options: Options) -> Path:
    """Where the page goes."""
    if options.out is not None:
        return options.out
    folder = opened[0].folder if len(opened) == 1 else None
    return Path("audit.html") if folder is None else folder / "report.html"


def audit_one(opened: Opened, eps: float, options: Options, command: str | None) -> Audit:
    """Recognise a model and audit it.

    Raises:
        ValueError: the model is refused.
    """
    device = pick_device(options.device)
    split = getattr(opened.dataset, options.split)
    inputs = split.images[: options.num_examples].to(device).float() / 255
    labels = split.labels[: options.num_examples].to(device)
    model, said = recognised(opened.model.to(device), opened.name, inputs, labels, options, options.draws or DRAWS)
    if options.draws is None and not isinstance(model, Averaged):
        said = [each for each in said if "is not needed" not in each]
    sources = None
    if options.source is not None:
        crafts = open_source(options.source, opened, options).model.to(device)
        draws = options.draws or DRAWS
        sources = {options.source: recognised(crafts, options.source, inputs, labels, options, draws)[0]}
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
        found = audit_one(control.opened, given_radius(control.opened, options), options, None)
        truth = control.facts.truth(found.required)
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


ANSWERS = {"failed": ("failed", "red"), "unclear": ("could not tell", "magenta"), "passed": ("passed", "green")}


def told(check: Check) -> str:
    """A question and what was measured."""
    return f"[bold]{escape(check.question)}[/bold]\n{escape(check.measured)}"
