"""What Fig. 1-4 show of a training while it runs: logit distances, and the loss's shape early and late."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from surefoot.core.files import read_lines, write_text
from surefoot.data import Batches, Dataset, Split
from surefoot.paper.curves import is_curve, is_surface, logit_gaps, loss_curves, spaced, surface_line
from surefoot.recipes import Recipe
from surefoot.recipes.run import Run
from surefoot.training import StepReport

EVERY = 100  # steps, as in the paper's figures
EARLY, LATE = 40 / 625, 600 / 625
"""The paper's iterations 40 and 600 (x 100) of 625 (x 100): 100 epochs of 40,000 images in batches of 64."""
PROBE = 64
STAGES = ("early", "late")


def seen(file: Path) -> list[dict[str, Any]]:
    """What a `watch.jsonl` tells; nothing where it is damaged or a line lacks something, so that it is made anew."""
    lines = read_lines(file)
    return lines if all(is_whole(line) for line in lines) else []


def is_whole(line: dict[str, Any]) -> bool:
    """Has it all that a line of its kind has?"""
    numbers, distances = [line.get("epoch"), line.get("step")], line.get("distances")
    if line.get("stage") is not None:
        found = line["stage"] in STAGES and is_curve(line.get("losses")) and is_surface(line.get("surface"))
    else:
        found = isinstance(distances, dict)
        numbers += [distances.get(key) for key in ("ifgsm", "rfgsm")] if isinstance(distances, dict) else []
    return found and all(isinstance(number, int | float) for number in numbers)


class Watch:
    """Measures a training on the first validation images and keeps a line each time in `watch.jsonl`.

    Weights, modes, buffers and random numbers of the training are left as they are. What a stop left of an epoch that
    is run again is measured again.

    Args:
        recipe: what is trained.
        folder: the run's.
        points: radii of a curve, and a side of a surface.
        every: steps between two measurements of the distances.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, points: int, every: int = EVERY) -> None:
        self.recipe, self.points, self.every = recipe, points, every
        self.run = Run(folder, recipe)
        self.file = folder / "watch.jsonl"
        self.lines: list[dict[str, Any]] = []
        self.last = 0

    def on_start(self, model: nn.Module, dataset: Dataset) -> None:
        """Take the model that is trained and the images that it is measured on."""
        split = dataset.validation if len(dataset.validation.labels) else dataset.test
        self.model, self.images = model, Split(split.images[:PROBE], split.labels[:PROBE])
        done = self.run.epochs_done()
        self.lines = [line for line in seen(self.file) if line["epoch"] <= done]
        self.last = max((line["step"] for line in self.lines), default=0)

    def on_step(self, report: StepReport) -> None:
        """Measure, where it is time."""
        step, steps = (report.epoch - 1) * report.steps + report.step, report.epochs * report.steps
        stages = {line["stage"] for line in self.lines}
        due = [
            name
            for name, share in zip(STAGES, (EARLY, LATE), strict=True)
            if name not in stages and step >= share * steps
        ]
        if step - self.last < self.every and step < steps and not due:
            return
        device = next(self.model.parameters()).device
        ((inputs, labels),) = Batches(self.images, PROBE, device=device)
        recipe = self.recipe
        gaps = logit_gaps(self.model, inputs, labels, eps=recipe.eps, random_step=recipe.attack_step_size)
        line = {"epoch": report.epoch, "step": step, "steps": steps, "stage": None}
        self.lines.append({**line, "distances": gaps})
        self.last = step
        for stage in due:
            curves = loss_curves(self.model, inputs, labels, spaced(0, 1.5 * recipe.eps, self.points))
            surface = surface_line(self.model, inputs[0], labels[0], recipe.eps, points=self.points)
            self.lines.append({**line, "stage": stage, "losses": curves, "surface": surface})
        write_text(self.file, "".join(json.dumps(line) + "\n" for line in self.lines))
