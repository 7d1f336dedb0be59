"""Residual networks: ResNet-18, -34 and -50, and networks whose blocks activate before they convolve.

Up to 64 pixels a side the first layer is one 3 x 3 convolution; above, the ImageNet stem (see `layers.stem`).
Shapes throughout: [batch, in_channels, image_size, image_size] to logits [batch, num_classes].
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.models.layers import Classifier, Layers, conv, draw_convolutions, stem


class Residual(nn.Module):
    """Compute relu(body(inputs) + shortcut(inputs)).

    >>> import torch
    >>> Residual(nn.Identity(), nn.Identity())(torch.tensor([-1.0, 2.0]))
    tensor([0., 4.])
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = self.shortcut(inputs)
        if isinstance(self.body, Layers):
            return self.body.rectified_sum(inputs, shortcut)
        return F.relu(self.body(inputs) + shortcut)


def _projection(in_width: int, width: int, stride: int) -> nn.Module:
    if in_width == width and stride == 1:
        return nn.Identity()
    return Layers(conv(in_width, width, 1, stride), nn.BatchNorm2d(width))


def _basic(in_width: int, width: int, stride: int) -> Residual:
    body = Layers(
        conv(in_width, width, 3, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv(width, width, 3),
        nn.BatchNorm2d(width),
    )
    return Residual(body, _projection(in_width, width, stride))


def _bottleneck(in_width: int, width: int, stride: int) -> Residual:
    body = Layers(
        conv(in_width, width // 4, 1),
        nn.BatchNorm2d(width // 4),
        nn.ReLU(),
        conv(width // 4, width // 4, 3, stride),
        nn.BatchNorm2d(width // 4),
        nn.ReLU(),
        conv(width // 4, width, 1),
        nn.BatchNorm2d(width),
    )
    return Residual(body, _projection(in_width, width, stride))


def _stages(
    block: Callable[[int, int, int], nn.Module], stem_width: int, widths: Sequence[int], blocks: Sequence[int]
) -> list[nn.Module]:
    """Blocks in a row; each stage after the first halves the resolution in its first block."""
    row: list[nn.Module] = []
    in_width = stem_width
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for i in range(count):
            row.append(block(in_width, width, 2 if stage > 0 and i == 0 else 1))
            in_width = width
    return row


def _resnet(
    block: Callable[[int, int, int], nn.Module],
    widths: Sequence[int],
    blocks: Sequence[int],
    num_classes: int,
    in_channels: int,
    image_size: int,
) -> nn.Module:
    network = Layers(
        stem(in_channels, 64, image_size, activated=True),
        *_stages(block, 64, widths, blocks),
        Classifier(widths[-1], num_classes),
    )
    draw_convolutions(network)
    return network


def resnet_18(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """ResNet-18: four stages of two basic blocks.

    Works at any size. Source: He et al., CVPR 2016, Table 1, with projection shortcuts (option B).

    >>> sum(p.numel() for p in resnet_18().parameters())
    11173962
    """
    return _resnet(_basic, (64, 128, 256, 512), (2, 2, 2, 2), num_classes, in_channels, image_size)


def resnet_34(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """ResNet-34: stages of 3, 4, 6 and 3 basic blocks.

    Works at any size. Source: He et al., CVPR 2016, Table 1, with projection shortcuts (option B).

    >>> sum(p.numel() for p in resnet_34().parameters())
    21282122
    """
    return _resnet(_basic, (64, 128, 256, 512), (3, 4, 6, 3), num_classes, in_channels, image_size)


def resnet_50(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """ResNet-50: stages of 3, 4, 6 and 3 bottleneck blocks.

    Works at any size. Source: He et al., CVPR 2016, Table 1. Deviation: the stride sits in the 3 x 3
    convolution and not in the first 1 x 1, as has become usual; the number of parameters is the same.

    >>> sum(p.numel() for p in resnet_50().parameters())
    23520842
    """
    return _resnet(_bottleneck, (256, 512, 1024, 2048), (3, 4, 6, 3), num_classes, in_channels, image_size)


class PreActBlock(nn.Module):
    """Compute shortcut + conv(relu(norm(conv(relu(norm(inputs)))))), both convolutions 3 x 3.

    The shortcut is the input itself, or, where width or resolution change, a 1 x 1 convolution of the already
    activated input.

    >>> import torch
    >>> PreActBlock(4, 8, stride=2)(torch.rand(2, 4, 6, 6)).shape
    torch.Size([2, 8, 3, 3])
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.activate = Layers(nn.BatchNorm2d(in_width), nn.ReLU())
        self.body = Layers(conv(in_width, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU(), conv(width, width, 3))
        same = in_width == width and stride == 1
        self.projection = None if same else conv(in_width, width, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        active: Tensor = self.activate(inputs)
        body: Tensor = self.body(active)
        return body + (inputs if self.projection is None else self.projection(active))


def preact_network(
    stem_width: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
) -> nn.Module:
    """Build the stem, a stage of `PreActBlock`s a width, a last batch-norm and ReLU, and the classifier.

    >>> import torch
    >>> network = preact_network(4, (8, 16), (1, 1), num_classes=10, in_channels=3, image_size=8)
    >>> network(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """
    network = Layers(
        stem(in_channels, stem_width, image_size, activated=False),
        *_stages(PreActBlock, stem_width, widths, blocks),
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
        Classifier(widths[-1], num_classes),
    )
    draw_convolutions(network)
    return network


def preact_resnet_18(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Pre-activation ResNet-18: four stages of two blocks that activate before they convolve.

    Works at any size. Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.

    >>> sum(p.numel() for p in preact_resnet_18().parameters())
    11172170
    """
    return preact_network(
        64,
        (64, 128, 256, 512),
        (2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
    )
