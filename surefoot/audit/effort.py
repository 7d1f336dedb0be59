"""How thorough an audit is: from what a pass through the model costs and the minutes that it may take."""

import dataclasses
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surefoot.audit.landscape import gradients

MINUTES = 4.0
"""About what an audit without a budget takes at most; where it would take longer, fewer images are examined."""

SUBSTITUTES_SHARE = 0.1
"""The share of the time that each of the two substitutes may take before the first attack."""

FEWEST = 48
"""Images that are examined at least: with fewer, chance decides."""


@dataclass(frozen=True)
class Effort:
    """Steps, restarts and queries of an audit's attacks.

    Example:
        >>> Effort().passes() < Effort.thorough().passes()
        True
    """

    steps: int = 40
    """Of the plain attack, PGD."""
    more_steps: int = 100
    restarts: int = 2
    """Of the attack that must not beat it by much."""
    queries: int = 500
    """Of each search without gradients."""
    substitute_steps: int = 500
    """Mini-batches that each substitute learns from."""

    @staticmethod
    def thorough() -> "Effort":
        """What a large budget buys."""
        return Effort(steps=100, more_steps=1000, restarts=3, queries=3000, substitute_steps=2000)

    @staticmethod
    def more() -> "Effort":
        """What a budget buys that is too small for that."""
        return Effort(steps=60, more_steps=300, restarts=2, queries=1500, substitute_steps=1000)

    def passes(self, left: float = 1.0) -> float:
        """Gradients an image takes, about; a search's pass costs a third of one.

        Args:
            left: the share of the images that plain attacks leave, and of these the others.
        """
        plain = 20 + 10 + self.steps + 20 + 12
        others = 4 * self.steps + self.more_steps * (self.restarts + 1) + 2 * self.queries / 3
        targeted = 9 * self.steps  # of what all of these leave
        return plain + left * others + left**2 * targeted

    @staticmethod
    def within(minutes: float | None, seconds: float, images: int) -> "tuple[Effort, int]":
        """The effort that fits, and how many images: fewer where not even the smallest effort fits.

        Args:
            minutes: the budget, by which all must be done although nothing is fooled; None is `MINUTES`, no more
                effort than usual, and half is taken to be fooled, for then no check is left out where it is not.
            seconds: what a gradient of one image takes.
            images: how many there are.

        Example:
            >>> Effort.within(None, 1e-4, 256)[1], Effort.within(1.0, 0.01, 256)[1] < 256
            (256, True)
        """
        allowed = 60 * (MINUTES if minutes is None else 0.8 * minutes) / max(seconds, 1e-9)
        left = 0.5 if minutes is None else 1.0
        for effort in (Effort(),) if minutes is None else (Effort.thorough(), Effort.more(), Effort()):
            if images * effort.passes(left) <= allowed:
                return effort, images
        quick = dataclasses.replace(Effort(), more_steps=60, restarts=1, queries=200, substitute_steps=250)
        return quick, max(min(FEWEST, images), min(images, int(allowed / quick.passes(left))))


def images_to_learn_from(minutes: float | None, seconds: float) -> int:
    """How many images a substitute may ask a model about: half of its share of the time is for the answers.

    Args:
        minutes: the budget; None is `MINUTES`.
        seconds: what a gradient of one image takes, three times what an answer does; it is asked two, one of a noisy
            copy.

    Example:
        >>> images_to_learn_from(None, 1e-4) > 5000, images_to_learn_from(1.0, 0.05)
        (True, 90)
    """
    allowed = SUBSTITUTES_SHARE * 60 * (MINUTES if minutes is None else minutes) / 2
    return max(1, round(allowed / max(2 * seconds / 3, 1e-9)))


def seconds_of_gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """What one image's gradient takes, in a batch, at its fastest of three."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        gradients(model, inputs, labels)
        if inputs.device.type != "cpu":
            torch.accelerator.synchronize(inputs.device)
        best = min(best, time.perf_counter() - started)
    return best / len(inputs)
