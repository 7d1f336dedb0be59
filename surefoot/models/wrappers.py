"""Modules around a model that does not answer with one tensor of logits, so that an attack can use it.

They compose, from the inside out: `LogitsOnly`, `FromProbabilities`, `TwoLogits`, `Averaged`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.core.failures import type_name
from surefoot.core.gradients import is_training, plain_module
from surefoot.core.limits import check_count

NAMED = ("logits", "output", "out")
"""Names by which an entry of a dict is taken for its logits; the first that is there."""


def is_wide(value: object, batch: int) -> bool:
    """Is it a floating tensor `[batch, classes]` of two classes or more?

    >>> is_wide(torch.rand(4, 10), batch=4), is_wide(torch.rand(4, 1), batch=4)
    (True, False)
    """
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() == 2
        and len(value) == batch
        and value.shape[1] >= 2
    )


def is_single(value: object, batch: int) -> bool:
    """Is it a floating tensor of one number a sample, `[batch]`, `[batch, 1]` or, of a batch of one, `[]`?

    >>> is_single(torch.rand(4), batch=4), is_single(torch.rand(4, 1), batch=4), is_single(torch.rand(10), batch=1)
    (True, True, False)
    """
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() == batch


def shapes_of(output: object) -> str:
    """Name a model's output and the shapes of its parts.

    >>> shapes_of({"features": torch.rand(4, 8), "loss": 1.0})
    "a dict of 'features' [4, 8] and 'loss' (float)"
    >>> shapes_of(torch.tensor([1, 2]))
    'a tensor [2] of int64'
    """

    def part(value: object) -> str:
        return str(list(value.shape)) if isinstance(value, Tensor) else f"({type(value).__name__})"

    if isinstance(output, Tensor):
        return f"a tensor {part(output)} of {type_name(output.dtype)}"
    if isinstance(output, Mapping):
        parts = [f"{key!r} {part(value)}" for key, value in output.items()]
    elif isinstance(output, tuple | list):
        parts = [part(value) for value in output]
    else:
        return f"an object of type {type(output).__name__}"
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]])) or "nothing"
    name = type(output).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name} of {listed}"


def logits_entry(output: object, batch: int) -> Any:
    """Which part of a model's output is the logits: a key, a place, or the name of an attribute.

    - A tensor: None, the output itself.
    - A dict: 'logits', else 'output', else 'out', else the only entry that is `[batch, classes]`.
    - An object with an attribute `logits`: that name.
    - A tuple or list: the place of the first `[batch, classes]`.

    Where no entry of a dict, tuple or list is `[batch, classes]`, one number a sample is taken in the same way.

    Raises:
        ValueError: no part looks like logits, or several do and none has a name that says so.

    >>> logits_entry((torch.tensor(0.5), torch.rand(4, 10)), batch=4)
    1
    """
    if isinstance(output, Tensor):
        return None
    if isinstance(output, Mapping):
        named = [name for name in NAMED if name in output]
        if named:
            return named[0]
        parts = list(output.items())
    elif hasattr(output, "logits"):
        return "logits"
    else:
        parts = list(enumerate(output)) if isinstance(output, tuple | list) else []
    fitting = [entry for entry, value in parts if is_wide(value, batch)]
    fitting = fitting or [entry for entry, value in parts if is_single(value, batch)]
    if not fitting:
        raise ValueError(
            f"the model returns {shapes_of(output)} for {batch} images, and nothing in it is floating logits "
            f"[{batch}, classes]; make it return its logits."
        )
    if isinstance(output, Mapping) and len(fitting) > 1:
        raise ValueError(
            f"the model returns {shapes_of(output)}, and {' and '.join(map(repr, fitting))} may each be the logits; "
            f"say which it is with LogitsOnly(model, entry={fitting[0]!r})."
        )
    return fitting[0]


class LogitsOnly(nn.Module):
    """Take the logits out of a dict, a tuple, a list or an object with `.logits`.

    Args:
        model: any module.
        entry: the key, place or attribute of the logits; None finds it at each call (see `logits_entry`).

    Shapes: those of the model, whose output becomes the floating tensor `[batch, classes]`, or one number a
    sample, that is found in it. Weights, gradients and modes are the model's own.

    Raises:
        ValueError: at a call whose output has no such entry, none that looks like logits, or several.

    >>> class Net(nn.Linear):
    ...     def forward(self, inputs):
    ...         return {"features": inputs, "logits": super().forward(inputs)}
    >>> LogitsOnly(Net(4, 3))(torch.rand(2, 4)).shape
    torch.Size([2, 3])
    """

    model: nn.Module

    def __init__(self, model: nn.Module, entry: Any = None) -> None:
        super().__init__()
        self.model, self.entry, self.training = model, entry, is_training(model)

    def forward(self, inputs: Tensor) -> Tensor:
        output, batch = self.model(inputs), len(inputs)
        entry = logits_entry(output, batch) if self.entry is None else self.entry
        by_name = isinstance(entry, str) and not isinstance(output, Mapping)
        try:
            logits = output if entry is None else getattr(output, entry) if by_name else output[entry]
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"the model returns {shapes_of(output)}, which has no entry {entry!r}.") from error
        if not (is_wide(logits, batch) or is_single(logits, batch)):
            where = "" if entry is None else f"in {entry!r} "
            raise ValueError(
                f"the model returns {where}{shapes_of(logits)} for {batch} images; floating logits [{batch}, classes] "
                "are expected."
            )
        return logits  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return "" if self.entry is None else f"entry={self.entry!r}"


class FromProbabilities(nn.Module):
    """Compute log p, logits of the same softmax, from a model that answers with probabilities p.

    The gradient of a loss that takes probabilities for logits vanishes as they near 0 or 1. softmax(log p) = p,
    so that cross-entropy and margins of log p, and their gradients, are those of the logits before the model's
    softmax, but for rounding. With `per_class` each output is a probability by itself, of a sigmoid, and
    log p - log(1 - p) is computed.

    log 0 is cut off at the smallest normal number of the type (-87.3 in float32), with gradient 0. What a model
    rounds to exactly 0 or 1 has lost its gradient before it comes here: saturated probabilities still hide
    gradients, and only the logits themselves would show them.

    Args:
        model: answers with probabilities, `[batch, classes]`, or of any shape where `per_class`.
        per_class: each output is a probability of its own.

    Shapes: those of the model.

    >>> wrapped = FromProbabilities(nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)))
    >>> wrapped(torch.rand(2, 4)).logsumexp(dim=1).abs().max() < 1e-5
    tensor(True)
    """

    model: nn.Module

    def __init__(self, model: nn.Module, *, per_class: bool = False) -> None:
        super().__init__()
        self.model, self.per_class, self.training = model, per_class, is_training(model)

    def forward(self, inputs: Tensor) -> Tensor:
        probabilities: Tensor = self.model(inputs)
        least = torch.finfo(probabilities.dtype).tiny  # below it 1 / p overflows
        logits = probabilities.clamp(min=least).log()
        return logits - (1 - probabilities).clamp(min=least).log() if self.per_class else logits

    def extra_repr(self) -> str:
        return "per_class=True" if self.per_class else ""


class TwoLogits(nn.Module):
    """Compute [0, z] from a binary model that answers with one logit z a sample, of class 1.

    softmax([0, z]) is [1 - sigmoid(z), sigmoid(z)], and class 1 is predicted where z > 0.

    Args:
        model: answers with one number a sample, `[batch]`, `[batch, 1]` or, of a batch of one, `[]`.

    Shapes: the output is `[batch, 2]`.

    >>> TwoLogits(nn.Linear(4, 1))(torch.rand(2, 4)).shape
    torch.Size([2, 2])
    """

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.training = model, is_training(model)

    def forward(self, inputs: Tensor) -> Tensor:
        logit = self.model(inputs).reshape(len(inputs), 1)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


class Averaged(nn.Module):
    """Compute the mean of the logits over `draws` calls of a model that answers randomly.

    Its gradient is the mean of the draws' gradients, the estimate of the gradient of the expected logits
    (expectation over transformation). It draws anew at each call, from whatever generator the model draws from.

    The model is called `draws` times on the batch, not once on the batch repeated: a model may draw once a call
    for the whole batch. Time and, under autograd, memory are `draws` times the model's.

    Args:
        model: answers with logits.
        draws: calls to average over, at least 1.

    Shapes: those of the model.

    Raises:
        ValueError: draws that are not a whole number of at least 1.

    Source: Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018,
    section 4.2.

    >>> net = nn.Linear(4, 3)
    >>> torch.allclose(Averaged(net, draws=2)(torch.ones(1, 4)), net(torch.ones(1, 4)))
    True
    """

    model: nn.Module

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        check_count("draws", draws)
        self.model, self.draws, self.training = model, draws, is_training(model)

    def forward(self, inputs: Tensor) -> Tensor:
        total: Tensor = self.model(inputs)
        for _ in range(self.draws - 1):
            total = total + self.model(inputs)
        return total / self.draws

    def extra_repr(self) -> str:
        return f"draws={self.draws}"


def averages(model: nn.Module) -> bool:
    """Is there an `Averaged` in it, wherever?

    >>> averages(nn.Sequential(Averaged(nn.Linear(4, 3), draws=2))), averages(nn.Linear(4, 3))
    (True, False)
    """
    return any(isinstance(part, Averaged) for part in plain_module(model).modules())


def inner_model(model: nn.Module) -> nn.Module:
    """The user's own module, out of this file's wrappers and out of Fabric's, DDP's and torch.compile's.

    Args:
        model: wrapped, however often, or not.

    Raises:
        TypeError: not a module.

    >>> net = nn.Linear(4, 3)
    >>> inner_model(Averaged(LogitsOnly(net), draws=4)) is net
    True
    """
    model = plain_module(model)
    while isinstance(model, LogitsOnly | FromProbabilities | TwoLogits | Averaged):
        model = plain_module(model.model)
    return model
