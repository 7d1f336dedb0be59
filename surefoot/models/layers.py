"""What several networks share: the normalisation inside a model, the first layers, the initial weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surefoot.core.gradients import is_crafting

SMALL_IMAGE = 64
"""Up to this many pixels a side a network keeps the full resolution in its first layers."""


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

    >>> layer = Normalize(mean=[0.5], std=[0.25])
    >>> layer(torch.ones(1, 3, 1, 1)).flatten().tolist()
    [2.0, 2.0, 2.0]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
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
    sixteen times the arithmetic. While an attack crafts, the same gradient is computed here as one matrix
    product and a fold: W^T g, its patches added up where they overlap. Everywhere else this is `nn.Conv2d`.

    Args: those of `nn.Conv2d`; any stride. The fast way is for dilation and groups of 1 and a padding in numbers.

    >>> layer = ImageConv2d(1, 32, 5, padding=2)
    >>> layer(torch.rand(4, 1, 28, 28)).shape
    torch.Size([4, 32, 28, 28])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in_channels, height, width] to [batch, out_channels, height', width']."""
        if is_crafting() and input.requires_grad and input.device.type == "cpu":
            bias = None if self.bias is None else self.bias.detach()
            return _FoldedGradient.apply(input, self.weight.detach(), bias, self.padding, self.stride)  # type: ignore
        return super().forward(input)


class _FoldedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, padding: Any, stride: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.dtype, ctx.padding, ctx.stride = inputs.shape[2:], inputs.dtype, padding, stride
        return F.conv2d(inputs, weight, bias, padding=padding, stride=stride)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        # [batch, positions, out] is a view where the gradient is channels_last.
        rows = gradient.permute(0, 2, 3, 1).flatten(1, 2)
        patches = weight.to(rows.dtype).flatten(1).t() @ rows.transpose(1, 2)
        # The overlaps are added up in full precision, half would lose them.
        folded = F.fold(patches.to(ctx.dtype), ctx.size, weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        return folded, None, None, None, None


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


def stem(in_channels: int, width: int, image_size: int, *, activated: bool) -> nn.Sequential:
    """Make the first layers: 3 x 3 at full resolution up to 64 pixels a side, above that ImageNet's.

    ImageNet's are a 7 x 7 convolution of stride 2, batch-norm, ReLU and max-pooling: a quarter of the
    resolution. `activated` adds batch-norm and ReLU to the small form, for networks whose blocks expect them.

    Shapes: [batch, in_channels, size, size] to [batch, width, size or size / 4 rounded up, the same].

    >>> [stem(3, 16, size, activated=True)(torch.rand(1, 3, size, size)).shape[-1] for size in (64, 96)]
    [64, 24]
    """
    if image_size > SMALL_IMAGE:
        return nn.Sequential(
            conv(in_channels, width, 7, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )
    layers: list[nn.Module] = [conv(in_channels, width, 3)]
    if activated:
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


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
