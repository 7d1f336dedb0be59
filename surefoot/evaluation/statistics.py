"""Exact tests on counts of samples."""

from scipy.special import bdtrc  # type: ignore[import-untyped]
from torch import Tensor


def binomial_tail(count: int, total: int, share: float) -> float:
    """P(X >= count) for X binomial with `total` trials of probability `share`.

    Raises:
        ValueError: counts or a share out of range.

    Example:
        >>> round(binomial_tail(9, 10, 0.5), 6)
        0.010742
    """
    if not 0 <= count <= total or not 0 <= share <= 1:
        raise ValueError(f"{count} of {total} at a share of {share} is not a count; give 0 <= count <= total.")
    return float(bdtrc(count - 1, total, share))


def sign_test(gained: int, lost: int) -> float:
    """How often chance gives `gained` or more of `gained + lost` changes that are as likely either way.

    McNemar's exact test on paired samples, one-sided.

    Example:
        >>> sign_test(5, 0)
        0.03125
    """
    return binomial_tail(gained, gained + lost, 0.5)


def right_by_chance(given: Tensor, labels: Tensor) -> float:
    """The share that is right of answers in these shares of the classes that know nothing of the images.

    An answer below 0, as of a model that gave a NaN, is right of none.

    Example:
        >>> import torch
        >>> right_by_chance(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
        0.75
        >>> right_by_chance(torch.tensor([-1, -1]), torch.tensor([0, 0]))
        0.0
    """
    classes = 1 + max(int(given.max()), int(labels.max()))
    theirs, ours = ((each + 1).bincount(minlength=classes + 1)[1:].double() / len(each) for each in (given, labels))
    return min(1.0, float((theirs * ours).sum()))
