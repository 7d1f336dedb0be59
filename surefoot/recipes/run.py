"""A run: the folder that a recipe is trained in, and the model that comes out of it."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from surefoot.core.files import (
    CheckpointError,
    check_can_fill,
    load_metadata,
    read_lines,
    remove_unfinished,
    write_text,
)
from surefoot.core.seeding import seeded
from surefoot.data import DATASETS, Dataset
from surefoot.data import load as load_dataset
from surefoot.data.load import whole_name
from surefoot.models import build_model
from surefoot.objectives import NormalTraining, SatR1
from surefoot.recipes.cifar10 import CIFAR10
from surefoot.recipes.digits import DIGITS
from surefoot.recipes.imagenet import IMAGENET
from surefoot.recipes.mnist import MNIST
from surefoot.recipes.recipe import Recipe, source_names, with_sources
from surefoot.training import FitResult, Look, Monitor, fit, load_weights
from surefoot.training.checkpoint import LAST, LOCK, METRICS, SELECTED, STATE, WRITTEN
from surefoot.training.fit import StepReport, is_watched
from surefoot.training.machines import is_first_process, make_fabric
from surefoot.training.monitor import LOOK_EVERY_IMAGES, PROBE_SIZE
from surefoot.training.state import only_training
from surefoot.training.trial import check_made, try_training

RECIPE_FILE, DATA_FILE = "recipe.json", "data.json"
FILES = (RECIPE_FILE, DATA_FILE, *WRITTEN)
"""What a training writes to its folder."""


@dataclass(frozen=True)
class Run:
    """A run's folder and the recipe that it was trained with."""

    path: Path
    recipe: Recipe

    def epochs_done(self) -> int:
        """Epochs that are saved; 0 before the first.

        Raises:
            CheckpointError: a damaged state.
        """
        return len(self._saved())

    def epochs(self) -> int:
        """Epochs in all its phases."""
        return sum(phase.epochs for phase in self.recipe.phases())

    def looks(self) -> list[Look]:
        """What the monitor saw while it was trained, as `metrics.jsonl` has it; nothing where it did not look.

        Raises:
            ValueError: a damaged file, with the line.
        """
        file = self.path / METRICS
        looks: list[Look] = []
        if not file.exists():
            return looks
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            try:
                seen = json.loads(line).get("monitor") or []
                looks += [
                    look_of(look) for look in seen if None not in (*look.values(), *look["losses_along"])
                ]  # null: NaN
            except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
                raise ValueError(f"line {number} of {file} is not a line of a training") from error
        return looks

    def is_finished(self) -> bool:
        """Are all epochs done, or did the run stop for good where its gradients were masked?"""
        # Without state.ckpt, which is large and only to go on from, a run is as finished as its lines say.
        metrics = self._saved() or read_lines(self.path / METRICS)
        stopped = any((line.get("masking") or {}).get("action") == "stop" for line in metrics)
        return stopped or len(metrics) >= self.epochs()

    def _saved(self) -> list[dict[str, Any]]:
        """A line for each epoch that `state.ckpt` goes on from."""
        state = self.path / STATE
        if not state.exists():
            return []
        about = load_metadata(state)
        if "metrics" not in about:
            raise CheckpointError(
                f"{state} is not a training state; use another checkpoint, or train in another folder."
            )
        return list(about["metrics"])

    def load_data(self, data_dir: str | Path | None = None) -> Dataset:
        """The run's data set.

        Raises:
            ValueError: its images are others than those that the run was trained on.
        """
        dataset = load_recipe_data(self.recipe, data_dir)
        check_data(self.path, dataset)
        return dataset

    def load_model(self, dataset: Dataset, weights: str = SELECTED) -> nn.Module:
        """The trained model in evaluation mode: the selected epoch's, or `last.safetensors`.

        Raises:
            CheckpointError: missing, damaged or foreign weights.
        """
        model = build_recipe_model(self.recipe, dataset)
        load_weights(model, self.path / weights)
        return model.eval()


def look_of(fields: dict[str, Any]) -> Look:
    """A look from its JSON.

    Raises:
        TypeError, ValueError: these are not the fields of one, or something other than finite numbers.
    """
    look = Look(**fields)
    values = [*look.losses_along, *(value for name, value in fields.items() if name != "losses_along")]
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a look holds finite numbers")
    return look


def is_run(folder: Path) -> bool:
    """Does the folder hold a run, finished or not?"""
    return (folder / RECIPE_FILE).exists()


def load_run(path: str | Path) -> Run:
    """Open a run's folder.

    Args:
        path: the folder, as `train` was given it.

    Raises:
        ValueError: it is not a run, or its recipe.json is damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from surefoot.recipes import RECIPES
        >>> with TemporaryDirectory() as folder:
        ...     result = train(dataclasses.replace(RECIPES["digits/normal"], epochs=1), folder)
        ...     load_run(folder).epochs_done()
        1
    """
    file = Path(path) / RECIPE_FILE
    if not is_run(Path(path)):
        raise ValueError(f"{path} is not a run (it has no recipe.json); give a folder that `surefoot train` made.")
    try:
        return Run(Path(path), Recipe.from_json(json.loads(file.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from error


def load_recipe_data(recipe: Recipe, data_dir: str | Path | None) -> Dataset:
    """The recipe's data set, its random choices made by the recipe's `data_seed`."""
    return load_dataset(
        recipe.dataset,
        data_dir,
        validation_size=recipe.validation_size,
        image_size=recipe.image_size,
        num_classes=recipe.num_classes,
        seed=recipe.data_seed,
    )


def about_data(dataset: Dataset) -> dict[str, Any]:
    """What a run keeps of its data: by it they are known again, and an index is turned into a class's name."""
    return {
        "dataset": dataset.name,
        "images": dataset.described(),
        "fingerprint": dataset.fingerprint(),
        "class_names": dataset.class_names,
    }


def check_data(path: Path, dataset: Dataset, *, instead: str = "give other images with --dataset") -> None:
    """Refuse data other than what the run in `path` was trained on, where it recorded that.

    Args:
        path: the run's folder.
        dataset: what is there now.
        instead: what the user may do who cannot put them back.

    Raises:
        ValueError: with what to do.
    """
    file = path / DATA_FILE
    if not file.exists():  # of an older version
        return
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        known, images, name = (about[key] for key in ("fingerprint", "images", "dataset"))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is damaged; remove it, and what the run was trained on is not checked.") from error
    if name == dataset.name and known != dataset.fingerprint():
        raise ValueError(
            f"{path} was trained on {name} when that had {images}, and now it has {dataset.described()}, or as many "
            "in another split, so that it might be tested on what it has learned; put the folder back as it was, or "
            f"{instead}."
        )


def whole_path(place: str | None) -> str | None:
    """A place on this machine that does not depend on where a command is started."""
    return None if place is None else os.path.abspath(os.path.expanduser(place))


def initial_file(place: Path) -> Path:
    """The weights that a training starts from: of a run's folder those of its selected epoch.

    Raises:
        ValueError: they are not there, with what to give.
    """
    file = place / SELECTED if place.is_dir() else place
    if not file.exists():
        there = f"the folder {place} holds no {SELECTED}" if place.is_dir() else f"there is no {place}"
        raise ValueError(f"initial_weights: {there}; give a run's folder, or a file of weights.")
    return file


def start_from(place: str, model: nn.Module, recipe: Recipe, dataset: Dataset) -> None:
    """Load the weights that a recipe's training starts from.

    Raises:
        ValueError: they are not there, or are of a run that was trained on images which may be held out here.
        CheckpointError: they are damaged, or of another model.
    """
    file = initial_file(Path(place))
    if is_run(file.parent):
        source = load_run(file.parent)
        fields = ("validation_size",) if recipe.dataset in DATASETS else ("validation_size", "data_seed")
        ours, theirs = settings_of(recipe), settings_of(source.recipe)
        if ours["dataset"] == theirs["dataset"]:
            if other := differing(ours, theirs, fields):
                raise ValueError(
                    f"initial_weights: the run in {source.path} was trained on other images of {dataset.name} "
                    f"({other}), some of which are held out here; start from weights that never saw them, or give the "
                    "same split."
                )
            if not differing(ours, theirs, ("num_classes", "image_size")):
                check_data(source.path, dataset, instead="start from other weights")
    if ":" in recipe.model:
        check_made(model, recipe.model)
    load_weights(model, file)


def build_recipe_model(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The recipe's network for this data set, its initial weights drawn from the recipe's seed."""
    with seeded(recipe.training.seed):
        return build_model(
            recipe.model,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            image_size=dataset.image_size,
            mean=recipe.mean,
            std=recipe.std,
        )


def train(
    recipe: Recipe,
    path: str | Path,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    sources: Mapping[str, Path] | None = None,
    on_start: Callable[[nn.Module, Dataset], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> FitResult:
    """Train a recipe in a folder.

    Args:
        recipe: what to train.
        path: the run's folder; made where missing.
        data_dir: a folder of parquet shards; None takes $SUREFOOT_DATA or the hub.
        resume: go on with the unfinished run in `path`.
        sources: the finished run of each recipe that the objectives craft on, for ensemble adversarial training.
        on_start: given the model that is about to be trained in place, and its data; it must leave them as they are.
        on_step, on_epoch, on_note: told the progress, as in `training.fit`.

    Raises:
        ValueError: `path` holds another or a finished run, there are no initial weights, or a bad setting.
        CheckpointError, TrainingDiverged: as in `training.fit`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from surefoot.recipes import RECIPES
        >>> recipe = dataclasses.replace(RECIPES["digits/normal"], epochs=1)
        >>> with TemporaryDirectory() as folder:
        ...     result = train(recipe, folder)
        ...     run = load_run(folder)
        ...     model = run.load_model(run.load_data())
        >>> result.best_epoch, model(torch.rand(2, 1, 8, 8)).shape
        (1, torch.Size([2, 10]))
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is {recipe!r}; give a Recipe, as surefoot.recipes.RECIPES has them by their names.")
    path = Path(path)
    recipe = dataclasses.replace(
        recipe, dataset=whole_name(recipe.dataset), initial_weights=whole_path(recipe.initial_weights)
    )
    if is_first_process():  # the others start when the first has begun to write
        check_folder(recipe, path, resume)
    missing = [name for name in source_names(recipe) if name not in (sources or {})]
    if missing:
        raise ValueError(f"{recipe.name} crafts on {', '.join(missing)}; train them and give their runs as sources.")
    found = {name: load_run(folder) for name, folder in (sources or {}).items()}
    for name, run in found.items():
        check_source(recipe, name, run)
    begun = resume and (path / STATE).exists()
    if recipe.initial_weights is not None and not begun:
        initial_file(Path(recipe.initial_weights))  # before data are looked for
    fabric = make_fabric(recipe.training)
    dataset = load_recipe_data(recipe, data_dir)
    if resume and is_first_process():
        check_data(path, dataset)
    model = build_recipe_model(recipe, dataset)
    if recipe.initial_weights is not None and not begun:
        start_from(recipe.initial_weights, model, recipe, dataset)
    if ":" in recipe.model:
        try_training(model, recipe.model, dataset.train, dataset.num_classes, fabric.device)
    models = {name: run.load_model(dataset).requires_grad_(False).to(fabric.device) for name, run in found.items()}
    if on_start is not None:
        on_start(model, dataset)
    if is_first_process():
        check_can_fill(path, "the run")
    with only_training(path) if is_first_process() else nullcontext():
        if is_first_process():
            check_run(recipe, path, resume)  # another may have trained here since the first look
            for name in FILES:
                remove_unfinished(path / name)
            write_text(path / RECIPE_FILE, json.dumps(recipe.to_json(), indent=2) + "\n")
            write_text(path / DATA_FILE, json.dumps(about_data(dataset)) + "\n")
        return fit(
            model,
            dataset,
            [with_sources(phase, models) for phase in recipe.phases()],
            recipe.training,
            selection=recipe.selection(),
            run_dir=path,
            resume=resume,
            fabric=fabric,
            monitor=recipe_monitor(recipe, dataset),
            repair=recipe_repair(recipe),
            on_step=on_step,
            on_epoch=on_epoch,
            on_note=on_note,
        )


def recipe_monitor(recipe: Recipe, dataset: Dataset) -> Monitor | None:
    """What looks at a recipe's training, at its eps on its first validation images.

    None in ordinary training, which has nothing to mask, at eps 0, where nothing is held out, and where no objective
    reaches that eps.

    Raises:
        ValueError: none of these can be watched, and `on_masking` asks for more than a warning.
    """
    config = recipe.training
    images, labels = (tensor[:PROBE_SIZE] for tensor in dataset.validation)
    ordinary = all(isinstance(phase.objective, NormalTraining) for phase in recipe.phases())
    watched = sum(phase.epochs for phase in recipe.phases() if is_watched(phase.objective, recipe.eps))
    why = None
    if ordinary:
        why = "ordinary training masks no gradients"
    elif watched == 0:
        why = f"no objective's eps reaches the recipe's, {recipe.eps:.4g}, at which it would look"
    elif recipe.eps == 0 or len(labels) == 0:
        why = "eps is 0 or no images are held out"
    if config.on_masking == "off" or why is not None:
        if config.on_masking in ("stop", "repair"):
            raise ValueError(f"on_masking is {config.on_masking!r}, but {why}; leave it out.")
        return None
    seen = watched * len(dataset.train.labels)
    every = config.monitor_every or max(1, min(LOOK_EVERY_IMAGES, seen // 2) // config.batch_size)
    return Monitor(images.float() / 255, labels.clone(), eps=recipe.eps, every=every)


def recipe_repair(recipe: Recipe) -> SatR1:
    """The data set's own SAT-R1 at the recipe's eps; elsewhere with CIFAR-10's settings."""
    own = {each.name: each.objective for each in (*DIGITS, *MNIST, *CIFAR10, *IMAGENET)}
    found = own.get(f"{recipe.dataset}/sat-r1", own["cifar10/sat-r1"])
    assert isinstance(found, SatR1)
    return dataclasses.replace(found, eps=recipe.eps)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that decide the weights: all but its description and the device."""
    settings = recipe.to_json()
    settings["dataset"] = whole_name(recipe.dataset)
    settings["initial_weights"] = whole_path(recipe.initial_weights)
    del settings["description"], settings["training"]["device"]
    training = settings["training"]
    for among, name, usual in (
        (training, "max_grad_norm", None),
        (training, "optimizer", "sgd"),
        (settings, "initial_weights", None),
    ):
        if among[name] == usual:  # so that what was trained before there was a choice keeps its key
            del among[name]
    if settings["validation_size"] is None and recipe.dataset in DATASETS:
        settings["validation_size"] = DATASETS[recipe.dataset].validation_size
    return settings


DATA = ("dataset", "num_classes", "image_size", "validation_size", "data_seed")
"""The fields of a recipe that decide which images it trains on."""


def check_source(recipe: Recipe, name: str, source: Run) -> None:
    """Refuse to craft on a model of other data: of other classes, or one that was trained on images held out here.

    Raises:
        ValueError: with what differs and what to do.
    """
    fields = DATA if recipe.dataset not in DATASETS else DATA[:-1]  # the split of a named set has no seed
    if other := differing(settings_of(recipe), settings_of(source.recipe), fields):
        raise ValueError(
            f"{recipe.name} crafts on {name}, but the run in {source.path} was trained on other data "
            f"({other}); move that folder away, or give the same data."
        )


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Which of these settings differ, and how; empty where none does.

    >>> differing({"data_seed": 1, "epochs": 2}, {"data_seed": 0, "epochs": 2}, ["data_seed", "epochs"])
    'data_seed 0 instead of 1'
    """
    return ", ".join(
        f"{field} {theirs[field]} instead of {ours[field]}" for field in fields if ours[field] != theirs[field]
    )


def check_folder(recipe: Recipe, path: Path, resume: bool) -> None:
    """Refuse a folder that cannot be one, where a training is at work, or whose run `check_run` refuses.

    Raises:
        ValueError: with what to do.
    """
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"{path} cannot be a run's folder, because {nearest} is a file; give another one with --out.")
    if (path / LOCK).exists():
        with only_training(path):
            pass
    check_run(recipe, path, resume)


def is_trained(recipe: Recipe, path: Path) -> bool:
    """Is there a finished run of this very recipe in a folder?

    Raises:
        ValueError: there is a run of another.
    """
    if not is_run(path):
        return False
    found = load_run(path)
    if found.recipe.to_json() != recipe.to_json():
        raise ValueError(f"{path} holds a run with other settings; give another folder.")
    return found.is_finished()


def check_run(recipe: Recipe, path: Path, resume: bool) -> None:
    """Refuse a folder whose run is finished, is another, or is unfinished where `resume` was not asked for.

    Raises:
        ValueError: with what to do.
    """
    if not is_run(path):
        if resume:
            raise ValueError(f"{path} has no run to go on with; leave --resume out to start one.")
        others = [name for name in FILES if (path / name).exists()]
        if others:
            raise ValueError(
                f"{path} holds {' and '.join(others)}, but no {RECIPE_FILE}: a training would write over what is not "
                "its own; give another folder with --out."
            )
        return
    run = load_run(path)
    done = run.epochs_done()
    there = [name for name in (SELECTED, LAST, STATE) if (path / name).exists()]
    if not there and not (path / METRICS).exists():
        return  # it stopped before its first epoch was saved: nothing is lost where another begins
    if run.is_finished():
        raise ValueError(
            f"{path} holds a finished run, which is never overwritten; give another folder with --out, and "
            f"--initial-weights {path} to train it further there."
        )
    lost = STATE not in there
    if lost and (not resume or len(read_lines(path / METRICS)) > 1):  # killed in its first epoch, it lacks one
        raise ValueError(
            f"{path} holds {' and '.join(there) or 'the lines'} of a run, but no state.ckpt to go on from; give "
            "another folder with --out, or remove that one."
        )
    if not resume:
        raise ValueError(
            f"{path} holds a run that stopped after {done} of {run.epochs()} epochs; "
            "go on with --resume, or give another folder with --out."
        )
    before, now = settings_of(run.recipe), settings_of(recipe)
    changed = [name for name in now | before if now.get(name) != before.get(name)]
    if changed:
        raise ValueError(
            f"{path} was started with other settings ({', '.join(changed)}); resume it with the same ones, "
            "or give another folder with --out."
        )
