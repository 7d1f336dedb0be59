"""What every objective promises, over the whole table; and Eq. 13-16 against references written apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.attacks import FGSM
from surefoot.core.geometry import check_batch
from surefoot.core.gradients import plain_module
from surefoot.core.types import LossTerms, Objective
from surefoot.objectives import (
    OBJECTIVES,
    EnsembleAT,
    FgsmAT,
    NFgsmAT,
    NormalTraining,
    PgdAT,
    RFgsmAT,
    SatR1,
    SatR2,
    SatR3,
    Trades,
)
from surefoot.objectives.single_step import replace_share
from tests.tables import (
    BATCH,
    EPS,
    OBJECTIVE_CASES,
    SHAPE,
    ObjectiveCase,
    PlainNet,
    SmallNet,
    forwards_that_spoil_autocast,
    random_batch,
    random_net,
)


def sources() -> tuple[nn.Module, ...]:
    return (random_net(seed=11).eval(), random_net(seed=12).train())


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


def terms_of(objective: Objective, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int = 0) -> LossTerms:
    torch.manual_seed(seed)
    return objective(model, inputs, labels)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


# The promises. Each takes a row of the table and raises AssertionError where the objective breaks it.


def returns_scalars_with_detached_parts(case: ObjectiveCase) -> None:
    terms = terms_of(case.build(sources()), random_net(), *random_batch())
    assert isinstance(terms, LossTerms)
    for part in terms:
        assert part.shape == ()
        assert part.dtype == torch.float32
        assert bool(torch.isfinite(part))
    assert terms.loss.requires_grad
    assert not terms.classification.requires_grad
    assert not terms.regularizer.requires_grad
    assert float(terms.classification) > 0
    assert float(terms.regularizer) >= 0
    assert float(terms.loss.detach()) >= float(terms.classification)


def gives_every_parameter_a_gradient(case: ObjectiveCase) -> None:
    net = random_net()
    backward(terms_of(case.build(sources()), net, *random_batch()).loss)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


def fills_gradients_only_on_backward(case: ObjectiveCase) -> None:
    net, others = random_net(), sources()
    full = net.get_parameter("head.weight")
    full.grad = torch.full_like(full, 7.0)
    computed: list[str] = []
    for name, parameter in net.named_parameters():
        parameter.register_hook(lambda gradient, name=name: computed.append(name))  # type: ignore[no-untyped-call]
    inputs, labels = random_batch()
    terms_of(case.build(others), net, inputs, labels)
    assert computed == []
    for name, parameter in net.named_parameters():
        if parameter is full:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, torch.full_like(full, 7.0))
        else:
            assert parameter.grad is None, name
    assert inputs.grad is None
    assert all(parameter.grad is None for other in others for parameter in other.parameters())


def leaves_mode_batch_and_sources_alone(case: ObjectiveCase) -> None:
    net, others = random_net().train(), sources()
    net.get_submodule("norm").eval()
    net.get_parameter("conv.weight").requires_grad_(False)
    modes = {name: part.training for name, part in net.named_modules()}
    asked = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    kept = [
        ({n: t.clone() for n, t in other.state_dict().items()}, [part.training for part in other.modules()])
        for other in others
    ]
    inputs, labels = random_batch()
    kept_inputs, kept_labels = inputs.clone(), labels.clone()
    for seed in range(6):  # an ensemble draws another source now and then
        terms_of(case.build(others), net, inputs, labels, seed)
    assert {name: part.training for name, part in net.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == asked
    assert torch.equal(inputs, kept_inputs)
    assert torch.equal(labels, kept_labels)
    for other, (state, training) in zip(others, kept, strict=True):
        assert [part.training for part in other.modules()] == training
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def steps_no_weight(case: ObjectiveCase) -> None:
    net = random_net()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    backward(terms_of(case.build(sources()), net, *random_batch()).loss)
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


def trains_in_one_forward(case: ObjectiveCase) -> None:
    net = random_net().train()
    norm = net.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    seen: list[Tensor] = []
    net.get_submodule("norm").register_forward_pre_hook(
        lambda part, args: seen.append(args[0].detach().clone()) if part.training else None
    )
    expected = norm.running_mean.clone()
    terms_of(case.build(sources()), net, *random_batch())
    assert len(seen) == 1
    assert int(norm.num_batches_tracked) == 1
    # and the running mean is what that one forward, and nothing else, makes of it
    expected = 0.9 * expected + 0.1 * seen[0].mean(dim=(0, 2, 3))
    assert torch.allclose(norm.running_mean, expected, atol=1e-6)


def goes_through_the_wrapped_model(case: ObjectiveCase) -> None:
    """DDP's reducer and Fabric's precision live in the wrapper, so the loss's forward must use it, once."""
    net = random_net().train()
    expected = terms_of(case.build(sources()), deepcopy(net), *random_batch())
    wrapped = Fabric(accelerator="cpu", devices=1).setup(net)
    calls: list[bool] = []
    wrapped.register_forward_pre_hook(lambda part, args: calls.append(net.training))
    terms = terms_of(case.build(sources()), wrapped, *random_batch())
    assert calls == [True]
    assert torch.equal(terms.loss, expected.loss)


@contextmanager
def counted(*models: nn.Module) -> Iterator[dict[str, int]]:
    """Samples forward, and samples backward of graphs made while `counts["training"]` is 0 or 1."""
    counts = {"forward": 0, "input backward": 0, "weight backward": 0, "training": 0}

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        samples = len(args[0])
        counts["forward"] += samples
        if output.requires_grad:

            def add(gradient: Tensor) -> None:
                counts["weight backward" if counts["training"] else "input backward"] += samples

            output.register_hook(add)  # type: ignore[no-untyped-call]

    handles = [model.register_forward_hook(count) for model in models]
    yield counts
    for handle in handles:
        handle.remove()


def costs_what_it_says(case: ObjectiveCase) -> None:
    others = sources()
    for m in (BATCH, 32):
        net = random_net()
        inputs, labels = random_batch(m)
        with counted(net, *others) as counts:
            terms = terms_of(case.build(others), net, inputs, labels)
            counts["training"] = 1
            backward(terms.loss)
        units = counts["forward"] + counts["input backward"] + 2 * counts["weight backward"]
        assert units / m == pytest.approx(case.units(m))


def is_repeatable_under_a_seed(case: ObjectiveCase) -> None:
    results = []
    for _ in range(2):
        net = random_net()
        terms = terms_of(case.build(sources()), net, *random_batch(), seed=3)
        results.append([terms.loss, terms.classification, terms.regularizer, *gradients(terms.loss, net)])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def draws_only_where_random(case: ObjectiveCase) -> None:
    net = random_net().eval()  # no dropout: what is drawn, the objective draws
    torch.manual_seed(0)
    before = torch.get_rng_state()
    case.build(sources())(net, *random_batch())
    assert (not torch.equal(torch.get_rng_state(), before)) == case.random


def learns_from_one_step(case: ObjectiveCase) -> None:
    net = random_net(PlainNet)
    batch = random_batch(32)
    objective = case.build((random_net(PlainNet, seed=5),))
    terms = terms_of(objective, net, *batch)
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), gradients(terms.loss, net), strict=True):
            parameter.sub_(1e-3 * gradient)
    assert float(terms_of(objective, net, *batch).loss.detach()) < float(terms.loss.detach())


def trains_on_perturbed_samples(case: ObjectiveCase) -> None:
    """The inputs of the training forward: in range, near a clean sample, and perturbed where it crafts."""
    inputs, labels = random_batch()
    net = random_net()
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda part, args: seen.append(args[0].detach()) if part.training else None)
    terms_of(case.build(sources()), net, inputs, labels)
    samples = torch.cat(seen)
    assert bool(((samples >= 0) & (samples <= 1)).all())
    distances = (samples.unsqueeze(1) - inputs.unsqueeze(0)).abs().amax(dim=(2, 3, 4)).amin(dim=1)
    assert float(distances.max()) <= 1.25 * EPS + 1e-6  # eps, and alpha = eps / 4 where the code adds it
    assert (float(distances.max()) > EPS / 2) == case.crafts


def takes_small_batches(case: ObjectiveCase) -> None:
    """A last batch of two, smaller than k = 3, and one of a single sample without batch-norm."""
    for net, count in ((random_net(), 2), (random_net(PlainNet), 1)):
        other = (random_net(type(net), seed=4),)
        terms = terms_of(case.build(other), net, *random_batch(count))
        assert bool(torch.isfinite(terms.loss))
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients(terms.loss, net))


def refuses_a_bad_batch(case: ObjectiveCase) -> None:
    objective, net = case.build(sources()), random_net()
    inputs, labels = random_batch()
    bad: list[tuple[Tensor, Tensor, type[Exception], str]] = [
        (inputs * 255, labels, ValueError, "pixels in [0, 1]"),
        (inputs - 0.5, labels, ValueError, "pixels in [0, 1]"),
        ((inputs * 255).to(torch.uint8), labels, TypeError, "uint8"),
        (inputs, labels.int(), TypeError, "int64"),
        (inputs, labels[:3], ValueError, "labels [3]"),
    ]
    for images, targets, error, message in bad:
        try:
            objective(net, images, targets)
        except error as caught:
            assert message in str(caught)  # noqa: PT017  a promise raises AssertionError only
        else:
            raise AssertionError(message)


PROMISES: list[Callable[[ObjectiveCase], None]] = [
    returns_scalars_with_detached_parts,
    gives_every_parameter_a_gradient,
    fills_gradients_only_on_backward,
    leaves_mode_batch_and_sources_alone,
    steps_no_weight,
    trains_in_one_forward,
    goes_through_the_wrapped_model,
    costs_what_it_says,
    is_repeatable_under_a_seed,
    draws_only_where_random,
    learns_from_one_step,
    trains_on_perturbed_samples,
    takes_small_batches,
    refuses_a_bad_batch,
]


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_every_objective(promise: Callable[[ObjectiveCase], None], case: ObjectiveCase) -> None:
    promise(case)


def test_every_objective_of_the_package_has_a_row() -> None:
    assert {type(case.build(sources())) for case in OBJECTIVE_CASES} == set(OBJECTIVES.values())
    assert len({case.name for case in OBJECTIVE_CASES}) == len(OBJECTIVE_CASES)


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_every_objective_is_a_frozen_dataclass_that_prints_itself(case: ObjectiveCase) -> None:
    objective = case.build(sources())
    assert isinstance(objective, Objective)
    assert repr(objective).startswith(type(objective).__name__ + "(")
    assert fields(objective)  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        objective.label_smoothing = 0.5  # type: ignore[attr-defined]


# Planted faults: FGSM training that breaks one promise.


@dataclass(frozen=True)
class Planted:
    fault: str = ""

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        fault = self.fault
        if fault != "checks nothing":
            check_batch(inputs, labels)
        wrapped, model = model, plain_module(model)
        modes = {part: part.training for part in model.modules()}
        if fault != "crafts in training mode":
            model.eval()
        leaf = inputs.clone().requires_grad_()
        crafting_loss = F.cross_entropy(model(leaf), labels, reduction="sum")
        if fault == "fills gradients while crafting":
            backward(crafting_loss)
            assert leaf.grad is not None
            direction = leaf.grad.sign()
        else:
            direction = torch.autograd.grad(crafting_loss, leaf)[0].sign()
        if fault == "forgets to go back to training":
            model.train(False)
        elif fault == "puts everything into training":
            model.train()
        else:
            for part, mode in modes.items():
                part.training = mode
        if fault == "draws needlessly":
            torch.rand(1)
        if fault == "forgets to perturb":
            direction = torch.zeros_like(direction)
        if fault == "writes into the batch":
            inputs.add_(EPS * direction).clamp_(0, 1)
        if fault == "uses its own randomness":
            generator = torch.Generator()
            generator.seed()
            direction = direction * torch.rand(inputs.shape, generator=generator)
        samples = (inputs + EPS * direction).clamp(0, 1)
        if fault == "leaves the range":
            samples = inputs + EPS * direction
        forward = model if fault == "looks behind the wrapper" else wrapped
        logits = forward(samples)
        if fault == "forwards twice":
            logits = (logits + forward(samples)) / 2
        if fault == "forgets the head":
            logits = logits * 0 + logits.detach()
        loss = F.cross_entropy(logits, labels)
        if fault == "climbs":
            loss = 2 * loss.detach() - loss
        if fault == "steps the weights":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01)
        if fault == "divides by m - 1":
            loss = loss * len(samples) / torch.tensor(len(samples) - 1.0)
        if fault == "keeps the parts in the graph":
            return LossTerms(loss, loss, loss.new_zeros(()))
        return LossTerms(loss, loss.detach(), loss.new_zeros(()))


PLANTED: list[tuple[Callable[[ObjectiveCase], None], str]] = [
    (returns_scalars_with_detached_parts, "keeps the parts in the graph"),
    (gives_every_parameter_a_gradient, "forgets the head"),
    (fills_gradients_only_on_backward, "fills gradients while crafting"),
    (leaves_mode_batch_and_sources_alone, "forgets to go back to training"),
    (leaves_mode_batch_and_sources_alone, "puts everything into training"),
    (leaves_mode_batch_and_sources_alone, "writes into the batch"),
    (steps_no_weight, "steps the weights"),
    (trains_in_one_forward, "forwards twice"),
    (trains_in_one_forward, "crafts in training mode"),
    (goes_through_the_wrapped_model, "looks behind the wrapper"),
    (goes_through_the_wrapped_model, "forwards twice"),
    (costs_what_it_says, "forwards twice"),
    (costs_what_it_says, "fills gradients while crafting but says it costs 4"),
    (is_repeatable_under_a_seed, "uses its own randomness"),
    (draws_only_where_random, "draws needlessly"),
    (learns_from_one_step, "climbs"),
    (trains_on_perturbed_samples, "forgets to perturb"),
    (trains_on_perturbed_samples, "leaves the range"),
    (takes_small_batches, "divides by m - 1"),
    (refuses_a_bad_batch, "checks nothing"),
]


def planted_case(fault: str) -> ObjectiveCase:
    return ObjectiveCase(fault, lambda _: Planted(fault), lambda m: 4 if "says it costs 4" in fault else 5)


@pytest.mark.parametrize(("promise", "fault"), PLANTED, ids=lambda part: getattr(part, "__name__", part))
def test_a_planted_fault_is_found(promise: Callable[[ObjectiveCase], None], fault: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        promise(planted_case(fault))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_the_same_objective_without_a_fault_passes(promise: Callable[[ObjectiveCase], None]) -> None:
    promise(planted_case(""))


def test_every_promise_has_a_planted_fault() -> None:
    assert {promise for promise, _ in PLANTED} == set(PROMISES)


# References: float64, sample by sample where the equation is a sum, without surefoot's code.


def ce(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """(1/m) sum_i J, one sample at a time."""
    losses = [-model(inputs[i : i + 1]).log_softmax(1)[0, int(label)] for i, label in enumerate(labels)]
    return torch.stack(losses).mean()


def sign_step(model: nn.Module, point: Tensor, labels: Tensor, size: float) -> Tensor:
    """One sample at a time: x + size sign(grad J), clipped to [0, 1] only."""
    moved = []
    for i, label in enumerate(labels):
        leaf = point[i : i + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(-model(leaf).log_softmax(1)[0, int(label)], leaf)
        moved.append((leaf.detach() + size * gradient.sign()).clip(0, 1))
    return torch.cat(moved)


def iterate(model: nn.Module, point: Tensor, labels: Tensor, steps: int, eps: float) -> Tensor:
    for _ in range(steps):
        point = sign_step(model, point, labels, eps / steps)
    return point


def distance(model: nn.Module, one: Tensor, other: Tensor) -> Tensor:
    """(1/k) sum_j ||g(x^j) - g(x'^j)||_2^2."""
    return torch.stack([(model(a[None]) - model(b[None])).pow(2).sum() for a, b in zip(one, other, strict=True)]).mean()


def assert_same_terms(
    objective: Objective,
    classification: Tensor,
    regularizer: Tensor,
    weight: float,
    net: nn.Module,
    seed: int,
) -> None:
    inputs, labels = random_batch(dtype=torch.float64, seed=seed)
    terms = terms_of(objective, net, inputs, labels, seed)
    expected = classification + weight * regularizer
    assert float(terms.classification) == pytest.approx(float(classification.detach()), rel=1e-10)
    assert float(terms.regularizer) == pytest.approx(float(regularizer.detach()), rel=1e-9, abs=1e-14)
    assert float(terms.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    for ours, theirs in zip(gradients(terms.loss, net), gradients(expected, net), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def a_net(seed: int) -> nn.Module:
    net = random_net(PlainNet, seed, torch.float64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.5)  # curved enough for FGSM and I-FGSM to part
    return net


SEEDS = [0, 1, 2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pair", ["first", "last"])
@pytest.mark.parametrize(("steps", "k"), [(1, 1), (4, 1), (3, 3), (2, 8), (3, 20), (2, 11)])
def test_sat_r1_is_equation_14(steps: int, k: int, pair: Literal["first", "last"], seed: int) -> None:
    net, (x, y) = a_net(seed), random_batch(dtype=torch.float64, seed=seed)
    rows = list(range(len(y)))[:k] if pair == "first" else list(range(len(y)))[-k:]
    fgsm = sign_step(net, x, y, 0.3)
    ifgsm = iterate(net, x[rows], y[rows], steps, 0.3)
    regularizer = distance(net, fgsm[rows], ifgsm)
    assert (float(regularizer.detach()) > 1e-4) == (steps > 1)  # the case is worth something
    objective = SatR1(0.3, lam=0.7, steps=steps, k=k, pair=pair)
    assert_same_terms(objective, ce(net, fgsm, y), regularizer, 0.7, net, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("reading", "second"), [("remaining", 0.3 - 0.1), ("full", 0.3)])
def test_sat_r2_is_equation_15(reading: Literal["remaining", "full"], second: float, seed: int) -> None:
    net, (x, y) = a_net(seed), random_batch(dtype=torch.float64, seed=seed)
    torch.manual_seed(seed)
    start = (x + 0.1 * torch.randn(x.shape, dtype=x.dtype).sign()).clip(0, 1)
    fgsm, rfgsm = sign_step(net, x, y, 0.3), sign_step(net, start, y, second)
    regularizer = distance(net, fgsm, rfgsm)
    assert float(regularizer.detach()) > 1e-4
    objective = SatR2(0.3, random_step=0.1, lam=5.0, rfgsm_step=reading)
    assert_same_terms(objective, ce(net, fgsm, y), regularizer, 5.0, net, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("random_step", [0.0, 0.05, 0.25])  # 0.25 + eps_low leaves the ball around x
@pytest.mark.parametrize("tau", [0.1, 0.4, 0.6, 0.99])
def test_sat_r3_is_equation_16(tau: float, random_step: float, seed: int) -> None:
    net, (x, y) = a_net(seed), random_batch(dtype=torch.float64, seed=seed)
    torch.manual_seed(seed)
    start = (x + random_step * torch.randn(x.shape, dtype=x.dtype).sign()).clip(0, 1) if random_step else x
    high, low = (ce(net, sign_step(net, start, y, eps), y) for eps in (0.3, 0.1))
    excess = low - tau * high
    regularizer = torch.stack([excess, torch.zeros_like(excess)]).max()
    objective = SatR3(0.3, eps_low=0.1, lam=2.0, tau=tau, random_step=random_step)
    assert_same_terms(objective, high, regularizer, 2.0, net, seed)


def test_sat_r3_costs_nothing_below_tau_and_the_excess_above() -> None:
    net, (x, y) = a_net(0), random_batch(dtype=torch.float64)
    high, low = (float(ce(net, sign_step(net, x, y, eps), y).detach()) for eps in (0.3, 0.1))
    ratio = low / high
    assert 0.05 < ratio < 0.95
    below = SatR3(0.3, 0.1, lam=3.0, tau=ratio + 0.01)(net, x, y)
    assert float(below.regularizer) == 0
    plain = FgsmAT(0.3, share=1.0)(net, x, y)
    for ours, theirs in zip(gradients(below.loss, net), gradients(plain.loss, net), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    above = SatR3(0.3, 0.1, lam=3.0, tau=ratio - 0.01)(net, x, y)
    assert float(above.regularizer) == pytest.approx(0.01 * high, rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_trades_is_its_papers_loss(seed: int) -> None:
    eps, steps, step_size, beta = 0.1, 3, 0.04, 6.0
    net, (x, y) = a_net(seed), random_batch(dtype=torch.float64, seed=seed)
    torch.manual_seed(seed)
    start = (x + 0.001 * torch.randn(x.shape, dtype=x.dtype)).clip(0, 1)
    low, high = (x - eps).clip(0), (x + eps).clip(max=1)

    def kl(clean: Tensor, perturbed: Tensor) -> Tensor:
        p, q = net(clean).softmax(1), net(perturbed).softmax(1)
        divergence: Tensor = (p * (p / q).log()).sum()
        return divergence

    adv = []
    for i in range(len(x)):
        point = start[i : i + 1]
        for _ in range(steps):
            leaf = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(kl(x[i : i + 1], leaf), leaf)
            point = torch.maximum(torch.minimum(point + step_size * gradient.sign(), high[i]), low[i])
        adv.append(point)
    regularizer = torch.stack([kl(x[i : i + 1], adv[i]) for i in range(len(x))]).mean()
    objective = Trades(eps, steps, step_size, beta)
    assert_same_terms(objective, ce(net, x, y), regularizer, beta, net, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_pgd_training_is_equation_13(seed: int) -> None:
    eps, steps, step_size = 0.1, 3, 0.04
    net, (x, y) = a_net(seed), random_batch(dtype=torch.float64, seed=seed)
    torch.manual_seed(seed)
    point = (x + torch.empty_like(x).uniform_(-eps, eps)).clip(0, 1)
    for _ in range(steps):
        point = torch.maximum(torch.minimum(sign_step(net, point, y, step_size), x + eps), x - eps)
    assert_same_terms(PgdAT(eps, steps, step_size), ce(net, point, y), torch.zeros(()), 0.0, net, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_n_fgsm_training_steps_from_strong_noise_and_is_not_cut_to_the_ball(seed: int) -> None:
    eps, noise = 0.05, 0.1
    net, (x, y) = a_net(seed), random_batch(dtype=torch.float64, seed=seed)
    torch.manual_seed(seed)
    point = (x + torch.empty_like(x).uniform_(-noise, noise)).clip(0, 1)
    point = sign_step(net, point, y, eps)
    assert float((point - x).abs().max()) > noise
    assert_same_terms(NFgsmAT(eps, noise), ce(net, point, y), torch.zeros(()), 0.0, net, seed)
    assert_same_terms(
        NFgsmAT(eps, noise, label_smoothing=0.2),
        F.cross_entropy(net(point), y, label_smoothing=0.2),
        torch.zeros(()),
        0.0,
        net,
        seed,
    )


@pytest.mark.parametrize("share", [0.25, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_fgsm_training_replaces_the_first_share_of_the_batch(share: float, seed: int) -> None:
    net, (x, y) = a_net(seed), random_batch(dtype=torch.float64, seed=seed)
    count = {0.25: 2, 0.5: 4, 0.6: 5, 1.0: 8}[share]
    mixed = torch.cat([sign_step(net, x[:count], y[:count], 0.1), x[count:]])
    assert_same_terms(FgsmAT(0.1, share), ce(net, mixed, y), torch.zeros(()), 0.0, net, seed)
    torch.manual_seed(seed)
    start = (x[:count] + 0.02 * torch.randn(x[:count].shape, dtype=x.dtype).sign()).clip(0, 1)
    mixed = torch.cat([sign_step(net, start, y[:count], 0.1 - 0.02), x[count:]])
    assert_same_terms(RFgsmAT(0.1, 0.02, share), ce(net, mixed, y), torch.zeros(()), 0.0, net, seed)


@pytest.mark.parametrize("pair", ["first", "last"])
def test_batch_norm_sees_the_fgsm_and_the_paired_samples_together(pair: Literal["first", "last"]) -> None:
    """Crafted with the running statistics, trained with those of one batch of m + k samples."""
    x, y = random_batch(dtype=torch.float64)
    net = random_net(dtype=torch.float64)
    net.get_submodule("drop").eval()
    frozen = deepcopy(net).eval()
    rows = slice(0, 3) if pair == "first" else slice(5, 8)
    fgsm, ifgsm = sign_step(frozen, x, y, EPS), iterate(frozen, x[rows], y[rows], 4, EPS)
    logits = deepcopy(net)(torch.cat([fgsm, ifgsm]))
    terms = SatR1(EPS, lam=0.5, steps=4, k=3, pair=pair)(net, x, y)
    assert float(terms.classification) == pytest.approx(float(F.cross_entropy(logits[:8], y).detach()), rel=1e-10)
    expected = (logits[:8][rows] - logits[8:]).pow(2).sum(1).mean().detach()
    assert float(terms.regularizer) == pytest.approx(float(expected), rel=1e-9)


# Relations between objectives.


@pytest.mark.parametrize(
    "objective",
    [
        SatR1(EPS, lam=0.0, steps=4, k=3),
        SatR2(EPS, EPS / 4, lam=0.0),
        SatR3(EPS, EPS / 4, lam=0.0, tau=0.5),
        EnsembleAT(EPS, ("never asked",), share=1.0),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_without_its_weight_a_method_is_fgsm_training(objective: Objective) -> None:
    net, (x, y) = a_net(1), random_batch(dtype=torch.float64)
    seed = next(s for s in range(99) if draw(s, 2) == 0)  # an ensemble's draw of the model itself
    terms = terms_of(objective, net, x, y, seed)
    base = FgsmAT(EPS, share=1.0)(net, x, y)
    assert float(terms.loss.detach()) == pytest.approx(float(base.loss.detach()), rel=1e-12)
    for ours, theirs in zip(gradients(terms.loss, net), gradients(base.loss, net), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_trades_without_beta_is_normal_training() -> None:
    net, (x, y) = a_net(1), random_batch(dtype=torch.float64)
    terms, base = Trades(EPS, 2, EPS / 2, beta=0.0)(net, x, y), NormalTraining()(net, x, y)
    for ours, theirs in zip(gradients(terms.loss, net), gradients(base.loss, net), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_on_a_linear_model_fgsm_and_ifgsm_agree_so_sat_r1_has_nothing_to_punish() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).double()  # two classes: the sign never changes
    x = random_batch(dtype=torch.float64)[0] * 0.6 + 0.2
    y = torch.randint(2, (BATCH,))
    assert float(SatR1(EPS, lam=1.0, steps=5, k=8)(net, x, y).regularizer) == pytest.approx(0, abs=1e-20)


@given(seed=st.integers(0, 2**16), smoothing=st.floats(0, 0.9))
def test_label_smoothing_is_torchs_own(seed: int, smoothing: float) -> None:
    net, (x, y) = random_net(PlainNet, seed), random_batch(seed=seed)
    expected = F.cross_entropy(net(x), y, label_smoothing=smoothing)
    assert torch.equal(NormalTraining(smoothing)(net, x, y).loss, expected)
    one, both = (
        SatR3(EPS, eps_low=0.0, lam=1.0, tau=0.5, label_smoothing=smoothing, classified=kinds)(net, x, y).classification
        for kinds in ("one", "both")
    )
    assert float(2 * both - one) == pytest.approx(float(expected.detach()), rel=1e-4)  # the small radius's is clean
    smooth = SatR1(EPS, lam=0.0, steps=2, label_smoothing=smoothing)(net, x, y)
    base = FgsmAT(EPS, share=1.0, label_smoothing=smoothing)(net, x, y)
    assert float(smooth.loss.detach()) == pytest.approx(float(base.loss.detach()), rel=1e-5)


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_label_smoothing_reaches_every_classification(case: ObjectiveCase) -> None:
    net, other, (x, y) = random_net(PlainNet), random_net(PlainNet, 5), random_batch()

    def classification(smoothing: float) -> float:
        objective: Any = case.build((other,))
        return float(terms_of(replace(objective, label_smoothing=smoothing), net, x, y).classification)

    none, some, more = (classification(smoothing) for smoothing in (0.0, 0.3, 0.6))
    assert abs(some - none) > 1e-3
    assert more - none == pytest.approx(2 * (some - none), rel=1e-3)  # what is crafted does not hang on it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_half_precision_networks_give_losses_in_float32(case: ObjectiveCase, dtype: torch.dtype) -> None:
    inputs, labels = random_batch()
    net, other = random_net(PlainNet).to(dtype), random_net(PlainNet, 5).to(dtype)
    terms = terms_of(case.build((other,)), net, inputs.to(dtype), labels)
    assert all(part.dtype == torch.float32 for part in terms)


class PairInTraining(nn.Module):
    """A model that answers with its features too while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = random_net()

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits: Tensor = self.net(inputs)
        return (logits, inputs) if self.training else logits


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_a_model_that_answers_with_a_tuple_is_refused_with_what_wraps_it(case: ObjectiveCase) -> None:
    with pytest.raises(TypeError, match=r"answers with an object of type tuple.*surefoot\.evaluation\.recognise"):
        terms_of(case.build((random_net(),)), PairInTraining().train(), *random_batch())


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_a_label_beyond_the_models_classes_is_refused_in_a_sentence(case: ObjectiveCase) -> None:
    inputs, labels = random_batch(4)
    with pytest.raises(ValueError, match="a label is 7, but the model has the classes 0 to 2; give the data"):
        case.build((random_net(),))(random_net(), inputs, labels.index_fill(0, torch.tensor(1), 7))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (nn.Sequential(nn.Linear(4, 1)), "a label is 1, but the model has the classes 0 to 0"),
        (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), r"logits have shape \[.*\]; give \[batch, classes\]"),
    ],
    ids=["one logit", "one number"],
)
@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_one_number_for_two_classes_is_refused_with_what_wraps_it(
    case: ObjectiveCase, kind: nn.Module, said: str
) -> None:
    inputs, labels = torch.rand(4, 4), torch.tensor([0, 1, 1, 0])
    with pytest.raises(
        ValueError, match=f"{said}; surefoot.models.TwoLogits.* makes two logits of one number a sample"
    ):
        case.build((kind,))(kind, inputs, labels)


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_an_empty_batch_is_refused_for_its_loss_would_be_nan(case: ObjectiveCase) -> None:
    inputs, labels = random_batch()
    with pytest.raises(ValueError, match="the batch is empty, and has no loss"):
        case.build((random_net(),))(random_net(), inputs[:0], labels[:0])


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_weights_of_another_type_than_the_images_are_refused_in_a_sentence(case: ObjectiveCase) -> None:
    with pytest.raises(TypeError, match=r"weights are float64, the images float32, .* model.to\(inputs.dtype\)"):
        terms_of(case.build((random_net(PlainNet),)), random_net(PlainNet).double(), *random_batch())


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_crafting_does_not_spoil_the_autocast_of_the_step(case: ObjectiveCase) -> None:
    """The loss's forward would have no gradient for weights that were cast without one."""
    net = random_net(PlainNet)
    found = forwards_that_spoil_autocast(net)
    with torch.autocast("cpu", torch.bfloat16):
        terms_of(case.build((random_net(PlainNet, 5),)), net, *random_batch())
    assert found
    assert not any(found)


@pytest.mark.parametrize("case", OBJECTIVE_CASES, ids=lambda case: case.name)
def test_gradients_add_up_and_are_scaled_as_in_any_other_loop(case: ObjectiveCase) -> None:
    """Accumulation over two mini-batches, and a GradScaler: both act on `.grad`, which an objective leaves alone."""
    batches = [random_batch(seed=seed) for seed in (0, 1)]
    net = random_net(PlainNet).train()
    alone = []
    for inputs, labels in batches:
        net.zero_grad()
        backward(terms_of(case.build(sources()), net, inputs, labels).loss)
        alone.append([parameter.grad for parameter in net.parameters()])
    net.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for inputs, labels in batches:
        backward(scaler.scale(terms_of(case.build(sources()), net, inputs, labels).loss))
    scaler.unscale_(torch.optim.SGD(net.parameters(), lr=0.1))
    for parameter, first, second in zip(net.parameters(), *alone, strict=True):
        assert parameter.grad is not None
        assert first is not None
        assert second is not None
        torch.testing.assert_close(parameter.grad, first + second)


@pytest.mark.parametrize("name", ["sat-r1", "sat-r2", "sat-r3"])
def test_a_compiled_model_is_trained_as_the_plain_one(name: str) -> None:
    (case, *_) = (each for each in OBJECTIVE_CASES if each.name.startswith(name))
    net = random_net(PlainNet).train()
    expected = terms_of(case.build(sources()), deepcopy(net), *random_batch())
    compiled: Any = torch.compile(net, backend="eager")
    terms = terms_of(case.build(sources()), compiled, *random_batch())
    assert torch.equal(terms.loss, expected.loss)
    backward(terms.loss)
    assert all(parameter.grad is not None for parameter in net.parameters())


# The ensemble.


def draw(seed: int, number: int) -> int:
    torch.manual_seed(seed)
    return int(torch.randint(number, ()))


def test_the_ensemble_crafts_on_the_model_and_on_each_source_equally_often() -> None:
    net, *others = (random_net(PlainNet, seed) for seed in (20, 21, 22))
    with_graph: list[int] = []

    def note(number: int, images: Tensor) -> None:
        if images.requires_grad:
            with_graph.append(number)

    for number, model in enumerate((net, *others)):
        model.register_forward_pre_hook(lambda part, args, number=number: note(number, args[0]))
    objective, batch = EnsembleAT(EPS, tuple(others)), random_batch(2)
    torch.manual_seed(0)
    crafted_on = [0, 0, 0]
    for _ in range(300):
        with_graph.clear()
        objective(net, *batch)
        (number,) = with_graph  # one network crafts, no other
        crafted_on[number] += 1
    assert all(70 <= count <= 130 for count in crafted_on)  # 100 expected; 130 is 3.7 deviations away


def test_the_ensembles_samples_are_those_of_the_source_it_drew() -> None:
    x, y = random_batch(dtype=torch.float64)
    net, others = a_net(0), (a_net(1), a_net(2))
    for seed in range(6):
        source = (net, *others)[draw(seed, 3)]
        mixed = torch.cat([sign_step(source, x[:4], y[:4], EPS), x[4:]])
        terms = terms_of(EnsembleAT(EPS, others), net, x, y, seed)
        assert float(terms.loss.detach()) == pytest.approx(float(ce(net, mixed, y).detach()), rel=1e-10)


def test_a_recipes_name_is_no_source_to_craft_on() -> None:
    objective = EnsembleAT(EPS, ("mnist-a", "mnist-b"))
    seed = next(s for s in range(99) if draw(s, 3) == 2)
    with pytest.raises(ValueError, match="'mnist-b' is a recipe's name"):
        terms_of(objective, random_net(), *random_batch(), seed=seed)


# Refusals.

BAD_FIELDS: list[tuple[Callable[[], Any], str]] = [
    (lambda: NormalTraining(label_smoothing=1.0), "label_smoothing is 1.0; it must be in [0, 1)"),
    (lambda: NormalTraining(label_smoothing=-0.1), "label_smoothing is -0.1"),
    (lambda: NormalTraining(label_smoothing=float("nan")), "label_smoothing is nan"),
    (lambda: FgsmAT(8), "eps is 8; pixels are in [0, 1]"),
    (lambda: FgsmAT(0.1, share=0.0), "share is 0.0; it is the part of the mini-batch that is replaced"),
    (lambda: FgsmAT(0.1, share=1.1), "share is 1.1"),
    (lambda: FgsmAT(0.1, label_smoothing=1.0), "label_smoothing is 1.0"),
    (lambda: RFgsmAT(0.1, 0.2), "random_step is 0.2; it must not exceed eps, 0.1"),
    (lambda: RFgsmAT(0.1, 0.02, share=0), "share is 0"),
    (lambda: RFgsmAT(0.1, 0.02, label_smoothing=1.0), "label_smoothing is 1.0"),
    (lambda: NFgsmAT(0.1, 16), "noise is 16; pixels are in [0, 1]"),
    (lambda: NFgsmAT(8, 0.1), "eps is 8; pixels are in [0, 1]"),
    (lambda: NFgsmAT(0.1, 0.2, label_smoothing=1.0), "label_smoothing is 1.0"),
    (lambda: EnsembleAT(8, (nn.Linear(2, 2),)), "eps is 8"),
    (lambda: EnsembleAT(0.1, ()), "sources is empty"),
    (lambda: EnsembleAT(0.1, (nn.Linear,)), "sources has <class"),  # type: ignore[arg-type]
    (lambda: EnsembleAT(0.1, (3,)), "sources has 3; give models, or names of the recipes"),  # type: ignore[arg-type]
    (lambda: EnsembleAT(0.1, nn.Sequential(nn.Linear(2, 2))), "sources is a single one; give a tuple"),  # type: ignore[arg-type]
    (lambda: EnsembleAT(0.1, "mnist/normal-a"), "sources is a single one; give a tuple"),  # type: ignore[arg-type]
    (lambda: EnsembleAT(0.1, (nn.Linear(2, 2),), share=2), "share is 2"),
    (lambda: EnsembleAT(0.1, (nn.Linear(2, 2),), label_smoothing=1), "label_smoothing is 1"),
    (lambda: PgdAT(-0.1, 7, 0.02), "eps is -0.1"),
    (lambda: PgdAT(0.1, 0, 0.02), "steps is 0"),
    (lambda: PgdAT(0.1, 7, 0.0), "step_size is 0.0"),
    (lambda: PgdAT(0.1, 7, 0.02, label_smoothing=1), "label_smoothing is 1"),
    (lambda: Trades(8, 10, 0.02, 6.0), "eps is 8"),
    (lambda: Trades(0.1, 10, 2, 6.0), "step_size is 2"),
    (lambda: Trades(0.1, 10, 0.02, -6.0), "beta is -6.0; it must be a finite number of at least 0"),
    (lambda: Trades(0.1, 10, 0.02, float("inf")), "beta is inf"),
    (lambda: Trades(0.1, 10, 0.02, 6.0, label_smoothing=1), "label_smoothing is 1"),
    (lambda: SatR1(8, 0.2, 7), "eps is 8"),
    (lambda: SatR1(0.1, -0.2, 7), "lam is -0.2; it must be a finite number of at least 0"),
    (lambda: SatR1(0.1, float("nan"), 7), "lam is nan"),
    (lambda: SatR1(0.1, 0.2, 0), "steps is 0"),
    (lambda: SatR1(0.1, 0.2, 7, k=0), "k is 0; it must be a whole number of at least 1"),
    (lambda: SatR1(0.1, 0.2, 7, pair="middle"), "pair is 'middle'; it is 'first' or 'last'"),  # type: ignore[arg-type]
    (lambda: SatR1(0.1, 0.2, 7, label_smoothing=1), "label_smoothing is 1"),
    (lambda: SatR2(0.1, 0.2, 5), "random_step is 0.2"),
    (lambda: SatR2(0.1, 0.02, -5), "lam is -5"),
    (lambda: SatR2(0.1, 0.02, 5, rfgsm_step="half"), "rfgsm_step is 'half'; it is 'remaining' or 'full'"),  # type: ignore[arg-type]
    (lambda: SatR2(0.1, 0.02, 5, label_smoothing=1), "label_smoothing is 1"),
    (lambda: SatR3(8, 0.02, 1, 0.6), "eps is 8"),
    (lambda: SatR3(0.1, 0.1, 1, 0.6), "eps_low is 0.1; it must be below eps, 0.1"),
    (lambda: SatR3(0.1, -0.1, 1, 0.6), "eps_low is -0.1"),
    (lambda: SatR3(0.1, 0.02, -1, 0.6), "lam is -1"),
    (lambda: SatR3(0.1, 0.02, 1, 0.0), "tau is 0.0; it must be in (0, 1)"),
    (lambda: SatR3(0.1, 0.02, 1, 1.0), "tau is 1.0"),
    (lambda: SatR3(0.1, 0.02, 1, 0.6, random_step=0.2), "random_step is 0.2"),
    (lambda: SatR3(0.1, 0.02, 1, 0.6, label_smoothing=1), "label_smoothing is 1"),
]


@pytest.mark.parametrize(("build", "message"), BAD_FIELDS, ids=range(len(BAD_FIELDS)))
def test_a_bad_field_is_refused_at_once(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_evaluation_mode_is_respected_too() -> None:
    """One forward in the mode that the model is in: a frozen batch-norm stays frozen."""
    for case in OBJECTIVE_CASES:
        net = random_net().eval()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        terms_of(case.build(sources()), net, *random_batch())
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_shapes_other_than_images_work() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], 3))
    inputs, labels = random_batch()
    for case in OBJECTIVE_CASES:
        flat = terms_of(case.build((net,)), net, inputs.flatten(1), labels)
        image = terms_of(case.build((net,)), net, inputs, labels)
        assert float(flat.loss.detach()) == pytest.approx(float(image.loss.detach()), rel=1e-5)


def test_the_small_net_has_what_the_promises_look_for() -> None:
    kinds = {type(part) for part in SmallNet().modules()}
    assert {nn.BatchNorm2d, nn.Dropout} <= kinds


@pytest.mark.parametrize(("share", "count"), [(0.07, 7), (0.5, 50), (0.501, 51), (1.0, 100)])
def test_the_replaced_share_is_rounded_up_from_its_exact_value(share: float, count: int) -> None:
    inputs = torch.full((100, 1, 2, 2), 0.5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    mixed = replace_share(FGSM(0.1), net, inputs, torch.zeros(100, dtype=torch.int64), share)
    assert int((mixed != inputs).flatten(1).any(dim=1).sum()) == count
