"""Single-step adversarial training with the paper's regularizers: SAT-R1, SAT-R2 and SAT-R3 (Eq. 14-16)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from surefoot.attacks import FGSM, IFGSM, RFGSM
from surefoot.attacks.gradient_sign import ascend, random_signs
from surefoot.core.geometry import check_radius, project
from surefoot.core.gradients import crafting, input_gradient
from surefoot.core.limits import check_count, check_not_negative, check_number
from surefoot.core.losses import cross_entropy, squared_distance
from surefoot.core.types import LossTerms
from surefoot.objectives.standard import (
    check_label_smoothing,
    check_mini_batch,
    logits_of,
    mean_cross_entropy,
)

Classified = Literal["one", "both"]


def check_classified(value: str) -> None:
    """Refuse what is neither of the two readings."""
    if value not in ("one", "both"):
        raise ValueError(f"classified is {value!r}; it is 'one' or 'both'.")


@dataclass(frozen=True)
class SatR1:
    """SAT-R1: FGSM training that keeps the logits of FGSM and I-FGSM samples together (Eq. 14).

    (1/m) sum_i J(f(x_fgsm^i), y^i) + lam (1/k) sum_j ||g(x_fgsm^j) - g(x_ifgsm^j)||_2^2, g pre-softmax.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        lam: the regularizer's weight, at least 0.
        steps: I-FGSM steps of the k pairs, at least 1.
        k: pairs a mini-batch, at least 1; a batch with fewer samples uses all of them.
        pair: which samples are paired: the `first` k of the mini-batch, or the `last` k, as the authors'
            released code does. In a shuffled batch the two are equal in distribution.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        classified: the cross-entropy is over `one` kind of sample, FGSM's, or over `both`, the mean of all m + k,
            as in the paper's ablations R1-1 and R1-3 (with lam 0).

    All samples go through the model in one forward. I-FGSM's first gradient is FGSM's own and is not
    computed again, so a step costs 5 + k (2 steps + 1) / m forward units. Shapes, ranges and errors are
    those of `NormalTraining`.

    Example:
        >>> objective = SatR1(eps=8/255, lam=0.2, steps=7)
        >>> objective(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2])).loss.backward()

    Source:
        Vivek and Babu, "Regularizers for Single-step Adversarial Training", 2020, section 4.4.1.
    """

    eps: float
    lam: float
    steps: int
    k: int = 1
    pair: Literal["first", "last"] = "first"
    label_smoothing: float = 0.0
    classified: Classified = "one"
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        IFGSM(self.eps, self.steps)
        check_not_negative("lam", self.lam)
        check_count("k", self.k)
        if self.pair not in ("first", "last"):
            raise ValueError(f"pair is {self.pair!r}; it is 'first' or 'last'.")
        check_label_smoothing(self.label_smoothing)
        check_classified(self.classified)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        rows = slice(0, self.k) if self.pair == "first" else slice(max(len(inputs) - self.k, 0), None)
        step_size = self.eps / self.steps
        with crafting(model, inputs) as frozen:
            gradient, _ = input_gradient(frozen, inputs, partial(cross_entropy, labels=labels))
            signs = gradient.sign()
            fgsm = project(inputs + self.eps * signs, inputs, self.eps)
            ifgsm = ascend(
                frozen,
                inputs[rows],
                labels[rows],
                project(inputs[rows] + step_size * signs[rows], inputs[rows], self.eps),
                eps=self.eps,
                steps=self.steps - 1,
                step_size=step_size,
            )
        logits = logits_of(model, torch.cat([fgsm, ifgsm]))
        fgsm_logits, ifgsm_logits = logits.split([len(fgsm), len(ifgsm)])  # type: ignore[no-untyped-call]
        if self.classified == "one":
            classification = mean_cross_entropy(fgsm_logits, labels, self.label_smoothing)
        else:
            classification = mean_cross_entropy(logits, torch.cat([labels, labels[rows]]), self.label_smoothing)
        distance = squared_distance(fgsm_logits[rows], ifgsm_logits).mean()
        return LossTerms(classification + self.lam * distance, classification.detach(), distance.detach())


@dataclass(frozen=True)
class SatR2:
    """SAT-R2: FGSM training that keeps the logits of FGSM and R-FGSM samples together (Eq. 15).

    (1/m) sum_i J(f(x_fgsm^i), y^i) + lam (1/m) sum_j ||g(x_fgsm^j) - g(x_rfgsm^j)||_2^2, g pre-softmax.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        random_step: alpha of Eq. 2, in [0, eps].
        lam: the regularizer's weight, at least 0.
        rfgsm_step: R-FGSM's second step is the `remaining` eps - alpha of Eq. 3, or the `full` eps, as in the
            authors' released code, where samples may lie up to eps + alpha away.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        classified: the cross-entropy is over `one` kind of sample, FGSM's, or over `both`, as in the paper's
            ablation R2-1 (with lam 0).

    Both gradients are one batch and both samples one forward. Costs 10 forward units. Shapes, ranges and
    errors are those of `NormalTraining`.

    Example:
        >>> objective = SatR2(eps=8/255, random_step=2/255, lam=25.0)
        >>> objective(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2])).loss.backward()

    Source:
        Vivek and Babu, "Regularizers for Single-step Adversarial Training", 2020, section 4.4.2.
    """

    eps: float
    random_step: float
    lam: float
    rfgsm_step: Literal["remaining", "full"] = "remaining"
    label_smoothing: float = 0.0
    classified: Classified = "one"
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        RFGSM(self.eps, self.random_step)
        check_not_negative("lam", self.lam)
        if self.rfgsm_step not in ("remaining", "full"):
            raise ValueError(f"rfgsm_step is {self.rfgsm_step!r}; it is 'remaining' or 'full'.")
        check_label_smoothing(self.label_smoothing)
        check_classified(self.classified)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        second_step = self.eps - self.random_step if self.rfgsm_step == "remaining" else self.eps
        start = project(inputs + self.random_step * random_signs(inputs), inputs, self.eps)
        with crafting(model, inputs) as frozen:
            both, twice = torch.cat([inputs, start]), torch.cat([labels, labels])
            gradient, _ = input_gradient(frozen, both, partial(cross_entropy, labels=twice))
            clean_signs, start_signs = gradient.sign().chunk(2)
        fgsm = project(inputs + self.eps * clean_signs, inputs, self.eps)
        rfgsm = project(start + second_step * start_signs, inputs, self.random_step + second_step)
        logits = logits_of(model, torch.cat([fgsm, rfgsm]))
        fgsm_logits, rfgsm_logits = logits.chunk(2)
        if self.classified == "one":
            classification = mean_cross_entropy(fgsm_logits, labels, self.label_smoothing)
        else:
            classification = mean_cross_entropy(logits, twice, self.label_smoothing)
        distance = squared_distance(fgsm_logits, rfgsm_logits).mean()
        return LossTerms(classification + self.lam * distance, classification.detach(), distance.detach())


@dataclass(frozen=True)
class SatR3:
    """SAT-R3: FGSM training that keeps the loss at a small radius below that at the large one (Eq. 16).

    loss_high + lam max(0, loss_low - tau loss_high), the mean losses on FGSM samples of radius eps_low and eps.

    Args:
        eps: the large l-infinity radius (eps_High) in pixel units, in [0, 1].
        eps_low: the small radius, in [0, eps).
        lam: the regularizer's weight, at least 0.
        tau: the largest ratio of the losses that costs nothing, in (0, 1).
        random_step: FGSM starts from a random signed step this long, in [0, eps]: 0, the paper's clean
            sample, or alpha as in the authors' released code (0.01 on MNIST, 2/255 on CIFAR-10), where
            samples may lie up to eps + alpha away.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        classified: the first term is the loss on `one` kind of sample, the large radius's, or the mean of
            `both`, as in the paper's ablation R3-2 (with lam 0).

    One gradient serves both radii and both samples go through one forward. Costs 8 forward units. Shapes,
    ranges and errors are those of `NormalTraining`.

    Example:
        >>> objective = SatR3(eps=8/255, eps_low=2/255, lam=1.0, tau=0.6)
        >>> objective(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2])).loss.backward()

    Source:
        Vivek and Babu, "Regularizers for Single-step Adversarial Training", 2020, section 4.4.3.
    """

    eps: float
    eps_low: float
    lam: float
    tau: float
    random_step: float = 0.0
    label_smoothing: float = 0.0
    classified: Classified = "one"
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        FGSM(self.eps)
        check_radius("eps_low", self.eps_low)
        if not self.eps_low < self.eps:
            raise ValueError(f"eps_low is {self.eps_low:.4g}; it must be below eps, {self.eps:.4g}.")
        check_not_negative("lam", self.lam)
        check_number("tau", self.tau)
        if not 0 < self.tau < 1:
            raise ValueError(f"tau is {self.tau}; it must be in (0, 1).")
        RFGSM(self.eps, self.random_step)
        check_label_smoothing(self.label_smoothing)
        check_classified(self.classified)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        start = inputs
        if self.random_step:
            start = project(inputs + self.random_step * random_signs(inputs), inputs, self.eps)
        with crafting(model, inputs) as frozen:
            gradient, _ = input_gradient(frozen, start, partial(cross_entropy, labels=labels))
            signs = gradient.sign()
        high = project(start + self.eps * signs, start, self.eps)
        low = project(start + self.eps_low * signs, start, self.eps_low)
        high_logits, low_logits = logits_of(model, torch.cat([high, low])).chunk(2)
        loss_high = mean_cross_entropy(high_logits, labels, self.label_smoothing)
        loss_low = mean_cross_entropy(low_logits, labels, self.label_smoothing)
        excess = (loss_low - self.tau * loss_high).clamp(min=0)
        classification = loss_high if self.classified == "one" else (loss_high + loss_low) / 2
        return LossTerms(classification + self.lam * excess, classification.detach(), excess.detach())
