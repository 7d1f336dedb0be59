"""The training step: what it computes, when it is captured, and how its losses are read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from surefoot.core.geometry import check_batch, checked
from surefoot.core.gradients import plain_module
from surefoot.core.types import LossTerms
from surefoot.data import Batches, Split
from surefoot.models import build_model, layers
from surefoot.objectives import EnsembleAT, FgsmAT, NFgsmAT, NormalTraining, PgdAT, RFgsmAT, SatR1, SatR2, SatR3, Trades
from surefoot.training import captured
from surefoot.training.averaging import MovingAverage
from surefoot.training.captured import WARM_UP, CapturedStep
from surefoot.training.step import EagerStep, LossHistory

CAPTURABLE = [
    NormalTraining(),
    FgsmAT(0.3),
    RFgsmAT(0.3, random_step=0.1),
    NFgsmAT(0.1, noise=0.2),
    PgdAT(0.3, steps=3, step_size=0.1),
    Trades(0.3, steps=3, step_size=0.1, beta=1.0),
    SatR1(0.3, lam=0.2, steps=3, k=2),
    SatR2(0.3, random_step=0.05, lam=1.0),
    SatR3(0.3, eps_low=0.1, lam=1.0, tau=0.4, random_step=0.01),
]


def digits_step(device: str = "cpu") -> EagerStep:
    torch.manual_seed(0)
    fabric = Fabric(accelerator=device, devices=1)
    fabric.launch()
    model = build_model("digits-net", num_classes=10, in_channels=1, image_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    return EagerStep(fabric, *fabric.setup(model, optimizer))


def batch(size: int = 16, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    inputs, labels = torch.rand(size, 1, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator)
    return inputs.to(device), labels.to(device)


def test_a_step_is_the_hand_written_update() -> None:
    step = digits_step()
    inputs, labels = batch()
    reference = build_model("digits-net", num_classes=10, in_channels=1, image_size=8)
    reference.load_state_dict(step.model.state_dict())
    losses = [step(NormalTraining(), inputs, labels, 0.05) for _ in range(2)]
    momenta = [torch.zeros_like(parameter) for parameter in reference.parameters()]
    for expected in losses:
        loss = nn.functional.cross_entropy(reference(inputs), labels)
        assert torch.allclose(expected, torch.stack([loss, loss, loss * 0]))
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for parameter, gradient, momentum in zip(reference.parameters(), gradients, momenta, strict=True):
                momentum.mul_(0.9).add_(gradient + 5e-4 * parameter)
                parameter.sub_(0.05 * momentum)
    for ours, theirs in zip(step.model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_step_trains_in_training_mode_whatever_the_mode_before() -> None:
    step = digits_step()
    step.model.eval()
    seen: list[bool] = []
    plain_module(step.model).register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    step(NormalTraining(), *batch(), 0.1)
    assert seen == [True]


def test_a_rate_that_lives_on_the_device_is_filled_in_place() -> None:
    step = digits_step()
    place = torch.tensor(0.1)
    for group in step.optimizer.param_groups:
        group["lr"] = place
    step.set_rate(0.025)
    assert place.item() == pytest.approx(0.025)
    assert all(group["lr"] is place for group in step.optimizer.param_groups)


def test_checked_spares_the_values_and_not_the_shapes() -> None:
    bad = torch.full((2, 1, 8, 8), 7.0)
    with checked():
        check_batch(bad, torch.tensor([0, -1]))
        with pytest.raises(ValueError, match="shape"):
            check_batch(bad, torch.tensor([0]))
        with pytest.raises(TypeError, match="int64"):
            check_batch(bad, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="pixels in"):
        check_batch(bad, torch.tensor([0, 1]))


def without_values(objective: Callable[..., LossTerms], network: str, channels: int, size: int) -> LossTerms:
    """A step on PyTorch's `meta` device, which has no values to ask for and takes no tensor of another device."""
    model = build_model(network, num_classes=10, in_channels=channels, image_size=size).to("meta").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs = torch.rand(8, channels, size, size, device="meta")
    with checked():
        terms = objective(model, inputs, torch.zeros(8, dtype=torch.int64, device="meta"))
    terms.loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return terms


@pytest.mark.parametrize("network", [("lenet-plus", 1, 28), ("conv-small", 1, 28), ("resnet-18", 3, 32)])
@pytest.mark.parametrize("objective", CAPTURABLE, ids=lambda objective: type(objective).__name__)
def test_a_capturable_step_asks_the_device_nothing_and_stays_on_it(
    objective: Callable[..., LossTerms], network: tuple[str, int, int]
) -> None:
    terms = without_values(objective, *network)
    assert {each.device.type for each in (terms.loss, terms.classification, terms.regularizer)} == {"meta"}


def test_a_step_that_asks_the_device_or_leaves_it_is_caught() -> None:
    def asks(model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        terms = NormalTraining()(model, inputs, labels)
        return terms if terms.loss > 0 else LossTerms(-terms.loss, terms.classification, terms.regularizer)

    def leaves(model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        return NormalTraining()(model, inputs + torch.zeros(inputs.shape), labels)

    for objective in (asks, leaves):
        with pytest.raises(RuntimeError, match="meta"):
            without_values(objective, "lenet-plus", 1, 28)


def test_batches_are_cut_and_augmented_where_they_are_used() -> None:
    images = Split(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))
    batches = Batches(images, 8, device=torch.device("meta"), shuffle=True, augment="crop-flip", channels_last=True)
    shapes = [(inputs.shape, inputs.device.type, labels.device.type) for inputs, labels in batches.epoch(1)]
    assert shapes == [((size, 3, 32, 32), "meta", "meta") for size in (8, 8, 4)]


def test_losses_arrive_in_order() -> None:
    history = LossHistory(3, torch.device("cpu"))
    assert len(history.arrived()) == 0
    for value in (1.0, 2.0):
        history.add(torch.full((3,), value))
    assert history.arrived()[:, 0].tolist() == [1.0, 2.0]
    history.add(torch.full((3,), 3.0))
    assert history.arrived(wait=True)[:, 0].tolist() == [1.0, 2.0, 3.0]


class FakeGraph:
    """Stands for a recorded step where there is no GPU: it counts, and runs eagerly."""

    made: list["FakeGraph"]
    fail = False

    def __init__(self, eager: EagerStep, objective: Any, inputs: Tensor, labels: Tensor) -> None:
        if self.fail:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.run: Callable[[Tensor, Tensor], Tensor] = lambda x, y: eager.run(objective, x, y)
        self.replays = 0
        self.made.append(self)

    def replay(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.replays += 1
        return self.run(inputs, labels)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    class Fake(FakeGraph):
        made: list[FakeGraph] = []  # noqa: RUF012

    monkeypatch.setattr(captured, "Graph", Fake)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(CapturedStep, "_warm_up", lambda self, *args: self.eager.run(*args))
    return Fake


def test_a_step_is_captured_after_a_few_and_once_a_shape(fake: type[FakeGraph]) -> None:
    step = CapturedStep(digits_step())
    objective = SatR3(0.3, eps_low=0.1, lam=1.0, tau=0.4)
    for _ in range(WARM_UP + 2):
        step(objective, *batch(16), 0.1)
    step(objective, *batch(5), 0.1)  # the last batch of an epoch
    assert [graph.replays for graph in fake.made] == [2]
    for _ in range(WARM_UP + 1):
        step(NormalTraining(), *batch(16), 0.1)
    assert len(fake.made) == 2


def test_captured_and_eager_steps_take_the_same_way_on_the_host(fake: type[FakeGraph]) -> None:
    one, other = digits_step(), digits_step()
    fast = CapturedStep(other)
    objective = SatR2(0.3, random_step=0.05, lam=1.0)
    for number in range(WARM_UP + 3):
        torch.manual_seed(number)
        slow_losses = one(objective, *batch(), 0.1 / (number + 1))
        torch.manual_seed(number)
        assert torch.allclose(slow_losses, fast(objective, *batch(), 0.1 / (number + 1)), rtol=1e-5)
    assert all(torch.allclose(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def ensemble(device: str = "cpu") -> EnsembleAT:
    torch.manual_seed(1)
    sources = [build_model("digits-net", num_classes=10, in_channels=1, image_size=8).to(device) for _ in range(2)]
    return EnsembleAT(0.3, sources=tuple(sources))


def test_what_is_drawn_on_the_host_is_captured_once_each(fake: type[FakeGraph]) -> None:
    notes: list[str] = []
    one, other = digits_step(), digits_step()
    fast, objective = CapturedStep(other, notes.append), ensemble()
    drawn = []
    for number in range(8 * WARM_UP):
        torch.manual_seed(number)
        drawn.append(int(torch.randint(3, ())))
        torch.manual_seed(number)
        slow_losses = one(objective, *batch(), 0.1)
        torch.manual_seed(number)
        assert torch.allclose(slow_losses, fast(objective, *batch(), 0.1), rtol=1e-4)
    assert min(drawn.count(source) for source in range(3)) > WARM_UP
    assert notes == []
    assert sorted(graph.replays for graph in fake.made) == sorted(drawn.count(each) - WARM_UP for each in range(3))


def test_what_does_not_say_that_its_steps_are_alike_is_not_captured_and_said_once(fake: type[FakeGraph]) -> None:
    class Draws:
        def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
            return NormalTraining()(model, inputs * float(torch.rand(())), labels)

    notes: list[str] = []
    step, objective = CapturedStep(digits_step(), notes.append), Draws()
    for _ in range(WARM_UP + 2):
        step(objective, *batch(), 0.1)
    assert fake.made == []
    assert len(notes) == 1
    assert "Draws is not captured" in notes[0]


def test_a_capture_that_fails_leaves_an_eager_step_and_one_note(
    fake: type[FakeGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "fail", True)
    notes: list[str] = []
    one, other = digits_step(), digits_step()
    step = CapturedStep(other, notes.append)
    for _ in range(WARM_UP + 3):
        assert torch.allclose(step(NormalTraining(), *batch(), 0.1), one(NormalTraining(), *batch(), 0.1))
    assert len(notes) == 1
    assert "not permitted" in notes[0]


class FakeCuda:
    """What PyTorch's own `torch.cuda.graph` asks CUDA for: a capture ends in an error where the host waited in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self
        self.current, self.log, self.waited = "main", list[str](), False

        class Graph:
            def capture_begin(self, *args: Any, capture_error_mode: str, **kwargs: Any) -> None:
                assert capture_error_mode == "thread_local"
                fake.waited = False

            def capture_end(self) -> None:
                fake.log.append("failed" if fake.waited else "captured")
                if fake.waited:
                    raise RuntimeError("operation failed due to a previous error during capture")

        class Stream:
            def __init__(self, name: Any = "side") -> None:
                self.name, self.device = name, torch.device("cpu")

        class On:
            def __init__(self, stream: Stream) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                self.before, fake.current = fake.current, self.stream.name

            def __exit__(self, *args: object) -> None:
                fake.current = self.before

        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
        for name, replacement in {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "stream": On,
            "current_stream": lambda: Stream(fake.current),
            "set_stream": lambda stream: setattr(fake, "current", stream.name),
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, replacement)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)

    def wait(self) -> None:
        self.waited = True
        raise RuntimeError("operation not permitted when stream is capturing")


CPU = torch.device("cpu")


def test_a_capture_that_fails_leaves_neither_its_stream_nor_its_capture_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    assert captured.capture(lambda: cuda.current, CPU)[1] == "side"
    with pytest.raises(RuntimeError, match="during capture"):
        captured.capture(cuda.wait, CPU)
    assert cuda.current == "main"
    assert cuda.log == ["captured", "failed", "captured"]  # the last takes the generator out of the failed one


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("objective", "dtype", "bound"),
    [
        # in float64: a rounding of float32 turns signs of I-FGSM's gradients, and SAT-R1's regularizer with them
        (SatR1(0.03, lam=0.2, steps=3, k=2), torch.float64, 1e-6),
        (SatR3(0.03, eps_low=0.01, lam=1.0, tau=0.4), torch.float64, 1e-6),
        (FgsmAT(0.03), torch.float32, 0.05),  # in channels last: crafted by convolutions that rectify too
    ],
    ids=["r1", "r3", "fgsm"],
)
def test_a_captured_step_through_batch_norm_gives_the_numbers_of_an_eager_one(
    objective: Any, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, calls = [], list[int]()

    def counted(*arguments: Any, run: Any = layers._by_cudnn) -> Tensor:
        calls.append(1)
        return run(*arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(layers, "_by_cudnn", counted)
    for captured_too in (False, True):
        torch.manual_seed(0)
        fabric = Fabric(accelerator="cuda", devices=1)
        fabric.launch()
        model = build_model("conv-norm", num_classes=10, in_channels=3, image_size=32).to(dtype)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        eager = EagerStep(fabric, *fabric.setup(model, optimizer))
        step = CapturedStep(eager) if captured_too else eager
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(32, 3, 32, 32, generator=generator).to("cuda", dtype, memory_format=torch.channels_last)
        labels = torch.randint(10, (32,), generator=generator).to("cuda")
        losses.append(torch.stack([step(objective, inputs, labels, 0.01) for _ in range(WARM_UP + 5)]))
    assert torch.allclose(losses[0], losses[1], rtol=bound)
    assert bool(calls) == (dtype == torch.float32)


@pytest.mark.gpu
def test_a_captured_step_crafts_on_the_source_that_an_eager_one_draws() -> None:
    one, other = digits_step("cuda"), digits_step("cuda")
    fast, objective = CapturedStep(other), ensemble("cuda")
    inputs, labels = batch(32, "cuda")
    for number in range(8 * WARM_UP):
        torch.manual_seed(number)
        expected = one(objective, inputs, labels, 0.01)
        torch.manual_seed(number)
        assert torch.allclose(fast(objective, inputs, labels, 0.01), expected, rtol=1e-3, atol=1e-5)
    assert fast.graphs == 3


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # PyTorch tells that the mode which finds a wait is a prototype
def test_no_step_of_an_epoch_waits_for_the_device() -> None:
    """PyTorch itself tells of every wait that it knows of."""
    model = build_model("resnet-18", num_classes=10, in_channels=3, image_size=32).to("cuda")
    average = MovingAverage(model, 0.9)
    fabric = Fabric(accelerator="cuda", devices=1)
    fabric.launch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    notes: list[str] = []
    step = CapturedStep(EagerStep(fabric, *fabric.setup(model, optimizer)), notes.append)
    images = torch.randint(256, (64 * 8, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.zeros(len(images), dtype=torch.int64))
    batches = Batches(split, 64, device="cuda", shuffle=True, augment="crop-flip", channels_last=True)
    history = LossHistory(len(batches), torch.device("cuda"))
    try:
        for number, (inputs, labels) in enumerate(batches.epoch(1), start=1):
            history.add(step(SatR3(0.1, eps_low=0.02, lam=1.0, tau=0.4), inputs, labels, 0.1))
            average.update(model)
            history.arrived()
            if number > WARM_UP:
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert number == 8
    assert (step.graphs, notes) == (1, [])
    assert history.arrived(wait=True).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("objective", CAPTURABLE, ids=lambda objective: type(objective).__name__)
def test_a_captured_step_gives_the_numbers_of_an_eager_one(objective: Callable[..., LossTerms]) -> None:
    eager, other = digits_step("cuda"), digits_step("cuda")
    notes: list[str] = []
    fast = CapturedStep(other, notes.append)
    inputs, labels = batch(32, "cuda")
    for number in range(WARM_UP + 5):
        rate, rows = 0.1 / (number + 1), slice(None) if number != WARM_UP + 2 else slice(0, 7)
        torch.manual_seed(number)
        expected = eager(objective, inputs[rows], labels[rows], rate)
        torch.manual_seed(number)
        assert torch.allclose(fast(objective, inputs[rows], labels[rows], rate), expected, rtol=1e-3, atol=1e-5)
    assert notes == []
    assert fast.graphs == 1
    for ours, theirs in zip(other.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", [NormalTraining(), RFgsmAT(0.01, random_step=0.005)], ids=["normal", "random"])
def test_a_model_that_waits_for_the_device_is_not_captured_and_still_trains(objective: Any) -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.layer(inputs.flatten(1))
            return logits * float(inputs.sum().isfinite())

    fabric = Fabric(accelerator="cuda", devices=1)
    fabric.launch()
    model = Waits()
    wrapped = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True))
    notes: list[str] = []
    step = CapturedStep(EagerStep(fabric, *wrapped), notes.append)
    inputs, labels = batch(16, "cuda")
    before = torch.cuda.current_stream()
    losses = [step(objective, inputs, labels, 0.1)[0].item() for _ in range(WARM_UP + 4)]
    assert losses[-1] < losses[0]
    assert len(notes) == 1
    assert "not captured" in notes[0]
    assert torch.cuda.current_stream() == before
