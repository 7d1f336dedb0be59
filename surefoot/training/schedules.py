"""Learning rates as pure functions of the progress, so that resuming needs no scheduler state."""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""Maps progress in [0, 1) through the run to a factor of the base learning rate in (0, 1]."""


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def steps(progress: float) -> float:
    """The schedule of the paper's authors' code: 1, then 1/5, 1/25 and 1/125 from each further quarter of the run.

    Example:
        >>> [steps(p) for p in (0.0, 0.25, 0.5, 0.75)]
        [1.0, 0.2, 0.04, 0.008]
    """
    return float(5.0 ** -math.floor(4 * progress + 1e-9))


def one_cycle(progress: float) -> float:
    """OneCycle: a cosine from 1/25 up to 1 over the first 30 %, then a cosine down to 1/250,000.

    Source:
        Smith and Topin, "Super-Convergence", 2018, in the shape of PyTorch's OneCycleLR (momentum is not cycled).

    Example:
        >>> one_cycle(0.3)
        1.0
    """
    low, high, final, peak_at = 1 / 25, 1.0, 1 / 250_000, 0.3
    if progress <= peak_at:
        start, end, part = low, high, progress / peak_at
    else:
        start, end, part = high, final, (progress - peak_at) / (1 - peak_at)
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


SCHEDULES: dict[str, Schedule] = {"constant": constant, "steps": steps, "one-cycle": one_cycle}
