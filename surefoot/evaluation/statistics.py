"""Exact tests on counts of samples."""

from scipy.special import bdtrc  # type: ignore[import-untyped]


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
