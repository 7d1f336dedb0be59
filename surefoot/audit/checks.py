"""The twelve questions put to a model; chance alone crosses each one's threshold at most `CHECK_ERROR` of the time.

Where a question is about a share of images, the limit is a share that sound models stay below, robust or not, and the
check fails where the exact binomial test rejects that limit. It passes where the share itself is within the limit, and
cannot tell between the two.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.attacks import APGD, APGDT, FGSM, IFGSM, MIFGSM, PGD, RFGSM, MarginLoss, Square
from surefoot.attacks.apgd import dlr_loss
from surefoot.attacks.gradient_sign import ascend
from surefoot.audit.bench import Bench, OutOfTime, Trial
from surefoot.audit.label_search import LabelSearch
from surefoot.audit.landscape import gradients, local_linearity_errors
from surefoot.audit.record import Check, Outcome
from surefoot.audit.statistics import CHECK_ERROR
from surefoot.core.devices import cosines, has_float64
from surefoot.core.geometry import project
from surefoot.core.gradients import crafting, is_training, plain_module
from surefoot.core.losses import margin
from surefoot.core.types import Attack
from surefoot.evaluation.passes import seeded
from surefoot.evaluation.probes import logit_distances, losses_along, sample_losses
from surefoot.evaluation.statistics import binomial_tail, sign_test

MARKS = (1, 2, 5, 10, 20, 40, 100, 200, 500)
"""Steps after which an attack's accuracy is noted."""

MISSED = 0.85
"""A share of what plain PGD leaves that stronger attacks may fool on sound models; SAT-R3's comes near it."""

TANGENT = 0.5
"""A local linearity error that the loss of a sound model stays below around most images."""

OUTCOMES = ("passed", "unclear", "failed")
"""From what is best to what is worst."""

DIRECTIONS = 9
"""At random, that it is the median over."""

FEW = 0.05
"""A share of the images below which it does not matter what the rest of them say."""


@dataclass
class Watched:
    """PGD on cross-entropy from a random start, and how many samples are left after `MARKS` steps.

    Args:
        eps, steps: as `PGD` has them.

    Called as an attack is; `standing` grows by a list of counts a batch.
    """

    eps: float
    steps: int
    marks: tuple[int, ...] = ()
    standing: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.marks = (*[mark for mark in MARKS if mark < self.steps], self.steps)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        size = step(self.eps, self.steps)
        adv_inputs = project(inputs + torch.empty_like(inputs).uniform_(-self.eps, self.eps), inputs, self.eps)
        counts, before = [], 0
        with crafting(model) as frozen:
            for mark in self.marks:
                adv_inputs = ascend(
                    frozen, inputs, labels, adv_inputs, eps=self.eps, steps=mark - before, step_size=size
                )
                before = mark
                with torch.no_grad():
                    counts.append(int((frozen(adv_inputs).argmax(dim=1) == labels).sum()))
        self.standing.append(counts)
        return adv_inputs


@dataclass(frozen=True)
class Finding:
    """What a check measured, before it becomes a `Check`."""

    outcome: Outcome
    measured: str
    threshold: str
    strength: float
    values: dict[str, Any]
    rows: Tensor
    error_rate: float = CHECK_ERROR


def percent(share: float) -> str:
    """A share in whole percent, with a decimal where it is small."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def judge(bad: int, total: int, limit: float) -> tuple[Outcome, float]:
    """Is a share of images beyond its limit by more than chance, and how far between the limit and 1?"""
    if total == 0 or bad <= limit * total:
        return "passed", 0.0
    if binomial_tail(bad, total, limit) > CHECK_ERROR:
        return "unclear", 0.0
    return "failed", (bad / total - limit) / (1 - limit)


def by_share(bad: Tensor, among: Tensor, limit: float, told: str, why: str, **values: Any) -> Finding:
    """The finding of a check whose statistic is a share of images.

    Args:
        bad, among: `[samples]` bool; which images speak against the model, and of which.
        told: what was measured, with {bad}, {total} and {share}.
        why: what the limit is a limit of.
    """
    count, total = int((bad & among).sum()), int(among.sum())
    outcome, strength = judge(count, total, limit)
    few = outcome == "unclear" and total < FEW * len(among)
    if few:
        outcome = "passed"
    share = count / total if total else 0.0
    nothing = "No image is left to ask it of: the attacks before it fool all of them."
    measured = told.format(bad=count, total=total, share=percent(share)) if total else nothing
    if few:
        measured = measured.removesuffix(".") + f"; too few (under {100 * FEW:g} % of the images) to matter."
    return Finding(
        outcome,
        measured,
        f"Fails where clearly more than {percent(limit)} of them are ({why}); exact binomial test.",
        strength,
        {"bad": count, "total": total, "share": share, "limit": limit, **values},
        among,
    )


# --- the attacks that checks share ---------------------------------------------------------------------------------


def fgsm(bench: Bench) -> Trial:
    return bench.attack("FGSM", FGSM(bench.eps), "single step")


def r_fgsm(bench: Bench) -> Trial:
    return bench.attack("R-FGSM", RFGSM(bench.eps, bench.eps / 2), "single step")


def i_fgsm(bench: Bench) -> Trial:
    return bench.attack("I-FGSM-10", IFGSM(bench.eps, 10), "gradient")


def pgd(bench: Bench) -> Trial:
    """The plain attack: cross-entropy, float32, one run, one call of the model."""
    name = plain_name(bench)
    if name not in bench.trials:
        watched = Watched(bench.eps, bench.effort.steps)
        bench.attack(name, watched, "gradient", crafter=bench.once)
        bench.course = dict(zip(watched.marks, map(sum, zip(*watched.standing, strict=True)), strict=False))
    return bench.trials[name]


def plain_name(bench: Bench) -> str:
    """What the plain attack is called."""
    return f"PGD-{bench.effort.steps}"


def step(eps: float, steps: int) -> float:
    """A step size that crosses the ball four times."""
    return min(1.0, max(4 * eps / steps, 1e-6))


def white_box(bench: Bench) -> list[Trial]:
    """The plain gradient attacks."""
    return [fgsm(bench), i_fgsm(bench), pgd(bench)]


def survivors(trials: Sequence[Trial]) -> Tensor:
    """Which samples none of them fooled."""
    return torch.stack([trial.robust for trial in trials]).all(dim=0)


# --- the checks ----------------------------------------------------------------------------------------------------


def iterative_beats_single_step(bench: Bench) -> Finding:
    single, many = fgsm(bench), pgd(bench)
    only_single = int((~single.robust & many.robust).sum())
    only_many = int((single.robust & ~many.robust).sum())
    chance = sign_test(only_single, only_many)
    failed = chance <= CHECK_ERROR
    total = int(bench.right.sum())
    outcome: Outcome = "failed" if failed else "passed" if only_single <= only_many else "unclear"
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


def transfers(bench: Bench) -> list[Trial]:
    """What substitutes craft, on what the plain attacks left."""
    left = survivors(white_box(bench))
    found: list[Trial] = []
    for name, model in bench.substitutes.items():
        for attack in (PGD(bench.eps, 20, step(bench.eps, 20), loss=MarginLoss(50.0)), MIFGSM(bench.eps, 10)):
            rows = found[-1].robust if found else left
            label = "PGD-20" if isinstance(attack, PGD) else "MI-FGSM-10"
            found.append(bench.attack(f"{label} from {name}", attack, "transfer", rows=rows, crafter=model))
    return found


def left_after(trials: Sequence[Trial]) -> dict[str, float]:
    """The accuracy after each of them in turn."""
    return {f"after {trial.name}": float(trial.robust.float().mean()) for trial in trials}


def white_box_beats_black_box(bench: Bench) -> Finding:
    left = survivors(white_box(bench))
    found = transfers(bench)
    fooled = ~survivors(found) if found else torch.zeros_like(left)
    return by_share(
        fooled,
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


def first(rows: Tensor, count: int) -> Tensor:
    """The first `count` of the chosen samples."""
    kept = torch.zeros_like(rows)
    kept[rows.nonzero().squeeze(1)[:count]] = True
    return kept


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
            PGD(radius, steps, step(radius, steps), stop_when_fooled=True),
            "gradient",
            eps=radius,
        ).robust
        for radius in pgd_radii
    ]
    pairs = [(i, j) for i in range(len(radii)) for j in range(i + 1, len(radii))]
    rows = bench.right
    worst, rise, where = 1.0, 0, (0, 0)
    for i, j in pairs:
        gained, lost = int((right[j] & ~right[i] & rows).sum()), int((right[i] & ~right[j] & rows).sum())
        chance = sign_test(gained, lost) if gained > lost else 1.0
        if chance < worst:
            worst, rise, where = chance, gained - lost, (i, j)
    total = int(rows.sum())
    clear = worst <= CHECK_ERROR / len(pairs)
    failed = clear and rise > 0.05 * total

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
            "pgd": f"PGD-{steps}",
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


def mean(values: Tensor) -> float:
    """The mean of the finite ones, 0 of none."""
    values = values[values.isfinite()]
    return float(values.mean()) if len(values) else 0.0


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
    many = PGD(bench.eps, steps, step(bench.eps, steps), restarts=bench.effort.restarts, stop_when_fooled=True)
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
    no_gradient = by_share(gone, rows, 0.1, "", "a few dead pixels", **numbers)
    at_odds = by_share(apart & ~gone, rows & ~gone, 0.5, "", "")
    worse = max(no_gradient, at_odds, key=lambda each: (OUTCOMES.index(each.outcome), each.strength))
    told = (
        f"Of {total} images {counts['zero']} have a gradient of exactly zero, {counts['non_finite']} one that is not "
        f"finite, {counts['underflow']} one below 1e-30"
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


def gradient_free(bench: Bench, rows: Tensor) -> list[Trial]:
    """Attacks that need no gradient, on what is left."""
    queries = bench.effort.queries
    square = bench.attack(f"Square-{queries}", Square(bench.eps, queries, rescale=True), "gradient-free", rows=rows)
    search = LabelSearch(bench.eps, queries)
    return [square, bench.attack(f"label search-{queries}", search, "gradient-free", rows=square.robust)]


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


class Rescaled(nn.Module):
    """A model's logits divided by a constant, so that cross-entropy does not saturate."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale, self.training = model, scale, is_training(model)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        return logits.float() / self.scale if logits.dtype != torch.float64 else logits / self.scale


def unsaturated(bench: Bench) -> list[Trial]:
    """The plain attack where nothing can saturate: logits of unit margin, float64, margin losses."""
    left = pgd(bench).robust
    with crafting(bench.model) as frozen, torch.no_grad():
        logits = torch.cat([frozen(part) for part in torch.split(bench.inputs, bench.batch_size)])
    logits = logits.double() if has_float64(logits.device) else logits
    scale = float((-margin(logits, bench.labels))[bench.right].abs().median()) if bench.right.any() else 1.0
    scale = scale if scale > 0 and math.isfinite(scale) else 1.0
    steps, name = bench.effort.steps, plain_name(bench)
    again = PGD(bench.eps, steps, step(bench.eps, steps), stop_when_fooled=True)
    on_margin = dataclasses.replace(again, loss=margin)
    attacks: list[tuple[str, Attack, nn.Module, torch.dtype | None]] = [
        (f"{name}, margin", on_margin, bench.model, None),
        (f"APGD-DLR-{steps}", APGD(bench.eps, steps, loss=dlr_loss), bench.model, None),
        (f"{name}, rescaled", again, Rescaled(bench.model, scale), None),
    ]
    wide = in_double(bench)
    if wide is not None:
        attacks.append((f"{name}, float64", again, Rescaled(wide, scale), torch.float64))
    found: list[Trial] = []
    for each, attack, crafter, convert in attacks:
        rows = found[-1].robust if found else left
        found.append(bench.attack(each, attack, "gradient", rows=rows, crafter=crafter, convert=convert))
    return found


def in_double(bench: Bench) -> nn.Module | None:
    """A copy of the model in float64, where it can be made and agrees."""
    if not has_float64(bench.inputs.device):
        return None
    try:
        wide = copy.deepcopy(plain_module(bench.model)).double()
        with crafting(wide) as frozen, torch.no_grad():
            answers = frozen(bench.inputs[:8].double())
    except Exception:  # a model may insist on its own type
        return None
    return wide if answers.dtype == torch.float64 else None


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
    return by_share(
        ~(found <= TANGENT),
        rows,
        0.5,
        "On {bad} of {total} images ({share}) the margin ε/8 away is far from its tangent in most directions; the "
        f"local linearity error is {mean(found[rows]):.2f} in the mean (0: linear, 1: the tangent says nothing).",
        f"sound models stay below {TANGENT} on most",
        local_linearity_error=mean(found[rows]),
    )


def unanswered(bench: Bench, why: str) -> Finding:
    """The finding of a check that could not be made."""
    return Finding("unclear", why, "It was not asked.", 0.0, {}, torch.zeros_like(bench.right))


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
"""The twelve, in the order they are told."""

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
"""The order they are run in, for a budget that may end."""
