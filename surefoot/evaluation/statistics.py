"""Exact tests on counts of samples."""

import math


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
    if count == 0 or share == 1:
        return 1.0
    if share == 0:
        return 0.0
    log_in, log_out = math.log(share), math.log1p(-share)
    whole = math.lgamma(total + 1)
    return min(
        1.0,
        sum(
            math.exp(whole - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * log_in + (total - k) * log_out)
            for k in range(count, total + 1)
        ),
    )


def sign_test(gained: int, lost: int) -> float:
    """How often chance gives `gained` or more of `gained + lost` changes that are as likely either way.

    McNemar's exact test on paired samples, one-sided.

    Example:
        >>> sign_test(5, 0)
        0.03125
    """
    return binomial_tail(gained, gained + lost, 0.5)
