"""What a CUDA graph would get wrong, seen on a simulated one: stale, garbage, and what a replay does not do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from surefoot.core.types import LossTerms
from surefoot.data import load
from surefoot.models import build_model
from surefoot.objectives import FgsmAT, NormalTraining, SatR1, SatR2, SatR3
from surefoot.training import FitConfig, Look, Monitor, Phase, fit
from surefoot.training.captured import WARM_UP, CapturedStep
from surefoot.training.optimizers import make_optimizer
from surefoot.training.step import EagerStep
from tests.graphs import SimulatedGraph
from tests.graphs import graphs as graphs

NUMBERS = ("fgsm_loss", "pgd_loss", "losses_along", "rfgsm_distance", "agreement")


def stepping(
    model: nn.Module, notes: list[str] | None, precision: Any = "32-true", optimizer: Any = "sgd"
) -> Callable[..., Tensor]:
    """A step of this model: captured where notes are taken, else eager."""
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    optimizer = make_optimizer(model, FitConfig(optimizer=optimizer, weight_decay=0.0), torch.device("cpu"))
    eager = EagerStep(fabric, *fabric.setup(model, optimizer))
    return eager if notes is None else CapturedStep(eager, notes.append)


def batch(channels: int = 3, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(8, channels, size, size, generator=generator), torch.arange(8)


@pytest.mark.parametrize(("precision", "optimizer"), [("32-true", "sgd"), ("bf16-mixed", "sgd"), ("32-true", "adamw")])
@pytest.mark.parametrize(
    "objective",
    [SatR1(0.03, lam=0.2, steps=3, k=2), SatR2(0.03, random_step=0.01, lam=1.0), SatR3(0.03, 0.01, lam=1.0, tau=0.4)],
    ids=["r1", "r2", "r3"],
)
def test_replayed_steps_are_eager_ones_with_batch_norms_and_casts(
    objective: Any, precision: Any, optimizer: Any, graphs: list[SimulatedGraph]
) -> None:
    inputs, labels = batch()
    notes: list[str] = []
    losses: list[list[Tensor]] = []
    models: list[nn.Module] = []
    for taken in (None, notes):
        torch.manual_seed(0)
        models.append(build_model("conv-norm", num_classes=10, in_channels=3, image_size=16))
        step = stepping(models[-1], taken, precision, optimizer)
        losses.append([])
        for number in range(WARM_UP + 4):
            torch.manual_seed(number)
            losses[-1].append(step(objective, inputs, labels, 0.05 if optimizer == "sgd" else 0.001))
    assert notes == []
    assert [graph.replays for graph in graphs] == [4]
    assert torch.allclose(torch.stack(losses[0]), torch.stack(losses[1]), rtol=1e-4)
    for ours, theirs in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


class MakesAnew(nn.Module):
    """Keeps a mean of what it trained on in a buffer that each forward makes anew; may wait for the device."""

    mean: Tensor

    def __init__(self, *, waits: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(()))
        self.waits = waits

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.mean()
        scale = float(inputs.sum().isfinite()) if self.waits else 1.0
        return scale * self.layer(inputs.flatten(1) - self.mean)  # type: ignore[no-any-return]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.usefixtures("graphs")
def test_a_model_that_makes_a_buffer_anew_is_told_and_trains_as_without_a_graph(waits: bool) -> None:
    inputs, labels = batch(1, 8)
    notes: list[str] = []
    found = []
    for taken in (None, notes):
        torch.manual_seed(0)
        model = MakesAnew(waits=waits)
        step = stepping(model, taken)
        losses = torch.stack([step(NormalTraining(), inputs, labels, 0.1) for _ in range(WARM_UP + 4)])
        found.append((losses, model.mean))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] > 0
    assert len(notes) == 1
    assert ("not permitted" if waits else "its forward makes the buffer 'mean' anew") in notes[0]


@pytest.mark.usefixtures("graphs")
def test_uncapturable_objectives_with_tensors_in_them_are_told_apart() -> None:
    @dataclasses.dataclass(frozen=True)
    class Weighted:
        weights: Tensor

        def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
            return NormalTraining()(model, inputs, labels)

    @dataclasses.dataclass
    class Listed:
        weights: list[float]

        def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
            return NormalTraining()(model, inputs, labels)

    inputs, labels = batch(1, 8)
    notes: list[str] = []
    step = stepping(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), notes)
    objectives: list[Any] = [Weighted(torch.ones(3)), Weighted(torch.zeros(3)), Listed([1.0]), Listed([2.0])]
    for objective in objectives * 2:
        step(objective, inputs, labels, 0.1)
    assert [note.split()[0] for note in notes] == ["Weighted", "Weighted", "Listed", "Listed"]


def looks(model: nn.Module, *, precision: str, capture: Any = "auto", count: int = 3) -> list[Look]:
    """What a monitor sees of a model whose weights move between its looks."""
    inputs, labels = batch()
    monitor = Monitor(inputs, labels, eps=0.03, every=1, capture=capture)
    with torch.random.fork_rng():
        for number in range(1, count + 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                monitor(model, number)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(0.9)
    return monitor.history


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "batch-norm":
        return build_model("conv-norm", num_classes=10, in_channels=3, image_size=16)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 10))


def same(one: list[Look], other: list[Look]) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(one, other, strict=True) for name in NUMBERS]
    return all(a == pytest.approx(b, rel=1e-5, abs=1e-7) for a, b in pairs)


class Waits(nn.Module):
    """Asks the device for a number."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.net(inputs)
        return logits * float(inputs.sum().isfinite())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["batch-norm", "linear"])
@pytest.mark.parametrize("waits", [False, True], ids=["captured", "fails"])
def test_a_look_by_a_graph_sees_what_one_without_sees(
    waits: bool, kind: str, precision: str, graphs: list[SimulatedGraph]
) -> None:
    expected = looks(network(kind), precision=precision, capture="off")
    assert graphs == []
    found = looks(Waits(network(kind)) if waits else network(kind), precision=precision)
    assert same(found, expected)
    assert [graph.replays for graph in graphs if graph.replays] == ([] if waits else [2])


class Counts(nn.Module):
    """Counts its calls in a buffer."""

    seen: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += 1
        return self.net(inputs)  # type: ignore[no-any-return]


def test_a_look_by_a_graph_leaves_buffers_as_they_were(graphs: list[SimulatedGraph]) -> None:
    model = Counts(network("linear"))
    looks(model, precision="fp32", count=5)
    assert graphs[0].replays == 4
    assert model.seen == 0


def test_a_training_that_is_not_captured_has_looks_that_are_not(graphs: list[SimulatedGraph]) -> None:
    digits = load("digits")
    probe = digits.validation.images[:32].float() / 255, digits.validation.labels[:32]
    monitor = Monitor(*probe, eps=0.3, every=10)
    net = build_model("digits-net", num_classes=10, in_channels=1, image_size=8)
    config = FitConfig(device="cpu", capture="off")
    fit(net, digits, [Phase(FgsmAT(0.3), epochs=3)], config, monitor=monitor)
    assert len(monitor.history) > 2
    assert graphs == []
    assert monitor.capture == "auto"  # as it was
