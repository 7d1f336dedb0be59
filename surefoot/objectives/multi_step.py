"""The multi-step baselines: PGD adversarial training and TRADES (section 3.2)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.attacks import PGD
from surefoot.attacks.gradient_sign import ascend
from surefoot.core.geometry import project
from surefoot.core.gradients import crafting
from surefoot.core.limits import check_not_negative
from surefoot.core.losses import check_logits, kl_divergence
from surefoot.core.types import LossTerms
from surefoot.objectives.standard import (
    check_label_smoothing,
    check_mini_batch,
    logits_of,
    mean_cross_entropy,
    only_classification,
)


@dataclass(frozen=True)
class PgdAT:
    """PGD adversarial training: cross-entropy on PGD samples only, min max J(f(x + delta), y) (Eq. 13).

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        steps: gradients a sample, at least 1.
        step_size: length of a step in pixel units, in (0, 1].
        label_smoothing: share of the target spread over all classes, in [0, 1).

    The start is uniform in the ball. Shapes, ranges and errors are those of `NormalTraining`. Costs
    3 + 2 steps forward units.

    Example:
        >>> terms = PgdAT(eps=8/255, steps=7, step_size=2/255)(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2]))
        >>> terms.loss.backward()

    Source:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018.
    """

    eps: float
    steps: int
    step_size: float
    label_smoothing: float = 0.0
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        PGD(self.eps, self.steps, self.step_size)
        check_label_smoothing(self.label_smoothing)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        adv_inputs = PGD(self.eps, self.steps, self.step_size)(model, inputs, labels)
        return only_classification(model, adv_inputs, labels, self.label_smoothing)


@dataclass(frozen=True)
class Trades:
    """TRADES: cross-entropy on clean samples plus beta times the KL divergence to their perturbed ones.

    (1/m) sum J(f(x), y) + beta (1/m) sum KL(f(x) || f(x*)), where x* drives the same divergence up, from
    x + 0.001 N(0, I).

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        steps: gradients a sample, at least 1.
        step_size: length of a step in pixel units, in (0, 1].
        beta: the divergence's weight, at least 0 (1/lambda in the source).
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Clean and perturbed samples go through the model in one forward, so batch-norm sees them together.
    Shapes, ranges and errors are those of `NormalTraining`. Costs 7 + 2 steps forward units.

    Example:
        >>> objective = Trades(eps=8/255, steps=10, step_size=2/255, beta=6.0)
        >>> objective(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2])).loss.backward()

    Source:
        Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", 2019. Unlike
        there, the start is clipped to [0, 1] too and the two forwards are one.
    """

    eps: float
    steps: int
    step_size: float
    beta: float
    label_smoothing: float = 0.0
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        PGD(self.eps, self.steps, self.step_size)
        check_not_negative("beta", self.beta)
        check_label_smoothing(self.label_smoothing)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        with crafting(model, inputs) as frozen:
            # with gradients, so that autocast casts the weights once for all of the step's forwards
            reference = check_logits(frozen(inputs)).detach()
            adv_inputs = ascend(
                frozen,
                inputs,
                reference,
                project(inputs + 0.001 * torch.randn_like(inputs), inputs, self.eps),
                eps=self.eps,
                steps=self.steps,
                step_size=self.step_size,
                loss=kl_divergence,
            )
        clean_logits, adv_logits = logits_of(model, torch.cat([inputs, adv_inputs])).chunk(2)
        classification = mean_cross_entropy(clean_logits, labels, self.label_smoothing)
        divergence = kl_divergence(adv_logits, clean_logits).mean()
        return LossTerms(classification + self.beta * divergence, classification.detach(), divergence.detach())
