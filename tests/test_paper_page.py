"""The page of a reproduction: what it counts as agreeing, that all of it is there, and that it works in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from surefoot.paper.beside import NOT_NEGATIVE, PERCENT, Cell, Table
from surefoot.paper.page import Beside, Drawn, Number, reproduction, write_reproduction
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
    return [{**about, "images": "Measured on the first 7 test images."}, *panels]


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
        (percent(12.0, 98.0, paper=60.0), "wide", ""),  # Student's interval is 0 to 100: it holds anything
        (percent(50.0, paper=60.0, interval=(30.0, 70.0)), "wide", ""),
        (percent(50.0, paper=60.0, interval=(42.0, 62.0)), "within", ""),
        (percent(50.0, paper=75.0, interval=(30.0, 70.0)), "far", "\N{MINUS SIGN}25.00"),  # outside even so
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


def test_what_was_run_and_has_no_number_is_not_counted_as_not_run() -> None:
    nothing_fooled = Cell((), None, 100, 4.5, limits=NOT_NEGATIVE)
    rows = (("SAT-R1", (percent(0.0, paper=89.0), nothing_fooled)), ("SAT-R2", (percent(), Cell(paper=4.5))))
    fooled = Table("table6", "Table 6", "trained by", ("FR", "l2"), rows)
    assert fooled.missing() == ["SAT-R2"]
    assert Beside.of(fooled).not_run == 2
    body = reproduction([fooled], [], note=NOTE).partition("<body>")[2]
    assert (body.count("> not run<"), body.count("> no number<")) == (2, 1)


def test_a_table_without_a_number_of_ours_is_named_and_not_shown() -> None:
    columns, row = ("Clean", "pre-trained"), (percent(paper=90.0), "Yes")
    empty = Table("table9", "Table 9: sequences at eps 0.3", "trained by", columns, (("SAT-R1", row),))
    body = reproduction([table(), empty], [], note=NOTE).partition("<body>")[2]
    assert 'id="table3"' in body
    assert 'id="table9"' not in body
    assert "<li>Table 9: sequences at ε = 0.3</li>" in body


def test_an_interval_that_is_too_wide_is_no_agreement() -> None:
    row = (percent(12.0, 98.0, 60.0, paper=95.0), percent(90.0, paper=90.0))
    part = Beside.of(Table("table3", "Table 3", "trained by", ("Clean", "PGD"), (("PGD-AT", row),)))
    assert (part.compared, part.within, part.wide, part.near, part.far) == (2, 1, 1, 0, 0)
    assert part.sentence().endswith("0 further away; for 1 our interval is too wide to tell.")


def test_a_difference_that_the_setting_makes_is_shown_but_not_judged() -> None:
    rows = (("PGD-AT", (Cell((5.0,), paper=40.0, paper_digits=0), Cell((1.0,), paper=1.0))),)
    counts = Table("table8", "Table 8: costs", "trained by", ("FBP", "units"), rows, judged=False)
    part = Beside.of(counts)
    assert [(cell.state, cell.apart) for cell in part.rows[0][1]] == [
        ("unjudged", "\N{MINUS SIGN}35.00"),
        ("unjudged", ""),
    ]
    assert part.compared == 0
    body = reproduction([counts], [], note=NOTE).partition("<body>")[2]
    assert "is not judged" in body
    assert '<td class="far">' not in body
    assert 'href="#table8"' not in body  # it is not among what agrees


def test_the_scale_is_said_once_and_the_names_are_one_kind() -> None:
    rows = (("SAT-R1", (percent(50.0, paper=50.0),)),)
    notes = (NOTE, "Not run: SAT-R2 IFGSM.")
    body = reproduction(
        [
            Table(f"table{number}", f"Table {number}: accuracy in % at eps 0.3", "trained by", ("IFGSM",), rows, notes)
            for number in (3, 4)
        ],
        figures(),
        note=NOTE,
    ).partition("<body>")[2]
    assert body.count(NOTE.replace("`", "").replace("'", "&#39;")) == 1
    assert "Table 4: accuracy in % at ε = 0.3" in body
    assert "Not run: SAT-R2 I-FGSM." in body
    assert not re.search(r"\bIFGSM\b|\beps\b", body[: body.index("<script")])


def test_figures_with_nothing_to_show_are_named_once() -> None:
    empty = figure("fig5", {"title": "FGSM-AT", "missing": "not run"}, {"title": "PGD-AT", "missing": "not run"})
    body = reproduction([], [*figures(), empty], note=NOTE).partition("<body>")[2]
    assert '<section id="fig1">' in body
    assert '<section id="fig5">' not in body
    assert body.count("fig5: what it shows") == 1
    assert "Not run" not in reproduction([], figures(), note=NOTE)
    assert body.count("Measured on the first 7 test images.") == len(figures())


def test_panels_of_a_figure_share_a_scale_where_they_can() -> None:
    shared = Drawn.of(figure("fig10", surface("SAT-R1", 1.0), surface("SAT-R2", 2.0)))
    ends = [choice["ends"] for choice in shared.pictures["fig10-surface"]["choices"]]
    assert ends == [[pytest.approx(0.7), pytest.approx(2 * 1.39)]] * 2
    assert not shared.apart
    losses = Drawn.of(figure("fig9", lines("SAT-R1"), lines("SAT-R2")))
    assert losses.pictures["fig9-0"]["ends"] == losses.pictures["fig9-1"]["ends"] == [0, 43.312]
    flat = lines("early")
    flat["series"] = [{"name": "FGSM", "x": [1.0, 8.0], "y": [2.2, 2.4]}]
    own = Drawn.of(figure("fig1", flat, lines("late")))
    assert own.pictures["fig1-0"]["ends"] is None
    assert own.apart
    assert "on its own scale" in reproduction([], [figure("fig1", flat, lines("late"))], note=NOTE)


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
    scale = "(({cmin, cmax}) => [cmin, cmax])(document.getElementById('fig10-surface').data[0])"
    assert found.ask(scale) == [pytest.approx(0.7), pytest.approx(2 * 1.39)]
    assert found.faults == []
    found.page.context.close()


def wide_table(rows: int = 14) -> Table:
    """As many columns as Table 3 has, at their longest."""
    cell = percent(57.2, 12.0, 98.0, paper=(91.34, 38.63))
    return Table(
        "table3",
        "Table 3: MNIST",
        "trained by",
        tuple(f"DenseNet MI-{number}" for number in range(11)),
        tuple((f"method {number}", (cell,) * 11) for number in range(rows)),
    )


def test_each_row_has_a_look_of_its_own(browser: Any, tmp_path: Path) -> None:
    write_reproduction([wide_table()], [], tmp_path / "page.html", note=NOTE)
    found = open_page(browser, tmp_path / "page.html")
    found.show("table3-against")
    markers = found.ask("document.getElementById('table3-against').data.map((trace) => trace.marker)")
    assert len({marker["symbol"] for marker in markers}) == 14  # also for who sees no colours
    assert len({(marker["color"], marker["symbol"].removesuffix("-open")) for marker in markers}) == 14
    found.page.context.close()


def test_wide_tables_are_printed_across_and_whole(browser: Any, tmp_path: Path) -> None:
    write_reproduction([wide_table()], figures(), tmp_path / "page.html", note=NOTE)
    found = open_page(browser, tmp_path / "page.html")
    found.ask("dispatchEvent(new Event('beforeprint'))")
    found.page.emulate_media(media="print")
    across = 965  # pixels between the margins of Letter, the narrower
    found.page.set_viewport_size({"width": across, "height": 700})
    assert found.ask("document.documentElement.scrollWidth") <= across
    widths = found.ask("[...document.querySelectorAll('table')].map((each) => each.getBoundingClientRect().right)")
    assert max(widths) <= across
    size = "parseFloat(getComputedStyle(document.querySelector('.beside {}')).fontSize)"
    assert found.ask(size.format(".ours")) > found.ask(size.format(".paper"))
    assert b"/MediaBox [0 0 792 612]" in found.page.pdf(prefer_css_page_size=True)
    assert found.faults == []
    found.page.context.close()


def test_a_wide_table_keeps_its_first_column_in_sight(browser: Any, tmp_path: Path) -> None:
    write_reproduction([wide_table(3)], figures(), tmp_path / "page.html", note=NOTE)
    found = open_page(browser, tmp_path / "page.html", width=400)
    box = "document.querySelector('.beside').closest('.scroll')"
    assert found.ask(f"{box}.classList.contains('beyond')") is False
    found.ask(f"{{ {box}.scrollLeft = 300 }}")
    found.page.wait_for_selector(".scroll.beyond")
    left = "document.querySelector('.beside tbody {}').getBoundingClientRect().left"
    assert found.ask(left.format("th")) == found.ask(f"{box}.getBoundingClientRect().left")
    assert found.ask(left.format("td")) < 0
    assert found.ask("document.querySelector('.agreement a').getClientRects().length") == 1
    assert found.ask("document.documentElement.scrollWidth") == 400
    found.show("fig10-surface")
    assert found.ask("document.getElementById('fig10-surface').layout.scene.aspectratio.x") < 1  # room for its labels
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
