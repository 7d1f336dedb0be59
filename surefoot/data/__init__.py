"""Data sets as 8-bit tensors, decoded once into a memory-mapped cache, and seeded batches of them.

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from surefoot.data import Batches, load
>>> with TemporaryDirectory() as folder:  # leave cache_dir out to keep what was decoded
...     digits = load("digits", cache_dir=Path(folder))
>>> digits
Dataset('digits', train=1197, validation=240, test=360, 10 classes, 1x8x8)
>>> inputs, labels = next(iter(Batches(digits.test, batch_size=32)))
>>> inputs.shape, labels.dtype
(torch.Size([32, 1, 8, 8]), torch.int64)
"""

from surefoot.data.augment import horizontal_flip, pad_crop
from surefoot.data.batches import Augmentation, Batches, images_at_once
from surefoot.data.load import Dataset, Split, load
from surefoot.data.registry import DATASETS, DatasetSpec

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batches",
    "Dataset",
    "DatasetSpec",
    "Split",
    "horizontal_flip",
    "images_at_once",
    "load",
    "pad_crop",
]
