"""`surefoot audit --calibrate`: the audit of models whose truth is known.

It is here because it trains them by recipes, which the audit, two floors below, does not know.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from rich.table import Table
from torch import nn

from surefoot.attacks import FGSM, PGD, AutoAttack
from surefoot.audit.controls import distilled, masks
from surefoot.audit.record import Audit, VerdictName
from surefoot.audit.verdict import LOOKS_ROBUST, MOSTLY_LOST
from surefoot.cli.models import AtOneRadius, Opened, given_radius, open_run, split_batches
from surefoot.cli.output import Spinner, TrainingProgress, say
from surefoot.core.types import Attack
from surefoot.evaluation import accuracy, evaluate
from surefoot.evaluation.records import wilson_interval
from surefoot.models import build_model
from surefoot.recipes import RECIPES, load_run, train
from surefoot.recipes.run import is_run, is_trained

Truth = Literal["robust", "not robust", "masked"]

METHODS = ("pgd-at", "trades", "sat-r1", "sat-r2", "sat-r3", "normal", "fgsm-at")
"""How the digits' controls are trained."""

TEMPERATURE = 40.0
SEEDS = 8
"""Random seeds, over which a control's facts are means."""


@dataclass(frozen=True)
class Facts:
    """What a control's truth rests on, in shares of `images`; none of it comes from the audit.

    Args:
        clean, fgsm, pgd: accuracies of the model as it stands, each attack on single calls, the mean over 8 random
            seeds. An attack that the model refuses, for it has no gradient, fools nobody.
        left: what AutoAttack leaves: of a masked model, of the same model without its mask.
        images: how many.
    """

    clean: float
    fgsm: float
    pgd: float
    left: float
    images: int

    def truth(self, required: float) -> Truth:
        """Robust, where AutoAttack leaves what is required and half of what PGD does; masked, where it only looks so.

        Example:
            >>> Facts(clean=0.98, fgsm=0.92, pgd=0.66, left=0.19, images=1000).truth(required=0.1)
            'masked'
        """
        looks = max(self.fgsm, self.pgd)
        reached = wilson_interval(round(self.left * self.images), self.images)[0] >= required
        if reached and self.left >= (1 - MOSTLY_LOST) * self.pgd:
            return "robust"
        return "masked" if looks >= max(required, LOOKS_ROBUST * self.clean) else "not robust"


@dataclass(frozen=True)
class Control:
    """A model, its data, and the facts."""

    opened: Opened
    facts: Facts


def controls(names: Sequence[str], folder: Path, options: AtOneRadius) -> Iterator[Control]:
    """The models to calibrate by: those of the digits, trained into `folder` where they are not there, or given runs.

    Each model of ordinary training is wrapped in every mask as well, and distilled.
    """
    for name in names or [str(train_control(method, folder)) for method in METHODS]:
        opened = open_run(name, options)
        recipe = load_run(Path(name)).recipe
        method = recipe.name.rpartition("/")[2]
        title = f"{recipe.dataset} {recipe.model} {method}"
        left = auto_attack(opened.model, title, opened, options)
        yield Control(dataclasses.replace(opened, name=title), look_at(opened.model, opened, left, options))
        if method.partition("-")[0] != "normal":
            continue
        for what, mask in masks(given_radius(opened, options)).items():
            model = mask(opened.model).eval()
            whole = dataclasses.replace(opened, name=f"{title}, {what}", model=model)
            yield Control(whole, look_at(model, opened, left, options))
        whole = dataclasses.replace(opened, name=f"{title}, distilled at {TEMPERATURE:g}", model=distil(opened, name))
        left = auto_attack(whole.model, whole.name, opened, options)
        yield Control(whole, look_at(whole.model, opened, left, options))


def auto_attack(model: nn.Module, title: str, opened: Opened, options: AtOneRadius) -> float:
    """What AutoAttack leaves of the images that the audit examines."""
    device, batches = split_batches(opened.dataset, options)
    model = model.to(device)
    with Spinner(f"{title}: AutoAttack") as spinner:
        records = evaluate(
            model,
            batches,
            [AutoAttack(given_radius(opened, options))],
            seed=options.seed,
            progress=lambda part, done, total: spinner(f"{part}, {done} of {total}"),
        )
    return records[1].robust_accuracy


def look_at(model: nn.Module, opened: Opened, left: float, options: AtOneRadius) -> Facts:
    """A control's facts, where AutoAttack's share is known."""
    eps = given_radius(opened, options)
    device, batches = split_batches(opened.dataset, options)
    model = model.to(device)

    def under(attack: Attack | None) -> float:
        seeds = range(options.seed, options.seed + SEEDS)  # a mask that draws once a batch may be lucky
        try:
            return fmean(accuracy(model, batches, attack, seed=seed) for seed in seeds)
        except ValueError:  # no gradient at all
            return fmean(accuracy(model, batches, seed=seed) for seed in seeds)

    clean, fgsm, pgd = map(under, (None, FGSM(eps), PGD(eps, steps=40, step_size=eps / 10)))
    return Facts(clean, fgsm, pgd, left, sum(len(labels) for _, labels in batches))


def distil(opened: Opened, run: str) -> nn.Module:
    """A network of the same kind that learned the model's answers at a temperature."""
    recipe, dataset = load_run(Path(run)).recipe, opened.dataset

    def make() -> nn.Module:
        return build_model(
            recipe.model,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            image_size=dataset.image_size,
        )

    return distilled(opened.model, make, dataset.train.images[:10000].float() / 255, TEMPERATURE)


def train_control(method: str, folder: Path) -> Path:
    """The run of a digits recipe in that folder, trained where it is not finished."""
    recipe, path = RECIPES[f"digits/{method}"], folder / method / "0"
    if is_trained(recipe, path):
        return path
    say(f"{method}: training for {recipe.epochs} epochs")
    with TrainingProgress(method) as progress:
        train(recipe, path, on_step=progress.on_step, resume=is_run(path))
    return path


@dataclass(frozen=True)
class Confusion:
    """How often each truth was given each verdict."""

    counts: dict[tuple[Truth, VerdictName], int]

    @staticmethod
    def of(pairs: Sequence[tuple[Truth, Audit]]) -> "Confusion":
        return Confusion(dict(Counter((truth, audit.verdict) for truth, audit in pairs)))

    def faults(self) -> list[str]:
        """What must not happen, where it did.

        Example:
            >>> Confusion({("masked", "robust"): 2, ("masked", "masked"): 5}).faults()
            ['2 masked models were called robust.']
        """
        forbidden: list[tuple[Truth, VerdictName]] = [
            ("masked", "robust"),
            ("robust", "masked"),
            ("not robust", "masked"),
            ("not robust", "robust"),
            ("not robust", "inconclusive"),
        ]
        return [
            f"{count} {truth} model{'s' if count > 1 else ''} {'were' if count > 1 else 'was'} called {verdict}."
            for truth, verdict in forbidden
            if (count := self.counts.get((truth, verdict), 0))
        ]

    def table(self) -> Table:
        """A row a truth, a column a verdict."""
        table = Table(title="What they are (rows), what the audit said (columns)", title_justify="left")
        verdicts: tuple[VerdictName, ...] = ("robust", "not robust", "masked", "inconclusive")
        table.add_column("truth")
        for verdict in verdicts:
            table.add_column(verdict, justify="right")
        truths: tuple[Truth, ...] = ("robust", "not robust", "masked")
        for truth in truths:
            table.add_row(truth, *(str(self.counts.get((truth, verdict), 0)) for verdict in verdicts))
        return table
