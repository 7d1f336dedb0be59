"""The page of a reproduction: what it counts as agreeing, that all of it is there, and that it works in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from surefoot.paper.beside import NOT_NEGATIVE, PERCENT, Cell, Table
from surefoot.paper.page import Beside, Number, reproduction, write_reproduction
from tests.pages import NO_WEBGL, open_page

HOSTILE = """</script><script>throw Error("run")</script><img src=x onerror=alert(1)>"""
NOTE = "Profile `quick`, not the paper's scale."


def percent(*values: float, paper: Any = None, interval: tuple[float, float] | None = None, digits: int = 2) -> Cell:
    return Cell(values, interval, 100 if values else None, paper, digits=digits, limits=PERCENT)


def table() -> Table:
    rows = (
        (
            "SAT-R1",
            (percent(90.0, 91.0, 92.0, paper=(89.5, 0.3)), percent(50.0, paper=53.5, interval=(45.0, 52.0)), "Yes"),
        ),
        ("SAT-R2", (percent(paper=(90.0, 0.1)), percent(52.5, paper=54.0, interval=(52.0, 53.0)), "No")),
        (HOSTILE, (percent(10.0), percent(), "")),
    )
    return Table("table3", "Table 3: MNIST", "trained by", ("Clean", "PGD", "pre-trained"), rows, (NOTE, "Not run: x."))


def figure(name: str, *panels: dict[str, Any]) -> list[dict[str, Any]]:
    about = {"figure": name, "title": f"{name}: what it shows", "columns": 3, "profile": "quick", "note": NOTE}
    return [about, *panels]


def surface(title: str, height: float) -> dict[str, Any]:
    ends = [-0.3, 0.0, 0.3]
    return {
        "title": title,
        "surface": {"e1": ends, "e2": ends, "loss": [[height * (a * a + b + 1) for a in ends] for b in ends]},
    }


def lines(title: str, y_label: str = "mean loss (nats)") -> dict[str, Any]:
    series = [
        {"name": name, "x": [1.0, 8.0, 64.0], "y": [3.0 + shift, 2.0, 41.25]}
        for shift, name in enumerate(("FGSM", "PGD"))
    ]
    return {"title": title, "x_label": "k", "y_label": y_label, "log_x": True, "series": series}


def figures() -> list[list[dict[str, Any]]]:
    return [
        figure("fig1", lines("over k"), lines("", "accuracy (%)"), {"title": "late", "missing": "not run"}),
        figure("fig10", surface("SAT-R1", 1.0), surface("SAT-R2", 2.0)),
    ]


@pytest.mark.parametrize(
    ("cell", "state", "apart"),
    [
        (percent(90.0, 91.0, 92.0, paper=(89.5, 0.3)), "within", ""),  # Student's interval is 88.5 to 93.5
        (percent(50.0, paper=51.0, interval=(45.0, 52.0)), "within", ""),
        (percent(50.0, paper=52.0, interval=(49.0, 51.0)), "near", "\N{MINUS SIGN}2.00"),
        (percent(50.0, paper=47.9, interval=(49.0, 51.0)), "far", "+2.10"),
        (Cell((100.04,), paper=100.0, digits=1, paper_digits=0, limits=PERCENT), "within", ""),  # the same as printed
        (Cell((4.0,), paper=4.4, limits=NOT_NEGATIVE), "near", "\N{MINUS SIGN}0.40"),
        (Cell((4.0,), paper=4.5, limits=NOT_NEGATIVE), "far", "\N{MINUS SIGN}0.50"),
        (Cell((1.0,), paper=1.0), "within", ""),
        (Cell((1.0,)), "alone", ""),
        (Cell(paper=1.0), "alone", ""),
        ("passed", "alone", ""),
    ],
)
def test_what_agrees(cell: Cell | str, state: str, apart: str) -> None:
    shown = Number.of(cell)
    assert (shown.state, shown.apart) == (state, apart)


def test_it_counts_what_agrees_and_what_was_not_run() -> None:
    part = Beside.of(table())
    assert (part.compared, part.within, part.near, part.far) == (3, 1, 1, 1)
    assert part.not_run == 2
    assert part.against is not None
    points = {line["name"]: line["points"] for line in part.against["series"]}
    assert points["SAT-R1"][1] == {"column": "PGD", "ours": 50.0, "paper": 53.5, "low": 45.0, "high": 52.0}
    assert [point["column"] for point in points["SAT-R2"]] == ["PGD"]
    assert HOSTILE not in points


def test_lengths_are_not_drawn_among_percentages() -> None:
    rows = (("SAT-R1", (percent(90.0, paper=90.0), Cell((4.0,), paper=4.4, limits=NOT_NEGATIVE))),)
    assert Beside.of(Table("table6", "Table 6: MNIST", "trained by", ("FR", "l2"), rows)).against is None


def test_all_of_it_is_there_once_and_nothing_runs_or_loads_that_is_not_its_own() -> None:
    text = reproduction([table()], figures(), note=NOTE)
    whole = text[: text.index('<script type="application/json"')]
    ids = re.findall(r'\bid="([^"]+)"', whole)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="#|aria-describedby="|for=")([^"]+)"', whole):
        assert target in ids
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    drawn = json.loads(data)
    assert {picture["kind"] for picture in drawn.values()} == {"against", "lines", "surface", "maps"}
    assert set(drawn) <= set(ids)
    for shown in (
        "91.00",
        "89.50 ± 0.30",
        "± 1.00",
        "\N{MINUS SIGN}3.50",
        "45.00 to 52.00",
        "41.25",
        "Not run: x.",
        "late",
    ):
        assert shown in whole
    assert "from 3 at 1 to 41.25 at 64" in whole
    assert "SAT-R1: the loss is 1.000 at the image and 1.090 after a step of 0.3 along its gradient" in whole
    assert "`" not in whole.partition("<body>")[2]
    assert HOSTILE not in text
    assert "&lt;script&gt;throw" in whole
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)', whole)


def test_it_needs_no_tables_or_no_figures() -> None:
    assert "What agrees" not in reproduction([], figures(), note=NOTE)
    assert "Table 3" in reproduction([table()], [], note=NOTE)


def test_each_plot_is_drawn_and_nothing_is_asked_for(browser: Any, tmp_path: Path) -> None:
    write_reproduction([table()], figures(), tmp_path / "page.html", note=NOTE)
    found = open_page(browser, tmp_path / "page.html")
    for plot in ("table3-against", "fig1-0", "fig1-1", "fig10-map", "fig10-surface"):
        found.show(plot)
    assert found.ask("document.getElementById('table3-against').data.map((trace) => trace.name)") == [
        "SAT-R1",
        "SAT-R2",
    ]
    assert found.ask("document.getElementById('fig1-1').layout.yaxis.range") == [-3, 103]
    assert len(found.ask("document.getElementById('fig10-map').data.filter((trace) => trace.type === 'contour')")) == 2
    found.page.select_option("#fig10-surface-choice", "1")
    assert found.page.locator("#fig10-surface-words").inner_text().startswith("SAT-R2: the loss is 2.000 at the image")
    assert found.ask("document.getElementById('fig10-surface').data[0].z[0][2]") == pytest.approx(2 * 0.79)
    assert found.faults == []
    found.page.context.close()


def test_it_fits_a_phone_without_webgl(browser: Any, tmp_path: Path) -> None:
    write_reproduction([table()], figures(), tmp_path / "page.html", note=NOTE)
    found = open_page(browser, tmp_path / "page.html", width=375, before=NO_WEBGL)
    for plot in ("table3-against", "fig1-0", "fig10-map"):
        found.show(plot)
    assert found.ask("document.documentElement.scrollWidth") <= 375
    assert found.page.locator(".no-webgl").is_visible()
    assert not found.page.locator(".solid").is_visible()
    assert found.faults == []
    found.page.context.close()
