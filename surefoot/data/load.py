"""Data sets by name: found, decoded once, split, and memory-mapped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from surefoot.core.limits import check_whole

from .cache import FORMAT, cache_root, logger, open_or_build
from .registry import DATASETS, DatasetSpec

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGEFOLDER_SIZE = 64
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# The split of a named set never changes, whatever the seed of a run.
_NAMED_SEED = 0
_TRAIN, _VALIDATION, _TEST = 0, 1, 2
_CHOOSE_CLASSES, _DRAW_TEST, _DRAW_VALIDATION, _SHUFFLE = 0, 1, 2, 3
_BATCH = 256  # images decoded at once


class Split(NamedTuple):
    """Images uint8 ``[n, channels, height, width]`` and their labels int64 ``[n]``."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A named set of images in three disjoint splits, memory-mapped from the cache."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]

    @property
    def in_channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return int(self.train.images.shape[2])

    def __repr__(self) -> str:
        sizes = (
            f"train={len(self.train.labels)}, validation={len(self.validation.labels)}, test={len(self.test.labels)}"
        )
        shape = f"{self.in_channels}x{self.image_size}x{self.image_size}"
        return f"Dataset({self.name!r}, {sizes}, {self.num_classes} classes, {shape})"


@dataclass(frozen=True)
class _Source:
    """Where images come from: their labels and parts now, their pixels when asked."""

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    parts: NDArray[np.int8]  # _TRAIN, _VALIDATION or _TEST
    read: Callable[[Sequence[int]], list[Image]]
    describe: Callable[[int], str]


@dataclass(frozen=True)
class _Plan:
    """Everything that decides what a cached set contains; ``identity`` says what the source is."""

    name: str
    identity: object
    open_source: Callable[[Path], _Source]
    in_channels: int
    native_size: int | None
    image_size: int
    num_classes: int | None
    validation_size: int | None
    test_size: int | None
    seed: int

    def entry(self) -> str:
        settings = [FORMAT, self.name, self.identity, self.in_channels, self.image_size, self.num_classes]
        settings += [self.validation_size, self.test_size, self.seed]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return f"{self.name}-{key[:20]}"


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    validation_size: int | None = None,
    cache_dir: Path | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The data set ``name``, decoded once and memory-mapped from then on.

    Args:
        name: ``digits`` (embedded in scikit-learn: 8×8, no network), ``mnist``, ``cifar10``,
            ``tiny-imagenet-100``, or ``imagefolder:PATH`` for a folder with one folder of images a class.
            There, ``PATH/train``, ``PATH/val`` and ``PATH/test`` are used where they exist (``val`` is the
            test split if there is no ``test``); what is missing is drawn, 10 % each. All images become RGB,
            are resized (bilinear, antialiased) until their short side is ``image_size``, and are cropped in
            the centre. A split that lies class by class is shuffled, so that its first images are of all classes.
        data_dir: a folder of parquet shards, ``data_dir/NAME/train-*.parquet`` and ``test-*.parquet`` (or
            these files directly in it); the default is ``$SUREFOOT_DATA``. Where either is given the network
            is not touched; otherwise the set is downloaded from the Hugging Face hub. ``digits`` and
            ``imagefolder`` need neither.
        validation_size: images held out of the training images, class by class in proportion. The default is
            the ``DATASETS`` entry's, or 10 % for an image folder.
        cache_dir: where decoded sets are kept; by default ``$SUREFOOT_CACHE`` or the user's cache folder.
        image_size: in pixels; the default is the set's own, and 64 for an image folder.
        num_classes: keep that many classes, drawn at random, in their old order; by default all
            (of the 200 that the hub's Tiny-ImageNet has, 100).
        seed: of an image folder's choice of classes and drawn splits, and of nothing else: named sets are
            always split in the same way, so that runs with different seeds see the same images.

    Returns:
        A ``Dataset`` of ``Split(images, labels)``: uint8 ``[n, c, h, w]`` and int64 ``[n]``.

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
    for argument, value, least in (
        ("validation_size", validation_size, 0),
        ("image_size", image_size, 1),
        ("num_classes", num_classes, 2),
    ):
        if value is not None and value < least:
            raise ValueError(f"{argument} must be at least {least}, got {value}")
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
    contents = open_or_build(cache_root(cache_dir), plan.entry(), lambda staging: _build(plan, staging))
    train, validation, _ = contents.sizes
    ends = (0, train, train + validation, len(contents.labels))
    train_split, validation_split, test_split = (
        Split(contents.images[start:stop], contents.labels[start:stop]) for start, stop in pairwise(ends)
    )
    return Dataset(name, train_split, validation_split, test_split, len(contents.class_names), contents.class_names)


# Plans: what would be cached, found out without reading any image


def _plan_named(
    spec: DatasetSpec,
    data_dir: str | Path | None,
    validation_size: int | None,
    image_size: int | None,
    num_classes: int | None,
) -> _Plan:
    classes = spec.num_classes if num_classes is None else num_classes
    if classes > spec.num_classes:
        raise ValueError(f"{spec.name} has {spec.num_classes} classes, but num_classes asks for {classes}")
    identity: object
    open_source: Callable[[Path], _Source]
    folder = data_dir if data_dir is not None else os.environ.get("SUREFOOT_DATA") or None
    if spec.hub_id is None:
        identity, open_source = "scikit-learn", _open_digits
    elif folder is not None:
        shards = _find_shards(spec, Path(folder).expanduser())
        identity = [[part, path.name, _sha256(path)] for part, paths in enumerate(shards) for path in paths]
        open_source = partial(_open_parquet, spec, shards)
    else:
        # By name, not by revision: asking the hub for one would need the network at every start.
        identity, open_source = ["hub", spec.hub_id], partial(_open_hub, spec)
    share = classes / spec.num_classes
    return _Plan(
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
) -> _Plan:
    given = name.removeprefix("imagefolder:")
    if not given:
        raise ValueError("imagefolder needs a path: write imagefolder:PATH")
    root = Path(given).expanduser().resolve()
    class_names, files = _list_images(root, num_classes, seed)
    # Size and time instead of the content: hashing every image of a large folder would take too long.
    identity = [
        [part, path.relative_to(root).as_posix(), (facts := _facts(path)).st_size, facts.st_mtime_ns]
        for part, _, path in files
    ]
    return _Plan(
        name="imagefolder",
        identity=[class_names, identity],
        open_source=partial(_open_imagefolder, class_names, files),
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
        raise FileNotFoundError(f"the image {path} is a link to a file that is not there: mend or remove it") from error


def _sha256(path: Path) -> str:
    # In full at every start: a named set is about 100 MB, which takes 0.1 to 0.3 s and trusts no file times.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_shards(spec: DatasetSpec, data_dir: Path) -> tuple[list[Path], list[Path]]:
    if not data_dir.is_dir():
        raise FileNotFoundError(
            f"the data folder {data_dir} does not exist: "
            f"give the folder that holds {spec.name}/train-*.parquet and {spec.name}/test-*.parquet"
        )
    folder = data_dir / spec.name
    if not folder.is_dir():
        folder = data_dir
    train = sorted(folder.glob("train-*.parquet"))
    test = sorted(folder.glob("test-*.parquet")) or sorted(folder.glob(f"{spec.hub_test_split}-*.parquet"))
    for part, paths in (("train", train), ("test", test)):
        if not paths:
            raise FileNotFoundError(
                f"no {part}-*.parquet of {spec.name} in {data_dir / spec.name} or {data_dir}: "
                "put the shards there, or leave data_dir and $SUREFOOT_DATA out to download the set"
            )
        promised = re.search(r"-of-(\d+)\.parquet$", paths[0].name)
        if promised and int(promised[1]) != len(paths):
            raise FileNotFoundError(
                f"{folder} has {len(paths)} of the {int(promised[1])} {part} shards of {spec.name}: "
                "add the missing ones"
            )
    return train, test


def _list_images(root: Path, num_classes: int | None, seed: int) -> tuple[tuple[str, ...], list[tuple[int, int, Path]]]:
    """The chosen classes, and part, label and path of each of their images."""
    if not root.is_dir():
        raise FileNotFoundError(f"the image folder {root} does not exist: give a folder with a folder a class")
    # A folder named train is a part if it holds class folders, and a class of its own if it holds images.
    if _folders(root / "train"):
        parts = {_TRAIN: root / "train"}
        val = next((root / n for n in ("val", "valid", "validation") if _folders(root / n)), None)
        if _folders(root / "test"):
            parts[_TEST] = root / "test"
            if val is not None:
                parts[_VALIDATION] = val
        elif val is not None:
            parts[_TEST] = val
    else:
        parts = {_TRAIN: root}
    class_names = tuple(folder.name for folder in _folders(parts[_TRAIN]))
    if len(class_names) < 2:
        raise ValueError(
            f"{parts[_TRAIN]} has {len(class_names)} class folders: "
            "at least 2 are needed, each with the images of one class"
        )
    if num_classes is not None and num_classes > len(class_names):
        raise ValueError(
            f"{parts[_TRAIN]} has {len(class_names)} class folders, but num_classes asks for {num_classes}"
        )
    chosen = _draw_classes(len(class_names), num_classes, seed)
    files = []
    for part, folder in parts.items():
        there = tuple(f.name for f in _folders(folder))
        if there != class_names:
            odd = ", ".join(sorted(set(there) ^ set(class_names))[:5])
            raise ValueError(f"{folder} and {parts[_TRAIN]} must have the same class folders, but differ in {odd}")
        for label, class_name in enumerate(class_names[i] for i in chosen):
            images = _images_below(folder / class_name)
            if not images:
                raise ValueError(f"the class folder {folder / class_name} has no images: add some or remove the folder")
            files += [(part, label, path) for path in images]
    return tuple(class_names[i] for i in chosen), files


def _images_below(folder: Path) -> list[Path]:
    """Sorted; what is hidden, as a notebook's checkpoints are, is left out with all below it."""
    images = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [
            Path(place, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(images, key=_spelling)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    there = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(there, key=_spelling)


def _spelling(path: Path) -> tuple[str, ...]:
    # Paths themselves are sorted without regard to case on Windows: the classes would have other numbers there.
    return path.parts


# Sources: the only places that import scikit-learn and datasets, which takes seconds


def _open_digits(scratch: Path) -> _Source:
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    return _Source(
        class_names=tuple(str(name) for name in bunch.target_names),
        labels=labels,
        parts=np.full(len(labels), _TRAIN, np.int8),
        read=lambda rows: [Image.fromarray(pixels[row]) for row in rows],
        describe=lambda row: f"image {row} of digits",
    )


def _open_parquet(spec: DatasetSpec, shards: tuple[list[Path], list[Path]], scratch: Path) -> _Source:
    import datasets

    parts = []
    with _no_progress_bars():
        for paths in shards:
            try:
                parts.append(datasets.Dataset.from_parquet([str(path) for path in paths], cache_dir=str(scratch)))
            except Exception as error:
                where = paths[0].parent
                raise ValueError(
                    f"the parquet shards of {spec.name} in {where} cannot be read ({_reason(error)}): "
                    "compare their checksums with the originals"
                ) from error
    return _hub_source(spec, parts[0], parts[1])


def _open_hub(spec: DatasetSpec, scratch: Path) -> _Source:
    import datasets

    try:
        train = datasets.load_dataset(spec.hub_id, split="train")
        test = datasets.load_dataset(spec.hub_id, split=spec.hub_test_split)
    except Exception as error:
        raise ConnectionError(
            f"{spec.name} could not be downloaded from the Hugging Face hub as {spec.hub_id} "
            f"({_reason(error)}): "
            "name a folder of its parquet shards with data_dir or $SUREFOOT_DATA instead"
        ) from error
    return _hub_source(spec, train, test)


def _hub_source(spec: DatasetSpec, train: Any, test: Any) -> _Source:
    import datasets

    for part in (train, test):
        for column in (spec.image_column, spec.label_column):
            if column not in part.column_names:
                raise ValueError(
                    f"{spec.name} needs the columns {spec.image_column!r} and {spec.label_column!r}, "
                    f"but the shards have {', '.join(part.column_names)}"
                )
    images = [part.select_columns([spec.image_column]) for part in (train, test)]
    together = datasets.concatenate_datasets(images)
    labels = [np.asarray(part.data.column(spec.label_column).to_numpy(), dtype=np.int64) for part in (train, test)]
    named = getattr(train.features[spec.label_column], "names", None)
    class_names = named or [str(label) for label in range(int(max(part.max() for part in labels)) + 1)]
    return _Source(
        class_names=tuple(class_names),
        labels=np.concatenate(labels),
        parts=np.repeat(np.array([_TRAIN, _TEST], np.int8), [len(part) for part in labels]),
        read=lambda rows: together[rows][spec.image_column],
        describe=lambda row: (
            f"image {row} of {spec.name}'s training images"
            if row < len(train)
            else f"image {row - len(train)} of {spec.name}'s test images"
        ),
    )


def _open_imagefolder(class_names: tuple[str, ...], files: list[tuple[int, int, Path]], scratch: Path) -> _Source:
    import datasets

    decode = datasets.Image().decode_example
    return _Source(
        class_names=class_names,
        labels=np.array([label for _, label, _ in files], np.int64),
        parts=np.array([part for part, _, _ in files], np.int8),
        # As bytes: given a path, an image that cannot be decoded stays open.
        read=lambda rows: [decode({"path": None, "bytes": files[row][2].read_bytes()}) for row in rows],
        describe=lambda row: str(files[row][2]),
    )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            datasets.enable_progress_bars()


def _reason(error: BaseException) -> str:
    # What datasets raises says that something went wrong; its cause says what.
    while error.__cause__ is not None and type(error).__module__.startswith("datasets."):
        error = error.__cause__
    said = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", said)  # Pillow's name for our buffer


# Building: choose classes, draw the splits, decode


def _build(plan: _Plan, staging: Path) -> dict[str, Any]:
    logger.info("decoding %s into the cache, once", plan.name)
    scratch = staging / "in"
    scratch.mkdir()
    source = plan.open_source(scratch)
    labels, class_names = _choose_classes(plan, source)
    rows, sizes = _arrange(plan, labels, source.parts)
    _write(plan, source, rows, staging / "images.npy")
    np.save(staging / "labels.npy", labels[rows])
    del source  # it maps what lies in scratch, and Windows removes no file that is mapped
    shutil.rmtree(scratch)
    return {"sizes": list(sizes), "class_names": list(class_names)}


def _choose_classes(plan: _Plan, source: _Source) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels, -1 where the class was not chosen, and the names of the chosen ones."""
    there = len(source.class_names)
    if source.labels.min() < 0 or source.labels.max() >= there:
        odd = source.labels[(source.labels < 0) | (source.labels >= there)][0]
        raise ValueError(f"{plan.name} has {there} classes, but an image with the label {odd}")
    wanted = there if plan.num_classes is None else plan.num_classes
    if wanted > there:
        raise ValueError(f"{plan.name} has {there} classes here, but {wanted} are asked for")
    chosen = _draw_classes(there, wanted, plan.seed)
    new_labels = np.full(there, -1, np.int64)
    new_labels[chosen] = np.arange(wanted)
    return new_labels[source.labels], tuple(source.class_names[i] for i in chosen)


def _draw_classes(there: int, wanted: int | None, seed: int) -> NDArray[np.int64]:
    return np.sort(_generator(seed, _CHOOSE_CLASSES).permutation(there)[:wanted])


def _arrange(
    plan: _Plan, labels: NDArray[np.int64], parts: NDArray[np.int8]
) -> tuple[NDArray[np.int64], tuple[int, int, int]]:
    """The source's rows in the order of the cache, training, validation, test, and how many each has.

    Each split is one run of the file, so that it can be a slice of the mapping.
    """
    train, validation, test = (np.flatnonzero((parts == part) & (labels >= 0)) for part in (_TRAIN, _VALIDATION, _TEST))
    tenth = max(1, len(train) // 10)
    if not len(test):
        size = tenth if plan.test_size is None else plan.test_size
        train, test = _hold_out(train, labels, size, plan, "test", _DRAW_TEST)
    if not (parts == _VALIDATION).any():
        size = tenth if plan.validation_size is None else plan.validation_size
        train, validation = _hold_out(train, labels, size, plan, "validation", _DRAW_VALIDATION)
    elif plan.validation_size not in (None, len(validation)):
        raise ValueError(
            f"validation_size asks for {plan.validation_size} images, but the folder has its own validation "
            f"split of {len(validation)}: leave validation_size out"
        )
    generator = _generator(plan.seed, _SHUFFLE)
    splits = [_mixed(rows, labels, generator) for rows in (train, validation, test)]
    return np.concatenate(splits), (len(train), len(validation), len(test))


def _mixed(rows: NDArray[np.int64], labels: NDArray[np.int64], generator: np.random.RandomState) -> NDArray[np.int64]:
    """The rows, shuffled where they lie class by class: the first n images of a split stand for all of it."""
    by_class = (np.diff(labels[rows]) >= 0).all()
    return generator.permutation(rows) if by_class else rows


def _hold_out(
    rows: NDArray[np.int64], labels: NDArray[np.int64], size: int, plan: _Plan, part: str, purpose: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``rows`` without ``size`` of them, and these, drawn class by class in proportion; the order stays."""
    if size >= len(rows):
        raise ValueError(
            f"{size} {part} images cannot be held out of the {len(rows)} training images of {plan.name}: "
            + ("give a smaller validation_size" if part == "validation" else "more images are needed")
        )
    generator = _generator(plan.seed, purpose)
    classes, counts = np.unique(labels[rows], return_counts=True)
    quotas, remainders = np.divmod(counts * size, len(rows))
    # What rounding down left over goes to the largest remainders; equal ones in the order of the classes.
    quotas[np.argsort(-remainders, kind="stable")[: size - quotas.sum()]] += 1
    held_out = np.concatenate(
        [
            generator.permutation(rows[labels[rows] == label])[:quota]
            for label, quota in zip(classes, quotas, strict=True)
        ]
    )
    held_out.sort()
    return np.setdiff1d(rows, held_out, assume_unique=True), held_out


def _generator(seed: int, purpose: int) -> np.random.RandomState:
    # numpy promises that RandomState's numbers never change; Generator's may, and the split with them.
    return np.random.RandomState([seed % 2**32, purpose])


def _write(plan: _Plan, source: _Source, rows: NDArray[np.int64], path: Path) -> None:
    """Decode the images of ``rows`` into the array file, a batch at a time."""
    shape = (len(rows), plan.in_channels, plan.image_size, plan.image_size)
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    _reserve(path)

    def decode(places: NDArray[np.int64]) -> None:
        batch = rows[places].tolist()
        images = zip(batch, _read(source, batch), strict=True)
        mapped[places] = np.stack([_pixels(plan, image, source.describe, row) for row, image in images])

    # In the order of the source: its shards and files are read from front to back.
    places = np.argsort(rows)
    # In threads: Pillow decodes and resizes without the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoding = [pool.submit(decode, places[start : start + _BATCH]) for start in range(0, len(places), _BATCH)]
        try:
            for batch in decoding:
                batch.result()
        finally:
            pool.shutdown(cancel_futures=True)
    mapped.flush()


def _reserve(path: Path) -> None:
    # Without its room on the disk, a full disk would be a bus error in the middle of writing a page.
    if not hasattr(os, "posix_fallocate"):
        return
    size = path.stat().st_size
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                f"the cache needs {(size >> 20) + 1} MiB in {path.parents[1]}, which are not free: "
                "make room or name another folder with cache_dir or $SUREFOOT_CACHE"
            ) from error


def _read(source: _Source, rows: Sequence[int]) -> list[Image]:
    try:
        return source.read(rows)
    except Exception:
        for row in rows:  # which one was it?
            try:
                source.read([row])
            except Exception as error:
                raise ValueError(
                    f"{source.describe(row)} cannot be decoded ({_reason(error)}): replace or remove it"
                ) from error
        raise


def _pixels(plan: _Plan, image: Image, describe: Callable[[int], str], row: int) -> NDArray[np.uint8]:
    """One image as uint8 ``[c, h, w]``."""
    from PIL import Image as pillow

    if plan.native_size is not None and image.size != (plan.native_size, plan.native_size):
        raise ValueError(
            f"{describe(row)} has {image.width}x{image.height} pixels, "
            f"but those of {plan.name} have {plan.native_size}x{plan.native_size}"
        )
    if image.mode == "F":
        raise ValueError(
            f"{describe(row)} has floating-point pixels, whose range is not known: save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255 instead of scaling
        image = pillow.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")  # the palette may hold transparency
    mode = "L" if plan.in_channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    side = plan.image_size
    if image.size != (side, side):
        scale = side / min(image.size)
        size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        image = image.resize(size, pillow.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    array = np.asarray(image)
    return array[None] if mode == "L" else array.transpose(2, 0, 1)
