"""What a page draws: curves and surfaces as data for its script, with the sentence and the table that say the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surefoot.audit import Curve, Surface


@dataclass(frozen=True, kw_only=True)
class Axes:
    """How a plot of curves is labelled."""

    title: str
    x: str
    y: str
    percent: bool = False
    """The y values are fractions, shown in percent from 0 to 100."""
    note: str = ""
    """How to read it."""


AXES: dict[str, Axes] = {
    "accuracy-eps": Axes(
        title="Accuracy against ε",
        x="ε",
        y="accuracy (%)",
        percent=True,
        note="An attack that may do more never does worse: the lines fall, and reach zero where ε is large.",
    ),
    "loss-eps": Axes(
        title="Loss against ε",
        x="ε",
        y="loss (nats)",
        note="The loss rises along the gradient, and one step and many agree; where they part, one step is fooled.",
    ),
    "accuracy-steps": Axes(
        title="Accuracy against steps",
        x="steps",
        y="accuracy (%)",
        percent=True,
        note="More steps stop helping once the attack has found what there is.",
    ),
    "logit-distance": Axes(
        title="Distance between logits",
        x="ε",
        y="l2 distance",
        note="Close together for a model that does not mask: one step, a random step first, and many steps agree.",
    ),
    "training": Axes(title="While it was trained", x="training step", y="value"),
}


def number(value: Any) -> str:
    """A number as a person reads it, four digits; anything else as text.

    Example:
        >>> number(0.123456), number(1200), number(True), number(None)
        ('0.1235', '1200', 'yes', '–')
    """
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(number, value))
    return str(value)


def share(fraction: float) -> str:
    """A fraction as percent with one decimal and its sign.

    Example:
        >>> share(0.5)
        '50.0 %'
    """
    return f"{100 * fraction:.1f} %"


def radius(eps: float) -> str:
    """A radius as papers write it: a fraction of 255 where it is one.

    Example:
        >>> radius(8 / 255), radius(0.3)
        ('8/255', '0.3')
    """
    levels = eps * 255
    return f"{round(levels)}/255" if round(levels) and math.isclose(levels, round(levels), rel_tol=1e-5) else f"{eps:g}"


def rounded(values: Sequence[float | None], factor: float = 1.0) -> list[float | None]:
    """Five digits, and None where there is no finite number."""
    return [None if v is None or not math.isfinite(v) else float(f"{v * factor:.5g}") for v in values]


def figure_of_curves(axes: Axes, choices: Sequence[tuple[str, Sequence[Curve]]]) -> dict[str, Any]:
    """A plot of lines; of several choices, `(name, lines)`, the reader picks one."""
    factor = 100.0 if axes.percent else 1.0
    every = [x for _, curves in choices for curve in curves for x in curve.x]
    return {
        "kind": "lines",
        "x": axes.x,
        "y": axes.y,
        "percent": axes.percent,
        "log": axes.x == "steps" and bool(every) and min(every) > 0 and max(every) > 20 * min(every),
        "choices": [
            {
                "name": name,
                "lines": [
                    {
                        "name": curve.name,
                        "x": curve.x,
                        "y": rounded(curve.y, factor),
                        "low": None if curve.low is None else rounded(curve.low, factor),
                        "high": None if curve.high is None else rounded(curve.high, factor),
                    }
                    for curve in curves
                ],
            }
            for name, curves in choices
        ],
    }


def in_words(axes: Axes, curves: Sequence[Curve]) -> str:
    """What the lines do, for who cannot see them: where each begins and ends.

    Example:
        >>> in_words(AXES["accuracy-eps"], [Curve(plot="accuracy-eps", name="PGD", x=[0, 0.3], y=[0.9, 0.1])])
        'PGD: from 90.0 % at ε 0 to 10.0 % at ε 0.3.'
    """
    told = []
    for curve in curves:
        if not curve.x:
            continue
        first, last = ((share(y) if axes.percent else number(y)) for y in (curve.y[0], curve.y[-1]))
        told.append(f"{curve.name}: from {first} at {axes.x} {curve.x[0]:g} to {last} at {axes.x} {curve.x[-1]:g}.")
    return " ".join(told)


def table_of_curves(axes: Axes, curves: Sequence[Curve]) -> tuple[list[str], list[list[str]]]:
    """The numbers behind the lines: a header, and a row for each x that a line has."""
    places = sorted({x for curve in curves for x in curve.x})
    columns = [dict(zip(curve.x, range(len(curve.x)), strict=True)) for curve in curves]

    def cell(curve: Curve, place: int | None) -> str:
        if place is None:
            return ""
        text = f"{100 * curve.y[place]:.1f}" if axes.percent else number(curve.y[place])
        if curve.low is not None and curve.high is not None:
            ends = (f"{100 * v:.1f}" if axes.percent else number(v) for v in (curve.low[place], curve.high[place]))
            text += f" ({'–'.join(ends)})"
        return text

    rows = [[f"{x:g}", *(cell(c, at.get(x)) for c, at in zip(curves, columns, strict=True))] for x in places]
    return [axes.x, *(curve.name for curve in curves)], rows


def surface_choice(surface: Surface) -> dict[str, Any]:
    """A loss surface as the page's script takes it, with the sentence beside it."""
    return {
        "name": f"image {surface.sample}: {surface.label}",
        "e1": rounded(surface.e1),
        "e2": rounded(surface.e2),
        "loss": [rounded(row) for row in surface.loss],
        "eps": surface.eps,
        "caption": surface_in_words(surface),
    }


def surface_in_words(surface: Surface) -> str:
    """What a loss surface shows, as a sentence."""
    finite = [value for row in surface.loss for value in row if math.isfinite(value)]
    taken = "rightly taken for it" if surface.prediction == surface.label else f"taken for “{surface.prediction}”"
    begin = f"Image {surface.sample}, a “{surface.label}”, unchanged {taken}."
    if not finite:
        return f"{begin} No finite loss was found around it."
    return (
        f"{begin} The loss around it lies between {number(min(finite))} and {number(max(finite))}; within "
        f"ε = {radius(surface.eps)} it leaves its tangent plane by at most {number(surface.local_linearity_error)} "
        "(local linearity error)."
    )
