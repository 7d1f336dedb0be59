"""What only a GPU can tell: a whole training by graphs and an evaluation there come to what they come to elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from surefoot.attacks import PGD, AutoAttack
from surefoot.core.gradients import crafting, input_gradient
from surefoot.core.types import Attack
from surefoot.data import Batches, Split
from surefoot.evaluation import evaluate
from surefoot.evaluation.precision import exact_float32
from surefoot.models import build_model, layers
from surefoot.recipes import RECIPES, train
from tests.tables import EPS, trained

DEVICE: Literal["cuda"] = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # what PyTorch tells its own users fails nothing


@pytest.mark.parametrize(("precision", "optimizer"), [("fp32", "sgd"), ("bf16", "sgd"), ("fp32", "adamw")])
def test_a_training_by_graphs_sees_and_gives_what_one_step_by_step_does(
    tmp_path: Path, precision: Any, optimizer: Any
) -> None:
    """With a bound on the gradient, the moving average and the monitor, whose looks are a graph from the second on."""
    lines = {}
    for capture in ("auto", "off"):
        recipe = RECIPES["digits/sat-r3"]
        training = dataclasses.replace(
            recipe.training,
            device=DEVICE,
            precision=precision,
            optimizer=optimizer,
            capture=capture,
            monitor_every=4,
            ema_decay=0.5,
            max_grad_norm=1.0,
        )
        if optimizer == "adamw":
            training = dataclasses.replace(training, learning_rate=training.learning_rate / 10)
        notes: list[str] = []
        recipe = dataclasses.replace(recipe, epochs=2, training=training)
        lines[capture] = train(recipe, tmp_path / capture, on_note=notes.append).metrics
        assert notes == []
    for one, other in zip(lines["auto"], lines["off"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)
        assert one["validation_robust_accuracy"] == pytest.approx(other["validation_robust_accuracy"], abs=0.05)
        assert len(one["monitor"]) >= 3
        for look, other_look in zip(one["monitor"], other["monitor"], strict=True):
            assert look["fgsm_loss"] == pytest.approx(other_look["fgsm_loss"], rel=0.1)
            assert look["agreement"] == pytest.approx(other_look["agreement"], abs=0.05)


def some_batches(device: str) -> Batches:
    _, inputs, labels = trained()
    return Batches(Split((inputs * 255).round().to(torch.uint8), labels), 30, device=device)


@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_an_evaluation_comes_to_what_it_comes_to_on_a_cpu(precision: Any) -> None:
    eps = EPS / 2  # leaves two thirds of the images
    attacks: list[Attack] = [PGD(eps, 20, eps / 4), AutoAttack(eps, steps=10, queries=50)]
    found = [
        [record.robust_accuracy for record in evaluate(net, some_batches(device), attacks, precision=precision)]
        for device in ("cpu", DEVICE)
        for net in [trained()[0].to(device)]
    ]
    assert found[1] == pytest.approx(found[0], abs=0.05)
    assert found[1][0] > found[1][1] > 0


class Hungry(nn.Module):
    """More memory than there is, for more than a few images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > 4:
            torch.empty(1 << 50, dtype=torch.uint8, device=inputs.device)
        return self.net(inputs)  # type: ignore[no-any-return]


def test_where_memory_runs_out_the_batch_is_halved() -> None:
    net, notes = trained()[0].to(DEVICE), list[str]()
    expected, found = (
        evaluate(model, some_batches(DEVICE), [PGD(EPS, 5, EPS / 4, random_start=False)], on_note=notes.append)
        for model in (net, Hungry(net))
    )
    assert [each.robust_accuracy for each in found] == [each.robust_accuracy for each in expected]
    assert notes[-1].endswith("going on with 4.")


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_kernel_gives_the_outputs_and_gradients_of_three(
    dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to float32's as theirs; twice, with memory that held NaN before, of which nothing may be read."""
    torch.manual_seed(0)
    net = build_model("resnet-18", num_classes=10, in_channels=3, image_size=32).to(DEVICE)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = torch.rand(size, 3, 32, 32, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(size, device=DEVICE) % 10
    calls: list[int] = []

    def counted(*arguments: Any, run: Any = layers._by_cudnn) -> Tensor:
        calls.append(1)
        return run(*arguments)  # type: ignore[no-any-return]

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def attacked() -> tuple[Tensor, Tensor]:
        del calls[:]
        spoilt = [torch.full((size, 64, 32, 32), torch.nan, device=DEVICE) for _ in range(20)]
        del spoilt
        with crafting(net) as frozen:
            return input_gradient(frozen, inputs, loss)

    monkeypatch.setattr(layers, "_by_cudnn", counted)
    with exact_float32(inputs.device):
        exact = attacked()
    assert calls == []
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
        ours = [attacked() for _ in range(2)][1]
        assert len(calls) == 17
        monkeypatch.setattr(layers, "_in_one_kernel", lambda layer, input: False)
        theirs = attacked()
        assert calls == []
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.isfinite().all()
        assert float((mine - true).norm()) < 1.5 * float((other - true).norm()) + 1e-5 * float(true.norm())
