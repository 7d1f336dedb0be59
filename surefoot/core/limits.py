"""Numbers that are numbers, and bounds on whole ones, beyond which lies a slip that would cost time without end."""

import math
from numbers import Integral
from typing import Any

MOST = {
    "seed": 2**32 - 1,  # the seeds that training derives from it stay within torch's 64 bits
    "epochs": 1_000_000,
    "image_size": 4096,
    "threads": 1024,  # OpenMP dies of far too many
    "devices": 4096,
    "workers": 1024,
    "seeds": 1000,
}


def check_number(name: str, value: Any, *, example: str = "0.5") -> None:
    """Refuse what is not one number, as a text, so that a field's own bounds may be asked of it.

    True is none; nor is a tensor of a dimension, or one that asks for a gradient, which results would carry on.

    Raises:
        TypeError: with an example of one.

    Example:
        >>> check_number("lam", "1.0")
        Traceback (most recent call last):
        ...
        TypeError: lam is '1.0'; it must be a number, for example 0.5.
    """
    cause: Exception | None = None
    if not (isinstance(value, bool) or getattr(value, "ndim", 0) > 0 or getattr(value, "requires_grad", False)):
        try:
            math.isfinite(value)
            return
        except (TypeError, ValueError, RuntimeError) as error:
            cause = error
    raise TypeError(f"{name} is {value!r}; it must be a number, for example {example}.") from cause


def plain_number(value: Any) -> Any:
    """Python's own number in place of NumPy's or a tensor of one, which JSON does not know; anything else as it is.

    >>> import torch
    >>> plain_number(torch.tensor(2)), plain_number("2")
    (2, '2')
    """
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def as_number(value: Any) -> Any:
    """For `json.dumps`: what it does not know, where that is a number.

    Raises:
        TypeError: it is none.
    """
    plain = plain_number(value)
    if plain is value:
        raise TypeError(f"an object of type {type(value).__name__} is no JSON")
    return plain


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False, as the text "no", which counts as true.

    Raises:
        TypeError: with the two.

    Example:
        >>> check_flag("random_start", "no")
        Traceback (most recent call last):
        ...
        TypeError: random_start is 'no'; it must be True or False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be True or False.")


def check_above_zero(name: str, value: Any, *, example: str, otherwise: str = "") -> None:
    """Refuse what is not a finite number above 0; `otherwise` names what is taken beside one.

    Raises:
        TypeError: no number.
        ValueError: one out of range.

    Example:
        >>> check_above_zero("learning_rate", 0.0, example="0.01")
        Traceback (most recent call last):
        ...
        ValueError: learning_rate is 0.0; it must be a finite number above 0.
    """
    check_number(name, value, example=example)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a finite number above 0{otherwise}.")


def check_not_negative(name: str, value: Any, *, example: str = "1.0") -> None:
    """Refuse what is not a finite number of at least 0.

    Raises:
        TypeError: no number.
        ValueError: one out of range.
    """
    check_number(name, value, example=example)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a finite number of at least 0.")


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        ValueError: with the bound.

    Example:
        >>> check_count("steps", 2.5)
        Traceback (most recent call last):
        ...
        ValueError: steps is 2.5; it must be a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


def check_whole(name: str, value: Any, *, least: int = 1, what: str | None = None) -> None:
    """Refuse what `check_count` refuses, and what is above the number that `MOST` has for its name.

    Args:
        name: a key of `MOST`.
        value: what was given.
        least: the smallest that makes sense.
        what: what a person knows it as; None is `name`.

    Raises:
        ValueError: with the bound.

    Example:
        >>> check_whole("threads", 10_000, what="--threads")
        Traceback (most recent call last):
        ...
        ValueError: --threads is 10000; it must be at most 1024.
    """
    check_count(what or name, value, least=least)
    if value > MOST[name]:
        raise ValueError(f"{what or name} is {value}; it must be at most {MOST[name]}.")
