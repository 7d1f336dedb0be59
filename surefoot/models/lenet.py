"""The networks of Table 1 for MNIST, two smaller ones, one for colour, and one for the 8 x 8 digits.

Every factory takes `num_classes`, `in_channels` and `image_size`, and returns a network from
[batch, in_channels, image_size, image_size] to logits [batch, num_classes]. Fully connected layers are sized
from `image_size`. The softmax of Table 1 belongs to the loss. Weights start as PyTorch's layers set them, but
for `conv_small`'s.

Source: Vivek and Babu, "Regularizers for Single-step Adversarial Training", 2020, Table 1. Table 1 leaves
padding and stride out: LeNet+ pads by 2 as the authors' code does, A to D do not pad; every stride is 1.
Where Table 1 pools after a monotonic activation, the activation comes second here: the same function and
gradient, on a quarter of the values.
"""

from torch import nn

from surefoot.models.layers import HiddenLinear, ImageConv2d, Layers, require_size


def lenet_plus(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """LeNet+: two padded 5 x 5 convolutions with max-pooling, one hidden layer of 1024.

    Raises ValueError below 4 pixels a side. Source: Table 1, column LeNet+.

    >>> sum(p.numel() for p in lenet_plus().parameters())
    3274634
    """
    return lenet("lenet-plus", (32, 64), 1024, num_classes, in_channels, image_size)


def lenet_small(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """LeNet+ with half of its feature maps and a quarter of its hidden units, in a third of its time.

    It learns by LeNet+'s settings, which `conv_small`, smaller still, does not. Raises ValueError below 4 pixels a
    side. Source: this project; not in the paper.

    >>> sum(p.numel() for p in lenet_small().parameters())
    417482
    """
    return lenet("lenet-small", (16, 32), 256, num_classes, in_channels, image_size)


def lenet(
    name: str, maps: tuple[int, int], hidden: int, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    """Make LeNet+ with other widths."""
    require_size(name, image_size, 4)
    side = image_size // 2 // 2
    return nn.Sequential(
        ImageConv2d(in_channels, maps[0], 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(maps[0], maps[1], 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        HiddenLinear(maps[1] * side * side, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def mnist_a(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """Network A: two 5 x 5 convolutions, dropout 0.25, a hidden layer of 128, dropout 0.5.

    Raises ValueError below 9 pixels a side. Source: Table 1, column A.

    >>> sum(p.numel() for p in mnist_a().parameters())
    3382346
    """
    require_size("mnist-a", image_size, 9)
    side = image_size - 4 - 4
    return nn.Sequential(
        ImageConv2d(in_channels, 64, 5),
        nn.ReLU(),
        nn.Conv2d(64, 64, 5),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        HiddenLinear(64 * side * side, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


def mnist_b(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """Network B: dropout 0.2 on the pixels, three convolutions (8 x 8, 6 x 6, 5 x 5), dropout 0.5.

    Raises ValueError below 17 pixels a side. Source: Table 1, column B.

    >>> sum(p.numel() for p in mnist_b().parameters())
    893258
    """
    require_size("mnist-b", image_size, 17)
    side = image_size - 7 - 5 - 4
    return nn.Sequential(
        nn.Dropout(0.2),
        ImageConv2d(in_channels, 64, 8),
        nn.ReLU(),
        nn.Conv2d(64, 128, 6),
        nn.ReLU(),
        nn.Conv2d(128, 128, 5),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(128 * side * side, num_classes),
    )


def mnist_c(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """Network C: two 3 x 3 convolutions with tanh and max-pooling, a hidden layer of 128.

    Raises ValueError below 10 pixels a side. Source: Table 1, column C.

    >>> sum(p.numel() for p in mnist_c().parameters())
    281290
    """
    require_size("mnist-c", image_size, 10)
    side = ((image_size - 2) // 2 - 2) // 2
    return nn.Sequential(
        ImageConv2d(in_channels, 128, 3),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Conv2d(128, 64, 3),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Flatten(),
        HiddenLinear(64 * side * side, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def mnist_d(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """Network D: four hidden layers of 300, each followed by dropout 0.5.

    Works at any size. Source: Table 1, column D.

    >>> sum(p.numel() for p in mnist_d().parameters())
    509410
    """
    widths = [in_channels * image_size * image_size, 300, 300, 300, 300]
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(4):
        layers += [HiddenLinear(widths[i], widths[i + 1]), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def conv_small(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Module:
    """Two 4 x 4 convolutions of stride 2 in place of pooling, a hidden layer of 100: a tenth of LeNet+'s time.

    Weights are drawn from N(0, 2 / fan-in) and biases start at 0 (He et al., 2015): as PyTorch's layers start,
    single-step training at a large radius does not leave the ground.

    Raises ValueError below 4 pixels a side. Source: the network of Wong and Kolter, "Provable Defenses via the
    Convex Outer Adversarial Polytope", ICML 2018, which Wong, Rice and Kolter, "Fast Is Better Than Free", ICLR
    2020, train on MNIST; not in the paper.

    >>> sum(p.numel() for p in conv_small().parameters())
    166406
    """
    require_size("conv-small", image_size, 4)
    side = image_size // 2 // 2
    network = nn.Sequential(
        ImageConv2d(in_channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        HiddenLinear(32 * side * side, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


def conv_norm(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Three 4 x 4 convolutions of stride 2 with batch-norm, one linear layer: colour images on a CPU.

    With it single-step training at 8/255 leaves chance within an epoch on 100 classes, where `lenet_small`, without
    batch-norm, stays there. Raises ValueError below 8 pixels a side. Source: this project; not in the paper.

    >>> sum(p.numel() for p in conv_norm().parameters())
    186314
    """
    require_size("conv-norm", image_size, 8)
    side = image_size // 2 // 2 // 2
    return Layers(
        ImageConv2d(in_channels, 32, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128 * side * side, num_classes),
    )


def digits_net(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 8) -> nn.Module:
    """Two padded 3 x 3 convolutions, one max-pooling, a hidden layer of 128: for the 8 x 8 digits.

    Raises ValueError below 2 pixels a side. Source: this project; not in the paper.

    >>> sum(p.numel() for p in digits_net().parameters())
    151306
    """
    require_size("digits-net", image_size, 2)
    side = image_size // 2
    return nn.Sequential(
        ImageConv2d(in_channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        HiddenLinear(64 * side * side, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )
