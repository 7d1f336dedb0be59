"""What a user calls has an example in its docstring; doctests run them."""

from __future__ import annotations

import importlib
import inspect

import pytest
from torch import nn

ROOMS = (
    "attacks",
    "audit",
    "benchmark",
    "data",
    "evaluation",
    "models",
    "objectives",
    "recipes",
    "report",
    "training",
)


def is_called(thing: object) -> bool:
    """Is it a function, or a class whose objects do something when they are called? A protocol is neither."""
    if not inspect.isclass(thing):
        return inspect.isfunction(thing)
    if getattr(thing, "_is_protocol", False):
        return False
    return issubclass(thing, nn.Module) or "__call__" in vars(thing)


def without_example(things: dict[str, object]) -> list[str]:
    return [name for name, thing in things.items() if is_called(thing) and ">>>" not in (inspect.getdoc(thing) or "")]


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_called_has_an_example(room: str) -> None:
    module = importlib.import_module(f"surefoot.{room}")
    assert without_example({name: getattr(module, name) for name in module.__all__}) == []


def test_a_missing_example_is_found() -> None:
    class Attack:
        """Does something."""

        def __call__(self) -> None: ...

    class Result:
        """Is no more than its fields."""

    def shown() -> None:
        """
        >>> shown()
        """

    things: dict[str, object] = {
        "Attack": Attack,
        "Result": Result,
        "shown": shown,
        "hidden": is_called,
        "ROOMS": ROOMS,
    }
    assert without_example(things) == ["Attack", "hidden"]
