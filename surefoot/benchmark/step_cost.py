"""What a training step costs, against the network's own passes that it cannot do without."""

import copy
import itertools
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from surefoot.benchmark.timing import Clock, Timing, race
from surefoot.core.devices import image_format, in_image_format
from surefoot.core.gradients import crafting, input_gradient, is_crafting
from surefoot.core.limits import check_count
from surefoot.core.types import Objective
from surefoot.evaluation.evaluate import device_name, versions
from surefoot.objectives import EnsembleAT, FgsmAT, NFgsmAT, NormalTraining, PgdAT, RFgsmAT, SatR1, SatR2, SatR3, Trades
from surefoot.training import FitConfig
from surefoot.training.captured import WARM_UP, CapturedStep, beside, capture
from surefoot.training.machines import make_fabric
from surefoot.training.step import EagerStep, Step

ModeName = Literal["eager", "captured"]
Key = tuple[str, str, str]
"""A contestant: what it is (`step`, `floor`, `peak`), the objective, the mode."""


class Passes(NamedTuple):
    """Passes of one kind: `forward` (1 unit a sample), `craft` (and an input gradient: 2), `train` (3)."""

    kind: Literal["forward", "craft", "train"]
    samples: int
    times: int = 1

    @property
    def units(self) -> int:
        """In forwards of one sample."""
        return {"forward": 1, "craft": 2, "train": 3}[self.kind] * self.samples * self.times


def floor_passes(objective: Objective, batch: int) -> list[Passes]:
    """The passes that an objective cannot do without, for a mini-batch of `batch` samples.

    Raises:
        ValueError: an objective whose passes are not known.

    Example:
        >>> sum(passes.units for passes in floor_passes(SatR3(0.3, eps_low=0.1, lam=1.0, tau=0.4), 32)) / 32
        8.0
    """
    match objective:
        case NormalTraining():
            crafted, trained = [], batch
        case FgsmAT() | RFgsmAT() | EnsembleAT():
            crafted, trained = [Passes("craft", math.ceil(objective.share * batch - 1e-9))], batch
        case NFgsmAT():
            crafted, trained = [Passes("craft", batch)], batch
        case PgdAT():
            crafted, trained = [Passes("craft", batch, objective.steps)], batch
        case Trades():
            crafted, trained = [Passes("forward", batch), Passes("craft", batch, objective.steps)], 2 * batch
        case SatR1():
            k = min(objective.k, batch)  # I-FGSM's first gradient is FGSM's own
            crafted, trained = [Passes("craft", batch), Passes("craft", k, objective.steps - 1)], batch + k
        case SatR2():
            crafted, trained = [Passes("craft", 2 * batch)], 2 * batch
        case SatR3():
            crafted, trained = [Passes("craft", batch)], 2 * batch
        case _:
            raise ValueError(f"the floor of {type(objective).__name__} is not known; add its passes to floor_passes.")
    return [passes for passes in (*crafted, Passes("train", trained)) if passes.times]


@dataclass
class Counted:
    """What went through a model in one step, counted by hooks: samples forward and backward, and serial passes."""

    forwards: int = 0
    backwards: int = 0
    crafting_forwards: int = 0
    crafting_backwards: int = 0
    crafting_passes: int = 0
    """Gradients one after the other while crafting: the FBP of the paper's Table 8."""

    @property
    def units(self) -> int:
        """In forwards of one sample: an input gradient is 1 more, weight and input gradients of a training 2."""
        return self.forwards + self.crafting_backwards + 2 * (self.backwards - self.crafting_backwards)


def count_passes(step: Callable[[], object], models: list[nn.Module]) -> Counted:
    """Run `step` once and count what goes through `models`.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> counted = count_passes(lambda: net(torch.rand(3, 2)).sum().backward(), [net])
        >>> counted.forwards, counted.backwards, counted.units
        (3, 3, 9)
    """
    counted = Counted()

    def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        samples, crafted = len(output), is_crafting()
        counted.forwards += samples
        counted.crafting_forwards += samples * crafted

        def backward(gradient: Tensor) -> None:
            counted.backwards += samples
            counted.crafting_backwards += samples * crafted
            counted.crafting_passes += crafted

        if output.requires_grad:
            output.register_hook(backward)  # type: ignore[no-untyped-call]

    handles = [model.register_forward_hook(forward) for model in models]
    try:
        step()
    finally:
        for handle in handles:
            handle.remove()
    return counted


@dataclass(frozen=True, kw_only=True)
class StepLine:
    """What a training step of one objective costs.

    `seconds_per_step` is the median of `all_seconds`; `floor_seconds` that of the passes alone, in the same rounds (as
    a CUDA graph where `captured` is measured); `ratio_to_floor` their quotient. `floor_units` and `units` are in
    forwards of one sample a sample of the batch. `forwards` and `backwards` count samples, `crafting_passes` gradients
    one after the other. `share_of_peak` is the step's arithmetic (`flops`) a second over that of one large matrix
    product. `peak_memory` is in bytes, beyond what was held before the step; a captured step holds its memory all the
    time, so that its own is 0. Where there is an `error` there are no times.
    """

    objective: str
    objective_fields: dict[str, Any]
    model: str
    batch: int
    precision: str
    mode: str
    device: str
    floor_units: float
    units: float | None
    forwards: int | None
    backwards: int | None
    crafting_passes: int | None
    seconds_per_step: float | None
    floor_seconds: float | None
    ratio_to_floor: float | None
    images_per_second: float | None
    flops: int | None
    peak_flops_per_second: float | None
    share_of_peak: float | None
    copy_bytes_per_second: float | None
    peak_memory: int | None
    rounds: int
    all_seconds: tuple[float, ...]
    cpu_seconds: bool
    threads: int
    versions: dict[str, str]
    error: str | None


@dataclass(frozen=True)
class StepSubject:
    """A network, a mini-batch, and the objectives to train it under, each by its key.

    Args:
        name: what its lines call it.
        model: maps inputs to logits; copied, and left as it was.
        inputs, labels: one mini-batch on the model's device.
        objectives: by their keys.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    objectives: Mapping[str, Objective]


@dataclass(frozen=True)
class StepCostBenchmark:
    """Time training steps and their floors in turns, in one process, on the same network and mini-batch.

    A step is that of `training.fit`: crafting, forward, backward, update. Its floor is the same forward and
    backward passes on as many samples, and nothing else. Called with a `StepSubject` it yields a `StepLine` for
    each objective and mode, once a precision's rounds are over.

    Raises:
        ValueError: a count below 1, nothing to measure, or `captured` without CUDA.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> objectives = {"normal": NormalTraining()}
        >>> subject = StepSubject("linear", net, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), objectives)
        >>> [line.units for line in StepCostBenchmark(rounds=1, peak_size=64)(subject)]
        [3.0]
    """

    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32",)
    """What to train in."""
    mode: tuple[ModeName, ...] = ("eager",)
    """`captured`: each step one CUDA graph."""
    rounds: int = 9
    """Timed turns of each; the median counts."""
    steps: int = 1
    """Steps a turn; more where one is too short to be timed."""
    peak_size: int = 0
    """Side of the matrix product that stands for the machine's peak; 0 is 2048, on a GPU 8192."""
    cpu_seconds: bool = False
    """Measure CPU seconds of all threads, not wall-clock time: more reliable where other work is running."""

    def __post_init__(self) -> None:
        for name in ("rounds", "steps"):
            check_count(name, getattr(self, name))
        check_count("peak_size", self.peak_size, least=0)
        for name in ("precision", "mode"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty, so there is nothing to measure; name at least one.")

    def __call__(
        self,
        subject: StepSubject,
        *,
        clock: Clock | None = None,
        on_turn: Callable[[str, int, int], None] = lambda contestant, done, total: None,
    ) -> Iterator[StepLine]:
        device = subject.inputs.device
        if "captured" in self.mode and device.type != "cuda":
            raise ValueError(f"mode captured is for a CUDA device, and this is {device.type}; leave it out.")
        if clock is None:
            clock = time.process_time if self.cpu_seconds else time.perf_counter
        flops = forward_flops(subject)
        for precision in self.precision:
            bench = _Bench(self, subject, precision)
            contestants: dict[Key, Callable[[], Callable[[], None]]] = {}
            for name in subject.objectives:
                contestants["floor", name, ""] = partial(bench.floor, name)
                for mode in self.mode:
                    contestants["step", name, mode] = partial(bench.step, name, mode)
            contestants["peak", "matrix product", ""] = bench.matrix_product
            contestants["peak", "copy", ""] = bench.copy
            timings = race(
                contestants,
                self.rounds,
                clock=clock,
                synchronise=(lambda: None) if device.type == "cpu" else torch.accelerator.synchronize,
                on_turn=lambda who, done, total, precision=precision: on_turn(  # type: ignore[misc]
                    " ".join(filter(None, (precision, *who))), done, total
                ),
            )
            for name in subject.objectives:
                for mode in self.mode:
                    yield self.line(bench, name, mode, timings, flops)

    def line(
        self, bench: "_Bench", name: str, mode: ModeName, timings: Mapping[Key, Timing[None]], flops: int
    ) -> StepLine:
        """A contestant's line."""
        batch = len(bench.subject.inputs)
        objective = bench.subject.objectives[name]
        timing, floor = timings["step", name, mode], timings["floor", name, ""]
        product, copied = timings["peak", "matrix product", ""].median, timings["peak", "copy", ""].median
        counted = bench.counted.get(name)
        floor_units = sum(passes.units for passes in floor_passes(objective, batch))
        seconds = None if timing.median is None else timing.median / self.steps
        floor_seconds = None if floor.median is None else floor.median / self.steps
        done = None if counted is None else counted.units * flops // batch  # a unit is one sample's forward
        peak = None if product is None else bench.product_flops / product
        return StepLine(
            objective=name,
            objective_fields=objective_settings(objective),
            model=bench.subject.name,
            batch=batch,
            precision=bench.precision,
            mode=mode,
            device=device_name(bench.subject.inputs.device),
            floor_units=floor_units / batch,
            units=None if counted is None else counted.units / batch,
            forwards=None if counted is None else counted.forwards,
            backwards=None if counted is None else counted.backwards,
            crafting_passes=None if counted is None else counted.crafting_passes,
            seconds_per_step=seconds,
            floor_seconds=floor_seconds,
            ratio_to_floor=None if seconds is None or floor_seconds is None else seconds / floor_seconds,
            images_per_second=None if seconds is None else batch / seconds,
            flops=done,
            peak_flops_per_second=peak,
            share_of_peak=None if seconds is None or peak is None or done is None else done / seconds / peak,
            copy_bytes_per_second=None if copied is None else bench.copied_bytes / copied,
            peak_memory=bench.memory.get((name, mode)),
            rounds=len(timing.seconds),
            all_seconds=timing.seconds,
            cpu_seconds=self.cpu_seconds,
            threads=torch.get_num_threads(),
            versions=versions(),
            error=timing.error or floor.error,
        )


@dataclass
class _Bench:
    """The contestants of one precision, which share one copy of the network."""

    settings: StepCostBenchmark
    subject: StepSubject
    precision: Literal["fp32", "bf16"]
    memory: dict[tuple[str, str], int] = field(default_factory=dict)
    counted: dict[str, Counted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device = self.subject.inputs.device
        self.fabric = make_fabric(FitConfig(device=device.type, precision=self.precision))  # type: ignore[arg-type]
        self.model = in_image_format(copy.deepcopy(self.subject.model).train(), device)
        self.inputs = self.subject.inputs
        if self.inputs.dim() == 4:
            self.inputs = self.inputs.contiguous(memory_format=image_format(device))
        size = self.settings.peak_size or (8192 if device.type == "cuda" else 2048)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.factors = torch.rand(2, size, size, device=device).to(dtype)
        self.product_flops = 2 * size**3
        self.block = torch.zeros(64 << 20 if device.type == "cuda" else 16 << 20, device=device)
        self.copied_bytes = 2 * self.block.numel() * self.block.element_size()  # read and written

    def make_step(self, mode: ModeName) -> Step:
        model = copy.deepcopy(self.model)
        # So small a rate leaves the network as it is: the steps stay alike.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4, fused=True)
        eager = EagerStep(self.fabric, *self.fabric.setup(model, optimizer))
        return eager if mode == "eager" else CapturedStep(eager, _fail)

    def step(self, name: str, mode: ModeName) -> Callable[[], None]:
        objective, step = self.subject.objectives[name], self.make_step(mode)

        def turn() -> None:
            for _ in range(self.settings.steps):
                step(objective, self.inputs, self.subject.labels, 1e-6)

        drawn = 1 + len(sources_of(objective))
        for number in range(50 * drawn):  # each that an ensemble draws is captured after a few steps of its own
            step(objective, self.inputs, self.subject.labels, 1e-6)
            if number >= WARM_UP and (not isinstance(step, CapturedStep) or step.graphs == drawn):
                break
        self.counted[name] = self.count(name)
        self.memory[name, mode] = peak_memory(turn, self.inputs.device)
        return turn

    def floor(self, name: str) -> Callable[[], None]:
        passes = floor_passes(self.subject.objectives[name], len(self.inputs))
        repeats = -(-max(each.samples for each in passes) // len(self.inputs))
        many = torch.cat([self.inputs] * repeats)
        if many.dim() == 4:
            many = many.contiguous(memory_format=image_format(many.device))

        # An ensemble crafts on one of its networks at a time: here on each in turn.
        crafted_on = itertools.cycle([self.model, *sources_of(self.subject.objectives[name])])

        def turn() -> None:
            for _ in range(self.settings.steps):
                network = next(crafted_on)
                with self.fabric.autocast():
                    for each in passes:
                        self.run(each, many[: each.samples], network)
                self.model.zero_grad()

        turn()
        return turn if self.settings.mode == ("eager",) else replayed(turn, self.inputs.device)

    def run(self, passes: Passes, inputs: Tensor, crafted_on: nn.Module) -> None:
        if passes.kind == "train":
            for _ in range(passes.times):
                self.model(inputs).sum().backward()
            return
        with crafting(crafted_on) as frozen:  # around all of them, as an attack's steps are
            for _ in range(passes.times):
                if passes.kind == "craft":
                    input_gradient(frozen, inputs, lambda logits: logits.sum(dim=1))
                else:
                    with torch.no_grad():
                        frozen(inputs)

    def matrix_product(self) -> Callable[[], None]:
        out = self.factors[0] @ self.factors[1]

        def turn() -> None:
            torch.matmul(self.factors[0], self.factors[1], out=out)

        return turn

    def copy(self) -> Callable[[], None]:
        target = torch.empty_like(self.block)

        def turn() -> None:
            target.copy_(self.block)

        return turn

    def count(self, name: str) -> Counted:
        """What goes through the network and its sources in one step."""
        objective, model = self.subject.objectives[name], copy.deepcopy(self.model)

        def step() -> None:
            objective(model, self.inputs, self.subject.labels).loss.backward()  # type: ignore[no-untyped-call]

        return count_passes(step, [model, *sources_of(objective)])


def replayed(turn: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The turn as one CUDA graph, so that the floor of captured steps does not wait for Python either."""
    with beside(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        for _ in range(WARM_UP):
            turn()
    graph, _ = capture(turn, device)
    return graph.replay


def sources_of(objective: Objective) -> list[nn.Module]:
    """The networks beside the trained one that an objective crafts on."""
    return [each for each in getattr(objective, "sources", ()) if isinstance(each, nn.Module)]


def _fail(note: str) -> None:
    raise RuntimeError(note)


def objective_settings(objective: Objective) -> dict[str, Any]:
    """An objective's settings; a source is named by its class."""
    return {
        name: [type(each).__name__ for each in value] if name == "sources" else value
        for name, value in vars(objective).items()
    }


def forward_flops(subject: StepSubject) -> int:
    """Floating point operations of one forward of the mini-batch: two a multiply-add, convolutions and products."""
    by_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # of HiddenLinear; not among the counter's own
    counted = {} if by_onednn is None else {by_onednn: _product_flops}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter, torch.no_grad():
        copy.deepcopy(subject.model).eval()(subject.inputs)
    return int(counter.get_total_flops())


def _product_flops(left: tuple[int, ...], right: tuple[int, ...], *rest: object, **settings: object) -> int:
    """Of shapes [rows, inner] and [columns, inner]."""
    return 2 * left[0] * left[1] * right[0]


def peak_memory(turn: Callable[[], None], device: torch.device) -> int:
    """Bytes that PyTorch holds at most in a turn, beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        turn()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with HeldMemory() as held:
        turn()
    return int(held.peak)


class HeldMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make while it is entered, as they come and go.

    Example:
        >>> with HeldMemory() as held:
        ...     for _ in range(3):
        ...         _ = torch.zeros(100)
        >>> held.peak in (400, 800)  # the next one is made before the last one goes
        True
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs, _ = tree_flatten((args, kwargs or {}))
        known = {each.untyped_storage().data_ptr() for each in inputs if isinstance(each, Tensor)}
        output = func(*args, **(kwargs or {}))
        for each in tree_flatten(output)[0]:
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in known | self._seen:
                self._hold(each.untyped_storage())
        return output

    def _hold(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if size == 0:
            return
        self._seen.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._seen.discard(place)
            self.now -= size

        weakref.finalize(storage, gone)
