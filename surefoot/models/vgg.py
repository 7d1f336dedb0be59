"""VGG networks with batch-norm.

Shapes: [batch, in_channels, image_size, image_size] to logits [batch, num_classes], at any size.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, Table 1, columns A, B and E. Deviations, usual for small images: batch-norm after each convolution,
whose bias it replaces; the last feature maps are averaged and one linear layer follows in place of three, at
every image size; max-pooling rounds up, so that 28 x 28 images last through all five.
"""

from collections.abc import Sequence

from torch import nn

from surefoot.models.layers import Classifier, Layers, conv, draw_convolutions

_WIDTHS = (64, 128, 256, 512, 512)


def _vgg(convolutions: Sequence[int], num_classes: int, in_channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    in_width = in_channels
    for width, count in zip(_WIDTHS, convolutions, strict=True):
        for _ in range(count):
            layers += [conv(in_width, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
            in_width = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    network = Layers(*layers, Classifier(in_width, num_classes))
    draw_convolutions(network)
    return network


def vgg_11(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-11 with batch-norm: 1, 1, 2, 2 and 2 convolutions between five max-poolings.

    `image_size` changes nothing: the network is the same at every size. Source: column A.

    >>> sum(p.numel() for p in vgg_11().parameters())
    9228362
    """
    return _vgg((1, 1, 2, 2, 2), num_classes, in_channels)


def vgg_13(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-13 with batch-norm: 2, 2, 2, 2 and 2 convolutions between five max-poolings.

    `image_size` changes nothing: the network is the same at every size. Source: column B.

    >>> sum(p.numel() for p in vgg_13().parameters())
    9413066
    """
    return _vgg((2, 2, 2, 2, 2), num_classes, in_channels)


def vgg_19(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """VGG-19 with batch-norm: 2, 2, 4, 4 and 4 convolutions between five max-poolings.

    `image_size` changes nothing: the network is the same at every size. Source: column E.

    >>> sum(p.numel() for p in vgg_19().parameters())
    20035018
    """
    return _vgg((2, 2, 4, 4, 4), num_classes, in_channels)
