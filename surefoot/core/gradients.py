"""Input gradients that leave no trace on the model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from surefoot.core.failures import explain_types
from surefoot.core.geometry import per_sample
from surefoot.core.losses import check_logits

T = TypeVar("T")

_crafting: ContextVar[dict[object, Any] | None] = ContextVar("crafting", default=None)
"""What layers keep while their weights stand still; None outside of `crafting`."""

NO_GRADIENT = (
    "the model's logits carry no gradient to its inputs (a torch.no_grad or detach in its forward?); "
    "a gradient attack on it would do nothing, so it is refused."
)

CHANGES_INPUTS = (
    "the model changes the images that it is given (for example by x -= mean in its forward); make it work on a "
    "tensor of its own, as x = x - mean does."
)

SMALLEST_HALF = 2.0**-24
"""The smallest number above zero in float16."""


def plain_module(model: nn.Module) -> nn.Module:
    """The user's own module, out of Fabric's, DDP's and torch.compile's wrappers.

    Raises:
        TypeError: it is not a module, so that its mode and weights could not be kept.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model is an object of type {type(model).__name__}, not a torch.nn.Module; give a module, or one "
            "whose forward calls it."
        )
    while True:
        if "_orig_mod" in vars(model).get("_modules", ()):  # torch.compile; its own, not that of a module inside
            model = model._orig_mod  # type: ignore[assignment]
        elif type(model).__name__ == "_FabricModule" or isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            model = model.module  # type: ignore[assignment]
        else:
            return model


def is_training(module: nn.Module) -> bool:
    """A module's own training flag; frozen TorchScript has none, and answers as in evaluation mode."""
    return bool(getattr(module, "training", False))


def put_in_mode(flags: Iterable[tuple[nn.Module, bool]]) -> None:
    """Give each module its own training flag; one that has it is not touched, as frozen TorchScript must not be."""
    for part, training in flags:
        if is_training(part) != training:
            part.training = training


@contextmanager
def buffers_put_back(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Put these modules' own buffers back after, where they were changed, or exchanged for others of the same shape.

    One that took another shape, or was None, is a cache that the module made for these inputs, and may have noted so
    elsewhere. What was not changed is not copied back, which would spoil a graph that has saved the buffer.
    """
    kept = [(part._buffers, dict(part._buffers)) for part in parts if part._buffers]
    buffers = [buffer for _, old in kept for buffer in old.values() if buffer is not None]
    # nothing outside of inference_mode can write to its tensors, which count no versions
    copies = [(each, each._version, each.detach().clone()) for each in buffers if not each.is_inference()]
    try:
        yield
    finally:
        for now, old in kept:
            for name, buffer in old.items():
                if exchanged(buffer, now[name] if name in now else None):  # noqa: SIM401 TorchScript's have no get
                    now[name] = buffer  # one by one: TorchScript's have no update
        with torch.no_grad():
            for buffer, version, copy in copies:
                if buffer.shape == copy.shape and (buffer._version != version or written_unseen(buffer, copy)):
                    buffer.copy_(copy)


def written_unseen(buffer: Tensor, copy: Tensor) -> bool:
    """Has it other values, though no write was counted, as by fused kernels of quantisation? Elsewhere to ask waits."""
    return buffer.device.type == "cpu" and not torch.equal(buffer, copy)


def exchanged(old: Tensor | None, new: Tensor | None) -> bool:
    """Is it another tensor of the same shape?"""
    return old is not None and new is not None and new is not old and new.shape == old.shape


def may_change(module: nn.Module) -> bool:
    """May its forward change its buffers in evaluation mode? PyTorch's own norms, which most buffers are of, do not."""
    return not (isinstance(module, _NormBase) and type(module).__module__.startswith("torch.nn."))


@contextmanager
def crafting(model: nn.Module, inputs: Tensor | None = None) -> Iterator[nn.Module]:
    """Lend the plain module in evaluation mode with gradients on, and put everything back after.

    Inside, dropout is off and batch-norm uses its running statistics without changing them. On the way
    out, also through an exception, each module's own training flag is what it was, and so are its buffers where its
    forward changes them in evaluation mode too, as one that counts its calls. The mode is the model's own, so that only
    one thread at a time may craft on a model, or train it; give each thread a copy. Processes have their own.

    Args:
        model: any module, wrapped by Fabric, DDP or torch.compile or not.
        inputs: what it is given; where it fails on their type, that is said.

    Yields:
        The unwrapped module in evaluation mode.

    Raises:
        TypeError: not a module, or one that failed because its weights are of another type than `inputs`.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
        >>> with crafting(net) as frozen:
        ...     frozen.training
        False
        >>> net.training
        True
    """
    module = plain_module(model)
    before = [(part, is_training(part)) for part in module.modules()]
    kept = _crafting.get()
    try:  # from here on: Ctrl-C may come between any two lines
        put_in_mode((part, False) for part, _ in before)
        _crafting.set({})
        with (
            torch.inference_mode(False),
            buffers_put_back(part for part, _ in before if may_change(part)),
            torch.enable_grad(),
        ):
            yield module
    except RuntimeError as error:
        if inputs is not None:
            explain_types(module, inputs, error)
        raise
    finally:
        _crafting.set(kept)
        try:
            put_in_mode(before)
        except KeyboardInterrupt:
            put_in_mode(before)
            raise


@contextmanager
def without_gradients() -> Iterator[None]:
    """`torch.no_grad`, where autocast keeps none of the weights that it casts.

    An older PyTorch (2.6 among them) hands them out again inside the same autocast, without their gradients: a
    training step that crafts by such a forward would learn nothing.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), without_gradients():
        ...     torch.is_grad_enabled(), torch.is_autocast_cache_enabled()
        (False, False)
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def is_crafting() -> bool:
    """Is this thread inside `crafting`? There gradients are of inputs alone, and a layer may leave the others out.

    While `torch.compile` traces, the answer is no: it would break the graph, and attacks craft on what is not compiled.

    Example:
        >>> with crafting(nn.Linear(2, 2)):
        ...     is_crafting()
        True
    """
    return not torch.compiler.is_compiling() and _crafting.get() is not None


def kept_while_crafting(key: object, make: Callable[[], T], *, of: Sequence[Tensor | None]) -> T:
    """What `make` gives, made once in the innermost `crafting` while the tensors that it is made of stay; else anew.

    Args:
        key: whose it is; one thing a key is kept.
        make: makes it.
        of: what it is made of. A weight that is computed at each call, by a parametrisation, is another tensor each
            time. A write through `.data` into the same memory is not seen.

    Example:
        >>> weight = torch.ones(2)
        >>> with crafting(nn.Linear(1, 1)):
        ...     first = kept_while_crafting("key", lambda: [], of=[weight])
        ...     again = kept_while_crafting("key", lambda: [], of=[weight])
        ...     _ = weight.add_(1)
        ...     first is again, first is kept_while_crafting("key", lambda: [], of=[weight])
        (True, False)
    """
    kept = _crafting.get()
    if kept is None or torch.compiler.is_compiling() or in_functorch(*of):
        return make()
    written = [
        None if tensor is None or tensor.is_inference() else (tensor._version, tensor.data_ptr()) for tensor in of
    ]
    tensors, before, made = kept.get(key, (None, None, None))
    if tensors is None or before != written or any(one is not other for one, other in zip(tensors, of, strict=True)):
        made = make()
        kept[key] = of, written, made  # the tensors too: another could get the address of one that is gone
    return made  # type: ignore[no-any-return]


def in_functorch(*tensors: Tensor | None) -> bool:
    """Is one of them a tensor of torch.vmap or of another of torch.func's transformations?"""
    return any(tensor is not None and torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


def input_gradient(
    model: Callable[[Tensor], Tensor], inputs: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The gradient with respect to the inputs alone of the summed per-sample losses.

    A sum, not a mean: a sample's gradient does not depend on the batch that it came in. No weight
    gradient is computed and no `.grad` is touched.

    Args:
        model: maps inputs to logits; take it from `crafting`.
        inputs: `[batch, ...]`.
        loss: maps logits `[batch, classes]` to losses `[batch]`.

    Returns:
        The gradient, shaped and typed as `inputs`, and the detached logits it came with.

    In float16, of the model or of autocast, the gradient of a small loss rounds to zero on its way back. There each
    sample's way back starts from a gradient of the logits that is divided by its largest entry, and the result is
    multiplied by it. An entry that float16 inputs have no room for keeps its sign, as their smallest number.

    Raises:
        ValueError: the logits carry no gradient at all, or the loss is not one value a sample.
        TypeError: the model answers with something other than a tensor.

    Example:
        >>> gradient, logits = input_gradient(lambda x: 3 * x, torch.ones(1, 2), lambda z: z.sum(1))
        >>> gradient
        tensor([[3., 3.]])
    """
    inputs = (inputs.clone() if inputs.is_inference() else inputs.detach()).requires_grad_()
    logits = check_logits(model(inputs))
    if not logits.requires_grad:
        raise ValueError(NO_GRADIENT)
    if not in_float16(inputs, logits):
        (gradient,) = torch.autograd.grad(summed(loss(logits), logits), inputs, allow_unused=True)
    else:
        wide = logits.detach().float().requires_grad_()
        (slope,) = torch.autograd.grad(summed(loss(wide), wide), wide)
        largest = slope.abs().flatten(1).amax(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
        start = (slope / per_sample(largest, slope)).to(logits.dtype)
        (gradient,) = torch.autograd.grad(logits, inputs, start, allow_unused=True)
        if gradient is not None:
            exact = gradient.float() * per_sample(largest, gradient)
            gradient = exact.to(inputs.dtype)
            lost = (gradient == 0) & (exact != 0)
            gradient = torch.where(lost, SMALLEST_HALF * exact.sign().to(inputs.dtype), gradient)
    if gradient is None:  # only the weights are in the graph: the inputs were detached on the way
        raise ValueError(NO_GRADIENT)
    return gradient, logits.detach()


def without_nan(gradient: Tensor) -> Tensor:
    """The gradient with 0 where it is NaN, as that of a square root at 0 is; one such pixel would spoil a norm.

    >>> without_nan(torch.tensor([torch.nan, 2.0]))
    tensor([0., 2.])
    """
    return gradient.masked_fill(gradient.isnan(), 0)


def in_float16(inputs: Tensor, logits: Tensor) -> bool:
    """Does the way from the inputs to the logits go through float16, in which less than 6e-8 is zero?"""
    return torch.float16 in (inputs.dtype, logits.dtype, autocast_dtype(inputs.device.type))


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast casts to on such a device now; None where it is off.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     autocast_dtype("cpu")
    torch.bfloat16
    """
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def summed(losses: Tensor, logits: Tensor) -> Tensor:
    """The sum of one loss a sample.

    Raises:
        ValueError: it is a mean already, or of another shape.
    """
    if losses.shape != logits.shape[:1]:
        raise ValueError(
            f"the loss is of shape {list(losses.shape)} for {len(logits)} samples; an attack needs one value a sample, "
            "[batch], as torch.nn.CrossEntropyLoss(reduction='none') gives."
        )
    return losses.sum()
