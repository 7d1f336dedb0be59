"""What products are computed in: float32 proper, TF32 or bfloat16."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from surefoot.core.gradients import plain_module

Arithmetic = Literal["fp32", "tf32", "bf16"]
"""What products are computed in: float32, on CUDA float32 with factors rounded to TF32, or bfloat16."""


@contextlib.contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Float32 means float32: no autocast of the caller's, and no TF32, which PyTorch lets convolutions use."""
    with torch.autocast(device.type, enabled=False), allowing_tf32(False):
        yield


@contextlib.contextmanager
def allowing_tf32(allowed: bool) -> Iterator[None]:
    """Whether products on CUDA may round their factors to TF32; what the caller chose is put back after.

    Without TF32 a CPU, too, multiplies in float32 proper, whatever `torch.set_float32_matmul_precision` allows it.
    """
    before = None
    with contextlib.suppress(RuntimeError):  # where the caller has set `fp32_precision`, PyTorch refuses to read these
        before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    if before is None:
        with fp32_precision("tf32" if allowed else "ieee"):
            yield
        return
    wanted = allowed, "high" if allowed else "highest"
    set_tf32(wanted, before)
    try:
        yield
    finally:
        set_tf32(before, wanted)


def set_tf32(wanted: tuple[bool, str], now: tuple[bool, str]) -> None:
    """cuDNN's flag and the precision of matrix products, where they differ: to set is to override what is inherited."""
    if wanted[0] != now[0]:
        torch.backends.cudnn.allow_tf32 = wanted[0]
    if wanted[1] != now[1]:
        torch.set_float32_matmul_precision(wanted[1])


@contextlib.contextmanager
def fp32_precision(wanted: str) -> Iterator[None]:
    """PyTorch's own settings, since 2.9, of what float32 products are computed in: `ieee`, `tf32` or `bf16`."""
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    places += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = wanted
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextlib.contextmanager
def computed_in(arithmetic: Arithmetic, device: torch.device) -> Iterator[None]:
    """Forward and backward in bfloat16 where that is safe, or in float32 with or without TF32."""
    with contextlib.ExitStack() as stack:
        if arithmetic == "bf16":
            torch.clear_autocast_cache()  # the caller's own autocast may keep weights of another type, or old ones
            stack.callback(torch.clear_autocast_cache)
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        stack.enter_context(allowing_tf32(arithmetic == "tf32"))
        yield


def has_tf32(model: nn.Module) -> bool:
    """Is the model on a GPU that has TF32?"""
    parameter = next(plain_module(model).parameters(), None)
    return parameter is not None and parameter.is_cuda and torch.cuda.get_device_capability(parameter.device) >= (8, 0)


def fast_in_half(model: nn.Module) -> bool:
    """Is bfloat16 worth it for this model on its device: float32 weights, and hardware for it?"""
    parameter = next(plain_module(model).parameters(), None)
    if parameter is None or parameter.dtype != torch.float32:
        return False
    if parameter.device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if parameter.device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False
