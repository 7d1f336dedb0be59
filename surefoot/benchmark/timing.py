"""Contestants timed in turns, so that whatever else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from surefoot.core.limits import check_count

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Clock = Callable[[], float]
"""Seconds from some fixed moment on."""


@dataclass(frozen=True)
class Timing(Generic[T]):
    """What one contestant's turns took, in seconds, what the last one returned, and why there are not more.

    Example:
        >>> Timing((3.0, 1.0, 2.0), result=None).median
        2.0
    """

    seconds: tuple[float, ...]
    result: T | None
    error: str | None = None

    @property
    def median(self) -> float | None:
        """The median turn; None for a contestant that failed."""
        return None if self.error is not None else statistics.median(self.seconds)


def race(
    contestants: Mapping[K, Callable[[], Callable[[], T]]],
    rounds: int,
    *,
    clock: Clock = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
    on_turn: Callable[[K, int, int], None] = lambda contestant, done, total: None,
) -> dict[K, Timing[T]]:
    """Time contestants round by round, each once a round and in the order given.

    First each gets ready, which is not timed: it imports, wraps and warms up, and returns the turn that is
    timed `rounds` times from then on. One that fails is out of the race and the others go on.

    Args:
        contestants: a name each, and what gets it ready.
        rounds: timed turns of each contestant, at least 1.
        clock: read just before and just after a turn.
        synchronise: waits until the device is idle; called before the clock is read.
        on_turn: told the contestant, the turns done and the turns in all, a warm-up counted as one.

    Returns:
        A `Timing` for each contestant, in order.

    Raises:
        ValueError: `rounds` is below 1.

    Example:
        >>> ticks = iter(range(100))
        >>> race({"a": lambda: lambda: "done"}, rounds=3, clock=lambda: float(next(ticks)))
        {'a': Timing(seconds=(1.0, 1.0, 1.0), result='done', error=None)}
    """
    check_count("rounds", rounds)
    turns: dict[K, Callable[[], T]] = {}
    seconds: dict[K, list[float]] = {name: [] for name in contestants}
    results: dict[K, T] = {}
    errors: dict[K, str] = {}
    done, total = 0, len(contestants) * (rounds + 1)
    for number in range(rounds + 1):
        for name, get_ready in contestants.items():
            if name not in errors:
                try:
                    if number == 0:
                        turns[name] = get_ready()
                    else:
                        synchronise()
                        started = clock()
                        results[name] = turns[name]()
                        synchronise()
                        seconds[name].append(clock() - started)
                except Exception as error:  # whatever a library raises, the others are still measured
                    errors[name] = " ".join(f"{type(error).__name__}: {error}".split())
            done += 1
            on_turn(name, done, total)
    return {name: Timing(tuple(seconds[name]), results.get(name), errors.get(name)) for name in contestants}
