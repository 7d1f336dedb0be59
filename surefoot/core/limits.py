"""Bounds on whole numbers: what lies beyond is a slip of the keyboard, and would cost memory or time without end."""

MOST = {
    "seed": 2**32 - 1,  # the seeds that training derives from it stay within torch's 64 bits
    "epochs": 1_000_000,
    "image_size": 4096,
    "threads": 1024,  # OpenMP dies of far too many
    "devices": 4096,
    "workers": 1024,
    "seeds": 1000,
}


def check_whole(name: str, value: int, *, least: int = 1, what: str | None = None) -> None:
    """Refuse a whole number below `least` or above what `MOST` has for its name.

    Args:
        name: a key of `MOST`.
        value: what was given.
        least: the smallest that makes sense.
        what: what a person knows it as; None is `name`.

    Raises:
        ValueError: with the bound.

    Example:
        >>> check_whole("threads", 0, what="--threads")
        Traceback (most recent call last):
        ...
        ValueError: --threads is 0; it must be at least 1.
    """
    if value < least:
        raise ValueError(f"{what or name} is {value}; it must be at least {least}.")
    if value > MOST[name]:
        raise ValueError(f"{what or name} is {value}; it must be at most {MOST[name]}.")
