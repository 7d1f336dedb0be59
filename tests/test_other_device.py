"""What would run on a GPU mixes no devices: attacks, objectives, evaluations, the monitor and the audit, on a CPU.

Nor do they depend on the caller's default device and type, or on what a deterministic GPU refuses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from surefoot.attacks import FGSM, PGD, AutoAttack, DeepFool
from surefoot.audit import audit
from surefoot.audit.landscape import local_linearity_errors
from surefoot.core.gradients import input_gradient
from surefoot.core.losses import cross_entropy
from surefoot.core.types import Attack
from surefoot.data import Batches, Dataset, Split
from surefoot.evaluation import evaluate, evaluate_transfer, recognise
from surefoot.models import build_model
from surefoot.objectives import FgsmAT, SatR1
from surefoot.training import FitConfig, Phase, fit
from surefoot.training.monitor import Monitor
from tests.other_device import OtherDevice, WrongDevice, place_of
from tests.tables import ATTACKS, EPS, OBJECTIVE_CASES, AttackCase, ObjectiveCase, random_net, trained


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_an_attack_stays_on_the_device_of_its_images(case: AttackCase) -> None:
    net, inputs, labels = trained()
    with OtherDevice() as device:
        device.put(net, inputs, labels)
        perturbed = case.build(EPS)(net, inputs, labels)
    assert place_of(perturbed) == "device"


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_an_objective_stays_there_too(case: ObjectiveCase) -> None:
    _, inputs, labels = trained()
    net, source = random_net(), random_net(seed=1).eval()
    with OtherDevice() as device:
        device.put(net, source, inputs, labels)
        terms = case.build((source,))(net, inputs, labels)
        terms.loss.backward()  # type: ignore[no-untyped-call]
    assert {place_of(each) for each in (terms.loss, terms.classification)} == {"device"}


def moved_batches(*, channels_last: bool = False) -> Batches:
    """A few batches of what `trained` is given, moved to the device as they are."""
    _, inputs, labels = trained()
    images = (inputs * 255).round().to(torch.uint8)
    return Batches(Split(images, labels), 20, device=torch.device("cpu"), channels_last=channels_last)


@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_an_evaluation_stays_there_too(precision: str) -> None:
    net, _, _ = trained()
    with OtherDevice() as device:
        device.put(net)
        attacks = [
            case.build(EPS) for case in ATTACKS if case.name in ("PGD", "DeepFool", "CarliniWagnerL2", "AutoAttack")
        ]
        records = evaluate(net, moved_batches(), attacks, precision=precision, worst_case=True)  # type: ignore[arg-type]
        crossed = evaluate_transfer(net, [net], moved_batches(), attacks[:1])
    assert records[1].robust_accuracy < records[0].robust_accuracy
    assert len(crossed[0]) == 2


@pytest.mark.slow
def test_an_audit_stays_there_too() -> None:
    net, inputs, labels = trained()
    with OtherDevice() as device:
        device.put(net, inputs, labels)
        found = audit(net, inputs[:8], labels[:8], EPS, others=inputs[8:24])
    assert found.checks


def test_a_monitor_stays_there_too() -> None:
    net, inputs, labels = trained()
    with OtherDevice() as device:
        device.put(net, inputs, labels)
        look = Monitor(inputs, labels, EPS, every=1)(net, 1)
    assert look is not None


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> OtherDevice:
    """One of Apple's GPUs, which surefoot takes every device for."""
    monkeypatch.setattr("surefoot.core.devices.is_apple", lambda device: True)
    return OtherDevice(apple=True)


def test_attacks_and_objectives_need_nothing_that_apple_gpus_lack(apple: OtherDevice) -> None:
    net, inputs, labels = trained()
    source = random_net(seed=1).eval()
    with apple as device:
        device.put(net, source, inputs, labels)
        for attack in ATTACKS:
            assert place_of(attack.build(EPS)(net, inputs, labels)) == "device"
        for objective in OBJECTIVE_CASES:
            assert place_of(objective.build((source,))(net, inputs, labels).loss) == "device"


@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_an_evaluation_needs_nothing_that_they_lack(apple: OtherDevice, precision: Literal["strict", "fast"]) -> None:
    net, _, _ = trained()
    with apple as device:
        device.put(net)
        attacks: list[Attack] = [FGSM(EPS), DeepFool(steps=8), AutoAttack(EPS, steps=2, queries=4)]
        records = evaluate(net, moved_batches(channels_last=True), attacks, precision=precision, worst_case=True)
    assert records[1].mean_l2 is not None


def test_a_training_with_its_monitor_needs_nothing_that_they_lack(apple: OtherDevice) -> None:
    _, inputs, labels = trained()
    split = Split((inputs * 255).round().to(torch.uint8), labels)
    dataset = Dataset("made", split, split, split, num_classes=3, class_names=("a", "b", "c"))
    phases = [Phase(SatR1(EPS, lam=0.2, steps=2), epochs=1)]
    config = FitConfig(batch_size=20, device="cpu", augment="crop-flip", ema_decay=0.9)
    with apple:
        result = fit(random_net(), dataset, phases, config, monitor=Monitor(inputs, labels, EPS, every=1))
    assert result.metrics[0]["monitor"]


@pytest.mark.slow
def test_an_audit_needs_nothing_that_they_lack(apple: OtherDevice) -> None:
    net, inputs, labels = trained()
    with apple as device:
        device.put(net, inputs, labels)
        found = audit(net, inputs[:8], labels[:8], EPS, others=inputs[8:24])
    assert len(found.checks) == 12


def test_what_apple_gpus_lack_is_caught(apple: OtherDevice) -> None:
    _, inputs, _ = trained()
    with apple as device:
        device.put(inputs)
        for planted in (
            inputs.double,
            lambda: inputs.flatten(1).cummax(dim=1),
            lambda: inputs.contiguous(memory_format=torch.channels_last),
        ):
            with pytest.raises(WrongDevice):
                planted()
        assert inputs.cpu().double().dtype == torch.float64


def planted_zeros(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return inputs + torch.zeros(inputs.shape)


def planted_choice(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    gradient, _ = input_gradient(model, inputs, lambda logits: cross_entropy(logits, labels))
    signs = torch.tensor([-1.0, 1.0])
    return torch.where(gradient > 0, signs[1].expand(inputs.shape), gradient)


def planted_index(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return torch.eye(3)[labels]


def planted_numpy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return torch.from_numpy(inputs.numpy())


@pytest.mark.parametrize("attack", [planted_zeros, planted_choice, planted_index, planted_numpy])
def test_what_leaves_the_device_is_caught(attack: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
    net, inputs, labels = trained()
    with OtherDevice() as device:
        device.put(net, inputs, labels)
        with pytest.raises(WrongDevice):
            attack(net, inputs, labels)


def test_what_a_gpu_allows_is_allowed() -> None:
    _, inputs, labels = trained()
    with OtherDevice() as device:
        device.put(inputs, labels)
        assert place_of(inputs[torch.tensor([1, 2])]) == "device"
        assert place_of(inputs * torch.tensor(2.0)) == "device"
        assert place_of(inputs + torch.zeros(inputs.shape, device=inputs.device)) == "device"
        assert place_of(torch.zeros(3).to(inputs.device)) == "device"
        assert place_of(inputs.cpu()) == "host"
        inputs.copy_(torch.zeros(inputs.shape))
        assert place_of(inputs) == "device"


class Deterministic(TorchFunctionMode):
    """Refuses what a GPU does under `torch.use_deterministic_algorithms(True)`, of what could stand in our code."""

    REFUSED = ("bincount", "cumsum", "histc", "kthvalue", "median", "nanmedian", "put_")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, named = getattr(func, "__name__", ""), dict(kwargs or {})
        along = len(args) > 1 or bool(named)  # the median of all numbers is allowed
        if name in self.REFUSED and (along or "median" not in name):
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        return func(*args, **named)


def test_deterministic_algorithms_are_enough() -> None:
    net, inputs, labels = trained()
    with Deterministic():
        assert recognise(net, inputs, labels) == (net, [])
        errors = local_linearity_errors(net, inputs, [(inputs + EPS).clamp(0, 1)] * 2, labels)
        evaluate(net, moved_batches(), [AutoAttack(EPS, steps=2, queries=3), DeepFool(steps=2)])
        Monitor(inputs, labels, EPS, every=1)(net, 1)
    assert bool(((errors >= 0) & (errors <= 1)).all())


# The caller's own default device and type, which hold for tensors made without one. On `meta` nothing can be computed.


@pytest.fixture
def on_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


MODEL, INPUTS, LABELS = trained()


@pytest.mark.parametrize("defaults", ["on_meta", "in_double"])
@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_an_attack_hangs_on_no_default(case: AttackCase, defaults: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(defaults)
    perturbed = case.build(EPS)(MODEL, INPUTS, LABELS)
    assert (perturbed.device, perturbed.dtype) == (INPUTS.device, torch.float32)


@pytest.mark.parametrize("defaults", ["on_meta", "in_double"])
@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_nor_does_an_objective(case: ObjectiveCase, defaults: str, request: pytest.FixtureRequest) -> None:
    net, source = copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    request.getfixturevalue(defaults)
    terms = case.build((source,))(net, INPUTS, LABELS)
    assert (terms.loss.device, terms.loss.dtype) == (INPUTS.device, torch.float32)


@pytest.mark.parametrize("defaults", ["on_meta", "in_double"])
def test_nor_do_an_evaluation_and_an_audit(defaults: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    batches, attacks = moved_batches(), [PGD(EPS, 20, EPS / 5)]
    without = evaluate(MODEL, batches, attacks)
    request.getfixturevalue(defaults)
    found = evaluate(MODEL, batches, attacks, unfinished=tmp_path)
    assert [record.robust_accuracy for record in found] == [record.robust_accuracy for record in without]
    assert recognise(MODEL, INPUTS, LABELS) == (MODEL, [])
    assert audit(MODEL, INPUTS[:8], LABELS[:8], EPS, others=INPUTS[8:24], budget_minutes=0.01).checks


@pytest.mark.parametrize("defaults", ["on_meta", "in_double"])
def test_nor_does_a_training(defaults: str, request: pytest.FixtureRequest) -> None:
    net = build_model("digits-net", num_classes=10, in_channels=1, image_size=8)
    split = Split(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 10)
    dataset = Dataset("none", split, split, split, 10, tuple("0123456789"))
    monitor = Monitor(split.images / 255, split.labels, EPS, every=1)
    request.getfixturevalue(defaults)
    config = FitConfig(device="cpu", batch_size=10, augment="crop-flip", ema_decay=0.5)
    found = fit(net, dataset, [Phase(FgsmAT(EPS), epochs=1)], config, selection=FGSM(EPS), monitor=monitor)
    assert math.isfinite(found.metrics[0]["loss"])
    assert len(found.metrics[0]["monitor"]) == 2
