"""The data sets that have a name, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a named data set before it is read.

    `validation_size` images are held out of the training images; `test_size` images are too, where the
    source has no test images of its own (`None`: it has). Sizes count images, `image_size` is in pixels.

    >>> DATASETS["cifar10"].hub_id
    'uoft-cs/cifar10'
    """

    name: str
    num_classes: int
    in_channels: int
    image_size: int
    validation_size: int
    test_size: int | None = None
    hub_id: str | None = None  # None: embedded in scikit-learn
    image_column: str = "image"
    label_column: str = "label"
    hub_test_split: str = "test"


DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec("digits", 10, 1, 8, validation_size=240, test_size=360),
    "mnist": DatasetSpec("mnist", 10, 1, 28, validation_size=10_000, hub_id="ylecun/mnist"),
    "cifar10": DatasetSpec("cifar10", 10, 3, 32, validation_size=10_000, hub_id="uoft-cs/cifar10", image_column="img"),
    # The hub's copy has 200 classes, of which num_classes are kept, and no labelled test images but "valid".
    "tiny-imagenet-100": DatasetSpec(
        "tiny-imagenet-100",
        100,
        3,
        64,
        validation_size=5_000,
        hub_id="zh-plus/tiny-imagenet",
        hub_test_split="valid",
    ),
}
