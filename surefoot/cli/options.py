"""How options are read: typed dataclasses through tyro, with radii written as 8/255."""

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch
import tyro
from torch import nn
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from surefoot.core.limits import check_whole

T = TypeVar("T")
REGISTRY = ConstructorRegistry()


def number(text: str) -> float:
    """A decimal number or a fraction of two.

    Example:
        >>> number("8/255") == 8 / 255
        True
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a number; write 0.3 or 8/255") from None


def numbers(texts: list[str]) -> tuple[float, ...]:
    """Likewise, one or several.

    Example:
        >>> numbers(["0.1", "1/5"])
        (0.1, 0.2)
    """
    if not texts:
        raise ValueError("no number is given; write one or several, as 0.1 8/255")
    return tuple(map(number, texts))


@REGISTRY.primitive_rule
def _float_or_fraction(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type is not float:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NUMBER",
        instance_from_str=lambda texts: number(texts[0]),
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [f"{value:g}"],
    )


@REGISTRY.primitive_rule
def _floats_or_fractions(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    # Tyro's own says of a wrong one only that it cannot be parsed.
    if info.type != tuple[float, ...]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NUMBER [NUMBER ...]",
        instance_from_str=numbers,
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(each, int | float) for each in value),
        str_from_instance=lambda value: [f"{each:g}" for each in value],
    )


@REGISTRY.primitive_rule
def _choices_or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    # Tyro's own shows the choices of what may be None in another order each time.
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if NoneType not in get_args(info.type) or len(kinds) != 1:
        return None
    several = get_origin(kinds[0]) is tuple
    literal = get_args(kinds[0])[0] if several else kinds[0]
    if get_origin(literal) is not Literal:
        return None
    names = get_args(literal)

    def read(texts: list[str]) -> Any:
        if "None" not in texts:
            return tuple(texts) if several else texts[0]
        if len(texts) > 1:
            raise ValueError("None is given beside other names; give it alone, or leave it out")
        return None

    shown = "{" + ",".join(names) + "}"
    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar="{None}|" + (f"{{[{shown} [...]]}}" if several else shown),
        instance_from_str=read,
        is_instance=lambda value: value is None or set(value if several else [value]) <= set(names),
        str_from_instance=lambda value: ["None"] if value is None else list(value) if several else [value],
        choices=(*names, "None"),
    )


@REGISTRY.primitive_rule
def _source_by_name(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    # On the command line a source model is the name of its recipe.
    if info.type != nn.Module | str:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="RECIPE",
        instance_from_str=lambda texts: texts[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


def parse(kind: type[T], args: list[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Read `args` into a dataclass; a wrong option ends the program with 2 and the nearest right ones."""
    with REGISTRY:
        return at_home(
            tyro.cli(
                kind,
                args=args,
                prog=prog,
                description=description,
                default=default if default is not None else kind(),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        )


def at_home(options: T) -> T:
    """The options with ~ at the start of a path as the user's folder: a shell leaves it in --out=~/runs."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        if isinstance(value, Path):
            found[field.name] = value.expanduser()
        elif isinstance(value, tuple) and value and all(isinstance(each, Path) for each in value):
            found[field.name] = tuple(each.expanduser() for each in value)
    return dataclasses.replace(options, **found)  # type: ignore[type-var]


def split_name(args: list[str]) -> tuple[str | None, list[str]]:
    """The leading positional argument, where there is one, and the rest."""
    return (args[0], args[1:]) if args and not args[0].startswith("-") else (None, args)


def split_names(args: list[str]) -> tuple[list[str], list[str]]:
    """The leading positional arguments and the rest."""
    count = next((index for index, arg in enumerate(args) if arg.startswith("-")), len(args))
    return args[:count], args[count:]


def unknown(what: str, given: str, known: Iterable[str], where: str) -> ValueError:
    """The error for a name that is none of `known`, with the nearest of them."""
    near = difflib.get_close_matches(given, list(dict.fromkeys(known)), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"`{where}` shows them all."
    return ValueError(f"there is no {what} {given!r}; {hint}")


@dataclasses.dataclass(frozen=True)
class Common:
    """What every verb takes."""

    json: bool = False
    """Print one JSON object a line on standard output and nothing else there."""
    threads: int | None = None
    """CPU threads; None is PyTorch's own choice, one a core."""

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_whole("threads", self.threads, what="--threads")

    def set_threads(self) -> None:
        """As many threads as were asked for."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
