"""What an attack is called, its settings and its radius, and the same attack with others."""

import dataclasses
from typing import Any

from surefoot.core.types import Attack, CompoundAttack

SCREENING_STEPS = 5
"""Steps of the screening that comes before an attack of at least four times as many."""


def fields_of(attack: Any) -> dict[str, Any]:
    """An attack's settings as JSON values; a loss that is a function becomes its name, what JSON lacks its `repr`."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {"name": type(value).__name__, **fields_of(value)}
        if callable(value):
            return getattr(value, "__name__", repr(value))
        if hasattr(value, "tolist"):  # NumPy's and torch's numbers
            return value.tolist()
        if isinstance(value, tuple | list):
            return [plain(part) for part in value]
        if isinstance(value, dict):
            return {str(key): plain(part) for key, part in value.items()}
        return value if value is None or isinstance(value, str | int | float) else repr(value)

    if not dataclasses.is_dataclass(attack):
        return {}
    return {field.name: plain(getattr(attack, field.name)) for field in dataclasses.fields(attack)}


def name_of(attack: object) -> str:
    """An attack's class, or the name of the function that it is."""
    return str(getattr(attack, "__name__", type(attack).__name__))


def radius_of(attack: object) -> float | None:
    """An attack's own `eps`, where it has one that is a number: Python's, NumPy's or a tensor of one.

    Of several in one the largest; None where one of them has none.
    """
    if isinstance(attack, CompoundAttack):
        radii = [radius_of(part) for part in attack.attacks]
        known = [each for each in radii if each is not None]
        return max(known, default=None) if len(known) == len(radii) else None
    eps: Any = getattr(attack, "eps", None)
    try:
        return float(eps.item() if hasattr(eps, "item") else eps)
    except (TypeError, ValueError, RuntimeError):
        return None


def parts_of(attack: Attack) -> list[Attack]:
    """The attacks that one is made of, those of a part that is made of several itself too; else the attack alone.

    >>> from surefoot.attacks import FGSM, WorstCase
    >>> [part.eps for part in parts_of(WorstCase((FGSM(0.1), WorstCase((FGSM(0.2), FGSM(0.3))))))]
    [0.1, 0.2, 0.3]
    """
    if not isinstance(attack, CompoundAttack):
        return [attack]
    return [part for each in attack.attacks for part in parts_of(each)]


def with_stop(attack: Attack, when_fooled: bool) -> Attack:
    """The same attack that lets go of a sample once it is fooled, or never does, where it has the choice."""
    settings: Any = attack
    names = {field.name for field in dataclasses.fields(settings)} if dataclasses.is_dataclass(settings) else set()
    if "attacks" in names and isinstance(attack, CompoundAttack):
        settings = dataclasses.replace(
            settings, attacks=tuple(with_stop(part, when_fooled) for part in parts_of(attack))
        )
    elif "stop_when_fooled" in names:
        settings = dataclasses.replace(settings, stop_when_fooled=when_fooled)
    return settings  # type: ignore[no-any-return]


def screening_of(attack: Attack) -> Attack | None:
    """The same attack in a few long steps, once; None where it has too few steps for that to pay, or no ball.

    None too where the attack's own steps add up to less than the long ones: it is not to be taken for a stronger one.
    And where it is to be run as it is (`float32_only`), as APGD, which chooses a step's size by how many are left.
    """
    settings: Any = attack
    if getattr(settings, "float32_only", False):
        return None
    eps, steps = getattr(settings, "eps", 0), getattr(settings, "steps", 0)
    if not (getattr(settings, "stop_when_fooled", False) and eps and steps >= 4 * SCREENING_STEPS):
        return None
    changes: dict[str, Any] = {"steps": SCREENING_STEPS}
    if hasattr(settings, "step_size"):
        changes["step_size"] = min(1.0, 2 * eps / SCREENING_STEPS)
        if steps * settings.step_size < SCREENING_STEPS * changes["step_size"] - 1e-9:
            return None
    if hasattr(settings, "restarts"):
        changes["restarts"] = 1
    screening: Any = dataclasses.replace(settings, **changes)
    return screening  # type: ignore[no-any-return]
