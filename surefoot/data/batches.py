"""Seeded mini-batches, kept and augmented on the training device."""

import hashlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from surefoot.core.devices import image_format
from surefoot.core.limits import check_count
from surefoot.data.augment import horizontal_flip, pad_crop
from surefoot.data.load import Split, check_split

Augmentation = Literal["none", "crop-flip"]


ON_CPU, ON_ACCELERATOR = 250, 2000


def images_at_once(device: torch.device) -> int:
    """How many images to evaluate at once: small ones stay in a CPU's caches, and leave an accelerator idle.

    Attacks let go of images, so that what is left of a small batch is mostly waiting there.

    >>> images_at_once(torch.device("cpu"))
    250
    """
    return ON_CPU if device.type == "cpu" else ON_ACCELERATOR


class Batches:
    """Mini-batches of a split: inputs float32 `[b, c, h, w]` in [0, 1] and labels int64 `[b]`.

    The 8-bit images are moved to `device` once and become floats there, a batch at a time. On the CPU
    nothing is copied: a memory-mapped split stays mapped, so that a set larger than memory works.

    Order and augmentation of an epoch are a pure function of `(seed, epoch)`, the same on every device;
    torch's global generator is neither read nor moved. A resumed run asks for the epoch it stopped at and
    needs no other state.

    Use `batches.epoch(number)` in a training loop: `for inputs, labels in batches` is epoch 0 each time, so that
    with `shuffle` or `augment` it gives the same order and the same shifts again and again.

    Args:
        split: images uint8 `[n, c, h, w]` and labels int64 `[n]`.
        batch_size: examples a batch; the last one may be smaller, unless `drop_last`.
        device: where the batches live.
        shuffle: a new order every epoch; otherwise the split's own.
        seed: of the order and the augmentation.
        augment: `"crop-flip"` shifts by up to 4 pixels (zeros move in) and flips half of the images.
        drop_last: leave out a smaller last batch.
        channels_last: inputs in the channels-last memory format, where `core.devices.image_format` gives it.

    Raises:
        ValueError: shapes or dtypes are not those above, images and labels differ in number,
            `batch_size` is below 1, or `augment` is unknown.
        TypeError: images or labels that are no tensors.

    >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
    >>> batches = Batches(split, 4, shuffle=True, seed=1)
    >>> [len(labels) for inputs, labels in batches.epoch(3)]
    [4, 4, 2]
    >>> for number in range(3):  # a training loop: another order each time
    ...     print([label for inputs, labels in batches.epoch(number) for label in labels.tolist()])
    [1, 4, 6, 7, 8, 9, 2, 3, 0, 5]
    [4, 9, 7, 0, 5, 2, 1, 3, 6, 8]
    [4, 5, 0, 8, 1, 2, 9, 3, 7, 6]
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        seed: int = 0,
        augment: Augmentation = "none",
        drop_last: bool = False,
        channels_last: bool = False,
    ) -> None:
        if not isinstance(split, tuple | list) or len(split) != 2:
            raise TypeError(
                f"split is an object of type {type(split).__name__}; give the images and labels of a split, as "
                "dataset.train, or Split(images, labels)."
            )
        images, labels = split
        check_split(images, labels)
        check_count("batch_size", batch_size)
        if augment not in get_args(Augmentation):
            raise ValueError(f"augment must be one of {get_args(Augmentation)}, got {augment!r}")
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.augment = augment
        self.drop_last = drop_last
        self.memory_format = image_format(self.device) if channels_last else torch.contiguous_format
        self._images = images.to(self.device)
        self._labels = labels.to(self.device)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self._labels), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch 0, in the same order each time: use `batches.epoch(number)` in a training loop.

        >>> split = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
        >>> batches = Batches(split, 4, shuffle=True)
        >>> [labels.tolist() for number in range(3) for inputs, labels in batches]
        [[0, 3, 1, 2], [0, 3, 1, 2], [0, 3, 1, 2]]
        >>> [labels.tolist() for number in range(3) for inputs, labels in batches.epoch(number)]
        [[0, 3, 1, 2], [1, 3, 2, 0], [3, 2, 1, 0]]
        """
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, counted from 0."""
        count = len(self._labels)
        # Drawn on the CPU, so that a run sees the same examples whatever the device.
        order = None
        if self.shuffle:
            order = torch.randperm(count, generator=self._generator("order", epoch), device="cpu").to(self.device)
        generator = self._generator("augment", epoch)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            stop = min(start + self.batch_size, count)
            if order is None:
                images, labels = self._images[start:stop], self._labels[start:stop]
            else:
                rows = order[start:stop]
                images, labels = self._images.index_select(0, rows), self._labels.index_select(0, rows)
            if self.augment == "crop-flip":
                images = horizontal_flip(pad_crop(images, generator), generator)
            inputs = images.to(torch.float32, memory_format=self.memory_format).div_(255)
            yield inputs, labels.clone()

    def _generator(self, purpose: str, epoch: int) -> torch.Generator:
        # A hash, because neighbouring (seed, epoch) must not share streams: seed + epoch would.
        digest = hashlib.sha256(f"{purpose} {self.seed} {epoch}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
