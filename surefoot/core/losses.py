"""Losses, one value a sample, in float32 at least whatever the network's precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surefoot.core.failures import type_name
from surefoot.core.geometry import ONE_NUMBER, check_labels
from surefoot.core.limits import check_number


def check_logits(output: Any) -> Tensor:
    """What a model answers with, where it is a tensor.

    Raises:
        TypeError: it is something else, as a dict of a model that returns its features too, or no real numbers.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the model answers with an object of type {type(output).__name__}, not with a tensor of logits; "
            "surefoot.evaluation.recognise(model, inputs, labels) gives one around it that does."
        )
    if not output.is_floating_point():
        raise TypeError(f"the model answers with numbers of {type_name(output.dtype)}; give logits of a floating type.")
    return output


def check_logits_shape(logits: Tensor) -> None:
    """Refuse logits that are not `[batch, classes]`.

    >>> check_logits_shape(torch.zeros(8, 3, 4, 4))
    Traceback (most recent call last):
    ValueError: the model's logits have shape [8, 3, 4, 4]; give [batch, classes].
    """
    if logits.dim() != 2:
        hint = f"; {ONE_NUMBER}" if logits.dim() == 1 else ""
        raise ValueError(f"the model's logits have shape {list(logits.shape)}; give [batch, classes]{hint}.")


def answered(logits: Tensor) -> Tensor:
    """The class of each sample's largest logit, `[batch]`; -1 where one is NaN, which argmax takes for the largest.

    >>> answered(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]))
    tensor([ 1, -1])
    """
    return logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), -1)


def full_precision(logits: Tensor) -> Tensor:
    """`logits` in float32, or as they are where they are wider: half precision loses small losses."""
    logits = check_logits(logits)
    return logits if logits.dtype == torch.float64 else logits.float()


@contextmanager
def explaining_logits(logits: Tensor, labels: Tensor | None = None) -> Iterator[None]:
    """Where a loss fails on the CPU by logits of another shape, or a label without one, say so; else it costs nothing.

    Raises:
        ValueError: logits that are not `[batch, classes]`, or a label beyond the classes.
    """
    try:
        yield
    except (IndexError, RuntimeError):
        check_logits_shape(logits)
        if labels is not None:
            check_labels(labels, logits.shape[1])
        raise


def that_may_be_saved(labels: Tensor) -> Tensor:
    """`labels`, or a copy where they were made under inference_mode, which autograd refuses to save."""
    return labels.clone() if labels.is_inference() else labels


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy J(f(x), y) of each sample.

    Args:
        logits: `[batch, classes]`, any floating type.
        labels: `[batch]`, int64 in [0, classes).

    Returns:
        `[batch]`, float32 (float64 for float64 logits), in nats, >= 0.

    Raises:
        ValueError: logits of another shape, or a label beyond the classes, on the CPU.

    Example:
        >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.6931])
    """
    with explaining_logits(logits, labels):
        return F.cross_entropy(full_precision(logits), that_may_be_saved(labels), reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y of each sample: above 0 where it is misclassified.

    It grows with the logits' scale and never saturates, as cross-entropy does for a confident model.

    Args:
        logits: `[batch, classes]`, two classes at least.
        labels: `[batch]`, int64 in [0, classes).

    Returns:
        `[batch]`, float32 (float64 for float64 logits).

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    logits, index = full_precision(logits), that_may_be_saved(labels).unsqueeze(1)
    with explaining_logits(logits, labels):
        others = logits.scatter(1, index, float("-inf")).amax(dim=1)
        return others - logits.gather(1, index).squeeze(1)


@dataclass(frozen=True)
class MarginLoss:
    """The C&W margin of each sample, -max(z_y - max_{i != y} z_i + confidence, 0); PGD with it is PGD-CW.

    Driving it up lowers the true class's logit below the runner-up's until the gap is `confidence`;
    past that its gradient is zero.

    Args:
        confidence: the margin aimed at, in logits, >= 0 (kappa in the source; 50 in Madry et al.'s
            PGD-CW and in that of the paper's authors' code).

    Returns (when called with logits `[batch, classes]`, labels `[batch]`):
        `[batch]`, <= 0.

    Raises:
        ValueError: `confidence` is negative.
        TypeError: or no number.

    Example:
        >>> MarginLoss(confidence=0.0)(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        tensor([-2.])

    Source:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017, f_6.
    """

    confidence: float = 50.0

    def __post_init__(self) -> None:
        check_number("confidence", self.confidence, example="50.0")
        if not self.confidence >= 0:
            raise ValueError(f"confidence is {self.confidence}; it must be at least 0.")

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = full_precision(logits)
        check_logits_shape(logits)
        if logits.shape[1] < 2:
            raise ValueError("MarginLoss compares two classes, but the model has one logit a sample.")
        return -(self.confidence - margin(logits, labels)).clamp(min=0)


def squared_distance(logits: Tensor, others: Tensor) -> Tensor:
    """||g(x) - g(x')||_2^2 of each pair of rows, the distance of Eq. 14 and 15.

    Args:
        logits, others: `[batch, classes]`, pre-softmax outputs.

    Returns:
        `[batch]`, >= 0.

    Example:
        >>> squared_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([5.])
    """
    same = logits == others  # as a class that is masked by -inf is
    return (full_precision(logits) - full_precision(others)).masked_fill(same, 0).square().sum(dim=1)


def kl_divergence(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)) of each sample, the surrogate of TRADES.

    Args:
        logits: `[batch, classes]` of the perturbed inputs.
        reference_logits: `[batch, classes]` of the clean inputs.

    Returns:
        `[batch]`, in nats, >= 0.

    Example:
        >>> z = torch.tensor([[1.0, -1.0]])
        >>> kl_divergence(z, z)
        tensor([0.])

    Source:
        Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", 2019.
    """
    with explaining_logits(logits):
        log_p = F.log_softmax(full_precision(logits), dim=1)
        log_q = F.log_softmax(full_precision(reference_logits), dim=1)
    never = log_p.isneginf() & log_q.isneginf()  # a class that is masked by -inf
    log_p, log_q = log_p.masked_fill(never, 0), log_q.masked_fill(never, 0)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)
