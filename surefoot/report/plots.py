"""What a page draws: curves and surfaces as data for its script, with the sentence and the table that say the same."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


MOST_POINTS = 400  # of a line: more than its pixels

AXES: dict[str, Axes] = {
    "accuracy-eps": Axes(
        title="Accuracy against ε",
        x="ε",
        y="accuracy (%)",
        percent=True,
        note="Accuracy should fall as ε grows; under PGD it should reach zero where ε is large.",
    ),
    "loss-eps": Axes(
        title="Loss against ε",
        x="ε",
        y="loss (nats)",
        note="FGSM's loss should rise with ε. Compare it with PGD's: where it is much lower, gradients are masked.",
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
    "training-accuracy": Axes(
        title="Accuracy while it was trained",
        x="training step",
        y="accuracy (%)",
        percent=True,
        note="On held-out images. Where the lines part, the model learns to withstand one step alone.",
    ),
    "training-loss": Axes(title="Loss while it was trained", x="training step", y="loss (nats)"),
    "training-distance": Axes(
        title="Distance between logits while it was trained",
        x="training step",
        y="l2 distance",
        note="Fig. 1 and 2 of the paper: it jumps where gradients begin to be masked.",
    ),
    "training-agreement": Axes(
        title="Gradients while it was trained",
        x="training step",
        y="agreement: cosine; rising: share",
        note="Gradient agreement: the cosine between an image's gradient and that at a random corner near it. Rising "
        "loss: the share of images whose loss never falls along FGSM's direction.",
    ),
}


def number(value: Any) -> str:
    """A number as a person reads it, four digits; anything else as text.

    Example:
        >>> number(0.123456), number([1, 0.5]), number({"PGD": 0.5}), number(True), number(None)
        ('0.1235', '1, 0.5', 'PGD: 0.5', 'yes', '–')
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
        case dict():
            return ", ".join(f"{name}: {number(each)}" for name, each in value.items())
    return str(value)


def share(fraction: float) -> str:
    """A fraction as percent with one decimal; its sign does not break from it.

    Example:
        >>> share(0.5)
        '50.0\\xa0%'
    """
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def radius(eps: float) -> str:
    """A radius as papers write it: a fraction of 255 where it is one.

    Example:
        >>> radius(8 / 255), radius(0.3)
        ('8/255', '0.3')
    """
    levels = eps * 255
    return f"{round(levels)}/255" if round(levels) and math.isclose(levels, round(levels), rel_tol=1e-5) else f"{eps:g}"


def rounded(values: Sequence[float], factor: float = 1.0) -> list[float | None]:
    """Five digits, and None where there is no finite number."""
    return [float(f"{v * factor:.5g}") if math.isfinite(v) else None for v in values]


def thinned(curve: Curve) -> Curve:
    """At most `MOST_POINTS` of a long curve, evenly, its ends among them."""
    if len(curve.x) <= MOST_POINTS:
        return curve
    keep = [round(i * (len(curve.x) - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)]
    return replace(
        curve,
        x=[curve.x[i] for i in keep],
        y=[curve.y[i] for i in keep],
        low=curve.low and [curve.low[i] for i in keep],
        high=curve.high and [curve.high[i] for i in keep],
    )


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Lines in one picture. Of several choices the reader picks one."""

    key: str
    """Of `AXES`."""
    choices: dict[str, list[Curve]]
    """The lines of each choice; a single one needs no name."""

    @property
    def axes(self) -> Axes:
        return AXES[self.key]

    def figure(self, styles: dict[str, int]) -> dict[str, Any]:
        """What the page's script draws; `styles` numbers the look of each line by its name."""
        factor = 100.0 if self.axes.percent else 1.0
        every = [x for curves in self.choices.values() for curve in curves for x in curve.x]
        return {
            "kind": "lines",
            "x": self.axes.x,
            "y": self.axes.y,
            "percent": self.axes.percent,
            "log": self.key == "accuracy-steps" and min(every) > 0,
            "choices": [
                {
                    "words": in_words(self.axes, curves),
                    "lines": [
                        {
                            "name": curve.name,
                            "style": styles[curve.name],
                            "x": rounded(curve.x),
                            "y": rounded(curve.y, factor),
                            "low": curve.low and rounded(curve.low, factor),
                            "high": curve.high and rounded(curve.high, factor),
                        }
                        for curve in curves
                    ],
                }
                for curves in self.choices.values()
            ],
        }

    def words(self) -> str:
        """What its first choice shows."""
        return in_words(self.axes, next(iter(self.choices.values())))

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """The numbers behind the lines of each choice: its name, a header, a row for each x."""
        return [(name, *table_of_curves(self.axes, curves)) for name, curves in self.choices.items()]


def in_words(axes: Axes, curves: Sequence[Curve]) -> str:
    """What the lines do, for those who cannot see them: where each begins and ends.

    Example:
        >>> in_words(AXES["loss-eps"], [Curve(plot="loss-eps", name="PGD", x=[0, 0.3], y=[0.9, 4.1])])
        'PGD: from 0.9 at ε 0 to 4.1 at ε 0.3.'
    """

    def end(curve: Curve, place: int) -> str:
        value = share(curve.y[place]) if axes.percent else number(curve.y[place])
        return f"{value} at {axes.x} {curve.x[place]:g}"

    return " ".join(
        f"{curve.name}: {end(curve, 0)}."
        if len(curve.x) == 1
        else f"{curve.name}: from {end(curve, 0)} to {end(curve, -1)}."
        for curve in curves
    )


def table_of_curves(axes: Axes, curves: Sequence[Curve]) -> tuple[list[str], list[list[str]]]:
    """A header, and a row for each x that a line has; intervals in brackets.

    Example:
        >>> table_of_curves(AXES["loss-eps"], [Curve(plot="loss-eps", name="PGD", x=[0, 0.3], y=[0.9, 4.1])])
        (['ε', 'PGD'], [['0', '0.9'], ['0.3', '4.1']])
    """

    def text(value: float) -> str:
        return f"{100 * value:.1f}" if axes.percent else number(value)

    def cells(curve: Curve) -> dict[float, str]:
        ends = [""] * len(curve.x)
        if curve.low and curve.high:
            ends = [f" ({text(low)}–{text(high)})" for low, high in zip(curve.low, curve.high, strict=True)]
        return {x: text(y) + end for x, y, end in zip(curve.x, curve.y, ends, strict=True)}

    columns = [cells(curve) for curve in curves]
    places = sorted(set().union(*columns))
    return [axes.x, *(curve.name for curve in curves)], [
        [f"{x:g}", *(column.get(x, "") for column in columns)] for x in places
    ]


def line_styles(plots: Sequence[Plot]) -> dict[str, dict[str, int]]:
    """For each plot the looks of its lines by name; a line keeps its look from plot to plot where it can."""
    known: dict[str, int] = {}
    styles = {}
    for plot in plots:
        names = dict.fromkeys(curve.name for curves in plot.choices.values() for curve in curves)
        looks: dict[str, int] = {}
        for name in names:
            if name in known and known[name] not in looks.values():
                looks[name] = known[name]
        for name in names:
            if name not in looks:
                looks[name] = next(look for look in itertools.count() if look not in looks.values())
        styles[plot.key] = looks
        known = {**looks, **known}
    return styles


def finite(surface: Surface) -> list[float]:
    """The losses that are numbers, row by row."""
    return [value for row in surface.loss for value in row if math.isfinite(value)]


def loss_at(surface: Surface, e1: float, e2: float) -> float:
    """The loss at the grid's point nearest to (e1, e2)."""
    row = min(range(len(surface.e2)), key=lambda i: abs(surface.e2[i] - e2))
    column = min(range(len(surface.e1)), key=lambda j: abs(surface.e1[j] - e1))
    return surface.loss[row][column]


def surface_choice(surface: Surface) -> dict[str, Any]:
    """A loss surface as the page's script takes it, with the sentence that says the same."""
    return {
        "sample": surface.sample,
        "e1": rounded(surface.e1),
        "e2": rounded(surface.e2),
        "loss": [rounded(row) for row in surface.loss],
        "eps": surface.eps,
        "words": surface_in_words(surface),
    }


def surface_in_words(surface: Surface) -> str:
    """What a loss surface shows, as sentences."""
    values = finite(surface)
    known = surface.prediction == surface.label
    said = "and the model says so" if known else f"but the model says “{surface.prediction}”"
    return (
        f"Image {surface.sample} is a “{surface.label}”, {said}. The loss is "
        f"{loss_at(surface, 0, 0):z.3f} at the image and {loss_at(surface, surface.eps, 0):z.3f} after a step of "
        f"ε = {radius(surface.eps)} along its gradient; on the whole surface it lies between {min(values):z.3f} and "
        f"{max(values):z.3f}. Within ε it leaves its tangent plane by at most {surface.local_linearity_error:.3f} "
        "(local linearity error)."
    )


def table_of_surfaces(surfaces: Sequence[Surface]) -> tuple[list[str], list[list[str]]]:
    """A row a surface: the loss where it tells most."""
    header = [
        "image",
        "label",
        "taken for",
        "loss at the image",
        "at ε along the gradient",
        "at ε along the noise",
        "lowest",
        "highest",
        "local linearity error",
    ]
    rows = []
    for surface in surfaces:
        values = finite(surface)
        losses = [
            loss_at(surface, 0, 0),
            loss_at(surface, surface.eps, 0),
            loss_at(surface, 0, surface.eps),
            min(values),
            max(values),
            surface.local_linearity_error,
        ]
        rows.append([str(surface.sample), surface.label, surface.prediction, *(f"{value:.3f}" for value in losses)])
    return header, rows
