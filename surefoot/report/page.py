"""One self-contained HTML page of audits: no network, everything inside, and the numbers behind each picture."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from surefoot.audit import Audit, Check, Picture
from surefoot.core.files import write_text
from surefoot.report.pictures import amplification, array, difference, png
from surefoot.report.plots import (
    AXES,
    figure_of_curves,
    in_words,
    number,
    radius,
    share,
    surface_choice,
    surface_in_words,
    table_of_curves,
)

LARGEST = 8_000_000  # bytes of a page
VERDICT_ORDER = ("robust", "not robust", "masked", "inconclusive")


def write_page(audits: Sequence[Audit], path: Path) -> None:
    """Write the page of these audits, atomically.

    Args:
        audits: one or several, in the order in which they are shown.
        path: the HTML file.

    Raises:
        ValueError: there is none, or a picture has no pixels.

    Example:
        >>> write_page([], Path("audit.html"))
        Traceback (most recent call last):
        ...
        ValueError: a page shows at least one audit; none was given.
    """
    write_text(path, page(audits))


def page(audits: Sequence[Audit]) -> str:
    """The page of these audits, as text."""
    if not audits:
        raise ValueError("a page shows at least one audit; none was given.")
    environment = Environment(
        loader=PackageLoader("surefoot.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "number": number, "radius": radius, "ranges": ranges}
    folder = files("surefoot.report") / "template"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    plotly = get_plotlyjs()
    figures: dict[str, Any] = {}
    models = [model_view(audit, f"model-{place}", figures) for place, audit in enumerate(audits, start=1)]
    return environment.get_template("page.html").render(
        models=models,
        plotly=Markup(plotly),
        style=Markup(style),
        script=Markup(script),
        data=embedded_json(figures),
        policy=policy([plotly, script]),
        title=title(audits),
    )


def policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy under which these scripts run, no other, and nothing is loaded."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def title(audits: Sequence[Audit]) -> str:
    """What stands above everything: the model and its verdict, or how many are what."""
    if len(audits) == 1:
        return f"{audits[0].model}: {audits[0].verdict}"
    verdicts = [audit.verdict for audit in audits]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICT_ORDER if verdict in verdicts]
    return f"{len(audits)} models: {', '.join(counts)}"


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


def model_view(audit: Audit, key: str, figures: dict[str, Any]) -> dict[str, Any]:
    """What the template says of one model; its plots go into `figures`, by their element's id."""
    plots = []
    for plot, axes in AXES.items():
        curves = [curve for curve in audit.curves if curve.plot == plot and curve.x]
        if not curves:
            continue
        figures[f"{key}-{plot}"] = figure_of_curves(axes, [("", curves)])
        header, rows = table_of_curves(axes, curves)
        words = in_words(axes, curves)
        plots.append({"id": f"{key}-{plot}", "axes": axes, "words": words, "header": header, "rows": rows})
    if audit.surfaces:
        choices = [surface_choice(surface) for surface in audit.surfaces]
        figures[f"{key}-surface"] = {"kind": "surface", "choices": choices}
    return {
        "id": key,
        "audit": audit,
        "outcomes": {outcome: count(audit.checks, outcome) for outcome in ("passed", "failed", "unclear")},
        "plots": plots,
        "surfaces": [(surface, surface_in_words(surface)) for surface in audit.surfaces],
        "amplification": amplification(audit.eps),
        "pictures": [picture_view(picture, amplification(audit.eps)) for picture in audit.pictures],
    }


def count(checks: Sequence[Check], outcome: str) -> int:
    """How many checks ended so."""
    return sum(check.outcome == outcome for check in checks)


def picture_view(picture: Picture, factor: float) -> dict[str, Any]:
    """The three images of one picture."""
    clean, adversarial = array(picture.clean), array(picture.adversarial)
    return {
        "picture": picture,
        "clean": png(clean),
        "adversarial": png(adversarial),
        "difference": png(difference(clean, adversarial, factor)),
    }
