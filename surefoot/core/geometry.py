"""The set that perturbed inputs live in: the l-infinity ball, cut with the pixel range [0, 1]."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from surefoot.core.limits import check_number

ONE_NUMBER = "surefoot.models.TwoLogits(model) makes two logits of one number a sample"

_checked = ContextVar("checked", default=False)


def check_radius(name: str, value: float, *, positive: bool = False) -> None:
    """Refuse a radius that is not a finite number >= 0 (> 0 where `positive`) or that exceeds 1.

    Raises:
        ValueError: with the name, the value and, for values above 1, the hint that pixels are in [0, 1].
        TypeError: no number, as the text "8/255".
    """
    check_number(name, value, example="8 / 255")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} is {value}; it must be a finite number {'above' if positive else 'of at least'} 0.")
    if value > 1:
        raise ValueError(f"{name} is {value}; pixels are in [0, 1], so write 8/255 instead of 8.")


@contextmanager
def checked() -> Iterator[None]:
    """Promise that the values of every batch inside were checked before: `check_batch` then looks at shapes alone.

    To look at a value is to wait for the device, which a training would do at every step.

    Example:
        >>> with checked():
        ...     check_batch(torch.tensor([[2.0]]), torch.tensor([0]))
    """
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse a label beyond the model's classes.

    >>> check_labels(torch.tensor([0, 3]), classes=3)
    Traceback (most recent call last):
    ValueError: a label is 3, but the model has the classes 0 to 2; give the data that it is made for, or more classes.
    """
    if len(labels) and labels.max() >= classes:
        highest = int(labels.max())
        what = ONE_NUMBER if classes == highest == 1 else "give the data that it is made for, or more classes"
        raise ValueError(f"a label is {highest}, but the model has the classes 0 to {classes - 1}; {what}.")


def check_tensor(name: str, value: object) -> None:
    """Refuse what is not a tensor, as a NumPy array.

    Raises:
        TypeError: with what makes one of it.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} are an object of type {type(value).__name__}; give a tensor, as torch.as_tensor({name}) does."
        )


def check_batch(inputs: Tensor, labels: Tensor) -> None:
    """Refuse what is not a batch of images in [0, 1] with a label each; inside `checked`, shapes and types only.

    Args:
        inputs: floating `[batch, channels, height, width]` (or any `[batch, ...]`) in [0, 1].
        labels: int64 `[batch]`.

    Raises:
        TypeError: what is not a tensor, inputs that are not floating, labels that are not int64.
        ValueError: shapes that do not fit, a negative label, or pixels outside [0, 1] (or NaN).
    """
    check_tensor("inputs", inputs)
    check_tensor("labels", labels)
    if not inputs.is_floating_point():
        raise TypeError(f"inputs are {inputs.dtype}; give floats in [0, 1], for example images.float() / 255.")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels are {labels.dtype}; give class indices as int64, for example labels.long().")
    if inputs.dim() < 2 or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"inputs have shape {list(inputs.shape)} and labels {list(labels.shape)}; "
            "give [batch, channels, height, width] and [batch]."
        )
    if inputs.numel() == 0 or _checked.get():
        return
    if labels.min() < 0:
        raise ValueError(f"a label is {int(labels.min())}; labels are class indices from 0.")
    low, high = torch.aminmax(inputs.detach())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"inputs range from {low.item():.4g} to {high.item():.4g}; give pixels in [0, 1] "
            "and put any normalisation inside the model."
        )


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`values`, `[batch]`, in a shape that goes with each sample of `like`, `[batch, ...]`.

    Example:
        >>> per_sample(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 1, 1, 1])
    """
    return values.view(-1, *[1] * (like.dim() - 1))


def project(perturbed: Tensor, inputs: Tensor, eps: float) -> Tensor:
    """The nearest point to `perturbed` inside the l-infinity ball of radius `eps` around `inputs` and [0, 1].

    Equation 8 of the paper, then the pixel range.

    Example:
        >>> project(torch.tensor([0.9, -0.5]), torch.tensor([0.5, 0.1]), 0.3)
        tensor([0.8000, 0.0000])
    """
    return torch.clamp(perturbed, (inputs - eps).clamp(min=0), (inputs + eps).clamp(max=1))


def linf_distance(perturbed: Tensor, inputs: Tensor) -> Tensor:
    """The largest absolute pixel change of each sample, `[batch]`."""
    return (perturbed - inputs).abs().flatten(1).amax(dim=1)


def l2_distance(perturbed: Tensor, inputs: Tensor) -> Tensor:
    """The Euclidean length of each sample's perturbation, `[batch]`."""
    return (perturbed - inputs).flatten(1).square().sum(dim=1).sqrt()
