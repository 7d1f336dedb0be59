"""`surefoot benchmark attacks [MODEL ...]` and `surefoot benchmark step-cost [MODEL ...]`."""

import contextlib
import copy
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from rich.table import Table
from torch import Tensor, nn

from surefoot.benchmark import PEERS, AttackBenchmark, AttackLine, StepCostBenchmark, StepLine, StepSubject, Subject
from surefoot.cli.models import is_factory, pick_device
from surefoot.cli.options import Common, parse, split_name, split_names, unknown
from surefoot.cli.output import EvaluationProgress, commit, print_json, say, stdout
from surefoot.core.files import append_lines, check_can_write
from surefoot.core.geometry import check_radius
from surefoot.core.limits import check_count
from surefoot.core.seeding import seeded
from surefoot.core.types import Objective
from surefoot.data import Batches, Split
from surefoot.evaluation.precision import exact_float32
from surefoot.evaluation.stages import predictions
from surefoot.models import MODELS, build_model
from surefoot.objectives import EnsembleAT, NFgsmAT, RFgsmAT
from surefoot.recipes import RECIPES, Recipe, load_run
from surefoot.recipes.run import is_run
from surefoot.report.benchmarks import told
from surefoot.training.trial import try_training

OVERVIEW = """usage: surefoot benchmark WHAT ...

Measure what things cost on this machine.

  attacks    attacks, against the limit of their arithmetic and against other libraries
  step-cost  training steps of every objective, against the passes that they cannot do without

`surefoot benchmark WHAT --help` tells more."""

ATTACKS = """Time attacks against the limit, a forward pass and an input gradient a step, and against torchattacks,
foolbox and ART where they are installed: in one process, in turns, medians of the rounds. MODEL is a run's folder, or
a network's name or package.module:factory for random weights and noise as images, which the network itself has
labelled; without one, lenet-plus and resnet-18 with random weights."""


STEPS = """Time a training step of each objective, as `surefoot train` runs it, against its floor: the same forward and
backward passes and nothing else. In one process, in turns, medians of the rounds. MODEL is a run's folder, or a
network's name or package.module:factory for random weights and noise as images; without one, lenet-plus. Objectives
have the settings of the recipes for MNIST where images are grey, of those for CIFAR-10 where they are coloured."""

ObjectiveName = Literal[
    "normal", "fgsm-at", "rfgsm-at", "nfgsm-at", "ensemble-at", "pgd-at", "trades", "sat-r1", "sat-r2", "sat-r3"
]


class Network(NamedTuple):
    """A network, images for it, and the recipe of the run that it is from."""

    name: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    recipe: Recipe | None


@dataclass(frozen=True)
class Place(Common):
    """What both take: where to run, and where from and to."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; `auto` takes an accelerator where there is one."""
    data_dir: Path | None = None
    """A folder of parquet shards; None is $SUREFOOT_DATA, or the hub."""
    records: Path | None = None
    """A file to append the lines to, as `--json` prints them."""
    num_classes: int | None = None
    """Of networks that are no run: logits; None is 10."""
    in_channels: int | None = None
    """Of networks that are no run: 1 for grey images, 3 for coloured; None is the network's usual, of your own 3."""
    image_size: int | None = None
    """Of networks that are no run: pixels a side; None is the network's usual, of your own 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("num_classes", 2), ("in_channels", 1), ("image_size", 1)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=least)
        if self.records is not None:
            check_can_write(self.records, "--records")


OF_A_NETWORK = ("num_classes", "in_channels", "image_size")
"""Options that say of a network what a run knows by itself."""


@dataclass(frozen=True)
class StepOptions(StepCostBenchmark, Place):
    """What `surefoot benchmark step-cost` takes beside the models."""

    objectives: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
    """Which to measure."""
    batch_size: int = 32
    """Samples a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Place.__post_init__(self)
        check_count("batch_size", self.batch_size)
        if not self.objectives:
            raise ValueError("objectives is empty, so there is nothing to measure; name at least one.")


@dataclass(frozen=True)
class AttackOptions(AttackBenchmark, Place):
    """What `surefoot benchmark attacks` takes beside the models."""

    eps: float | None = None
    """l-infinity radius of PGD in pixel units: 8/255; None is the recipe's, or 0.3 for grey and 8/255 for colour."""
    step_size: float | None = None
    """Step size of PGD: 2/255; None is the recipe's, or 0.01 for grey and 2/255 for colour."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Place.__post_init__(self)
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
        raise ValueError(
            f"benchmark needs what to measure, before any option: for example `surefoot benchmark {next(iter(WHAT))}`."
        )
    if what not in WHAT:
        raise unknown("benchmark of", what, WHAT, "surefoot benchmark --help")
    return WHAT[what](rest)


def run_attacks(args: list[str]) -> int:
    """`surefoot benchmark attacks`."""
    names, rest = split_names(args)
    options = parse(AttackOptions, rest, prog="surefoot benchmark attacks", description=ATTACKS)
    set_threads(options)
    device = pick_device(options.device)
    for peer in options.peers:
        if PEERS[peer].version() is None:
            say(f"{peer} is not installed, so it is left out; `pip install {PEERS[peer].package}` adds it.")
    options = dataclasses.replace(options, peers=tuple(peer for peer in options.peers if PEERS[peer].version()))
    # All are opened before the first is measured, so that a wrong name does not show after an hour only.
    subjects = [open_subject(name, options, device) for name in names or ("lenet-plus", "resnet-18")]
    own_commit, failed = commit(), False
    for subject in subjects:
        lines = []
        with EvaluationProgress(subject.name) as progress:
            for line in options(subject, on_turn=progress):
                lines.append(line)
                keep(line, options, own_commit)
                if line.error is not None:
                    say(f"{line.library} failed in {line.attack} on {line.model}: {line.error}")
                    failed |= line.library not in PEERS
        if not options.json:
            for _, race in itertools.groupby(lines, race_of):
                stdout.print(line_table(list(race)))
    return int(failed)


def run_step_cost(args: list[str]) -> int:
    """`surefoot benchmark step-cost`."""
    names, rest = split_names(args)
    options = parse(StepOptions, rest, prog="surefoot benchmark step-cost", description=STEPS)
    set_threads(options)
    device = pick_device(options.device)
    opened = [open_network(name, options.batch_size, options, device) for name in names or ("lenet-plus",)]
    own_commit, failed = commit(), False
    for each in opened:
        lines = []
        objectives: dict[str, Objective] = {name: objective_of(name, each) for name in options.objectives}
        with EvaluationProgress(each.name) as progress:
            for line in options(
                StepSubject(each.name, each.model, each.inputs, each.labels, objectives), on_turn=progress
            ):
                lines.append(line)
                keep(line, options, own_commit)
                if line.error is not None:
                    say(f"{line.objective} failed on {line.model}: {line.error}")
                    failed = True
        if not options.json:
            for _, same in itertools.groupby(lines, lambda line: line.precision):
                stdout.print(step_table(list(same)))
    return int(failed)


WHAT: dict[str, Callable[[list[str]], int]] = {"attacks": run_attacks, "step-cost": run_step_cost}


def set_threads(options: Common) -> None:
    """As many threads as asked for, and nothing beside them."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with contextlib.suppress(RuntimeError):  # it can be set once a process; nothing here runs side by side
        torch.set_num_interop_threads(1)


def objective_of(name: ObjectiveName, network: Network) -> Objective:
    """An objective with the settings of MNIST's recipes, or CIFAR-10's where images are coloured."""
    family = "mnist" if network.inputs.shape[1] == 1 else "cifar10"
    eps = RECIPES[f"{family}/normal"].eps
    if name == "rfgsm-at":
        return RFgsmAT(eps, random_step=eps / 2)
    if name == "nfgsm-at":
        return NFgsmAT(eps, noise=min(2 * eps, 1.0))
    if name == "ensemble-at":
        return EnsembleAT(eps, sources=(copy.deepcopy(network.model).eval().requires_grad_(False),))
    return RECIPES[f"{family}/{name}"].objective


def keep(line: AttackLine | StepLine, options: AttackOptions | StepOptions, own_commit: str | None) -> None:
    """Print and write a line, as far as that was asked for."""
    fields = {**dataclasses.asdict(line), "commit": own_commit}
    if options.json:
        print_json(fields)
    if options.records is not None:
        append_lines(options.records, [json.dumps(fields, ensure_ascii=False)], is_line, "a benchmark's line", b'{"')


def is_line(text: bytes) -> bool:
    """Is it a line of a benchmark's records?"""
    try:
        return "seconds_per_step" in (found := json.loads(text)) or "ratio_to_limit" in found
    except (ValueError, TypeError):
        return False


def open_network(name: str, images: int, options: Place, device: torch.device) -> Network:
    """A run's model and its first test images, or a network of that name with random weights, and noise.

    Raises:
        ValueError: it is neither, or cannot be used.
    """
    if is_run(Path(name)):
        for field in OF_A_NETWORK:
            if getattr(options, field) is not None:
                raise ValueError(
                    f"--{field.replace('_', '-')} is for a network's name; {name} is a run and has its own."
                )
        trained = load_run(Path(name))
        dataset = trained.load_data(options.data_dir)
        split = Split(dataset.test.images[:images], dataset.test.labels[:images])
        (inputs, labels), *_ = Batches(split, images, device=device)
        return Network(name, trained.load_model(dataset).to(device), inputs, labels, trained.recipe)
    if name not in MODELS and not is_factory(name):
        raise unknown("run or network", name, MODELS, "surefoot list networks")
    shape, classes = input_shape(name, options), options.num_classes or 10
    labels = torch.zeros(images, dtype=torch.int64)
    with seeded(0):
        model = build_model(name, num_classes=classes, in_channels=shape[0], image_size=shape[1])
        inputs = torch.rand(images, *shape)
    if is_factory(name):
        try:
            try_training(model, name, Split((255 * inputs).to(torch.uint8), labels), classes, device)
        except ValueError as error:
            how = "--in-channels, --image-size and --num-classes tell its images and classes."
            raise ValueError(f"{error} {how}") from error
    return Network(name, model.eval().to(device), inputs.to(device), labels.to(device), None)


def input_shape(name: str, options: Place) -> tuple[int, int, int]:
    """Channels, height and width of the images of a network that is no run."""
    channels, size = (
        (1, 8) if name == "digits-net" else (1, 28) if name.startswith(("lenet", "mnist", "conv-small")) else (3, 32)
    )
    size = options.image_size or size
    return options.in_channels or channels, size, size


def open_subject(name: str, options: AttackOptions, device: torch.device) -> Subject:
    """What attacks are measured on; noise is labelled by the network itself."""
    images = max(options.batch_size, options.num_examples if "accuracy" in options.attacks else 1)
    name, model, inputs, labels, recipe = open_network(name, images, options, device)
    if recipe is None:
        with exact_float32(device):  # as they are scored
            labels = torch.cat([predictions(model, batch) for batch in torch.split(inputs, options.batch_size)])
        eps, step_size = (0.3, 0.01) if inputs.shape[1] == 1 else (8 / 255, 2 / 255)
    else:
        eps, step_size = recipe.eps, recipe.attack_step_size
    return Subject(
        name,
        model,
        inputs,
        labels,
        eps=eps if options.eps is None else options.eps,
        step_size=step_size if options.step_size is None else options.step_size,
        dataset=None if recipe is None else recipe.dataset,
    )


def race_of(line: AttackLine) -> tuple[str, str | None]:
    """What tells a line's race from the ones before and after it."""
    return line.attack, None if line.attack == "accuracy" else line.precision


def line_table(lines: Sequence[AttackLine]) -> Table:
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
            told(each, 1000, 2) or "failed",
            told(line.ratio_to_limit, 1, 2),
            told(each, 1 / min(theirs), 2) if theirs else "",
            told(line.robust_accuracy, 100, 2),
            told(line.mean_l2, 1, 3),
        )
    return table


def step_table(lines: Sequence[StepLine]) -> Table:
    """One precision as a table, a row an objective and mode; units are forwards of one sample a sample."""
    first = lines[0]
    where = f"batch {first.batch}, {first.precision}, {first.device}, {first.threads} threads"
    table = Table(title=f"{first.model}, a training step, {where}", title_justify="left")
    for name in ("objective", "floor units", "units", "ms/step", "/floor", "images/s", "% of peak", "MiB"):
        table.add_column(name, justify="left" if name == "objective" else "right")
    for line in lines:
        table.add_row(
            line.objective if line.mode == "eager" else f"{line.objective} {line.mode}",
            f"{line.floor_units:.2f}",
            told(line.units, 1, 2),
            told(line.seconds_per_step, 1000, 2) or "failed",
            told(line.ratio_to_floor, 1, 2),
            told(line.images_per_second, 1, 0),
            told(line.share_of_peak, 100, 0),
            told(line.peak_memory, 2.0**-20, 0),
        )
    return table
