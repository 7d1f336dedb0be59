"""Batches: every example once, in an order and with an augmentation that (seed, epoch) alone decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surefoot.data import Augmentation, Batches, Split, horizontal_flip, pad_crop


def make_split(count: int = 37, channels: int = 3, size: int = 8) -> Split:
    """Random images whose label is their number."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count))


def collect(batches: Batches, epoch: int) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*batches.epoch(epoch), strict=True)
    return torch.cat(inputs), torch.cat(labels)


def pad_crop_slowly(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    corners = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=generator)
    result = torch.zeros_like(images)
    _, _, height, width = images.shape
    for i, image in enumerate(images):
        top, left = int(corners[0, i]) - padding, int(corners[1, i]) - padding
        for row in range(height):
            for column in range(width):
                if 0 <= row + top < height and 0 <= column + left < width:
                    result[i, :, row, column] = image[:, row + top, column + left]
    return result


def flip_slowly(images: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(len(images), generator=generator)
    return torch.stack([i.flip(2) if d < 0.5 else i for i, d in zip(images, drawn, strict=True)])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 10, 37, 50])
def test_every_example_once(shuffle: bool, batch_size: int) -> None:
    split = make_split()
    batches = Batches(split, batch_size, shuffle=shuffle)
    for epoch in range(3):
        inputs, labels = collect(batches, epoch)
        assert labels.sort().values.equal(split.labels)
        assert inputs.mul(255).round().to(torch.uint8).equal(split.images[labels])
        if not shuffle:
            assert labels.equal(split.labels)
    assert len(batches) == len(list(batches)) == -(-37 // batch_size)


def test_drop_last_leaves_out_only_a_smaller_batch() -> None:
    assert [len(y) for _, y in Batches(make_split(37), 10, drop_last=True)] == [10, 10, 10]
    assert [len(y) for _, y in Batches(make_split(40), 10, drop_last=True)] == [10] * 4
    assert len(Batches(make_split(9), 10, drop_last=True)) == 0


def test_dtype_range_and_memory_format() -> None:
    images = torch.tensor([0, 1, 254, 255], dtype=torch.uint8).reshape(1, 1, 2, 2).expand(6, 3, 2, 2)
    split = Split(images, torch.zeros(6, dtype=torch.int64))
    for channels_last in (False, True):
        for inputs, labels in Batches(split, 4, shuffle=True, channels_last=channels_last):
            assert inputs.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert inputs[0, 0].flatten().tolist() == pytest.approx([0, 1 / 255, 254 / 255, 1])
            assert float(inputs.max()) == 1
            wanted = torch.channels_last if channels_last else torch.contiguous_format
            assert inputs.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_seed_and_epoch_alone_decide(augment: Augmentation) -> None:
    split = make_split()

    def batches(seed: int = 0) -> Batches:
        return Batches(split, 8, shuffle=True, seed=seed, augment=augment)

    running = batches()
    for epoch in range(3):
        collect(running, epoch)
    inputs, labels = collect(running, 3)
    torch.manual_seed(123)  # a resumed run has another history
    resumed_inputs, resumed_labels = collect(batches(), 3)
    assert resumed_inputs.equal(inputs)
    assert resumed_labels.equal(labels)
    assert not collect(batches(), 4)[1].equal(labels)
    assert not collect(batches(seed=1), 3)[1].equal(labels)
    assert not collect(batches(seed=1), 2)[1].equal(labels)  # no seed + epoch


def test_augmentation_differs_between_epochs_and_not_the_order() -> None:
    batches = Batches(make_split(), 8, augment="crop-flip")
    first, second = collect(batches, 0), collect(batches, 1)
    assert first[1].equal(second[1])
    assert not first[0].equal(second[0])


def test_epochs_can_be_read_side_by_side() -> None:
    batches = Batches(make_split(), 8, shuffle=True, augment="crop-flip")
    pairs = list(zip(batches.epoch(5), batches.epoch(5), strict=True))
    assert all(one[0].equal(other[0]) and one[1].equal(other[1]) for one, other in pairs)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    state = torch.get_rng_state()
    batches = Batches(make_split(), 8, shuffle=True, augment="crop-flip")
    collect(batches, 0)
    assert torch.get_rng_state().equal(state)


def test_changing_a_batch_does_not_change_the_split() -> None:
    split = make_split()
    before = Split(split.images.clone(), split.labels.clone())
    batches = Batches(split, 8)
    for inputs, labels in batches:
        inputs.zero_()
        labels.zero_()
    assert split.images.equal(before.images)
    assert split.labels.equal(before.labels)


def test_a_mapped_split_stays_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", make_split().images.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    batches = Batches(Split(mapped[5:], torch.arange(32)), 8, shuffle=True)
    assert batches._images.data_ptr() == mapped[5:].data_ptr()
    inputs, labels = collect(batches, 0)
    assert inputs.mul(255).round().to(torch.uint8).equal(mapped[5:][labels])


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_augmentations_equal_a_loop_over_examples(
    count: int, channels: int, height: int, width: int, padding: int, seed: int
) -> None:
    shape = (count, channels, height, width)
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=seeded(seed))
    before = images.clone()
    assert pad_crop(images, seeded(seed), padding).equal(pad_crop_slowly(images, seeded(seed), padding))
    assert horizontal_flip(images, seeded(seed)).equal(flip_slowly(images, seeded(seed)))
    assert images.equal(before)


def test_crop_flip_augments_every_batch_anew() -> None:
    split = make_split(16)
    batches = Batches(split, 8, augment="crop-flip", seed=3)
    generator = batches._generator("augment", 2)
    expected = [
        flip_slowly(pad_crop_slowly(images, generator, 4), generator) for images in (split.images[:8], split.images[8:])
    ]
    inputs, _ = collect(batches, 2)
    assert inputs.equal(torch.cat(expected).float() / 255)


def test_about_half_are_flipped_and_all_places_are_cut() -> None:
    rising = torch.arange(3).expand(2000, 1, 1, 3)
    flipped = horizontal_flip(rising, seeded(0))[:, 0, 0, 0] == 2
    assert 0.45 < float(flipped.float().mean()) < 0.55
    assert not horizontal_flip(rising, seeded(0), probability=0.0).ne(rising).any()

    point = torch.zeros(4000, 1, 9, 9)
    point[:, :, 4, 4] = 1
    places = pad_crop(point, seeded(0)).sum(dim=(0, 1))
    assert int(places.sum()) == 4000  # the centre is never pushed out
    assert 20 < int(places.min()) <= int(places.max()) < 85  # 81 places, 49 each on average


def test_wrong_splits_and_settings_are_refused() -> None:
    images, labels = make_split()
    for split, words in (
        (Split(images.float(), labels), "uint8"),
        (Split(images[0], labels), "uint8"),
        (Split(images, labels.int()), "int64"),
        (Split(images, labels[:, None]), "int64"),
        (Split(images, labels[1:]), "37 images and 36 labels"),
    ):
        with pytest.raises(ValueError, match=words):
            Batches(split, 8)
    with pytest.raises(TypeError, match="images are an object of type ndarray; give a tensor"):
        Batches(Split(images.numpy(), labels), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size is 0; it must be a whole number of at least 1"):
        Batches(make_split(), 0)
    with pytest.raises(ValueError, match="augment must be one of"):
        Batches(make_split(), 8, augment="rotate")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[batch, channels, height, width\]"):
        pad_crop(images[0], seeded(0))
    with pytest.raises(ValueError, match="padding is -1; it must be a whole number of at least 0"):
        pad_crop(images, seeded(0), padding=-1)
    with pytest.raises(ValueError, match="probability must lie in"):
        horizontal_flip(images, seeded(0), probability=1.5)


@pytest.mark.gpu
def test_the_gpu_sees_the_same_batches() -> None:
    split = make_split()
    same = {"shuffle": True, "augment": "crop-flip"}
    here = Batches(split, 8, **same)  # type: ignore[arg-type]
    there = Batches(split, 8, device="cuda", **same)  # type: ignore[arg-type]
    for (inputs, labels), (gpu_inputs, gpu_labels) in zip(here.epoch(1), there.epoch(1), strict=True):
        assert gpu_inputs.is_cuda
        assert gpu_labels.is_cuda
        assert gpu_labels.cpu().equal(labels)
        torch.testing.assert_close(gpu_inputs.cpu(), inputs, rtol=0, atol=1e-7)
