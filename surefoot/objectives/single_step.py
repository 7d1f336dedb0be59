"""The single-step baselines: FGSM, R-FGSM and ensemble adversarial training (section 3.2), and N-FGSM's."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.attacks import FGSM, RFGSM
from surefoot.core.geometry import check_radius, project
from surefoot.core.limits import check_number
from surefoot.core.types import Attack, LossTerms
from surefoot.objectives.standard import check_label_smoothing, check_mini_batch, only_classification


def check_share(value: float) -> None:
    """Refuse a share of the mini-batch outside (0, 1]."""
    check_number("share", value)
    if not 0 < value <= 1:
        raise ValueError(f"share is {value}; it is the part of the mini-batch that is replaced, in (0, 1].")


def replace_share(attack: Attack, source: nn.Module, inputs: Tensor, labels: Tensor, share: float) -> Tensor:
    """The batch with its first `share` (rounded up) replaced by adversarial samples crafted on `source`."""
    count = math.ceil(share * len(inputs) - 1e-9)  # 0.07 of 100 is 7, whatever its float product
    adv_inputs = attack(source, inputs[:count], labels[:count])
    return adv_inputs if count == len(inputs) else torch.cat([adv_inputs, inputs[count:]])


@dataclass(frozen=True)
class FgsmAT:
    """FGSM adversarial training: cross-entropy on a batch part of which is replaced by its FGSM samples.

    (1/m) (sum_{i <= n} J(f(x_fgsm^i), y^i) + sum_{i > n} J(f(x^i), y^i)), n = share m, with x_fgsm of Eq. 1. Fast, and
    prone to gradient masking: the model learns to make FGSM fail instead of becoming robust.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        share: part of the mini-batch that is replaced, in (0, 1]; its first samples, rounded up.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Shapes, ranges and errors are those of `NormalTraining`. Costs 3 + 2 share forward units.

    Example:
        >>> terms = FgsmAT(eps=8/255)(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2]))
        >>> terms.loss.backward()

    Source:
        Kurakin et al., "Adversarial Machine Learning at Scale", 2017; section 3.2 of the paper.
    """

    eps: float
    share: float = 0.5
    label_smoothing: float = 0.0
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        FGSM(self.eps)
        check_share(self.share)
        check_label_smoothing(self.label_smoothing)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        mixed = replace_share(FGSM(self.eps), model, inputs, labels, self.share)
        return only_classification(model, mixed, labels, self.label_smoothing)


@dataclass(frozen=True)
class RFgsmAT:
    """R-FGSM adversarial training: as `FgsmAT`, from a random signed step.

    (1/m) (sum_{i <= n} J(f(x_rfgsm^i), y^i) + sum_{i > n} J(f(x^i), y^i)), n = share m, with x_rfgsm of Eq. 2-3.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        random_step: alpha of Eq. 2, in [0, eps].
        share: part of the mini-batch that is replaced, in (0, 1]; 1 is the paper's Ablation-R2-2.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Shapes, ranges and errors are those of `NormalTraining`. Costs 3 + 2 share forward units.

    Example:
        >>> terms = RFgsmAT(eps=8/255, random_step=2/255)(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2]))
        >>> terms.loss.backward()

    Source:
        Tramèr et al., "Ensemble Adversarial Training", 2018; section 5.3.2 of the paper.
    """

    eps: float
    random_step: float
    share: float = 1.0
    label_smoothing: float = 0.0
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        RFGSM(self.eps, self.random_step)
        check_share(self.share)
        check_label_smoothing(self.label_smoothing)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        mixed = replace_share(RFGSM(self.eps, self.random_step), model, inputs, labels, self.share)
        return only_classification(model, mixed, labels, self.label_smoothing)


@dataclass(frozen=True)
class NFgsmAT:
    """N-FGSM adversarial training: cross-entropy on FGSM samples of noisy inputs, which may lie beyond the ball.

    (1/m) sum_i J(f(x_nfgsm^i), y^i), x_nfgsm = x' + eps sign(grad_x' J(f(x'), y)), x' = x + U(-noise, noise); both
    are clipped to [0, 1] and not to the ball around x. Strong noise delays the masking of FGSM training; that nothing
    is cut off keeps the step whole. Beyond the paper.

    Args:
        eps: l-infinity radius to withstand, and the length of the step, in pixel units, in [0, 1].
        noise: of each pixel, in pixel units, in [0, 1]; its authors take 2 eps at 8/255, which at large radii drowns
            the image.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Shapes, ranges and errors are those of `NormalTraining`. Costs 5 forward units.

    Example:
        >>> terms = NFgsmAT(eps=8/255, noise=16/255)(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2]))
        >>> terms.loss.backward()

    Source:
        de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", 2022.
    """

    eps: float
    noise: float
    label_smoothing: float = 0.0
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        FGSM(self.eps)
        check_radius("noise", self.noise)
        check_label_smoothing(self.label_smoothing)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        start = project(inputs + torch.empty_like(inputs).uniform_(-self.noise, self.noise), inputs, self.noise)
        adv_inputs = FGSM(self.eps)(model, start, labels)
        return only_classification(model, adv_inputs, labels, self.label_smoothing)


@dataclass(frozen=True)
class EnsembleAT:
    """Ensemble adversarial training: `FgsmAT` whose samples come from the model or from a fixed source.

    (1/m) (sum_{i <= n} J(f(x_fgsm^i), y^i) + sum_{i > n} J(f(x^i), y^i)), n = share m, with x_fgsm of Eq. 1 on a
    network that each step draws: the model itself or a source, all equally likely, from torch's global generator.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        sources: normally trained models, on the inputs' device. In a recipe these are the names of the
            recipes that train them, which `surefoot train` resolves; called with names, it raises.
        share: part of the mini-batch that is replaced, in (0, 1]; its first samples, rounded up.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Shapes, ranges and errors are those of `NormalTraining`. Costs 3 + 2 share forward units where the
    source is as large as the model.

    Example:
        >>> objective = EnsembleAT(eps=8/255, sources=(nn.Linear(4, 3),))
        >>> objective(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2])).loss.backward()

    Source:
        Tramèr et al., "Ensemble Adversarial Training", 2018; section 3.2 and Table 2 of the paper.
    """

    eps: float
    sources: tuple[nn.Module | str, ...]
    share: float = 0.5
    label_smoothing: float = 0.0
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        FGSM(self.eps)
        check_share(self.share)
        check_label_smoothing(self.label_smoothing)
        if isinstance(self.sources, nn.Module | str):
            raise ValueError("sources is a single one; give a tuple of them, as (model,).")
        if len(self.sources) == 0:
            raise ValueError("sources is empty; give at least one fixed model, or use FgsmAT.")
        for source in self.sources:
            if not isinstance(source, nn.Module | str):
                raise ValueError(f"sources has {source!r}; give models, or names of the recipes that train them.")

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        return self.drawn()(model, inputs, labels)

    def drawn(self) -> "CraftedOn":
        """The next step's own objective: FGSM samples of the one that is drawn."""
        number = int(torch.randint(len(self.sources) + 1, (), device="cpu"))
        source = None if number == 0 else self.sources[number - 1]
        if isinstance(source, str):
            raise ValueError(f"the source {source!r} is a recipe's name; load its model and give that instead.")
        return CraftedOn(self.eps, source, self.share, self.label_smoothing)


@dataclass(frozen=True)
class CraftedOn:
    """A step of `EnsembleAT`: the FGSM samples are those of `source`, or of the model itself where it is None."""

    eps: float
    source: nn.Module | None
    share: float
    label_smoothing: float
    capturable: ClassVar[bool] = True

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        source = model if self.source is None else self.source
        mixed = replace_share(FGSM(self.eps), source, inputs, labels, self.share)
        return only_classification(model, mixed, labels, self.label_smoothing)
