"""The run matrix: trainings and measurements as tasks that know what they need and whether they are done.

A task is a frozen dataclass. Its `id` is a hash of everything that decides its result, so that two tables that need the
same thing name the same task, and what is on disk under that name is never made again. Called with a `Workplace` it
does its work; killed at any moment and called again, it goes on.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from surefoot.core.devices import in_image_format
from surefoot.core.files import CheckpointError, load_tensors, read_lines, write_text
from surefoot.core.types import Attack
from surefoot.data import Batches, Dataset, Split, images_at_once
from surefoot.evaluation import Record, evaluate, evaluate_transfer, read_records
from surefoot.evaluation.attack_settings import fields_of
from surefoot.evaluation.identity import weights_sha256
from surefoot.paper.watch import STAGES, Watch, seen
from surefoot.recipes import Recipe, load_run, train
from surefoot.recipes.run import (
    DATA_FILE,
    FILES,
    RECIPE_FILE,
    Run,
    check_data,
    is_run,
    load_recipe_data,
    settings_of,
)
from surefoot.report import attack_label
from surefoot.report.plots import radius
from surefoot.training.checkpoint import METRICS, SELECTED, STATE
from surefoot.training.machines import best_device
from surefoot.training.state import only_training

VERSION = 1
"""Raised when a change of the code changes what a training or a measurement gives: all is then made anew."""
FINISHED, BEFORE = "finished.json", "before.json"
"""The hash of a finished training's weights; the same of the one before, while it is trained anew."""
LEFT = ("watch.jsonl", *reversed(FILES))
"""What a training leaves, in an order in which it can be removed: killed in between, it is still one to remove."""


def digest(value: Any) -> str:
    """A short content key of JSON values."""
    return hashlib.sha256(json.dumps([VERSION, value], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Workplace:
    """Where a reproduction keeps its things, and what its tasks must know beside their settings.

    Args:
        out: the folder of all runs, measurements and tables. Several machines must share it.
        data_dir: a folder of parquet shards; None takes $SUREFOOT_DATA or the hub.
        finished: folders of runs that `surefoot train` finished, taken where recipe and seed are the very same.
        commit: of the code, for the records.
    """

    out: Path
    data_dir: Path | None = None
    finished: tuple[Path, ...] = ()
    commit: str | None = None

    def data(self, recipe: Recipe) -> Dataset:
        """The recipe's data set."""
        return load_recipe_data(recipe, self.data_dir)


class Task(Protocol):
    """What the scheduler runs."""

    @property
    def id(self) -> str:
        """The content key."""

    @property
    def title(self) -> str:
        """What a person reads."""

    @property
    def needs(self) -> tuple["Training", ...]:
        """What must be trained before."""

    def done(self, place: Workplace) -> bool:
        """Is its result there, of the very models that are there now?"""

    def __call__(self, place: Workplace) -> None: ...


@dataclass(frozen=True)
class Training:
    """Train a recipe in a folder under `runs/`; what it crafts on is trained before.

    Args:
        recipe: with its seed, at the profile's scale.
        sources: trainings of the models that the recipe's objectives craft on.
        watched: measure logit distances and losses meanwhile, for Fig. 1-4, at so many radii; this leaves no trace on
            the training and is no part of the key. 0 is off.
        followed: a figure shows what was seen meanwhile: without that it is not done.
    """

    recipe: Recipe
    sources: tuple["Training", ...] = ()
    watched: int = 0
    followed: bool = False

    @cached_property
    def id(self) -> str:
        return digest(["training", settings_of(self.recipe), [source.id for source in self.sources]])

    @property
    def title(self) -> str:
        return f"train {self.recipe.name}, seed {self.recipe.training.seed}"

    @property
    def needs(self) -> tuple["Training", ...]:
        return self.sources

    def folder(self, place: Workplace) -> Path:
        """The run's folder."""
        return place.out / "runs" / self.recipe.name / f"{self.recipe.training.seed}-{self.id[:8]}"

    def sha256(self, place: Workplace) -> str | None:
        """Of the weights that its measurements are of: the finished run's, or till it is trained anew those before."""
        return read_sha256(self.folder(place) / FINISHED) or read_sha256(self.folder(place) / BEFORE)

    def finished(self, place: Workplace) -> bool:
        """Was it trained to its end?"""
        return read_sha256(self.folder(place) / FINISHED) is not None

    def seen(self, place: Workplace) -> list[dict[str, Any]]:
        """What Fig. 1-4 show of it."""
        return seen(self.folder(place) / "watch.jsonl")

    def lacks_seen(self, place: Workplace) -> bool:
        """Does a figure show what was not seen, as of a run that was taken, or not to the end?"""
        return self.followed and not {line["stage"] for line in self.seen(place)}.issuperset(STAGES)

    def done(self, place: Workplace) -> bool:
        return self.finished(place) and not self.lacks_seen(place)

    def measurements(self, place: Workplace) -> int:
        """How many there are of the weights that it has, or had."""
        folder, sha256 = self.folder(place), self.sha256(place) or ""
        files = [file for kind in ("evaluations", "measurements") for file in (folder / kind).glob("*.jsonl")]
        return sum(sha256 in file.read_text(encoding="utf-8", errors="replace") for file in files) if sha256 else 0

    def has_weights(self, place: Workplace) -> bool:
        """Finished, and with its weights whole; committed results lack them."""
        file = self.folder(place) / SELECTED
        return self.finished(place) and file.exists() and is_whole(file, file.stat().st_mtime_ns)

    def minutes(self, place: Workplace) -> float | None:
        """What the training took, selection of the epoch included; None before."""
        seconds = self.of_epochs(place, "seconds")
        return sum(line[0] for line in seconds) / 60 if seconds else None

    def speed(self, place: Workplace) -> float | None:
        """Images a second through a training step, over all epochs; None before it is done."""
        lines = self.of_epochs(place, "images_per_second", "train_seconds")
        spent = sum(seconds for _, seconds in lines)
        return sum(speed * seconds for speed, seconds in lines) / spent if spent else None

    def of_epochs(self, place: Workplace, *names: str) -> list[tuple[float, ...]]:
        """These numbers of each epoch; none before it is trained, or where a file is damaged or lacks one."""
        try:
            lines = read_lines(self.folder(place) / METRICS) if self.finished(place) else []
            return [tuple(float(line[name]) for name in names) for line in lines]
        except (LookupError, TypeError, ValueError):
            return []

    def model(self, place: Workplace, dataset: Dataset) -> nn.Module:
        """The trained model, on the device where it is measured.

        Raises:
            ValueError: it was trained on other images than these, or its weights are damaged.
        """
        self.check_data(place, dataset)
        model = load_run(self.folder(place)).load_model(dataset).requires_grad_(False)
        device = best_device()
        return in_image_format(model, device)

    def keeps_data(self, place: Workplace) -> bool:
        """Is there a run, finished or not, that tells what it is trained on? Those of older versions do not."""
        return (self.folder(place) / DATA_FILE).exists()

    def check_data(self, place: Workplace, dataset: Dataset) -> None:
        """Refuse data that are others than those that it was trained on, as far as that is known.

        Raises:
            ValueError: with what to do.
        """
        check_data(self.folder(place), dataset, instead="give another --out")

    def __call__(self, place: Workplace) -> None:
        folder = self.folder(place)
        # Whose worker was taken for dead may be at work still: its files are not removed.
        with only_training(folder) if folder.is_dir() else nullcontext():
            self.adopt(place)
            run = self.begun(place)
            complete = run is not None and run.is_finished()
            wanted = not (complete and (folder / SELECTED).exists()) or self.lacks_seen(place)
            gone = run is None or complete or self.finished(place) or not (folder / STATE).exists()
            if wanted and gone:  # what it needs to go on: it begins anew
                if self.finished(place):  # kept till there are others: measurements are known by it
                    (folder / FINISHED).replace(folder / BEFORE)
                for name in LEFT:
                    (folder / name).unlink(missing_ok=True)
                run = None
        if wanted:
            watch = Watch(self.recipe, folder, points=self.watched) if self.watched else None
            train(
                self.recipe,
                folder,
                data_dir=place.data_dir,
                resume=run is not None,
                sources={source.recipe.name: source.folder(place) for source in self.sources},
                on_start=watch.on_start if watch else None,
                on_step=watch.on_step if watch else None,
            )
        dataset = place.data(self.recipe)
        self.check_data(place, dataset)
        model = load_run(folder).load_model(dataset)
        about = {"id": self.id, "weights_sha256": weights_sha256(model)}
        write_text(folder / FINISHED, json.dumps(about) + "\n")
        (folder / BEFORE).unlink(missing_ok=True)

    def begun(self, place: Workplace) -> Run | None:
        """The run to go on from. A damaged state is put aside, and the training begins anew, also without weights."""
        folder = self.folder(place)
        if not is_run(folder):
            return None
        try:
            run = load_run(folder)
            if run.is_finished():
                if (folder / SELECTED).exists():
                    load_tensors(folder / SELECTED)
            elif run.epochs_done():
                for name in (STATE, SELECTED):  # all that it goes on from
                    load_tensors(folder / name)
        except ValueError:
            for file in (folder / STATE, folder / SELECTED):
                if file.exists():
                    file.replace(file.with_stem("damaged"))
            (folder / RECIPE_FILE).unlink()
            return None
        return run

    def adoptable(self, place: Workplace) -> Path | None:
        """A finished run of the very same recipe and seed, in folders that the user named; None once this has begun."""
        if self.sources or self.followed or is_run(self.folder(place)):
            return None  # a run does not tell which models it crafted on, and none was watched
        for file in (file for root in place.finished for file in sorted(root.rglob(RECIPE_FILE))):
            try:
                found = load_run(file.parent)
                if settings_of(found.recipe) != settings_of(self.recipe) or not found.is_finished():
                    continue
                load_tensors(file.parent / SELECTED)
            except ValueError:
                continue  # damaged, or without weights: it is not taken
            dataset = place.data(self.recipe)  # not within: that they are not there is no fault of the run
            with suppress(ValueError):  # trained on others: it is not taken
                check_data(file.parent, dataset)
                return file.parent
        return None

    def adopt(self, place: Workplace) -> None:
        """Copy such a run, where there is one."""
        found, folder = self.adoptable(place), self.folder(place)
        if found is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (SELECTED, METRICS, STATE, DATA_FILE, RECIPE_FILE):
                if (found / name).exists():  # not all are needed, and older versions did not write them all
                    shutil.copy2(found / name, folder / name)


@cache  # the tasks of a plan ask it of the same few files
def is_whole(file: Path, changed: int) -> bool:
    """Can the tensors of a file, last `changed` then, be read?"""
    try:
        load_tensors(file)
    except CheckpointError:
        return False
    return True


def read_sha256(file: Path) -> str | None:
    """The hash of a training's weights; None where there is none, or a damaged one, so that it is written anew."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["weights_sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


@dataclass(frozen=True)
class Evaluation:
    """Attack a trained model on itself; one record of clean accuracy and one of the attack.

    Args:
        model: what is attacked.
        attack: with all its settings.
        images: the first so many; None is all.
        split: `test` or `validation`.
        last_iterate: count the last step of every image; otherwise any step's success counts, and screening before it.
    """

    model: Training
    attack: Attack
    images: int | None = None
    split: str = "test"
    last_iterate: bool = False

    @cached_property
    def id(self) -> str:
        return digest(["evaluation", self.model.id, *self.about()])

    def about(self) -> list[Any]:
        counted = ["last iterate"] if self.last_iterate else []
        return [type(self.attack).__name__, fields_of(self.attack), self.images, self.split, *counted]

    @property
    def title(self) -> str:
        recipe = self.model.recipe
        counted = "the last step of " if self.last_iterate else ""
        attacked = what(self.attack, self.images, self.split, recipe)
        return f"{counted}{attacked} on {recipe.name}, seed {recipe.training.seed}"

    @property
    def needs(self) -> tuple[Training, ...]:
        return (self.model,)

    def file(self, place: Workplace) -> Path | None:
        """Where its records are or will be; None while the model is not trained."""
        sha256 = self.model.sha256(place)
        key = digest(["evaluation", sha256, *self.about()])
        return None if sha256 is None else self.model.folder(place) / "evaluations" / f"{key}.jsonl"

    def done(self, place: Workplace) -> bool:
        return bool(self.records(place))

    def records(self, place: Workplace) -> list[Record]:
        """Clean, and under the attack; empty while it is not done."""
        return clean_and_attacked(self.file(place), self.attack)

    def __call__(self, place: Workplace) -> None:
        dataset = place.data(self.model.recipe)
        records = evaluate(
            self.model.model(place, dataset),
            some_batches(dataset, self.images, self.split),
            [self.attack],
            last_iterate=self.last_iterate,
            about={**about_model(self.model, place), "split": self.split},
            unfinished=place.out / "unfinished" / self.id,
        )
        write_records(self.file(place), records)
        shutil.rmtree(place.out / "unfinished" / self.id, ignore_errors=True)


@dataclass(frozen=True)
class Transfer:
    """Craft on one trained model and score on many: the black-box setting; each model has a record of its own.

    Args:
        source: what crafts.
        models: what is scored.
        attack: with all its settings.
        images: the first so many test images; None is all.
    """

    source: Training
    models: tuple[Training, ...]
    attack: Attack
    images: int | None = None

    @cached_property
    def id(self) -> str:
        return digest(["transfer", self.source.id, [model.id for model in self.models], *self.about()])

    def about(self) -> list[Any]:
        return [type(self.attack).__name__, fields_of(self.attack), self.images]

    @property
    def title(self) -> str:
        recipe, models = self.source.recipe, len(self.models)
        return (
            f"{what(self.attack, self.images, 'test', recipe)} crafted on {recipe.name}, scored on {models} "
            f"model{'s' if models > 1 else ''}"
        )

    @property
    def needs(self) -> tuple[Training, ...]:
        return (self.source, *self.models)

    def file(self, place: Workplace, model: Training) -> Path | None:
        """Where a model's records are or will be; None while it or the source is not trained."""
        shas = [self.source.sha256(place), model.sha256(place)]
        key = digest(["transfer", self.source.id, *shas, *self.about()])
        return None if None in shas else model.folder(place) / "evaluations" / f"{key}.jsonl"

    def left(self, place: Workplace) -> "Transfer":
        """The same on the models that it was not done on yet."""
        return dataclasses.replace(self, models=tuple(each for each in self.models if not self.records(place, each)))

    def done(self, place: Workplace) -> bool:
        return not self.left(place).models

    def records(self, place: Workplace, model: Training) -> list[Record]:
        """Clean, and under the attack; empty while it is not done on this model."""
        return clean_and_attacked(self.file(place, model), self.attack)

    def without(self, failed: set[str]) -> "Transfer":
        """The same on the models that could be trained."""
        return dataclasses.replace(self, models=tuple(model for model in self.models if model.id not in failed))

    def __call__(self, place: Workplace) -> None:
        models = self.left(place).models
        if not models:
            return
        dataset = place.data(self.source.recipe)
        rows = evaluate_transfer(
            self.source.model(place, dataset),
            [model.model(place, dataset) for model in models],
            some_batches(dataset, self.images, "test"),
            [self.attack],
            about=[{**about_model(model, place), "source": self.source.recipe.name} for model in models],
            unfinished=place.out / "unfinished" / self.id,
        )
        for model, records in zip(models, rows, strict=True):
            write_records(self.file(place, model), records)
        shutil.rmtree(place.out / "unfinished" / self.id, ignore_errors=True)


def what(attack: Attack, images: int | None, split: str, recipe: Recipe) -> str:
    """An attack as a title has it: its radius where that is not the recipe's, its images where not all."""
    label, eps = attack_label(type(attack).__name__, fields_of(attack)), getattr(attack, "eps", recipe.eps)
    parts = [] if eps == recipe.eps else [f"eps {radius(eps)}"]
    if images is not None:
        parts.append(f"{images:,} images" if split == "test" else f"{images:,} {split} images")
    return f"{label} ({', '.join(parts)})" if parts else label


def some_batches(dataset: Dataset, images: int | None, split: str) -> Batches:
    """The first images of a split, on the device."""
    whole: Split = getattr(dataset, split)
    device = best_device()
    size = images_at_once(device)
    return Batches(Split(whole.images[:images], whole.labels[:images]), size, device=device, channels_last=True)


def about_model(model: Training, place: Workplace) -> dict[str, Any]:
    """What a record says of where it comes from."""
    recipe = model.recipe
    return {
        "recipe": recipe.name,
        "seed": recipe.training.seed,
        "dataset": recipe.dataset,
        "commit": place.commit,
    }


def write_records(file: Path | None, records: Sequence[Record]) -> None:
    """The records of one evaluation, whole or not at all."""
    assert file is not None
    write_text(file, "".join(record.to_json() + "\n" for record in records))


def clean_and_attacked(file: Path | None, attack: Attack) -> list[Record]:
    """The two records of one evaluation; none where they are not there, or damaged, so that it is made anew."""
    if file is None or not file.exists():
        return []
    try:
        records = read_records(file)
    except ValueError:
        return []
    in_order = [each.attack for each in records] == [None, type(attack).__name__]
    return records if in_order and all(is_sound(each) for each in records) else []


def is_sound(record: Record) -> bool:
    """Are the fields that tables show of the types and in the ranges that `evaluate` gives them?"""
    shares = (record.clean_accuracy, record.robust_accuracy, *record.robust_interval)
    others = (record.num_examples, record.seconds, *([] if record.mean_l2 is None else [record.mean_l2]))
    return (
        len(record.robust_interval) == 2
        and all(isinstance(number, int | float) and 0 <= number < math.inf for number in (*shares, *others))
        and max(shares) <= 1 <= record.num_examples
        and isinstance(record.parts, list)
        and all(isinstance(each, dict) for each in (record.attack_fields, record.versions, *record.parts))
        and isinstance(record.device, str)
    )
