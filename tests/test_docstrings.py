"""What a user calls has an example in its docstring, which doctests run, and says what it takes and what it raises."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from torch import nn

import surefoot
from surefoot.attacks import ATTACKS, AutoAttack, WorstCase
from surefoot.objectives import OBJECTIVES

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


def tree_of(thing: type | object) -> ast.AST:
    """The source of a class or a function, read."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]  # type: ignore[arg-type]


def explained_fields(thing: type) -> set[str]:
    """Fields of a dataclass that have a docstring of their own."""
    body = getattr(tree_of(thing), "body", [])
    return {
        field.target.id
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
    }


def unexplained(thing: object) -> list[str]:
    """What it takes and does not tell of; one whose arguments are another's says so."""
    text = inspect.getdoc(thing) or ""
    if re.search(r"\bArgs, .* are those of\b", text):
        return []
    if dataclasses.is_dataclass(thing) and isinstance(thing, type):
        own = explained_fields(thing)
        names = [field.name for field in dataclasses.fields(thing) if field.init and field.name not in own]
    else:
        names = [name for name in inspect.signature(thing).parameters if name not in ("args", "kwargs")]  # type: ignore[arg-type]
    return [name for name in names if not re.search(rf"\b{name}\b", text)]


def refuses(thing: object) -> bool:
    """Does it raise, or check what it is given? Of a class its making and its call count."""
    tree = tree_of(thing)
    own = ("__init__", "__post_init__", "__call__")
    parts = [part for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)]
    for part in parts if isinstance(tree, ast.FunctionDef) else [part for part in parts if part.name in own]:
        for node in ast.walk(part):
            called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Raise) or called.startswith("check_"):
                return True
    return False


def without_errors(things: dict[str, object]) -> list[str]:
    return [
        name
        for name, thing in things.items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and refuses(thing)
        and not re.search(r"^Raises:|\berrors\b", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    ]


def public(room: str) -> dict[str, object]:
    module = importlib.import_module(f"surefoot.{room}")
    return {name: getattr(module, name) for name in module.__all__}


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_called_has_an_example(room: str) -> None:
    assert without_example(public(room)) == []


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_called_says_what_it_takes(room: str) -> None:
    called = {name: thing for name, thing in public(room).items() if is_called(thing)}
    assert {name: unexplained(thing) for name, thing in called.items() if unexplained(thing)} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_what_refuses_says_what_it_raises(room: str) -> None:
    assert without_errors(public(room)) == []


@pytest.mark.parametrize("kind", [*ATTACKS.values(), *OBJECTIVES.values()])
def test_attacks_and_objectives_have_an_equation_and_a_source(kind: type) -> None:
    text = inspect.getdoc(kind) or ""
    assert "Source:" in text
    of_others = issubclass(kind, AutoAttack | WorstCase)
    assert of_others or re.search(r"Eq\. \d|<-| = |sum|_\{|\) / \(", text.partition("Args:")[0])


def fields_of_several_lines(source: str) -> list[str]:
    """Fields whose docstring has a line break, which tyro shows in the middle of `--help`."""
    return [
        ast.unparse(field.target)
        for kind in ast.walk(ast.parse(source))
        if isinstance(kind, ast.ClassDef)
        for field, text in pairwise(kind.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and "\n" in str(text.value.value)
    ]


def test_what_help_says_of_a_field_is_one_line() -> None:
    package = Path(surefoot.__file__).parent
    files = [package / "training" / "fit.py", *package.glob("recipes/*.py"), *package.glob("cli/*.py")]
    assert [name for file in files for name in fields_of_several_lines(file.read_text(encoding="utf-8"))] == []
    assert fields_of_several_lines('class A:\n    x: int\n    """One\n    two."""\n    y: int\n    """One."""') == ["x"]


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


def test_a_missing_word_is_found() -> None:
    def load(path: str, size: int) -> None:
        """What is in `path`."""
        if size < 0:
            raise ValueError

    @dataclasses.dataclass(frozen=True)
    class Attack:
        """Within eps.

        Raises:
            ValueError: steps below 1.
        """

        eps: float
        steps: int
        """At least 1."""
        decay: float = 1.0

        def __post_init__(self) -> None:
            check_steps(self.steps)

    def check_steps(steps: int) -> None:
        """Refuse fewer than 1 of `steps`."""

    assert unexplained(load) == ["size"]
    assert unexplained(Attack) == ["decay"]
    assert without_errors({"load": load, "Attack": Attack, "check_steps": check_steps}) == ["load"]
