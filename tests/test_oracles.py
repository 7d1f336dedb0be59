"""The attacks against what is known from outside: closed forms, equations by hand, other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.attacks import FGSM, IFGSM, MIFGSM, PGD, RFGSM, MarginLoss
from surefoot.core.types import Attack
from tests.tables import CLASSES, FOOLBOX_IMPORT, SHAPE, PlainNet, random_batch, random_net

EPS, STEPS, STEP_SIZE = 8 / 255, 10, 2 / 255
BAR = 1e-6  # what l-infinity PGD of three libraries agreed to on one small network


def a_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Curved enough for the iterates to turn, smooth enough for no gradient to be on the edge of zero."""
    net = random_net(PlainNet, 3, dtype).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net


def a_batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random_batch(16, seed=5, dtype=dtype)


def assert_agrees(ours: Tensor, theirs: Tensor, inputs: Tensor) -> None:
    assert float((ours - theirs).abs().max()) <= BAR
    assert float((ours - inputs).abs().max()) > EPS / 2  # both did something


# Closed forms: on a linear model with two classes the gradient's sign is the same everywhere.


def linear(seed: int) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).double()
    weight = torch.randn(2, 72, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(weight)
        net.get_parameter("1.bias").zero_()
    return net, (weight[1] - weight[0]).sign().view(SHAPE)  # what favours class 1


@given(seed=st.integers(0, 2**16), eps=st.floats(0.01, 1))
def test_every_attack_finds_the_optimum_of_a_linear_model(seed: int, eps: float) -> None:
    net, towards_one = linear(seed)
    inputs, _ = random_batch(6, seed=seed, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    outward = torch.where((labels == 0).view(-1, 1, 1, 1), towards_one, -towards_one)
    optimum = (inputs + eps * outward).clamp(0, 1)
    for attack in (
        FGSM(eps),
        RFGSM(eps, 0.0),
        IFGSM(eps, 7),
        MIFGSM(eps, 7),
        PGD(eps, 5, min(1.0, eps / 2)),  # five half radii reach the optimum from any start
        PGD(eps, 5, min(1.0, eps / 2), loss=MarginLoss(1e3), restarts=2),
        PGD(eps, 5, min(1.0, eps / 2), random_start=False),
    ):
        adv_inputs = attack(net, inputs, labels)
        assert float((adv_inputs - optimum).abs().max()) <= 1e-12, attack


def test_rfgsm_on_a_linear_model_is_the_random_step_and_what_is_left() -> None:
    net, towards_one = linear(0)
    inputs, labels = torch.full((4, *SHAPE), 0.5, dtype=torch.float64), torch.zeros(4).long()
    torch.manual_seed(7)
    signs = torch.randn(inputs.shape, dtype=torch.float64).sign()
    torch.manual_seed(7)
    adv_inputs = RFGSM(0.1, random_step=0.03)(net, inputs, labels)
    assert torch.allclose(adv_inputs, inputs + 0.03 * signs + 0.07 * towards_one, atol=1e-12)


# The equations, written by hand in float64, one sample and one pixel operation at a time.


def slope(net: nn.Module, point: Tensor, label: Tensor) -> Tensor:
    leaf = point.clone().requires_grad_()
    return torch.autograd.grad(-net(leaf[None]).log_softmax(1)[0, int(label)], leaf)[0]


def margin_slope(net: nn.Module, point: Tensor, label: Tensor, confidence: float) -> Tensor:
    leaf = point.clone().requires_grad_()
    logits = net(leaf[None])[0]
    true = logits[int(label)]
    other = torch.stack([logit for i, logit in enumerate(logits) if i != int(label)]).max()
    gap = true - other + confidence
    if float(gap.detach()) <= 0:
        return torch.zeros_like(point)
    return torch.autograd.grad(-gap, leaf)[0]


def in_set(point: Tensor, centre: Tensor, eps: float) -> Tensor:
    moved = torch.maximum(torch.minimum(point, centre + eps), centre - eps)
    return moved.clip(0, 1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
def test_mifgsm_is_equations_9_to_11(decay: float) -> None:
    net, (inputs, labels) = a_net(torch.float64), a_batch(torch.float64)
    ours = MIFGSM(0.2, STEPS, decay)(net, inputs, labels)
    for i, label in enumerate(labels):
        point, momentum = inputs[i], torch.zeros(SHAPE, dtype=torch.float64)
        for _ in range(STEPS):
            gradient = slope(net, point, label)
            momentum = decay * momentum + gradient / gradient.abs().sum()
            point = in_set(point + 0.2 / STEPS * momentum.sign(), inputs[i], 0.2)
        assert float((ours[i] - point).abs().max()) <= 1e-12


def test_mifgsm_accumulates_gradients_of_length_one_not_signs() -> None:
    net, (inputs, labels) = a_net(torch.float64), a_batch(torch.float64)
    ours = MIFGSM(0.2, STEPS)(net, inputs, labels)
    assert not torch.allclose(ours, along_signs(net, inputs, labels, 0.2), atol=1e-3)


def along_signs(net: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
    """MI-FGSM as foolbox has it: what adds up is each gradient's sign."""
    point, momentum = inputs, torch.zeros_like(inputs)
    for _ in range(STEPS):
        momentum = momentum + torch.stack([slope(net, p, y).sign() for p, y in zip(point, labels, strict=True)])
        point = in_set(point + eps / STEPS * momentum.sign(), inputs, eps)
    return point


@pytest.mark.parametrize("random_step", [0.0, 0.02, 0.1])
def test_rfgsm_is_equations_2_and_3(random_step: float) -> None:
    net, (inputs, labels) = a_net(torch.float64), a_batch(torch.float64)
    torch.manual_seed(1)
    ours = RFGSM(0.1, random_step)(net, inputs, labels)
    torch.manual_seed(1)
    start = (inputs + random_step * torch.randn(inputs.shape, dtype=inputs.dtype).sign()).clip(0, 1)
    for i, label in enumerate(labels):
        expected = (start[i] + (0.1 - random_step) * slope(net, start[i], label).sign()).clip(0, 1)
        assert float((ours[i] - expected).abs().max()) <= 1e-12


@pytest.mark.parametrize("start_radius", [None, STEP_SIZE, 0.0])
def test_pgd_is_equations_6_to_8(start_radius: float | None) -> None:
    net, (inputs, labels) = a_net(torch.float64), a_batch(torch.float64)
    torch.manual_seed(1)
    ours = PGD(EPS, STEPS, STEP_SIZE, start_radius=start_radius)(net, inputs, labels)
    torch.manual_seed(1)
    radius = EPS if start_radius is None else start_radius
    start = (inputs + torch.empty_like(inputs).uniform_(-radius, radius)).clip(0, 1)
    for i, label in enumerate(labels):
        point = start[i]
        for _ in range(STEPS):
            point = in_set(point + STEP_SIZE * slope(net, point, label).sign(), inputs[i], EPS)
        assert float((ours[i] - point).abs().max()) <= 1e-12


@pytest.mark.parametrize("confidence", [0.0, 0.5, 50.0])
def test_pgd_cw_climbs_the_margin(confidence: float) -> None:
    net, (inputs, labels) = a_net(torch.float64), a_batch(torch.float64)
    attack = PGD(0.2, STEPS, 0.05, random_start=False, loss=MarginLoss(confidence))
    ours = attack(net, inputs, labels)
    for i, label in enumerate(labels):
        point = inputs[i]
        for _ in range(STEPS):
            point = in_set(point + 0.05 * margin_slope(net, point, label, confidence).sign(), inputs[i], 0.2)
        assert float((ours[i] - point).abs().max()) <= 1e-12


def test_restarts_keep_the_best_of_runs_that_are_made_one_by_one() -> None:
    net, (inputs, labels) = a_net(torch.float64), a_batch(torch.float64)
    torch.manual_seed(2)
    ours = PGD(EPS, 2, STEP_SIZE, restarts=4)(net, inputs, labels)
    torch.manual_seed(2)
    runs = torch.stack([PGD(EPS, 2, STEP_SIZE)(net, inputs, labels) for _ in range(4)])
    for i, label in enumerate(labels):
        with torch.no_grad():
            logits = net(runs[:, i])
        losses = F.cross_entropy(logits, label.expand(4), reduction="none")
        fooled = logits.argmax(1) != label
        best = max(range(4), key=lambda run: (bool(fooled[run]), float(losses[run])))
        assert torch.equal(ours[i], runs[best, i])


# Other libraries. `make test` installs them, so these run there.


@pytest.fixture
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks")


@pytest.fixture
def foolbox() -> Any:
    return pytest.importorskip("foolbox")


@pytest.fixture
def art_attacks() -> Any:
    return pytest.importorskip("art.attacks.evasion")


@pytest.fixture
def art_estimators() -> Any:
    return pytest.importorskip("art.estimators.classification")


def test_torchattacks_agrees_on_fgsm_ifgsm_and_pgd(torchattacks: Any) -> None:
    net, (inputs, labels) = a_net(), a_batch()
    pairs: list[tuple[Attack, Any]] = [
        (FGSM(EPS), torchattacks.FGSM(net, eps=EPS)),
        (IFGSM(EPS, STEPS), torchattacks.BIM(net, eps=EPS, alpha=EPS / STEPS, steps=STEPS)),
        (
            PGD(EPS, STEPS, STEP_SIZE, random_start=False),
            torchattacks.PGD(net, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=False),
        ),
    ]
    for ours, theirs in pairs:
        assert_agrees(ours(net, inputs, labels), theirs(inputs, labels), inputs)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_torchattacks_agrees_on_mifgsm(torchattacks: Any, decay: float) -> None:
    """It divides by the mean where the paper divides by the sum, which no sign can tell apart."""
    net, (inputs, labels) = a_net(), a_batch()
    theirs = torchattacks.MIFGSM(net, eps=EPS, alpha=EPS / STEPS, steps=STEPS, decay=decay)
    assert_agrees(MIFGSM(EPS, STEPS, decay)(net, inputs, labels), theirs(inputs, labels), inputs)


def test_torchattacks_agrees_on_rfgsm_where_both_steps_are_half_the_radius(torchattacks: Any) -> None:
    """Its second step is alpha, not eps - alpha, and its default is ten of them."""
    net, (inputs, labels) = a_net(), a_batch()
    theirs = torchattacks.RFGSM(net, eps=EPS, alpha=EPS / 2, steps=1)
    torch.manual_seed(4)
    expected = theirs(inputs, labels)
    torch.manual_seed(4)
    assert_agrees(RFGSM(EPS, EPS / 2)(net, inputs, labels), expected, inputs)


def test_torchattacks_agrees_on_pgd_from_the_same_random_start(torchattacks: Any) -> None:
    net, (inputs, labels) = a_net(), a_batch()
    theirs = torchattacks.PGD(net, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=True)
    torch.manual_seed(4)
    expected = theirs(inputs, labels)
    torch.manual_seed(4)
    assert_agrees(PGD(EPS, STEPS, STEP_SIZE)(net, inputs, labels), expected, inputs)


@pytest.mark.filterwarnings(FOOLBOX_IMPORT)
def test_foolbox_agrees_on_fgsm_ifgsm_and_pgd(foolbox: Any) -> None:
    net, (inputs, labels) = a_net(), a_batch()
    theirs = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    l_inf = foolbox.attacks
    pairs: list[tuple[Attack, Any]] = [
        (FGSM(EPS), l_inf.LinfFastGradientAttack(random_start=False)),
        (
            IFGSM(EPS, STEPS),
            l_inf.LinfBasicIterativeAttack(abs_stepsize=EPS / STEPS, steps=STEPS, random_start=False),
        ),
        (
            PGD(EPS, STEPS, STEP_SIZE, random_start=False),
            l_inf.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=False),
        ),
    ]
    for ours, attack in pairs:
        assert_agrees(ours(net, inputs, labels), attack.run(theirs, inputs, labels, epsilon=EPS), inputs)


@pytest.mark.filterwarnings(FOOLBOX_IMPORT)
def test_one_name_is_another_attack_elsewhere(torchattacks: Any, foolbox: Any) -> None:
    """What docs/questions.md says of the others."""
    net, (inputs, labels) = a_net(), a_batch()
    theirs = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfMomentumIterativeFastGradientMethod(abs_stepsize=EPS / STEPS, steps=STEPS)
    expected = attack.run(theirs, inputs, labels, epsilon=EPS)
    assert_agrees(along_signs(net, inputs, labels, EPS), expected, inputs)
    assert torchattacks.RFGSM(net).steps == 10


def test_art_agrees_on_fgsm_ifgsm_and_pgd(art_attacks: Any, art_estimators: Any) -> None:
    net, (inputs, labels) = a_net(), a_batch()
    classifier = art_estimators.PyTorchClassifier(
        model=net,
        loss=nn.CrossEntropyLoss(),
        input_shape=SHAPE,
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    shared = {"norm": np.inf, "eps": EPS, "batch_size": 16}
    pairs: list[tuple[Attack, Any]] = [
        (FGSM(EPS), art_attacks.FastGradientMethod(classifier, **shared)),
        (
            IFGSM(EPS, STEPS),
            art_attacks.BasicIterativeMethod(
                classifier, eps=EPS, eps_step=EPS / STEPS, max_iter=STEPS, batch_size=16, verbose=False
            ),
        ),
        (
            PGD(EPS, STEPS, STEP_SIZE, random_start=False),
            art_attacks.ProjectedGradientDescent(
                classifier, **shared, eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=0, verbose=False
            ),
        ),
    ]
    for ours, attack in pairs:
        expected = torch.from_numpy(attack.generate(inputs.numpy(), labels.numpy()))
        assert_agrees(ours(net, inputs, labels), expected, inputs)


def test_an_oracle_would_notice_a_wrong_step(torchattacks: Any) -> None:
    net, (inputs, labels) = a_net(), a_batch()
    theirs = torchattacks.PGD(net, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=False)
    wrong = PGD(EPS, STEPS - 1, STEP_SIZE, random_start=False)
    with pytest.raises(AssertionError):
        assert_agrees(wrong(net, inputs, labels), theirs(inputs, labels), inputs)
