"""Wide residual networks."""

from torch import nn

from surefoot.models.resnet import preact_network


def wrn_28_10(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """WRN-28-10: three stages of four pre-activation blocks, ten times as wide as the ResNet's 16, 32 and 64.

    Shapes: [batch, in_channels, image_size, image_size] to logits [batch, num_classes]; any size, above 64
    pixels a side with the ImageNet stem.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, without dropout. The code of
    "Regularizers for Single-step Adversarial Training" adds biases to the convolutions; not here.

    >>> sum(p.numel() for p in wrn_28_10().parameters())
    36479194
    """
    return preact_network(
        16,
        (160, 320, 640),
        (4, 4, 4),
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
    )
