"""Where data sets come from: scikit-learn, parquet shards, the hub, folders of images.

The only places that import scikit-learn and datasets, which takes seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.data.build import TEST, TRAIN, VALIDATION, Source, draw_classes, is_full, reason
from surefoot.data.registry import DatasetSpec

PART_NAMES = (("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing"))
"""How the folders of training, validation and test images are named."""
IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_shards(spec: DatasetSpec, data_dir: Path) -> tuple[list[Path], list[Path]]:
    if not data_dir.is_dir():
        raise FileNotFoundError(f"the data folder {data_dir} does not exist: {_how_to_give(spec)}")
    folder = data_dir / spec.name
    if not any(folder.glob("*.parquet")):
        folder = data_dir
    train = sorted(folder.glob("train-*.parquet"))
    test = sorted(folder.glob("test-*.parquet")) or sorted(folder.glob(f"{spec.hub_test_split}-*.parquet"))
    for part, paths in (("train", train), ("test", test)):
        if not paths:
            raise FileNotFoundError(
                f"no {part}-*.parquet of {spec.name} in {data_dir / spec.name} or {data_dir}: "
                f"{_how_to_give(spec)}, or neither of them to download the set"
            )
        # Some versions of datasets write a hash of the shard behind its number.
        promised = re.search(r"-of-(\d+)(-[0-9a-f]+)?\.parquet$", paths[0].name)
        if promised and int(promised[1]) < len(paths):
            raise ValueError(
                f"{folder} has {len(paths)} {part} shards of {spec.name}, but their names say {int(promised[1])}: "
                "remove those that do not belong there"
            )
        if promised and int(promised[1]) > len(paths):
            raise FileNotFoundError(
                f"{folder} has {len(paths)} of the {int(promised[1])} {part} shards of {spec.name}: "
                "add the missing ones"
            )
    return train, test


def _how_to_give(spec: DatasetSpec) -> str:
    return (
        f"give the folder that holds {spec.name}/train-*.parquet and {spec.name}/test-*.parquet with --data-dir "
        "(in Python data_dir) or $SUREFOOT_DATA"
    )


def list_images(root: Path, num_classes: int | None, seed: int) -> tuple[tuple[str, ...], list[tuple[int, int, Path]]]:
    """The chosen classes, and part, label and path of each of their images."""
    if not root.is_dir():
        raise FileNotFoundError(f"the image folder {root} does not exist: give a folder with a folder a class")
    # A folder named train is a part if it holds class folders, and a class of its own if it holds images.
    train, val, test = (_part(root, names) for names in PART_NAMES)
    if train is not None:
        parts = {TRAIN: train}
        if test is not None:
            parts[TEST] = test
            if val is not None:
                parts[VALIDATION] = val
        elif val is not None:
            parts[TEST] = val
    elif val is not None or test is not None:
        raise ValueError(
            f"{root} has a folder {(val or test).name} of class folders, but none named train: name the folder of the "  # type: ignore[union-attr]
            "training images train, or give a folder of class folders alone"
        )
    else:
        parts = {TRAIN: root}
    class_names = tuple(folder.name for folder in _folders(parts[TRAIN]))
    has = f"{parts[TRAIN]} has {len(class_names)} class folder{'' if len(class_names) == 1 else 's'}"
    if len(class_names) < 2:
        raise ValueError(f"{has}: at least 2 are needed, each with the images of one class")
    if num_classes is not None and num_classes > len(class_names):
        raise ValueError(f"{has}, but num_classes asks for {num_classes}")
    chosen = draw_classes(len(class_names), num_classes, seed)
    files = []
    for part, folder in parts.items():
        there = tuple(f.name for f in _folders(folder))
        if there != class_names:
            odd = ", ".join(sorted(set(there) ^ set(class_names))[:5])
            raise ValueError(f"{folder} and {parts[TRAIN]} must have the same class folders, but differ in {odd}")
        for label, class_name in enumerate(class_names[i] for i in chosen):
            images = _images_below(folder / class_name)
            if not images:
                raise ValueError(f"the class folder {folder / class_name} has no images: add some or remove the folder")
            files += [(part, label, path) for path in images]
    return tuple(class_names[i] for i in chosen), files


def _part(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first folder below `root` of such a name, in any case, that holds class folders."""
    found = [folder for name in names for folder in _folders(root) if folder.name.lower() == name and _folders(folder)]
    return found[0] if found else None


def _images_below(folder: Path) -> list[Path]:
    """Sorted; what is hidden, as a notebook's checkpoints are, is left out with all below it, links are followed."""
    images = []
    been = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in been:  # a link back
            folders.clear()
            continue
        been.add(real)
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


def open_digits(scratch: Path) -> Source:
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    return Source(
        class_names=tuple(str(name) for name in bunch.target_names),
        labels=labels,
        parts=np.full(len(labels), TRAIN, np.int8),
        read=lambda rows: [Image.fromarray(pixels[row]) for row in rows],
        describe=lambda row: f"image {row} of digits",
    )


def open_parquet(spec: DatasetSpec, shards: tuple[list[Path], list[Path]], scratch: Path) -> Source:
    import datasets

    parts = []
    with _no_progress_bars():
        for paths in shards:
            try:
                parts.append(datasets.Dataset.from_parquet([str(path) for path in paths], cache_dir=str(scratch)))
            except Exception as error:
                if is_full(error):
                    raise OSError(
                        f"the cache in {scratch.parents[1]} has no room for {spec.name} ({reason(error)}): "
                        "make room or name another folder with cache_dir or $SUREFOOT_CACHE"
                    ) from error
                where = paths[0].parent
                raise ValueError(
                    f"the parquet shards of {spec.name} in {where} cannot be read ({reason(error)}): "
                    "compare their checksums with the originals"
                ) from error
    return _hub_source(spec, parts[0], parts[1])


def open_hub(spec: DatasetSpec, scratch: Path) -> Source:
    import datasets

    lost = no_way_to_hub(str(spec.hub_id))
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or lost is not None  # what was downloaded before is taken all the same
    try:
        train = datasets.load_dataset(spec.hub_id, split="train")
        test = datasets.load_dataset(spec.hub_id, split=spec.hub_test_split)
    except Exception as error:
        raise ConnectionError(
            f"{spec.name} could not be downloaded from the Hugging Face hub as {spec.hub_id} "
            f"({reason(lost or error)}): {_how_to_give(spec)}"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    return _hub_source(spec, train, test)


def no_way_to_hub(hub_id: str) -> Exception | None:
    """Why no connection can be made, found out at once: the hub's library tries six times, for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(hub_id, timeout=10)
    except Exception as error:  # of the library's client, which has been another from version to version
        return error if type(error).__name__ in ("ConnectError", "ConnectionError") else None
    return None


def _hub_source(spec: DatasetSpec, train: Any, test: Any) -> Source:
    import datasets

    for part in (train, test):
        for column in (spec.image_column, spec.label_column):
            if column not in part.column_names:
                raise ValueError(
                    f"{spec.name} needs the columns {spec.image_column!r} and {spec.label_column!r}, "
                    f"but the shards have {', '.join(part.column_names)}"
                )

    def describe(row: int) -> str:
        part, place = ("training", row) if row < len(train) else ("test", row - len(train))
        return f"image {place} of {spec.name}'s {part} images"

    # Cast, for shards that other writers made say of their images' bytes only that they are bytes.
    images = [
        part.select_columns([spec.image_column]).cast_column(spec.image_column, datasets.Image())
        for part in (train, test)
    ]
    together = datasets.concatenate_datasets(images)
    labels = [
        _labels(part.data.column(spec.label_column), start, describe)
        for part, start in ((train, 0), (test, len(train)))
    ]
    named, test_named = (getattr(part.features[spec.label_column], "names", None) for part in (train, test))
    for label, (one, other) in enumerate(zip_longest(named or (), test_named or ())):
        if named and test_named and one != other:
            raise ValueError(
                f"class {label} of {spec.name} is {one!r} in the training shards, but {other!r} in the test shards: "
                "both must number the same class names in the same order"
            )
    class_names = named or [str(label) for label in range(int(max(part.max() for part in labels)) + 1)]
    return Source(
        class_names=tuple(class_names),
        labels=np.concatenate(labels),
        parts=np.repeat(np.array([TRAIN, TEST], np.int8), [len(part) for part in labels]),
        read=lambda rows: together[rows][spec.image_column],
        describe=describe,
    )


def _labels(column: Any, start: int, describe: Callable[[int], str]) -> NDArray[np.int64]:
    """A column of pyarrow's as labels; `start` is the row of its first."""
    if column.null_count or not str(column.type).startswith(("int", "uint")):
        for row, label in enumerate(column.to_pylist(), start):
            if not _is_whole(label):
                raise ValueError(
                    f"{describe(row)} has the label {label!r}, where the number of a class is expected, from 0: "
                    "give all images of the shards one"
                )
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _is_whole(label: Any) -> bool:
    """Also of a text of digits and a float that is one."""
    try:
        return int(label) == float(label)
    except (TypeError, ValueError, OverflowError):
        return False


def open_imagefolder(
    root: Path, class_names: tuple[str, ...], files: list[tuple[int, int, Path]], scratch: Path
) -> Source:
    import datasets

    decode = datasets.Image().decode_example
    return Source(
        class_names=class_names,
        labels=np.array([label for _, label, _ in files], np.int64),
        parts=np.array([part for part, _, _ in files], np.int8),
        # As bytes: given a path, an image that cannot be decoded stays open.
        read=lambda rows: [decode({"path": None, "bytes": files[row][2].read_bytes()}) for row in rows],
        describe=lambda row: str(files[row][2]),
        names=[path.relative_to(root).as_posix() for _, _, path in files],
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
