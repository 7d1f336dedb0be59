"""How a MODEL of the command line is opened: a run's folder, or package.module:factory with its weights."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surefoot.audit import Curve
from surefoot.cli.options import Common
from surefoot.cli.output import say
from surefoot.core.devices import in_image_format
from surefoot.core.failures import in_one_line
from surefoot.core.limits import check_count, check_whole
from surefoot.data import Batches, Dataset, Split, images_at_once, load
from surefoot.data.load import whole_name
from surefoot.evaluation import recognise
from surefoot.evaluation.stages import is_out_of_memory
from surefoot.models import build_model
from surefoot.recipes import load_run
from surefoot.training import Look, load_weights, monitor_curves
from surefoot.training.checkpoint import LAST, SELECTED
from surefoot.training.machines import best_device, check_device
from surefoot.training.trial import check_made

RECOGNISED_BY = 256  # images that a model's kind is recognised by


@dataclass(frozen=True)
class ModelOptions(Common):
    """What every verb takes that opens models."""

    source: str | None = None
    """Craft on this model (a run's folder, or package.module:factory) and score on MODEL."""
    source_weights: Path | None = None
    """safetensors weights of a source that is package.module:factory."""
    split: Literal["test", "validation"] = "test"
    """Which images."""
    num_examples: int | None = None
    """Only the first N images; None takes all."""
    batch_size: int | None = None
    """Images at a time; halved where memory is not enough. None is 250, on an accelerator 2000."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; `auto` takes an accelerator where there is one."""
    seed: int = 0
    """Of the attacks' random starts."""
    draws: int | None = None
    """For a model that answers differently each time: calls to average over."""
    last: bool = False
    """Of a run, take the last epoch instead of the selected one."""
    weights: tuple[Path, ...] = ()
    """For package.module:factory, one file each: safetensors, or torch.save's state_dict. None: the function's own."""
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
    data_seed: int | None = None
    """For package.module:factory: of the choice of classes and the split of an imagefolder; None is 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "num_examples", "draws"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_whole("seed", self.seed, least=0, what="--seed")
        if self.source_weights is not None and self.source is None:
            raise ValueError("--source-weights is for a --source that is package.module:factory; give that too.")


@dataclass(frozen=True)
class AtOneRadius(ModelOptions):
    """What every verb takes that looks at a model at one radius."""

    eps: float | None = None
    """l-infinity radius in pixel units: 8/255; None is the recipe's."""


@dataclass(frozen=True)
class Opened:
    """A model, its data, its recipe's attack settings, what its records say of it, and its folder where it is a run."""

    name: str
    model: nn.Module
    dataset: Dataset
    settings: dict[str, Any]
    about: dict[str, Any]
    folder: Path | None


OF_A_FACTORY = ("weights", "mean", "std", "num_classes", "image_size", "data_seed")
"""Options that say of package.module:factory what a run knows by itself."""


def check_factories(names: Sequence[str], options: ModelOptions) -> None:
    """Refuse what is for package.module:factory where no model is one, and too many or too few weights.

    Raises:
        ValueError: with what to give.
    """
    factories = [name for name in names if is_factory(name)]
    crafts = options.source is not None and is_factory(options.source)
    for field in OF_A_FACTORY:
        used = factories or (crafts and field in ("mean", "std"))
        if not used and getattr(options, field) not in (None, ()):
            raise ValueError(f"--{field.replace('_', '-')} is for package.module:factory; a run has its own.")
    if factories and options.dataset is None:
        raise ValueError(f"{factories[0]} needs --dataset, which only a run knows by itself.")
    if options.weights and len(options.weights) != len(factories):
        raise ValueError(
            f"--weights names {len(options.weights)} of the {len(factories)} files that {' and '.join(factories)} "
            "need; give one for each, in their order, or none where the functions bring their own."
        )


def open_models(names: Sequence[str], options: ModelOptions) -> list[Opened]:
    """Runs and package.module:factory, side by side."""
    check_factories(names, options)
    weights = iter(options.weights)
    return [
        open_factory(name, next(weights, None), options) if is_factory(name) else open_run(name, options)
        for name in names
    ]


def is_factory(name: str) -> bool:
    """Is it package.module:factory, and no folder on a drive of Windows?

    >>> [is_factory(name) for name in ("runs/demo/sat-r2/0", "my_package.nets:wide", "C:\\\\runs\\\\0", "C:/runs/0")]
    [False, True, False, False]
    """
    return ":" in name and not PureWindowsPath(name).is_absolute()


def open_run(name: str, options: ModelOptions) -> Opened:
    """A run."""
    trained = load_run(Path(name))
    recipe = trained.recipe
    if options.dataset is not None:
        recipe = dataclasses.replace(recipe, dataset=whole_name(options.dataset))
    dataset = dataclasses.replace(trained, recipe=recipe).load_data(options.data_dir)
    model = trained.load_model(dataset, LAST if options.last else SELECTED)
    settings = {"eps": recipe.eps, "steps": recipe.attack_steps, "step_size": recipe.attack_step_size}
    about = {"recipe": recipe.name, "seed": recipe.training.seed, "dataset": recipe.dataset}
    return Opened(name, model, dataset, settings, about, Path(name))


def open_factory(name: str, weights: Path | None, options: ModelOptions) -> Opened:
    """package.module:factory."""
    assert options.dataset is not None
    dataset = load(
        options.dataset,
        options.data_dir,
        num_classes=options.num_classes,
        image_size=options.image_size,
        seed=options.data_seed or 0,
    )
    model = build_factory(name, weights, dataset, options)
    about = {"recipe": name, "dataset": whole_name(options.dataset)}
    return Opened(name, model, dataset, {}, about, None)


def open_source(name: str, scored: Opened, options: ModelOptions) -> Opened:
    """The model that crafts; its data are those of the models that are scored."""
    if not is_factory(name):
        if options.source_weights is not None:
            raise ValueError(f"--source-weights is for package.module:factory; {name} is a run and has its own.")
        trained = load_run(Path(name))
        recipe, data = trained.recipe, scored.about["dataset"]
        some = recipe.dataset == data and recipe.num_classes is not None  # of an image folder by a seed
        if some and trained.load_data(options.data_dir).class_names != scored.dataset.class_names:
            raise ValueError(f"{name} tells other classes of {data} apart than {scored.name}; give another source.")
        about = {"recipe": recipe.name}
        return Opened(name, trained.load_model(scored.dataset), scored.dataset, scored.settings, about, None)
    model = build_factory(name, options.source_weights, scored.dataset, options)
    return Opened(name, model, scored.dataset, scored.settings, {"recipe": name}, None)


def build_factory(name: str, weights: Path | None, dataset: Dataset, options: ModelOptions) -> nn.Module:
    """package.module:factory with weights from a file, or those that it gives it."""
    model = build_model(
        name,
        num_classes=dataset.num_classes,
        in_channels=dataset.in_channels,
        image_size=dataset.image_size,
        mean=options.mean,
        std=options.std,
    )
    check_made(model, name)
    if weights is None:
        say(f"{name}: without a file of weights it is taken with those that the function gives it.")
        return model.eval()
    load_weights(model, weights)
    return model.eval()


def given_radius(opened: Opened, options: AtOneRadius) -> float:
    """The radius that was given, else the recipe's.

    Raises:
        ValueError: there is neither.
    """
    eps = opened.settings.get("eps") if options.eps is None else options.eps
    if eps is None:
        raise ValueError(f"{opened.name} needs --eps, which only a run knows by itself.")
    return float(eps)


def split_batches(dataset: Dataset, options: ModelOptions) -> tuple[torch.device, Batches]:
    """The images that were asked for, on their device."""
    split: Split = getattr(dataset, options.split)
    if len(split.labels) == 0:
        raise ValueError(f"{dataset.name} has no {options.split} images here; give another --split.")
    if options.num_examples is not None:
        split = Split(split.images[: options.num_examples], split.labels[: options.num_examples])
    device = pick_device(options.device)
    size = options.batch_size or images_at_once(device)
    return device, Batches(split, size, device=device, channels_last=True)


def ready(model: nn.Module, name: str, batches: Batches, device: torch.device, options: ModelOptions) -> nn.Module:
    """The model on its device, wrapped where it answers with something other than logits, or refused."""
    model = in_image_format(model, device)
    inputs, labels = next(iter(batches))
    model, said = recognised(model, name, inputs, labels, options, options.draws)
    for sentence in said:
        say(f"{name}: {sentence}")
    return model


def recognised(
    model: nn.Module, name: str, inputs: Tensor, labels: Tensor, options: ModelOptions, draws: int | None
) -> tuple[nn.Module, list[str]]:
    """`recognise` on the first images, fewer where memory is short, with the model's name on what is wrong with it.

    Raises:
        ValueError: it is refused, or its own code fails.
    """
    inputs, labels = inputs[:RECOGNISED_BY], labels[:RECOGNISED_BY]
    known_range = not is_factory(name) or options.mean is not None or options.std is not None
    try:
        return recognise(model, inputs, labels, draws=draws, check_range=not known_range)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:
        fewer = len(inputs) // 2 if isinstance(error, RuntimeError) and is_out_of_memory(error) else 0
        if not fewer:
            raise ValueError(
                f"{name} fails on {list(inputs.shape)} images in [0, 1] ({in_one_line(error)}); it must return "
                f"floating logits [{len(inputs)}, classes]."
            ) from error
    # Outside the except block, whose traceback holds on to the memory.
    return recognised(model, name, inputs[:fewer], labels[:fewer], options, draws)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is an accelerator where there is one.

    Raises:
        ValueError: it is not there.
    """
    if name == "auto":
        return best_device()
    check_device(name)
    return torch.device(name)


TRAINING_PLOTS: dict[str, Any] = {
    "FGSM accuracy": "training-accuracy",
    "PGD accuracy": "training-accuracy",
    "FGSM loss": "training-loss",
    "PGD loss": "training-loss",
    "FGSM - R-FGSM": "training-distance",
    "FGSM - I-FGSM": "training-distance",
    "gradient agreement": "training-agreement",
    "rising loss": "training-agreement",
}
"""A line of `monitor_curves`, and the plot of the audit's page that it belongs to."""


def training_curves(folder: Path | None) -> list[Curve]:
    """What the monitor saw while a run was trained, for the audit's page; nothing where there is no run.

    A damaged file costs the curves and not the audit: it is said, and they are left out.
    """
    looks: list[Look] = []
    if folder is not None:
        try:
            looks = load_run(folder).looks()
        except (ValueError, OSError) as error:
            say(f"{error}; the page does without the curves of the training.")
    return [
        Curve(plot=TRAINING_PLOTS[name], name=name, x=steps, y=values)
        for name, (steps, values) in monitor_curves(looks).items()
        if steps
    ]
