"""How long tasks will take, from what finished runs took, or from counted passes and a timed step."""

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.attacks import AutoAttack, CarliniWagnerL2, DeepFool
from surefoot.core.devices import image_format, in_image_format
from surefoot.core.files import read_lines
from surefoot.core.seeding import seeded
from surefoot.core.types import Attack
from surefoot.evaluation import read_records
from surefoot.evaluation.attack_settings import fields_of, with_stop
from surefoot.models import build_model
from surefoot.objectives import NormalTraining
from surefoot.paper.curves import PGD_STEPS
from surefoot.paper.measurements import Around, PassCount, recipe_passes
from surefoot.paper.runs import Evaluation, Task, Training, Transfer, Workplace, is_sound
from surefoot.recipes import Recipe
from surefoot.recipes.recipe import objective_to_json, source_names, with_sources
from surefoot.recipes.run import RECIPE_FILE, settings_of
from surefoot.report import attack_label
from surefoot.training import FitConfig
from surefoot.training.checkpoint import METRICS
from surefoot.training.machines import best_device, make_fabric
from surefoot.training.step import EagerStep

TIMED = 16  # images of a timed forward
FAST = 0.5  # seconds of a step of so many images, below which it is timed in earnest
AFFORDABLE = 2.0  # seconds of an objective's step by its passes, up to which that step itself is timed


@dataclass(frozen=True)
class Estimate:
    """Seconds on one worker, and their basis.

    `measured` in finished runs, by `a step` that was timed here or by `passes` times what one takes here, or 0 for `a
    finished run` that is taken as it is.
    """

    task: Task
    seconds: float
    basis: str


@dataclass
class Costs:
    """What is known of costs on this machine.

    Args:
        place: whose runs are looked through; those of `place.finished` too.
    """

    place: Workplace
    epochs: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, list[float]] = field(default_factory=dict)
    timed: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for root in (self.place.out / "runs", *self.place.finished):
            for file in sorted(root.rglob(RECIPE_FILE)) if root.exists() else ():
                self.learn(file.parent)

    def learn(self, folder: Path) -> None:
        """Take what a run's epochs and records took; a folder that cannot be read tells nothing."""
        try:
            recipe = Recipe.from_json(json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8")))
            for line, objective in zip(read_lines(folder / METRICS), whole_schedule(recipe), strict=False):
                self.epochs.setdefault(training_key(recipe, objective), []).append(line["seconds"])
            for file in (folder / "records.jsonl", *sorted((folder / "evaluations").glob("*.jsonl"))):
                for record in read_records(file) if file.exists() else ():
                    if record.source is not None or not is_sound(record):
                        continue
                    seconds = record.seconds / record.num_examples
                    for method in (recipe.name, None):
                        key = attack_key(recipe, record.attack, record.attack_fields, method)
                        self.images.setdefault(key, []).append(seconds)
        except (OSError, ValueError, KeyError, TypeError):
            return

    def __call__(self, task: Task) -> Estimate:
        """How long a task takes on one worker."""
        if isinstance(task, Training):
            return self.training(task)
        if isinstance(task, Evaluation):
            recipe = task.model.recipe
            count = images_of(task.images, len(getattr(self.place.data(recipe), task.split).labels))
            attack = with_stop(task.attack, when_fooled=not task.last_iterate)
            for method in (recipe.name, None):
                found = self.images.get(attack_key(recipe, type(attack).__name__, fields_of(attack), method))
                if found:
                    return Estimate(task, fmean(found) * count, "measured")
            basis = "passes" if task.last_iterate else "passes, at most"
            return Estimate(task, attack_units(attack) * count * self.forward(recipe), basis)
        if isinstance(task, Transfer):
            recipe = task.source.recipe
            count = images_of(task.images, len(self.place.data(recipe).test.labels))
            crafting = attack_units(task.attack) * self.forward(recipe)
            scoring = sum(2 * self.forward(model.recipe) for model in task.models)
            return Estimate(task, (crafting + scoring) * count, "passes")
        if isinstance(task, PassCount):
            objective, size = task.recipe.objective, task.recipe.training.batch_size
            started = time.perf_counter()
            self.units(task.recipe, objective)
            return Estimate(task, time.perf_counter() - started, f"passes of {size} digits")
        if isinstance(task, Around):
            units = 2 * (PGD_STEPS + 1) * task.points * task.images if task.what == "losses" else task.points**2
            return Estimate(task, units * self.forward(task.model.recipe), "passes")
        raise TypeError(f"there is no estimate of a {type(task).__name__}")

    def training(self, task: Training) -> Estimate:
        """All epochs of a training, less those that are done."""
        recipe = task.recipe
        if task.adoptable(self.place) is not None:
            return Estimate(task, 0.0, "a finished run")
        saved = 0 if task.finished(self.place) else len(read_lines(task.folder(self.place) / METRICS))
        schedule = whole_schedule(recipe)[saved:]
        seconds, bases = 0.0, set()
        for objective in schedule:
            found = self.epochs.get(training_key(recipe, objective))
            if found:
                seconds += fmean(found)
                bases.add("measured")
                continue
            data = self.place.data(recipe)
            a_sample, basis = self.step(recipe, objective)
            bases.add(basis)
            seconds += a_sample * len(data.train.labels)
            seconds += (2 * recipe.selection_steps + 2) * len(data.validation.labels) * self.forward(recipe)
        return Estimate(task, seconds, " and ".join(sorted(bases)) or "measured")

    def units(self, recipe: Recipe, objective: Any) -> float:
        """Forward units of a training step by sample, counted once."""
        key = json.dumps([objective_to_json(objective), recipe.training.batch_size])
        if key not in self.steps:
            self.steps[key] = recipe_passes(dataclasses.replace(recipe, objective=objective, then=()))["units"]
        return self.steps[key]

    def forward(self, recipe: Recipe) -> float:
        """Seconds that a forward of one image through the recipe's network takes here, timed once."""
        key = json.dumps([*where(recipe), "forward"])
        if key not in self.timed:
            model, inputs, _ = self.example(recipe, TIMED)
            with torch.no_grad():
                self.timed[key] = min(timed(lambda: model.eval()(inputs)) for _ in range(3)) / TIMED
        return self.timed[key]

    def step(self, recipe: Recipe, objective: Any) -> tuple[float, str]:
        """Seconds of a training step by sample of its mini-batch, and their basis.

        Passes of a few samples wait, and passes that need no weight's gradient are the cheaper ones: so the step itself
        is timed, unless its passes say that it takes long.
        """
        size = recipe.training.batch_size
        by_passes = self.units(recipe, objective) * self.training_unit(recipe)
        if by_passes * size > AFFORDABLE:
            return by_passes, "passes"
        key = json.dumps([*where(recipe), size, recipe.training.precision, objective_to_json(objective)])
        if key not in self.timed:
            turn = self.turn(recipe, size, objective)
            self.timed[key] = min(timed(turn) for _ in range(3)) / size
        return self.timed[key], "a step"

    def training_unit(self, recipe: Recipe) -> float:
        """Seconds of a forward unit of one image in training: a third of an ordinary step, timed once.

        A slow network is timed on few images, a fast one on a whole mini-batch, whose overhead counts.
        """
        size = recipe.training.batch_size
        key = json.dumps([*where(recipe), size, recipe.training.precision])
        if key not in self.timed:
            count = min(TIMED, size)
            seconds = timed(self.turn(recipe, count, NormalTraining()))
            if seconds < FAST:
                turn, count = self.turn(recipe, size, NormalTraining()), size
                seconds = min(timed(turn) for _ in range(3))
            self.timed[key] = seconds / count / 3
        return self.timed[key]

    def turn(self, recipe: Recipe, count: int, objective: Any) -> Callable[[], Tensor]:
        """A training step on `count` images; an ensemble crafts on networks like the one that is trained."""
        model, inputs, labels = self.example(recipe, count)
        alone = dataclasses.replace(recipe, objective=objective, then=())
        sources = {name: copy.deepcopy(model).eval() for name in source_names(alone)}
        whole: Any = with_sources(alone.phases()[0], sources).objective
        optimizer = torch.optim.SGD(
            model.train().parameters(), lr=1e-9, momentum=0.9, weight_decay=5e-4, fused=inputs.device.type != "mps"
        )

        device: Any = inputs.device.type
        fabric = make_fabric(FitConfig(device=device, precision=recipe.training.precision))
        step = EagerStep(fabric, *fabric.setup(model, optimizer))
        return lambda: step(whole, inputs, labels, 1e-9)

    def example(self, recipe: Recipe, count: int) -> tuple[nn.Module, Tensor, Tensor]:
        """The recipe's network with random weights, and random images of its data's shape."""
        data = self.place.data(recipe)
        with seeded(0):
            model = build_model(
                recipe.model, num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size
            )
            inputs = torch.rand(count, data.in_channels, data.image_size, data.image_size)
            labels, device = torch.randint(data.num_classes, (count,)), best_device()
            model = in_image_format(model, device)
            inputs = inputs.to(device, memory_format=image_format(device))
            return model, inputs, labels.to(device)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes; on an accelerator the second time, since the first makes ready."""
    synchronise = torch.accelerator.synchronize if best_device().type != "cpu" else None
    if synchronise is not None:
        work()
        synchronise()
    started = time.perf_counter()
    work()
    if synchronise is not None:
        synchronise()
    return time.perf_counter() - started


def whole_schedule(recipe: Recipe) -> list[Any]:
    """The objective of each epoch."""
    return [phase.objective for phase in recipe.phases() for _ in range(phase.epochs)]


def where(recipe: Recipe) -> list[Any]:
    """What of a recipe decides what a pass through its network costs."""
    return [recipe.dataset, recipe.image_size, recipe.num_classes, recipe.model]


def training_key(recipe: Recipe, objective: Any) -> str:
    """What decides how long an epoch takes."""
    training = recipe.training
    how = [training.batch_size, training.precision, training.augment, recipe.selection_steps]
    how.append(settings_of(recipe)["validation_size"])
    return json.dumps([*where(recipe), *how, objective_to_json(objective)])


def attack_key(recipe: Recipe, attack: str | None, fields: dict[str, Any], method: str | None) -> str:
    """What decides how long an attack of a model on itself takes an image; of any method where that is None."""
    return json.dumps([*where(recipe), attack_label(attack, fields), fields.get("stop_when_fooled"), method])


def attack_units(attack: Attack) -> float:
    """Passes that an attack takes for an image that it never fools; each backward counts as a forward.

    Example:
        >>> from surefoot.attacks import PGD
        >>> attack_units(PGD(0.3, steps=40, step_size=0.01))
        81
    """
    if isinstance(attack, AutoAttack):  # nine targets: ten classes, or more
        return attack.queries + (5 * attack.targets + 2) * attack.steps + attack.targets + 11
    if isinstance(attack, DeepFool):
        return attack.steps * (1 + attack.candidates)
    if isinstance(attack, CarliniWagnerL2):
        return 2 * attack.steps * attack.search_steps
    return 2 * getattr(attack, "steps", 1) + 1


def images_of(limit: int | None, there: int) -> int:
    """How many are attacked."""
    return there if limit is None else min(limit, there)
