"""What a check measured, and the binomial test by which most of them judge a share of images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surefoot.audit.bench import Bench
from surefoot.audit.error_rate import CHECK_ERROR
from surefoot.audit.record import OutcomeName
from surefoot.evaluation.statistics import binomial_tail

FEW = 0.05
"""A share of the images below which it does not matter what the rest of them say."""


@dataclass(frozen=True)
class Finding:
    """What a check measured, before it becomes a `Check`."""

    outcome: OutcomeName
    measured: str
    threshold: str
    strength: float
    values: dict[str, Any]
    rows: Tensor
    error_rate: float = CHECK_ERROR


def percent(share: float) -> str:
    """A share in whole percent, with a decimal where it is small."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def judge(bad: int, total: int, limit: float, level: float = CHECK_ERROR) -> tuple[OutcomeName, float]:
    """Is a share of images beyond its limit by more than chance, and how far between the limit and 1?"""
    if total == 0 or bad <= limit * total:
        return "passed", 0.0
    if binomial_tail(bad, total, limit) > level:
        return "unclear", 0.0
    return "failed", (bad / total - limit) / (1 - limit)


def by_share(
    bad: Tensor, among: Tensor, limit: float, told: str, why: str, *, level: float = CHECK_ERROR, **values: Any
) -> Finding:
    """The finding of a check whose statistic is a share of images.

    Args:
        bad, among: `[samples]` bool; which images speak against the model, and of which.
        told: what was measured, with {bad}, {total} and {share}.
        why: what the limit is a limit of.
        level: of the test; a part of the check's, where that has several.
    """
    count, total = int((bad & among).sum()), int(among.sum())
    outcome, strength = judge(count, total, limit, level)
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


def unanswered(bench: Bench, why: str) -> Finding:
    """The finding of a check that could not be made."""
    return Finding("unclear", why, "It was not asked.", 0.0, {}, torch.zeros_like(bench.right))


def mean(values: Tensor) -> float:
    """The mean of the finite ones, 0 of none."""
    values = values[values.isfinite()]
    return float(values.mean()) if len(values) else 0.0
