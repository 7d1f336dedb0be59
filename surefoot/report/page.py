"""One self-contained HTML page of audits: no network, everything inside, and the numbers behind each picture."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from surefoot.audit import Audit, Check, Curve, Picture, Surface
from surefoot.audit.record import VerdictName
from surefoot.core.files import write_text
from surefoot.report.pictures import amplification, array, difference, png
from surefoot.report.plots import (
    AXES,
    Plot,
    finite,
    line_styles,
    number,
    radius,
    share,
    surface_choice,
    surface_in_words,
    table_of_surfaces,
    thinned,
)

LARGEST = 8_000_000  # bytes of a page
COMPARED = ("accuracy-eps", "loss-eps", "accuracy-steps", "logit-distance")
"""The plots in which several models are drawn over one another."""
IMAGES = ("clean", "adversarial", "difference")
SMALL = 100  # pixels: enlarged without smoothing


def write_page(audits: Sequence[Audit], path: str | Path) -> None:
    """Write the page of these audits, atomically.

    It loads nothing and is below 8 MB: where surfaces and pictures are too many, the last ones are left out, and the
    page says so.

    Args:
        audits: one or several, in the order in which they are shown.
        path: the HTML file.

    Raises:
        ValueError: there is no audit, a picture's pixels are none, or `path` is a file that is no page.
        TypeError: a single audit, outside of a list.

    Example:
        >>> write_page([], Path("audit.html"))
        Traceback (most recent call last):
        ...
        ValueError: a page shows at least one audit; none was given.
    """
    if isinstance(audits, Audit):
        raise TypeError("audits is a single one; give a list of them, as [audit].")
    check_page(Path(path))
    write_text(Path(path), page(audits))


def check_page(page: Path) -> None:
    """Refuse a place whose file would be lost.

    Raises:
        ValueError: there is a file that is no page.
    """
    if page.exists():
        with open(page, "rb") as file:
            start = file.read(15).lower()
        if start and start != b"<!doctype html>":
            raise ValueError(f"{page} is a file that is no page, and would be lost; give another place.")


def page(audits: Sequence[Audit]) -> str:
    """The page of these audits as text, in UTF-8 at most `LARGEST` bytes if what is not pictures leaves room."""
    if not audits:
        raise ValueError("a page shows at least one audit; none was given.")
    names = short_names([audit.model for audit in audits])
    models = [
        Model.of(audit, f"model-{place}", name)
        for place, (audit, name) in enumerate(zip(audits, names, strict=True), 1)
    ]
    bare = render([replace(model, surfaces=[], pictures=[]) for model in models])
    return render(fitting(models, LARGEST - len(bare.encode(errors="backslashreplace"))))


@dataclass(frozen=True, kw_only=True)
class Model:
    """One audit, as its part of the page shows it."""

    key: str
    """Begins the ids of its elements."""
    name: str
    """Short, for legends and heads of columns."""
    audit: Audit
    plots: list[Plot]
    surfaces: list[Surface]
    pictures: list[dict[str, Any]]
    left_out: int = 0
    """How many surfaces and pictures the page had no room for."""

    @staticmethod
    def of(audit: Audit, key: str, name: str) -> "Model":
        """The whole of it."""
        lines = {plot: [thinned(curve) for curve in audit.curves if curve.plot == plot and curve.x] for plot in AXES}
        return Model(
            key=key,
            name=name,
            audit=audit,
            plots=[Plot(key=plot, choices={"": curves}) for plot, curves in lines.items() if curves],
            surfaces=[surface for surface in audit.surfaces if finite(surface)],
            pictures=[picture_view(picture, amplification(audit.eps)) for picture in audit.pictures],
        )

    @property
    def amplification(self) -> float:
        return amplification(self.audit.eps)

    def count(self, outcome: str) -> int:
        """How many checks ended so."""
        return sum(check.outcome == outcome for check in self.audit.checks)


def fitting(models: Sequence[Model], room: int) -> list[Model]:
    """The models with as many surfaces and pictures, in turns, as go into `room` bytes."""
    turns: list[tuple[int, int, str, int]] = []  # its place, its model, what it is, its size
    for owner, model in enumerate(models):
        for place, surface in enumerate(model.surfaces):
            turns.append((place, owner, "surfaces", 2_000 + len(embedded_json(surface_choice(surface)))))
        for place, picture in enumerate(model.pictures):
            turns.append((place, owner, "pictures", 2_000 + sum(len(picture[name]) for name in IMAGES)))
    kept = {(owner, what): 0 for owner in range(len(models)) for what in ("surfaces", "pictures")}
    for _, owner, what, size in sorted(turns):
        room -= size
        if room < 0:
            break
        kept[owner, what] += 1
    return [
        replace(
            model,
            surfaces=model.surfaces[: kept[owner, "surfaces"]],
            pictures=model.pictures[: kept[owner, "pictures"]],
            left_out=len(model.surfaces) + len(model.pictures) - kept[owner, "surfaces"] - kept[owner, "pictures"],
        )
        for owner, model in enumerate(models)
    ]


@cache
def template(name: str) -> Template:
    """A page's, in which what is not marked as HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("surefoot.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "number": number, "radius": radius, "ranges": ranges, "bound": bound}
    return environment.get_template(name)


def render(models: Sequence[Model]) -> str:
    """The page of these models."""
    figures: dict[str, Any] = {}
    compared = comparison(models) if len(models) > 1 else []
    for prefix, plots in [("compared", compared), *((model.key, model.plots) for model in models)]:
        styles = line_styles(plots)
        figures |= {f"{prefix}-{plot.key}": plot.figure(styles[plot.key]) for plot in plots}
    for model in models:
        if model.surfaces:
            choices = [surface_choice(surface) for surface in model.surfaces]
            figures[f"{model.key}-surface"] = {"kind": "surface", "choices": choices}
            figures[f"{model.key}-map"] = {
                "kind": "maps",
                "choices": [[[f"{model.key}-surface", place, ""]] for place in range(len(choices))],
            }
    shared = shared_surfaces(models) if len(models) > 1 else []
    if shared:
        figures["compared-map"] = {"kind": "maps", "choices": [parts for _, parts in shared]}
    return document(
        "page.html",
        figures,
        brand="surefoot audit",
        title=title([model.audit for model in models]),
        models=models,
        compared=compared,
        shared=[surface for surface, _ in shared],
        questions=questions(models),
        surface_words=surface_in_words,
        surface_table=table_of_surfaces,
    )


def document(name: str, figures: Mapping[str, Any], **values: Any) -> str:
    """A whole page that loads nothing.

    Args:
        name: of a template that extends `base.html`.
        figures: what page.js draws, by the id of the element in which it draws.
        values: `brand`, `title` and what else the template shows.
    """
    folder = files("surefoot.report") / "template"
    style, script = ((folder / each).read_text(encoding="utf-8") for each in ("page.css", "page.js"))
    plotly = get_plotlyjs()
    return template(name).render(
        policy=policy([plotly, script]),
        style=Markup(style),
        plotly=Markup(plotly),
        script=Markup(script),
        data=embedded_json(figures),
        **values,
    )


def policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy under which these scripts run, no other does, and nothing is loaded."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in.

    Example:
        >>> print(embedded_json(["</script>"]))
        ["\\u003c/script>"]
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def title(audits: Sequence[Audit]) -> str:
    """What stands above everything: the model and its verdict, or how many are what."""
    if len(audits) == 1:
        return f"{audits[0].model}: {audits[0].verdict}"
    verdicts = [audit.verdict for audit in audits]
    return f"{len(audits)} models: " + ", ".join(
        f"{verdicts.count(verdict)} {verdict}".replace(" ", "\N{NO-BREAK SPACE}")
        for verdict in get_args(VerdictName)
        if verdict in verdicts
    )


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the folders that all share; numbered where two are alike.

    Example:
        >>> short_names(["runs/demo/normal/0", "runs/demo/sat-r2/0"])
        ['normal', 'sat-r2']
        >>> short_names(["a", "a"])
        ['a (1)', 'a (2)']
    """
    parts = [name.split("/") for name in names]
    if len(set(names)) > 1:
        for end in (0, -1):
            while len({part[end] for part in parts}) == 1 and min(map(len, parts)) > 1:
                for part in parts:
                    del part[end]
    short = ["/".join(part) for part in parts]
    return [
        f"{name} ({short[: place + 1].count(name)})" if short.count(name) > 1 else name
        for place, name in enumerate(short)
    ]


def bound(sentence: str) -> str:
    """A sentence in which no line breaks between a number and its percent sign."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def ranges(samples: Sequence[int]) -> str:
    """Numbers, with runs drawn together.

    Example:
        >>> ranges([0, 1, 2, 5, 7, 8])
        '0–2, 5, 7–8'
    """
    runs: list[list[int]] = []
    for sample in sorted(set(samples)):
        if runs and sample == runs[-1][1] + 1:
            runs[-1][1] = sample
        else:
            runs.append([sample, sample])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def comparison(models: Sequence[Model]) -> list[Plot]:
    """The plots in which each line is a model; the reader picks the attack."""
    plots = []
    for key in COMPARED:
        choices: dict[str, list[Curve]] = {}
        for model in models:
            for curve in (curve for plot in model.plots if plot.key == key for curve in plot.choices[""]):
                choices.setdefault(curve.name, []).append(replace(curve, name=model.name))
        if choices:
            plots.append(Plot(key=key, choices=choices))
    return plots


def shared_surfaces(models: Sequence[Model]) -> list[tuple[Surface, list[list[Any]]]]:
    """Images that several models have a surface of, and where the script finds each: figure, choice, model's name."""
    found: dict[tuple[object, ...], tuple[Surface, list[list[Any]]]] = {}
    for model in models:
        for place, surface in enumerate(model.surfaces):
            image = (model.audit.dataset, model.audit.split, surface.sample, surface.label)
            parts = found.setdefault(image, (surface, []))[1]
            parts.append([f"{model.key}-surface", place, model.name])
    return [(surface, parts) for surface, parts in found.values() if len(parts) > 1]


def questions(models: Sequence[Model]) -> list[tuple[str, list[Check | None]]]:
    """Every check's question, and what each model answered."""
    asked = {check.key: check.question for model in models for check in model.audit.checks}
    answers = [{check.key: check for check in model.audit.checks} for model in models]
    return [(question, [answer.get(key) for answer in answers]) for key, question in asked.items()]


def picture_view(picture: Picture, factor: float) -> dict[str, Any]:
    """A picture and its three images."""
    clean, adversarial = array(picture.clean), array(picture.adversarial)
    if clean.shape != adversarial.shape:
        raise ValueError(f"image {picture.sample} is of shape {clean.shape}, but after its attack {adversarial.shape}.")
    images = (clean, adversarial, difference(clean, adversarial, factor))
    return {"picture": picture, "small": max(clean.shape) < SMALL, **dict(zip(IMAGES, map(png, images), strict=True))}
