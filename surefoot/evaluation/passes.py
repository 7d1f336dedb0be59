"""What a measurement rests on: counted passes, a seeded generator, a model's fingerprint."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.models.wrappers import inner_model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's global generators at `seed`, and put them back as they were after."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class PassCounter:
    """Counts the samples that go forward and backward through a module while it is entered.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with PassCounter(net) as counter:
        ...     net(torch.rand(3, 2)).sum().backward()
        >>> counter.forwards, counter.backwards
        (3, 3)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forwards = 0
        self.backwards = 0

    def __enter__(self) -> "PassCounter":
        self._handle = self.module.register_forward_hook(self._count)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        samples = len(inputs[0])
        self.forwards += samples
        if isinstance(output, Tensor) and output.requires_grad:

            def count_backward(gradient: Tensor) -> None:
                self.backwards += samples

            output.register_hook(count_backward)  # type: ignore[no-untyped-call]


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of a model's names, types, shapes and values, whatever file they came from and it is wrapped in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(inner_model(model).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
