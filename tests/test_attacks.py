"""What every attack promises, over the whole table; and a planted fault for each promise."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

import surefoot.attacks
from surefoot.attacks import (
    APGD,
    FABT,
    FGSM,
    IFGSM,
    MIFGSM,
    PGD,
    RFGSM,
    CarliniWagnerL2,
    DeepFool,
    MarginLoss,
    Square,
    WorstCase,
)
from surefoot.attacks.gradient_sign import ascend
from surefoot.core.geometry import check_batch, linf_distance, project
from surefoot.core.gradients import crafting, input_gradient, plain_module
from surefoot.core.losses import cross_entropy, margin
from surefoot.core.types import Attack
from tests.tables import (
    ATTACKS,
    EPS,
    SHAPE,
    TOLERANCE,
    AttackCase,
    PlainNet,
    SmallNet,
    assert_valid,
    craft,
    forwards_that_spoil_autocast,
    random_batch,
    random_net,
    trained,
)


class Snapshot:
    """Everything of a model that crafting must not change."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.training = {name: part.training for name, part in model.named_modules()}
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self.grads = {
            name: None if parameter.grad is None else (parameter.grad, parameter.grad.clone())
            for name, parameter in model.named_parameters()
        }
        self.hooks = {name: len(part._forward_hooks) for name, part in model.named_modules()}

    def assert_unchanged(self) -> None:
        assert {name: part.training for name, part in self.model.named_modules()} == self.training
        assert {name: len(part._forward_hooks) for name, part in self.model.named_modules()} == self.hooks
        for name, tensor in self.model.state_dict().items():
            assert torch.equal(tensor, self.state[name]), name
        for name, parameter in self.model.named_parameters():
            assert parameter.requires_grad == self.required[name], name
            before = self.grads[name]
            if before is None:
                assert parameter.grad is None, name
            else:
                assert parameter.grad is before[0], name
                assert torch.equal(parameter.grad, before[1]), name


def mixed_net(dtype: torch.dtype = torch.float32) -> SmallNet:
    """In training mode but for its batch-norm, with one frozen weight and one filled `.grad`."""
    net = random_net(dtype=dtype).train()
    assert isinstance(net, SmallNet)
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    net.head.weight.grad = torch.full_like(net.head.weight, 7.0)
    return net


# The promises. Each takes a row of the table and raises AssertionError where the attack breaks it.


def keeps_shape_and_type(case: AttackCase) -> None:
    for dtype in (torch.float32, torch.float64):
        inputs, labels = random_batch(dtype=dtype)
        adv_inputs = craft(case.build(EPS), random_net(dtype=dtype), inputs, labels)
        assert adv_inputs.shape == inputs.shape
        assert adv_inputs.dtype == dtype
        assert not adv_inputs.requires_grad
        assert adv_inputs.data_ptr() != inputs.data_ptr()


def stays_in_the_pixel_range(case: AttackCase) -> None:
    inputs, labels = random_batch()
    for eps in (EPS, 0.5, 1.0):
        adv_inputs = craft(case.build(eps), random_net(), inputs, labels)
        assert bool(((adv_inputs >= 0) & (adv_inputs <= 1)).all())


def stays_in_the_ball(case: AttackCase) -> None:
    if not case.bounded:
        return
    for seed, eps in enumerate((8 / 255, EPS, 0.3)):
        inputs, labels = random_batch(seed=seed)
        adv_inputs = craft(case.build(eps), random_net(seed=seed), inputs, labels, seed)
        assert float((adv_inputs - inputs).abs().max()) <= eps + TOLERANCE


def leaves_no_trace_on_the_model(case: AttackCase) -> None:
    inputs, labels = random_batch()
    for net in (mixed_net(), random_net().eval(), random_net().train()):
        before = Snapshot(net)
        craft(case.build(EPS), net, inputs, labels)
        before.assert_unchanged()


def leaves_no_trace_when_the_model_raises(case: AttackCase) -> None:
    inputs, labels = random_batch()
    net = mixed_net()

    def explode(module: nn.Module, args: Any, output: Any) -> None:
        raise ArithmeticError("a layer failed")

    handle = net.head.register_forward_hook(explode)
    before = Snapshot(net)
    raised = False
    try:
        craft(case.build(EPS), net, inputs, labels)
    except ArithmeticError:
        raised = True
    assert raised
    before.assert_unchanged()
    handle.remove()


def leaves_the_batch_alone(case: AttackCase) -> None:
    inputs, labels = random_batch()
    kept_inputs, kept_labels = inputs.clone(), labels.clone()
    craft(case.build(EPS), random_net(), inputs, labels)
    assert torch.equal(inputs, kept_inputs)
    assert torch.equal(labels, kept_labels)
    assert not inputs.requires_grad
    assert inputs.grad is None


def computes_no_weight_gradient(case: AttackCase) -> None:
    inputs, labels = random_batch()
    net = random_net()
    computed: list[str] = []
    for name, parameter in net.named_parameters():
        parameter.register_hook(lambda gradient, name=name: computed.append(name))  # type: ignore[no-untyped-call]
    craft(case.build(EPS), net, inputs, labels)
    assert computed == []


def is_repeatable_under_a_seed(case: AttackCase) -> None:
    inputs, labels = random_batch()
    net = random_net()
    attack = case.build(EPS)
    once = craft(attack, net, inputs, labels, seed=3)
    assert torch.equal(craft(attack, net, inputs, labels, seed=3), once)
    assert torch.equal(craft(case.build(EPS), net, inputs, labels, seed=3), once)


def draws_only_where_random(case: AttackCase) -> None:
    inputs, labels = random_batch()
    net = random_net().train()  # its dropout must not draw either
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = case.build(EPS)(net, inputs, labels)
    moved = not torch.equal(torch.get_rng_state(), before)
    assert moved == case.random
    if case.random:
        assert not torch.equal(case.build(EPS)(net, inputs, labels), first)


def treats_each_example_alone(case: AttackCase) -> None:
    if case.random:
        return
    inputs, labels = random_batch(dtype=torch.float64)
    net = random_net(dtype=torch.float64)
    attack = case.build(EPS)
    together = attack(net, inputs, labels)
    alone = torch.cat([attack(net, inputs[i : i + 1], labels[i : i + 1]) for i in range(len(inputs))])
    assert float((together - alone).abs().max()) <= 1e-12


def beats_doing_nothing(case: AttackCase) -> None:
    net, inputs, labels = trained()
    adv_inputs = craft(case.build(EPS), net, inputs, labels)
    with torch.no_grad():
        clean, attacked = net(inputs), net(adv_inputs)
    assert float(F.cross_entropy(attacked, labels)) > float(F.cross_entropy(clean, labels)) + 0.1
    right, still_right = (clean.argmax(1) == labels).sum(), (attacked.argmax(1) == labels).sum()
    assert int(still_right) < int(right)


def does_nothing_at_radius_zero(case: AttackCase) -> None:
    if not case.bounded:
        return
    inputs, labels = random_batch()
    assert torch.equal(craft(case.build(0.0), random_net(), inputs, labels), inputs)


def crafts_in_evaluation_mode(case: AttackCase) -> None:
    inputs, labels = random_batch()
    training, evaluating = random_net().train(), random_net().eval()
    attack = case.build(EPS)
    assert torch.equal(craft(attack, training, inputs, labels), craft(attack, evaluating, inputs, labels))


def takes_a_batch_of_one(case: AttackCase) -> None:
    inputs, labels = random_batch(count=1)
    adv_inputs = craft(case.build(EPS), random_net(), inputs, labels)
    assert adv_inputs.shape == inputs.shape
    assert bool(torch.isfinite(adv_inputs).all())


def takes_constant_images(case: AttackCase) -> None:
    labels = torch.arange(3)
    for value in (0.0, 0.5, 1.0):
        inputs = torch.full((3, *SHAPE), value)
        adv_inputs = craft(case.build(EPS), random_net(), inputs, labels)
        assert_valid(adv_inputs, inputs, EPS if case.bounded else 1.0)


def survives_a_model_without_slope(case: AttackCase) -> None:
    inputs, labels = random_batch()
    flat = random_net()
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()
    adv_inputs = craft(case.build(EPS), flat, inputs, labels)
    assert_valid(adv_inputs, inputs, EPS if case.bounded else 1.0)


def does_not_ask_for_the_callers_grad_mode(case: AttackCase) -> None:
    inputs, labels = random_batch()
    net = random_net()
    attack = case.build(EPS)
    expected = craft(attack, net, inputs, labels)
    with torch.no_grad():
        assert torch.equal(craft(attack, net, inputs, labels), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        inside = inputs.clone(), labels.clone()  # inference tensors: autograd may not save them
        assert torch.equal(craft(attack, net, inputs, labels), expected)
        assert torch.equal(craft(attack, net, *inside), expected)
    assert torch.equal(craft(attack, net, *inside), expected)
    asked = inputs.clone().requires_grad_()
    adv_inputs = craft(attack, net, asked, labels)
    assert torch.equal(adv_inputs, expected)
    assert not adv_inputs.requires_grad
    assert asked.grad is None


def sees_through_wrappers(case: AttackCase) -> None:
    inputs, labels = random_batch()
    net = random_net().train()
    attack = case.build(EPS)
    expected = craft(attack, net, inputs, labels)
    for wrapped in wrappers(net):
        before = Snapshot(net)
        assert torch.equal(craft(attack, wrapped, inputs, labels), expected)
        before.assert_unchanged()


def wrappers(net: nn.Module) -> list[nn.Module]:
    """`net` as Fabric, DataParallel and both hand it on; DDP and compile have tests of their own."""
    fabric = Fabric(accelerator="cpu", devices=1)
    return [fabric.setup(net), nn.DataParallel(net), fabric.setup(nn.DataParallel(net))]


PROMISES: list[Callable[[AttackCase], None]] = [
    keeps_shape_and_type,
    stays_in_the_pixel_range,
    stays_in_the_ball,
    leaves_no_trace_on_the_model,
    leaves_no_trace_when_the_model_raises,
    leaves_the_batch_alone,
    computes_no_weight_gradient,
    is_repeatable_under_a_seed,
    draws_only_where_random,
    treats_each_example_alone,
    beats_doing_nothing,
    does_nothing_at_radius_zero,
    crafts_in_evaluation_mode,
    takes_a_batch_of_one,
    takes_constant_images,
    survives_a_model_without_slope,
    does_not_ask_for_the_callers_grad_mode,
    sees_through_wrappers,
]


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_every_attack(promise: Callable[[AttackCase], None], case: AttackCase) -> None:
    promise(case)


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
@given(
    count=st.integers(1, 4),
    channels=st.integers(1, 3),
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    eps=st.floats(0, 1),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_every_attack_stays_valid_whatever_the_shape_radius_and_range(
    case: AttackCase,
    count: int,
    channels: int,
    height: int,
    width: int,
    eps: float,
    low: float,
    high: float,
    seed: int,
) -> None:
    inputs, labels = random_batch(count, (channels, height, width), seed)
    inputs = (min(low, high) + inputs * abs(high - low)).clamp(0, 1)
    net = random_net(lambda: SmallNet(channels=channels), seed)
    before = Snapshot(net)
    adv_inputs = craft(case.build(eps), net, inputs, labels, seed)
    assert_valid(adv_inputs, inputs, eps if case.bounded else 1.0)
    before.assert_unchanged()


def test_every_attack_of_the_package_has_a_row() -> None:
    import surefoot.attacks

    exported = set(surefoot.attacks.__all__) - {"ATTACKS", "Attack", "MarginLoss", "cross_entropy"}
    assert {kind.__name__ for kind in surefoot.attacks.ATTACKS.values()} == exported
    # and the audit's own
    assert {type(case.build(EPS)).__name__ for case in ATTACKS} == exported | {"LabelSearch"}


def test_an_attack_prints_itself_as_it_is_written() -> None:
    assert repr(APGD(0.1, 4)) == "APGD(eps=0.1, steps=4, restarts=1, loss=cross_entropy, stop_when_fooled=True)"
    attack = WorstCase([PGD(0.1, 4, 0.02), APGD(0.1, 4), PGD(0.1, 4, 0.02, loss=MarginLoss(50.0))])
    assert eval(repr(attack), vars(surefoot.attacks)) == attack


def test_names_in_the_table_are_unique() -> None:
    assert len({case.name for case in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_every_attack_is_a_frozen_dataclass_that_prints_and_dumps_itself(case: AttackCase) -> None:
    attack = case.build(EPS)
    assert isinstance(attack, Attack)
    settings = {field.name: getattr(attack, field.name) for field in fields(attack)}  # type: ignore[arg-type]
    assert settings
    assert all(f"{name}=" in repr(attack) for name in settings)
    if "eps" in settings:
        assert settings["eps"] == EPS
    assert attack == case.build(EPS)
    with pytest.raises(FrozenInstanceError):
        setattr(attack, next(iter(settings)), 0.2)


# Planted faults: attacks that break one promise each. `fault` names what is wrong with them.


@dataclass(frozen=True)
class Planted:
    """A sign attack with one deliberate fault."""

    eps: float
    fault: str = ""

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        fault = self.fault
        if fault == "does nothing":
            return inputs.clone()
        if fault == "hands the inputs back":
            return inputs
        if fault in ("leaves the model in evaluation mode", "forgets the mode when the model raises"):
            modes = {part: part.training for part in model.modules()}
            model.eval()
            adv_inputs = self.ascend(model, inputs, labels)
            if fault == "forgets the mode when the model raises":
                for part, mode in modes.items():
                    part.training = mode
            return adv_inputs
        if fault == "restores one flag for all":
            was_training = model.training
            model.eval()
            adv_inputs = self.ascend(model, inputs, labels)
            model.train(was_training)
            return adv_inputs
        if fault == "uses training mode":
            return self.ascend(model, inputs, labels)
        if fault == "keeps the caller's grad mode":
            module = plain_module(model)
            modes = {part: part.training for part in module.modules()}
            module.eval()
            adv_inputs = self.ascend(module, inputs, labels)
            for part, mode in modes.items():
                part.training = mode
            return adv_inputs
        if fault == "misses wrappers" and type(model) is not SmallNet:
            return inputs.clone()
        with crafting(model) as frozen:
            return self.ascend(frozen, inputs, labels)

    def ascend(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        fault, eps = self.fault, self.eps
        if fault == "writes into the inputs":
            inputs.clamp_(0.01, 0.99)
        if fault == "turns the inputs' gradient on":
            inputs.requires_grad_()
        leaf = inputs if inputs.requires_grad else inputs.detach().clone().requires_grad_()
        loss = F.cross_entropy(model(leaf), labels.clone(), reduction="sum")
        if fault in ("fills the weights' gradients", "clears the weights' gradients"):
            for parameter in model.parameters() if fault.startswith("clears") else []:
                parameter.grad = None
            if fault.startswith("fills"):
                torch.autograd.backward(loss)
                assert leaf.grad is not None
                gradient = leaf.grad
            else:
                (gradient,) = torch.autograd.grad(loss, leaf)
        elif fault == "computes the weights' gradients":
            learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradient = torch.autograd.grad(loss, [leaf, *learnable])[0]
        else:
            (gradient,) = torch.autograd.grad(loss, leaf)
        direction = gradient.sign()
        if fault == "goes downhill":
            direction = -direction
        elif fault == "normalises over the batch":
            direction = gradient / gradient.abs().max().clamp(min=1e-30)
        elif fault == "subtracts the batch's mean":
            direction = (gradient - gradient.mean(dim=0)).sign()
        elif fault == "divides by the gradient's length":
            direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        elif fault == "divides by the image's spread":
            direction = direction / inputs.std(dim=(1, 2, 3), keepdim=True).clamp(max=1) * inputs.std()
        elif fault == "draws from a generator of its own":
            generator = torch.Generator()
            generator.seed()
            direction = direction * (0.5 + 0.5 * torch.rand(inputs.shape, generator=generator))
        elif fault == "draws though it says it does not":
            torch.rand(1)
        elif fault == "freezes the weights":
            for parameter in model.parameters():
                parameter.requires_grad_(False)
        if fault == "leaves the ball":
            adv_inputs = inputs + 1.5 * eps * direction
        elif fault == "forgets the projection":
            adv_inputs = inputs + 3 * (eps / 2) * direction
        elif fault == "moves at radius zero":
            adv_inputs = inputs + max(eps, 1e-3) * direction
        else:
            adv_inputs = inputs + eps * direction
        if fault == "leaves the pixel range":
            return adv_inputs
        if fault == "keeps the graph":
            return adv_inputs.clamp(0, 1).requires_grad_()
        if fault == "squeezes a batch of one":
            return adv_inputs.detach().clamp(0, 1).squeeze(0)
        if fault == "widens the type":
            return adv_inputs.clamp(0, 1).double()
        return adv_inputs.detach().clamp(0, 1)


PLANTED: list[tuple[Callable[[AttackCase], None], str]] = [
    (keeps_shape_and_type, "widens the type"),
    (keeps_shape_and_type, "keeps the graph"),
    (keeps_shape_and_type, "hands the inputs back"),
    (stays_in_the_pixel_range, "leaves the pixel range"),
    (stays_in_the_ball, "leaves the ball"),
    (stays_in_the_ball, "forgets the projection"),
    (leaves_no_trace_on_the_model, "leaves the model in evaluation mode"),
    (leaves_no_trace_on_the_model, "restores one flag for all"),
    (leaves_no_trace_on_the_model, "uses training mode"),
    (leaves_no_trace_on_the_model, "fills the weights' gradients"),
    (leaves_no_trace_on_the_model, "clears the weights' gradients"),
    (leaves_no_trace_on_the_model, "freezes the weights"),
    (leaves_no_trace_when_the_model_raises, "forgets the mode when the model raises"),
    (leaves_the_batch_alone, "writes into the inputs"),
    (leaves_the_batch_alone, "turns the inputs' gradient on"),
    (computes_no_weight_gradient, "computes the weights' gradients"),
    (computes_no_weight_gradient, "fills the weights' gradients"),
    (is_repeatable_under_a_seed, "draws from a generator of its own"),
    (draws_only_where_random, "draws though it says it does not"),
    (draws_only_where_random, "uses training mode"),
    (treats_each_example_alone, "normalises over the batch"),
    (treats_each_example_alone, "subtracts the batch's mean"),
    (beats_doing_nothing, "does nothing"),
    (beats_doing_nothing, "goes downhill"),
    (does_nothing_at_radius_zero, "moves at radius zero"),
    (crafts_in_evaluation_mode, "uses training mode"),
    (takes_a_batch_of_one, "squeezes a batch of one"),
    (takes_constant_images, "divides by the image's spread"),
    (survives_a_model_without_slope, "divides by the gradient's length"),
    (does_not_ask_for_the_callers_grad_mode, "keeps the caller's grad mode"),
    (does_not_ask_for_the_callers_grad_mode, "keeps the graph"),
    (sees_through_wrappers, "misses wrappers"),
]


@pytest.mark.parametrize(("promise", "fault"), PLANTED, ids=lambda part: getattr(part, "__name__", part))
def test_a_planted_fault_is_found(promise: Callable[[AttackCase], None], fault: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        promise(AttackCase(fault, lambda eps: Planted(eps, fault)))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_the_same_attack_without_a_fault_passes(promise: Callable[[AttackCase], None]) -> None:
    promise(AttackCase("faultless", Planted))


def test_every_promise_has_a_planted_fault() -> None:
    assert {promise for promise, _ in PLANTED} == set(PROMISES)


# Wrappers that are slow to make.


def test_crafting_looks_into_torch_compile() -> None:
    inputs, labels = random_batch()
    net = random_net()
    compiled: Any = torch.compile(net, backend="eager")
    for wrapped in (compiled, Fabric(accelerator="cpu", devices=1).setup(compiled)):
        assert plain_module(wrapped) is net
        assert torch.equal(FGSM(EPS)(wrapped, inputs, labels), FGSM(EPS)(net, inputs, labels))


def test_crafting_looks_into_distributed_data_parallel() -> None:
    net = random_net()
    # Without its constructor, which wants a process group: only what crafting looks at.
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = net
    assert plain_module(wrapped) is net
    inputs, labels = random_batch()
    assert torch.equal(FGSM(EPS)(wrapped, inputs, labels), FGSM(EPS)(net, inputs, labels))


def test_autocast_crafts_in_range_and_still_fools() -> None:
    net, inputs, labels = trained()
    with torch.autocast("cpu", torch.bfloat16):
        adv_inputs = PGD(EPS, 5, EPS / 3, random_start=False)(net, inputs, labels)
    assert_valid(adv_inputs, inputs, EPS)
    assert float((net(adv_inputs).argmax(1) == labels).float().mean()) < 0.5


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_no_attack_spoils_the_autocast_that_it_is_called_in(case: AttackCase) -> None:
    """The training step behind it would have no gradient for weights that were cast without one."""
    net = random_net(PlainNet)
    found = forwards_that_spoil_autocast(net)
    with torch.autocast("cpu", torch.bfloat16):
        case.build(EPS)(net, *random_batch())
        assert torch.is_autocast_cache_enabled()
    assert found
    assert not any(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_every_attack_runs_in_half_precision(case: AttackCase, dtype: torch.dtype) -> None:
    inputs, labels = random_batch(dtype=torch.float64)
    inputs = inputs.to(dtype)
    adv_inputs = craft(case.build(EPS), random_net(PlainNet).to(dtype), inputs, labels)
    assert adv_inputs.dtype == dtype
    assert bool(((adv_inputs >= 0) & (adv_inputs <= 1)).all())
    if case.bounded:
        assert float((adv_inputs.double() - inputs.double()).abs().max()) <= EPS + 1 / 256  # a rounding step


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_weights_and_images_of_two_types_are_refused_in_a_sentence(case: AttackCase, dtype: torch.dtype) -> None:
    net = random_net(PlainNet).to(dtype)
    told = f"weights are {str(dtype).removeprefix('torch.')}, the images float32, .* model.to\\(inputs.dtype\\)"
    with pytest.raises(TypeError, match=told):
        case.build(EPS)(net, *random_batch())


class ConvertsItsInputs(PlainNet):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.to(self.head.weight.dtype))


def test_weights_of_another_type_are_no_fault_where_the_model_converts_its_inputs() -> None:
    inputs, labels = random_batch()
    adv_inputs = PGD(EPS, 3, EPS / 2, restarts=2)(random_net(ConvertsItsInputs).double(), inputs, labels)
    assert adv_inputs.dtype == inputs.dtype
    assert_valid(adv_inputs, inputs, EPS)


def test_another_error_of_a_model_of_another_type_is_its_own() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    net = random_net(PlainNet).double()
    net.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        FGSM(EPS)(net, *random_batch())


def test_momentum_moves_half_precision_images_whose_gradients_l1_norm_overflows() -> None:
    pixels = 20_000
    slope = torch.where(torch.arange(pixels) % 3 == 0, -8.0, 8.0)  # l1 norm 160,000; float16 ends at 65,504
    net = nn.Linear(pixels, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.stack([slope, 0 * slope]))
    inputs, labels = torch.full((1, pixels), 0.5), torch.tensor([0])
    attack = MIFGSM(EPS, steps=4, loss=MarginLoss(0.0))
    whole = attack(net, inputs, labels)
    half = attack(net.half(), inputs.half(), labels)
    assert half.dtype == torch.float16
    assert float((half - inputs).abs().min()) > 0.9 * EPS
    assert torch.equal((half - 0.5).sign().float(), (whole - 0.5).sign())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attack", [IFGSM(EPS, 500), MIFGSM(EPS, 500), PGD(EPS, 500, EPS / 500, random_start=False)])
def test_steps_below_what_half_precision_can_tell_apart_move_all_the_same(attack: Attack, dtype: torch.dtype) -> None:
    net = nn.Linear(4, 2).to(dtype)
    inputs, labels = torch.full((1, 4), 0.75, dtype=dtype), torch.tensor([0])
    moved = (attack(net, inputs, labels).float() - 0.75).abs()
    assert float((moved - EPS).abs().max()) <= 1 / 256  # a rounding step


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_an_empty_batch_stays_empty(case: AttackCase) -> None:
    inputs, labels = random_batch()
    assert craft(case.build(EPS), random_net(), inputs[:0], labels[:0]).shape == (0, *SHAPE)


# Refusals.

BAD_BATCHES: list[tuple[str, Tensor, Tensor, type[Exception], str]] = [
    (
        "above one",
        torch.full((2, *SHAPE), 1.01),
        torch.zeros(2).long(),
        ValueError,
        "range from 1.01 to 1.01",
    ),
    ("below zero", torch.full((2, *SHAPE), -0.01), torch.zeros(2).long(), ValueError, "pixels in [0, 1]"),
    ("raw bytes as floats", torch.full((2, *SHAPE), 255.0), torch.zeros(2).long(), ValueError, "255"),
    ("nan", torch.full((2, *SHAPE), float("nan")), torch.zeros(2).long(), ValueError, "nan"),
    ("integers", torch.ones(2, *SHAPE, dtype=torch.uint8), torch.zeros(2).long(), TypeError, "uint8"),
    ("int32 labels", torch.ones(2, *SHAPE), torch.zeros(2).int(), TypeError, "int64"),
    ("float labels", torch.ones(2, *SHAPE), torch.zeros(2), TypeError, "int64"),
    ("one label too few", torch.ones(2, *SHAPE), torch.zeros(1).long(), ValueError, "labels [1]"),
    ("one-hot labels", torch.ones(2, *SHAPE), torch.zeros(2, 3).long(), ValueError, "labels [2, 3]"),
    ("no batch", torch.ones(4), torch.zeros(4).long(), ValueError, "shape [4]"),
]


@pytest.mark.parametrize(("inputs", "labels", "error", "message"), [row[1:] for row in BAD_BATCHES])
@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_every_attack_refuses_a_bad_batch(
    case: AttackCase, inputs: Tensor, labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        case.build(EPS)(random_net(), inputs, labels)


@pytest.mark.parametrize(
    "case", [case for case in ATTACKS if case.name != "LabelSearch"], ids=lambda case: case.name
)  # the audit has looked at the labels before
def test_every_attack_refuses_a_label_beyond_the_models_classes(case: AttackCase) -> None:
    inputs, labels = random_batch(4)
    with pytest.raises(ValueError, match="a label is 7, but the model has the classes 0 to 2; give the data"):
        case.build(EPS)(random_net(), inputs, labels.index_fill(0, torch.tensor(1), 7))


BAD_FIELDS: list[tuple[Callable[[], object], str]] = [
    (lambda: FGSM(-0.1), "eps is -0.1; it must be a finite number of at least 0"),
    (lambda: FGSM(8), "eps is 8; pixels are in [0, 1], so write 8/255 instead of 8"),
    (lambda: FGSM(float("nan")), "eps is nan"),
    (lambda: FGSM(float("inf")), "eps is inf"),
    (lambda: FGSM(0.1, "ce"), "loss is 'ce'; give a function (logits, labels) -> [batch], as cross_entropy is"),  # type: ignore[arg-type]
    (lambda: RFGSM(0.1, 0.0, None), "loss is None"),  # type: ignore[arg-type]
    (lambda: IFGSM(0.1, 4, "ce"), "loss is 'ce'"),  # type: ignore[arg-type]
    (lambda: MIFGSM(0.1, 4, loss="ce"), "loss is 'ce'"),  # type: ignore[arg-type]
    (lambda: PGD(0.1, 4, 0.1, loss=MarginLoss), "loss is <class"),  # type: ignore[arg-type]
    (lambda: APGD(0.1, loss="ce"), "loss is 'ce'"),  # type: ignore[arg-type]
    (lambda: RFGSM(-0.1, 0.0), "eps is -0.1"),
    (lambda: RFGSM(8, 2), "eps is 8"),
    (lambda: RFGSM(0.1, 0.2), "random_step is 0.2; it must not exceed eps, 0.1"),
    (lambda: RFGSM(0.1, -0.1), "random_step is -0.1"),
    (lambda: IFGSM(8, 4), "eps is 8"),
    (lambda: IFGSM(0.1, 0), "steps is 0; it must be a whole number of at least 1"),
    (lambda: IFGSM(0.1, -3), "steps is -3"),
    (lambda: IFGSM(0.1, 2.5), "steps is 2.5"),  # type: ignore[arg-type]
    (lambda: IFGSM(0.1, True), "steps is True"),
    (lambda: MIFGSM(8, 4), "eps is 8"),
    (lambda: MIFGSM(0.1, 0), "steps is 0"),
    (lambda: MIFGSM(0.1, 4, decay=-1.0), "decay is -1.0; it must be a finite number of at least 0"),
    (lambda: MIFGSM(0.1, 4, decay=float("nan")), "decay is nan"),
    (lambda: MIFGSM(0.1, 4, decay=float("inf")), "decay is inf"),  # inf * 0 would make every momentum nan
    (lambda: PGD(8, 4, 2), "eps is 8"),
    (lambda: PGD(0.1, 0, 0.1), "steps is 0"),
    (lambda: PGD(0.1, 4, 2), "step_size is 2; pixels are in [0, 1]"),
    (lambda: PGD(0.1, 4, 0.0), "step_size is 0.0; it must be a finite number above 0"),
    (lambda: PGD(0.1, 4, -0.1), "step_size is -0.1"),
    (lambda: PGD(0.1, 4, 0.1, restarts=0), "restarts is 0"),
    (lambda: PGD(0.1, 4, 0.1, random_start=False, restarts=2), "restarts is 2 without a random start"),
    (lambda: PGD(0.1, 4, 0.1, start_radius=-0.1), "start_radius is -0.1"),
    (lambda: PGD(0.1, 4, 0.1, start_radius=8), "start_radius is 8; pixels are in [0, 1]"),
    (lambda: MarginLoss(-1.0), "confidence is -1.0; it must be at least 0"),
    (lambda: MarginLoss(float("nan")), "confidence is nan"),
]


@pytest.mark.parametrize(("build", "message"), BAD_FIELDS, ids=[message for _, message in BAD_FIELDS])
def test_a_bad_field_is_refused_at_once(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


class WithoutGradient(nn.Module):
    """A model whose logits carry no gradient to its inputs, in one of the ways that this happens."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net = random_net()
        self.how = how

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor
        if self.how == "detached inputs":
            logits = self.net(inputs.detach())
        elif self.how == "detached logits":
            logits = self.net(inputs).detach()
        else:
            with torch.no_grad():
                logits = self.net(inputs)
        return logits


@pytest.mark.parametrize("how", ["detached inputs", "detached logits", "no_grad"])
@pytest.mark.parametrize("case", [case for case in ATTACKS if case.needs_gradient], ids=lambda case: case.name)
def test_a_model_without_gradient_is_refused(case: AttackCase, how: str) -> None:
    model = WithoutGradient(how)
    before = Snapshot(model)
    with pytest.raises(ValueError, match="carry no gradient"):
        case.build(EPS)(model, *random_batch())
    before.assert_unchanged()


class Named(nn.Module):
    """A model whose logits lie in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = random_net()

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(inputs)}


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_a_model_that_answers_with_a_dict_is_refused_with_what_wraps_it(case: AttackCase) -> None:
    with pytest.raises(TypeError, match=r"answers with an object of type dict.*surefoot\.evaluation\.recognise"):
        case.build(EPS)(Named(), *random_batch())


# Restarts and early stopping.


@pytest.mark.parametrize("loss", [F.cross_entropy, MarginLoss()], ids=["cross-entropy", "margin"])
@pytest.mark.parametrize("stop", [False, True])
def test_restarts_are_never_weaker_than_the_first_run(loss: Callable[..., Tensor], stop: bool) -> None:
    def per_sample(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels) if isinstance(loss, MarginLoss) else loss(logits, labels, reduction="none")

    net, inputs, labels = trained()
    gained = 0
    for seed in range(5):
        results = []
        for restarts in (1, 4):
            attack = PGD(EPS / 2, 2, EPS / 4, restarts=restarts, loss=per_sample, stop_when_fooled=stop)
            with torch.no_grad():
                logits = net(craft(attack, net, inputs, labels, seed))
            results.append((logits.argmax(1) != labels, per_sample(logits, labels)))
        (one, one_loss), (many, many_loss) = results
        assert bool((many | ~one).all())  # what one run fools, all of them fool
        if not stop:
            same = one == many
            assert bool((many_loss >= one_loss)[same].all())
        gained += int(many.sum()) - int(one.sum())
    assert gained > 0


@pytest.mark.parametrize("attack", [IFGSM, MIFGSM])
@given(seed=st.integers(0, 2**16), eps=st.floats(0.01, 0.5), steps=st.integers(1, 5))
def test_stopping_early_fools_all_that_the_last_iterate_fools(
    attack: type[IFGSM] | type[MIFGSM], seed: int, eps: float, steps: int
) -> None:
    net = random_net(seed=seed).double().eval()
    inputs, _ = random_batch(16, seed=seed, dtype=torch.float64)
    labels = net(inputs).argmax(1)
    last = net(attack(eps, steps)(net, inputs, labels)).argmax(1) != labels
    stopped = net(attack(eps, steps, stop_when_fooled=True)(net, inputs, labels)).argmax(1) != labels
    assert bool((stopped | ~last).all())


def test_stopping_early_keeps_the_first_misclassified_iterate() -> None:
    net, inputs, labels = trained()
    steps = 6
    stopped = IFGSM(EPS, steps, stop_when_fooled=True)(net, inputs, labels)
    expected, waiting = inputs.clone(), torch.ones(len(inputs), dtype=torch.bool)
    iterate = inputs
    for number in range(steps + 1):
        expected[waiting] = iterate[waiting]
        waiting &= net(iterate).argmax(1) == labels
        if number < steps:
            iterate = ascend(net, inputs, labels, iterate, eps=EPS, steps=1, step_size=EPS / steps)
    assert torch.allclose(stopped, expected, atol=1e-6)
    assert int(waiting.logical_not().sum()) > 0


def test_a_sample_that_is_wrong_from_the_start_is_left_as_it_is_when_stopping_early() -> None:
    net, inputs, _ = trained()
    wrong = (net(inputs).argmax(1) + 1) % 3
    assert torch.equal(IFGSM(EPS, 3, stop_when_fooled=True)(net, inputs, wrong), inputs)
    assert torch.equal(MIFGSM(EPS, 3, stop_when_fooled=True)(net, inputs, wrong), inputs)
    assert torch.equal(PGD(EPS, 3, EPS, random_start=False, stop_when_fooled=True)(net, inputs, wrong), inputs)


def test_stopping_early_spends_no_pass_on_a_fooled_sample() -> None:
    net, inputs, labels = trained()
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    IFGSM(EPS, 8, stop_when_fooled=True)(net, inputs, labels)
    assert seen == sorted(seen, reverse=True)
    assert sum(seen) < 8 * len(inputs)


# What the fields mean.


def test_restarts_go_on_with_every_sample_that_is_not_fooled_yet() -> None:
    net, inputs, labels = trained()
    inputs, labels = inputs[:20], net(inputs[:20]).argmax(dim=1)
    labels[:5] = (labels[:5] + 1) % 3  # fooled from the start
    given: list[int] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        given.append(len(labels))
        return F.cross_entropy(logits, labels, reduction="none")

    attack = PGD(1e-4, 1, 1e-4, restarts=4, loss=loss, stop_when_fooled=True)
    adv_inputs = attack(net, inputs, labels)
    assert torch.equal(net(adv_inputs).argmax(dim=1) != labels, torch.arange(20) < 5)
    assert given == [20, 20] + [15, 15] * 3  # a gradient and a verdict for each run


def test_the_papers_start_is_one_step_wide() -> None:
    flat = random_net()
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()  # no slope: the result is the start
    inputs, labels = torch.full((64, *SHAPE), 0.5), torch.zeros(64).long()
    for radius, expected in ((None, EPS), (EPS / 4, EPS / 4), (0.0, 0.0), (1.0, EPS)):
        moved = craft(PGD(EPS, 1, 0.01, start_radius=radius), flat, inputs, labels) - inputs
        assert float(moved.max()) == pytest.approx(expected, rel=0.01)
        assert float(moved.min()) == pytest.approx(-expected, rel=0.01)
        assert float(moved.mean()) == pytest.approx(0, abs=0.01 * EPS + 0.05 * expected)


def test_rfgsm_without_a_random_step_is_fgsm() -> None:
    net, (inputs, labels) = random_net(), random_batch()
    assert torch.equal(RFGSM(EPS, 0.0)(net, inputs, labels), FGSM(EPS)(net, inputs, labels))


def test_one_step_of_ifgsm_is_fgsm_and_mifgsm_without_decay_is_ifgsm() -> None:
    net, (inputs, labels) = random_net(dtype=torch.float64), random_batch(dtype=torch.float64)
    assert torch.equal(IFGSM(EPS, 1)(net, inputs, labels), FGSM(EPS)(net, inputs, labels))
    assert torch.equal(MIFGSM(EPS, 4, decay=0.0)(net, inputs, labels), IFGSM(EPS, 4)(net, inputs, labels))


def test_momentum_changes_the_path() -> None:
    net, inputs, labels = trained()
    assert not torch.equal(MIFGSM(EPS, 8)(net, inputs, labels), IFGSM(EPS, 8)(net, inputs, labels))


def test_more_steps_reach_a_higher_loss() -> None:
    net, inputs, labels = trained()
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(net(PGD(EPS, n, EPS / 8, random_start=False)(net, inputs, labels)), labels))
            for n in (1, 4, 16)
        ]
    assert losses == sorted(losses)
    assert losses[2] > losses[0] + 0.1


def test_fgsm_moves_every_pixel_by_eps_where_the_gradient_and_the_range_allow() -> None:
    inputs, labels = torch.full((4, *SHAPE), 0.5), torch.tensor([0, 1, 2, 0])
    moved = (FGSM(EPS)(random_net(PlainNet), inputs, labels) - inputs).abs()
    assert torch.allclose(moved, torch.full_like(moved, EPS), atol=1e-6)


def test_a_custom_loss_is_what_goes_up() -> None:
    net, inputs, labels = trained()

    def towards_class_two(logits: Tensor, labels: Tensor) -> Tensor:
        return logits[:, 2]

    adv_inputs = PGD(EPS, 5, EPS / 3, loss=towards_class_two)(net, inputs, labels)
    assert bool((net(adv_inputs)[:, 2] > net(inputs)[:, 2]).all())


@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_an_attack_as_contributing_describes_it_works_under_inference_mode(loss: Any) -> None:
    def own(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        with crafting(model) as frozen:
            gradient, _ = input_gradient(frozen, inputs, lambda logits: loss(logits, labels))
            return project(inputs + EPS * gradient.sign(), inputs, EPS)

    net, x, y = trained()
    with torch.inference_mode():
        inside = own(net, x.clone(), y.clone())
    assert torch.equal(inside, own(net, x, y))


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Flatten(), nn.Linear(48, 1), nn.Flatten(0))]
)
def test_logits_of_another_shape_are_refused_in_a_sentence(case: AttackCase, model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"the model's logits have shape \[4.*\]; give \[batch, classes\]"):
        case.build(EPS)(model, torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 1, 0]))


def test_weights_frozen_by_the_user_do_not_stop_an_attack() -> None:
    inputs, labels = random_batch()
    net = random_net()
    expected = FGSM(EPS)(net, inputs, labels)
    net.requires_grad_(False)
    assert torch.equal(FGSM(EPS)(net, inputs, labels), expected)


@pytest.mark.parametrize("attack", [IFGSM(EPS, 20), MIFGSM(EPS, 20), PGD(EPS, 15, EPS / 5)])
def test_going_on_takes_a_tenth_of_the_steps_three_times_as_long_and_stays_in_the_ball(attack: Any) -> None:
    net, x, y = trained()
    steps, step_size = (2, 3 * EPS / 20) if not isinstance(attack, PGD) else (2, 3 * EPS / 5)
    start = project(x + EPS * torch.randn_like(x).sign(), x, EPS)
    after = attack.go_on(net, x, y, start)
    with crafting(net) as frozen:
        expected = ascend(
            frozen, x, y, start, eps=EPS, steps=steps, step_size=step_size, stop_when_fooled=True, loss=attack.loss
        )
    assert torch.equal(after, expected)
    assert linf_distance(after, x).max() <= EPS + 1e-6
    assert after.min() >= 0
    assert after.max() <= 1


class RootOfFlat(nn.Module):
    """The same function as its network, with a gradient that is NaN where the image is flat."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        around = nn.functional.avg_pool2d(inputs * inputs, 3, 1, 1) - nn.functional.avg_pool2d(inputs, 3, 1, 1) ** 2
        return self.net(inputs + 0 * around.clamp(min=0).sqrt())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "attack",
    [MIFGSM(EPS, 10), FABT(EPS, steps=10, targets=2), CarliniWagnerL2(steps=50, search_steps=3), DeepFool(steps=10)],
    ids=lambda attack: type(attack).__name__,
)
def test_pixels_whose_gradient_is_nan_do_not_stop_an_attack(attack: Attack) -> None:
    net, inputs, labels = trained()
    inputs = inputs.clone()
    inputs[:, :, :4, :4] = 0
    right = net(inputs).argmax(dim=1) == labels
    inputs, labels = inputs[right], labels[right]
    model = RootOfFlat(net)
    gradient, _ = input_gradient(model, inputs, lambda logits: cross_entropy(logits, labels))
    assert bool(gradient.isnan().any())
    torch.manual_seed(0)
    adv_inputs = attack(model, inputs, labels)
    assert float((net(adv_inputs).argmax(dim=1) == labels).float().mean()) < 0.5


@pytest.mark.parametrize("attack", [Square(0.1, queries=20), WorstCase([Square(0.1, queries=20)])])
def test_a_model_that_writes_to_its_inputs_is_refused(attack: Attack) -> None:
    net, inputs, labels = trained()

    class Writes(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return net(inputs.sub_(0.1))  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="the model changes the images that it is given"):
        attack(Writes(), inputs, labels)


def test_weights_made_in_inference_mode_are_told() -> None:
    with torch.inference_mode():
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(TypeError, match=r"weights were made under torch\.inference_mode"):
        FGSM(EPS)(net, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
