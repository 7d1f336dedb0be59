"""Densely connected networks."""

import torch
from torch import Tensor, nn

from surefoot.models.layers import Classifier, Layers, conv, draw_convolutions, require_size, stem


class DenseLayer(nn.Module):
    """Append `growth` new maps to the inputs, by a 1 x 1 bottleneck of 4 growth and a 3 x 3 convolution.

    >>> DenseLayer(24, growth=12)(torch.rand(2, 24, 8, 8)).shape
    torch.Size([2, 36, 8, 8])
    """

    def __init__(self, in_width: int, growth: int) -> None:
        super().__init__()
        self.body = Layers(
            nn.BatchNorm2d(in_width),
            nn.ReLU(),
            conv(in_width, 4 * growth, 1),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            conv(4 * growth, growth, 3),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.body(inputs)], dim=1)


def densenet_bc_100(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """DenseNet-BC-100: three dense blocks of 16 layers, growth rate 12, halved in width and size between.

    Shapes: [batch, in_channels, image_size, image_size] to logits [batch, num_classes]; above 64 pixels
    a side with the ImageNet stem. Raises ValueError below 4 pixels a side.

    Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, section 4.2, without dropout.

    >>> sum(p.numel() for p in densenet_bc_100().parameters())
    769162
    """
    require_size("densenet-bc-100", image_size, 4)
    growth, width = 12, 24
    layers: list[nn.Module] = []
    for block in range(3):
        if block > 0:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), conv(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(16):
            layers.append(DenseLayer(width, growth))
            width += growth
    network = Layers(
        stem(in_channels, 2 * growth, image_size, activated=False),
        *layers,
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Classifier(width, num_classes),
    )
    draw_convolutions(network)
    return network
