"""Training-time augmentation, a whole batch at a time, on the device the batch is on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from surefoot.core.limits import check_count


def _check_images(images: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must be [batch, channels, height, width], got shape {tuple(images.shape)}")


def _beside(images: Tensor, drawn: Tensor) -> Tensor:
    # CUDA stages pageable memory before it returns, so that not waiting is safe there: the queue stays full.
    return drawn.to(images.device, non_blocking=images.is_cuda)


def pad_crop(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image shifted by up to `padding` pixels either way in both directions, zeros moving in.

    The same as padding with zeros on all sides and cutting a window of the old size at a random place; all
    `(2 padding + 1)²` places are equally likely, and every image draws its own.

    Args:
        images: `[n, c, h, w]`, any dtype and device.
        generator: where the places are drawn from. One on the CPU gives the same places for any device.
        padding: pixels on each side, at least 0.

    Returns:
        A new tensor of the shape, dtype and device of `images`.

    Raises:
        ValueError: `images` is not four-dimensional, or `padding` is negative.

    >>> images = torch.ones(2, 3, 8, 8, dtype=torch.uint8)
    >>> pad_crop(images, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])

    Source: the CIFAR augmentation of He et al., *Deep Residual Learning for Image Recognition*, 2016,
    section 4.2.
    """
    _check_images(images)
    check_count("padding", padding, least=0)
    count, channels, height, width = images.shape
    corners = torch.randint(0, 2 * padding + 1, (2, count), generator=generator, device=generator.device)
    tops, lefts = _beside(images, corners)
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = tops[:, None] + torch.arange(height, device=images.device)
    columns = lefts[:, None] + torch.arange(width, device=images.device)
    return padded[
        torch.arange(count, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def horizontal_flip(images: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Each image mirrored left to right with `probability`, independently of the others.

    Args:
        images: `[n, c, h, w]`, any dtype and device.
        generator: where the choice is drawn from. One on the CPU gives the same choice for any device.
        probability: of a flip, in [0, 1].

    Returns:
        A new tensor of the shape, dtype and device of `images`.

    Raises:
        ValueError: `images` is not four-dimensional, or `probability` is outside [0, 1].

    >>> images = torch.arange(3).reshape(1, 1, 1, 3)
    >>> horizontal_flip(images, torch.Generator().manual_seed(0), probability=1.0).flatten().tolist()
    [2, 1, 0]

    Source: He et al., *Deep Residual Learning for Image Recognition*, 2016, section 4.2.
    """
    _check_images(images)
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    drawn = torch.rand(images.shape[0], generator=generator, device=generator.device)
    flipped = _beside(images, drawn < probability)
    return torch.where(flipped[:, None, None, None], images.flip(3), images)
