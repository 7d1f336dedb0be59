"""`surefoot evaluate MODEL`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from surefoot.attacks import FGSM, IFGSM, PGD, MarginLoss
from surefoot.cli.options import Common, parse, split_name
from surefoot.cli.output import EvaluationProgress, commit, print_json, say, stdout
from surefoot.core.types import Attack
from surefoot.data import Batches, Dataset, Split, load
from surefoot.evaluation import Record, append_records, evaluate
from surefoot.models import build_model
from surefoot.recipes import load_run
from surefoot.report import record_table
from surefoot.training import load_weights
from surefoot.training.fit import check_device

DESCRIPTION = """Measure a model's accuracy on clean images and under attack. MODEL is a run's folder, or
package.module:factory with --weights, --dataset, --eps, --steps and --step-size. The attacks run in fp32, from
a seed; a sample that is fooled counts as fooled (--last-iterate counts the last step only, as the paper does).
Records are appended to RUN/records.jsonl, each as soon as its attack is done."""

AttackName = Literal["fgsm", "i-fgsm", "pgd", "pgd-cw"]


@dataclass(frozen=True)
class Options(Common):
    """What `surefoot evaluate` takes beside the model."""

    attacks: tuple[AttackName, ...] = ("fgsm", "i-fgsm", "pgd", "pgd-cw")
    """Which to run, in turn; clean accuracy is always there."""
    eps: float | None = None
    """l-infinity radius in pixel units: 8/255; None is the recipe's."""
    steps: int | None = None
    """Steps of I-FGSM, PGD and PGD-CW; None is the recipe's."""
    step_size: float | None = None
    """Step size of PGD and PGD-CW: 2/255; None is the recipe's."""
    restarts: int = 1
    """Runs of PGD and PGD-CW a sample; one that fools the model is kept."""
    last_iterate: bool = False
    """Attack every sample to the last step and count only that, as the paper does."""
    split: Literal["test", "validation"] = "test"
    """Which images."""
    num_examples: int | None = None
    """Only the first so many images; None is all."""
    batch_size: int = 250
    """Images at a time."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; `auto` takes an accelerator where there is one."""
    seed: int = 0
    """Of the attacks' random starts."""
    last: bool = False
    """Of a run, take the last epoch instead of the selected one."""
    weights: Path | None = None
    """safetensors weights, for package.module:factory."""
    dataset: str | None = None
    """digits, mnist, cifar10, tiny-imagenet-100 or imagefolder:PATH; None is the recipe's."""
    data_dir: Path | None = None
    """A folder of parquet shards; None is $SUREFOOT_DATA, or the hub."""
    mean: tuple[float, ...] | None = None
    """For package.module:factory: subtracted from each channel inside the model."""
    std: tuple[float, ...] | None = None
    """For package.module:factory: divides each channel inside the model, after the mean."""
    num_classes: int | None = None
    """For package.module:factory: keep that many classes of the data set, chosen at random; None is all."""
    image_size: int | None = None
    """For package.module:factory: pixels a side that images are resized to; None is the data set's own."""
    records: Path | None = None
    """A file to append the records to as well."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_examples", "restarts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")


def run(args: list[str]) -> int:
    """Evaluate; exit code 0."""
    name, rest = split_name(args)
    if name is None and not {"-h", "--help"} & set(rest):
        raise ValueError("evaluate needs a model, for example `surefoot evaluate runs/mnist/sat-r3/0`.")
    options = parse(Options, rest, prog=f"surefoot evaluate {name or 'MODEL'}", description=DESCRIPTION)
    assert name is not None  # --help has left
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model, dataset, attacks, about, files = (open_factory if ":" in name else open_run)(name, options)
    split: Split = getattr(dataset, options.split)
    if options.num_examples is not None:
        split = Split(split.images[: options.num_examples], split.labels[: options.num_examples])

    def keep(record: Record) -> None:
        for file in files:
            append_records(file, [record])
        if options.json:
            print_json(dataclasses.asdict(record))

    device = pick_device(options.device)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with EvaluationProgress(name) as progress:
        records = evaluate(
            model,
            Batches(split, options.batch_size, device=device, channels_last=True),
            attacks,
            last_iterate=options.last_iterate,
            seed=options.seed,
            about={**about, "split": options.split, "commit": commit()},
            progress=progress,
            on_record=keep,
        )
    if not options.json:
        stdout.print(record_table(records, f"{name}, {records[0].num_examples} {options.split} images"))
    if files:
        say("Records are in " + " and ".join(str(file) for file in files) + ".")
    return 0


Opened = tuple[nn.Module, Dataset, list[Attack], dict[str, Any], list[Path]]


def open_run(name: str, options: Options) -> Opened:
    """A run's model, data, attacks, what its records say of it, and where they go."""
    for field in ("weights", "mean", "std", "num_classes", "image_size"):
        if getattr(options, field) is not None:
            raise ValueError(f"--{field.replace('_', '-')} is for package.module:factory; a run has its own.")
    trained = load_run(Path(name))
    recipe = trained.recipe
    if options.dataset is not None:
        recipe = dataclasses.replace(recipe, dataset=options.dataset)
    dataset = dataclasses.replace(trained, recipe=recipe).load_data(options.data_dir)
    model = trained.load_model(dataset, "last.safetensors" if options.last else "model.safetensors")
    attacks = make_attacks(
        options,
        recipe.eps if options.eps is None else options.eps,
        recipe.attack_steps if options.steps is None else options.steps,
        recipe.attack_step_size if options.step_size is None else options.step_size,
    )
    about = {"recipe": recipe.name, "seed": recipe.training.seed, "dataset": recipe.dataset}
    return (
        model,
        dataset,
        attacks,
        about,
        [Path(name) / "records.jsonl", *([options.records] if options.records else [])],
    )


def open_factory(name: str, options: Options) -> Opened:
    """The same for package.module:factory."""
    for field in ("weights", "dataset", "eps", "steps", "step_size"):
        if getattr(options, field) is None:
            raise ValueError(f"{name} needs --{field.replace('_', '-')}, which only a run knows by itself.")
    assert options.weights is not None
    assert options.dataset is not None
    assert options.eps is not None
    assert options.steps is not None
    assert options.step_size is not None
    dataset = load(options.dataset, options.data_dir, num_classes=options.num_classes, image_size=options.image_size)
    model = build_model(
        name,
        num_classes=dataset.num_classes,
        in_channels=dataset.in_channels,
        image_size=dataset.image_size,
        mean=options.mean,
        std=options.std,
    )
    load_weights(model, options.weights)
    about = {"recipe": name, "dataset": options.dataset}
    files = [options.records] if options.records else []
    return (
        model.eval(),
        dataset,
        make_attacks(options, options.eps, options.steps, options.step_size),
        about,
        files,
    )


def make_attacks(options: Options, eps: float, steps: int, step_size: float) -> list[Attack]:
    """The attacks that were asked for, with the paper's start (Eq. 6)."""
    pgd = PGD(eps, steps, step_size, restarts=options.restarts, start_radius=step_size)
    known: dict[AttackName, Attack] = {
        "fgsm": FGSM(eps),
        "i-fgsm": IFGSM(eps, steps),
        "pgd": pgd,
        "pgd-cw": dataclasses.replace(pgd, loss=MarginLoss(50.0)),
    }
    return [known[attack] for attack in options.attacks]


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is an accelerator where there is one.

    Raises:
        ValueError: it is not there.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    check_device(name)
    return torch.device(name)
