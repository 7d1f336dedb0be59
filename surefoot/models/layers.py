"""What several networks share: the normalisation inside a model, the first layers, the initial weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surefoot.core.devices import is_intel
from surefoot.core.gradients import autocast_dtype, in_functorch, is_crafting, kept_while_crafting

SMALL_IMAGE = 64
"""Up to this many pixels a side a network keeps the full resolution in its first layers."""

WORTH_ONEDNN = 1 << 23
"""Multiply-adds from which `HiddenLinear` uses oneDNN: in smaller products its calls cost more than they save."""


class Normalize(nn.Module):
    """Compute (inputs - mean) / std channel by channel, as the first layer of a model.

    Keeping it inside the model leaves the pixels, and therefore eps, in [0, 1] everywhere else.

    Args:
        mean: one number a channel, or a single one for all channels.
        std: likewise, each above 0.

    Shapes: [batch, channels, height, width] in [0, 1] to the same shape. `mean` and `std` are buffers saved
    with the weights, so that a weights file is enough to rebuild the model's function.

    Raises:
        ValueError: an empty list, a number that is not finite, or a std that is not above 0.
        TypeError: no list.

    >>> layer = Normalize(mean=[0.5], std=[0.25])
    >>> layer(torch.ones(1, 3, 1, 1)).flatten().tolist()
    [2.0, 2.0, 2.0]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if not isinstance(values, Sequence | Tensor):
                raise TypeError(f"{name} is {values!r}; give a list with a number a channel, or with one for all.")
            if len(values) == 0 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must hold finite numbers, one a channel or a single one, got {list(values)}")
        if min(std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {list(std)}")
        self.register_buffer("mean", torch.tensor(list(mean)).float().view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).float().view(1, -1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class ImageConv2d(nn.Conv2d):
    """A first convolution over few channels, whose input gradient is fast on a CPU.

    The library's input gradient of a one-channel convolution takes as long on a CPU as that of a layer with
    sixteen times the arithmetic: it writes one channel where vectors hold sixteen. While an attack crafts, the
    same gradient is computed here in blocks of 4 x 4 pixels (2 x 2 from three channels on): one strided
    convolution, whose output channels are the pixels of a block.

    An image of one channel lies in any memory format. There a CPU gets its maps in channels_last, whatever the model
    is in, for that is how pooling and all that follows is fast. Everywhere else this is `nn.Conv2d`.

    Args: those of `nn.Conv2d`. The fast way takes any stride; dilation and groups are 1 and a padding is zeros, in
        numbers, or it is not taken.

    >>> layer = ImageConv2d(1, 32, 5, padding=2)
    >>> layer(torch.rand(4, 1, 28, 28)).shape
    torch.Size([4, 32, 28, 28])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[batch, in_channels, height, width] to [batch, out_channels, height', width']."""
        maps_last = weight.to(memory_format=torch.channels_last) if self._has_one_channel(input, weight) else weight
        if self._in_blocks(input, weight):
            bias = None if bias is None else bias.detach()
            keep = partial(_keep, self, weight)
            return _BlockGradient.apply(input, maps_last.detach(), bias, keep, self.padding, self.stride)  # type: ignore
        return super()._conv_forward(input, maps_last, bias)  # type: ignore[no-any-return]

    def _has_one_channel(self, input: Tensor, weight: Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and input.dim() == 4
            and input.shape[1] == 1
            and input.device.type == "cpu"
            and not in_functorch(input, weight)
        )

    def _in_blocks(self, input: Tensor, weight: Tensor) -> bool:
        return (
            is_crafting()
            and input.requires_grad
            and input.device.type == "cpu"
            and input.dim() == 4
            and self.groups == 1
            and self.dilation == (1, 1)
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and not in_functorch(input, weight)
        )


def _keep(layer: nn.Module, weight: Tensor, dtype: torch.dtype, make: Callable[[], Tensor]) -> Tensor:
    return kept_while_crafting((layer, dtype), make, of=[weight])


class _BlockGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, keep: Any, padding: Any, stride: Any
    ) -> Tensor:
        outputs = F.conv2d(inputs, weight, bias, padding=padding, stride=stride)
        ctx.size, ctx.dtype = inputs.shape[2:], inputs.dtype
        ctx.blocks = blocks = Blocks.of(tuple(weight.shape), padding, stride)
        kernel = keep(outputs.dtype, lambda: blocks.kernel(weight.to(outputs.dtype)))
        ctx.save_for_backward(kernel)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,), (kernel,), blocks = gradients, ctx.saved_tensors, ctx.blocks
        (top, bottom), (left, right) = (
            blocks.margins(axis, pixels, ctx.size[axis]) for axis, pixels in enumerate(gradient.shape[2:])
        )
        if (top, left) == (bottom, right) and min(top, left) >= 0:
            pixels = F.conv2d(gradient, kernel, stride=blocks.step, padding=(top, left))
        else:
            pixels = F.conv2d(F.pad(gradient, (left, right, top, bottom)), kernel, stride=blocks.step)
        image = F.pixel_shuffle(pixels, blocks.side)[..., : ctx.size[0], : ctx.size[1]]
        return image.to(ctx.dtype), None, None, None, None, None


@dataclass(frozen=True)
class Blocks:
    """How the input gradient of a convolution is one convolution of its output gradient, a block of pixels at a time.

    Pixel y of the input receives gradient[r] weight[y + padding - stride r] along each axis. The pixels u of block Y,
    y = side Y + u, receive it from r = Y side / stride + a, with the same few offsets a in every block.

    Args:
        side: pixels of a block along both axes, a multiple of both strides.
        step: how far the gradient's window moves from a block to the next.
        first: the lowest offset a along each axis.
        last: the highest.
        order: where in the weight, which is padded by one zero, each value of the kernel lies.
        shape: the kernel's, [channels x side x side, height, width, maps].
    """

    side: int
    step: tuple[int, int]
    first: tuple[int, int]
    last: tuple[int, int]
    order: Tensor
    shape: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=64)
    def of(weight: tuple[int, ...], padding: tuple[int, int], stride: tuple[int, int]) -> "Blocks":
        """For a weight [maps, channels, height, width]."""
        maps, channels, *kernel = weight
        both = math.lcm(*stride)
        side = both * math.ceil((4 if channels < 3 else 2) / both)
        first, last, taps = [], [], []
        counted = partial(torch.arange, device="cpu")  # whatever the caller's default device is: this is kept
        for size, pad, step in zip(kernel, padding, stride, strict=True):
            first.append(-((size - 1 - pad) // step))
            last.append((side - 1 + pad) // step)
            tap = counted(side)[:, None] + pad - step * counted(first[-1], last[-1] + 1)
            taps.append(torch.where((tap >= 0) & (tap < size), tap, size))  # `size` is the zero
        rows, columns = taps
        # [channels, side, side, height, width, maps], the order of a channels_last kernel.
        order = counted(maps) * channels + counted(channels)[:, None, None, None, None, None]
        order = order * (kernel[0] + 1) + rows[:, None, :, None, None]
        order = order * (kernel[1] + 1) + columns[:, None, :, None]
        return Blocks(
            side=side,
            step=(side // stride[0], side // stride[1]),
            first=(first[0], first[1]),
            last=(last[0], last[1]),
            order=order.flatten(),
            shape=(channels * side * side, rows.shape[1], columns.shape[1], maps),
        )

    def margins(self, axis: int, received: int, size: int) -> tuple[int, int]:
        """Zeros before and after the `received` gradients for blocks over `size` pixels; below 0 they are cut."""
        windows = math.ceil(size / self.side)
        return -self.first[axis], (windows - 1) * self.step[axis] + self.last[axis] + 1 - received

    def kernel(self, weight: Tensor) -> Tensor:
        """[channels x side x side, maps, height, width], in channels_last."""
        return F.pad(weight, (0, 1, 0, 1)).flatten().index_select(0, self.order).view(self.shape).permute(0, 3, 1, 2)


class HiddenLinear(nn.Linear):
    """A fully connected layer whose large fp32 products are fast on a processor of any maker.

    The library multiplies fp32 matrices on a CPU by MKL, which leaves half of an AMD processor's vector units idle.
    There oneDNN does it here, as it does the library's convolutions. This is `nn.Linear` on Intel's processors, where
    MKL is the faster, on other devices, under autocast, torch.compile and tracing, where a product is small, and in
    evaluation mode outside `crafting` where the weights ask for gradients: a caller who wants those of the inputs
    alone need not pay for both.

    Args: those of `nn.Linear`.

    >>> layer = HiddenLinear(64, 32)
    >>> layer(torch.rand(4, 64)).shape
    torch.Size([4, 32])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in_features] to [batch, out_features]."""
        if not self._by_onednn(input):
            return super().forward(input)
        product: Tensor = _Product.apply(input, _lent(self.weight))  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + _lent(self.bias)

    def _by_onednn(self, input: Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore
            and input.numel() * self.out_features >= WORTH_ONEDNN
            and input.dim() == 2
            and input.device.type == self.weight.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and (self.training or is_crafting() or not torch.is_grad_enabled() or not self.weight.requires_grad)
            and not torch.is_autocast_enabled("cpu")
            and not is_intel()
            and not in_functorch(input, self.weight)
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        )


def _lent(weight: Tensor) -> Tensor:
    """Without its gradient while crafting, where nobody asks for it."""
    return weight.detach() if is_crafting() else weight


class _Product(torch.autograd.Function):
    """left @ right.T by oneDNN, and its gradients likewise: [rows, inner] and [columns, inner] to [rows, columns]."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (left, right) = gradients, ctx.saved_tensors
        to_left, to_right = ctx.needs_input_grad
        return (
            _Product.apply(gradient, right.t()) if to_left else None,  # type: ignore[no-untyped-call]
            _Product.apply(gradient.t(), left.t()) if to_right else None,  # type: ignore[no-untyped-call]
        )


def require_size(network: str, image_size: int, at_least: int) -> None:
    """Raise ValueError where the images are too small for a network.

    >>> require_size("mnist-b", image_size=8, at_least=17)
    Traceback (most recent call last):
    ValueError: mnist-b needs images of at least 17 pixels a side, got 8; choose another network...
    """
    if image_size < at_least:
        raise ValueError(
            f"{network} needs images of at least {at_least} pixels a side, got {image_size}; choose another "
            f"network (digits-net is made for 8 x 8) or enlarge the images"
        )


def conv(in_width: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Make a convolution that keeps the resolution but for its stride; a batch-norm makes its bias idle.

    >>> conv(3, 16, size=3, stride=2)
    Conv2d(3, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)
    """
    return nn.Conv2d(in_width, width, size, stride=stride, padding=size // 2, bias=False)


class Layers(nn.Sequential):
    """`nn.Sequential`, in which a convolution takes in what follows it while an attack crafts.

    In evaluation mode batch-norm is a scale and an offset for each channel, so that both layers are one convolution,
    w' = w s and b' = (b - mean) s + beta with s = gamma / sqrt(var + eps), computed once an attack. On a GPU cuDNN
    adds b', and a residual block's shortcut, and rectifies, where the convolution writes its outputs: PyTorch's own
    way reads and writes them anew each time, which takes as long as the convolution. Names, weights and all else are
    as they were.

    >>> network = Layers(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> network(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 8, 6, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in_channels, height, width] to what the last layer gives."""
        if not _may_fold():
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        return _crafted(list(self), input)

    def rectified_sum(self, input: Tensor, other: Tensor) -> Tensor:
        """relu(self(input) + other), as a residual block computes it."""
        row: list[Any] = list(self)
        if _may_fold() and len(row) > 1 and _are_one(*row[-2:]) and _is_plain(self, Layers):
            *first, layer, norm = row
            input = _crafted(first, input)
            if _in_one_kernel(layer, input) and other.shape == _output_shape(layer, input):
                return _convolved(layer, norm, input, rectify=True, other=other)
            return F.relu(_convolved(layer, norm, input) + other)
        return F.relu(self(input) + other)


def _may_fold() -> bool:
    """While an attack crafts; not inside a checkpoint, whose forward runs again where nobody knows that one does."""
    if not is_crafting():
        return False
    try:
        return torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    except (AttributeError, TypeError):  # another PyTorch's
        return True


def _crafted(layers: Sequence[nn.Module], input: Tensor) -> Tensor:
    """What layers in a row give while an attack crafts."""
    row: list[Any] = [*layers, None, None]
    while row[0] is not None:
        layer, norm, last, *_ = *row, None
        if norm is None or not _are_one(layer, norm):
            input, row = layer(input), row[1:]
        elif type(last) is nn.ReLU and _is_plain(last, nn.ReLU) and _in_one_kernel(layer, input):
            input, row = _convolved(layer, norm, input, rectify=True), row[3:]
        else:
            input, row = _convolved(layer, norm, input), row[2:]
    return input


def _are_one(layer: nn.Module, following: nn.Module) -> bool:
    """Are these a convolution, and a batch-norm that goes by its running statistics?"""
    return (
        isinstance(layer, nn.Conv2d)
        and isinstance(following, nn.BatchNorm2d)
        and not following.training
        and following.running_mean is not None
        and type(layer)._conv_forward in (nn.Conv2d._conv_forward, ImageConv2d._conv_forward)
        and _is_plain(layer, nn.Conv2d)
        and _is_plain(following, nn.BatchNorm2d)
    )


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Does it compute what its kind does, and does nobody look in?"""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer).forward is kind.forward and "forward" not in vars(layer) and not any(hooks)


def _in_one_kernel(layer: Any, input: Tensor) -> bool:
    """Does cuDNN add and rectify in this convolution's own kernel? Only where that was found to be as fast as it."""
    cudnn, dtype = torch.backends.cudnn, _dtype(layer, input)
    return (
        input.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(input.device) >= (8, 0)
        and cudnn.enabled
        and not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
        and (dtype in (torch.float16, torch.bfloat16) or (dtype == torch.float32 and _tf32_is_allowed()))
        and _suits(layer, input)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore
        and not in_functorch(input, layer.weight)
    )


def _suits(layer: Any, input: Tensor) -> bool:
    """Is the convolution a plain one, and are the numbers in channels last, and no more than 32 bits can count?

    >>> images = torch.rand(2, 3, 8, 8)
    >>> _suits(nn.Conv2d(3, 4, 3), images), _suits(nn.Conv2d(3, 4, 3), images.to(memory_format=torch.channels_last))
    (False, True)
    """
    return (
        layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and input.dim() == 4
        and input.is_contiguous(memory_format=torch.channels_last)
        and input.stride(1) == 1  # with one channel any order is both
        and max(input.numel(), _output_shape(layer, input).numel()) < 1 << 31
    )


def _output_shape(layer: Any, input: Tensor) -> torch.Size:
    """Of a convolution on these images.

    >>> tuple(_output_shape(nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.rand(2, 3, 8, 7)))
    (2, 4, 4, 4)
    """
    sizes = zip(input.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    pixels = [(size + 2 * pad - far * (taps - 1) - 1) // step + 1 for size, pad, far, taps, step in sizes]
    return torch.Size([len(input), layer.out_channels, *pixels])


def _dtype(layer: Any, input: Tensor) -> torch.dtype:
    """What the convolution computes in; autocast leaves float64 as it is."""
    wide = torch.float64 in (layer.weight.dtype, input.dtype)
    return layer.weight.dtype if wide else autocast_dtype(input.device.type) or layer.weight.dtype


def _tf32_is_allowed() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the caller has set `fp32_precision`, and PyTorch refuses to read this
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


def _convolved(layer: Any, norm: Any, input: Tensor, *, rectify: bool = False, other: Tensor | None = None) -> Tensor:
    """A convolution and its batch-norm; with `rectify`, the ReLU of that and of what is added."""
    dtype = _dtype(layer, input)
    made_of = layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    folded = kept_while_crafting((layer, norm, dtype), lambda: _folded(*made_of, norm.eps, dtype), of=made_of)
    if not rectify:
        return layer._conv_forward(input, *folded)  # type: ignore[no-any-return]
    other = None if other is None else other.to(dtype)
    where = layer.stride, layer.padding, layer.dilation
    return _Rectified.apply(input.to(dtype), other, *folded, where)  # type: ignore[no-any-return, no-untyped-call]


def _by_cudnn(inputs: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, where: Sequence[Any]) -> Tensor:
    if other is None:
        outputs: Tensor = torch.ops.aten.cudnn_convolution_relu(inputs, weight, bias, *where, 1)
    else:
        outputs = torch.ops.aten.cudnn_convolution_add_relu(inputs, weight, other, 1.0, bias, *where, 1)
    return outputs


def _in_three(inputs: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, where: Sequence[Any]) -> Tensor:
    outputs = F.conv2d(inputs, weight, bias, *where)
    return F.relu(outputs if other is None else outputs + other)


class _Rectified(torch.autograd.Function):
    """relu(convolution(inputs) + bias + other) in one kernel of cuDNN's, and the gradients of inputs and other."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, where: Any) -> Tensor:
        try:
            outputs = _by_cudnn(inputs, other, weight, bias, where)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # cuDNN has none for this shape on this GPU; what else is wrong, the three say too
            outputs = _in_three(inputs, other, weight, bias, where)
        ctx.where = where
        ctx.save_for_backward(inputs, weight, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (gradient,), (inputs, weight, outputs) = gradients, ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, outputs, 0)
        of_inputs = None
        if ctx.needs_input_grad[0]:
            rest = None, *ctx.where, False, [0, 0], 1, [True, False, False]
            of_inputs = torch.ops.aten.convolution_backward(gradient, inputs, weight, *rest)[0]
        return of_inputs, gradient if ctx.needs_input_grad[1] else None, None, None, None


@torch.no_grad()
def _folded(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a convolution and its batch-norm in one."""
    scale = (variance + eps).rsqrt()
    scale = scale if gamma is None else scale * gamma
    offset = -mean if bias is None else bias - mean
    bias = offset * scale if beta is None else offset * scale + beta
    return (weight * scale.view(-1, 1, 1, 1)).to(dtype), bias.to(dtype)


def stem(in_channels: int, width: int, image_size: int, *, activated: bool) -> Layers:
    """Make the first layers: 3 x 3 at full resolution up to 64 pixels a side, above that ImageNet's.

    ImageNet's are a 7 x 7 convolution of stride 2, batch-norm, ReLU and max-pooling: a quarter of the
    resolution. `activated` adds batch-norm and ReLU to the small form, for networks whose blocks expect them.

    Shapes: [batch, in_channels, size, size] to [batch, width, size or size / 4 rounded up, the same].

    >>> [stem(3, 16, size, activated=True)(torch.rand(1, 3, size, size)).shape[-1] for size in (64, 96)]
    [64, 24]
    """
    if image_size > SMALL_IMAGE:
        return Layers(
            conv(in_channels, width, 7, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )
    layers: list[nn.Module] = [conv(in_channels, width, 3)]
    if activated:
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return Layers(*layers)


class Classifier(nn.Sequential):
    """Compute the logits from each feature map's mean: [batch, maps, height, width] to [batch, classes].

    >>> Classifier(16, num_classes=10)(torch.rand(2, 16, 4, 4)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def draw_convolutions(network: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2 / fan-out), in place.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, the backward form. Batch-norm starts at
    1 and 0 and linear layers as PyTorch sets them.

    >>> _ = torch.manual_seed(0)
    >>> layer = conv(64, 128, size=3)
    >>> draw_convolutions(layer)
    >>> round(float(layer.weight.detach().var()) * 128 * 9, 1)
    2.0
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
