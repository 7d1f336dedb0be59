"""The audit on models made by hand, whose truth is known: for each check one that passes and one that fails."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from surefoot.attacks import APGD, FGSM, IFGSM, PGD, Square
from surefoot.audit import Audit, Check, audit, loss_surface
from surefoot.audit.audit import cheap, pictures
from surefoot.audit.bench import Bench, OutOfTime, Trial
from surefoot.audit.checks import MOST_TELLING_FIRST, QUESTIONS
from surefoot.audit.controls import (
    BadGradient,
    Detached,
    Noisy,
    Resized,
    Rounded,
    Scaled,
    Staircase,
    Wrinkled,
    distilled,
    masks,
)
from surefoot.audit.effort import Effort
from surefoot.audit.error_rate import AUDIT_ERROR, CHECK_ERROR, CHECKS
from surefoot.audit.finding import by_share, judge, mean
from surefoot.audit.label_search import LabelSearch
from surefoot.audit.landscape import gradients, largest_error, local_linearity_errors
from surefoot.audit.substitute import train_substitute
from surefoot.audit.trials import Watched, crossing_step, fgsm, in_double, pgd, plain_name
from surefoot.audit.verdict import Looks, decide
from surefoot.cli import main
from surefoot.cli.calibration import Confusion, Facts, look_at
from surefoot.cli.models import AtOneRadius, Opened
from surefoot.core.gradients import is_crafting
from surefoot.core.types import Attack
from surefoot.data import load
from surefoot.evaluation.probes import logit_distances, sample_losses
from surefoot.evaluation.statistics import binomial_tail, sign_test
from surefoot.models.wrappers import Averaged

QUICK = Effort(steps=20, more_steps=30, restarts=2, queries=60, substitute_steps=60)
EPS = 0.2


def patterns() -> Tensor:
    """The pixels 0.4 and 0.6 of three classes, orthogonal around 0.5."""
    rows = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]).repeat_interleave(4, dim=1)
    return 0.5 + 0.1 * rows


class Matching(nn.Module):
    """Logits by the inner product with each class's pattern: linear, its best perturbation is FGSM's."""

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * (patterns() - 0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.flatten(1) - 0.5) @ self.weight.T


class Constant(nn.Module):
    """The first of two classes, wherever it is asked."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 0 * inputs.flatten(1)[:, :2] + torch.tensor([1.0, 0.0])


def images(count: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    inputs = patterns()[labels] + 0.02 * torch.randn(count, 16, generator=generator)
    return (inputs * 255).round().clamp(0, 255).view(count, 1, 4, 4) / 255, labels


def bench(model: nn.Module, eps: float = EPS, **more: Any) -> Bench:
    inputs, labels = images()
    once = model.model if isinstance(model, Averaged) else model
    return Bench(model, once, inputs, labels, eps, classes=3, **{"effort": QUICK, **more})


class OnGrid(torch.autograd.Function):
    """A gradient that is right on 8-bit pixels alone and reversed elsewhere."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (inputs,) = ctx.saved_tensors
        right = ((inputs * 255).round() / 255 - inputs).abs().flatten(1).amax(dim=1) < 1e-6
        return torch.where(right.view(-1, 1, 1, 1), gradients[0], -gradients[0])


class RightOnGrid(Matching):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(OnGrid.apply(inputs))  # type: ignore[no-untyped-call]


class Folded(Matching):
    """Pixels through a sine of period 0.6: pushed far enough, they come back."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(0.5 + 0.1 * torch.sin(2 * math.pi * (inputs - 0.5) / 0.6))


class Lucky(Matching):
    """A gradient only where the first pixel, which it never moves, is above 0.64: from four starts of ten."""

    def forward(self, inputs: Tensor) -> Tensor:
        first = inputs[:, 0, 0, 0].detach()
        shown = (first > 0.64).float().view(-1, 1, 1, 1)
        still = torch.ones_like(inputs)
        still[:, 0, 0, 0] = 0
        follow = shown * still
        return super().forward(follow * inputs + (1 - follow) * inputs.detach())


class Shaken(Matching):
    """Logits that a large fast sine drowns."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + 2 * torch.sin(1234 * inputs).flatten(1)[:, :3]


FAILING: dict[str, Callable[[], Bench]] = {
    "iterative-beats-single-step": lambda: bench(RightOnGrid()),
    "white-box-beats-black-box": lambda: bench(BadGradient(Matching(), "zero"), substitutes={"a twin": Matching()}),
    "large-eps-reaches-zero": lambda: bench(BadGradient(Matching(), "nan")),
    "accuracy-never-rises": lambda: bench(Folded(), eps=0.34),
    "loss-rises": lambda: bench(Folded(), eps=0.5),
    "logits-lie-close": lambda: bench(Shaken()),
    "steps-saturate": lambda: bench(Lucky(), effort=dataclasses.replace(QUICK, restarts=12)),
    "gradients-exist": lambda: bench(BadGradient(Matching(), "zero")),
    "gradient-beats-search": lambda: bench(BadGradient(Matching(), "zero")),
    "answers-repeat": lambda: bench(Averaged(Noisy(Matching(), 0.1), 2), flips=0.1),
    "nothing-saturates": lambda: bench(Scaled(Matching(), 1e4)),
    "no-sharp-curvature": lambda: bench(Wrinkled(Matching(), 1000.0, 0.01)),
}


@pytest.mark.parametrize("key", QUESTIONS)
def test_a_sound_model_passes(key: str) -> None:
    check = QUESTIONS[key](bench(Matching(), substitutes={"a twin": Matching()}))
    assert check.outcome == "passed", check.measured
    assert check.strength == 0
    assert check.error_rate <= CHECK_ERROR
    assert check.measured.endswith(".")
    assert check.threshold.endswith("%.")


@pytest.mark.parametrize("key", FAILING)
def test_a_masked_model_fails(key: str) -> None:
    check = QUESTIONS[key](FAILING[key]())
    assert check.outcome == "failed", check.measured
    assert 0 < check.strength <= 1


def test_every_check_has_a_case_that_fails_it_and_a_place_in_the_order() -> None:
    assert set(FAILING) == set(QUESTIONS) == set(MOST_TELLING_FIRST)
    assert len(QUESTIONS) == CHECKS
    assert math.isclose(CHECKS * CHECK_ERROR, AUDIT_ERROR)
    assert AUDIT_ERROR == 0.01


@pytest.mark.parametrize(("kind", "found"), [("zero", "zero"), ("nan", "non_finite")])
def test_gradients_that_are_zero_or_no_number_are_counted(kind: str, found: str) -> None:
    check = QUESTIONS["gradients-exist"](bench(BadGradient(Matching(), kind)))
    counts = {key: check.values[key] for key in ("zero", "non_finite", "underflow")}
    assert counts == {**dict.fromkeys(counts, 0), found: 96}
    assert check.outcome == "failed"


class Hooked(Matching):
    """A gradient that `change(gradient, inputs)` makes of the right one."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, inputs: Tensor) -> Tensor:
        seen = inputs.clone()
        if seen.requires_grad:
            seen.register_hook(lambda gradient: self.change(gradient, inputs))  # type: ignore[no-untyped-call]
        return super().forward(seen)


def one_is_nan(gradient: Tensor, inputs: Tensor) -> Tensor:
    return torch.where(torch.arange(4) == 0, torch.nan, gradient)


def zero_off_grid(gradient: Tensor, inputs: Tensor) -> Tensor:
    on = ((inputs * 255).round() / 255 - inputs).abs().amax(dim=(1, 2, 3), keepdim=True) < 1e-6
    return on * gradient


@pytest.mark.parametrize(("change", "found"), [(one_is_nan, "non_finite"), (zero_off_grid, "zero")])
def test_a_gradient_with_one_bad_pixel_or_at_one_bad_point_is_of_no_use(
    change: Callable[[Tensor, Tensor], Tensor], found: str
) -> None:
    check = QUESTIONS["gradients-exist"](bench(Hooked(change)))
    assert check.values[found] == 96
    assert "at the image or at a random point of its ball" in check.measured  # right at the image, maybe


def test_gradients_are_too_small_below_1e_30_and_compared_down_to_there() -> None:
    tiny, small = (QUESTIONS["gradients-exist"](bench(Scaled(Matching(), scale))) for scale in (1e-32, 1e-25))
    assert (tiny.outcome, tiny.values["underflow"]) == ("failed", 96)
    assert (small.outcome, small.values["underflow"]) == ("passed", 0)
    assert small.values["agreement"] == pytest.approx(1, abs=0.1)


def test_gradients_that_change_from_point_to_point_fail() -> None:
    check = QUESTIONS["gradients-exist"](bench(Wrinkled(Matching(), 860.0, 0.01)))
    assert check.outcome == "failed"
    assert check.values["agreement"] < 0.2


def test_a_model_that_does_not_move_has_no_linearity_error() -> None:
    inputs, labels = images()
    model = Constant()
    check = QUESTIONS["no-sharp-curvature"](Bench(model, model, inputs, labels * 0, EPS, classes=2, effort=QUICK))
    assert (check.outcome, check.values["local_linearity_error"]) == ("failed", None)
    assert check.measured.endswith("or neither moves.")
    moving = QUESTIONS["no-sharp-curvature"](bench(Matching()))
    assert moving.values["local_linearity_error"] < 0.1
    assert "the local linearity error is 0.0" in moving.measured


def test_what_is_not_clear_about_gradients_is_not_passed() -> None:
    inputs, labels = images(6)
    model = RightOnGrid()
    check = QUESTIONS["gradients-exist"](Bench(model, model, inputs, labels, EPS, classes=3, effort=QUICK))
    assert check.values["disagree"] == 6
    assert check.outcome == "unclear"  # six are too few to tell


def test_gradients_that_have_nothing_to_do_with_each_other_fail() -> None:
    check = QUESTIONS["gradients-exist"](bench(BadGradient(Matching(), "random")))
    assert check.outcome == "failed"
    assert check.values["disagree"] > 48


def test_few_images_cannot_fail_a_check() -> None:
    assert judge(3, 3, 0.5)[0] == "unclear"
    assert judge(20, 20, 0.5)[0] == "failed"
    assert judge(0, 0, 0.5)[0] == "passed"
    assert judge(9, 20, 0.5)[0] == "passed"
    assert judge(10, 20, 0.5)[0] == "passed"


def test_the_strength_is_how_far_a_share_is_between_its_limit_and_all() -> None:
    assert judge(40, 40, 0.5) == ("failed", 1.0)
    assert judge(35, 40, 0.5) == ("failed", 0.75)
    assert judge(9, 20, 0.5)[1] == judge(3, 3, 0.5)[1] == 0


def test_chance_fails_a_check_as_seldom_as_it_says() -> None:
    # every count of 40 images at the very limit, weighed by how often it comes
    often = sum(
        binomial_tail(bad, 40, 0.5) - (binomial_tail(bad + 1, 40, 0.5) if bad < 40 else 0)
        for bad in range(41)
        if judge(bad, 40, 0.5)[0] == "failed"
    )
    assert 0 < often <= CHECK_ERROR


def test_tails_are_those_of_the_binomial_distribution() -> None:
    assert math.isclose(binomial_tail(2, 3, 0.5), 0.5)
    assert math.isclose(binomial_tail(1, 4, 0.25), 1 - 0.75**4)
    assert binomial_tail(0, 5, 0.1) == binomial_tail(0, 5, 0.0) == binomial_tail(5, 5, 1.0) == 1
    assert binomial_tail(1, 5, 0.0) == 0
    assert math.isclose(sign_test(3, 1), 5 / 16)
    with pytest.raises(ValueError, match="not a count"):
        binomial_tail(3, 2, 0.5)


def test_a_share_is_told_with_its_numbers() -> None:
    bad, among = torch.tensor([True, True, False, True]), torch.tensor([True, True, True, False])
    finding = by_share(bad, among, 0.9, "{bad} of {total} ({share})", "why")
    assert finding.measured == "2 of 3 (67 %)"
    assert finding.values["share"] == 2 / 3


def test_what_few_images_say_does_not_matter() -> None:
    bad = torch.arange(100) < 3
    assert by_share(bad, torch.arange(100) < 4, 0.5, "{bad} of {total}", "why").outcome == "passed"
    assert by_share(bad, torch.arange(100) < 5, 0.5, "{bad} of {total}", "why").outcome == "unclear"
    assert by_share(bad, torch.arange(100) < 4, 0.5, "On {bad} of {total}.", "why").measured == (
        "On 3 of 4; too few (under 5 % of the images) to matter."
    )
    assert by_share(bad, torch.arange(100) < 5, 0.5, "On {bad} of {total}.", "why").measured == "On 3 of 5."
    assert by_share(bad, torch.arange(100) < 4, 0.9, "On {bad} of {total}.", "why").measured == "On 3 of 4."
    assert "No image is left" in by_share(bad, torch.zeros(100).bool(), 0.5, "{bad} of {total}", "why").measured


def trial(name: str, robust: Tensor) -> Trial:
    tried = torch.ones(96).bool()
    return Trial(name, "gradient", robust, tried, images()[0], EPS, 96)


@pytest.mark.parametrize(
    ("only_fgsm", "only_pgd", "outcome"), [(0, 0, "passed"), (3, 3, "passed"), (3, 2, "unclear"), (20, 2, "failed")]
)
def test_a_single_step_that_fools_a_few_more_may_be_chance(only_fgsm: int, only_pgd: int, outcome: str) -> None:
    place = torch.arange(96)
    single, many = trial("FGSM", place >= only_fgsm), trial("PGD-20", place < 96 - only_pgd)
    check = QUESTIONS["iterative-beats-single-step"](bench(Matching(), trials={"FGSM": single, "PGD-20": many}))
    assert check.outcome == outcome
    assert check.values == {"only_single_step": only_fgsm, "only_iterative": only_pgd}
    assert check.strength == (18 / 96 if outcome == "failed" else 0)


def test_the_plain_attack_takes_its_steps_once_from_a_random_start_and_calls_the_model_once() -> None:
    steps = [crossing_step(eps, steps) for eps, steps in ((0.2, 20), (1.0, 2), (0.0, 20))]
    assert steps == [0.04, 1.0, 1e-6]  # the ball is crossed four times
    table = bench(Averaged(Matching(), 3))
    assert pgd(table).backwards == 20 * 96
    assert list(table.course) == [1, 2, 5, 10, 20]
    assert table.course[20] == int(pgd(table).robust.sum())
    inputs, labels = images()
    still = Watched(0.1, 5)(BadGradient(Matching(), "zero"), inputs, labels)
    moved = (still - inputs).abs().flatten(1).amax(dim=1)
    assert bool(((moved > 0.05) & (moved <= 0.1 + 1e-6)).all())


@pytest.mark.parametrize("attack", [APGD(EPS, 5), PGD(EPS, 5, EPS / 2, stop_when_fooled=True)])
def test_what_fools_one_answer_is_attacked_on_where_another_answer_judges(attack: Attack) -> None:
    alone = bench(Matching())
    assert alone.attack("its own", attack, "gradient").backwards < 5 * 96
    assert alone.attack("rescaled", attack, "gradient", crafter=Matching()).backwards < 5 * 96
    assert alone.attack("another's", attack, "transfer", crafter=Matching()).backwards == 5 * 96
    averaged = bench(Averaged(Matching(), 3))
    assert averaged.attack("mean", attack, "gradient").backwards == 5 * 96 * 3
    assert averaged.attack("one answer", attack, "gradient", crafter=averaged.once).backwards == 5 * 96


def test_every_pixel_is_free_whatever_the_radius() -> None:
    check = QUESTIONS["large-eps-reaches-zero"](bench(Matching(), eps=0.01))
    assert (check.outcome, check.values["bad"], check.values["total"]) == ("passed", 0, 96)


def test_distances_of_logits_are_those_of_the_three_attacks() -> None:
    table = bench(Matching())
    values = QUESTIONS["logits-lie-close"](table).values
    single, many = (attack(table.model, table.inputs, table.labels) for attack in (FGSM(EPS), IFGSM(EPS, 10)))
    apart = logit_distances(table.model, single, many)
    assert values["fgsm_i_fgsm"] == pytest.approx(float(apart.mean()), rel=1e-4)
    assert values["fgsm_i_fgsm_by_radius"][-1] == pytest.approx(float(apart[:64].mean()), rel=1e-4)
    assert 0.1 < values["fgsm_r_fgsm"] < values["moved"]
    assert values["fgsm_r_fgsm_by_radius"] == sorted(values["fgsm_r_fgsm_by_radius"])
    assert values["fgsm_r_fgsm_by_radius"][1] > 0.01


def test_each_transfer_is_tried_on_what_those_before_it_left() -> None:
    table = bench(BadGradient(Matching(), "zero"), eps=0.09, substitutes={"a": Matching(), "b": Matching(-1.0)})
    QUESTIONS["white-box-beats-black-box"](table)
    crafted = [each for each in table.trials.values() if each.kind == "transfer"]
    assert len(crafted) == 4
    for before, after in itertools.pairwise(crafted):
        assert torch.equal(after.tried, before.robust)
    assert 0 < int(crafted[0].robust.sum()) < 96


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("nothing-saturates", ["PGD-20", "PGD-20, margin", "APGD-DLR-20", "PGD-20, rescaled", "PGD-20, float64"]),
        ("gradient-beats-search", ["Square-60", "label search-60"]),
    ],
)
def test_each_stronger_attack_is_tried_on_what_those_before_it_left(key: str, names: list[str]) -> None:
    table = bench(Scaled(Matching(), 1e4), eps=0.09)  # it saturates: each finds some more
    QUESTIONS[key](table)
    for before, after in itertools.pairwise(table.trials[name] for name in names):
        assert torch.equal(after.tried, before.robust)
    assert (table.trials[names[0]].robust & ~table.trials[names[-1]].robust).any()


def test_an_attack_that_ends_with_the_budget_is_whole() -> None:
    table = bench(Matching(), batch_size=48)

    def last(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        table.deadline = 0.0
        return inputs

    half = torch.arange(96) < 48
    assert not table.attack("one batch", last, "gradient", rows=half).cut
    table.deadline = math.inf
    with pytest.raises(OutOfTime):
        table.attack("two batches", last, "gradient")
    assert table.trials["two batches"].cut
    table.deadline = math.inf
    with pytest.raises(OutOfTime):  # what was cut is not taken for whole
        table.attack("two batches", last, "gradient")


def made_right(bench: Bench, direction: Tensor, radii: Any) -> list[Tensor]:
    """Twenty images that are wrong at first: eleven of them are right from the second radius on."""
    place = torch.arange(96)
    return [place >= (20 if number == 0 else 9) for number in range(len(radii))]


def all_back(bench: Bench, direction: Tensor, radii: Any) -> list[Tensor]:
    return [torch.arange(96) >= (20 if number == 0 else 0) for number in range(len(radii))]


@pytest.mark.parametrize(
    ("course", "wrong", "outcome"), [(made_right, 0, "passed"), (all_back, 0, "failed"), (all_back, 20, "passed")]
)
def test_a_rise_counts_where_it_is_clear_among_all_pairs_of_images_that_were_right(
    course: Callable[..., list[Tensor]], wrong: int, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, labels = images()
    labels = (labels + (torch.arange(96) < wrong)) % 3
    table = Bench(Matching(), Matching(), inputs, labels, 0.01, classes=3, effort=QUICK)
    monkeypatch.setattr("surefoot.audit.checks.right_along", course)
    assert QUESTIONS["accuracy-never-rises"](table).outcome == outcome


def rising(course: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> Check:
    """What the check says of 1,000 images that are right along the radii as `course` says, and then as its last."""
    inputs, labels = images(1000)
    table = Bench(Matching(), Matching(), inputs, labels, 0.01, classes=3, effort=QUICK)
    monkeypatch.setattr("surefoot.audit.checks.right_along", lambda *_: [*course, *8 * course[-1:]])
    return QUESTIONS["accuracy-never-rises"](table)


def test_a_clear_rise_is_not_hidden_by_a_clearer_one_that_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second radius to the third 48 of 1,000 come back; from the fourth on 160 come back and 90 go."""
    place = torch.arange(1000)
    course = [place >= 0, place >= 48, place >= 0, (place < 48) | (place >= 208), (place < 208) | (place >= 298)]
    check = rising(course, monkeypatch)
    assert check.outcome == "failed"
    assert "it rises most from 84 % at 0.00375 to 91 % at 0.005" in check.measured


def test_a_clear_rise_is_not_hidden_by_a_larger_one_that_is_not_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the third radius 70 of 1,000 are back; at the last 300 come back and 215 go, as chance may have it."""
    place = torch.arange(1000)
    course = [place >= 0, place >= 70, place >= 0, (place < 300) | (place >= 600), (place >= 215)]
    check = rising(course, monkeypatch)
    assert check.outcome == "failed"
    assert "it rises most from 93 % at 0.00125 to 100 % at 0.0025" in check.measured


def test_two_tests_of_one_check_share_its_error_rate() -> None:
    count = next(n for n in range(96) if binomial_tail(n, 96, 0.1) <= CHECK_ERROR)
    total = next(n for n in range(96, 9, -1) if CHECK_ERROR / 2 < binomial_tail(count, n, 0.1) <= CHECK_ERROR)
    assert (judge(count, total, 0.1)[0], judge(count, total, 0.1, CHECK_ERROR / 2)[0]) == ("failed", "unclear")


def test_accuracies_along_radii_are_told_from_small_to_large() -> None:
    values = QUESTIONS["accuracy-never-rises"](bench(Matching())).values
    assert values["pgd_radii"] == [0.0, EPS / 4, EPS / 2, EPS]
    assert values["pgd_accuracy"] == sorted(values["pgd_accuracy"], reverse=True)
    assert values["radii"][8] == EPS
    assert len(values["radii"]) == 13
    assert values["noise_accuracy"][8] > 0.5 > values["accuracy"][8]


@pytest.mark.parametrize(
    ("along", "fgsm", "pgd", "outcome"),
    [
        ([0.0, 5.0, 10.0], 1.0, 1.0, "passed"),
        ([0.0, 10.0, 8.0], 1.0, 1.0, "passed"),  # less than a quarter of the highest
        ([0.0, 10.0, 7.0], 1.0, 1.0, "failed"),
        ([0.0, 0.05, 0.0], 1.0, 1.0, "passed"),  # less than 0.1 nats
        ([0.0, 0.2, 0.05], 1.0, 1.0, "failed"),
        ([0.0, 1.0, 1.0], 1.0, 3.9, "passed"),  # less than four times
        ([0.0, 1.0, 1.0], 0.1, 0.6, "passed"),  # less than half of chance's loss apart
        ([0.0, 1.0, 1.0], 0.1, 0.8, "failed"),
    ],
)
def test_the_loss_must_not_fall_nor_fgsms_be_far_below_pgds(
    along: list[float], fgsm: float, pgd: float, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([fgsm, pgd])
    monkeypatch.setattr("surefoot.audit.checks.losses_along", lambda *_: torch.tensor(along)[:, None].expand(3, 96))
    monkeypatch.setattr("surefoot.audit.checks.sample_losses", lambda *_: torch.full([96], next(losses)))
    assert QUESTIONS["loss-rises"](bench(Matching())).outcome == outcome


def test_a_mean_is_of_what_is_finite() -> None:
    assert mean(torch.tensor([1.0, torch.nan, 3.0, torch.inf])) == 2
    assert mean(torch.zeros(0)) == 0


def test_answers_that_change_without_changing_a_class_fail_too() -> None:
    check = QUESTIONS["answers-repeat"](bench(Averaged(Noisy(Matching(), 0.001), 2), flips=0.0))
    assert (check.outcome, check.strength) == ("failed", 0.2)
    assert check.samples == list(range(96))


def test_a_model_that_is_flat_around_an_image_is_not_smooth() -> None:
    assert QUESTIONS["no-sharp-curvature"](bench(Rounded(Matching(), 4))).outcome == "failed"


class Single(Matching):
    """It answers in float32 whatever it is."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).float()


class Stubborn(Matching):
    """It takes float32 alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.float())


def test_a_model_is_attacked_in_float64_where_that_is_what_it_answers_in() -> None:
    wide = in_double(bench(Matching()))
    assert isinstance(wide, Matching)
    assert wide.weight.dtype == torch.float64
    assert in_double(bench(Single())) is in_double(bench(Stubborn())) is None


class InRange(Matching):
    """It insists on images in [0, 1]."""

    def forward(self, inputs: Tensor) -> Tensor:
        low, high = torch.aminmax(inputs.detach())
        assert low >= 0
        assert high <= 1
        return super().forward(inputs)


def test_no_model_is_shown_pixels_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effort, "within", lambda *_: (QUICK, 24))
    inputs, labels = images(24)
    found = audit(InRange(), inputs, labels, 0.7, others=inputs)
    assert all(each.values for each in found.checks)
    assert len(found.surfaces) == 4


@pytest.mark.parametrize("key", ["steps-saturate", "gradients-exist"])
def test_a_budget_that_is_over_leaves_checks_unanswered(key: str) -> None:
    check = QUESTIONS[key](bench(Matching(), deadline=0.0))
    assert check.outcome == "unclear"
    assert "budget" in check.measured


def test_a_question_about_gradients_is_not_put_to_a_model_without_any() -> None:
    empty = bench(Detached(Matching()))
    assert QUESTIONS["loss-rises"](empty).outcome == "unclear"
    assert QUESTIONS["gradients-exist"](empty).outcome == "failed"


# --- what the checks are made of


def test_trials_keep_each_sample_and_the_worst_case_is_of_all() -> None:
    table = bench(Matching(), eps=0.05)
    half = torch.arange(96) < 48
    first = table.attack("one", FGSM(0.05), "single step", rows=half)
    assert torch.equal(first.tried, half & table.right)
    assert not first.robust[48:].any()
    assert table.attack("one", FGSM(0.05), "single step") is first

    def brighter(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return inputs + 0.9  # leaves the ball: it is put back

    second = table.attack("two", brighter, "noise")
    assert (second.adv_inputs - table.inputs).abs().max() <= 0.05 + 1e-6
    assert torch.equal(table.standing(), table.right & ~first.fooled & ~second.fooled)


def test_each_batch_and_each_seed_has_its_own_draws() -> None:
    def drawn(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return torch.rand_like(inputs)

    state = torch.get_rng_state()
    tables = [bench(Matching(), eps=1.0, batch_size=48, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (table.attack("drawn", drawn, "noise") for table in tables)
    bench(Noisy(Matching(), 0.1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.adv_inputs, again.adv_inputs)
    here, there = first.adv_inputs[:48], first.adv_inputs[48:]
    assert (here - there).abs().mean() > 0.1
    assert (first.adv_inputs - other.adv_inputs).abs().mean() > 0.1


def test_an_attack_of_a_larger_radius_says_nothing_of_the_worst_case() -> None:
    def white(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return torch.full_like(inputs, 5.0)

    table = bench(Matching(), eps=0.01)
    trial = table.attack("white", white, "gradient", rows=torch.arange(96) < 48, eps=1.0)
    assert (trial.adv_inputs[:48] == 1).all()
    assert (trial.total, table.attack("small", white, "noise").total) == (48, 96)
    assert trial.fooled.any()
    assert table.standing("gradient").all()
    table.eps = 1.0
    assert torch.equal(table.standing("gradient"), ~trial.fooled)
    assert table.standing("transfer").all()


def test_an_error_of_an_attack_is_its_own() -> None:
    def broken(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        bench(Matching()).attack("broken", broken, "gradient")


def test_attacks_that_give_no_number_change_nothing() -> None:
    def nonsense(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return inputs * torch.nan

    table = bench(Matching())
    assert torch.equal(table.attack("nan", nonsense, "gradient").adv_inputs, table.inputs)


def test_what_was_not_tried_is_not_fooled() -> None:
    table = bench(Matching(), eps=1.0)
    half = torch.arange(96) < 48
    trial = table.attack("nothing", lambda model, inputs, labels: inputs, "gradient", rows=half, eps=1.0)
    assert torch.equal(trial.tried, half)
    assert not trial.fooled.any()
    assert torch.equal(table.standing(), table.right)


def test_the_worst_case_at_the_largest_radius_is_of_all_images() -> None:
    """PGD with every pixel free is tried on the first 128 images alone."""

    inputs, labels = torch.rand(200, 1, 4, 4), torch.zeros(200, dtype=torch.int64)
    found = audit(Constant(), inputs, labels, 1.0)
    assert found.worst_case_accuracy == 1


def test_a_picture_is_of_an_attack_that_was_tried_on_it() -> None:
    table = bench(Matching(), eps=0.3)
    table.attack("nothing", lambda model, inputs, labels: inputs, "gradient", rows=torch.arange(96) >= 48)
    assert table.attack("FGSM", FGSM(0.3), "single step").fooled[:3].all()
    assert [each.attack for each in pictures(table, ["0", "1", "2"])] == ["FGSM"] * 3


def test_a_picture_is_of_no_larger_radius_and_tells_an_answer_that_is_none() -> None:
    table = bench(Matching(), eps=0.01)
    table.attack("PGD at ε = 1", PGD(1.0, 2, 0.5), "gradient", eps=1.0)
    assert pictures(table, ["0", "1", "2"]) == []
    table.attack("FGSM", FGSM(0.01), "single step")
    assert {each.attack for each in pictures(table, ["0", "1", "2"])} == {"FGSM"}

    class Mute(Matching):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = super().forward(inputs)
            return torch.where(inputs.flatten(1).mean(dim=1, keepdim=True) > 0.52, torch.nan, logits)

    table = bench(Mute(), eps=0.03)
    table.attack("brighter", lambda model, inputs, labels: inputs + 0.03, "single step")
    assert {each.adversarial_prediction for each in pictures(table, ["0", "1", "2"])} == {"no answer (NaN)"}


def test_label_search_needs_the_class_alone_and_finds_the_corner() -> None:
    inputs, labels = images(24)
    model = Detached(Scaled(Matching(), 1e6))
    found = LabelSearch(eps=0.15, queries=120)(model, inputs, labels)
    assert (model(found).argmax(1) != labels).float().mean() > 0.8
    assert (found - inputs).abs().max() <= 0.15 + 1e-6
    assert (model(LabelSearch(eps=0.02, queries=40)(model, inputs, labels)).argmax(1) == labels).all()
    half = LabelSearch(eps=0.15, queries=40)(Matching().bfloat16(), inputs.bfloat16(), labels)
    assert half.dtype == torch.bfloat16


def test_a_substitute_learns_the_answers() -> None:
    inputs, _ = images()
    model = Matching()
    state = torch.get_rng_state()
    substitute, again, other = (train_substitute(model, inputs, 3, steps=150, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(substitute(inputs), again(inputs))
    assert not torch.equal(substitute(inputs), other(inputs))
    assert (substitute(inputs).argmax(1) == model(inputs).argmax(1)).float().mean() > 0.9
    assert train_substitute(model, inputs.flatten(1), 3, steps=2)(inputs.flatten(1)).shape == (96, 3)


def test_a_substitute_is_trained_and_not_crafted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """While crafting, layers of ours leave the gradients of their weights out."""
    inputs, _ = images()
    network = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 3))
    seen: list[bool] = []
    network.register_forward_hook(lambda *_: seen.append(is_crafting()))
    monkeypatch.setattr("surefoot.audit.substitute.small_network", lambda *_: network)
    with torch.no_grad():
        train_substitute(Matching(), inputs, 3, steps=3)
    assert seen == [False] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_substitute_takes_inputs_of_the_models_type(dtype: torch.dtype) -> None:
    inputs, labels = images()
    model = Matching().to(dtype)
    substitute = train_substitute(model, inputs.to(dtype), 3, eps=0.1, steps=100)
    answers = substitute(inputs.to(dtype))
    assert answers.dtype == torch.float32
    assert (answers.argmax(1) == labels).float().mean() > 0.9
    assert FGSM(0.1)(substitute, inputs.to(dtype), labels).dtype == dtype


def test_a_surface_is_the_loss_on_its_grid() -> None:
    inputs, labels = images(1)
    e1, e2, loss = loss_surface(Matching(), inputs[0], int(labels[0]), 0.1, points=5)
    assert e1 == e2
    assert e1[0] == pytest.approx(-0.1)
    clean = nn.functional.cross_entropy(Matching()(inputs), labels).detach()
    assert loss[2][2] == pytest.approx(float(clean), rel=1e-5)
    assert loss[2] == sorted(loss[2])  # along the gradient it rises
    with pytest.raises(ValueError, match="at least 2"):
        loss_surface(Matching(), inputs[0], 0, 0.1, points=1)


def test_linearity_errors_are_0_of_a_linear_model_and_1_where_the_gradient_says_nothing() -> None:
    inputs, labels = images(8)
    others = [inputs + 0.01, inputs - 0.02]
    two = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    assert local_linearity_errors(two, inputs, others, labels % 2).max() < 1e-3
    blind = BadGradient(two, "zero")
    assert local_linearity_errors(blind, inputs, others, labels % 2).min() > 0.99
    assert local_linearity_errors(Hooked(lambda g, x: -g), inputs, others, labels).allclose(torch.ones(8))
    assert (
        local_linearity_errors(two, inputs, [inputs, inputs, *others[:1]], labels % 2).max() < 1e-3
    )  # two say nothing
    largest = largest_error(two, inputs[0], int(two(inputs[:1]).argmax()), 0.1)
    along = FGSM(0.1)(
        two, inputs[:1], two(inputs[:1]).argmax(dim=1)
    )  # there the convex loss is furthest from its tangent
    losses = sample_losses(two, torch.cat([inputs[:1], along]), two(inputs[:1]).argmax(dim=1).expand(2))
    slope = gradients(two, inputs[:1], two(inputs[:1]).argmax(dim=1)).abs().sum()
    assert largest == pytest.approx(float(losses[1] - losses[0] - 0.1 * slope), rel=1e-3)
    flat, steep = (largest_error(Matching(scale), inputs[0], int(labels[0]), 0.1) for scale in (1.0, 20.0))
    assert flat < steep / 10


def test_a_model_that_draws_is_as_linear_as_it_is_at_each_draw() -> None:
    inputs, labels = images(8)
    model = Averaged(Noisy(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 0.3), 2)
    state = torch.get_rng_state()
    assert local_linearity_errors(model, inputs, [inputs + 0.01, inputs - 0.02], labels % 2).max() < 1e-3
    assert torch.equal(torch.get_rng_state(), state)


def test_substitutes_leave_the_budget_to_the_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def trained(*_: Any, deadline: float, **__: Any) -> nn.Module:
        given.append(deadline - time.perf_counter())
        return Matching()

    monkeypatch.setattr(sys.modules["surefoot.audit.audit"], "train_substitute", trained)
    others = torch.rand(4, 1, 4, 4)
    examined(Matching(), 0.1, budget_minutes=0.5, others=others)
    assert [round(seconds) for seconds in given] == [3, 3]  # a tenth of 30 seconds each
    examined(Matching(), 0.1, others=others)
    assert given[2:] == [math.inf] * 2


@pytest.mark.parametrize(("minutes", "most"), [(0.5, 225), (None, 1800)])
def test_substitutes_ask_a_slow_model_less(minutes: float | None, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def trained(model: nn.Module, inputs: Tensor, *_: Any, **__: Any) -> nn.Module:
        asked.append(len(inputs))
        return Matching()

    module = sys.modules["surefoot.audit.audit"]
    monkeypatch.setattr(module, "train_substitute", trained)
    monkeypatch.setattr(Effort, "within", lambda *_: (QUICK, 24))
    for seconds in (0.01, 1e-6):  # a gradient: an answer takes a third, of two of each image
        monkeypatch.setattr(module, "seconds_of_gradient", lambda *_, taken=seconds: taken)
        examined(Matching(), 0.1, budget_minutes=minutes, others=torch.rand(5000, 1, 4, 4))
    assert asked == [most, most, 5000, 5000]


def test_effort_follows_the_budget() -> None:
    assert Effort.within(None, 1e-6, 100) == (Effort(), 100)
    assert Effort.within(10.0, 1e-6, 100) == (Effort.thorough(), 100)
    effort, count = Effort.within(1.0, 0.01, 1000)
    assert effort.passes() < Effort().passes()
    assert 48 <= count < 1000
    assert Effort.within(0.001, 1.0, 20)[1] == 20


@pytest.mark.parametrize(
    ("minutes", "effort"), [(1.0, None), (3.0, Effort()), (8.0, Effort.more()), (12.0, Effort.thorough())]
)
def test_a_budget_is_enough_although_nothing_is_fooled(minutes: float, effort: Effort | None) -> None:
    found, images = Effort.within(minutes, 6e-4, 128)
    assert images * found.passes() * 6e-4 <= 0.8 * 60 * minutes
    assert effort is None or (found, images) == (effort, 128)


# --- the verdict


def check(key: str, outcome: Any, strength: float = 0.5, samples: list[int] | None = None) -> Check:
    return Check(
        key=key,
        question=f"{key}?",
        outcome=outcome,
        measured=f"Of {key} much was measured.",
        threshold="",
        error_rate=CHECK_ERROR,
        strength=strength,
        samples=[0] if samples is None else samples,
    )


def judged(checks: list[Check], looks: list[Looks], standing: int, required: float = 0.1) -> Any:
    return decide(
        checks,
        looks,
        eps=0.3,
        total=200,
        standing=standing,
        required=required,
        right=198,
        elsewhere=(90, 100),
        guessed=0.1,
    )


SOUND = [check(key, "passed", 0.0) for key in QUESTIONS]
ONE_FAILED = [check("loss-rises", "failed"), *SOUND[1:]]


@pytest.mark.parametrize(
    ("checks", "looks", "standing", "expected"),
    [
        (SOUND, [Looks("FGSM", 198, 150, 60)], 90, "robust"),
        (SOUND, [Looks("FGSM", 198, 20, 20)], 0, "not robust"),
        (SOUND, [Looks("FGSM", 198, 150, 140)], 10, "not robust"),  # a weak model, and nothing speaks of masking
        (ONE_FAILED, [Looks("FGSM", 198, 150, 150)], 0, "masked"),
        (ONE_FAILED, [Looks("FGSM", 198, 150, 140)], 60, "masked"),  # what is left does not excuse it
        (ONE_FAILED, [Looks("FGSM", 198, 30, 30)], 0, "not robust"),  # it never looked robust
        (ONE_FAILED, [Looks("FGSM", 198, 150, 60)], 90, "inconclusive"),
        (SOUND, [Looks("FGSM", 198, 60, 36)], 24, "inconclusive"),  # 12 %, but the interval reaches below 10 %
        ([check("loss-rises", "unclear", samples=[]), *SOUND[1:]], [], 180, "inconclusive"),  # not asked
        ([check("loss-rises", "unclear"), *SOUND[1:]], [], 180, "robust"),
        ([check("answers-repeat", "failed"), *SOUND[1:]], [], 180, "robust"),
        ([check("answers-repeat", "failed"), *SOUND[1:]], [Looks("FGSM", 198, 180, 180)], 0, "not robust"),
        (
            SOUND,
            [Looks("PGD-40", 198, 150, 140, steps=40)],
            10,
            "masked",
        ),  # no check says why, but PGD is no weak attack
        (SOUND, [Looks("PGD-40", 198, 150, 110, steps=40)], 40, "masked"),  # what is required does not excuse it
        (SOUND, [Looks("PGD-40", 198, 150, 70, steps=40)], 80, "inconclusive"),  # 47 %, by chance above two fifths?
        (SOUND, [Looks("PGD-40", 198, 150, 50, steps=40)], 100, "robust"),
        (
            SOUND,
            [Looks("PGD-40", 198, 90, 50, steps=40)],
            40,
            "inconclusive",
        ),  # PGD did not say that it is, and missed half
        (SOUND, [Looks("PGD-40", 198, 90, 45, steps=40)], 45, "robust"),
        (SOUND, [Looks("FGSM", 198, 90, 50)], 40, "robust"),  # one step may
        (SOUND, [Looks("FGSM", 198, 198, 168)], 30, "inconclusive"),  # FGSM alone says nothing about this model
        (SOUND, [Looks("FGSM", 198, 150, 105)], 45, "robust"),
    ],
)
def test_verdicts(checks: list[Check], looks: list[Looks], standing: int, expected: str) -> None:
    verdict = judged(checks, looks, standing)
    assert verdict.name == expected
    assert verdict.sentence.lower().startswith(expected)
    assert f"{standing / 2:.1f} %" in verdict.sentence
    assert verdict.sentence.endswith(".")


def test_where_no_check_failed_the_sentence_says_what_broke_the_model() -> None:
    stronger = [
        dataclasses.replace(check(key, "passed"), values={"share": share})
        for key, share in (("nothing-saturates", 0.3), ("steps-saturate", 0.6), ("loss-rises", 0.9))
    ]
    sentence = judged(stronger, [Looks("PGD-40", 198, 150, 110, steps=40)], 40).sentence
    assert "PGD-40 alone leaves 75.0 %" in sentence
    assert sentence.endswith("of steps-saturate much was measured.")


def test_the_sentence_names_the_two_strongest() -> None:
    checks = [check("a", "failed", 0.2), check("b", "failed", 0.9), check("c", "failed", 0.5)]
    sentence = judged(checks, [Looks("FGSM", 198, 150, 150)], 0).sentence
    assert "of b" in sentence
    assert "of c" in sentence
    assert "of a" not in sentence
    assert sentence.index("of b") < sentence.index("of c")


def test_an_attack_that_is_believed_leaves_half_and_what_is_required() -> None:
    assert Looks("FGSM", 198, 99, 0).robust(200, 0.1)
    assert not Looks("FGSM", 198, 98, 0).robust(200, 0.1)
    assert Looks("FGSM", 30, 20, 0).robust(200, 0.1)
    assert not Looks("FGSM", 30, 19, 0).robust(200, 0.1)
    assert not Looks("FGSM", 0, 0, 0).robust(200, 0.1)
    assert not Looks("FGSM", 0, 0, 0).false()


@pytest.mark.parametrize(("steps", "looked", "most"), [(1, True, 80), (40, True, 40), (1, False, 100), (40, False, 50)])
def test_a_weak_attack_may_miss_so_much(steps: int, looked: bool, most: int) -> None:
    assert not Looks("it", 198, 100, most, steps).doubtful(looked)
    assert most == 100 or Looks("it", 198, 100, most + 1, steps).doubtful(looked)


def test_neither_verdict_is_given_where_the_interval_holds_what_is_required() -> None:
    assert [judged(SOUND, [], standing).name for standing in (11, 12, 18, 28, 29)] == [
        *("not robust", "inconclusive", "inconclusive", "inconclusive", "robust")
    ]
    assert "too few" in judged(SOUND, [], 18).sentence


def test_images_of_another_type_than_the_weights_are_told_in_a_sentence() -> None:
    net, inputs = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(8, 1, 2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="the model's weights are float32, the images float64"):
        audit(net, inputs, torch.zeros(8, dtype=torch.int64), 0.1)


def test_a_handful_of_images_makes_no_model_robust_or_not() -> None:
    for total, standing in ((1, 1), (2, 0), (29, 29)):
        few = decide(
            SOUND,
            [],
            eps=0.3,
            total=total,
            standing=standing,
            required=0.1,
            right=standing,
            elsewhere=(90, 100),
            guessed=0.1,
        )
        assert few.name == "inconclusive"
        assert "Too few images" in few.warnings[0]
    assert (
        decide(SOUND, [], eps=0.3, total=30, standing=30, required=0.1, right=30, elsewhere=(90, 100), guessed=0.5).name
        == "robust"
    )


def test_the_sentence_tells_the_attack_that_says_most() -> None:
    weak, strong = Looks("FGSM", 198, 150, 60), Looks("PGD-40", 198, 120, 30, steps=40)
    robust = judged([check("answers-repeat", "failed"), *SOUND[1:]], [weak, strong], 90).sentence
    assert robust.endswith("PGD-40 alone leaves 60.0 %; 11 of 12 checks passed.")
    deceiving = [Looks("FGSM", 198, 180, 180), Looks("PGD-40", 198, 150, 150, steps=40)]
    failed = [check("answers-repeat", "failed", 0.9), check("loss-rises", "failed", 0.2)]
    masked = judged(failed, deceiving, 0).sentence
    assert masked.startswith("Masked at ε = 0.3: FGSM alone leaves 90.0 %, which looks robust")
    assert masked.endswith("of loss-rises much was measured; of answers-repeat much was measured.")
    lost = judged([check("steps-saturate", "failed"), check("loss-rises", "failed")], [Looks("FGSM", 198, 2, 2)], 0)
    assert lost.sentence.endswith("FGSM alone leaves 1.0 %; of loss-rises much was measured.")


def test_what_an_open_verdict_lacks_is_said() -> None:
    misses = [Looks("FGSM", 198, 198, 168), Looks("PGD-40", 198, 150, 70, steps=40)]
    doubt = judged(SOUND, misses, 80)
    assert "PGD-40 alone leaves 75.0 %" in doubt.sentence
    assert "Weak attacks miss" in doubt.warnings[0]
    few = judged(SOUND, misses, 24)  # the interval reaches below what is required: more images come first
    assert few.name == "inconclusive"
    assert "too few to say" in few.sentence
    assert "--num-examples" in few.warnings[0]
    unclear = [check("loss-rises", "unclear"), check("steps-saturate", "unclear")]
    assert judged([*unclear, *SOUND[2:]], [], 180).sentence.endswith("10 of 12 checks passed.")
    told = judged([*ONE_FAILED, *unclear], [], 60).warnings
    assert "too weak" in told[0]
    assert told[1] == "Cannot tell: loss-rises? Of loss-rises much was measured."
    same = [dataclasses.replace(each, measured="Nothing was.") for each in unclear]
    assert judged([*SOUND, *same], [], 180).warnings == ("Nothing was. Without an answer: loss-rises? steps-saturate?",)


def test_what_is_required_can_be_set() -> None:
    looks = [Looks("FGSM", 198, 150, 60)]
    assert judged(SOUND, looks, 90, required=0.3).name == "robust"
    assert judged(SOUND, looks, 90, required=0.8).name == "not robust"


@pytest.mark.parametrize(
    ("right", "guessed", "name"),
    [
        (100, 0.5, "inconclusive"),
        (115, 0.5, "inconclusive"),
        (150, 0.5, "robust"),
        (160, 0.8, "inconclusive"),
        (180, 0.8, "robust"),
    ],
)
def test_a_model_that_guesses_is_not_called_robust(right: int, guessed: float, name: str) -> None:
    found = decide(
        SOUND, [], eps=0.3, total=200, standing=90, required=0.1, right=right, elsewhere=(90, 100), guessed=guessed
    )
    assert found.name == name
    if name == "inconclusive":
        assert f"not clearly more than the {100 * guessed:.1f} % of guesses that give each class" in found.sentence
        assert "knows no more than guessing" in found.warnings[0]


@pytest.mark.parametrize("required", [None, 0.1])
def test_an_audit_of_a_model_that_guesses_says_so(required: float | None) -> None:
    inputs, labels = images()
    found = audit(Matching(), inputs, labels.sort().values, 0.03, required=required)  # a third is right
    assert found.worst_case_interval[0] >= 0.1
    assert (found.verdict, found.required) == ("inconclusive", 1 / 3 if required is None else 0.1)
    assert "33.3 % are right when clean, not clearly more than the 33.3 % of guesses" in found.sentence


class Always(nn.Module):
    """Gives every image the first class, whatever is done to it."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0]) + 0 * inputs.flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("most", [72, 40, 96])
def test_one_answer_for_every_image_is_a_guess_however_many_are_of_that_class(most: int) -> None:
    labels = torch.arange(96) % 2 + 1
    labels[:most] = 0
    found = audit(Always(), images()[0], labels, 0.03)
    assert (found.verdict, found.required) == ("inconclusive", 1 / 3)
    assert any("knows no more than guessing" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("elsewhere", "required", "name"),
    [
        ((0, 60), 0.1, "inconclusive"),
        ((9, 60), 0.1, "inconclusive"),  # 8 to 26 %
        ((12, 60), 0.1, "robust"),  # from 12 % on
        ((9, 60), 0.05, "robust"),
        ((0, 0), 0.1, "inconclusive"),
    ],
)
def test_what_survives_of_one_class_alone_is_not_robust(elsewhere: tuple[int, int], required: float, name: str) -> None:
    found = decide(
        SOUND, [], eps=0.3, total=200, standing=140, required=required, right=198, guessed=0.5, elsewhere=elsewhere
    )
    assert found.name == name
    if name == "inconclusive":
        assert f"outside of one class only {elsewhere[0]} of {elsewhere[1]}" in found.sentence
        assert "as they would by one answer for every image" in found.warnings[0]


@pytest.mark.parametrize("first", [16, 20])
def test_a_model_that_one_class_alone_survives_on_is_not_called_robust(first: int) -> None:
    """Of the first class all are far from the boundary, of the other all within eps of it."""
    labels = torch.arange(30) // first
    inputs = torch.where(labels == 0, 0.9, 0.45)[:, None].expand(-1, 4).clone()
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        net.bias.copy_(torch.tensor([-2.0, 2.0]))
    found = audit(net, inputs, labels.clamp(max=1), 0.1, required=0.3)
    assert (found.clean_accuracy, found.worst_case_accuracy) == (1, first / 30)
    assert found.verdict == "inconclusive"
    assert f"outside of one class only 0 of {30 - first}" in found.sentence


def test_a_weak_attack_is_warned_of() -> None:
    assert "too weak" in judged(ONE_FAILED, [], 180).warnings[0]


def test_a_failed_check_beside_attacks_that_get_through_leaves_too_few_images() -> None:
    looks = [Looks("PGD-40", 250, 34, 4, steps=40)]
    found = decide(
        ONE_FAILED, looks, eps=0.3, total=256, standing=30, required=0.1, right=250, elsewhere=(90, 100), guessed=0.1
    )
    assert found.name == "inconclusive"
    assert "too few to say whether 10.0 % are reached" in found.sentence
    assert found.sentence.endswith("PGD-40 alone leaves 13.3 %; of loss-rises much was measured.")
    assert found.warnings == ("Too few images: give more with --num-examples.",)
    unasked = [*ONE_FAILED, check("steps-saturate", "unclear", samples=[])]
    told = decide(
        unasked, looks, eps=0.3, total=256, standing=30, required=0.1, right=250, elsewhere=(90, 100), guessed=0.1
    ).sentence
    assert "1 of 13 checks was not made" in told
    assert told.endswith("of loss-rises much was measured.")


# --- the whole


def examined(model: nn.Module, eps: float = EPS, **more: Any) -> Audit:
    inputs, labels = images()
    return audit(model, inputs, labels, eps, **more)


def test_a_linear_model_is_robust_at_a_small_radius_and_honestly_not_at_a_large_one() -> None:
    small, large = (examined(Matching(), eps, sources={"a twin": Matching()}) for eps in (0.03, 0.2))
    assert (small.verdict, large.verdict) == ("robust", "not robust")
    assert small.worst_case_accuracy > 0.9
    assert large.worst_case_accuracy == 0
    assert [each.outcome for each in (*small.checks, *large.checks)] == ["passed"] * 24
    assert {each.plot for each in small.curves} == {"accuracy-eps", "loss-eps", "accuracy-steps", "logit-distance"}
    assert len(small.surfaces) == 4
    assert small.pictures
    assert Audit.from_json(small.to_json()) == small


@pytest.mark.parametrize("name", ["logits x 1000", "zero gradient", "NaN gradient", "random gradient", "no gradient"])
def test_masks_are_seen(name: str) -> None:
    model = Matching(300.0) if name.startswith("logits") else Matching()
    found = examined(masks(EPS)[name](model), sources={"a twin": Matching()})
    assert found.verdict == "masked", found.sentence
    assert found.worst_case_accuracy < 0.1


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0; it must be a whole number of at least 1"),
        ({"batch_size": "3"}, ValueError, "batch_size is '3'; it must be a whole number"),
        ({"seed": "1"}, ValueError, "seed is '1'; it must be a whole number of at least 0"),
        ({"classes": ["a"]}, ValueError, "classes has 1 names, but the model has 3 classes; give a name for each"),
        ({"about": {"x": 1}}, TypeError, "about has 'x'; the fields of an audit that it may tell are dataset, split, "),
        ({"sources": {"a": "b"}}, TypeError, "sources has an object of type str as 'a'; give a torch.nn.Module"),
        ({"others": [1]}, TypeError, "others are an object of type list; give a tensor"),
        (
            {"others": torch.rand(9, 3, 4, 4)},
            ValueError,
            "others have shape [9, 3, 4, 4], float32 on cpu; give images of shape [images, 1, 4, 4], float32 on cpu",
        ),
        ({"others": torch.ones(9, 1, 4, 4).byte()}, ValueError, "others have shape [9, 1, 4, 4], uint8 on cpu; give"),
        ({"others": torch.rand(0, 1, 4, 4)}, ValueError, "others have shape [0, 1, 4, 4]"),
        ({"others": 255 * torch.ones(9, 1, 4, 4)}, ValueError, "others range from 255 to 255; give pixels in [0, 1]"),
    ],
    ids=range(11),
)
def test_what_an_audit_may_not_be_given_is_refused_in_a_sentence(
    given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        examined(Matching(), budget_minutes=0, **given)


def test_an_audit_is_printed_in_a_few_lines() -> None:
    found = examined(Matching(), 0.03, budget_minutes=0)
    assert repr(found).startswith(f"Audit('model', 'inconclusive', {found.sentence!r}, 48 images, 12 checks, ")
    assert len(repr(found)) < 1000
    assert Audit.from_json(found.to_json()) == found


def test_classes_are_named_or_numbered() -> None:
    assert examined(Matching(), budget_minutes=0, classes=("a", "b", "c")).classes == ["a", "b", "c"]
    assert examined(Matching(), budget_minutes=0).classes == ["0", "1", "2"]


def test_masks_on_pixels_are_as_coarse_as_the_radius() -> None:
    digits, colour = masks(0.3), masks(8 / 255)
    assert [list(each)[1] for each in (digits, colour)] == ["pixels rounded to 4 levels", "pixels rounded to 30 levels"]
    x = torch.rand(64, 1, 8, 8)
    for name in ("pixels rounded to 30 levels", "noise at the input", "steep staircase", "fast sine on the pixels"):
        moved = float((colour[name](nn.Identity())(x) - x).abs().mean())
        assert 0.02 < moved / (8 / 255) < 1, name


def test_masks_change_what_they_say() -> None:
    same, x = nn.Identity(), torch.rand(64, 1, 8, 8)
    assert torch.equal(Scaled(same, 3.0)(x), 3 * x)
    assert torch.equal(Rounded(same, 4)(x), (3 * x).round() / 3)
    noise = Noisy(same, 0.1)(x) - x
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)
    assert abs(float(noise.mean())) < 0.01
    assert torch.allclose(Wrinkled(same, 100.0, 0.02)(x), x + 0.02 * (100 * x).sin())
    assert Staircase(same, 8, 60.0)(torch.tensor([2.25, 2.75]) / 8).tolist() == pytest.approx([2 / 8, 3 / 8], abs=1e-6)
    shown = [Resized(same, 2)(torch.ones(1, 1, 8, 8))[0, 0] for _ in range(60)]
    assert {int(each.sum()) for each in shown} == {64, 49, 36}
    for side in (0, 1):
        starts = {int(each.any(dim=side).float().argmax()) for each in shown}
        assert starts == {0, 1, 2}
    for kind, expected in (("zero", 0.0), ("nan", torch.nan)):
        seen = x.clone().requires_grad_()
        BadGradient(same, kind)(seen).sum().backward()
        assert seen.grad is not None
        assert torch.equal(seen.grad.nan_to_num(7.0), torch.full_like(x, expected).nan_to_num(7.0))
    assert not Detached(same)(x.requires_grad_()).requires_grad


def test_what_is_distilled_answers_alike_with_large_logits() -> None:
    inputs, labels = images()

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    state = torch.get_rng_state()
    small, large = (distilled(Matching(), make, inputs, temperature, steps=400) for temperature in (1.0, 5.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert (large(inputs).argmax(1) == labels).float().mean() > 0.9
    assert large(inputs).std() > 1.1 * small(inputs).std()


def test_an_audit_repeats_and_leaves_no_trace() -> None:
    model = Matching().train()
    state = torch.get_rng_state()
    first, second = (examined(model, eps) for eps in (0.1, 0.1))

    def plain(found: Audit) -> dict[str, Any]:
        fields = json.loads(found.to_json())
        for each in (fields, *fields["checks"], *fields["attacks"]):
            each.pop("seconds")
        return dict(fields)

    assert plain(first) == plain(second)
    with torch.autocast("cpu", torch.bfloat16):  # it measures in float32
        assert plain(examined(model, 0.1)) == plain(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("change", "words"),
    [({"eps": 8.0}, "8/255"), ({"eps": 0.0}, "above 0"), ({"required": 1.0}, "share of the images")],
)
def test_bad_settings_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        examined(Matching(), **{"eps": EPS, **change})


class Named(nn.Linear):
    """Its logits lie in a dict."""

    def forward(self, input: Tensor) -> Any:
        return {"logits": super().forward(input)}


def test_a_model_that_cannot_be_audited_is_refused_in_a_sentence() -> None:
    inputs, labels = torch.rand(4, 3), torch.tensor([0, 1, 0, 2])
    with pytest.raises(TypeError, match=r"answers with an object of type dict.*surefoot\.evaluation\.recognise"):
        audit(Named(3, 3), inputs, labels, EPS)
    with pytest.raises(ValueError, match=r"a label is 2, but the model has the classes 0 to 1"):
        audit(nn.Linear(3, 2), inputs, labels, EPS)
    with pytest.raises(TypeError, match="sources is an object of type Linear; give models by name, as"):
        audit(nn.Linear(3, 3), inputs, labels, EPS, sources=nn.Linear(3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="budget_minutes is -1; it must be a finite number of at least 0"):
        audit(nn.Linear(3, 3), inputs, labels, EPS, budget_minutes=-1)
    with pytest.raises(ValueError, match=r"logits have shape \[2\]; give \[batch, classes\]"):
        audit(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), inputs, labels, EPS)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        audit(Matching(), torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64), 0.1)


class Backwards(torch.autograd.Function):
    """The identity with a gradient of the opposite sign."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -gradients[0]


class Masked(Matching):
    """Another mask on the linear model, none of those that the audit is calibrated by."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kind == "negated":
            return super().forward(Backwards.apply(inputs))  # type: ignore[no-untyped-call]
        logits = super().forward(inputs)
        if self.kind == "other with gradients" and inputs.requires_grad:
            return logits.flip(1)
        if self.kind == "rounded shares":
            return (100 * (5 * logits).softmax(dim=1)).round() / 100
        if self.kind == "hard answers, misleading gradient":
            hard = nn.functional.one_hot(logits.argmax(dim=1), 3).float()
            return 10 * hard + 0.01 * torch.sin(50 * inputs).flatten(1)[:, :3]
        return logits


@pytest.mark.parametrize(
    "kind", ["negated", "other with gradients", "rounded shares", "hard answers, misleading gradient"]
)
def test_masks_that_it_was_not_made_for_are_seen(kind: str) -> None:
    found = examined(Masked(kind), sources={"a twin": Matching()})
    assert found.verdict == "masked", found.sentence
    assert found.worst_case_accuracy < 0.1


class Blur(torch.autograd.Function):
    """The identity with a blurred gradient: it still points uphill, and misses most of the way."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return nn.functional.avg_pool2d(gradients[0], 5, 1, 2)


class Textured(nn.Module):
    """Linear, each class's weights half smooth and half noise, on 12 x 12 pixels."""

    def __init__(self, *, blurred: bool) -> None:
        super().__init__()
        self.blurred = blurred
        generator = torch.Generator().manual_seed(0)
        fine, coarse = torch.randn(2, 3, 1, 12, 12, generator=generator)
        coarse = nn.functional.avg_pool2d(coarse, 5, 1, 2)
        self.weight = nn.Parameter(fine + coarse / coarse.std())

    def forward(self, inputs: Tensor) -> Tensor:
        shown: Tensor = Blur.apply(inputs) if self.blurred else inputs  # type: ignore[no-untyped-call]
        return (shown - 0.5).flatten(1) @ self.weight.flatten(1).T

    def images(self) -> tuple[Tensor, Tensor]:
        """Each class's pattern, weak or strong, and a little noise."""
        generator = torch.Generator().manual_seed(1)
        labels = torch.arange(96) % 3
        with torch.no_grad():
            pattern = (self.weight - self.weight.mean(dim=0))[labels].clamp(-2, 2)
        strength = 0.1 * (0.5 + torch.rand(96, 1, 1, 1, generator=generator))
        noise = 0.02 * torch.randn(96, 1, 12, 12, generator=generator)
        return (0.5 + strength * pattern + noise).clamp(0, 1), labels


def test_a_blurred_gradient_is_seen_though_it_points_uphill() -> None:
    outcomes = {}
    for blurred in (False, True):
        model = Textured(blurred=blurred)
        found = audit(model, *model.images(), 0.1, sources={"a twin": Textured(blurred=False)})
        outcomes[blurred] = {each.key: each.outcome for each in found.checks}["no-sharp-curvature"]
        assert found.verdict == ("inconclusive" if blurred else "robust"), found.sentence
    assert outcomes == {False: "passed", True: "failed"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_any_type_is_audited(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effort, "within", lambda *_: (QUICK, 48))
    inputs, labels = images(48)
    model = Matching().to(dtype)
    small, large = (audit(model, inputs.to(dtype), labels, eps, others=inputs.to(dtype)) for eps in (0.03, 0.2))
    assert (small.verdict, large.verdict) == ("robust", "not robust")
    assert len(small.surfaces) == 4


def test_tensors_made_under_inference_mode_are_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effort, "within", lambda *_: (QUICK, 48))
    model = Matching()
    with torch.inference_mode():
        inputs, labels = images(48)
        inside = audit(model, inputs, labels, 0.03, others=inputs)
    outside = audit(model, inputs, labels, 0.03, others=inputs)
    assert inputs.is_inference()
    assert labels.is_inference()
    assert inside.verdict == outside.verdict == "robust"


class Silent(Matching):
    """It answers NaN where the image is not on the grid of 8-bit pixels: no answer, and so no right one."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        off = ((inputs * 255).round() / 255 - inputs).abs().flatten(1).amax(dim=1) > 1e-6
        return torch.where(off[:, None], torch.nan, logits)


def test_an_answer_that_is_no_number_is_right_of_no_image() -> None:
    table = bench(Silent())
    assert table.right.all()
    assert not table.attack("FGSM", FGSM(0.0123), "single step").robust.any()
    assert (table.answers(table.model, table.inputs + 0.001) == -1).all()


class Barred(Matching):
    """A fourth class that no image may have."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.pad(super().forward(inputs), (0, 1), value=-torch.inf)


def test_a_class_that_is_barred_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effort, "within", lambda *_: (QUICK, 48))
    inputs, labels = images(48)
    small, large = (audit(Barred(), inputs, labels, eps, others=inputs) for eps in (0.03, 0.2))
    assert (small.verdict, large.verdict) == ("robust", "not robust")
    assert not any("differently" in each for each in small.warnings)


def test_answers_that_change_are_seen_without_being_told() -> None:
    found = examined(Noisy(Matching(), 0.05), sources={"a twin": Matching()})
    (repeats,) = [each for each in found.checks if each.key == "answers-repeat"]
    assert repeats.outcome == "failed"
    assert any("mean of 8 answers" in each for each in found.warnings)
    assert found.verdict in ("not robust", "masked")


def test_an_audit_of_random_answers_draws_from_its_own_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effort, "within", lambda *_: (QUICK, 48))
    inputs, labels = images(48)
    found: list[Any] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        audited = audit(Noisy(Matching(), 0.05), inputs, labels, EPS, sources={"a twin": Matching()})
        assert torch.equal(torch.get_rng_state(), before)
        found.append([(each.measured, each.values) for each in audited.checks])
        found.append([audited.curves, audited.surfaces])
    assert found[:2] == found[2:]


def test_without_another_network_the_black_box_check_is_not_made() -> None:
    found = [examined(Matching(), 0.03)]
    found.append(examined(Matching(), 0.03, sources={"mute": Detached(Matching())}))
    for each, why in zip(found, ("No other network was given", "the model gives no gradient"), strict=True):
        (check,) = [check for check in each.checks if check.key == "white-box-beats-black-box"]
        assert check.outcome == "unclear"
        assert why in check.measured
        assert each.verdict == "inconclusive"
        assert "1 of 12 checks was not made" in each.sentence


def test_an_attack_that_the_budget_cut_short_judges_nothing() -> None:
    """Images that it did not come to are no images that withstood it."""
    table = bench(Matching(), batch_size=16)
    fgsm(table)
    plain = PGD(EPS, 5, 0.1)

    def late(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        table.deadline = 0.0
        adv_inputs: Tensor = plain(model, inputs, labels)
        return adv_inputs

    with pytest.raises(OutOfTime):
        table.attack(plain_name(table), late, "gradient")
    cut = table.trials[plain_name(table)].as_json()
    assert (cut["name"], cut["num_examples"]) == (f"{plain_name(table)}, cut short", 16)
    assert cut["robust_accuracy"] < 1
    assert [trial.name for trial in cheap(table)] == ["FGSM"]


def test_square_goes_through_all_sizes_of_its_windows_within_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Square] = []

    def square(*settings: Any, **more: Any) -> Square:
        made.append(Square(*settings, **more))
        return made[-1]

    monkeypatch.setattr("surefoot.audit.trials.Square", square)
    QUESTIONS["gradient-beats-search"](bench(Matching()))
    assert made == [Square(EPS, QUICK.queries, rescale=True)]


def test_what_gradients_leave_is_attacked_towards_each_other_class() -> None:
    table = bench(Matching(), eps=0.09)
    for key in MOST_TELLING_FIRST:
        QUESTIONS[key](table)
    last = table.trials["APGD-T-20"]
    assert table.trials["APGD-CE-30"].kind == last.kind == "gradient"
    assert 0 < int(last.tried.sum()) < int(table.right.sum())
    assert torch.equal(last.robust & table.standing(), table.standing())


@pytest.mark.parametrize("minutes", [1e-9, 1e-4])
def test_an_audit_that_time_cut_short_is_never_robust(minutes: float) -> None:
    found = examined(Matching(), 0.03, budget_minutes=minutes, sources={"a twin": Matching()})
    cut = [each.measured for each in found.checks if "budget" in each.measured]
    assert cut
    assert found.worst_case_accuracy > 0.9
    assert found.verdict == "inconclusive"
    assert all("before FGSM" in each or "before PGD" in each or "before the gradients" in each for each in cut)


def test_fgsm_alone_makes_no_model_robust() -> None:
    table = bench(Matching(), eps=0.03)
    single = table.attack("FGSM", FGSM(0.03), "single step")
    table.deadline = 0.0
    checks = [ask(table) for ask in QUESTIONS.values()]
    left = int(single.robust.sum())
    looks = [Looks("FGSM", 96, left, 0)]
    verdict = decide(
        checks, looks, eps=0.03, total=96, standing=left, required=0.1, right=96, elsewhere=(90, 100), guessed=0.5
    )
    assert left > 80
    assert (verdict.name, checks[0].measured) == (
        "inconclusive",
        "The time budget ended before PGD-20 could be measured.",
    )


class Fussy(Matching):
    """It takes no empty batch."""

    def forward(self, inputs: Tensor) -> Tensor:
        assert len(inputs) > 0
        return super().forward(inputs)


@pytest.mark.parametrize("shift", [0, 1])
def test_nothing_is_asked_of_no_images(shift: int) -> None:
    inputs, labels = images(48)
    found = audit(Fussy(), inputs, (labels + shift) % 3, EPS, sources={"a twin": Matching()})
    assert found.verdict == "not robust"
    assert found.clean_accuracy == 1 - shift
    assert found.worst_case_accuracy == 0


# --- the command line


@pytest.fixture(scope="module")
def found() -> Audit:
    return examined(Matching(), 0.1, sources={"a twin": Matching()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "0"
    assert main(["train", "digits/normal", "--epochs", "1", "--batch-size", "256", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    shutil.copytree(trained, "runs/digits/normal/0")
    capsys.readouterr()
    return "runs/digits/normal/0"


@pytest.mark.parametrize(("verdict", "code"), [("robust", 0), ("masked", 3), ("inconclusive", 4), ("not robust", 5)])
def test_the_exit_code_is_the_verdict(
    verdict: str,
    code: int,
    found: Audit,
    run_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = dataclasses.replace(found, verdict=verdict, sentence=f"{verdict} at ε = 0.1: it is.")  # type: ignore[arg-type]
    monkeypatch.setattr("surefoot.cli.audit.examine", lambda *_, **__: made)
    monkeypatch.setattr("surefoot.cli.audit.write_page", lambda *_: None)
    assert main(["audit", run_folder]) == code
    out = capsys.readouterr().out
    assert verdict in out
    assert out.index(verdict) < out.index("Do iterative attacks")
    assert Audit.from_json(Path(run_folder, "audit.json").read_text()).verdict == verdict
    assert main(["audit", run_folder, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict


def test_a_radius_that_is_not_known_is_told_before_the_first_audit(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("unknown_radius.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.setattr("surefoot.cli.audit.examine", lambda *_, **__: pytest.fail("an audit has begun"))
    assert main(["audit", run_folder, "unknown_radius:make", "--dataset", "digits"]) == 2
    assert "unknown_radius:make needs --eps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"verdict": "fine"}, "verdict is 'fine'; it is one of robust"),
        ({"clean_accuracy": math.nan}, "clean_accuracy is nan; it is a finite number"),
        ({"eps": "0.1"}, "eps is '0.1'; it must be a number"),
        ({"worst_case_interval": [0.5]}, "a lower and an upper end"),
        ({"classes": None}, "classes is None; it is a list of names"),
    ],
)
def test_what_is_no_audit_is_not_read_as_one(found: Audit, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"this is not an audit .*{words}"):
        Audit.from_json(json.dumps({**json.loads(found.to_json()), **changed}))


def test_of_several_models_the_worst_counts(found: Audit, run_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter(["not robust", "masked", "robust", "not robust"])
    pages: list[tuple[int, str]] = []
    monkeypatch.setattr(
        "surefoot.cli.audit.write_page", lambda audits, path: pages.append((len(audits), path.as_posix()))
    )
    monkeypatch.setattr(
        "surefoot.cli.audit.examine",
        lambda *_, **__: dataclasses.replace(found, verdict=next(verdicts)),  # type: ignore[arg-type]
    )
    assert main(["audit", run_folder, run_folder]) == 3
    assert main(["audit", run_folder, run_folder, "--out", "both.html"]) == 5
    assert pages == [(2, "audit.html"), (2, "both.html")]


def test_an_audit_of_a_run(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-examples", "48", "--budget", "0.002", "--threads", "1", "--json"]
    assert main(["audit", run_folder, *options]) in (4, 5)
    found = json.loads(capsys.readouterr().out)
    assert found["dataset"] == "digits"
    assert found["eps"] == 0.3
    assert found["command"].startswith("surefoot audit runs/digits/normal/0 --num-examples 48")
    assert "<html" in Path(run_folder, "report.html").read_text()[:500]
    assert any("budget" in each["measured"] for each in found["checks"])
    assert any("budget" in each for each in found["warnings"])


FACTORY = """
from torch import nn
def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_anybodys_network_is_audited(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_networks_to_audit.py").write_text(FACTORY)
    save_file({"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}, "linear.safetensors")
    data = ["--weights", "linear.safetensors", "--dataset", "digits"]
    quick = ["--num-examples", "48", "--budget", "0.01", "--threads", "1", "--json"]
    assert main(["audit", "my_networks_to_audit:make", *data, *quick]) == 2
    assert "--eps" in capsys.readouterr().err
    assert main(["audit", "my_networks_to_audit:make", *data, *quick, "--eps", "0.1"]) in (4, 5)
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["dataset"], found["eps"]) == ("my_networks_to_audit:make", "digits", 0.1)
    assert Path("audit.html").exists()


def test_an_interrupted_audit_says_so_in_a_line(
    run_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(FGSM, "__call__", interrupted)
    assert main(["audit", run_folder, "--num-examples", "48", "--source", run_folder]) == 130
    captured = capsys.readouterr()
    words = f"surefoot audit {run_folder} --num-examples 48 --source {run_folder}"
    said = f"surefoot: interrupted. An unfinished audit is not kept; start again with: {words}"
    assert said in captured.err.splitlines()
    assert "Traceback" not in captured.err + captured.out
    assert not Path(run_folder, "audit.json").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "audit needs a model"),
        (["nowhere"], "nowhere is not a run"),
        (["nowhere", "--require", "10"], "share of the images"),
        (["nowhere", "--budget", "0"], "in minutes"),
        (["nowhere", "--eps", "8"], "8/255"),
        (["some.module:net"], "needs --dataset"),
        (["nowhere", "--calibrate"], "nowhere is not a run"),
    ],
)
def test_bad_input_is_told_in_a_sentence(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *args]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_a_confusion_names_what_must_not_happen() -> None:
    assert Confusion({("robust", "masked"): 1, ("robust", "robust"): 4}).faults() == [
        "1 robust model was called masked."
    ]
    assert Confusion({("not robust", "not robust"): 1, ("masked", "inconclusive"): 2}).faults() == []


@pytest.mark.parametrize(
    ("facts", "truth"),
    [
        (Facts(clean=0.98, fgsm=0.94, pgd=0.90, left=0.87, images=1000), "robust"),
        (Facts(clean=0.98, fgsm=0.92, pgd=0.66, left=0.19, images=1000), "masked"),  # enough is left, too much is lost
        (Facts(clean=0.99, fgsm=0.91, pgd=0.02, left=0.00, images=1000), "masked"),
        (Facts(clean=0.99, fgsm=0.30, pgd=0.99, left=0.00, images=1000), "masked"),
        (Facts(clean=0.99, fgsm=0.13, pgd=0.00, left=0.00, images=1000), "not robust"),
        (Facts(clean=0.98, fgsm=0.40, pgd=0.14, left=0.12, images=50), "not robust"),  # 10 % is within the interval
    ],
)
def test_the_truth_of_a_control_is_what_auto_attack_leaves(facts: Facts, truth: str) -> None:
    assert facts.truth(required=0.1) == truth


def test_the_facts_of_a_control_are_measured() -> None:
    digits = load("digits")
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    opened = Opened("a", bare, digits, {"eps": 0.05}, {}, None)
    options = AtOneRadius(num_examples=100, batch_size=32, device="cpu")
    facts = look_at(bare, opened, 0.25, options)
    assert (facts.images, facts.left) == (100, 0.25)
    assert facts.clean > facts.fgsm >= facts.pgd
    refusing = look_at(Detached(bare), opened, 0.25, options)  # it looks as robust as can be
    assert refusing.fgsm == refusing.pgd == refusing.clean == facts.clean


@pytest.mark.slow
def test_calibration_on_the_digits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "surefoot", "audit", "--calibrate", "--json", "--num-examples", "128"]
    done = subprocess.run([*command, "--runs", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    *records, last = map(json.loads, done.stdout.splitlines())
    assert last["faults"] == []
    assert len(records) > 15
    assert all(each["facts"]["images"] == 128 for each in records)
    called = {(each["truth"], each["verdict"]) for each in records}
    assert ("masked", "masked") in called
    assert ("robust", "robust") in called
