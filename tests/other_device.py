"""A device that is not there: some tensors count as lying on it, and what a GPU would refuse is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

Place = Literal["device", "host"]
NAMES = "arange as_tensor empty eye from_numpy full linspace logspace ones rand randint randn randperm tensor zeros"
FACTORIES = {getattr(torch, name) for name in NAMES.split()}
TO_HOST = ("cpu", "tolist")
ANY_PLACE = ("copy_", "to", "type_as")  # they may move what they are given
NOT_OF_A_DEVICE = ("numpy", "__array__")
NOT_OF_APPLE = ("cummax", "nanmedian")  # of what surefoot uses, what PyTorch 2.6 has not for its GPUs


class WrongDevice(AssertionError):
    """A GPU would have refused this."""


class OtherDevice(TorchFunctionMode):
    """Follows which tensors would lie on a GPU, while everything is computed here.

    A tensor lies there if it was put there (`put`), was made with a `device` that was read from one that does, or came
    out of one; on the host, if it was made without a `device`. Of a tensor that no torch function gave (from a custom
    autograd function, say) nothing is known. A call that mixes both, other than scalars and indices, is refused.

    Args:
        apple: it is one of Apple's GPUs: what these have not, or get wrong, is refused too.
    """

    def __init__(self, *, apple: bool = False) -> None:
        super().__init__()
        self.apple = apple

    def put(self, *things: Tensor | nn.Module) -> None:
        """Count tensors, or a model's, as lying on the device."""
        for thing in things:
            tensors = [*thing.parameters(), *thing.buffers()] if isinstance(thing, nn.Module) else [thing]
            for tensor in tensors:
                mark(tensor, "device")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        given = list(tensors_in((args, named)))
        places = {place_of(tensor) for tensor in given}
        if name in NOT_OF_A_DEVICE and "device" in places:
            raise WrongDevice(f"{name} of a tensor on the device; .cpu() comes first")
        if {"device", "host"} <= places and name not in ANY_PLACE:
            indexed = name in ("__getitem__", "__setitem__") and place_of(args[0]) == "device"
            indices = {id(index) for index in tensors_in(args[1])} if indexed else set()
            for tensor in given:
                if place_of(tensor) == "host" and tensor.dim() and id(tensor) not in indices:
                    raise WrongDevice(f"{resolve_name(func) or name}: {list(tensor.shape)} on the host, the rest not")
        if self.apple and name in NOT_OF_APPLE and "device" in places:
            raise WrongDevice(f"{name}, which Apple's GPUs have not")
        if self.apple and named.get("memory_format") is torch.channels_last:
            raise WrongDevice("channels last, in which Apple's GPUs go back through a batch-norm wrongly")
        out = func(*args, **named)
        place: Place | None = None
        moved = named.get("device", args[1] if name == "to" and len(args) > 1 else None)
        if name in TO_HOST or moved == "cpu":
            place = "host"
        elif isinstance(moved, Tensor):
            place = place_of(moved)
        elif isinstance(moved, torch.device):
            place = "device"
        elif func in FACTORIES and not given:
            place = "host"
        elif name == "__getitem__" or name in ANY_PLACE:
            place = place_of(args[0])
        elif "device" in places:
            place = "device"
        elif places == {"host"}:
            place = "host"
        if name in ("cpu", "to") and place is not None and place_of(args[0]) not in (None, place):
            out = out.view_as(out)  # here nothing was moved, and the same tensor came back
        for tensor in tensors_in(out):
            if place is not None:
                mark(tensor, place)
            if self.apple and place == "device" and tensor.dtype == torch.float64:
                raise WrongDevice(f"{name}: float64, which Apple's GPUs have not")
        return out


def mark(tensor: Tensor, place: Place) -> None:
    """Say where a tensor lies."""
    tensor.lies_on = place  # type: ignore[attr-defined]


def place_of(tensor: Tensor) -> Place | None:
    """Where a tensor lies, if that is known."""
    return getattr(tensor, "lies_on", None)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among nested arguments."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
