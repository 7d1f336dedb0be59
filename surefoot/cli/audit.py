"""`surefoot audit MODEL ...`."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from surefoot.audit import Audit
from surefoot.audit.audit import DRAWS, REQUIRED
from surefoot.audit.audit import audit as examine
from surefoot.cli.models import ModelOptions, Opened, open_model, open_source, pick_device
from surefoot.cli.options import parse, split_names
from surefoot.cli.output import commit, print_json, say, stdout
from surefoot.core.files import write_text
from surefoot.data import Dataset
from surefoot.evaluation import recognise

DESCRIPTION = """Is a model robust, or does it only look so? Twelve checks, a verdict and its evidence. A MODEL is a
run's folder, or package.module:factory with --weights, --dataset and --eps. Exit code: 0 robust, 3 masked,
4 inconclusive, 5 not robust; of several models the first of 3, 4, 5, 0 that any of them has."""

WORST_FIRST = (3, 4, 5, 0)


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
    """Minutes a model; the most telling checks come first. None takes what it takes."""
    out: Path | None = None
    """Where the page goes; None is RUN/report.html, or audit.html."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.require < 1:
            raise ValueError(f"--require is {self.require}; it is a share of the images, above 0 and below 1.")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"--budget is {self.budget}; it is in minutes, above 0.")


def run(args: list[str]) -> int:
    """Audit each model; exit code by the verdict."""
    names, rest = split_names(args)
    if not names and not {"-h", "--help"} & set(rest):
        raise ValueError("audit needs a model, for example `surefoot audit runs/demo/sat-r2/0`.")
    options = parse(Options, rest, prog=f"surefoot audit {' '.join(names) or 'MODEL'}", description=DESCRIPTION)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    command = " ".join(map(shlex.quote, ["surefoot", "audit", *args]))
    audits = []
    for name in names:
        opened = open_model(name, options)
        found = audit_one(opened, options, command)
        audits.append(found)
        if opened.folder is not None:
            write_text(opened.folder / "audit.json", found.to_json() + "\n")
        if options.json:
            print_json(json.loads(found.to_json()))
        else:
            show(found)
    return next(code for code in WORST_FIRST if code in {each.exit_code() for each in audits})


def audit_one(opened: Opened, options: Options, command: str) -> Audit:
    """Open, recognise and audit one model."""
    eps = opened.settings.get("eps")
    if eps is None:
        raise ValueError(f"{opened.name} needs --eps, which only a run knows by itself.")
    device = pick_device(options.device)
    split = getattr(opened.dataset, options.split)
    inputs = split.images[: options.num_examples].to(device).float() / 255
    labels = split.labels[: options.num_examples].to(device)
    model = opened.model.to(device)
    known_range = ":" not in opened.name or options.mean is not None or options.std is not None
    model, said = recognise(model, inputs, labels, draws=options.draws or DRAWS, check_range=not known_range)
    for sentence in said:
        say(f"{opened.name}: {sentence}")
    sources = None
    if options.source is not None:
        source = open_source(options.source, opened, options)
        sources = {options.source: source.model.to(device)}
    train = opened.dataset.train.images[:5000].to(device).float() / 255
    return examine(
        model,
        inputs,
        labels,
        eps,
        name=opened.name,
        required=options.require,
        others=train,
        sources=sources,
        classes=class_names(opened.dataset),
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
        progress=None,
    )


def class_names(dataset: Dataset) -> list[str]:
    """What the classes are called; their numbers where the data set does not say."""
    return [str(each) for each in range(dataset.num_classes)]


def show(found: Audit) -> None:
    """The verdict, then the checks."""
    stdout.print()
    stdout.print(found.sentence, markup=False)
    for warning in found.warnings:
        stdout.print(f"Warning: {warning}", markup=False)
    table = Table(title=f"{found.model}, {found.num_examples} {found.split} images", title_justify="left")
    for column in ("check", "answer", "measured"):
        table.add_column(column)
    answers = {"passed": "yes", "failed": "NO", "unclear": "cannot tell"}
    for check in found.checks:
        table.add_row(check.question, answers[check.outcome], check.measured)
    stdout.print(table)
