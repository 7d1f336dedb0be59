"""Measurements that are no accuracy: the loss around a trained model's images, and the passes of a training step."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from surefoot.benchmark.step_cost import count_passes
from surefoot.core.files import read_lines, write_text
from surefoot.core.seeding import seeded
from surefoot.models import build_model
from surefoot.paper.curves import is_curve, is_surface, loss_curves, spaced, surface_line
from surefoot.paper.runs import Training, Workplace, digest, some_batches
from surefoot.recipes import Recipe
from surefoot.recipes.recipe import objective_to_json, source_names, with_sources

REACH = 1.5
"""How far a curve of the loss goes, in units of the recipe's eps."""


@dataclass(frozen=True)
class Around:
    """The loss around test images of a trained model: `losses` over the radius (Fig. 5, 9), or its `surface` (Fig. 10).

    Args:
        model: what is measured.
        what: which of the two.
        images: the first so many; a surface is that of the first alone.
        points: radii of a curve, or a side of a surface.
    """

    model: Training
    what: Literal["losses", "surface"]
    images: int
    points: int

    @cached_property
    def id(self) -> str:
        return digest(["around", self.model.id, *self.about()])

    def about(self) -> list[Any]:
        return [self.what, self.images, self.points]

    @property
    def title(self) -> str:
        recipe = self.model.recipe
        return f"{self.what} of {recipe.name}, seed {recipe.training.seed}"

    @property
    def needs(self) -> tuple[Training, ...]:
        return (self.model,)

    def file(self, place: Workplace) -> Path | None:
        """Where the line is or will be; None while the model is not trained."""
        sha256 = self.model.sha256(place)
        key = digest(["around", sha256, *self.about()])
        return None if sha256 is None else self.model.folder(place) / "measurements" / f"{self.what}-{key}.jsonl"

    def done(self, place: Workplace) -> bool:
        return bool(self.lines(place))

    def lines(self, place: Workplace) -> list[dict[str, Any]]:
        """What was measured, one line; empty while it is not, or where that is damaged, so that it is made anew."""
        lines, is_whole = read_lines(self.file(place)), is_curve if self.what == "losses" else is_surface
        return lines if all(is_whole(line) for line in lines) else []

    def __call__(self, place: Workplace) -> None:
        recipe = self.model.recipe
        dataset = place.data(recipe)
        model = self.model.model(place, dataset)
        batches = list(some_batches(dataset, self.images, "test"))
        inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if self.what == "losses":
            measured: dict[str, Any] = loss_curves(model, inputs, labels, spaced(0, REACH * recipe.eps, self.points))
        else:
            measured = surface_line(model, inputs[0], labels[0], recipe.eps, points=self.points)
        about = {"recipe": recipe.name, "seed": recipe.training.seed, "weights_sha256": self.model.sha256(place)}
        file = self.file(place)
        assert file is not None
        write_text(file, json.dumps({**about, "images": len(labels), **measured}) + "\n")


@dataclass(frozen=True)
class PassCount:
    """What a training step of a recipe costs in passes, counted by hooks on a small network: Table 8.

    The network does not matter to the count, so all take the digits' own and random images.

    Args:
        recipe: whose objective and batch size are measured.
    """

    recipe: Recipe

    @cached_property
    def id(self) -> str:
        return digest(["passes", objective_to_json(self.recipe.objective), self.recipe.training.batch_size])

    @property
    def title(self) -> str:
        return f"passes of {self.recipe.name}"

    @property
    def needs(self) -> tuple[Training, ...]:
        return ()

    def file(self, place: Workplace) -> Path:
        """Where the line is or will be."""
        return place.out / "passes" / f"{self.recipe.name.replace('/', '-')}-{self.id}.jsonl"

    def done(self, place: Workplace) -> bool:
        return bool(self.lines(place))

    def lines(self, place: Workplace) -> list[dict[str, Any]]:
        """What was counted, one line; empty while it is not, or where that is damaged, so that it is made anew."""
        lines, names = read_lines(self.file(place)), ("batch_size", "crafting_backwards", "units")
        return lines if all(isinstance(line.get(name), int | float) for line in lines for name in names) else []

    def __call__(self, place: Workplace) -> None:
        write_text(self.file(place), json.dumps({"recipe": self.recipe.name, **recipe_passes(self.recipe)}) + "\n")


def recipe_passes(recipe: Recipe) -> dict[str, float]:
    """The passes of one step of the recipe's first objective, by the samples of a mini-batch.

    Returns:
        `crafting_forwards` and `crafting_backwards` a sample, `trained` samples a sample of the mini-batch (each
        goes forward and, with gradients of the weights, backward), and their sum in forward `units`: a forward 1,
        a backward to the inputs 1, to the weights 1 more.

    Example:
        >>> from surefoot.recipes import RECIPES
        >>> recipe_passes(RECIPES["mnist/sat-r3"])["units"]
        8.0
    """
    size = recipe.training.batch_size
    with seeded(0):
        model = build_model("digits-net", num_classes=10, in_channels=1, image_size=8).train()
        names = source_names(recipe)
        sources = {
            name: build_model("digits-net", num_classes=10, in_channels=1, image_size=8).eval() for name in names
        }
        inputs, labels = torch.rand(size, 1, 8, 8), torch.randint(10, (size,))
        objective = with_sources(recipe.phases()[0], sources).objective
        counted = count_passes(
            lambda: objective(model, inputs, labels).loss.backward(),  # type: ignore[no-untyped-call]
            [model, *sources.values()],
        )
    return {
        "batch_size": size,
        "crafting_forwards": counted.crafting_forwards / size,
        "crafting_backwards": counted.crafting_backwards / size,
        "trained": (counted.forwards - counted.crafting_forwards) / size,
        "units": counted.units / size,
    }
