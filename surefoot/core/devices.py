"""What Apple's GPUs lack or get wrong, and whose the processor is: said once."""

import platform
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@lru_cache(maxsize=1)
def is_intel() -> bool:
    """Is the processor Intel's, whose own MKL, PyTorch's library for products of matrices, uses all of it?"""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            return "GenuineIntel" in lines.read(4096)
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


def is_apple(device: torch.device) -> bool:
    """Is it an Apple GPU?"""
    return device.type == "mps"


def has_float64(device: torch.device) -> bool:
    """Can it compute in float64?

    >>> has_float64(torch.device("cpu")), has_float64(torch.device("mps"))
    (True, False)
    """
    return not is_apple(device)


def in_float64(values: Tensor) -> Tensor:
    """`values` in float64, where they are, or on the CPU where that cannot be."""
    return values.double() if has_float64(values.device) else values.cpu().double()


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of each sample's two vectors, `[batch]`, as `in_float64` gives it.

    In float32 the smallest gradients would vanish when squared.

    >>> cosines(torch.tensor([[1e-30, 0.0]]), torch.tensor([[1e-30, 1e-30]]))
    tensor([0.7071], dtype=torch.float64)
    """
    return F.cosine_similarity(in_float64(one.flatten(1)), in_float64(other.flatten(1)), eps=1e-300)


def image_format(device: torch.device) -> torch.memory_format:
    """The order of the numbers in a batch of images: channels last, in which convolutions are fastest.

    Not so on Apple's GPUs: in that order PyTorch's way back through a batch-norm fails there or, worse, is wrong (its
    issue 175189), and to an attack by a wrong gradient a model looks robust.

    >>> image_format(torch.device("cpu")), image_format(torch.device("mps"))
    (torch.channels_last, torch.contiguous_format)
    """
    return torch.contiguous_format if is_apple(device) else torch.channels_last


def convolves_images(model: nn.Module) -> bool:
    """Has it weights of two-dimensional convolutions, and none of three, which PyTorch refuses in channels last?

    >>> convolves_images(nn.Conv2d(3, 4, 3)), convolves_images(nn.Conv3d(3, 4, 3)), convolves_images(nn.Linear(3, 4))
    (True, False, False)
    """
    dims = {parameter.dim() for parameter in model.parameters()}
    return 4 in dims and 5 not in dims


def in_image_format(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device, its weights in `image_format` where they can be.

    >>> weight = in_image_format(nn.Conv2d(3, 4, 3), torch.device("cpu")).weight
    >>> weight.is_contiguous(memory_format=torch.channels_last)
    True
    """
    model = model.to(device)
    return model.to(memory_format=image_format(device)) if convolves_images(model) else model  # type: ignore[call-overload]
