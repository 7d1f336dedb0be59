"""The training step as one CUDA graph: a fast path that is purely optional.

A step of single-step adversarial training is some hundred small kernels, and on a small network or a small batch
a GPU waits for Python to launch them. Recorded once, they are replayed with one launch.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

import torch
from torch import Tensor, nn

from surefoot.core.gradients import plain_module
from surefoot.core.types import Objective
from surefoot.training.step import EagerStep

T = TypeVar("T")

WARM_UP = 3
"""Eager steps before a capture: cuDNN chooses its algorithms and the optimizer makes its buffers in them."""


def can_capture(device: torch.device) -> bool:
    """Has it graphs?"""
    return device.type == "cuda"


def capture(work: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
    """`work` on a device as a CUDA graph, and what it gave; where that fails, all is as before but for the error.

    PyTorch's own capture stream is on the device of the process's first capture: work on another would be in no graph.
    What other threads ask of CUDA meanwhile, as one that pins memory does, is none of a capture's business.

    PyTorch's `torch.cuda.graph` leaves its own stream the current one where a capture ends in an error, and may leave
    the generator in the capture, where it refuses every later random number; a capture that succeeds puts that right.

    Raises:
        RuntimeError: CUDA's reason.
    """
    with torch.cuda.device(-1 if device.index is None else device.index):  # -1: where one is
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        torch.clear_autocast_cache()  # a weight that was cast before would be at every replay what it was then
        try:
            with recording(graph):
                return graph, work()
        except BaseException:
            torch.cuda.set_stream(stream)
            with suppress(RuntimeError), recording(torch.cuda.CUDAGraph()):
                torch.zeros(1, device=stream.device)
            raise
        finally:
            torch.clear_autocast_cache()  # what was cast inside has its values at a replay, or never


@contextmanager
def beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """What runs inside runs on that stream, between what the current one does before and after: a warm-up, say."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def recording(graph: torch.cuda.CUDAGraph) -> AbstractContextManager[None]:
    """What runs inside goes into the graph, and is not run."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")


@contextmanager
def same_buffers(module: nn.Module) -> Iterator[None]:
    """Put every buffer back after that another tensor took the place of, and refuse it: a replay reads the old one.

    Raises:
        RuntimeError: a forward made a buffer anew, instead of writing into it.
    """
    kept = [(part._buffers, dict(part._buffers)) for part in module.modules()]
    anew: set[str] = set()
    try:
        yield
    finally:
        for now, old in kept:
            for name in [*now.keys()]:
                if name not in old:
                    anew.add(name)
                    del now[name]
                elif now[name] is not old[name]:
                    anew.add(name)
                    now[name] = old[name]
    if anew:
        raise RuntimeError(f"its forward makes the buffer {min(anew)!r} anew instead of writing into it")


class CapturedStep:
    """`EagerStep`, each objective and shape of batch captured after a few steps and replayed from then on.

    Weights, losses and random numbers are those of the eager step within rounding: a graph reads the generator's
    state anew at every replay. Code on the host is not captured, only the outcome of its decisions: so an objective is
    captured only if it says `capturable = True`, and a model's forward must not draw or branch on the host. One that
    draws what it does has a method `drawn`, which gives the step's own objective; each that it gives is captured.

    Args:
        eager: the step to capture, its model on a CUDA device, not distributed.
        on_note: told in a sentence why a step cannot be captured; once an objective.
    """

    def __init__(self, eager: EagerStep, on_note: Callable[[str], None] = lambda note: None) -> None:
        self.eager = eager
        self.on_note = on_note
        device = next(eager.model.parameters()).device
        for group in eager.optimizer.param_groups:  # a graph reads the rate where it lies
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._seen: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, Graph] = {}
        self._refused: dict[Hashable, Objective] = {}  # they too: another could get the id of one that is gone

    @property
    def graphs(self) -> int:
        """How many have been captured."""
        return len(self._graphs)

    def __call__(self, objective: Objective, inputs: Tensor, labels: Tensor, rate: float) -> Tensor:
        self.eager.set_rate(rate)
        drawn: Callable[[], Objective] | None = getattr(objective, "drawn", None)
        if drawn is not None:
            objective = drawn()
        if self._name(objective) in self._refused:
            return self.eager.run(objective, inputs, labels)
        if not (getattr(objective, "capturable", False) and has_hash(objective)):
            self._refuse(objective, "it does not say that its steps are all alike, or has a field without a hash")
            return self.eager.run(objective, inputs, labels)
        key = (objective, inputs.shape, inputs.stride(), inputs.dtype)
        graph = self._graphs.get(key)
        if graph is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= WARM_UP:
                return self._warm_up(objective, inputs, labels)
            try:
                graph = self._graphs[key] = Graph(self.eager, objective, inputs, labels)
            except RuntimeError as error:
                self.eager.optimizer.zero_grad()
                self._refuse(objective, " ".join(str(error).split())[:200])
            if graph is None:  # only here: the error holds on to what was recorded, and autograd would warn of it
                return self.eager.run(objective, inputs, labels)
        return graph.replay(inputs, labels)

    def _warm_up(self, objective: Objective, inputs: Tensor, labels: Tensor) -> Tensor:
        with beside(self._stream):
            return self.eager.run(objective, inputs, labels)

    @staticmethod
    def _name(objective: Objective) -> Hashable:
        return (objective,) if has_hash(objective) else id(objective)

    def _refuse(self, objective: Objective, why: str) -> None:
        self._refused[self._name(objective)] = objective
        self.on_note(f"{type(objective).__name__} is not captured in a CUDA graph ({why}); its steps run one by one.")


def has_hash(objective: Objective) -> bool:
    """Can it be a key? A frozen dataclass says so, and fails where one of its fields cannot.

    >>> has_hash(print), has_hash(([],))
    (True, False)
    """
    try:
        hash(objective)
    except TypeError:
        return False
    return True


class Graph:
    """One recorded step with its own place for the batch and the losses."""

    def __init__(self, eager: EagerStep, objective: Objective, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs.clone(), labels.clone()
        eager.optimizer.zero_grad()  # so that the gradients are made inside, where they are then overwritten
        with same_buffers(plain_module(eager.model)):
            self.graph, self.losses = capture(lambda: eager.run(objective, self.inputs, self.labels), inputs.device)

    def replay(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.losses.clone()
