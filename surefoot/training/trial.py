"""Tries a user's model on one batch before training, so that an unsuitable one is refused before it costs an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from surefoot.core.failures import in_one_line, type_name
from surefoot.core.geometry import ONE_NUMBER
from surefoot.core.gradients import buffers_put_back
from surefoot.core.seeding import seeded
from surefoot.data import Split
from surefoot.evaluation.recognise import is_distribution, recognise

TRIED = 4  # images: batch-norm needs two


def check_made(model: nn.Module, name: str) -> None:
    """Refuse a model whose weights are not made before its first batch.

    Raises:
        ValueError: naming the model.
    """
    if any(is_lazy(each) for each in (*model.parameters(), *model.buffers())):
        raise ValueError(
            f"{name} has layers that take their size from their first input (nn.LazyLinear and its like); give them "
            "their sizes, or call the model on one batch where it is made."
        )


def try_training(model: nn.Module, name: str, train: Split, num_classes: int, device: torch.device) -> None:
    """Run a few training images through the model, in both modes, and a gradient back; it is left as it was.

    Args:
        model: on the CPU.
        name: what makes it, as the user wrote it.
        train: the images that it is about to be trained on.
        num_classes: so many logits are needed.
        device: where it will be trained.

    Raises:
        ValueError: naming the model, what it was given and what is expected.
    """
    check_made(model, name)
    weights = [each for each in model.parameters() if each.requires_grad]
    if not weights:
        what = "only frozen weights (requires_grad is False)" if list(model.parameters()) else "no weights"
        raise ValueError(f"{name} has {what}, so that there is nothing to train; make it return a model that learns.")
    inputs, labels = train.images[:TRIED].to(device).float() / 255, train.labels[:TRIED].to(device)
    model.to(device)
    for training in (True, False):
        given = f"float32 {list(inputs.shape)} images in [0, 1] in {'training' if training else 'evaluation'} mode"
        wanted = f"it must return floating logits [{len(inputs)}, {num_classes}]"
        with seeded(0), buffers_put_back(model.modules()), in_mode(model, training):
            try:
                output = model(inputs.clone().requires_grad_())
            except Exception as error:
                of = f" with its {' and '.join(kinds)} weights" if (kinds := other_kinds(model)) else ""
                raise ValueError(f"{name}{of} fails on {given} ({in_one_line(error)}); {wanted}.") from error
            wrong = what_is_wrong(output, len(inputs), num_classes)
            if wrong is not None:
                raise ValueError(f"{name} returns {wrong} for {given}; {wanted}.")
            if training:
                check_gradient(output, labels, weights, name)
        if is_distribution(output.detach().float()):
            raise ValueError(
                f"{name} returns probabilities for {given}; make it return logits: the objectives take their softmax."
            )
    try:  # what could not be measured afterwards is not trained
        recognise(model, inputs, labels, draws=2, check_range=False)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    model.to("cpu")


def other_kinds(model: nn.Module) -> list[str]:
    """The types of its weights that are not the images' own.

    >>> other_kinds(nn.Linear(2, 2).double())
    ['float64']
    """
    kinds = {each.dtype for each in model.parameters() if each.is_floating_point()} - {torch.float32}
    return sorted(map(type_name, kinds))


def what_is_wrong(output: Any, images: int, num_classes: int) -> str | None:
    """What a model returned, where that is not one row of finite logits an image."""
    if not isinstance(output, Tensor):
        holds = isinstance(output, dict | tuple | list) or hasattr(output, "logits")
        how = " (surefoot.models.LogitsOnly(model, entry) takes the logits out)" if holds else ""
        return f"a {type(output).__name__}{how}"
    if num_classes == 2 and output.is_floating_point() and output.numel() == images:
        return f"{type_name(output.dtype)} {list(output.shape)} ({ONE_NUMBER})"
    if not output.is_floating_point() or output.dim() != 2 or len(output) != images or output.shape[1] < num_classes:
        return f"{type_name(output.dtype)} {list(output.shape)}"
    return None if output.isfinite().all() else "NaN or infinity"


def check_gradient(output: Tensor, labels: Tensor, weights: list[nn.Parameter], name: str) -> None:
    """Refuse logits that no weight can be learned from.

    Raises:
        ValueError: naming the model.
    """
    try:
        gradients = torch.autograd.grad(F.cross_entropy(output, labels), weights, allow_unused=True)
    except Exception as error:
        raise ValueError(
            f"{name} gives no gradient in training mode ({in_one_line(error)}); make it compute its logits from its "
            "weights by differentiable operations."
        ) from error
    if all(gradient is None for gradient in gradients):
        raise ValueError(f"{name} has logits that depend on none of its weights; make it compute them from these.")


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The whole model in a mode, and each part back in its own after."""
    before = [(part, part.training) for part in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode
