"""Data sets by name: found, decoded once, split, and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.core.geometry import check_tensor
from surefoot.core.limits import check_count, check_whole
from surefoot.data.build import Plan, Source, build
from surefoot.data.cache import cache_root, open_or_build
from surefoot.data.registry import DATASETS, DatasetSpec
from surefoot.data.sources import (
    find_shards,
    list_images,
    open_digits,
    open_hub,
    open_imagefolder,
    open_parquet,
)

IMAGEFOLDER_SIZE = 64

# The split of a named set never changes, whatever the seed of a run.
_NAMED_SEED = 0


class Split(NamedTuple):
    """Images uint8 `[n, channels, height, width]` and their labels int64 `[n]`."""

    images: Tensor
    labels: Tensor


def check_split(images: Tensor, labels: Tensor, name: str | None = None) -> None:
    """Refuse what is not as `Split` says; `name` is the data set's name for it.

    Raises:
        TypeError: images or labels that are no tensors.
        ValueError: other shapes or types, or not as many labels as images.
    """
    of = "" if name is None else f"{name}."
    check_tensor(f"{of}images", images)
    check_tensor(f"{of}labels", labels)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"{of}images must be uint8 [n, c, h, w], got {images.dtype} of shape {tuple(images.shape)}")
    channels, height, width = images.shape[1:]
    if width in (1, 3, 4) and channels == height > 4:
        raise ValueError(
            f"{of}images are of shape {tuple(images.shape)}, which seems to have the channels last; give [n, c, h, w], "
            "as images.permute(0, 3, 1, 2) does."
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(f"{of}labels must be int64 [n], got {labels.dtype} of shape {tuple(labels.shape)}")
    if len(images) != len(labels):
        raise ValueError(
            f"each image needs a label, but {name or 'the split'} has {len(images)} images and {len(labels)} labels"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A set of images in three disjoint splits: a named one, memory-mapped from the cache, or one of your own.

    Raises:
        TypeError: a split that is no `Split` of tensors, or class names that are no tuple.
        ValueError: a split that is not as `Split` says, fewer than two classes, or not one name a class.

    >>> import torch
    >>> labels = torch.arange(30) % 3
    >>> splits = [Split(torch.zeros(30, 1, 8, 8, dtype=torch.uint8), labels) for _ in range(3)]
    >>> Dataset("mine", *splits, num_classes=3, class_names=("a", "b", "c"))
    Dataset('mine', train=30, validation=30, test=30, 3 classes, 1x8x8)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    order: str | None = None
    """What tells which image is where: of an image folder a hash of its files' names, in the order of the splits."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            if not isinstance(split, Split):
                raise TypeError(
                    f"{name} is an object of type {type(split).__name__}; give Split(images, labels), and where there "
                    "are none Split(images[:0], labels[:0])."
                )
            check_split(*split, name)
        shapes = {name: tuple(getattr(self, name).images.shape[1:]) for name in ("train", "validation", "test")}
        if len(set(shapes.values())) > 1:
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise ValueError(f"the splits' images have different shapes ({told}); give all the same.")
        check_count("num_classes", self.num_classes, least=2)
        if not isinstance(self.class_names, tuple | list):
            raise TypeError(f"class_names is {self.class_names!r}; give a tuple of one name a class.")
        names = len(self.class_names)
        if names != self.num_classes:
            raise ValueError(f"class_names has {names} names, but num_classes is {self.num_classes}; give one a class.")

    @property
    def in_channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return int(self.train.images.shape[2])

    def fingerprint(self) -> str:
        """A short hash of the classes, every split's labels in their order and `order`: another split has another.

        Not of the pixels, which another version of an image decoder may read a level higher or lower.
        """
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        if self.order is not None:
            digest.update(self.order.encode())
        for split in (self.train, self.validation, self.test):
            digest.update(b"/" + split.labels.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def described(self) -> str:
        """How many classes it has, and images in each split, in words."""
        sizes = [len(split.labels) for split in (self.train, self.validation, self.test)]
        return "{} classes, {} training, {} validation and {} test images".format(self.num_classes, *sizes)

    def __repr__(self) -> str:
        sizes = (
            f"train={len(self.train.labels)}, validation={len(self.validation.labels)}, test={len(self.test.labels)}"
        )
        shape = "x".join(str(size) for size in self.train.images.shape[1:])
        return f"Dataset({self.name!r}, {sizes}, {self.num_classes} classes, {shape})"


def whole_name(name: str) -> str:
    """The data set's name with the whole path where it is an image folder.

    >>> whole_name("mnist"), whole_name("imagefolder:photos") == f"imagefolder:{Path('photos').absolute()}"
    ('mnist', True)
    """
    given = name.removeprefix("imagefolder:")
    return f"imagefolder:{os.path.abspath(os.path.expanduser(given))}" if given and given != name else name


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    validation_size: int | None = None,
    cache_dir: str | Path | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The data set `name`, decoded once and memory-mapped from then on.

    Args:
        name: `digits` (embedded in scikit-learn: 8×8, no network), `mnist`, `cifar10`,
            `tiny-imagenet-100`, or `imagefolder:PATH` for a folder with one folder of images a class.
            There, `PATH/train`, `PATH/val` and `PATH/test` are used where they exist (also as `training`, `valid`,
            `validation`, `dev` and `testing`, in any case; `val` is the test split if there is no `test`); what is
            missing is drawn, 10 % each. All images become RGB,
            are resized (bilinear, antialiased) until their short side is `image_size`, and are cropped in
            the centre. A split that lies class by class is shuffled, so that its first images are of all classes.
            Links to folders are followed; files with other suffixes than images' are left out.
        data_dir: a folder of parquet shards, `data_dir/NAME/train-*.parquet` and `test-*.parquet` (or
            these files directly in it); the default is `$SUREFOOT_DATA`. Where either is given the network
            is not touched; otherwise the set is downloaded from the Hugging Face hub. `digits` and
            `imagefolder` need neither.
        validation_size: images held out of the training images, class by class in proportion. The default is
            the `DATASETS` entry's, or 10 % for an image folder.
        cache_dir: where decoded sets are kept; by default `$SUREFOOT_CACHE` or the user's cache folder.
        image_size: in pixels; the default is the set's own, and 64 for an image folder.
        num_classes: keep that many classes, drawn at random, in their old order; by default all
            (of the 200 that the hub's Tiny-ImageNet has, 100).
        seed: of an image folder's choice of classes and drawn splits, and of nothing else: named sets are
            always split in the same way, so that runs with different seeds see the same images.

    Returns:
        A `Dataset` of `Split(images, labels)`: uint8 `[n, c, h, w]` and int64 `[n]`.

    Raises:
        ValueError: an unknown name, a size that does not fit, or data that cannot be read.
        FileNotFoundError: a folder or its shards are missing.
        ConnectionError: the hub cannot be reached.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:  # leave cache_dir out to keep what was decoded
    ...     digits = load("digits", cache_dir=Path(folder))
    >>> digits.train.images.shape, digits.num_classes
    (torch.Size([1197, 1, 8, 8]), 10)

    Source: the split sizes of MNIST (50,000 / 10,000) and CIFAR-10 (40,000 / 10,000) are those of the
    code that the paper's authors released.
    """
    if validation_size is not None:
        check_count("validation_size", validation_size, least=0)
    if num_classes is not None:
        check_count("num_classes", num_classes, least=2)
    if image_size is not None:
        check_whole("image_size", image_size)
    if name.startswith("imagefolder:"):
        plan = _plan_imagefolder(name, validation_size, image_size, num_classes, seed)
    elif name in DATASETS:
        plan = _plan_named(DATASETS[name], data_dir, validation_size, image_size, num_classes)
    else:
        near = get_close_matches(name.lower(), [*DATASETS, "imagefolder:PATH"], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown data set {name!r}: {hint}known are {', '.join(DATASETS)} and imagefolder:PATH")
    contents = open_or_build(cache_root(cache_dir), plan.entry(), lambda staging: build(plan, staging))
    train, validation, _ = contents.sizes
    ends = (0, train, train + validation, len(contents.labels))
    train_split, validation_split, test_split = (
        Split(contents.images[start:stop], contents.labels[start:stop]) for start, stop in pairwise(ends)
    )
    names = contents.class_names
    return Dataset(name, train_split, validation_split, test_split, len(names), names, contents.order)


def _plan_named(
    spec: DatasetSpec,
    data_dir: str | Path | None,
    validation_size: int | None,
    image_size: int | None,
    num_classes: int | None,
) -> Plan:
    """What would be cached of a named set, found out without reading any image."""
    classes = spec.num_classes if num_classes is None else num_classes
    if classes > spec.num_classes:
        raise ValueError(f"{spec.name} has {spec.num_classes} classes, but num_classes asks for {classes}")
    identity: object
    open_source: Callable[[Path], Source]
    folder = data_dir if data_dir is not None else os.environ.get("SUREFOOT_DATA") or None
    if spec.hub_id is None:
        identity, open_source = "scikit-learn", open_digits
    elif folder is not None:
        shards = find_shards(spec, Path(folder).expanduser())
        identity = [[part, path.name, _sha256(path)] for part, paths in enumerate(shards) for path in paths]
        open_source = partial(open_parquet, spec, shards)
    else:
        # By name, not by revision: asking the hub for one would need the network at every start.
        identity, open_source = ["hub", spec.hub_id], partial(open_hub, spec)
    share = classes / spec.num_classes
    return Plan(
        name=spec.name,
        identity=identity,
        open_source=open_source,
        in_channels=spec.in_channels,
        native_size=spec.image_size,
        image_size=spec.image_size if image_size is None else image_size,
        num_classes=classes,
        validation_size=round(spec.validation_size * share) if validation_size is None else validation_size,
        test_size=None if spec.test_size is None else round(spec.test_size * share),
        seed=_NAMED_SEED,
    )


def _plan_imagefolder(
    name: str, validation_size: int | None, image_size: int | None, num_classes: int | None, seed: int
) -> Plan:
    """Likewise, of an image folder."""
    given = name.removeprefix("imagefolder:")
    if not given:
        raise ValueError("imagefolder needs a path: write imagefolder:PATH")
    root = Path(given).expanduser().resolve()
    class_names, files = list_images(root, num_classes, seed)
    # Place, size and times instead of the content: hashing every image of a large folder would take too long. The
    # ctime too, since whoever writes an image anew may set its mtime back, as an archive does that is unpacked.
    identity = [
        [part, path.relative_to(root).as_posix(), (facts := _facts(path)).st_size, facts.st_mtime_ns, facts.st_ctime_ns]
        for part, _, path in files
    ]
    return Plan(
        name="imagefolder",
        identity=[str(root), class_names, identity],
        open_source=partial(open_imagefolder, root, class_names, files),
        in_channels=3,
        native_size=None,
        image_size=IMAGEFOLDER_SIZE if image_size is None else image_size,
        num_classes=None,  # already chosen, so that the files of the others need not be listed
        validation_size=validation_size,
        test_size=None,
        seed=seed,
    )


def _facts(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the image {path} is a link to a missing file: repair or remove it") from error


def _sha256(path: Path) -> str:
    # In full at every start: a named set is about 100 MB, which takes 0.1 to 0.3 s and trusts no file times.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
