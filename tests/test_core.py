"""The floor that everything stands on: geometry, gradients, losses, each against values by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.attacks import FGSM, IFGSM, MIFGSM, PGD, CarliniWagnerL2, DeepFool, Square
from surefoot.attacks.gradient_sign import random_signs
from surefoot.audit import audit
from surefoot.core.files import save_tensors, write_text
from surefoot.core.geometry import check_batch, check_radius, l2_distance, linf_distance, project
from surefoot.core.gradients import (
    crafting,
    input_gradient,
    is_crafting,
    kept_while_crafting,
    plain_module,
)
from surefoot.core.losses import MarginLoss, cross_entropy, full_precision, kl_divergence, squared_distance
from surefoot.core.types import Attack, LossTerms, Objective
from surefoot.objectives import FgsmAT, NormalTraining, SatR2, SatR3, Trades
from surefoot.training import FitConfig, Monitor, Phase
from tests.tables import random_batch, random_net


def a_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Geometry.


def test_project_by_hand() -> None:
    inputs = torch.tensor([0.5, 0.5, 0.5, 0.05, 0.95, 0.0, 1.0])
    perturbed = torch.tensor([0.7, 0.3, 0.52, -0.3, 1.2, -1.0, 2.0])
    expected = torch.tensor([0.6, 0.4, 0.52, 0.0, 1.0, 0.0, 1.0])
    assert torch.allclose(project(perturbed, inputs, 0.1), expected)


@given(seed=st.integers(0, 2**16), eps=st.floats(0, 1))
def test_project_gives_the_nearest_point_of_the_ball_and_the_range(seed: int, eps: float) -> None:
    inputs = random_batch(2, (1, 3, 3), seed, torch.float64)[0]
    perturbed = inputs + a_tensor(2, 1, 3, 3, seed=seed)
    result = project(perturbed, inputs, eps)
    # each pixel alone: the candidate of a fine grid of the feasible interval that is nearest
    low, high = (inputs - eps).clamp(min=0), (inputs + eps).clamp(max=1)
    grid = low + (high - low) * torch.linspace(0, 1, 201, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    nearest = (grid - perturbed).abs().amin(dim=0)
    assert bool(((result >= low) & (result <= high)).all())
    assert bool(((result - perturbed).abs() <= nearest + 1e-12).all())
    assert torch.equal(project(result, inputs, eps), result)


def test_project_keeps_what_is_inside() -> None:
    inputs = random_batch(dtype=torch.float64)[0]
    assert torch.equal(project(inputs, inputs, 0.0), inputs)
    assert torch.equal(project((inputs + 0.05).clamp(0, 1), inputs, 0.1), (inputs + 0.05).clamp(0, 1))


def test_distances_by_hand() -> None:
    inputs = torch.zeros(2, 1, 2, 2)
    perturbed = torch.tensor([[[[0.3, 0.0], [-0.4, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    assert torch.allclose(linf_distance(perturbed, inputs), torch.tensor([0.4, 0.0]))
    assert torch.allclose(l2_distance(perturbed, inputs), torch.tensor([0.5, 0.0]))


@pytest.mark.parametrize("value", [0, 0.0, 8 / 255, 1, 1.0])
def test_a_radius_in_range_passes(value: float) -> None:
    check_radius("eps", value)


@pytest.mark.parametrize("value", [-1e-9, -1, math.nan, math.inf, -math.inf])
def test_a_radius_that_is_no_length_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^eps is {value}; it must be a finite number of at least 0\.$"):
        check_radius("eps", value)


def test_a_radius_in_bytes_is_refused_with_the_right_spelling() -> None:
    with pytest.raises(ValueError, match=re.escape("eps is 8; pixels are in [0, 1], so write 8/255")):
        check_radius("eps", 8)


def test_a_step_must_not_be_zero() -> None:
    check_radius("step_size", 1e-9, positive=True)
    with pytest.raises(ValueError, match="step_size is 0; it must be a finite number above 0"):
        check_radius("step_size", 0, positive=True)


def test_a_radius_that_is_a_text_is_refused_as_one() -> None:
    with pytest.raises(TypeError, match=r"^eps is '8/255'; it must be a number, for example 8 / 255\.$"):
        check_radius("eps", "8/255")  # type: ignore[arg-type]


def test_a_radius_may_be_a_number_of_numpy_or_torch() -> None:
    inputs, labels = random_batch()
    wanted = FGSM(0.25)(random_net(), inputs, labels)
    for eps in (np.float32(0.25), torch.tensor(0.25)):
        assert torch.equal(FGSM(eps)(random_net(), inputs, labels), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda value: IFGSM(0.1, 2, stop_when_fooled=value), "stop_when_fooled"),
        (lambda value: MIFGSM(0.1, 2, stop_when_fooled=value), "stop_when_fooled"),
        (lambda value: PGD(0.1, 2, 0.1, stop_when_fooled=value), "stop_when_fooled"),
        (lambda value: PGD(0.1, 2, 0.1, random_start=value), "random_start"),
        (lambda value: CarliniWagnerL2(targeted=value), "targeted"),
        (lambda value: CarliniWagnerL2(abort_early=value), "abort_early"),
        (lambda value: Square(0.1, rescale=value), "rescale"),
    ],
)
@pytest.mark.parametrize("value", ["no", 1, None])
def test_what_is_neither_true_nor_false_is_refused(build: Callable[[Any], object], name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} is {value!r}; it must be True or False\.$"):
        build(value)


NOT_ONE_NUMBER: list[tuple[Callable[[Any], object], str]] = [
    (lambda value: FGSM(eps=value), "eps"),
    (lambda value: SatR2(0.1, 0.02, lam=value), "lam"),
    (lambda value: SatR3(0.1, 0.02, 1.0, tau=value), "tau"),
    (lambda value: Trades(0.1, 2, 0.1, beta=value), "beta"),
    (lambda value: FgsmAT(0.1, share=value), "share"),
    (lambda value: NormalTraining(label_smoothing=value), "label_smoothing"),
    (lambda value: MIFGSM(0.1, 3, decay=value), "decay"),
    (lambda value: MarginLoss(confidence=value), "confidence"),
    (lambda value: DeepFool(overshoot=value), "overshoot"),
    (lambda value: CarliniWagnerL2(confidence=value), "confidence"),
    (lambda value: CarliniWagnerL2(learning_rate=value), "learning_rate"),
    (lambda value: CarliniWagnerL2(initial_c=value), "initial_c"),
    (lambda value: Square(0.1, p_init=value), "p_init"),
    (lambda value: FitConfig(learning_rate=value), "learning_rate"),
    (lambda value: FitConfig(momentum=value), "momentum"),
    (lambda value: FitConfig(weight_decay=value), "weight_decay"),
    (lambda value: FitConfig(ema_decay=value), "ema_decay"),
    (lambda value: Phase(NormalTraining(), 1, learning_rate=value), "learning_rate"),
    (lambda value: Monitor(*random_batch(), eps=0.1, bound=value), "bound"),
    (lambda value: audit(random_net(), *random_batch(), eps=0.1, required=value), "required"),
    (lambda value: audit(random_net(), *random_batch(), eps=0.1, budget_minutes=value), "budget_minutes"),
]


NO_NUMBERS = {
    "text": "0.5",
    "list": [0.5, 0.5],
    "tensor of two": torch.tensor([0.5, 0.5]),
    "tensor of a dimension": torch.tensor([0.5]),
    "asks for a gradient": torch.tensor(0.5, requires_grad=True),
    "flag": True,
}


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
@pytest.mark.parametrize(("build", "name"), NOT_ONE_NUMBER, ids=range(len(NOT_ONE_NUMBER)))
def test_what_is_not_one_number_is_refused_as_that(build: Callable[[Any], object], name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} is .*; it must be a number, for example .*\.$"):
        build(value)


def test_a_run_needs_a_learning_rate_and_a_phase_may_take_the_runs() -> None:
    assert Phase(NormalTraining(), 1, learning_rate=None).learning_rate is None
    with pytest.raises(TypeError, match="learning_rate is None; it must be a number"):
        FitConfig(learning_rate=None)  # type: ignore[arg-type]


def test_a_good_batch_passes_also_flat_empty_and_at_the_ends_of_the_range() -> None:
    check_batch(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    check_batch(torch.zeros(0, 3, 4, 4), torch.zeros(0).long())
    check_batch(torch.rand(2, 3, 4, 4, dtype=torch.float16), torch.tensor([0, 1]))


# Gradients.


def test_input_gradient_is_the_gradient_of_the_sum_and_touches_nothing_else() -> None:
    net = random_net().eval()
    inputs, labels = random_batch()
    gradient, logits = input_gradient(net, inputs, lambda z: cross_entropy(z, labels))
    leaf = inputs.clone().requires_grad_()
    loss = F.cross_entropy(net(leaf), labels, reduction="sum")
    assert torch.allclose(gradient, torch.autograd.grad(loss, leaf)[0], atol=1e-7)
    assert torch.equal(logits, net(inputs))
    assert not logits.requires_grad
    assert not inputs.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


def test_input_gradient_agrees_with_finite_differences() -> None:
    net = random_net(dtype=torch.float64).eval()
    inputs, labels = random_batch(1, dtype=torch.float64)
    gradient, _ = input_gradient(net, inputs, lambda z: cross_entropy(z, labels))
    direction, h = a_tensor(*inputs.shape), 1e-5
    with torch.no_grad():
        up, down = (cross_entropy(net(inputs + s * h * direction), labels).sum() for s in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(up - down) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_detached_inputs_are_refused_whether_or_not_the_weights_learn(frozen: bool) -> None:
    net = random_net(seed=1).requires_grad_(not frozen)
    with pytest.raises(ValueError, match="carry no gradient"):
        input_gradient(lambda x: net(x.detach()), random_batch()[0], lambda z: z.sum(1))


@pytest.mark.parametrize("how", ["half", "autocast"])
def test_a_gradient_that_float16_would_round_to_zero_is_that_of_float32(how: str) -> None:
    head = nn.Linear(8, 3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), head)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([20.0, 0.0, 0.0]))  # so sure that the loss's gradient is 1e-9
    inputs, labels = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.int64)

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy(logits, labels)

    wanted, _ = input_gradient(net, inputs, loss)
    if how == "half":
        found, _ = input_gradient(net.half(), inputs.half(), loss)
    else:
        with torch.autocast("cpu", torch.float16):
            found, _ = input_gradient(net, inputs, loss)
    largest = float(wanted.abs().max())
    assert 0 < largest < 6e-8
    assert found.dtype == (torch.float16 if how == "half" else torch.float32)
    assert torch.equal(found.sign(), wanted.sign().to(found.dtype))
    if how == "autocast":
        assert torch.allclose(found, wanted, rtol=0.1, atol=0.01 * largest)


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda logits, labels: logits], ids=["a mean", "a value a class"])
def test_a_loss_that_is_not_one_value_a_sample_is_refused(loss: Any) -> None:
    inputs, labels = random_batch()
    with pytest.raises(ValueError, match=r"needs one value a sample, \[batch\], as .*reduction='none'"):
        input_gradient(random_net().eval(), inputs, lambda logits: loss(logits, labels))


def test_what_is_no_module_is_refused_in_a_sentence() -> None:
    no_module: Any = random_batch
    said = r"an object of type function, not a torch.nn.Module; give a module"
    with pytest.raises(TypeError, match=said), crafting(no_module):
        pass


def test_crafting_lends_evaluation_mode_and_puts_every_flag_back() -> None:
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    net.train()
    net[1].eval()
    net[2].training = False  # a parent that is not training over a child that is
    before = [part.training for part in net.modules()]
    with crafting(net) as lent:
        assert lent is net
        assert not any(part.training for part in net.modules())
        with crafting(net):  # an attack inside an attack
            pass
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == before


def test_crafting_puts_back_a_flag_that_the_models_own_forward_changes() -> None:
    class MonteCarlo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, inputs: Tensor) -> Tensor:
            self.drop.train()
            return torch.as_tensor(self.drop(inputs))

    net = MonteCarlo().eval()
    with crafting(net) as lent:
        lent(torch.rand(2, 2))
        assert net.drop.training
    assert not net.drop.training


class Counts(nn.Module):
    """Changes its buffers in evaluation mode too: one in place, one by another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.mean: Any
        self.unseen: Any
        self.register_buffer("unseen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        self.unseen.data.add_(1)  # a write that PyTorch does not count
        self.mean = self.mean + inputs.detach().mean(0)
        return torch.as_tensor(self.norm(inputs))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_crafting_puts_back_the_buffers_that_a_forward_changes_in_evaluation_mode(training: bool) -> None:
    net: Any = nn.Sequential(Counts(), nn.Linear(4, 3)).train(training)
    net(torch.rand(2, 4))
    kept = {name: (buffer, buffer.clone()) for name, buffer in net.named_buffers()}
    inputs, labels = torch.rand(8, 4), torch.zeros(8, dtype=torch.int64)
    FGSM(0.1)(net, inputs, labels)
    with pytest.raises(ValueError, match="one value a sample"):
        PGD(0.1, 2, 0.1, loss=F.cross_entropy)(net, inputs, labels)
    assert net[0].calls == 1
    for name, buffer in net.named_buffers():
        same, value = kept[name]
        assert buffer is same
        assert torch.equal(buffer, value)


def test_crafting_puts_back_what_a_norm_of_ones_own_counts() -> None:
    class Counting(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, input: Tensor) -> Tensor:
            self.get_buffer("calls").add_(1)
            return super().forward(input)

    net = Counting()
    with crafting(net) as frozen:
        frozen(torch.rand(3, 2))
    assert net.get_buffer("calls").item() == 0


def test_crafting_leaves_a_buffer_that_was_made_for_the_inputs() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made = False
            self.register_buffer("places", None)
            self.register_buffer("table", torch.zeros(0))
            self.range: Any
            self.register_buffer("range", torch.zeros(0))

        def forward(self, inputs: Tensor) -> Tensor:
            if not self.made:
                self.made, self.places, self.table = True, torch.arange(4), torch.rand(4)
                self.range.resize_(4).copy_(torch.ones(4))  # as an observer of quantisation
            return torch.as_tensor(inputs * self.places + self.table + self.range)

    net = Places()
    FGSM(0.1)(net, torch.rand(2, 4), torch.zeros(2, dtype=torch.int64))
    assert net(torch.rand(2, 4)).shape == (2, 4)


def test_crafting_does_not_spoil_a_graph_that_has_saved_a_buffer() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    net.register_buffer("mask", torch.ones(3))
    loss = (net(torch.rand(2, 4)) * net.mask).sum()
    FGSM(0.1)(net, torch.rand(2, 4), torch.zeros(2, dtype=torch.int64))
    loss.backward()


def test_crafting_puts_the_flags_back_through_an_exception() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    with pytest.raises(KeyError), crafting(net):
        raise KeyError
    assert all(part.training for part in net.modules())


class Interrupted(nn.Identity):
    """Ctrl-C comes when it is put into another mode for the nth time."""

    countdown = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":
            self.__dict__["countdown"] = self.countdown - 1
            if self.countdown == 0:
                raise KeyboardInterrupt
        super().__setattr__(name, value)


@pytest.mark.parametrize("moment", [1, 2])
def test_crafting_puts_the_flags_back_where_ctrl_c_comes_while_they_are_changed(moment: int) -> None:
    stops = Interrupted()
    net = nn.Sequential(nn.Dropout(), stops, nn.Dropout())
    stops.__dict__["countdown"] = moment
    with pytest.raises(KeyboardInterrupt), crafting(net):
        pass
    assert [part.training for part in net.modules()] == [True] * 4
    assert not is_crafting()


def test_crafting_turns_gradients_on_and_back_off() -> None:
    net = nn.Linear(2, 2)
    with torch.inference_mode():
        with crafting(net):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        with crafting(net):
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()


def test_only_inside_crafting_is_anything_crafted_or_kept() -> None:
    net = nn.Linear(2, 2)
    assert not is_crafting()
    with crafting(net):
        kept: list[int] = kept_while_crafting("key", list, of=[])
        with crafting(net):  # weights may have changed in between
            assert kept_while_crafting("key", list, of=[]) is not kept
        assert kept_while_crafting("key", list, of=[]) is kept
    assert not is_crafting()
    assert kept_while_crafting("key", list, of=[]) is not kept_while_crafting("key", list, of=[])


def test_a_shared_module_is_put_back_once() -> None:
    shared = nn.Dropout()
    net = nn.Sequential(shared, nn.Linear(2, 2), shared).train()
    with crafting(net):
        assert not shared.training
    assert shared.training


def test_a_plain_module_is_its_own_and_one_with_a_module_attribute_too() -> None:
    net = nn.Linear(2, 2)
    assert plain_module(net) is net

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = net

    holder = Holder()
    assert plain_module(holder) is holder  # a user's own network, not a wrapper

    class Delegating(nn.Module):
        """Hands on what it lacks to what it holds, as wrappers of people's own do."""

        def __init__(self) -> None:
            super().__init__()
            self.held = torch.compile(net, backend="eager")

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("held"), name)

    assert plain_module(wrapper := Delegating()) is wrapper
    assert plain_module(nn.DataParallel(nn.DataParallel(net))) is net


# Losses.


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = [-math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-1))), math.log(3)]
    assert cross_entropy(logits, torch.tensor([0, 2])).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        (0.0, [-2.0, 0.0, 0.0, -0.5]),  # true minus best other: 2, -1.5, 0, 0.5; never above zero
        (1.0, [-3.0, 0.0, -1.0, -1.5]),
        (50.0, [-52.0, -48.5, -50.0, -50.5]),
    ],
)
def test_the_margin_by_hand(confidence: float, expected: list[float]) -> None:
    logits = torch.tensor([[3.0, 1.0, -1.0], [1.0, 2.5, 0.0], [1.0, 0.5, 1.0], [-2.0, -1.0, -0.5]])
    labels = torch.tensor([0, 0, 2, 2])
    assert MarginLoss(confidence)(logits, labels).tolist() == expected


def test_the_margin_pulls_the_true_logit_down_and_the_best_other_up_until_the_gap_is_the_confidence() -> None:
    logits = torch.tensor([[3.0, 1.0, -1.0], [0.0, 9.0, 1.0]], requires_grad=True)
    loss = MarginLoss(5.0)(logits, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_margin_aims_at_50_and_at_no_less_than_0() -> None:
    assert MarginLoss() == MarginLoss(50.0)
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match="confidence is"):
            MarginLoss(value)


def test_random_signs_are_of_both_kinds() -> None:
    signs = random_signs(torch.zeros(1000))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.1


def test_the_margin_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="one logit a sample"):
        MarginLoss()(torch.zeros(2, 1), torch.tensor([0, 0]))


@pytest.mark.parametrize("loss", [squared_distance, kl_divergence])
def test_a_class_that_is_masked_by_minus_infinity_adds_nothing(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    one, two = torch.randn(2, 5, 3)
    expected = loss(one, two)
    one.requires_grad_()
    masked = [nn.functional.pad(logits, (0, 1), value=-math.inf) for logits in (one, two)]
    found = loss(*masked)
    assert torch.allclose(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), one)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_squared_distance_and_kl_by_hand() -> None:
    one = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    two = torch.tensor([[0.0, 4.0, 3.0], [1.0, 1.0, 1.0]])
    assert squared_distance(one, two).tolist() == [5.0, 3.0]
    p, q = torch.tensor([[0.2, 0.8]], dtype=torch.float64), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    expected = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)  # KL(q || p), q the reference
    assert kl_divergence(p.log(), q.log()).tolist() == pytest.approx([expected])


@given(seed=st.integers(0, 2**16), scale=st.floats(0.01, 50))
def test_kl_agrees_with_torch_distributions_and_is_zero_only_with_itself(seed: int, scale: float) -> None:
    logits, reference = scale * a_tensor(4, 5, seed=seed), scale * a_tensor(4, 5, seed=seed + 1)
    expected = (reference.softmax(1) * (reference.log_softmax(1) - logits.log_softmax(1))).sum(1)
    assert torch.allclose(kl_divergence(logits, reference), expected)
    assert bool((kl_divergence(logits, reference) > 0).all())
    assert float(kl_divergence(reference, reference).abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_are_full_precision_whatever_the_network_is(dtype: torch.dtype) -> None:
    logits = a_tensor(4, 3).to(dtype)
    labels = torch.tensor([0, 1, 2, 0])
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert full_precision(logits).dtype == expected
    for loss in (
        cross_entropy(logits, labels),
        MarginLoss()(logits, labels),
        squared_distance(logits, logits.flip(0)),
        kl_divergence(logits, logits.flip(0)),
    ):
        assert loss.dtype == expected
        assert loss.shape == (4,)


def test_the_protocols_know_their_own() -> None:
    assert isinstance(FGSM(0.1), Attack)
    assert isinstance(NormalTraining(), Objective)
    assert LossTerms._fields == ("loss", "classification", "regularizer")


@pytest.mark.parametrize("name", ["inputs", "labels"])
def test_an_array_or_a_list_is_refused_as_one(name: str) -> None:
    batch: dict[str, object] = {"inputs": torch.rand(2, 1, 2, 2), "labels": torch.tensor([0, 1])}
    batch[name] = [[0.0], [1.0]]
    with pytest.raises(TypeError, match=rf"^{name} are an object of type list; give a tensor, as torch"):
        check_batch(**batch)  # type: ignore[arg-type]


def test_a_negative_label_is_refused() -> None:
    # cross_entropy would leave a sample labelled -100 out, so that no attack touched it.
    with pytest.raises(ValueError, match="a label is -100"):
        check_batch(torch.rand(2, 1, 2, 2), torch.tensor([0, -100]))


# Files.


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new"),
        lambda path: save_tensors(path, {"new": torch.ones(2)}, {}),
    ],
    ids=["text", "tensors"],
)
def test_a_file_is_the_old_one_until_the_new_one_is_whole(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "file"
    write(path)
    path.write_bytes(b"old")
    seen: list[bytes] = []

    def full(*_: object) -> None:
        seen.append(path.read_bytes())  # what a reader finds who comes now
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert seen == [b"old"]
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    write(path)
    assert path.read_bytes() != b"old"


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Named by the process alone, one thread's temporary file was another's too."""
    texts = ["a" * 5000, "b" * 5000]
    path = tmp_path / "file.txt"
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(write_text, path, texts[number % 2]) for number in range(80)]:
            done.result()
    assert path.read_text(encoding="utf-8") in texts
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64])
def test_logits_of_no_real_numbers_are_refused(kind: torch.dtype) -> None:
    class Net(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1).to(kind)

    inputs, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    for call in (FGSM(0.1), PGD(0.1, 2, 0.1), NormalTraining(), SatR2(0.1, random_step=0.05, lam=1.0)):
        with pytest.raises(TypeError, match=f"numbers of {str(kind).removeprefix('torch.')}; give logits of a float"):
            call(Net(), inputs, labels)
