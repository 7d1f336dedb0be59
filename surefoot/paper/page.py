"""The interactive page of a reproduction: every table and figure that is there, beside the paper's, in one file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surefoot.core.files import write_text
from surefoot.paper.beside import PERCENT, Cell, Table, interval_text, printed
from surefoot.paper.panels import measured
from surefoot.paper.scales import Ends, apart, scales
from surefoot.report.page import document
from surefoot.report.plots import number, rounded

WIDE = 20.0
"""Points: an interval that spans more holds too much to agree with anything."""
ROOM = 0.05
"""Room above the highest line of plots that share a scale, as a share of its height."""
EDGE = 3.0
"""Points of room around the percentages of a plot."""


def write_reproduction(
    tables: Sequence[Table], figures: Sequence[Sequence[dict[str, Any]]], path: Path, *, note: str
) -> None:
    """Write the page, atomically; it loads nothing.

    Args:
        tables: in the order in which they are shown.
        figures: the lines of each, as `Figure.lines` gives them. What has nothing of ours to show is named, not shown.
        path: the HTML file.
        note: at what scale it ran.
    """
    write_text(path, reproduction(tables, figures, note=note))


def reproduction(tables: Sequence[Table], figures: Sequence[Sequence[dict[str, Any]]], *, note: str) -> str:
    """The page as text."""
    told = [spelled(table) for table in tables]
    shown = [Beside.of(table, said=note) for table in told if table.measured()]
    drawn = [Drawn.of(lines) for lines in figures if measured(lines)]
    pictures = {f"{part.key}-against": part.against for part in shown if part.against}
    for part in drawn:
        pictures |= part.pictures
    return document(
        "reproduction.html",
        pictures,
        brand="surefoot reproduce",
        title="The paper, reproduced",
        note=note,
        tables=shown,
        drawn=drawn,
        not_run=[table.title for table in told if not table.measured()]
        + [lines[0]["title"] for lines in figures if not measured(lines)],
    )


def spelled(table: Table) -> Table:
    """A table in the words of the page; its files keep the paper's.

    >>> spelled(Table("t", "PGD at eps 0.3", "", ("IFGSM", "C MI-FGSM"), ())).columns
    ('I-FGSM', 'C MI-FGSM')
    """

    def words(text: str) -> str:
        return re.sub(r"\bIFGSM\b", "I-FGSM", re.sub(r"\beps (?=\d)", "ε = ", text))

    return replace(
        table,
        title=words(table.title),
        columns=tuple(map(words, table.columns)),
        notes=tuple(map(words, table.notes)),
    )


@dataclass(frozen=True, kw_only=True)
class Number:
    """A cell as it is shown.

    Args:
        ours: the mean; empty where there is none.
        deviation: over several seeds; else empty.
        paper: with its deviation; empty where the paper has none.
        apart: ours less the paper's, where the paper's is not `within`.
        state: `within` our interval, `wide` where that would hold much else too, `near`, `far`, `unjudged`, or
            `alone` where one of the two is missing.
        missing: was it not run?
    """

    ours: str
    deviation: str = ""
    paper: str = ""
    apart: str = ""
    state: str = "alone"
    missing: bool = False

    @staticmethod
    def of(cell: Cell | str, *, judged: bool = True) -> "Number":
        if isinstance(cell, str):
            return Number(ours=cell or "\N{NO-BREAK SPACE}")
        mean, deviation = cell.mean(), cell.deviation()
        shown = Number(
            ours="" if mean is None else f"{mean:.{cell.digits}f}",
            deviation="" if deviation is None else f"{deviation:.{cell.digits}f}",
            paper=cell.paper_text(),
            missing=cell.missing(),
        )
        theirs = cell.paper_mean()
        if mean is None or theirs is None:
            return shown
        difference = mean - theirs
        low, high = cell.bounds() or (mean, mean)
        if low <= theirs <= high or printed(mean, cell.printed_digits) == printed(theirs, cell.printed_digits):
            wide = cell.limits == PERCENT and high - low > WIDE
            return replace(shown, state=("wide" if wide else "within") if judged else "unjudged")
        apart = f"{difference:+.{cell.digits}f}".replace("-", "\N{MINUS SIGN}")
        state = "far" if cell.far() else "near"
        return replace(shown, apart=apart, state=state if judged else "unjudged")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A table as it is shown, and how much of it agrees."""

    key: str
    title: str
    head: str
    columns: tuple[str, ...]
    rows: list[tuple[str, list[Number]]]
    intervals: list[list[str]]
    notes: tuple[str, ...]
    judged: bool
    within: int
    wide: int
    near: int
    far: int
    not_run: int
    against: dict[str, Any] | None

    @property
    def compared(self) -> int:
        return self.within + self.wide + self.near + self.far

    @staticmethod
    def of(table: Table, *, said: str = "") -> "Beside":
        """Of a table without the note that the page has `said` already."""
        rows = [(name, [Number.of(cell, judged=table.judged) for cell in cells]) for name, cells in table.rows]
        states = [number.state for _, numbers in rows for number in numbers]
        bounded = [
            [name, *(interval_text(cell) for cell in cells)]
            for name, cells in table.rows
            if any(isinstance(cell, Cell) and cell.bounds() for cell in cells)
        ]
        return Beside(
            key=table.name,
            title=table.title,
            head=table.head,
            columns=table.columns,
            rows=rows,
            intervals=bounded,
            notes=tuple(note for note in table.notes if note != said),
            judged=table.judged,
            within=states.count("within"),
            wide=states.count("wide"),
            near=states.count("near"),
            far=states.count("far"),
            not_run=sum(number.missing for _, numbers in rows for number in numbers),
            against=against(table),
        )

    def sentence(self) -> str:
        """How much agrees."""
        wide = f"; for {self.wide} our interval is too wide to tell" if self.wide else ""
        return (
            f"Of {self.compared} numbers that both have, {self.within} of the paper's are within, "
            f"{self.near} more near, {self.far} further away{wide}."
        )


def against(table: Table) -> dict[str, Any] | None:
    """Our percentages over the paper's, a series a row; None where the table has others or hardly any."""
    series = []
    for name, cells in table.rows:
        points = []
        for column, cell in zip(table.columns, cells, strict=True):
            if isinstance(cell, str):
                continue
            mean, theirs = cell.mean(), cell.paper_mean()
            if mean is None or theirs is None:
                continue
            if cell.limits != PERCENT:
                return None
            low, high = cell.bounds() or (mean, mean)
            ends = rounded([mean, theirs, low, high])
            points.append({"column": column, **dict(zip(("ours", "paper", "low", "high"), ends, strict=True))})
        if points:
            series.append({"name": name, "points": points})
    if sum(len(line["points"]) for line in series) < 2:
        return None
    return {"kind": "against", "series": series, "ends": [-EDGE, 100 + EDGE]}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure as it is shown.

    Args:
        key: begins the ids of its elements.
        title: what it shows.
        images: that it is measured on, in a sentence.
        plots: of lines: id, title, words, and a table of the numbers.
        surfaces: their names.
        words: what the first surface shows.
        apart: are there plots of the same kind, each on its own scale?
        missing: panels that have nothing to show, and why.
        pictures: what the page's script draws, by the id of its element.
    """

    key: str
    title: str
    images: str
    plots: list[dict[str, Any]]
    surfaces: list[str]
    words: str
    apart: bool
    missing: list[tuple[str, str]]
    pictures: dict[str, dict[str, Any]]

    @staticmethod
    def of(lines: Sequence[dict[str, Any]]) -> "Drawn":
        about, *panels = lines
        key = about["figure"]
        plots, missing, surfaces = [], [], []
        pictures: dict[str, dict[str, Any]] = {}
        for place, (panel, ends) in enumerate(zip(panels, scales(panels), strict=True)):
            if "missing" in panel:
                missing.append((panel["title"], panel["missing"]))
            elif "surface" in panel:
                surfaces.append(panel)
            else:
                plots.append(plot_of(panel, f"{key}-{place}"))
                pictures[f"{key}-{place}"] = lines_of(panel, ends)
        if surfaces:
            choices = [surface_of(panel, ends) for panel, ends in zip(surfaces, scales(surfaces), strict=True)]
            parts = [[f"{key}-surface", place, panel["title"]] for place, panel in enumerate(surfaces)]
            pictures[f"{key}-surface"] = {"kind": "surface", "choices": choices}
            pictures[f"{key}-map"] = {"kind": "maps", "choices": [parts]}
        return Drawn(
            key=key,
            title=about["title"],
            images=about["images"],
            plots=plots,
            surfaces=[panel["title"] for panel in surfaces],
            words=surface_words(surfaces[0]) if surfaces else "",
            apart=apart([panel for panel in panels if not is_percent(panel)]),
            missing=missing,
            pictures=pictures,
        )


def is_percent(panel: dict[str, Any]) -> bool:
    """Is it drawn from 0 to 100?"""
    return str(panel.get("y_label", "")).startswith("accuracy")


def lines_of(panel: dict[str, Any], ends: Ends | None) -> dict[str, Any]:
    """A panel of lines as the page's script takes it; `ends` is the scale that it shares with others."""
    series = [
        {
            "name": line["name"],
            "style": style,
            "x": rounded(line["x"]),
            "y": rounded(line["y"]),
            "low": None,
            "high": None,
        }
        for style, line in enumerate(panel["series"])
    ]
    return {
        "kind": "lines",
        "x": panel["x_label"],
        "y": panel["y_label"],
        "percent": is_percent(panel),
        "ends": ends and rounded([min(0.0, ends[0]), ends[1] + ROOM * (ends[1] - min(0.0, ends[0]))]),
        "log": panel["log_x"],
        "choices": [{"words": line_words(panel), "lines": series}],
    }


def plot_of(panel: dict[str, Any], key: str) -> dict[str, Any]:
    """What stands around a panel of lines."""
    columns = [dict(zip(line["x"], line["y"], strict=True)) for line in panel["series"]]
    places = sorted(set().union(*columns))
    return {
        "id": key,
        "title": panel["title"],
        "words": line_words(panel),
        "header": [panel["x_label"], *(line["name"] for line in panel["series"])],
        "table": [[f"{x:g}", *(number(column[x]) if x in column else "" for column in columns)] for x in places],
    }


def line_words(panel: dict[str, Any]) -> str:
    """Where each line begins and ends.

    >>> line_words({"x_label": "k", "y_label": "loss", "series": [{"name": "PGD", "x": [1, 8], "y": [0.5, 2.0]}]})
    'loss over k. PGD: from 0.5 at 1 to 2 at 8.'
    """
    ends = [
        f"{line['name']}: from {line['y'][0]:.4g} at {line['x'][0]:g} to {line['y'][-1]:.4g} at {line['x'][-1]:g}."
        for line in panel["series"]
    ]
    return " ".join([f"{panel['y_label']} over {panel['x_label']}.", *ends])


def surface_of(panel: dict[str, Any], ends: Ends | None) -> dict[str, Any]:
    """A loss surface as the page's script takes it; `ends` is the scale that it shares with others."""
    surface = panel["surface"]
    return {
        "e1": rounded(surface["e1"]),
        "e2": rounded(surface["e2"]),
        "loss": [rounded(row) for row in surface["loss"]],
        "eps": rounded([max(surface["e1"])])[0],
        "ends": ends and rounded(ends),
        "words": surface_words(panel),
    }


def surface_words(panel: dict[str, Any]) -> str:
    """What a loss surface shows."""
    surface = panel["surface"]
    values = [value for row in surface["loss"] for value in row]
    middle = surface["loss"][len(surface["e2"]) // 2]
    return (
        f"{panel['title']}: the loss is {middle[len(middle) // 2]:.3f} at the image and {middle[-1]:.3f} after a step "
        f"of {max(surface['e1']):.3g} along its gradient; on the whole surface it lies between {min(values):.3f} and "
        f"{max(values):.3f}."
    )
