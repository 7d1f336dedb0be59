"""`surefoot audit --calibrate`: the audit of models whose truth is known.

It stands here because it trains them by recipes, which the audit, two floors below, does not know.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table
from torch import nn

from surefoot.audit.controls import MASKS, distilled
from surefoot.audit.record import Audit, VerdictName
from surefoot.cli.models import ModelOptions, Opened, open_run
from surefoot.cli.output import TrainingProgress, say
from surefoot.models import build_model
from surefoot.recipes import RECIPES, load_run, train

Truth = Literal["robust", "not robust", "masked"]

TRUTH: dict[str, Truth] = {
    "pgd-at": "robust",
    "trades": "robust",
    "sat-r1": "robust",
    "sat-r2": "robust",
    "sat-r3": "robust",
    "normal": "not robust",
    "fgsm-at": "masked",
}
"""What a model is that was trained so, by the method in its recipe's name."""

TEMPERATURE = 40.0


@dataclass(frozen=True)
class Control:
    """A model, its data and what it truly is."""

    opened: Opened
    truth: Truth


def controls(names: Sequence[str], folder: Path, options: ModelOptions) -> Iterator[Control]:
    """The models to calibrate by: those of the digits, trained into `folder` where they are not there, or given runs.

    Each model of ordinary training is wrapped in every mask as well.

    Raises:
        ValueError: a run whose method's truth is not known.
    """
    for name in names or [str(train_control(method, folder)) for method in TRUTH]:
        opened = open_run(name, options)
        method = str(opened.about["recipe"]).rpartition("/")[2]
        if method not in TRUTH:
            raise ValueError(f"{name} is of {method}, whose truth is not known; give runs of {', '.join(TRUTH)}.")
        yield Control(dataclasses.replace(opened, name=f"{opened.about['dataset']} {method}"), TRUTH[method])
        if TRUTH[method] == "not robust":
            yield from masked(opened, name, f"{opened.about['dataset']} {method}")


def masked(opened: Opened, run: str, title: str) -> Iterator[Control]:
    """Every mask on that model, and a network distilled from it."""
    masks: dict[str, Callable[[nn.Module], nn.Module]] = {
        **MASKS,
        f"distilled at {TEMPERATURE:g}": lambda model: distil(model, opened, run),
    }
    for what, mask in masks.items():
        model = mask(opened.model).eval()
        yield Control(dataclasses.replace(opened, name=f"{title}, {what}", model=model), "masked")


def distil(model: nn.Module, opened: Opened, run: str) -> nn.Module:
    """A network of the same kind that learned the model's answers at a temperature."""
    recipe, dataset = load_run(Path(run)).recipe, opened.dataset

    def make() -> nn.Module:
        return build_model(
            recipe.model,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            image_size=dataset.image_size,
        )

    return distilled(model, make, dataset.train.images[:10000].float() / 255, TEMPERATURE)


def train_control(method: str, folder: Path) -> Path:
    """The run of a digits recipe in that folder, trained where it is not finished."""
    recipe, path = RECIPES[f"digits/{method}"], folder / method / "0"
    started = (path / "recipe.json").exists()
    if started and load_run(path).epochs_done() >= load_run(path).epochs():
        return path
    say(f"{method}: training for {recipe.epochs} epochs")
    with TrainingProgress(method) as progress:
        train(recipe, path, on_step=progress.on_step, resume=started)
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
