"""The twelve questions put to a model; chance alone crosses each one's threshold at most `CHECK_ERROR` of the time.

Where a question is about a share of images, the limit is a share that sound models stay below, robust or not, and the
check fails where the exact binomial test rejects that limit. It passes where the share itself is within the limit, and
cannot tell between the two.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surefoot.attacks import APGD, APGDT, FGSM, IFGSM, PGD, RFGSM
from surefoot.audit.bench import Bench, OutOfTime, first
from surefoot.audit.error_rate import CHECK_ERROR
from surefoot.audit.finding import Finding, by_share, mean, percent, unanswered
from surefoot.audit.landscape import gradients, local_linearity_errors
from surefoot.audit.record import Check, OutcomeName
from surefoot.audit.trials import (
    crossing_step,
    fgsm,
    gradient_free,
    i_fgsm,
    left_after,
    pgd,
    r_fgsm,
    survivors,
    transfers,
    unsaturated,
    white_box,
)
from surefoot.core.devices import cosines
from surefoot.core.seeding import seeded
from surefoot.evaluation.probes import logit_distances, losses_along, sample_losses
from surefoot.evaluation.statistics import sign_test

MISSED = 0.85
"""A share of what plain PGD leaves that stronger attacks may fool on sound models; SAT-R3's comes near it."""

TANGENT = 0.5
"""A local linearity error that the loss of a sound model stays below around most images."""

OUTCOMES = ("passed", "unclear", "failed")
"""From best to worst."""

DIRECTIONS = 9
"""Random directions, over which an image's local linearity error is the median."""


def iterative_beats_single_step(bench: Bench) -> Finding:
    single, many = fgsm(bench), pgd(bench)
    only_single = int((~single.robust & many.robust).sum())
    only_many = int((single.robust & ~many.robust).sum())
    chance = sign_test(only_single, only_many)
    failed = chance <= CHECK_ERROR
    total = int(bench.right.sum())
    outcome: OutcomeName = "failed" if failed else "passed" if only_single <= only_many else "unclear"
    return Finding(
        outcome,
        f"FGSM leaves {percent(float(single.robust.float().mean()))} of the images, {many.name} "
        f"{percent(float(many.robust.float().mean()))}; FGSM alone fools {only_single} images, {many.name} alone "
        f"{only_many}.",
        "Fails where FGSM alone fools clearly more images than the iterative attack alone; exact sign test on pairs.",
        (only_single - only_many) / max(total, 1) if failed else 0.0,
        {"only_single_step": only_single, "only_iterative": only_many},
        bench.right,
    )


def white_box_beats_black_box(bench: Bench) -> Finding:
    left = survivors(white_box(bench))
    found = transfers(bench)
    if not found:
        return unanswered(
            bench, "No other network was given to craft on: give models (sources), or images to train some on (others)."
        )
    if all(trial.refused for trial in found):
        return unanswered(bench, f"Nothing could be crafted on another network: {found[0].refused}.")
    return by_share(
        ~survivors(found),
        left,
        0.25,
        "Of {total} images that the plain gradient attacks leave, samples crafted on another network fool {bad} "
        "({share}).",
        "what a gradient attack on the model itself may miss",
        **left_after(found),
    )


def large_eps_reaches_zero(bench: Bench) -> Finding:
    rows = first(bench.right, 128)
    trial = bench.attack(
        "PGD-20 at ε = 1", PGD(1.0, 20, 0.2, random_start=False), "gradient", rows=rows, crafter=bench.once, eps=1.0
    )
    return by_share(
        trial.robust,
        rows,
        1 / bench.classes,
        "With every pixel free, {bad} of {total} images ({share}) are still classified rightly"
        + (f": {trial.refused}." if trial.refused else "."),
        "chance",
        eps=1.0,
    )


def accuracy_never_rises(bench: Bench) -> Finding:
    radii = [bench.eps * k / 8 for k in range(13)]
    direction = batched(bench, lambda x, y: gradients(bench.model, x, y).sign())
    right = right_along(bench, direction, radii)
    with seeded(bench.seed):
        noise = right_along(bench, torch.randn_like(bench.inputs).sign(), radii)
    pgd_radii, steps = [bench.eps / 4, bench.eps / 2], 20
    weaker = [
        bench.attack(
            f"PGD-{steps} at ε = {radius:.3g}",
            PGD(radius, steps, crossing_step(radius, steps), stop_when_fooled=True),
            "gradient",
            eps=radius,
        ).robust
        for radius in pgd_radii
    ]
    pairs = [(i, j) for i in range(len(radii)) for j in range(i + 1, len(radii))]
    rows = bench.right
    total = int(rows.sum())
    failed, rise, where = False, 0, (0, 0)
    for i, j in pairs:
        gained, lost = int((right[j] & ~right[i] & rows).sum()), int((right[i] & ~right[j] & rows).sum())
        clear = gained - lost > 0.05 * total and sign_test(gained, lost) <= CHECK_ERROR / len(pairs)
        if (clear, gained - lost) > (failed, rise):
            failed, rise, where = clear, gained - lost, (i, j)

    def accuracy(each: Tensor) -> float:
        return float((each & rows).float().mean())

    curve = [accuracy(each) for each in right]
    told = (
        f"Along FGSM's direction accuracy goes from {percent(curve[0])} to {percent(curve[-1])} at ε = {radii[-1]:.3g}"
    )
    if rise > 0:
        told += (
            f"; it rises most from {percent(curve[where[0]])} at {radii[where[0]]:.3g} to {percent(curve[where[1]])} "
            f"at {radii[where[1]]:.3g}"
        )
    told += "." if rise > 0 else " and never rises."
    return Finding(
        "failed" if failed else "passed",
        told,
        "Fails where a larger ε gives more than 5 % more right answers, clearly; exact sign test over all pairs.",
        min(1.0, rise / max(total, 1)) if failed else 0.0,
        {
            "radii": radii,
            "accuracy": curve,
            "rise": rise,
            "noise_accuracy": [accuracy(each) for each in noise],
            "pgd": "PGD",
            "pgd_radii": [0.0, *pgd_radii, bench.eps],
            "pgd_accuracy": [accuracy(each) for each in (rows, *weaker, pgd(bench).robust)],
        },
        rows,
    )


def right_along(bench: Bench, direction: Tensor, radii: Sequence[float]) -> list[Tensor]:
    """Which samples are right at each radius along a direction."""
    return [
        bench.answers(bench.model, (bench.inputs + radius * direction).clamp(0, 1)) == bench.labels for radius in radii
    ]


def batched(bench: Bench, what: Callable[..., Tensor], *others: Tensor, shift: int = 0) -> Tensor:
    """`what(inputs, labels, ...)` over the samples, a batch at a time, from a seed; another one for each `shift`."""
    parts = []
    with seeded(bench.seed + shift):
        for rows in torch.split(torch.arange(len(bench.inputs), device=bench.inputs.device), bench.batch_size):
            bench.check_time("the gradients")
            parts.append(what(bench.inputs[rows], bench.labels[rows], *(each[rows] for each in others)))
    return torch.cat(parts)


def loss_rises(bench: Bench) -> Finding:
    single, many = fgsm(bench), pgd(bench)
    radii = [bench.eps * k / 8 for k in range(9)]

    def course(inputs: Tensor, labels: Tensor) -> Tensor:
        direction = gradients(bench.model, inputs, labels).sign()
        return losses_along(bench.model, inputs, labels, direction, radii).T

    along = batched(bench, course)
    noisy = batched(
        bench,
        lambda x, y: losses_along(bench.model, x, y, torch.randn_like(x).sign(), radii).T,
    )
    highest = along.cpu().cummax(dim=1).values.to(along.device)  # PyTorch 2.6 has none for Apple's GPUs
    fall = (highest - along).amax(dim=1)
    falls = fall > torch.clamp(along.amax(dim=1) / 4, min=0.1)
    one = batched(bench, lambda x, y, adv: sample_losses(bench.model, adv, y), single.adv_inputs)
    other = batched(bench, lambda x, y, adv: sample_losses(bench.model, adv, y), many.adv_inputs)
    differ = (one < other / 4) & (other - one > math.log(bench.classes) / 2)
    rows = bench.right
    return by_share(
        falls | differ,
        rows,
        0.4,
        "On {bad} of {total} images ({share}) the loss falls on the way to FGSM's sample or is less there than a "
        f"quarter of {many.name}'s; the mean losses are {mean(one[rows]):.3g} and {mean(other[rows]):.3g}.",
        "ordinary and robust models stay below a third",
        falls=int((falls & rows).sum()),
        differ=int((differ & rows).sum()),
        fgsm_loss=mean(one[rows]),
        pgd_loss=mean(other[rows]),
        radii=radii,
        losses=[mean(each[rows]) for each in along.T],
        noise_losses=[mean(each[rows]) for each in noisy.T],
    )


def logits_lie_close(bench: Bench) -> Finding:
    single, random, many = fgsm(bench), r_fgsm(bench), i_fgsm(bench)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return batched(bench, lambda x, y, a, b: logit_distances(bench.model, a, b), one, other)

    samples = [trial.adv_inputs for trial in (single, random, many)]
    moved = torch.stack([distance(bench.inputs, each) for each in samples]).mean(dim=0)
    to_random, to_many = (distance(samples[0], each) for each in samples[1:])
    apart = torch.maximum(to_random, to_many)
    rows = bench.right
    radii = [bench.eps / 4, bench.eps / 2, bench.eps]
    by_radius = [mean_distances(bench, radius) for radius in radii]
    return by_share(
        (apart > moved) | ~apart.isfinite(),
        rows,
        0.75,
        "On {bad} of {total} images ({share}) the logits of FGSM's sample lie further from R-FGSM's or I-FGSM's than "
        f"they lie from the clean image's; the mean distances are {mean(to_random[rows]):.3g} and "
        f"{mean(to_many[rows]):.3g}, to the clean image {mean(moved[rows]):.3g}.",
        "unrelated logits reach nearly all",
        fgsm_r_fgsm=mean(to_random[rows]),
        fgsm_i_fgsm=mean(to_many[rows]),
        moved=mean(moved[rows]),
        radii=[0.0, *radii],
        fgsm_r_fgsm_by_radius=[0.0, *(each[0] for each in by_radius)],
        fgsm_i_fgsm_by_radius=[0.0, *(each[1] for each in by_radius)],
    )


def mean_distances(bench: Bench, eps: float) -> tuple[float, float]:
    """The mean logit distances of FGSM's samples to R-FGSM's and to I-FGSM's, over at most 64 images."""
    rows = bench.right.nonzero().squeeze(1)[:64]
    inputs, labels = bench.inputs[rows], bench.labels[rows]
    with seeded(bench.seed):
        single, *others = (
            attack(bench.model, inputs, labels) for attack in (FGSM(eps), RFGSM(eps, eps / 2), IFGSM(eps, 10))
        )
        first, second = (mean(logit_distances(bench.model, single, other)) for other in others)
    return first, second


def steps_saturate(bench: Bench) -> Finding:
    plain, steps = pgd(bench), bench.effort.more_steps
    many = PGD(bench.eps, steps, crossing_step(bench.eps, steps), restarts=bench.effort.restarts, stop_when_fooled=True)
    more = bench.attack(
        f"PGD-{steps} x {bench.effort.restarts}", many, "gradient", rows=plain.robust, crafter=bench.once
    )
    # Its first steps cross the ball, so that it leaves the flat places that small steps stay in.
    large = bench.attack(f"APGD-CE-{steps}", APGD(bench.eps, steps), "gradient", rows=more.robust)
    return by_share(
        ~large.robust,
        plain.robust,
        MISSED,
        f"Of {{total}} images that {plain.name} leaves, {bench.effort.restarts} runs of PGD-{steps} and one of "
        f"{large.name} fool {{bad}} ({{share}}).",
        "what restarts and larger steps find on models that are robust to few attacks",
        **left_after([more, large]),
    )


def gradients_exist(bench: Bench) -> Finding:
    with seeded(bench.seed):
        near = bench.inputs + bench.eps / 8 * torch.randn_like(bench.inputs).sign()
        far = bench.inputs + torch.empty_like(bench.inputs).uniform_(-bench.eps, bench.eps)

    def at(others: Tensor, shift: int) -> Tensor:
        return batched(bench, lambda x, y, o: gradients(bench.model, o, y).flatten(1), others.clamp(0, 1), shift=shift)

    here, beside, there = (at(each, shift) for shift, each in enumerate((bench.inputs, near, far)))
    both = torch.stack([here, there])
    spoiled = (~both.isfinite()).any(dim=2).any(dim=0)
    largest = both.nan_to_num(0, 0, 0).abs().amax(dim=2).amin(dim=0)
    zero = (largest == 0) & ~spoiled
    under = (largest < 1e-30) & ~zero & ~spoiled
    agreement = cosines(here, beside)
    apart = ~(agreement >= 0.2).to(here.device)
    gone = spoiled | zero | under
    rows = bench.right
    total = max(int(rows.sum()), 1)
    counts = {
        name: int((each & rows).sum()) for name, each in (("zero", zero), ("non_finite", spoiled), ("underflow", under))
    }
    numbers = {
        **counts,
        "disagree": int((apart & ~gone & rows).sum()),
        "agreement": mean(agreement[(rows & ~gone).cpu()]),
    }
    no_gradient = by_share(gone, rows, 0.1, "", "a few dead pixels", level=CHECK_ERROR / 2, **numbers)
    at_odds = by_share(apart & ~gone, rows & ~gone, 0.5, "", "", level=CHECK_ERROR / 2)
    worse = max(no_gradient, at_odds, key=lambda each: (OUTCOMES.index(each.outcome), each.strength))
    told = (
        f"Of {total} images {counts['zero']} have, at the image or at a random point of its ball, a gradient of "
        f"exactly zero, {counts['non_finite']} one that is not finite, {counts['underflow']} one below 1e-30"
    )
    if (rows & ~gone).any():
        told += (
            "; between an image and a point ε/8 beside it the gradients' mean cosine is "
            f"{numbers['agreement']:.2f}, and below 0.2 for {numbers['disagree']}"
        )
    told += "."
    return Finding(
        worse.outcome,
        told,
        "Fails where clearly more than 10 % of the images have no usable gradient, or on more than half of them two "
        "gradients side by side have nothing to do with each other; exact binomial tests.",
        worse.strength,
        numbers,
        rows,
    )


def gradient_beats_search(bench: Bench) -> Finding:
    left = survivors(white_box(bench))
    steps = bench.effort.steps
    if fgsm(bench).refused is None:
        bench.attack(
            f"APGD-T-{steps}", APGDT(bench.eps, steps), "gradient", rows=bench.standing("single step", "gradient")
        )
    strongest = bench.standing("single step", "gradient")
    found = gradient_free(bench, left)
    return by_share(
        ~survivors(found),
        strongest,
        0.4,
        "Of {total} images that every gradient attack leaves, a search without gradients fools {bad} ({share}).",
        "what a search may find beside gradients",
        **left_after(found),
    )


def answers_repeat(bench: Bench) -> Finding:
    flips = bench.flips
    return Finding(
        "passed" if flips is None else "failed",
        "Two calls give the same answers."
        if flips is None
        else f"Between two calls {percent(flips)} of the predictions change; the mean answer is attacked and judged.",
        "Fails where two calls differ by more than rounding; no chance in it.",
        0.0 if flips is None else min(1.0, 0.2 + flips),
        {"flips": flips or 0.0},
        torch.ones_like(bench.right),
        error_rate=0.0,
    )


def nothing_saturates(bench: Bench) -> Finding:
    left = pgd(bench).robust
    found = unsaturated(bench)
    return by_share(
        ~survivors(found),
        left,
        MISSED,
        f"Of {{total}} images that {pgd(bench).name} leaves, the same attack on rescaled logits, in float64 or on a "
        "margin fools {bad} ({share}).",
        "what other losses find on models that are not saturated",
        **left_after(found),
    )


def no_sharp_curvature(bench: Bench) -> Finding:
    # At random, and not along the gradient: there a gradient that is only half right is right.
    with seeded(bench.seed):
        signs = [torch.randn_like(bench.inputs).sign() for _ in range(DIRECTIONS)]

    def errors(inputs: Tensor, labels: Tensor, *directions: Tensor) -> Tensor:
        others = [(inputs + bench.eps / 8 * each).clamp(0, 1) for each in directions]
        return local_linearity_errors(bench.model, inputs, others, labels, seed=bench.seed)

    found = batched(bench, errors, *signs)
    rows = bench.right
    error = mean(found[rows]) if found[rows].isfinite().any() else None
    told = (
        ""
        if error is None
        else f"; the local linearity error is {error:.2f} in the mean (0: linear, 1: the tangent says nothing)"
    )
    return by_share(
        ~(found <= TANGENT),
        rows,
        0.5,
        "On {bad} of {total} images ({share}) the margin ε/8 away is far from its tangent in most directions, or "
        f"neither moves{told}.",
        f"sound models stay below {TANGENT} on most",
        local_linearity_error=error,
    )


@dataclass(frozen=True)
class Question:
    """A check: its key, what it asks, and what answers it."""

    key: str
    question: str
    find: Callable[[Bench], Finding]
    needs_gradient: bool = True
    """Is it about attacks that a model without any gradient does not allow?"""

    def __call__(self, bench: Bench) -> Check:
        """Put the question; `unclear` where the budget ends before the answer."""
        started = time.perf_counter()
        try:
            if not bench.right.any():
                finding = unanswered(bench, "No image is classified rightly.")
            elif self.needs_gradient and fgsm(bench).refused is not None:
                finding = unanswered(bench, "The model gives no gradient to ask this of.")
            else:
                finding = self.find(bench)
        except OutOfTime as end:
            finding = unanswered(bench, f"The time budget ended before {end} could be measured.")
        return Check(
            key=self.key,
            question=self.question,
            outcome=finding.outcome,
            measured=finding.measured,
            threshold=f"{finding.threshold} Chance alone: at most {100 * finding.error_rate:.2g} %.",
            error_rate=finding.error_rate,
            strength=finding.strength,
            values=finding.values,
            samples=finding.rows.nonzero().squeeze(1).tolist(),
            seconds=time.perf_counter() - started,
        )


QUESTIONS = {
    each.key: each
    for each in (
        Question(
            "iterative-beats-single-step", "Do iterative attacks beat single-step ones?", iterative_beats_single_step
        ),
        Question(
            "white-box-beats-black-box",
            "Do white-box attacks beat black-box ones?",
            white_box_beats_black_box,
            needs_gradient=False,
        ),
        Question(
            "large-eps-reaches-zero",
            "Does accuracy fall to chance once ε is large enough?",
            large_eps_reaches_zero,
            needs_gradient=False,
        ),
        Question("accuracy-never-rises", "Does accuracy never rise with ε?", accuracy_never_rises),
        Question("loss-rises", "Does the loss rise along FGSM's direction, and agree with PGD's?", loss_rises),
        Question("logits-lie-close", "Do FGSM, R-FGSM and I-FGSM end at similar logits?", logits_lie_close),
        Question("steps-saturate", "Do more PGD steps and restarts stop helping?", steps_saturate),
        Question(
            "gradients-exist",
            "Do gradients exist, and agree from point to point?",
            gradients_exist,
            needs_gradient=False,
        ),
        Question(
            "gradient-beats-search",
            "Does the gradient beat a search without gradients?",
            gradient_beats_search,
            needs_gradient=False,
        ),
        Question("answers-repeat", "Are answers the same from call to call?", answers_repeat, needs_gradient=False),
        Question("nothing-saturates", "Is the plain attack free of saturation?", nothing_saturates),
        Question("no-sharp-curvature", "Is the loss smooth near the images?", no_sharp_curvature),
    )
}
"""The twelve, in the order in which they are reported."""

MOST_TELLING_FIRST = (
    "answers-repeat",
    "gradients-exist",
    "iterative-beats-single-step",
    "loss-rises",
    "nothing-saturates",
    "white-box-beats-black-box",
    "steps-saturate",
    "gradient-beats-search",
    "large-eps-reaches-zero",
    "accuracy-never-rises",
    "no-sharp-curvature",
    "logits-lie-close",
)
"""The order in which they are run: a budget may end before the last."""
