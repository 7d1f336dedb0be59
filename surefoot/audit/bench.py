"""The bench that a model is examined on: every attack tried is kept sample by sample, so that checks share them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surefoot.audit.effort import Effort
from surefoot.core.gradients import NO_GRADIENT
from surefoot.core.seeding import seeded
from surefoot.core.types import Attack
from surefoot.evaluation.attack_settings import with_stop
from surefoot.evaluation.precision import exact_float32
from surefoot.evaluation.records import wilson_interval
from surefoot.evaluation.stages import Meter, predictions
from surefoot.evaluation.statistics import right_by_chance
from surefoot.models.wrappers import Averaged

Kind = Literal["single step", "gradient", "transfer", "gradient-free", "noise"]


def first(rows: Tensor, count: int) -> Tensor:
    """The first `count` of the chosen samples."""
    kept = torch.zeros_like(rows)
    kept[rows.nonzero().squeeze(1)[:count]] = True
    return kept


@dataclass
class Trial:
    """One attack tried on some of the samples.

    - `robust [samples]` bool: attacked, and not fooled; where only what others left was attacked,
      what is left after all.
    - `tried [samples]` bool: which were attacked.
    - `adv_inputs [samples, ...]`: clean where not attacked.
    - `refused`: why the attack could not run at all; then it leaves every image as it is.
    """

    name: str
    kind: Kind
    robust: Tensor
    tried: Tensor
    adv_inputs: Tensor
    eps: float
    total: int
    """Images that its accuracy is a share of."""
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    refused: str | None = None
    cut: bool = False
    """Did the budget end before all were attacked? Then it is of those that were, and judges nothing."""

    @property
    def fooled(self) -> Tensor:
        """Which it was tried on and fooled, `[samples]` bool."""
        return self.tried & ~self.robust

    def as_json(self) -> dict[str, Any]:
        """As `Audit.attacks` has it."""
        left, total = int(self.robust.sum()), self.total
        return {
            "name": f"{self.name}, cut short" if self.cut else self.name,
            "kind": self.kind,
            "robust_accuracy": left / total,
            "interval": list(wilson_interval(left, total)),
            "seconds": self.seconds,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "num_examples": int(self.tried.sum()),
            "eps": self.eps,
            "refused": self.refused,
        }


class OutOfTime(Exception):
    """The budget does not allow what is named any more."""


@dataclass
class Bench:
    """A model, the samples it is examined on, and what was tried on it.

    Args:
        model: what is judged; of a model that answers randomly the mean over some calls.
        once: the model as it is, one call; the same object where answers repeat.
        inputs: `[samples, ...]` in [0, 1] and labels `[samples]` on the model's device.
        eps: l-infinity radius in pixel units.
        deadline: in seconds of `time.perf_counter`; infinite without a budget.
    """

    model: nn.Module
    once: nn.Module
    inputs: Tensor
    labels: Tensor
    eps: float
    classes: int
    batch_size: int = 128
    seed: int = 0
    deadline: float = math.inf
    flips: float | None = None
    """Of a model that answers randomly: the share of predictions that change between two calls."""
    substitutes: dict[str, nn.Module] = field(default_factory=dict)
    effort: Effort = field(default_factory=Effort)
    progress: Callable[[str], None] | None = None
    course: dict[int, int] = field(default_factory=dict)
    """How many images the plain attack leaves after so many steps."""
    trials: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with seeded(self.seed), exact_float32(self.inputs.device):
            self.given = self.answers(self.model, self.inputs)
        self.right = self.given == self.labels

    def share_of_guesses(self) -> float:
        """How many are right of answers that know nothing of the images, but give each class as often as the model.

        At least 1 / classes: of 10 images of one class and 5 of another, a model that gives all the first is right on
        two thirds.
        """
        return max(1 / self.classes, right_by_chance(self.given, self.labels))

    def answers(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The classes given to `inputs`, `[samples]`; -1 where an answer has a NaN, which is right of no image."""
        return torch.cat([predictions(model, part) for part in torch.split(inputs, self.batch_size)])

    def check_time(self, what: str) -> None:
        """Raises OutOfTime: the budget is used up before `what`."""
        if time.perf_counter() > self.deadline:
            raise OutOfTime(what)

    def attack(
        self,
        name: str,
        attack: Attack,
        kind: Kind,
        *,
        rows: Tensor | None = None,
        crafter: nn.Module | None = None,
        convert: torch.dtype | None = None,
        eps: float | None = None,
    ) -> Trial:
        """Run an attack on the samples `rows` that are right when clean, or give what it did before.

        Args:
            name: what it is kept under.
            crafter: the model that it is crafted on; None is the judged one.
            convert: the type that its inputs are crafted in.
            eps: the radius, where it is not the bench's: then it says nothing about the worst case.

        Raises:
            OutOfTime: the budget does not allow it.
        """
        if name in self.trials:
            if self.trials[name].cut:
                raise OutOfTime(name)
            return self.trials[name]
        self.check_time(name)
        if self.progress is not None:
            self.progress(name)
        radius = self.eps if eps is None else eps
        tried = self.right if rows is None else rows & self.right
        robust, adv_inputs, refused = tried.clone(), self.inputs.clone(), None
        crafter = self.model if crafter is None else crafter
        if kind == "transfer" or isinstance(self.model, Averaged):  # what fools one answer may not fool another
            attack = with_stop(attack, when_fooled=False)
        places = tried.nonzero().squeeze(1)
        started = time.perf_counter()
        forwards, backwards, cut = 0, 0, False
        with exact_float32(self.inputs.device), Meter(crafter) as meter:
            for number, part in enumerate(torch.split(places, self.batch_size) if len(places) else ()):
                clean, labels = self.inputs[part], self.labels[part]
                with seeded(self.seed * 1_000_003 + number):
                    try:
                        made = attack(crafter, clean if convert is None else clean.to(convert), labels)
                    except ValueError as error:
                        if str(error) != NO_GRADIENT:
                            raise
                        refused = "the model gives no gradient"
                        break
                    made = made.to(clean.dtype)
                    made = torch.where(made.isfinite(), made, clean)
                    made = made.clamp((clean - radius).clamp(min=0), (clean + radius).clamp(max=1))
                    adv_inputs[part] = made
                    robust[part] = predictions(self.model, made) == labels
                    forwards, backwards = meter.counter.forwards, meter.counter.backwards
                if cut := time.perf_counter() > self.deadline and bool(part[-1] != places[-1]):
                    break
        if cut:
            tried = first(tried, int((places <= part[-1]).sum()))
            robust &= tried
        trial = Trial(
            name,
            kind,
            robust,
            tried,
            adv_inputs,
            radius,
            len(tried) if (eps is None or rows is None) and not cut else int(tried.sum()),
            time.perf_counter() - started,
            forwards,
            backwards,
            refused,
            cut,
        )
        self.trials[name] = trial
        if cut:
            raise OutOfTime(name)
        return trial

    def standing(self, *kinds: Kind) -> Tensor:
        """Which samples no attack of these kinds (of any, where none is given) has fooled so far, `[samples]`."""
        left = self.right.clone()
        for trial in self.trials.values():
            if trial.eps <= self.eps and (not kinds or trial.kind in kinds):
                left &= ~trial.fooled
        return left
