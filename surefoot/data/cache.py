"""A folder of memory-mapped arrays that is either complete and checked, or built again."""

import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from torch import Tensor

from surefoot.core.files import remove_abandoned

logger = logging.getLogger("surefoot.data")

FORMAT = 3  # part of every key: raise it when what is written changes

_MIB = 1 << 20
# Up to here every byte is checked at every start: CRC-32 runs at 1 to 4 GB/s, and the pages are wanted soon
# anyway. A larger file is checked in 64 blocks, its ends among them: reading all of it would take too long.
_FULL_CHECK_BYTES = 1024 * _MIB
_SAMPLED_BLOCKS = 64
_ABANDONED_SECONDS = 24 * 3600  # a build that is a day old is not running any more


class Contents(NamedTuple):
    """One cached set: all images, training first, then validation, then test, and their labels."""

    images: Tensor
    labels: Tensor
    sizes: tuple[int, int, int]
    class_names: tuple[str, ...]
    order: str | None
    """A hash of the images' file names in this order, of an image folder."""


class _Damaged(Exception):
    """Says what is wrong with a cache folder."""


def cache_root(cache_dir: str | Path | None) -> Path:
    """The given folder, else `$SUREFOOT_CACHE`, else the user's cache folder.

    Raises:
        OSError: the user has no home, as in some containers.
    """
    try:
        chosen = (
            cache_dir or os.environ.get("SUREFOOT_CACHE") or platformdirs.user_cache_dir("surefoot", appauthor=False)
        )
        return Path(chosen).expanduser()
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise OSError(
            f"the user's cache folder is not to be found ({reason}): name one with cache_dir or $SUREFOOT_CACHE"
        ) from error


def open_or_build(root: Path, entry: str, build: Callable[[Path], dict[str, Any]]) -> Contents:
    """The cached set `root/entry`, first built if it is absent or damaged.

    `build` writes `images.npy` and `labels.npy` into the folder it is given and returns `sizes`, `class_names` and
    `order`. That folder lies beside the final one and takes its place in one step: an interrupted
    build leaves nothing that looks finished, and of two processes that build at once the first one wins.
    """
    final = root / entry
    if final.exists():
        try:
            return _read(final)
        except _Damaged as damage:
            logger.warning("the cached data set %s is damaged (%s): building it again", final, str(damage))
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_abandoned(root, ".building-*", _ABANDONED_SECONDS)
        # Short names, here and below: datasets writes the whole path twice, and Windows has 260 characters.
        staging = root / f".building-{secrets.token_hex(4)}"
        staging.mkdir()
    except OSError as error:
        raise OSError(
            f"the cache folder {root} cannot be written ({error.strerror}): "
            "name another one with cache_dir or $SUREFOOT_CACHE"
        ) from error
    try:
        described = build(staging)
        _seal(staging, described)
        _install(staging, final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    try:
        return _read(final)
    except _Damaged as damage:
        raise OSError(
            f"the cache folder {root} does not keep what is written to it ({damage}): "
            "name another one with cache_dir or $SUREFOOT_CACHE"
        ) from damage


def _read(folder: Path) -> Contents:
    try:
        wrapped = json.loads((folder / "manifest.json").read_bytes())
        manifest = wrapped["manifest"]
        intact = wrapped["crc32"] == _crc32_of_json(manifest)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _Damaged("its manifest cannot be read") from error
    if not intact:
        raise _Damaged("its manifest was changed")
    arrays: dict[str, Any] = {}
    for name, facts in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != facts["bytes"]:
                raise _Damaged(f"{name} has {size} bytes instead of {facts['bytes']}")
            if _crc32_of_file(path) != facts["crc32"]:
                raise _Damaged(f"the checksum of {name} differs")
            # "c": writable in memory, never written back. torch refuses to be silent about read-only arrays.
            arrays[name] = np.load(path, mmap_mode="c")
        except (OSError, ValueError) as error:
            raise _Damaged(f"{name} cannot be read") from error
        if list(arrays[name].shape) != facts["shape"] or str(arrays[name].dtype) != facts["dtype"]:
            raise _Damaged(f"{name} is not the array it was")
    train, validation, test = manifest["sizes"]
    return Contents(
        torch.from_numpy(arrays["images.npy"]),
        torch.from_numpy(arrays["labels.npy"]),
        (train, validation, test),
        tuple(manifest["class_names"]),
        manifest["order"],
    )


def _seal(folder: Path, described: dict[str, Any]) -> None:
    """Everything on the disk, then the manifest, which says that it is."""
    files = {}
    for name in ("images.npy", "labels.npy"):
        path = folder / name
        _fsync(path)
        array = np.load(path, mmap_mode="r")
        files[name] = {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "bytes": path.stat().st_size,
            "crc32": _crc32_of_file(path),
        }
    manifest = {"format": FORMAT, "files": files, **described}
    wrapped = {"manifest": manifest, "crc32": _crc32_of_json(manifest)}
    path = folder / "manifest.json"
    path.write_text(json.dumps(wrapped, indent=1))
    _fsync(path)
    _fsync(folder)


def _install(staging: Path, final: Path) -> None:
    while True:
        try:
            os.rename(staging, final)
        except OSError:
            if not final.exists():
                raise
        else:
            _fsync(final.parent)
            return
        with suppress(_Damaged):
            _read(final)
            return  # another process was faster
        # Aside by a rename too: a process that has the old one mapped keeps it. (Windows moves nothing that is mapped:
        # what _read had mapped when it failed is let go by now.)
        aside = final.with_name(f".building-{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):  # another process did
            os.rename(final, aside)
        if aside.is_file():
            aside.unlink()
        shutil.rmtree(aside, ignore_errors=True)


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc32_of_json(value: object) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _crc32_of_file(path: Path) -> int:
    size = path.stat().st_size
    blocks = -(-size // _MIB)
    if size > _FULL_CHECK_BYTES:
        numbers = [round(i * (blocks - 1) / (_SAMPLED_BLOCKS - 1)) for i in range(_SAMPLED_BLOCKS)]
    else:
        numbers = list(range(blocks))
    checksum = 0
    buffer = bytearray(_MIB)
    with path.open("rb", buffering=0) as file:
        for number in numbers:
            file.seek(number * _MIB)
            read = file.readinto(buffer) or 0
            checksum = zlib.crc32(memoryview(buffer)[:read], checksum)
    return checksum
