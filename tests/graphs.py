"""CUDA graphs simulated on a CPU: in a capture no kernel runs, and a replay writes without counting versions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from surefoot.core import gradients

WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")


def tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_flatten(values)[0] if isinstance(each, Tensor)]


def detached(values: Any) -> Any:
    return tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, values)


class SimulatedGraph:
    """What was recorded, in order."""

    def __init__(self) -> None:
        self.kernels: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for kernel, args, kwargs, places in self.kernels:
                for place, value in zip(places, tensors(kernel(*args, **kwargs)), strict=True):
                    if place.data_ptr() != value.data_ptr():
                        place.data.copy_(value)


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records kernels; what they wrote is undone after, and what they made is garbage until a replay."""

    def __init__(self, graph: SimulatedGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.made: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name.split("::")[-1] in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        for each in tensors((args, kwargs)):
            storage = each.untyped_storage()
            if storage.data_ptr() not in self.made:
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))  # type: ignore[no-untyped-call]
        out = func(*args, **kwargs)
        places = tensors(out)
        for place in places:
            storage = place.untyped_storage()
            if storage.data_ptr() not in self.before:
                self.made[storage.data_ptr()] = storage
        self.graph.kernels.append((func, *detached((args, kwargs)), [place.detach() for place in places]))
        return out

    def undo(self) -> None:
        for storage, before in self.before.values():
            storage.copy_(before)
        for storage in self.made.values():
            whole = torch.empty(0, dtype=torch.uint8)
            whole.set_(storage, 0, (storage.nbytes(),)).fill_(0x43)  # type: ignore[call-overload]


@contextlib.contextmanager
def recorded(graph: SimulatedGraph, stream: Any, capture_error_mode: str) -> Iterator[None]:
    recording, random = Recording(graph), torch.get_rng_state()
    try:
        with recording:
            yield
    finally:
        recording.undo()
        torch.set_rng_state(random)


class Stream:
    device = torch.device("cpu")

    def __init__(self, *_: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[SimulatedGraph]:
    """The CPU has graphs in this test: all that are made."""
    made: list[SimulatedGraph] = []

    def graph() -> SimulatedGraph:
        made.append(SimulatedGraph())
        return made[-1]

    for name, replacement in {
        "CUDAGraph": graph,
        "graph": recorded,
        "Stream": Stream,
        "current_stream": Stream,
        "device": lambda device: contextlib.nullcontext(),
        "set_stream": lambda stream: None,
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    for module in ("captured", "monitor", "fit"):
        monkeypatch.setattr(sys.modules[f"surefoot.training.{module}"], "can_capture", lambda device: True)
    monkeypatch.setattr(gradients, "written_unseen", lambda buffer, copy: False)  # asked on a CPU alone
    return made
