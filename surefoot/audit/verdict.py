"""The verdict: what the numbers and the checks amount to, in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.audit.error_rate import CHECK_ERROR
from surefoot.audit.record import Check, VerdictName
from surefoot.evaluation.records import wilson_interval
from surefoot.evaluation.statistics import binomial_tail

LOOKS_ROBUST = 0.5
"""Share of the rightly classified images that an attack must leave for the model to look robust under it."""

MOSTLY_LOST = 0.5
"""Share of those that must then be lost to other attacks for the looks to be false."""

MISSED_BY_ONE_STEP, MISSED_BY_PGD = 0.8, 0.4
"""Share of what FGSM, and of what plain PGD left that others may take of a model that is to be called robust.

One step is weak by itself; plain PGD misses two fifths only where the gradient leads it astray.
"""

TELLING = (
    "nothing-saturates",
    "gradient-beats-search",
    "white-box-beats-black-box",
    "gradients-exist",
    "loss-rises",
    "iterative-beats-single-step",
    "large-eps-reaches-zero",
)
"""Which checks are named first among those that failed equally far: demonstrations before signs."""

STRONGER = ("nothing-saturates", "steps-saturate", "white-box-beats-black-box")
"""Checks of what stronger attacks fool of what weak ones leave."""

JUDGED_ALL_THE_SAME = ("answers-repeat",)
"""Checks that do not stand against `robust`: a model that answers randomly is judged by its mean answer."""


@dataclass(frozen=True)
class Looks:
    """What one cheap attack alone would report: of `right` images it leaves `left`, of which others fool `lost`."""

    attack: str
    right: int
    left: int
    lost: int
    steps: int = 1
    """How many it takes."""

    def robust(self, total: int, required: float) -> bool:
        """Would its user take the model for robust?"""
        return self.left >= LOOKS_ROBUST * self.right and self.left / total >= required

    def told(self, total: int) -> str:
        """What it reports, in words."""
        return f"{self.attack} alone leaves {percent(self.left / total)}"

    def false(self, share: float = MOSTLY_LOST) -> bool:
        """Is clearly more than that share of what it left lost to other attacks?"""
        return binomial_tail(self.lost, self.left, share) <= CHECK_ERROR

    def limit(self) -> float:
        """The share of what it left that it may have missed."""
        return MISSED_BY_PGD if self.steps > 1 else MISSED_BY_ONE_STEP

    def doubtful(self, looked: bool) -> bool:
        """Did it miss so much that what stronger attacks leave need not be the end either?

        Where the model does not look robust under it, one step may miss all, and plain PGD half: of a robust model
        AutoAttack takes no more than that.
        """
        limit = self.limit() if looked else MOSTLY_LOST if self.steps > 1 else 1.0
        return self.lost > limit * self.left

    def astray(self) -> bool:
        """Did many steps clearly miss more than they may? That is masking, whatever the checks say."""
        return self.steps > 1 and self.false(self.limit())


LEAST_ELSEWHERE = 0.1
"""Share of the images outside any one class that must be left for `robust`, where no less is required of all."""

FEWEST = 30
"""Images below which no model is called robust."""


@dataclass(frozen=True)
class Verdict:
    """What an audit says."""

    name: VerdictName
    sentence: str
    warnings: tuple[str, ...]


def percent(share: float) -> str:
    """A share in percent with a decimal.

    >>> percent(0.123)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"


def decide(
    checks: Sequence[Check],
    looks: Sequence[Looks],
    *,
    eps: float,
    total: int,
    standing: int,
    required: float,
    right: int,
    guessed: float,
    elsewhere: tuple[int, int],
) -> Verdict:
    """Weigh the evidence.

    - masked: a cheap attack alone would have called the model robust, others fool clearly more than half of what it
      left, and a check failed that says why; or plain PGD would have, and others fool clearly more than two fifths of
      what it left.
    - robust: of at least 30 images the lower end of the worst case's 95 % interval reaches `required`, clearly more are
      right when clean than guessing gives, a tenth of the images outside any one class is left (or `required`, where
      that is less; by the interval's lower end), every check was made, none failed, but for answers that change from
      call to call, which are judged by their mean; others fool at most half of what PGD left; and where a cheap attack
      would have called it robust, at most four fifths of what FGSM left, and two fifths of what PGD left.
    - not robust: the interval's upper end does not reach it, and nothing was masked.
    - inconclusive: the rest. The model guesses, a check failed where no attack got through, weak attacks miss too much,
      checks were not made, or the images were too few.

    Args:
        checks: all twelve.
        looks: what the cheap attacks alone report.
        eps: l-infinity radius.
        total, standing: images examined, and left by everything tried.
        required: the share that must be left for `robust`.
        right: images that are right when clean.
        guessed: the share that guesses would be right on which give each class as often as the model does.
        elsewhere: of the images outside the class of which most are left, how many are left, and how many there are.

    Example:
        >>> looks = [Looks("PGD-40", 99, 0, 0)]
        >>> numbers = {"total": 100, "standing": 0, "right": 99, "guessed": 0.1, "elsewhere": (0, 90)}
        >>> decide([], looks, eps=0.3, required=0.1, **numbers).name
        'not robust'
    """
    low, high = wilson_interval(standing, total)
    worst = (
        f"{percent(standing / total)} of {total} images survive everything that was tried "
        f"(95 % interval {percent(low)} to {percent(high)})"
    )
    failed = sorted((each for each in checks if each.outcome == "failed"), key=by_strength)
    against = [each for each in failed if each.key not in JUDGED_ALL_THE_SAME]
    looked = [each for each in looks if each.robust(total, required)]
    deceived = [each for each in looked if each.astray() or (against and each.false())]
    doubtful = [each for each in looks if each.doubtful(each in looked)]
    guesses = binomial_tail(right, total, guessed) > CHECK_ERROR
    missing = [each for each in checks if each.outcome == "unclear" and not each.samples]
    others_low = wilson_interval(*elsewhere)[0] if elsewhere[1] else 0.0
    one_class = others_low < min(required, LEAST_ELSEWHERE)
    strongest = [each.told(total) for each in sorted(looks, key=lambda each: each.left)[:1]]
    warnings = told_apart(checks)
    name: VerdictName
    if deceived:
        most = max(deceived, key=lambda each: each.left)
        name, text = (
            "masked",
            f"{most.told(total)}, which looks robust, but {worst}",
        )
        pieces = [each.measured for each in [*against, *failed]][:2] or [breaks(checks)]
    elif low >= required and total >= FEWEST and not (guesses or one_class or against or missing or doubtful):
        name, text = "robust", f"{worst}, where {percent(required)} are required"
        passed = sum(each.outcome == "passed" for each in checks)
        pieces = [*strongest, f"{passed} of {len(checks)} checks passed"]
    elif high < required:
        name, text = "not robust", f"{worst}, where {percent(required)} are required"
        pieces = [each.measured for each in against[:1]]
        pieces = [*strongest, *(pieces or ["no check speaks of masking"])]
    elif guesses and total >= FEWEST:
        name = "inconclusive"
        text = (
            f"{worst}, but {percent(right / total)} are right when clean, not clearly more than the "
            f"{percent(guessed)} of guesses that give each class as often"
        )
        pieces = []
        warnings.insert(
            0,
            "This model knows no more than guessing: train it first, see whether its labels and pixels are those it is "
            "made for, or give images of more classes.",
        )
    elif one_class and low >= required and total >= FEWEST:
        name = "inconclusive"
        text = f"{worst}, but outside of one class only {elsewhere[0]} of {elsewhere[1]}"
        pieces = [*strongest, *(each.measured for each in against[:1])]
        warnings.insert(
            0,
            "Nearly all that survive are of one class, as they would by one answer for every image: look at each class "
            "by itself, or give more images of the others.",
        )
    elif against and low >= required:
        name, text = "inconclusive", f"{worst}, but the attacks cannot be trusted on this model"
        pieces = [each.measured for each in against[:2]]
        warnings.insert(0, "The attacks were too weak to tell: a check failed and still they do not get through.")
    elif doubtful and low >= required:
        name = "inconclusive"
        text = f"{doubtful[-1].told(total)}, but {worst}, and no check says why"
        pieces = [breaks(checks)]
        warnings.insert(0, "Weak attacks miss so much on this model that attacks stronger than these may take more.")
    elif missing:
        verb = "was" if len(missing) == 1 else "were"
        name, text = "inconclusive", f"{worst}, but {len(missing)} of {len(checks)} checks {verb} not made"
        pieces = [*strongest, *(each.measured for each in against[:1])]
    else:
        name, text = "inconclusive", f"{worst}, which are too few to say whether {percent(required)} are reached"
        pieces = [*strongest, *(each.measured for each in against[:1])]
        warnings.insert(0, "Too few images: give more with --num-examples.")
    told = "; ".join([text, *map(inside, dict.fromkeys(pieces))])
    return Verdict(name, f"{name.capitalize()} at ε = {eps:g}: {told}.", tuple(warnings))


def breaks(checks: Sequence[Check]) -> str:
    """What the attacks of that check did which fooled the largest share of what others left."""
    shares = [each for each in checks if each.key in STRONGER]
    best = max(shares, key=lambda each: float(each.values.get("share", 0)), default=None)
    return "no check says why" if best is None else best.measured


def by_strength(check: Check) -> tuple[float, int]:
    """The strongest first; among equals the most telling."""
    return -round(check.strength, 1), TELLING.index(check.key) if check.key in TELLING else len(TELLING)


def told_apart(checks: Sequence[Check]) -> list[str]:
    """What a reader must know of checks that could not tell."""
    whys: dict[str, list[str]] = {}
    for check in checks:
        if check.outcome == "unclear":
            whys.setdefault(check.measured, []).append(check.question)
    return [
        f"{why} Without an answer: {' '.join(questions)}"
        if len(questions) > 1
        else f"Cannot tell: {questions[0]} {why}"
        for why, questions in whys.items()
    ]


def inside(sentence: str) -> str:
    """A sentence's first part as a part of another: small where its first letter is.

    >>> inside("Of 9 images 3 are right; 6 are wrong."), inside("FGSM leaves 3.")
    ('of 9 images 3 are right', 'FGSM leaves 3')
    """
    sentence = sentence.partition(";")[0].removesuffix(".")
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]
