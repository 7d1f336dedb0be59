"""Ordinary training, and the classification term that every objective shares."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from surefoot.core.failures import explain_types
from surefoot.core.geometry import check_batch
from surefoot.core.limits import check_number
from surefoot.core.losses import check_logits, explaining_logits, full_precision
from surefoot.core.types import LossTerms


def check_mini_batch(inputs: Tensor, labels: Tensor) -> None:
    """Refuse what `check_batch` refuses, and an empty batch, whose mean loss would be NaN."""
    check_batch(inputs, labels)
    if len(labels) == 0:
        raise ValueError("the batch is empty, and has no loss; give one sample at least.")


def check_label_smoothing(value: float) -> None:
    """Refuse a label smoothing outside [0, 1)."""
    check_number("label_smoothing", value, example="0.1")
    if not 0 <= value < 1:
        raise ValueError(f"label_smoothing is {value}; it must be in [0, 1).")


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The one forward in training mode that an objective takes.

    Raises:
        TypeError: the model answers with something other than a tensor, or takes no inputs of this type.
    """
    try:
        return check_logits(model(inputs))
    except RuntimeError as error:
        explain_types(model, inputs, error)
        raise


def mean_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """(1/m) sum J over the batch, the first term of every objective."""
    with explaining_logits(logits, labels):
        return F.cross_entropy(full_precision(logits), labels, label_smoothing=label_smoothing)


def only_classification(model: nn.Module, inputs: Tensor, labels: Tensor, label_smoothing: float) -> LossTerms:
    """The terms of an objective without a regularizer: one forward, and its cross-entropy."""
    loss = mean_cross_entropy(logits_of(model, inputs), labels, label_smoothing)
    return LossTerms(loss, loss.detach(), loss.new_zeros(()))


@dataclass(frozen=True)
class NormalTraining:
    """Cross-entropy on the clean samples, (1/m) sum J(f(x), y).

    Args:
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Called with `(model, inputs [batch, channels, height, width] in [0, 1], labels [batch] int64)` it returns
    `LossTerms`. One forward through the model in the mode that it is in. Costs 3 forward units.

    Raises:
        ValueError: inputs outside [0, 1], shapes that do not fit, an empty batch, or a bad field.
        TypeError: inputs that are not floating or of another type than the weights, labels that are not int64, or a
            field that is no number.

    Example:
        >>> import torch
        >>> terms = NormalTraining()(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 2]))
        >>> terms.loss.backward()

    Source:
        Label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7.
        As in `torch.nn.functional.cross_entropy`.
    """

    label_smoothing: float = 0.0
    capturable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_label_smoothing(self.label_smoothing)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        check_mini_batch(inputs, labels)
        return only_classification(model, inputs, labels, self.label_smoothing)
