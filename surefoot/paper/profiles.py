"""How much of the paper's scale a reproduction runs at: all of it, a CPU's share, or seconds."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from surefoot.attacks import AutoAttack, CarliniWagnerL2, DeepFool
from surefoot.core.types import Attack
from surefoot.data import DATASETS
from surefoot.paper.readings import Reading, read_as
from surefoot.recipes import Recipe


@dataclass(frozen=True)
class Profile:
    """What is changed in every recipe, and how many images are attacked.

    Args:
        name: its key.
        note: one sentence, printed on every table and figure.
        seeds: trainings a row, unless `--seeds` says otherwise.
        epochs: of a whole training at most; several phases keep their shares. None is the recipe's.
        steps: of the attacks inside an objective at most; their step size grows so that they reach as far.
        attack_steps: of the attacks that measure, at most.
        dataset: trained on instead; None is the recipe's.
        models: a network and what is trained instead of it.
        training: fields of `FitConfig` to change where a network is replaced.
        learning_rate: at most, where a network is replaced; None is the recipe's.
        imagenet: a folder of ImageNet's own images; 100 random classes of it take tiny-imagenet-100's place.
        precision: of the trainings; None is the recipe's.
        reading: of the objectives where the paper and its authors' code differ; None is the recipe's.
        last_iterate: in the tables too, count the last step of every image under FGSM, I-FGSM, PGD and PGD-CW.
        image_size: pixels a side that larger images are resized to; None keeps them.
        images, deepfool_images, cw_images, auto_images: how many of the first test images; None is all.
        cw: steps, weights and Adam's step of C&W, which the paper does not tell.
        auto: fields of `AutoAttack` to change.
        curve_images: images of a measured curve, of a loss or of an accuracy.
        points: radii a side of a loss surface, and of a curve over the radius.
    """

    name: str
    note: str
    seeds: int = 3
    epochs: int | None = None
    steps: int | None = None
    attack_steps: int | None = None
    dataset: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    imagenet: Path | None = None
    precision: Literal["fp32", "bf16"] | None = None
    reading: Reading | None = None
    last_iterate: bool = False
    image_size: int | None = None
    images: int | None = None
    deepfool_images: int | None = 1000
    cw_images: int | None = 200
    auto_images: int | None = 1000
    cw: tuple[int, int, float] = (200, 5, 0.05)
    auto: Mapping[str, int] = field(default_factory=dict)
    curve_images: int = 1000
    points: int = 21

    def recipe(self, recipe: Recipe, seed: int) -> Recipe:
        """The recipe at this scale, with a seed."""
        changes: dict[str, Any] = {"training": dataclasses.replace(recipe.training, seed=seed)}
        total = sum(phase.epochs for phase in recipe.phases())
        if self.epochs is not None and self.epochs < total:
            share = self.epochs / total
            changes["epochs"] = max(1, round(recipe.epochs * share))
            changes["then"] = tuple(
                dataclasses.replace(phase, epochs=max(1, round(phase.epochs * share))) for phase in recipe.then
            )
        changes["objective"] = self.objective(recipe.objective, recipe.dataset)
        changes["then"] = tuple(
            dataclasses.replace(phase, objective=self.objective(phase.objective, recipe.dataset))
            for phase in changes.get("then", recipe.then)
        )
        if self.attack_steps is not None and self.attack_steps < recipe.attack_steps:
            changes["attack_steps"] = self.attack_steps
            reach = recipe.attack_steps * recipe.attack_step_size
            changes["attack_step_size"] = min(recipe.eps, reach / self.attack_steps)
        if self.dataset is not None:
            changes["dataset"] = self.dataset
        elif self.imagenet is not None and recipe.dataset == "tiny-imagenet-100":
            changes["dataset"] = f"imagefolder:{self.imagenet}"
            changes["num_classes"], changes["image_size"] = 100, 224
        if self.image_size is not None and DATASETS[recipe.dataset].image_size > self.image_size:
            changes["image_size"] = self.image_size
        if recipe.model in self.models:
            changes["model"] = self.models[recipe.model]
            training = dataclasses.replace(changes["training"], **self.training)
            rate = min(training.learning_rate, self.learning_rate or training.learning_rate)
            changes["training"] = dataclasses.replace(training, learning_rate=rate)
        if self.precision is not None:
            changes["training"] = dataclasses.replace(changes["training"], precision=self.precision)
        return dataclasses.replace(recipe, **changes)

    def trained_in(self, precision: Literal["fp32", "bf16"] | None) -> "Profile":
        """The profile with another precision of the trainings, which its note says."""
        if precision is None:
            return self
        note = f"{self.note.removesuffix(f' Trained in {self.precision}.')} Trained in {precision}."
        return dataclasses.replace(self, name=f"{self.name}-{precision}", precision=precision, note=note)

    def read_as(self, reading: Reading | None) -> "Profile":
        """The profile with one reading wherever the paper and its authors' code differ, which its note says."""
        if reading is None:
            return self
        note = f"{self.note} Where the paper and its authors' code differ, the objectives are the {reading}'s."
        return dataclasses.replace(self, name=f"{self.name}-as-{reading}", reading=reading, note=note)

    def counted_as(self, last_iterate: bool) -> "Profile":
        """The profile with the paper's counting in the tables, of the last step; its name says so, and every table."""
        if not last_iterate:
            return self
        return dataclasses.replace(self, name=f"{self.name}-last-iterate", last_iterate=True)

    def of_imagenet(self, folder: Path | None) -> "Profile":
        """The profile on the user's own ImageNet, which its note says; one that trains on digits has no use for it."""
        if folder is None or self.dataset is not None:
            return self
        note = f"{self.note} ImageNet-subset: 100 classes of the user's own folder, drawn at random."
        return dataclasses.replace(self, name=f"{self.name}-imagenet", imagenet=folder, note=note)

    def objective(self, objective: Any, dataset: str) -> Any:
        """The objective in the profile's reading, with at most `steps` steps inside."""
        if self.reading is not None:
            objective = read_as(self.reading, objective, dataset)
        steps = getattr(objective, "steps", None)
        if self.steps is None or steps is None or steps <= self.steps:
            return objective
        changes: dict[str, Any] = {"steps": self.steps}
        if hasattr(objective, "step_size"):
            changes["step_size"] = min(objective.eps, objective.step_size * steps / self.steps)
        return dataclasses.replace(objective, **changes)

    def minimal_norm(self) -> dict[str, tuple[Attack, int | None]]:
        """Table 6's attacks, and on how many images each."""
        steps, search_steps, learning_rate = self.cw
        cw = CarliniWagnerL2(learning_rate=learning_rate, steps=steps, search_steps=search_steps)
        return {"DeepFool": (DeepFool(), self.deepfool_images), "CW": (cw, self.cw_images)}

    def auto_attack(self, eps: float) -> AutoAttack:
        """The column that the paper lacks."""
        return AutoAttack(eps, **self.auto)


PAPER = Profile(
    "paper",
    "Profile `paper`: the paper's networks, epochs and attacks (what it leaves open, such as batches and rates, is "
    "named in docs/reproduce.md); all test images, AutoAttack and DeepFool on the first 1,000, C&W on the first 200.",
)
QUICK = Profile(
    "quick",
    "Profile `quick`, not the paper's scale: 3 epochs with a one-cycle learning rate of at most 0.05; at most 5 steps "
    "inside an objective; lenet-small and other small networks, at 32 x 32 pixels, in place of LeNet+ and the residual "
    "ones; the first 1,000 test images, DeepFool on 200, AutoAttack and C&W on 100.",
    epochs=3,
    steps=5,
    models={
        "lenet-plus": "lenet-small",
        "mnist-a": "conv-small",
        "mnist-b": "digits-net",
        "wrn-28-10": "lenet-small",
        "resnet-18": "conv-norm",
        "resnet-34": "conv-small",
        "vgg-19": "digits-net",
        "vgg-11": "mnist-c",
        "densenet-bc-100": "mnist-d",
        "vgg-13": "mnist-c",
        "resnet-50": "lenet-small",
    },
    training={"schedule": "one-cycle"},
    learning_rate=0.05,
    image_size=32,
    images=1000,
    deepfool_images=200,
    cw_images=100,
    auto_images=100,
    curve_images=200,
)
SHORT = Profile(
    "short",
    "Profile `short`, for one GPU, not the paper's scale: 15 epochs of ResNet-18 in place of WRN-28-10 in "
    "batches of 128 with a one-cycle learning rate; the first 1,000 test images, AutoAttack, DeepFool and C&W on 200. "
    "Trained in bf16.",
    seeds=1,
    epochs=15,
    models={"wrn-28-10": "resnet-18"},
    training={"schedule": "one-cycle", "batch_size": 128},
    precision="bf16",
    images=1000,
    deepfool_images=200,
    auto_images=200,
)
NETWORKS = (*QUICK.models, "mnist-c", "mnist-d")
SMOKE = Profile(
    "smoke",
    "Profile `smoke`, no result at all: one epoch on 8 x 8 digits, 16 images, attacks of 5 steps. It only shows that "
    "everything runs.",
    seeds=1,
    epochs=1,
    steps=2,
    attack_steps=5,
    dataset="digits",
    models=dict.fromkeys(NETWORKS, "digits-net"),
    training={"batch_size": 128, "learning_rate": 0.1, "schedule": "constant", "augment": "none", "device": "cpu"},
    images=16,
    deepfool_images=16,
    cw_images=8,
    auto_images=8,
    cw=(5, 2, 0.05),
    auto={"steps": 2, "queries": 5, "targets": 2},
    curve_images=16,
    points=3,
)
PROFILES = {profile.name: profile for profile in (PAPER, SHORT, QUICK, SMOKE)}
