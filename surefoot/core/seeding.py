"""Torch's generators, seeded and put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's global generators at `seed`, and put them back as they were after."""
    kind, devices = "cuda", range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if torch.backends.mps.is_available():
        kind, devices = "mps", range(1)
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield
