"""Data sets: the right pixels in the right split, from a cache that is whole or built again, offline."""

from __future__ import annotations

import ast
import errno
import importlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from surefoot.data import DATASETS, Dataset, Split, load
from tests.as_windows import CAN_TELL, as_windows

# The package's name "load" is the function.
load_module = importlib.import_module("surefoot.data.load")
cache_module = importlib.import_module("surefoot.data.cache")
build_module = importlib.import_module("surefoot.data.build")

SHARED = Path(__file__).parents[2] / "shared" / "data"
Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SUREFOOT_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, only what is cached can be loaded."""
    for module in ("datasets", "sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)


def random_images(count: int, *shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def hub_dataset(column: str, images: list[Image.Image], labels: list[int], names: list[str]) -> Any:
    import datasets

    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({column: images, "label": labels}, features=features)


def write_shard(path: Path, column: str, pixels: Pixels, labels: list[int], classes: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(image) for image in pixels]
    hub_dataset(column, images, labels, [str(i) for i in range(classes)]).to_parquet(path)


MNIST_PIXELS = random_images(90, 28, 28)
MNIST_LABELS = [i * 7 % 10 for i in range(90)]


@pytest.fixture(scope="session")
def mnist_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty training images in two shards and thirty test images."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (
        ("train-00000-of-00002", slice(0, 40)),
        ("train-00001-of-00002", slice(40, 60)),
        ("test-00000-of-00001", slice(60, 90)),
    ):
        write_shard(folder / "mnist" / f"{name}.parquet", "image", MNIST_PIXELS[rows], MNIST_LABELS[rows])
    return folder


def load_tiny_mnist(data_dir: Path | None, **settings: Any) -> Dataset:
    return load("mnist", data_dir, **({"validation_size": 20} | settings))


def places_of(images: Tensor, pixels: Pixels) -> list[int]:
    """Where each image stands in the source."""
    source = {image.tobytes(): place for place, image in enumerate(pixels)}
    return [source[image.tobytes()] for image in images.numpy()]


def same(one: Dataset, other: Dataset) -> bool:
    splits = zip((one.train, one.validation, one.test), (other.train, other.validation, other.test), strict=True)
    return one.class_names == other.class_names and all(
        a.images.equal(b.images) and a.labels.equal(b.labels) for a, b in splits
    )


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if not path.name.startswith("."))


def make_folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 16), seed: int = 0) -> None:
    for number, (class_name, count) in enumerate(counts.items()):
        pixels = random_images(count, size[1], size[0], 3, seed=seed * 100 + number)
        (root / class_name).mkdir(parents=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(root / class_name / f"{i:03}.png")


# What is loaded


def test_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load("digits")
    bunch = load_digits()
    expected = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    splits = (digits.train, digits.validation, digits.test)
    assert [len(split.labels) for split in splits] == [1197, 240, 360]
    for images, labels in splits:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (1, 8, 8)
        assert labels.dtype == torch.int64
        places = places_of(images[:, 0], expected)
        assert places == sorted(places)
        assert labels.tolist() == bunch.target[places].tolist()
        shares = np.bincount(labels.numpy()) / len(labels) - np.bincount(bunch.target) / len(bunch.target)
        assert float(np.abs(shares).max()) < 2 / len(labels)
    everything = torch.cat([split.images[:, 0] for split in splits])
    assert sorted(places_of(everything, expected)) == list(range(1797))
    assert (digits.in_channels, digits.image_size, digits.num_classes) == (1, 8, 10)
    assert repr(digits) == "Dataset('digits', train=1197, validation=240, test=360, 10 classes, 1x8x8)"


def test_parquet_pixel_by_pixel(mnist_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    mnist = load_tiny_mnist(mnist_shards)
    assert capsys.readouterr().out == ""
    assert torch.get_rng_state().equal(state)
    places = {
        part: places_of(split.images[:, 0], MNIST_PIXELS)
        for part, split in (("train", mnist.train), ("validation", mnist.validation), ("test", mnist.test))
    }
    assert sorted(places["train"] + places["validation"]) == list(range(60))
    assert places["test"] == list(range(60, 90))
    assert places["train"] == sorted(places["train"])
    assert mnist.train.labels.tolist() == [MNIST_LABELS[i] for i in places["train"]]
    assert mnist.validation.labels.bincount().tolist() == [2] * 10
    assert mnist.test.labels.tolist() == MNIST_LABELS[60:]
    assert mnist.class_names == tuple("0123456789")
    assert mnist.name == "mnist"


def test_colour_keeps_its_channels(tmp_path: Path) -> None:
    pixels = random_images(30, 32, 32, 3)
    labels = [7 * i % 10 for i in range(30)]
    write_shard(tmp_path / "cifar10" / "train-0.parquet", "img", pixels[:20], labels[:20])
    write_shard(tmp_path / "cifar10" / "test-0.parquet", "img", pixels[20:], labels[20:])
    cifar = load("cifar10", tmp_path, validation_size=10)
    assert cifar.test.images.numpy().transpose(0, 2, 3, 1).tobytes() == pixels[20:].tobytes()
    assert (cifar.in_channels, cifar.image_size) == (3, 32)


def test_the_split_is_fixed(mnist_shards: Path, tmp_path: Path) -> None:
    mnist = load_tiny_mnist(mnist_shards)
    torch.manual_seed(5)
    np.random.seed(5)
    again = load_tiny_mnist(mnist_shards, seed=5, cache_dir=tmp_path / "other")
    assert same(mnist, again)
    # Fixed across versions too: these are the first validation images of all future caches.
    assert places_of(mnist.validation.images[:, 0], MNIST_PIXELS)[:6] == [1, 2, 8, 14, 23, 26]


def test_validation_size(mnist_shards: Path) -> None:
    for size in (0, 1, 13, 50):
        mnist = load_tiny_mnist(mnist_shards, validation_size=size)
        assert (len(mnist.train.labels), len(mnist.validation.labels)) == (60 - size, size)
        counts = mnist.validation.labels.bincount(minlength=10)
        assert int(counts.max() - counts.min()) <= 1
    with pytest.raises(ValueError, match=r"51 validation images .* whose 10 classes keep one each: .* a smaller valid"):
        load_tiny_mnist(mnist_shards, validation_size=51)


def test_each_class_of_a_folder_keeps_an_image_to_train_on(tmp_path: Path, own_cache: Path) -> None:
    """A class's only image was held out, and accuracy measured of classes that nothing was trained on."""
    counts = {"a": 1, "b": 1, "c": 1, "d": 30}
    make_folder(tmp_path / "uneven", counts)
    uneven = load(f"imagefolder:{tmp_path / 'uneven'}", image_size=8, validation_size=7)
    assert set(uneven.train.labels.tolist()) == {0, 1, 2, 3}
    assert [len(split.labels) for split in (uneven.train, uneven.validation, uneven.test)] == [23, 7, 3]
    make_folder(tmp_path / "single", {f"{number:02}": 1 for number in range(20)})
    with pytest.raises(ValueError, match=r"2 test images .* whose 20 classes keep one each: give more images"):
        load(f"imagefolder:{tmp_path / 'single'}", image_size=8)


@pytest.mark.parametrize("other", [(1, 8, 8), (3, 9, 9)])
def test_splits_of_different_shapes_are_refused(other: tuple[int, int, int]) -> None:
    labels = torch.arange(4) % 2
    one, two = (Split(torch.zeros(4, *shape, dtype=torch.uint8), labels) for shape in ((3, 8, 8), other))
    with pytest.raises(ValueError, match=r"different shapes \(train \[3, 8, 8\], validation .*give all the same"):
        Dataset("mine", one, two, one, num_classes=2, class_names=("a", "b"))
    assert repr(Dataset("mine", one, one, one, num_classes=2, class_names=("a", "b"))).endswith("2 classes, 3x8x8)")


def test_classes_are_chosen(mnist_shards: Path) -> None:
    mnist = load_tiny_mnist(mnist_shards, num_classes=3, validation_size=6)
    assert mnist.num_classes == 3
    assert list(mnist.class_names) == sorted(mnist.class_names)
    for split in (mnist.train, mnist.validation, mnist.test):
        assert set(split.labels.tolist()) == {0, 1, 2}
        names = [mnist.class_names[label] for label in split.labels.tolist()]
        assert names == [str(MNIST_LABELS[i]) for i in places_of(split.images[:, 0], MNIST_PIXELS)]
    assert same(mnist, load_tiny_mnist(mnist_shards, num_classes=3, validation_size=6, seed=9))
    assert len(load("digits", num_classes=5).validation.labels) == 120  # the default shrinks with the set


def test_image_size(mnist_shards: Path) -> None:
    mnist = load_tiny_mnist(mnist_shards, image_size=14)
    assert mnist.test.images.shape == (30, 1, 14, 14)
    expected = Image.fromarray(MNIST_PIXELS[60]).resize((14, 14), Image.Resampling.BILINEAR)
    assert mnist.test.images[0, 0].tolist() == np.asarray(expected).tolist()


def test_where_the_shards_may_lie(
    mnist_shards: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist = load_tiny_mnist(mnist_shards)
    monkeypatch.setenv("SUREFOOT_DATA", str(mnist_shards))
    assert same(mnist, load_tiny_mnist(None))
    monkeypatch.setenv("SUREFOOT_DATA", str(tmp_path / "nowhere"))
    assert same(mnist, load_tiny_mnist(mnist_shards / "mnist"))
    shutil.copytree(mnist_shards / "mnist", tmp_path / "copied")
    assert same(mnist, load_tiny_mnist(tmp_path / "copied"))
    (tmp_path / "copied" / "mnist").mkdir()  # with no shards in it, it hides none
    assert same(mnist, load_tiny_mnist(tmp_path / "copied"))
    assert len(entries(own_cache)) == 1  # by content, wherever it lies
    layout = "mnist/train-*.parquet and mnist/test-*.parquet with --data-dir (in Python data_dir) or $SUREFOOT_DATA"
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"nowhere does not exist: give the folder that holds {layout}")
    ):
        load("mnist")
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape(f"give the folder that holds {layout}, or neither")):
        load("mnist")
    assert load("digits").num_classes == 10  # needs no folder


# The hub


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", answer)
    monkeypatch.setattr("surefoot.data.sources.no_way_to_hub", lambda hub_id: None)


def test_tiny_imagenet_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"n{i:08}" for i in range(200)]
    pixels = random_images(600, 64, 64)
    asked = []

    def answer(hub_id: str, split: str) -> Any:
        asked.append((hub_id, split))
        rows = {"train": range(400), "valid": range(400, 600)}[split]
        # A few are grey, as in the original.
        images = [Image.fromarray(pixels[i]).convert("L" if i % 50 == 0 else "RGB") for i in rows]
        return hub_dataset("image", images, [i % 200 for i in rows], names)

    fake_hub(monkeypatch, answer)
    tiny = load("tiny-imagenet-100", validation_size=20)
    assert sorted(asked) == [("zh-plus/tiny-imagenet", "train"), ("zh-plus/tiny-imagenet", "valid")]
    assert [len(s.labels) for s in (tiny.train, tiny.validation, tiny.test)] == [180, 20, 100]
    assert tiny.num_classes == 100
    assert list(tiny.class_names) == sorted(tiny.class_names)
    assert set(tiny.class_names) < set(names)
    assert tiny.train.images.shape[1:] == (3, 64, 64)
    assert tiny.test.images.equal(tiny.test.images[:, :1].expand(-1, 3, -1, -1))
    places = places_of(tiny.test.images[:, 0], pixels)
    assert [names[i % 200] for i in places] == [tiny.class_names[label] for label in tiny.test.labels]


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    def answer(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError("no route to host")

    fake_hub(monkeypatch, answer)
    with pytest.raises(ConnectionError, match=r"ylecun/mnist \(no route to host\): .*data_dir\) or \$SUREFOOT_DATA$"):
        load("mnist")
    assert list(own_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "why"),
    [("ConnectError", "no route"), ("ConnectionError", "no route"), ("HfHubHTTPError", None), ("ReadTimeout", None)],
)
def test_a_hub_to_which_no_connection_can_be_made_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, kind: str, why: str | None
) -> None:
    import datasets
    from huggingface_hub import HfApi

    offline: list[bool] = []

    def lost(*args: object, **kwargs: object) -> NoReturn:
        raise type(kind, (Exception,), {})("no route")

    def answer(*args: object, **kwargs: object) -> NoReturn:
        offline.append(datasets.config.HF_HUB_OFFLINE)
        raise RuntimeError("tried in vain")

    monkeypatch.setattr(HfApi, "dataset_info", lost)
    monkeypatch.setattr(datasets, "load_dataset", answer)
    with pytest.raises(
        ConnectionError, match=rf"ylecun/mnist \({why or 'tried in vain'}\): give the folder that holds"
    ):
        load("mnist")
    assert (offline, datasets.config.HF_HUB_OFFLINE) == ([why is not None], False)


# The cache


def test_a_second_start_maps_the_cache(mnist_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_tiny_mnist(mnist_shards)
    forbid_decoding(monkeypatch)
    second = load_tiny_mnist(mnist_shards)
    assert same(first, second)
    if sys.platform == "linux":
        mapped = second.train.images.data_ptr()
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines if "images.npy" in line[-1]]
        assert any(start <= mapped < stop for start, stop in ranges)
    # One file, the splits behind each other, none of them copied.
    size = first.train.images[0].numel()
    assert second.validation.images.data_ptr() == second.train.images.data_ptr() + 40 * size
    assert second.test.images.data_ptr() == second.train.images.data_ptr() + 60 * size
    with pytest.raises(ModuleNotFoundError):
        load_tiny_mnist(mnist_shards, validation_size=19)


def test_starting_imports_no_library_that_decodes() -> None:
    files = list(Path(load_module.__file__ or "").parent.glob("*.py"))
    assert files
    for file in files:
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in statement.names]
                modules = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else names
                roots = {module.partition(".")[0] for module in modules}
                assert not roots & {"datasets", "sklearn", "pandas", "pyarrow", "PIL"}, file


def test_other_content_or_settings_are_another_entry(mnist_shards: Path, tmp_path: Path, own_cache: Path) -> None:
    load_tiny_mnist(mnist_shards)
    load_tiny_mnist(mnist_shards, validation_size=10)
    load_tiny_mnist(mnist_shards, image_size=7)
    load_tiny_mnist(mnist_shards, num_classes=9)
    assert len(entries(own_cache)) == 4
    shutil.copytree(mnist_shards / "mnist", tmp_path / "mnist")
    before = load_tiny_mnist(tmp_path)
    changed = random_images(30, 28, 28, seed=1)
    write_shard(tmp_path / "mnist" / "test-00000-of-00001.parquet", "image", changed, MNIST_LABELS[60:])
    after = load_tiny_mnist(tmp_path)
    assert len(entries(own_cache)) == 5
    assert after.train.images.equal(before.train.images)
    assert places_of(after.test.images[:, 0], changed) == list(range(30))


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def swap_two_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000:2000], content[2000:3000] = content[2000:3000], content[1000:2000]
    path.write_bytes(content)


def forge_names(path: Path) -> None:
    path.write_text(path.read_text().replace('"0"', '"O"'))


def empty(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.mkdir()


def make_a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.touch()


def copied(split: Split) -> Split:
    return Split(split.images.clone(), split.labels.clone())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "images truncated": lambda entry: truncate(entry / "images.npy"),
    "images gone": lambda entry: (entry / "images.npy").unlink(),
    "images empty": lambda entry: (entry / "images.npy").write_bytes(b""),
    "images grown": lambda entry: os.truncate(entry / "images.npy", 200_000),
    "bit flipped in the pixels": lambda entry: flip_a_bit(entry / "images.npy", -1),
    "bit flipped in the header": lambda entry: flip_a_bit(entry / "images.npy", 60),
    "pixels swapped": lambda entry: swap_two_bytes(entry / "images.npy"),
    "bit flipped in the labels": lambda entry: flip_a_bit(entry / "labels.npy", -8),
    "labels gone": lambda entry: (entry / "labels.npy").unlink(),
    "manifest gone": lambda entry: (entry / "manifest.json").unlink(),
    "manifest truncated": lambda entry: truncate(entry / "manifest.json"),
    "manifest of another kind": lambda entry: (entry / "manifest.json").write_text("[1]"),
    "manifest changed": lambda entry: forge_names(entry / "manifest.json"),
    "empty folder": empty,
    "a file": make_a_file,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(damage: str, own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    digits = load("digits")
    kept = replace(
        digits,
        train=copied(digits.train),
        validation=copied(digits.validation),
        test=copied(digits.test),
    )
    (entry,) = entries(own_cache)
    DAMAGES[damage](entry)
    with caplog.at_level(logging.WARNING, "surefoot.data"):
        again = load("digits")
    assert same(again, kept)
    assert [record.name for record in caplog.records] == ["surefoot.data"]
    assert "is damaged" in caplog.text
    assert "building it again" in caplog.text
    caplog.clear()
    assert same(load("digits"), kept)
    assert caplog.text == ""
    assert list(own_cache.iterdir()) == [entry]


def test_classes_and_images_are_in_the_same_order_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "set", {"Zebra": 12, "ant": 12})
    (tmp_path / "set" / "ant" / "003.png").rename(tmp_path / "set" / "ant" / "B.png")
    (tmp_path / "set" / "ant" / "004.png").rename(tmp_path / "set" / "ant" / "a1.png")
    here = load(f"imagefolder:{tmp_path / 'set'}", image_size=8)
    monkeypatch.setattr(PurePath, "__lt__", lambda one, other: str(one).lower() < str(other).lower())  # as paths there
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "there"))
    there = load(f"imagefolder:{tmp_path / 'set'}", image_size=8)
    assert there.class_names == ("Zebra", "ant")
    assert same(here, there)


def test_without_a_home_the_cache_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUREFOOT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", dict[int, Any]().__getitem__)  # a user that the system does not know
    with pytest.raises(OSError, match=r"cache folder is not to be found \(.*\): name one with cache_dir or \$SUREFOOT"):
        load("digits")


def test_paths_are_short_enough_for_windows(
    own_cache: Path, mnist_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    choose = build_module._choose_classes

    def looking(*args: Any) -> Any:
        (staging,) = own_cache.iterdir()
        # datasets repeats the path of its folder, root and all, in the name of a file
        lengths.extend(len(str(path)) - len(str(own_cache)) * str(path).count("cache") for path in staging.rglob("*"))
        return choose(*args)

    monkeypatch.setattr(build_module, "_choose_classes", looking)
    load_tiny_mnist(mnist_shards)
    assert max(lengths) + 2 * len(r"C:\Users\firstname.last\AppData\Local\surefoot\Cache") < 260


@pytest.mark.skipif(not CAN_TELL, reason="what is mapped is seen in /proc")
def test_nothing_is_moved_or_removed_that_is_still_mapped(
    own_cache: Path, mnist_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_windows(monkeypatch)
    load_tiny_mnist(mnist_shards)
    (entry,) = entries(own_cache)
    truncate(entry / "labels.npy")
    assert len(load_tiny_mnist(mnist_shards).test.labels) == 30
    assert list(own_cache.iterdir()) == [entry]


def test_a_large_file_is_checked_in_samples(
    own_cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_MIB", 256)
    monkeypatch.setattr(cache_module, "_FULL_CHECK_BYTES", 1024)
    load("digits")
    (entry,) = entries(own_cache)
    for position in (130, -1):
        caplog.clear()
        flip_a_bit(entry / "images.npy", position)
        load("digits")
        assert "the checksum of images.npy differs" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_leaves_nothing(
    error: type[BaseException], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> NoReturn:
        raise error

    with monkeypatch.context() as context:
        context.setattr(build_module, "_pixels", interrupt)
        with pytest.raises(error):
            load("digits")
    assert list(own_cache.iterdir()) == []
    with monkeypatch.context() as context:
        context.setattr(cache_module, "_install", interrupt)
        with pytest.raises(error):
            load("digits")
    assert list(own_cache.iterdir()) == []
    assert len(load("digits").train.labels) == 1197


def test_what_a_killed_build_left_is_ignored_and_removed_after_a_day(own_cache: Path) -> None:
    recent, old, going_on = (own_cache / f".building-digits-{number}" for number in (1, 2, 3))
    for folder in (recent, old, going_on):
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    for path in (old / "images.npy", old, going_on):
        os.utime(path, (yesterday, yesterday))
    load("digits")
    assert recent.exists()
    assert not old.exists()
    assert going_on.exists()  # its folder is old, but not what is in it


@pytest.mark.parametrize("damaged", [False, True])
def test_of_two_builds_at_once_the_first_one_wins(
    damaged: bool, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damaged:
        load("digits")
        truncate(entries(own_cache)[0] / "images.npy")
    build = load_module.build
    winners: list[Dataset] = []
    files: list[int] = []

    def overtaken(plan: Any, staging: Path) -> Any:
        described = build(plan, staging)
        monkeypatch.setattr(load_module, "build", build)
        winners.append(load("digits"))  # the other process, from its start to its end
        files.append((entries(own_cache)[0] / "images.npy").stat().st_ino)
        return described

    monkeypatch.setattr(load_module, "build", overtaken)
    digits = load("digits")
    assert same(digits, winners[0])
    (entry,) = own_cache.iterdir()
    assert (entry / "images.npy").stat().st_ino == files[0]


@pytest.mark.slow
def test_two_processes_at_once(own_cache: Path) -> None:
    code = "from surefoot.data import load; print(int(load('digits').train.images.sum()))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=120)[0] for process in processes}
    assert answers == {f"{int(load('digits').train.images.sum())}\n"}
    assert len(list(own_cache.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the platform cannot reserve room on a disk")
def test_a_full_disk(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"MiB in .*cache.*make room"):
        load("digits")
    assert list(own_cache.iterdir()) == []


def test_a_disk_that_is_full_before_the_shards_are_read_is_no_fault_of_theirs(
    mnist_shards: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def full(*_: object, **__: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets.Dataset, "from_parquet", full)
    words = rf"the cache in {re.escape(str(own_cache))} has no room for mnist \(.*No space left.*SUREFOOT_CACHE"
    with pytest.raises(OSError, match=words):
        load("mnist", data_dir=mnist_shards)
    assert list(own_cache.iterdir()) == []


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/cache cannot be written .*\$SUREFOOT_CACHE"):
        load("digits", cache_dir=tmp_path / "file" / "cache")


# Image folders


def fitted(path: Path, size: int) -> list[list[list[int]]]:
    image = Image.open(path).convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    cropped = image.crop((left, top, left + size, top + size))
    pixels: list[list[list[int]]] = np.asarray(cropped).transpose(2, 0, 1).tolist()
    return pixels


def test_an_image_folder(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    make_folder(root, {"cat": 20, "dog": 30, "eel": 10}, size=(20, 16))
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / "._000.png").write_text("nor this")
    pets = load(f"imagefolder:{root}", image_size=8)
    splits = (pets.train, pets.validation, pets.test)
    assert [split.labels.bincount().tolist() for split in splits] == [[16, 24, 8], [2, 3, 1], [2, 3, 1]]
    assert pets.class_names == ("cat", "dog", "eel")
    assert (pets.in_channels, pets.image_size) == (3, 8)
    expected = {
        np.array(fitted(path, 8), np.uint8).tobytes(): label
        for label, class_name in enumerate(pets.class_names)
        for path in (root / class_name).glob("[0-9]*.png")
    }
    for images, labels in splits:
        for image, label in zip(images.numpy(), labels.tolist(), strict=True):
            assert expected.pop(image.tobytes()) == label
    assert not expected  # every image in one split
    assert load(f"imagefolder:{root}").image_size == 64


def test_an_image_folder_follows_its_seed(tmp_path: Path) -> None:
    make_folder(tmp_path / "many", {f"c{i}": 4 for i in range(12)}, size=(8, 8))
    name = f"imagefolder:{tmp_path / 'many'}"
    one, again, other = (
        load(name, image_size=8, num_classes=5, seed=seed, cache_dir=tmp_path / str(i))
        for i, seed in enumerate((0, 0, 1))
    )
    assert same(one, again)
    assert one.class_names != other.class_names
    for chosen in (one, other):
        assert chosen.num_classes == 5
        assert list(chosen.class_names) == sorted(chosen.class_names)
        assert len(chosen.train.labels) + len(chosen.validation.labels) + len(chosen.test.labels) == 20
    drawn = [load(name, image_size=8, seed=seed).test.images for seed in (0, 1)]
    assert not drawn[0].equal(drawn[1])


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        ({"train": 10, "test": 3}, [18, 2, 6]),
        ({"train": 10, "val": 3}, [18, 2, 6]),
        ({"train": 10, "val": 4, "test": 3}, [20, 8, 6]),
        ({"Train": 10, "TEST": 3}, [18, 2, 6]),
        ({"training": 10, "testing": 3, "dev": 4}, [20, 8, 6]),
    ],
)
def test_an_image_folder_with_its_own_parts(tmp_path: Path, parts: dict[str, int], sizes: list[int]) -> None:
    for seed, (part, count) in enumerate(parts.items()):
        make_folder(tmp_path / "set" / part, {"a": count, "b": count}, size=(8, 8), seed=seed)
    loaded = load(f"imagefolder:{tmp_path / 'set'}", image_size=8)
    assert [len(s.labels) for s in (loaded.train, loaded.validation, loaded.test)] == sizes
    folder = tmp_path / "set" / next((part for part in parts if part.lower().startswith("test")), "val")
    files = {np.array(fitted(path, 8), np.uint8).tobytes(): path.parent.name for path in folder.glob("*/*.png")}
    found = [files.pop(image.tobytes()) for image in loaded.test.images.numpy()]
    assert not files
    assert found == [loaded.class_names[label] for label in loaded.test.labels.tolist()]


def test_the_first_images_of_a_folder_are_of_all_classes(tmp_path: Path) -> None:
    # Evaluations, the monitor and the tables take the first n of a split; files come class by class.
    make_folder(tmp_path / "set", {f"c{i}": 40 for i in range(5)}, size=(8, 8))
    name = f"imagefolder:{tmp_path / 'set'}"
    loaded = load(name, image_size=8)
    for split in (loaded.train, loaded.validation, loaded.test):
        assert set(split.labels[:20].tolist()) == set(range(5))
    assert same(loaded, load(name, image_size=8, cache_dir=tmp_path / "other"))


def test_hidden_folders_are_no_data(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", {"a": 5, "b": 5}, size=(8, 8))
    shutil.copytree(tmp_path / "set" / "a", tmp_path / "set" / "a" / ".ipynb_checkpoints")
    loaded = load(f"imagefolder:{tmp_path / 'set'}", image_size=8)
    assert sum(len(split.labels) for split in (loaded.train, loaded.validation, loaded.test)) == 10


@pytest.mark.parametrize("part", ["test", "Val"])
def test_a_part_without_training_images_is_not_taken_for_a_class(tmp_path: Path, part: str) -> None:
    for name in (part, "other"):
        make_folder(tmp_path / "set" / name, {"a": 3, "b": 3}, size=(8, 8))
    with pytest.raises(ValueError, match=f"has a folder {part} of class folders, but none named train"):
        load(f"imagefolder:{tmp_path / 'set'}", image_size=8)


def test_another_split_has_another_fingerprint(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", {"a": 20, "b": 20}, size=(8, 8))
    name = f"imagefolder:{tmp_path / 'set'}"
    before, again, drawn = load(name, image_size=8), load(name, image_size=12), load(name, image_size=8, seed=1)
    assert before.fingerprint() == again.fingerprint() != drawn.fingerprint()
    assert before.described() == "2 classes, 32 training, 4 validation and 4 test images"
    Image.fromarray(random_images(1, 8, 8, 3)[0]).save(tmp_path / "set" / "a" / "more.png")
    assert load(name, image_size=8).fingerprint() != before.fingerprint()


def test_a_renamed_file_gives_an_image_folder_another_fingerprint(tmp_path: Path) -> None:
    """The split is drawn over the sorted names: test images would have been trained on, with the same labels."""
    make_folder(tmp_path / "photos", {"cat": 30, "dog": 30})
    before = load(f"imagefolder:{tmp_path / 'photos'}")
    last = sorted((tmp_path / "photos" / "cat").iterdir())[-1]
    last.rename(last.with_name("!first.png"))
    after = load(f"imagefolder:{tmp_path / 'photos'}")
    assert all(
        torch.equal(one.labels, other.labels) for one, other in zip(splits_of(before), splits_of(after), strict=True)
    )
    assert after.fingerprint() != before.fingerprint()
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert load(f"imagefolder:{tmp_path / 'moved'}").fingerprint() == after.fingerprint()


def splits_of(dataset: Dataset) -> list[Split]:
    return [dataset.train, dataset.validation, dataset.test]


def test_links_to_folders_are_followed_but_not_around(tmp_path: Path) -> None:
    make_folder(tmp_path / "photos", {"cat": 30, "dog": 30})
    make_folder(tmp_path / "more", {"cats": 10})
    (tmp_path / "photos" / "cat" / "linked").symlink_to(tmp_path / "more" / "cats")
    (tmp_path / "photos" / "cat" / "back").symlink_to(tmp_path / "photos" / "cat")
    assert sum(len(split.labels) for split in splits_of(load(f"imagefolder:{tmp_path / 'photos'}"))) == 70


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make_folder(tmp_path / "traffic", {"car": 10, "train": 10})
    assert load(f"imagefolder:{tmp_path / 'traffic'}", image_size=8).class_names == ("car", "train")


def test_images_of_any_mode(tmp_path: Path) -> None:
    grey = random_images(1, 8, 8)[0]
    rotated = Image.Exif()
    rotated[ExifTags.Base.Orientation] = 3  # upside down
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "0-grey.png": (Image.fromarray(grey), {}),
        "1-grey-alpha.png": (Image.fromarray(np.stack([grey, grey], 2)), {}),
        "2-colour-alpha.png": (Image.fromarray(np.stack([grey] * 4, 2)), {}),
        "3-palette.png": (Image.fromarray(grey).convert("P"), {}),
        "4-palette-transparent.png": (Image.fromarray(grey).convert("P"), {"transparency": b"\0\x80"}),
        "5-sixteen-bits.png": (Image.fromarray(grey.astype(np.uint16) * 256 + 255), {}),
        "6-turned.png": (Image.fromarray(grey[::-1, ::-1].copy()), {"exif": rotated}),
        "7-upper.TIFF": (Image.fromarray(grey), {}),
        "8-black-and-white.png": (Image.fromarray(grey > 127), {}),
    }
    for class_name in ("test/a", "train/a", "test/b", "train/b"):
        (tmp_path / class_name).mkdir(parents=True)
        for name, (image, options) in files.items():
            image.save(tmp_path / class_name / name, **options)
    loaded = load(f"imagefolder:{tmp_path}", image_size=8, validation_size=2)
    expected = np.broadcast_to(grey, (9, 3, 8, 8)).copy()
    expected[8] = (grey > 127) * 255
    first_class = loaded.test.images[loaded.test.labels == 0].tolist()
    assert sorted(first_class) == sorted(expected.tolist())


def test_whole_numbers_that_are_clearly_of_16_bits(tmp_path: Path) -> None:
    deep = np.full((8, 8), 90 * 256 + 255)
    dark = b"P5\n8 8\n65535\n" + np.full((8, 8), 200, ">u2").tobytes()  # black, and known to be: its header says so
    for class_name in "ab":
        (tmp_path / class_name).mkdir()
        for i in range(4):
            Image.fromarray(deep.astype(np.int32)).save(tmp_path / class_name / f"{i}.tiff")
            (tmp_path / class_name / f"{i}.pgm").write_bytes(dark)
    loaded = load(f"imagefolder:{tmp_path}", image_size=8)
    images = torch.cat([split.images for split in (loaded.train, loaded.validation, loaded.test)])
    assert sorted(images.flatten(1).amax(1).tolist()) == [0] * 8 + [90] * 8


def test_a_changed_image_folder_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "set", {"a": 5, "b": 5}, size=(8, 8))
    name = f"imagefolder:{tmp_path / 'set'}"
    first = load(name, image_size=8)
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "a" / "new.png")
    grown = load(name, image_size=8)
    assert len(grown.train.labels) == len(first.train.labels) + 1
    forbid_decoding(monkeypatch)
    assert same(load(name, image_size=8), grown)


def test_image_folders_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    # Same names, sizes and times, as an archive unpacks them: neither stands for the other.
    def fill(root: Path, grey: int) -> None:
        for path in (root / name / f"{i}.bmp" for name in "ab" for i in range(5)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (grey,) * 3).save(path)
            os.utime(path, (1e9, 1e9))

    def greys(root: Path) -> set[int]:
        return set(load(f"imagefolder:{root}", image_size=8).train.images.flatten().tolist())

    one, other = tmp_path / "one", tmp_path / "other"
    fill(one, 10)
    fill(other, 200)
    assert (greys(one), greys(other)) == ({10}, {200})
    if os.name != "nt":  # whose ctime is when the file was made
        fill(one, 90)
        assert greys(one) == {90}


# What is refused, and in which words


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "MNST"}, ValueError, r"unknown data set 'MNST': did you mean 'mnist'\?"),
        ({"name": "tiny-imagenet"}, ValueError, r"did you mean 'tiny-imagenet-100'\?"),
        ({"name": "zzz"}, ValueError, r"unknown data set 'zzz': known are digits, mnist, .*imagefolder:PATH"),
        ({"name": "imagefolder:"}, ValueError, "write imagefolder:PATH"),
        ({"name": "imagefolder:/no/such"}, FileNotFoundError, "the image folder /no/such does not exist"),
        (
            {"name": "cifar10", "data_dir": "/no/such"},
            FileNotFoundError,
            "the data folder /no/such does not exist",
        ),
        (
            {"name": "digits", "validation_size": -1},
            ValueError,
            "validation_size is -1; it must be a whole number",
        ),
        (
            {"name": "digits", "validation_size": 1437},
            ValueError,
            "1437 validation images .* 1437 training images",
        ),
        ({"name": "digits", "image_size": 0}, ValueError, "image_size is 0; it must be a whole number of at least 1"),
        ({"name": "digits", "num_classes": 1}, ValueError, "num_classes is 1; it must be a whole number of at least 2"),
        (
            {"name": "digits", "num_classes": 11},
            ValueError,
            "digits has 10 classes, but num_classes asks for 11",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], words: str, own_cache: Path) -> None:
    with pytest.raises(error, match=words) as caught:
        load(**arguments)
    assert "\n" not in str(caught.value)
    assert not own_cache.exists() or list(own_cache.iterdir()) == []


IMAGES, LABELS = torch.zeros(30, 1, 8, 8, dtype=torch.uint8), torch.arange(30) % 3
FINE = Split(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"train": (IMAGES, LABELS)}, TypeError, r"train is an object of type tuple; give Split\(images, labels\)"),
        ({"test": None}, TypeError, r"test is an object of type NoneType; .* Split\(images\[:0\], labels\[:0\]\)"),
        ({"test": Split(IMAGES.float(), LABELS)}, ValueError, r"test.images must be uint8 .*, got torch.float32"),
        ({"train": Split(IMAGES[:, 0], LABELS)}, ValueError, r"train.images must be .*, got .* \(30, 8, 8\)"),
        (
            {"train": Split(IMAGES.permute(0, 2, 3, 1), LABELS)},
            ValueError,
            r"train.images .* give .*permute\(0, 3, 1, 2\)",
        ),
        ({"train": Split(IMAGES.numpy(), LABELS)}, TypeError, "train.images are an object of type ndarray"),  # type: ignore[arg-type]
        ({"validation": Split(IMAGES, LABELS.int())}, ValueError, "validation.labels must be int64"),
        ({"validation": Split(IMAGES, LABELS[1:])}, ValueError, "validation has 30 images and 29 labels"),
        ({"class_names": ("a", "b")}, ValueError, "class_names has 2 names, but num_classes is 3; give one a class"),
        ({"class_names": tuple("abcd")}, ValueError, "class_names has 4 names, but num_classes is 3"),
        ({"class_names": "abc"}, TypeError, "class_names is 'abc'; give a tuple of one name a class"),
        ({"num_classes": 3.0}, ValueError, "num_classes is 3.0; it must be a whole number of at least 2"),
    ],
)
def test_wrong_data_of_ones_own(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    right: dict[str, Any] = {
        "train": FINE,
        "validation": FINE,
        "test": FINE,
        "num_classes": 3,
        "class_names": (*"abc",),
    }
    assert Dataset("mine", **right).num_classes == 3
    with pytest.raises(error, match=words) as caught:
        Dataset("mine", **(right | fields))
    assert "\n" not in str(caught.value)


def test_wrong_shards(mnist_shards: Path, tmp_path: Path, own_cache: Path) -> None:
    def refused(name: str, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words) as caught:
            load(name, tmp_path, validation_size=10)
        assert "\n" not in str(caught.value)
        assert not own_cache.exists() or list(own_cache.iterdir()) == []

    folder = tmp_path / "mnist"
    refused("mnist", FileNotFoundError, r"no train-\*.parquet of mnist in .*download")
    shutil.copytree(mnist_shards / "mnist", folder)
    (folder / "train-00001-of-00002.parquet").rename(folder / "later")
    refused("mnist", FileNotFoundError, "has 1 of the 2 train shards of mnist: add the missing ones")
    # As an earlier version of the hub's library named them.
    hashed = (folder / "train-00000-of-00002.parquet").rename(folder / "train-00000-of-00002-1359597a978bc4fa.parquet")
    refused("mnist", FileNotFoundError, "has 1 of the 2 train shards of mnist: add the missing ones")
    for name in ("train-00000-of-00002", "train-00001-of-00002"):
        shutil.copy(hashed, folder / f"{name}.parquet")
    refused("mnist", ValueError, "has 3 train shards of mnist, but their names say 2: remove those that do not belong")
    hashed.unlink()
    (folder / "train-00001-of-00002.parquet").write_bytes(b"PAR1 and then nothing")
    refused("mnist", ValueError, r"the parquet shards of mnist in .* cannot be read \(.*checksums")
    (folder / "later").rename(folder / "train-00001-of-00002.parquet")
    assert len(load_tiny_mnist(tmp_path).train.labels) == 40
    shutil.rmtree(own_cache)

    shutil.copytree(folder, tmp_path / "cifar10")
    refused("cifar10", ValueError, "cifar10 needs the columns 'img' and 'label', but the shards have image, label")
    shutil.copytree(folder, tmp_path / "tiny-imagenet-100")
    refused("tiny-imagenet-100", ValueError, "has 10 classes here, but 100 are asked for")
    test = folder / "test-00000-of-00001.parquet"
    write_shard(test, "image", random_images(30, 28, 27), MNIST_LABELS[60:])
    refused("mnist", ValueError, "image 0 of mnist's test images has 27x28 pixels, but those of mnist have 28x28")
    write_shard(test, "image", MNIST_PIXELS[60:], [-1] * 30)
    refused("mnist", ValueError, "mnist has 10 classes, but an image with the label -1")


def test_shards_that_call_their_images_bytes_alone(mnist_shards: Path, tmp_path: Path) -> None:
    """As writers other than datasets leave them."""
    import datasets

    for shard in (mnist_shards / "mnist").iterdir():
        bare = datasets.Dataset.from_parquet(str(shard), cache_dir=str(tmp_path / "scratch"))
        bare = bare.cast_column("image", datasets.Image(decode=False)).with_format("arrow")
        (tmp_path / "mnist").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(bare[:].replace_schema_metadata(None), tmp_path / "mnist" / shard.name)
    assert same(load_tiny_mnist(tmp_path), load_tiny_mnist(mnist_shards))


def test_shards_of_sorted_pieces_are_shuffled(tmp_path: Path) -> None:
    """Else the first validation images, which stand for all, are of few classes."""
    labels = [*range(10)] * 10
    for number in range(2):
        path = tmp_path / "mnist" / f"train-0000{number}-of-00002.parquet"
        write_shard(path, "image", random_images(100, 28, 28, seed=number), sorted(labels))
    write_shard(tmp_path / "mnist" / "test-00000-of-00001.parquet", "image", random_images(100, 28, 28), labels)
    digits = load("mnist", tmp_path, validation_size=100)
    assert len(set(digits.validation.labels[:20].tolist())) > 5
    assert digits.test.labels.tolist() == labels


@pytest.mark.parametrize(
    ("kind", "labels", "words"),
    [
        ("string", ["3"] * 29 + ["cat"], "image 29 of mnist's test images has the label 'cat'"),
        ("int64", [3] * 5 + [None] * 25, "image 5 of mnist's test images has the label None"),
        ("float64", [3.0] * 7 + [3.5] * 23, "image 7 of mnist's test images has the label 3.5"),
    ],
)
def test_labels_that_are_no_whole_numbers(
    mnist_shards: Path, tmp_path: Path, kind: str, labels: list[object], words: str
) -> None:
    import datasets

    shutil.copytree(mnist_shards / "mnist", tmp_path / "mnist")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    columns = {"image": [Image.fromarray(image) for image in MNIST_PIXELS[60:]], "label": labels}
    shard = tmp_path / "mnist" / "test-00000-of-00001.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(shard)
    with pytest.raises(ValueError, match=f"{words}, where the number of a class is expected, from 0: ") as caught:
        load_tiny_mnist(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_null_in_place_of_an_image(mnist_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(mnist_shards / "mnist", tmp_path / "mnist")
    images: list[Any] = [Image.fromarray(image) for image in MNIST_PIXELS[60:]]
    images[4] = None
    shard = tmp_path / "mnist" / "test-00000-of-00001.parquet"
    hub_dataset("image", images, MNIST_LABELS[60:], [*"0123456789"]).to_parquet(shard)
    with pytest.raises(
        ValueError, match="image 4 of mnist's test images is null, where an image is expected: "
    ) as told:
        load_tiny_mnist(tmp_path)
    assert "\n" not in str(told.value)


def test_parts_that_number_their_classes_differently(mnist_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(mnist_shards / "mnist", tmp_path / "mnist")
    images = [Image.fromarray(image) for image in MNIST_PIXELS[60:]]
    shard = tmp_path / "mnist" / "test-00000-of-00001.parquet"
    hub_dataset("image", images, MNIST_LABELS[60:], [*"0132456789"]).to_parquet(shard)
    words = "class 2 of mnist is '2' in the training shards, but '3' in the test shards: .* the same class names"
    with pytest.raises(ValueError, match=words) as told:
        load_tiny_mnist(tmp_path)
    assert "\n" not in str(told.value)
    hub_dataset("image", images, MNIST_LABELS[60:], [*"0123456789", "10"]).to_parquet(shard)
    with pytest.raises(ValueError, match="class 10 of mnist is None in the training shards, but '10' in the test"):
        load_tiny_mnist(tmp_path)


def test_wrong_image_folders(tmp_path: Path, own_cache: Path) -> None:
    root = tmp_path / "set"

    def refused(words: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            load(f"imagefolder:{root}", image_size=8, **settings)
        assert "\n" not in str(caught.value)
        assert not own_cache.exists() or list(own_cache.iterdir()) == []

    root.mkdir()
    refused("has 0 class folders: at least 2 are needed")
    make_folder(root, {"a": 4, "b": 4})
    refused("has 2 class folders, but num_classes asks for 3", num_classes=3)
    refused("7 validation images cannot be held out", validation_size=7)
    (root / "c").mkdir()
    refused("the class folder .*/c has no images: add some or remove the folder")
    (root / "c" / "bad.png").write_bytes(b"no png")
    refused(r"set/c/bad.png cannot be decoded \(.*\): replace or remove it")
    content = (root / "a" / "000.png").read_bytes()
    (root / "c" / "bad.png").write_bytes(content[: len(content) // 2])
    refused(r"set/c/bad.png cannot be decoded \(.*truncated.*\): replace or remove it")

    (root / "c" / "bad.png").unlink()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(root / "c" / "bad.tiff")
    refused("set/c/bad.tiff has floating-point pixels")
    for pixels, span in (([0, 200], "0 to 200"), ([-1, 4000], "-1 to 4000"), ([0, 65536], "0 to 65536")):
        Image.fromarray(np.array([pixels] * 2, np.int32)).save(root / "c" / "bad.tiff")
        refused(f"set/c/bad.tiff has 32-bit pixels from {span}, whose range is not known: save it with 8 or 16 bits")

    shutil.rmtree(root)
    make_folder(root / "train", {"a": 4, "b": 4})
    make_folder(root / "test", {"a": 4, "c": 4})
    refused("must have the same class folders, but differ in b, c")
    (root / "test" / "c").rename(root / "test" / "b")
    make_folder(root / "val", {"a": 4, "b": 4})
    refused("asks for 3 images, but the folder has its own validation split of 8", validation_size=3)


# The real sets


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "sizes", "mean"),
    [
        ("mnist", [50_000, 10_000, 10_000], 0.1307),
        ("cifar10", [40_000, 10_000, 10_000], 0.4734),
        ("tiny-imagenet-100", [45_000, 5_000, 5_000], None),
    ],
)
def test_the_real_sets(name: str, sizes: list[int], mean: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(name, SHARED)
    forbid_decoding(monkeypatch)
    started = time.process_time()  # a busy machine is no fault
    real = load(name, SHARED)
    assert time.process_time() - started < 1
    assert same(first, real)
    spec = DATASETS[name]
    splits = (real.train, real.validation, real.test)
    assert [len(split.labels) for split in splits] == sizes
    assert (real.in_channels, real.image_size) == (spec.in_channels, spec.image_size)
    assert real.num_classes == len(real.class_names) == spec.num_classes
    known = torch.cat([real.train.labels, real.validation.labels]).bincount().tolist()
    if name == "mnist":
        assert known == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert real.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:
        assert {*known} == {(sizes[0] + sizes[1]) // spec.num_classes}
        assert {*real.test.labels.bincount().tolist()} == {sizes[2] // spec.num_classes}
    if mean is not None:
        pixels = torch.cat([real.train.images, real.validation.images])
        assert float(pixels.double().mean() / 255) == pytest.approx(mean, abs=1e-4)
