"""The verdict: what the numbers and the checks amount to, in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.audit.record import Check, VerdictName
from surefoot.audit.statistics import CHECK_ERROR, tail
from surefoot.evaluation.records import wilson_interval

LOOKS_ROBUST = 0.5
"""Share of the rightly classified images that an attack must leave for the model to look robust under it."""

MOSTLY_LOST = 0.5
"""Share of those that must then be lost to other attacks for the looks to be false."""

JUDGED_ALL_THE_SAME = ("answers-repeat",)
"""Checks that do not stand against `robust`: a model that answers randomly is judged by its mean answer."""


@dataclass(frozen=True)
class Looks:
    """What one cheap attack alone would report: of `right` images it leaves `left`, of which others fool `lost`."""

    attack: str
    right: int
    left: int
    lost: int

    def robust(self, total: int, required: float) -> bool:
        """Would its user take the model for robust?"""
        return self.left > 0 and self.left >= LOOKS_ROBUST * self.right and self.left / total >= required

    def false(self) -> bool:
        """Is clearly more than half of what it left lost to other attacks?"""
        return self.left > 0 and tail(self.lost, self.left, MOSTLY_LOST) <= CHECK_ERROR


@dataclass(frozen=True)
class Verdict:
    """What an audit says."""

    name: VerdictName
    sentence: str
    warnings: tuple[str, ...]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def decide(
    checks: Sequence[Check],
    looks: Sequence[Looks],
    *,
    eps: float,
    total: int,
    right: int,
    standing: int,
    required: float,
) -> Verdict:
    """Weigh the evidence.

    - masked: a cheap attack alone would have called the model robust, others fool clearly more than half of what it
      left, and a check says why.
    - robust: the lower end of the worst case's 95 % interval is above `required`, and no check failed (but for
      answers that change, which are judged by their mean).
    - not robust: the upper end is below `required`, or the attacks leave fewer than required, and nothing was masked.
    - inconclusive: the rest; a check failed where no attack got through, or too few images were examined.

    Args:
        checks: all twelve.
        looks: what the cheap attacks alone report.
        eps: l-infinity radius.
        total, right, standing: images examined, rightly classified when clean, and left by everything tried.
        required: the share that must be left for `robust`.

    Example:
        >>> decide([], [], eps=0.3, total=100, right=99, standing=0, required=0.1).name
        'not robust'
    """
    low, high = wilson_interval(standing, total)
    worst = f"{percent(standing / total)} of {total} images survive everything tried ({percent(low)} - {percent(high)})"
    failed = sorted((check for check in checks if check.outcome == "failed"), key=lambda each: -each.strength)
    against = [check for check in failed if check.key not in JUDGED_ALL_THE_SAME]
    unclear = [check for check in checks if check.outcome == "unclear"]
    deceived = [each for each in looks if each.robust(total, required) and each.false()]
    warnings = []
    if unclear:
        warnings.append("Could not tell: " + "; ".join(f"{check.question} {check.measured}" for check in unclear))
    at = f"at ε = {eps:g}"
    if deceived and against:
        most = max(deceived, key=lambda each: each.left)
        return Verdict(
            "masked",
            f"Masked {at}: the model only looks robust. {most.attack} alone leaves {percent(most.left / total)}, but {worst}; "
            + evidence(against[:2]),
            tuple(warnings),
        )
    if low >= required and not against:
        passed = [check for check in checks if check.outcome == "passed"]
        return Verdict(
            "robust",
            f"Robust {at}: {worst}, at least {percent(required)} is required; "
            f"{len(passed)} of {len(checks)} checks passed" + ("." if not passed else ": " + evidence(passed[:2])),
            tuple(warnings),
        )
    if standing / total < required:
        return Verdict(
            "not robust",
            f"Not robust {at}: {worst}, and at least {percent(required)} is required"
            + ("; " + evidence(against[:2]) if against else "; the gradient attacks find this by themselves."),
            tuple(warnings),
        )
    if against:
        warnings.insert(
            0,
            "The attacks were too weak to tell: a check failed, and still they do not get through. Take no number above for robustness.",
        )
        return Verdict(
            "inconclusive",
            f"Inconclusive {at}: {worst}, but the attacks cannot be trusted here; " + evidence(against[:2]),
            tuple(warnings),
        )
    return Verdict(
        "inconclusive",
        f"Inconclusive {at}: {worst}; that is too few images to say whether {percent(required)} are reached.",
        tuple(warnings),
    )


def evidence(checks: Sequence[Check]) -> str:
    """What was measured, as the end of a sentence."""
    return " ".join(check.measured for check in checks)
