"""Decodes a data set into the cache's arrays: chooses its classes, draws its splits, decodes its images."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surefoot.data.cache import FORMAT, logger

if TYPE_CHECKING:
    from PIL.Image import Image

TRAIN, VALIDATION, TEST = 0, 1, 2  # the part of a set that an image belongs to
_CHOOSE_CLASSES, _DRAW_TEST, _DRAW_VALIDATION, _SHUFFLE = 0, 1, 2, 3  # what is drawn, each from a stream of its own
_BATCH = 256  # images decoded at once


@dataclass(frozen=True)
class Source:
    """Where images come from: their labels and parts now, their pixels when asked."""

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    parts: NDArray[np.int8]  # TRAIN, VALIDATION or TEST
    read: Callable[[Sequence[int]], Sequence[Image | None]]  # None: a shard has null there
    describe: Callable[[int], str]
    names: Sequence[str] | None = None  # of the images' files, where a folder holds them, whose images come and go


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a cached set contains; `identity` says what the source is."""

    name: str
    identity: object
    open_source: Callable[[Path], Source]
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


def build(plan: Plan, staging: Path) -> dict[str, Any]:
    """Write the arrays of a set into a folder; how many images each split has, and the classes."""
    logger.info("decoding %s into the cache, once", plan.name)
    scratch = staging / "in"
    scratch.mkdir()
    source = plan.open_source(scratch)
    labels, class_names = _choose_classes(plan, source)
    rows, sizes = _arrange(plan, labels, source.parts)
    _write(plan, source, rows, staging / "images.npy")
    np.save(staging / "labels.npy", labels[rows])
    order = None
    if source.names is not None:
        order = hashlib.sha256(json.dumps([source.names[row] for row in rows.tolist()]).encode()).hexdigest()
    del source  # it maps what lies in scratch, and Windows removes no file that is mapped
    shutil.rmtree(scratch)
    return {"sizes": list(sizes), "class_names": list(class_names), "order": order}


def _choose_classes(plan: Plan, source: Source) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels, -1 where the class was not chosen, and the names of the chosen ones."""
    there = len(source.class_names)
    if source.labels.min() < 0 or source.labels.max() >= there:
        odd = source.labels[(source.labels < 0) | (source.labels >= there)][0]
        raise ValueError(f"{plan.name} has {there} classes, but an image with the label {odd}")
    wanted = there if plan.num_classes is None else plan.num_classes
    if wanted > there:
        raise ValueError(f"{plan.name} has {there} classes here, but {wanted} are asked for")
    chosen = draw_classes(there, wanted, plan.seed)
    new_labels = np.full(there, -1, np.int64)
    new_labels[chosen] = np.arange(wanted)
    return new_labels[source.labels], tuple(source.class_names[i] for i in chosen)


def draw_classes(there: int, wanted: int | None, seed: int) -> NDArray[np.int64]:
    return np.sort(_generator(seed, _CHOOSE_CLASSES).permutation(there)[:wanted])


def _arrange(
    plan: Plan, labels: NDArray[np.int64], parts: NDArray[np.int8]
) -> tuple[NDArray[np.int64], tuple[int, int, int]]:
    """The source's rows in the order of the cache, training, validation, test, and how many each has.

    Each split is one run of the file, so that it can be a slice of the mapping.
    """
    train, validation, test = (np.flatnonzero((parts == part) & (labels >= 0)) for part in (TRAIN, VALIDATION, TEST))
    tenth = max(1, len(train) // 10)
    if not len(test):
        size = tenth if plan.test_size is None else plan.test_size
        train, test = _hold_out(train, labels, size, plan, "test", _DRAW_TEST)
    if not (parts == VALIDATION).any():
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
    """The rows, shuffled where they lie class by class: the first n images of a split stand for all of it.

    Also where they do in each of several pieces: the class changes from row to row less than half as often as by
    chance.
    """
    if len(rows) == 0:
        return rows
    _, counts = np.unique(labels[rows], return_counts=True)
    by_chance = 1 - float(((counts / len(rows)) ** 2).sum())
    changes = np.diff(labels[rows])
    by_class = (changes >= 0).all() or np.count_nonzero(changes) < by_chance / 2 * len(changes)
    return generator.permutation(rows) if by_class else rows


def _hold_out(
    rows: NDArray[np.int64], labels: NDArray[np.int64], size: int, plan: Plan, part: str, purpose: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`rows` without `size` of them, and these, drawn class by class in proportion; the order stays."""
    generator = _generator(plan.seed, purpose)
    classes, counts = np.unique(labels[rows], return_counts=True)
    most = counts - 1  # each class keeps one to train on
    if size > most.sum():
        smaller = "give more images, or a smaller validation_size" if part == "validation" else "give more images"
        raise ValueError(
            f"{size} {part} images cannot be held out of the {len(rows)} training images of {plan.name}, whose "
            f"{len(classes)} classes keep one each: {smaller}"
        )
    quotas, remainders = np.divmod(counts * size, len(rows))
    # What rounding down left over goes to the largest remainders; equal ones in the order of the classes.
    order = np.argsort(-remainders, kind="stable")
    while quotas.sum() < size:
        quotas[[place for place in order if quotas[place] < most[place]][: size - quotas.sum()]] += 1
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


def _write(plan: Plan, source: Source, rows: NDArray[np.int64], path: Path) -> None:
    """Decode the images of `rows` into the array file, a batch at a time."""
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


def _read(source: Source, rows: Sequence[int]) -> Sequence[Image | None]:
    try:
        return source.read(rows)
    except Exception:
        for row in rows:  # which one was it?
            try:
                source.read([row])
            except Exception as error:
                raise ValueError(
                    f"{source.describe(row)} cannot be decoded ({reason(error)}): replace or remove it"
                ) from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Is it, or what it came of, that no more can be written?"""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None)):
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: BaseException) -> str:
    # What datasets raises says that something went wrong; its cause says what.
    while error.__cause__ is not None and type(error).__module__.startswith("datasets."):
        error = error.__cause__
    said = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", said)  # Pillow's name for our buffer


def _pixels(plan: Plan, image: Image | None, describe: Callable[[int], str], row: int) -> NDArray[np.uint8]:
    """One image as uint8 `[c, h, w]`."""
    from PIL import Image as pillow

    if image is None:
        raise ValueError(f"{describe(row)} is null, where an image is expected: remove the row, or give it its image")
    if plan.native_size is not None and image.size != (plan.native_size, plan.native_size):
        raise ValueError(
            f"{describe(row)} has {image.width}x{image.height} pixels, "
            f"but those of {plan.name} have {plan.native_size}x{plan.native_size}"
        )
    if image.mode == "F":
        raise ValueError(
            f"{describe(row)} has floating-point pixels, whose range is not known: save it with 8 or 16 bits"
        )
    # Pillow has no other mode for the 16 bits of a PNG or PGM than that for 32, of which a TIFF may use any.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        levels = np.asarray(image)
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or not 255 < high <= 65535:
            raise ValueError(
                f"{describe(row)} has 32-bit pixels from {low} to {high}, whose range is not known: "
                "save it with 8 or 16 bits"
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
