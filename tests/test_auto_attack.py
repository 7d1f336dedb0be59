"""AutoAttack and its parts: closed forms, the algorithm by hand, another library, planted faults."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.attacks import APGD, APGDT, FABT, FGSM, IFGSM, PGD, AutoAttack, Square, WorstCase
from surefoot.attacks import apgd as apgd_file
from surefoot.attacks import square as square_file
from surefoot.attacks.apgd import auto_pgd, checkpoints, dlr_loss, likeliest_others, targeted_dlr_loss
from surefoot.attacks.fab import move_to_plane, nearest_adversarial
from surefoot.attacks.square import HALVINGS
from surefoot.core.gradients import input_gradient
from surefoot.core.losses import margin
from surefoot.core.types import Attack, CompoundAttack
from surefoot.evaluation.passes import PassCounter
from tests.tables import EPS, SHAPE, PlainNet, SmallNet, assert_valid, craft, random_batch, random_net, trained

CLASSES = 6


@cache
def _robust_enough() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        templates = 0.5 + 0.25 * torch.randn(CLASSES, *SHAPE).sign()
        labels = torch.arange(90) % CLASSES
        inputs = (templates[labels] + 0.1 * torch.randn(90, *SHAPE)).clamp(0, 1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(72, 24), nn.Tanh(), nn.Linear(24, CLASSES))
        parameters = list(net.parameters())
        for _ in range(60):
            noisy = (inputs + 0.1 * torch.randn_like(inputs)).clamp(0, 1)
            gradients = torch.autograd.grad(F.cross_entropy(net(noisy), labels), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(0.2 * gradient)
        return net.eval(), inputs[:60], labels[:60]


def robust_enough() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of six classes and images that it gets right, of which a fair share survives at eps 0.21."""
    return deepcopy(_robust_enough())


def right(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        verdict: Tensor = net(inputs).argmax(1) == labels
        return verdict


def parts(eps: float) -> list[Attack]:
    return [APGD(eps, 6), APGDT(eps, 4), FABT(eps, 4), Square(eps, 15), AutoAttack(eps, 3, queries=8)]


# Any number of classes and channels, any batch.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_every_part_takes_any_number_of_classes_and_channels(classes: int, channels: int) -> None:
    net = random_net(lambda: SmallNet(channels, classes), 2).eval()
    inputs, _ = random_batch(10, (channels, 6, 6))
    labels = net(inputs).argmax(1)
    for attack in parts(EPS):
        adv_inputs = craft(attack, net, inputs, labels)
        assert_valid(adv_inputs, inputs, EPS)
        assert torch.equal(craft(attack, net, inputs, labels), adv_inputs)
    adv_inputs = craft(AutoAttack(0.5, 5, queries=20), net, inputs, labels)  # a radius that leaves few
    assert int(right(net, adv_inputs, labels).sum()) < 5


@pytest.mark.parametrize("attack", parts(EPS), ids=lambda attack: type(attack).__name__)
def test_what_is_wrong_from_the_start_is_left_alone_for_one_forward(attack: Attack) -> None:
    net, inputs, labels = trained()
    wrong = (labels + 1) % 3
    with PassCounter(net) as counter:
        assert torch.equal(attack(net, inputs, wrong), inputs)
    assert (counter.forwards, counter.backwards) == (len(inputs), 0)


def test_inputs_that_are_no_images_are_searched_too() -> None:
    net = nn.Sequential(linear := nn.Linear(8, 3, bias=False))
    inputs = torch.rand(6, 8)
    labels = net(inputs).argmax(1)
    directions = (linear.weight[None] - linear.weight[labels][:, None]).sign()
    best = (inputs[:, None] + 0.4 * directions).clamp(0, 1)  # for each class the input that it likes most
    foolable = (net(best).argmax(2) != labels[:, None]).any(dim=1)
    adv_inputs = craft(AutoAttack(0.4, 5, queries=40), net, inputs, labels)
    assert_valid(adv_inputs, inputs, 0.4)
    assert_valid(craft(Square(0.4, 40), net, inputs, labels), inputs, 0.4)
    assert foolable.any()
    assert torch.equal(right(net, adv_inputs, labels), ~foolable)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_any_size_leave_nothing_but_finite_images(scale: float) -> None:
    inner, inputs, labels = trained()

    class Scaled(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = inner(inputs) * scale
            return logits

    for attack in parts(EPS):
        assert_valid(craft(attack, Scaled(), inputs, labels), inputs, EPS)


# What each part costs: a radius of zero fools nothing.


def costs(attack: Attack, net: nn.Module) -> tuple[float, float]:
    inputs, _ = random_batch(5)
    labels = net(inputs).argmax(1)
    with PassCounter(net) as counter:
        attack(net, inputs, labels)
    return counter.forwards / 5, counter.backwards / 5


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_a_survivor_costs_what_the_docstrings_say(classes: int) -> None:
    net = random_net(lambda: PlainNet(classes=classes))
    targets = min(9, classes - 1)
    assert costs(APGD(0.0, 3, restarts=2), net) == (1 + 2 * 4, 2 * 3)
    assert costs(APGDT(0.0, 3, restarts=2), net) == (1 + targets * 2 * 4, targets * 2 * 3)
    assert costs(APGDT(0.0, 3, targets=1), net) == (1 + 4, 3)
    assert costs(FABT(0.0, 3, restarts=2), net) == (1 + 2 * targets * 2 * 3, targets * 2 * 3)
    assert costs(Square(0.0, 11, restarts=2), net) == (1 + 2 * 12, 0)
    forwards = 11 + (3 * targets + 1) * 3 + targets + 11
    assert costs(AutoAttack(0.0, 3, queries=11), net) == (forwards, (2 * targets + 1) * 3)


def test_a_fooled_sample_costs_nothing_more() -> None:
    net, inputs, labels = trained()
    for attack in (APGD(0.06, 6), APGDT(0.06, 6), FABT(0.06, 6), Square(0.06, 60)):
        seen: list[int] = []
        handle = net.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
        craft(attack, net, inputs, labels)
        handle.remove()
        assert seen == sorted(seen, reverse=True)
        assert seen[-1] < len(inputs)


# To the last step, for samples that are to fool another model.

TO_THE_END: list[Any] = [APGD(EPS, 12, 2), APGDT(EPS, 6), Square(EPS, 60, restarts=2)]


@pytest.mark.parametrize("attack", TO_THE_END, ids=lambda attack: type(attack).__name__)
def test_to_the_end_every_sample_goes_further_than_where_it_is_fooled(attack: Any) -> None:
    net, inputs, labels = robust_enough()
    labels = labels.clone()
    labels[:20] = (labels[:20] + 1) % CLASSES  # wrong from the start

    def lead(found: Attack) -> Tensor:
        adv_inputs = craft(found, net, inputs, labels)
        assert_valid(adv_inputs, inputs, EPS)
        with torch.no_grad():
            return margin(net(adv_inputs), labels)

    stopped, to_the_end = lead(attack), lead(replace(attack, stop_when_fooled=False))
    assert ((stopped > 0) <= (to_the_end > 0)).all()
    assert (to_the_end > stopped)[stopped > 0].float().mean() > 0.9


def test_to_the_end_the_run_with_the_largest_margin_is_kept() -> None:
    net, inputs, labels = robust_enough()
    leads = []
    for restarts in (1, 2, 3):
        attack = APGD(EPS, 2, restarts, stop_when_fooled=False)
        leads.append(margin(net(craft(attack, net, inputs, labels)), labels).detach())
    assert (leads[0] <= leads[1] + 1e-6).all()
    assert (leads[1] <= leads[2] + 1e-6).all()
    assert leads[0].mean() < leads[1].mean() < leads[2].mean()


def test_to_the_end_every_sample_costs_what_a_survivor_does() -> None:
    net = random_net(lambda: PlainNet(classes=4))
    apgd, apgdt, square = (
        replace(attack, stop_when_fooled=False) for attack in (APGD(0.5, 3, restarts=2), APGDT(0.5, 3), Square(0.5, 11))
    )
    assert costs(apgd, net) == (1 + 2 * 4 + 2, 2 * 3)
    assert costs(apgdt, net) == (1 + 3 * 4 + 3, 3 * 3)
    assert costs(square, net) == (1 + 12 + 1, 0)


# Auto-PGD.


def test_the_dlr_losses_are_equations_6_and_7() -> None:
    logits = torch.tensor([[1.0, 7.0, 4.0, 2.0, -3.0], [5.0, 0.0, 9.0, 9.5, 1.0]])
    labels = torch.tensor([1, 2])
    assert dlr_loss(logits, labels).tolist() == pytest.approx([-(7 - 4) / (7 - 2), -(9 - 9.5) / (9.5 - 5)])
    pairs = torch.tensor([[1, 4], [2, 0]])
    expected = [-(7 + 3) / (7 - (2 + 1) / 2), -(9 - 5) / (9.5 - (5 + 1) / 2)]
    assert targeted_dlr_loss(logits, pairs).tolist() == pytest.approx(expected)
    assert torch.equal(margin(logits, labels), torch.tensor([-3.0, 0.5]))
    assert likeliest_others(logits, labels).tolist() == [[2, 3, 0, 4], [3, 0, 4, 1]]


@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-10, 10), seed=st.integers(0, 2**16))
def test_the_dlr_losses_know_neither_scale_nor_offset(scale: float, offset: float, seed: int) -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels, pairs = torch.tensor([0, 1, 2, 3]), torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4]])
    assert torch.allclose(dlr_loss(logits * scale + offset, labels), dlr_loss(logits, labels), atol=1e-8)
    moved = targeted_dlr_loss(logits * scale + offset, pairs)
    assert torch.allclose(moved, targeted_dlr_loss(logits, pairs), atol=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
def test_with_too_few_classes_for_the_ratio_the_lead_is_driven_up(classes: int) -> None:
    logits, labels = torch.tensor([[3.0, 1.0, -2.0][:classes]]), torch.tensor([0])
    assert targeted_dlr_loss(logits, torch.tensor([[0, 1]])).item() == -2
    assert dlr_loss(logits, labels).item() == pytest.approx(-2 if classes == 2 else -2 / 5)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 100, 1000])
def test_the_checkpoints_follow_the_papers_recursion(steps: int) -> None:
    found = list(checkpoints(steps))
    assert [position for position, _ in found] == [sum(w for _, w in found[: i + 1]) for i in range(len(found))]
    assert all(narrow <= wide for (_, wide), (_, narrow) in pairwise(found))
    if steps >= 100:
        shares = [0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99]
        assert [position / steps for position, _ in found] == pytest.approx(shares)


def by_hand(net: nn.Module, point: Tensor, label: Tensor, eps: float, steps: int) -> Tensor | None:
    """Alg. 1 of the paper for one sample from its clean input, until it is misclassified.

    None where two losses that it compares differ by rounding alone, which a batch rounds otherwise.
    """

    def look(z: Tensor) -> tuple[float, Tensor, bool]:
        leaf = z.clone().requires_grad_()
        logits = net(leaf[None])[0]
        loss = -logits.log_softmax(0)[label]
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0], bool(logits.argmax() != label)

    def inside(z: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(z, point + eps), point - eps).clip(0, 1)

    looks = dict(checkpoints(steps))
    x, last = point, point
    loss, gradient, fooled = look(x)
    top, top_x, top_gradient = loss, x, gradient
    losses, size, halved, top_then = [loss], 2 * eps, False, -math.inf
    for k in range(1, steps + 1):
        if fooled:
            return x
        z = inside(x + size * gradient.sign())
        x, last = (inside(x + 0.75 * (z - x) + 0.25 * (x - last)) if k > 1 else z), x
        loss, gradient, fooled = look(x)
        losses.append(loss)
        if any(0 < abs(loss - other) <= 1e-12 * abs(other) for other in (top, losses[-2])):
            return None
        if loss > top:
            top, top_x, top_gradient = loss, x, gradient
        if k in looks:
            rises = sum(after > before for before, after in pairwise(losses[-looks[k] - 1 :]))
            halved = rises <= 0.75 * looks[k] or (not halved and top == top_then)
            top_then = top
            if halved and not fooled:
                size, x, gradient = size / 2, top_x, top_gradient
    return x if fooled else top_x


def follows_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs, labels = trained()
    net, inputs, labels = net.double(), inputs[:12].double(), labels[:12]
    monkeypatch.setattr(apgd_file, "random_start", lambda inputs, eps: inputs)
    for eps in (0.03, 0.05, 0.07):
        found = APGD(eps, 30)(net, inputs, labels)
        expected = [by_hand(net, x, y, eps, 30) for x, y in zip(inputs, labels, strict=True)]
        compared = [(each, hand) for each, hand in zip(found, expected, strict=True) if hand is not None]
        assert len(compared) >= 8
        assert all(float((each - hand).abs().max()) <= 1e-9 for each, hand in compared)


def test_a_random_start_lies_on_the_surface_of_the_ball_in_every_direction() -> None:
    inputs = torch.full((50, 1, 2, 2), 0.5)
    moved = apgd_file.random_start(inputs, 0.1) - inputs
    assert torch.allclose(moved.abs().flatten(1).amax(dim=1), torch.full([50], 0.1), atol=1e-6)
    assert float(moved.abs().flatten(1).amin(dim=1).mean()) < 0.05
    assert abs(float(moved.sign().mean())) < 0.3


def test_auto_pgd_is_the_papers_algorithm_by_hand_sample_for_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    follows_the_algorithm(monkeypatch)


@pytest.mark.parametrize("fault", ["rows", "goals", "no checkpoints"])
def test_mixed_up_rows_and_a_constant_step_size_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(model: Any, inputs: Tensor, loss: Any) -> tuple[Tensor, Tensor]:
        gradient, logits = input_gradient(model, inputs, loss)
        return (gradient.roll(1, 0), logits) if len(inputs) < 12 else (gradient, logits)  # once one has left

    def other_goals(model: Any, inputs: Tensor, labels: Tensor, goals: Tensor, *rest: Any, **more: Any) -> Any:
        return auto_pgd(model, inputs, labels, goals.roll(1), *rest, **more)

    if fault == "rows":
        monkeypatch.setattr(apgd_file, "input_gradient", mixed)
    elif fault == "goals":
        monkeypatch.setattr(apgd_file, "auto_pgd", other_goals)
    else:
        monkeypatch.setattr(apgd_file, "checkpoints", lambda steps: [])
    with pytest.raises(AssertionError):
        follows_the_algorithm(monkeypatch)


def linear(seed: int, bias: float) -> tuple[nn.Module, Tensor]:
    """Two classes in float64, and the difference of their weights; `bias` favours class 0."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).double()
    weight = torch.randn(2, 72, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(weight)
        net.get_parameter("1.bias").copy_(torch.tensor([bias, 0.0]))
    return net, weight[1] - weight[0]


@given(seed=st.integers(0, 2**16), eps=st.floats(0.01, 0.3))
def test_both_apgds_reach_the_optimum_of_a_linear_model(seed: int, eps: float) -> None:
    inputs, _ = random_batch(6, seed=seed, dtype=torch.float64)
    labels = torch.zeros(6, dtype=torch.int64)
    _, weight = linear(seed, bias=0.0)
    optimum = (inputs + eps * weight.sign().view(SHAPE)).clamp(0, 1)
    net, _ = linear(seed, bias=1 + float((optimum.flatten(1) * weight).sum(1).max()))  # none is fooled, but nearly
    for attack in (APGD(eps, 20), APGD(eps, 20, loss=dlr_loss), APGDT(eps, 20)):
        adv_inputs = craft(attack, net, inputs, labels, seed)
        assert right(net, adv_inputs, labels).all()
        assert float((adv_inputs - optimum).abs().max()) <= 1e-9, attack


# FAB.


@given(
    features=st.integers(1, 40),
    share=st.floats(0.001, 0.98),
    sign=st.sampled_from([-1, 1]),
    zeros=st.floats(0, 0.9),
    seed=st.integers(0, 2**16),
)
def test_the_step_to_the_plane_is_the_shortest_in_the_pixel_range(
    features: int, share: float, sign: int, zeros: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(5, features, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    weights = torch.randn(5, features, generator=generator, dtype=torch.float64)
    weights = weights * (torch.rand(5, features, generator=generator) >= zeros)
    signs = weights.sign() * sign
    room = torch.where(signs > 0, 1 - points, points)
    most = (weights.abs() * room).sum(1)
    steps = move_to_plane(points, weights, sign * share * most)
    assert torch.allclose((weights * steps).sum(1), sign * share * most, rtol=1e-5, atol=0)
    assert bool(((points + steps >= -1e-12) & (points + steps <= 1 + 1e-12)).all())
    assert bool((steps[weights == 0] == 0).all())
    shorter = steps.abs().amax(1, keepdim=True) * (1 - 1e-4)
    # No step with all entries below that length gets there.
    assert bool(((weights.abs() * torch.minimum(room, shorter)).sum(1) < share * most)[most > 0].all())


def test_a_plane_out_of_reach_is_approached_to_the_corner_and_no_weights_move_nothing() -> None:
    points, weights = torch.tensor([[0.2, 0.7, 0.5]]), torch.tensor([[1.0, -2.0, 0.0]])
    assert torch.allclose(move_to_plane(points, weights, torch.tensor([9.0])), torch.tensor([[0.8, -0.7, 0.0]]))
    assert torch.equal(move_to_plane(points, torch.zeros(1, 3), torch.tensor([9.0])), torch.zeros(1, 3))
    assert torch.equal(move_to_plane(points, weights, torch.zeros(1)), torch.zeros(1, 3))


@given(seed=st.integers(0, 2**16))
def test_fab_finds_the_distance_to_a_linear_boundary(seed: int) -> None:
    net, weight = linear(seed, bias=0.0)
    generator = torch.Generator().manual_seed(seed)
    inputs = 0.3 + 0.4 * torch.rand(8, *SHAPE, generator=generator, dtype=torch.float64)
    gap = (inputs.flatten(1) * weight).sum(1)
    labels = (gap > 0).long()
    distance = gap.abs() / weight.abs().sum()
    assert float(distance.max()) < 0.3  # the pixel range is not in the way
    found, reached = nearest_adversarial(net, inputs, labels, 1 - labels, inputs, radius=0.0, steps=20)
    assert not right(net, found, labels).any()
    assert torch.allclose((found - inputs).abs().flatten(1).amax(1), reached)
    assert bool((reached >= distance * (1 - 1e-9)).all())
    assert bool((reached <= 1.01 * distance).all())
    for ratio, fooled in ((0.99, False), (1.06, True)):
        adv_inputs = FABT(ratio * float(distance[0]), 20)(net, inputs[:1], labels[:1])
        assert bool(right(net, adv_inputs, labels[:1])) is not fooled
        assert fooled or torch.equal(adv_inputs, inputs[:1])


def test_fab_restarts_start_elsewhere_and_fool_no_less() -> None:
    net, inputs, labels = robust_enough()
    once = right(net, FABT(0.21, 3)(net, inputs, labels), labels)
    more = right(net, craft(FABT(0.21, 3, restarts=4), net, inputs, labels), labels)
    assert not (more & ~once).any()
    state = torch.get_rng_state()
    FABT(0.21, 3)(net, inputs, labels)
    assert torch.equal(torch.get_rng_state(), state)
    FABT(0.01, 1, restarts=2)(net, inputs, labels)
    assert not torch.equal(torch.get_rng_state(), state)


# Square.


class Recorded(nn.Module):
    """Lets a network answer and keeps what it was asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.asked: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked.append(inputs.detach().clone())
        logits: Tensor = self.net(inputs)
        return logits


def never_gives_way(seed: int = 0) -> None:
    """The label's lead never grows along what is kept, and what is returned has the least lead of all queries."""
    net = random_net(PlainNet, seed).eval()
    inputs, _ = random_batch(1, seed=seed)
    labels = net(inputs).argmax(1)
    recorded = Recorded(net)
    leads = []
    for queries in (1, 5, 25, 80):
        recorded.asked.clear()
        adv_inputs = craft(Square(0.02, queries), recorded, inputs, labels)
        assert len(recorded.asked) == queries + 2
        with torch.no_grad():
            lead = -margin(net(adv_inputs), labels)
            least = min(float(-margin(net(asked), labels)) for asked in recorded.asked[1:])
        assert float(lead) == pytest.approx(least, abs=1e-6)
        leads.append(float(lead))
    assert leads == sorted(leads, reverse=True)
    assert leads[-1] < leads[0]


def test_what_square_keeps_never_gives_way() -> None:
    never_gives_way()


def test_a_square_that_keeps_what_is_worse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(square_file, "margin", lambda logits, labels: -margin(logits, labels))
    with pytest.raises(AssertionError):
        never_gives_way()


def test_each_query_changes_one_window_of_each_sample_to_the_ends_of_the_ball() -> None:
    flat = random_net(lambda: PlainNet(3))
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()  # nothing is ever better than the stripes
    recorded = Recorded(flat)
    inputs = 0.3 + 0.4 * torch.rand(40, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    craft(Square(0.1, 260), recorded, inputs, torch.zeros(40, dtype=torch.int64))
    _, stripes, *queries = recorded.asked
    assert torch.allclose((stripes - inputs).abs(), torch.full_like(inputs, 0.1), atol=1e-6)
    assert bool((stripes - inputs).sign().std(dim=2).eq(0).all())  # a column has one sign
    touched = torch.zeros(9, 7)
    corners = set()
    for number, query in enumerate(queries):
        assert torch.allclose((query - inputs).abs(), torch.full_like(inputs, 0.1), atol=1e-6)
        halvings = sum(number > after for after in HALVINGS)
        side = max(round(math.sqrt(0.8 / 2**halvings * 63)), 1)
        changed = (query != stripes).any(dim=1)
        for sample in changed[:5]:
            down, across = sample.any(1).nonzero().flatten(), sample.any(0).nonzero().flatten()
            if len(down):
                assert int(down[-1] - down[0]) < side
                assert int(across[-1] - across[0]) < side
                corners.add((number, int(down[0]), int(across[0])))
        touched += changed.sum(0)
    assert bool((touched > 0).all())  # the last row and column too
    assert len(corners) > 3 * len(queries)  # samples have windows of their own
    assert (queries[0] != queries[1]).any()


def test_a_schedule_that_is_rescaled_reaches_small_windows_within_the_queries() -> None:
    flat = random_net(lambda: PlainNet(1))
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()  # nothing is ever better than the stripes
    inputs = torch.full((30, 1, 20, 20), 0.5)
    widest: dict[bool, list[float]] = {}
    for rescale in (False, True):
        recorded = Recorded(flat)
        craft(Square(0.1, 100, rescale=rescale), recorded, inputs, torch.zeros(30, dtype=torch.int64))
        _, stripes, *queries = recorded.asked
        widest[rescale] = [
            max(float(sample.any(dim=1).sum()) for sample in (query != stripes).any(dim=1)) for query in queries
        ]
    for rescale, sides in widest.items():
        for number, side in enumerate(sides):
            halvings = sum(number * (100 if rescale else 1) > after for after in HALVINGS)
            assert side == max(round(math.sqrt(0.8 / 2**halvings * 400)), 1)
    assert widest[True][-1] == 1 < widest[False][-1]


def test_a_schedule_of_10000_queries_is_the_same_rescaled() -> None:
    found: list[int] = []

    class Ends(Exception):
        pass

    class Counted(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            found.append(int(inputs.ne(0.5).sum()))
            if len(found) % 100 == 0:
                raise Ends
            return inputs.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0])

    for rescale in (False, True):
        attack = Square(0.1, 10_000, rescale=rescale)
        with pytest.raises(Ends):
            craft(attack, Counted(), torch.full((1, 1, 9, 9), 0.5), torch.zeros(1, dtype=torch.int64))
    assert found[:100] == found[100:]


def test_square_and_not_the_gradient_fools_a_model_that_masks_its_gradient() -> None:
    net, inputs, labels = trained()

    class Masked(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = net((inputs * 16).round() / 16)  # its slope is zero everywhere
            return logits

    masked = Masked()
    ok = right(masked, inputs, labels)
    inputs, labels = inputs[ok], labels[ok]
    survivors = {
        type(attack).__name__: int(right(masked, craft(attack, masked, inputs, labels), labels).sum())
        for attack in (PGD(EPS, 10, EPS / 4), APGD(EPS, 10), FABT(EPS, 10), Square(EPS, 150), AutoAttack(EPS, 2, 150))
    }
    assert min(survivors[name] for name in ("PGD", "APGD", "FABT")) > 0.8 * len(labels)
    assert max(survivors["Square"], survivors["AutoAttack"]) < 0.4 * len(labels)


@pytest.mark.parametrize("how", ["no_grad", "detach", "numpy"])
def test_square_needs_no_gradient_at_all(how: str) -> None:
    net, inputs, labels = trained()

    class Opaque(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            if how == "no_grad":
                with torch.no_grad():
                    hidden: Tensor = net(inputs)
                return hidden
            if how == "detach":
                return net(inputs.detach()).detach()  # type: ignore[no-any-return]
            with torch.no_grad():
                return torch.from_numpy(net(torch.from_numpy(inputs.numpy())).numpy())

    adv_inputs = craft(Square(EPS, 100), Opaque(), inputs, labels)
    assert torch.equal(adv_inputs, craft(Square(EPS, 100), net, inputs, labels))
    assert int(right(net, adv_inputs, labels).sum()) < len(labels) // 2


# Precision.


@pytest.mark.parametrize("attack", parts(EPS), ids=lambda attack: type(attack).__name__)
def test_autocast_changes_nothing(attack: Attack) -> None:
    net, inputs, labels = trained()
    expected = craft(attack, net, inputs, labels)
    seen = set()
    net.get_submodule("conv").register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(craft(attack, net, inputs, labels), expected)
    assert seen == {torch.float32}


def test_half_precision_weights_are_given_what_is_returned() -> None:
    inputs, _ = random_batch(16, dtype=torch.float64)
    inputs = inputs.bfloat16()
    net = random_net(PlainNet).bfloat16()
    labels = net(inputs).argmax(1)
    recorded = Recorded(net)
    for attack in parts(0.3):
        recorded.asked.clear()
        adv_inputs = craft(attack, recorded, inputs, labels)
        assert adv_inputs.dtype == torch.bfloat16
        assert {asked.dtype for asked in recorded.asked} == {torch.bfloat16}
        shown = {bytes(row.flatten().float().numpy()) for asked in recorded.asked for row in asked}
        assert all(bytes(row.flatten().float().numpy()) in shown for row in adv_inputs)


# Chains.


@dataclass(frozen=True)
class Seen:
    """Another attack, and how many samples it was given."""

    attack: Attack
    counts: list[int] = field(default_factory=list)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        self.counts.append(len(inputs))
        return self.attack(model, inputs, labels)


def test_the_worst_case_survives_where_every_part_does() -> None:
    net, inputs, labels = robust_enough()
    several: list[Attack] = [FGSM(0.19), IFGSM(0.2, 3), PGD(0.2, 8, 0.1, random_start=False), FABT(0.19, 3)]
    alone = torch.stack([right(net, attack(net, inputs, labels), labels) for attack in several])
    watched = tuple(Seen(attack) for attack in several)
    worst = WorstCase(watched)(net, inputs, labels)
    assert torch.equal(right(net, worst, labels), alone.all(0))
    assert [seen.counts for seen in watched] == [[int(alone[:i].all(0).sum())] for i in range(len(several))]
    assert 0 < int(alone.all(0).sum()) < int(alone[0].sum())
    for row, (verdicts, image) in enumerate(zip(alone.T, worst, strict=True)):
        first = int((~verdicts).float().argmax()) if not verdicts.all() else 0
        made = several[first](net, inputs[row : row + 1], labels[row : row + 1])[0]
        assert torch.allclose(image, made, atol=1e-6)


def test_autoattack_is_the_worst_case_of_its_parts() -> None:
    net, inputs, labels = robust_enough()
    attack = AutoAttack(0.21, 4, queries=10, targets=3)
    assert attack.attacks == (APGD(0.21, 4), APGDT(0.21, 4, 3), FABT(0.21, 4, 3), Square(0.21, 10))
    assert torch.equal(craft(attack, net, inputs, labels), craft(WorstCase(attack.attacks), net, inputs, labels))
    standard = AutoAttack(8 / 255).attacks
    assert standard == (APGD(8 / 255, 100), APGDT(8 / 255, 100, 9), FABT(8 / 255, 100, 9), Square(8 / 255, 5000))


def test_the_chains_and_only_they_are_compound() -> None:
    assert isinstance(AutoAttack(0.1), CompoundAttack)
    assert isinstance(WorstCase((FGSM(0.1),)), CompoundAttack)
    assert not any(isinstance(part, CompoundAttack) for part in AutoAttack(0.1).attacks)
    listed: Any = [FGSM(0.1)]
    assert WorstCase(listed) == WorstCase((FGSM(0.1),))


@pytest.mark.parametrize("fault", ["leaves the ball", "leaves the pixel range", "mixes up rows"])
def test_a_planted_fault_in_a_part_is_found(fault: str) -> None:
    net, inputs, labels = trained()

    def faulty(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        if fault == "leaves the ball":
            return (inputs + 2 * EPS * (FGSM(EPS)(model, inputs, labels) - inputs).sign()).clamp(0, 1)
        if fault == "leaves the pixel range":
            return inputs + EPS * (FGSM(EPS)(model, inputs, labels) - inputs).sign() * 1.0 + (inputs > 0.8) * EPS
        return FGSM(EPS)(model, inputs, labels).roll(1, 0)

    with pytest.raises(AssertionError):
        assert_valid(WorstCase((faulty,))(net, inputs, labels), inputs, EPS)
    assert_valid(WorstCase((FGSM(EPS),))(net, inputs, labels), inputs, EPS)


# Another library.


PEERS: list[tuple[str, float, Callable[[float], Attack], dict[str, Any], int]] = [
    ("APGD", 0.2, lambda eps: APGD(eps, 10), {"steps": 10}, 1),
    ("APGD", 0.19, lambda eps: APGD(eps, 10, loss=dlr_loss), {"steps": 10, "loss": "dlr"}, 1),
    ("APGDT", 0.19, lambda eps: APGDT(eps, 10), {"steps": 10, "n_classes": CLASSES}, 1),
    ("FAB", 0.19, lambda eps: FABT(eps, 10), {"steps": 10, "n_classes": CLASSES, "multi_targeted": True}, 1),
]


@pytest.mark.parametrize(("name", "eps", "build", "settings", "apart"), PEERS)
def test_torchattacks_leaves_as_many(
    name: str, eps: float, build: Callable[[float], Attack], settings: dict[str, Any], apart: int
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    net, inputs, labels = robust_enough()
    ours = right(net, craft(build(eps), net, inputs, labels), labels)
    with torch.random.fork_rng(devices=[]):
        theirs = right(net, getattr(torchattacks, name)(net, eps=eps, **settings)(inputs, labels), labels)
    assert abs(int(ours.sum()) - int(theirs.sum())) <= apart  # of 60
    assert 15 < int(ours.sum()) < 50


@pytest.mark.parametrize("rescale", [False, True])
def test_torchattacks_square_leaves_as_many_once_its_windows_reach_the_border(rescale: bool) -> None:
    """Its windows never reach the last row and column, which makes it weak on images as small as these."""
    torchattacks = pytest.importorskip("torchattacks")
    net, inputs, labels = robust_enough()
    eps = 0.25 if rescale else 0.33  # as many windows of a better size are stronger
    ours = int(right(net, craft(Square(eps, 100, rescale=rescale), net, inputs, labels), labels).sum())
    theirs = torchattacks.Square(net, eps=eps, n_queries=100, resc_schedule=rescale)
    counts = []
    for extra in (0, 1):
        drawn = type(theirs).random_int
        theirs.random_int = lambda low, high, drawn=drawn, extra=extra: drawn(theirs, low, high + extra)
        with torch.random.fork_rng(devices=[]):
            counts.append(int(right(net, theirs(inputs, labels), labels).sum()))
    assert ours < counts[0] - 5
    assert abs(ours - counts[1]) <= 6  # of 60, a random search
    assert 15 < ours < 50


def test_torchattacks_autoattack_leaves_the_same() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    net, inputs, labels = robust_enough()
    inputs, labels, eps = inputs[:30], labels[:30], 0.19
    theirs = torchattacks.AutoAttack(net, eps=eps, n_classes=CLASSES, seed=0)
    for part in theirs._autoattack._attacks.values():  # its own settings would take a minute
        for name, count in (("steps", 10), ("n_iter", 10), ("n_queries", 20)):
            if hasattr(part, name):
                setattr(part, name, count)
    ours = right(net, craft(AutoAttack(eps, 10, queries=20), net, inputs, labels), labels)
    with torch.random.fork_rng(devices=[]):
        left = right(net, theirs(inputs, labels), labels)
    assert int((ours != left).sum()) <= 1
    assert 5 < int(ours.sum()) < 25


# Refusals.

BAD_FIELDS: list[tuple[Callable[[], object], str]] = [
    (lambda: APGD(8), "eps is 8; pixels are in [0, 1]"),
    (lambda: APGD(0.1, 0), "steps is 0"),
    (lambda: APGD(0.1, restarts=0), "restarts is 0"),
    (lambda: APGDT(-1.0), "eps is -1.0"),
    (lambda: APGDT(0.1, 0), "steps is 0"),
    (lambda: APGDT(0.1, targets=0), "targets is 0"),
    (lambda: APGDT(0.1, restarts=0), "restarts is 0"),
    (lambda: FABT(8), "eps is 8"),
    (lambda: FABT(0.1, 0), "steps is 0"),
    (lambda: FABT(0.1, targets=0), "targets is 0"),
    (lambda: FABT(0.1, restarts=0), "restarts is 0"),
    (lambda: Square(8), "eps is 8"),
    (lambda: Square(0.1, 0), "queries is 0; it must be a whole number of at least 1"),
    (lambda: Square(0.1, restarts=0), "restarts is 0"),
    (lambda: Square(0.1, p_init=0.0), "p_init is 0.0; it is a share of the image"),
    (lambda: Square(0.1, p_init=1.5), "p_init is 1.5"),
    (lambda: AutoAttack(8), "eps is 8"),
    (lambda: AutoAttack(0.1, steps=0), "steps is 0"),
    (lambda: AutoAttack(0.1, queries=0), "queries is 0"),
    (lambda: AutoAttack(0.1, targets=0), "targets is 0"),
    (lambda: WorstCase(()), "attacks is empty; give at least one attack"),
]


@pytest.mark.parametrize(("build", "message"), BAD_FIELDS, ids=[message for _, message in BAD_FIELDS])
def test_a_bad_field_is_refused_at_once(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_what_is_no_attack_is_refused() -> None:
    for wrong in (FGSM, "fgsm"):
        settings: Any = (wrong,)
        with pytest.raises(TypeError, match="give attacks with their settings"):
            WorstCase(settings)


@pytest.mark.parametrize("attack", parts(EPS), ids=lambda attack: type(attack).__name__)
def test_a_model_or_a_label_that_does_not_fit_is_refused(attack: Attack) -> None:
    inputs, labels = random_batch()
    with pytest.raises(ValueError, match=re.escape("logits have shape [8, 1]; give [batch, classes] with two classes")):
        attack(random_net(lambda: PlainNet(classes=1)), inputs, labels)
    with pytest.raises(ValueError, match=re.escape("a label is 3, but the model has the classes 0 to 2")):
        attack(random_net(), inputs, labels + 1)


@pytest.mark.parametrize("loss", ["dlr", "targeted"])
def test_classes_that_are_masked_by_minus_infinity_are_as_if_they_were_far_below(loss: str) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0])
    pairs = torch.stack([labels, (labels + 1) % 3], dim=1)
    found = []
    for low in (-torch.inf, -1e30):
        logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
        masked = logits.masked_fill(torch.arange(10) >= (2 if loss == "dlr" else 3), low)
        values = dlr_loss(masked, labels.clamp(max=1)) if loss == "dlr" else targeted_dlr_loss(masked, pairs)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert bool(values.isfinite().all())
        found.append(gradient.sign())
    assert torch.equal(*found)
    assert bool(found[0].any(dim=1).all())
