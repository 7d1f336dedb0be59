"""The page of an audit: all of it in one file, nothing from elsewhere, and it works in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from surefoot.audit import Audit, Check, Curve, Picture, Surface
from surefoot.audit.record import OutcomeName, VerdictName
from surefoot.report import write_page
from surefoot.report.page import LARGEST, page
from surefoot.report.pictures import difference
from surefoot.report.plots import AXES, MOST_POINTS, Plot, line_styles, surface_in_words, thinned
from tests.pages import NO_WEBGL, Visit, open_page

HOSTILE = """</script><script>throw Error("run")</script><img src=x onerror=alert(1)>"' & {{ 7*7 }}"""
EPS = 0.25


def checks() -> list[Check]:
    """One of each outcome."""
    return [
        Check(
            key=f"check-{outcome}",
            question=f"Is the answer {outcome}?",
            outcome=outcome,
            measured=f"Measured for {outcome}: 0.25.",
            threshold=f"Decides {outcome}.",
            error_rate=0.001,
            strength=0.5,
            values={"p_value": 1.25e-8, "restarts": [1, 3]},
            samples=[0, 1, 2, 7],
            seconds=1.5,
        )
        for outcome in get_args(OutcomeName)
    ]


def surface(sample: int, height: float = 1.0, side: int = 7) -> Surface:
    """A bowl."""
    axis = [2 * EPS * (2 * i / (side - 1) - 1) for i in range(side)]
    loss = [[height * (a * a + b * b) for a in axis] for b in axis]
    return Surface(
        sample=sample,
        label=f"digit {sample}",
        prediction="three",
        eps=EPS,
        e1=axis,
        e2=axis,
        loss=loss,
        local_linearity_error=0.125 * height,
    )


def picture(sample: int = 3, channels: int = 1, side: int = 4) -> Picture:
    """Noise, and other noise."""
    generator = np.random.default_rng(sample)
    clean, adversarial = generator.integers(0, 256, (2, channels, side, side)).tolist()
    return Picture(
        sample=sample,
        label="three",
        clean=clean,
        adversarial=adversarial,
        clean_prediction="three",
        adversarial_prediction="eight",
        clean_confidence=0.99,
        adversarial_confidence=0.75,
        attack="PGD-100",
        linf=EPS,
        l2=1.5,
    )


def audit(**changes: Any) -> Audit:
    """An audit with something of everything."""
    curves = [
        Curve(
            plot="accuracy-eps",
            name="PGD-20",
            x=[0, 0.1, 0.25],
            y=[0.9, 0.5, 0.1],
            low=[0.8, 0.4, 0],
            high=[1, 0.6, 0.2],
        ),
        Curve(plot="accuracy-eps", name="FGSM", x=[0, 0.25], y=[0.9, 0.7]),
        Curve(plot="loss-eps", name="FGSM", x=[0, 0.1, 0.25], y=[0.1, 0.5, 0.6]),
        Curve(plot="accuracy-steps", name="PGD", x=[1, 10, 100], y=[0.5, 0.2, 0.1]),
        Curve(plot="logit-distance", name="FGSM to R-FGSM", x=[EPS], y=[3.5]),
        Curve(plot="training-loss", name="masking", x=[0, 100, 200], y=[0.0, 0.1, 0.9]),
    ]
    audit = Audit(
        model="runs/demo/sat-r2/0",
        verdict="masked",
        sentence="This model masks its gradients, for two reasons.",
        warnings=["The budget ended early."],
        required=0.2,
        eps=EPS,
        dataset="digits",
        split="test",
        num_examples=100,
        clean_accuracy=0.975,
        worst_case_accuracy=0.125,
        worst_case_interval=(0.0725, 0.1875),
        checks=checks(),
        attacks=[
            {
                "name": "PGD-100",
                "robust_accuracy": 0.125,
                "interval": (0.0725, 0.1875),
                "seconds": 2.0,
                "forwards": 20200,
                "backwards": 20000,
                "num_examples": 100,
            }
        ],
        curves=curves,
        surfaces=[surface(3), surface(5, height=9.0)],
        pictures=[picture(3), picture(5, channels=3)],
        classes=["three", "eight"],
        seed=1234,
        seconds=61.5,
        budget_minutes=2.0,
        device="cpu, a small one",
        weights_sha256="0123456789abcdef",
        versions={"torch": "2.13.0", "surefoot": "0.1.0"},
        commit="fedcba98",
        command="surefoot audit runs/demo/sat-r2/0 --seed 1234",
        recipe="digits/sat-r2",
    )
    return replace(audit, **changes)


def three() -> list[Audit]:
    """Three models, one of which has one surface less and another check."""
    other = replace(checks()[0], key="another", question="Is there another?")
    return [
        audit(model="runs/demo/normal/0", verdict="not robust"),
        audit(model="runs/demo/fgsm-at/0", surfaces=[surface(5, height=3.0)], checks=[*checks(), other]),
        audit(verdict="robust", warnings=[], budget_minutes=None, command=None, recipe=None, commit=None),
    ]


VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Read(HTMLParser):
    """A page as a browser would take it apart."""

    text: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        self.close()
        assert not self.open, f"{self.open} are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] == "style":
            self.styles.append(data)
        elif data.strip():
            self.words.append(data)

    @property
    def said(self) -> str:
        """Its words, with single spaces."""
        return " ".join(" ".join(self.words).split()).replace("\N{NO-BREAK SPACE}", " ")

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def figures(self) -> dict[str, Any]:
        """The data of its plots."""
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


@pytest.fixture(scope="module")
def one() -> Read:
    return Read(page([audit()]))


@pytest.fixture(scope="module")
def many() -> Read:
    return Read(page(three()))


def test_it_says_everything(one: Read) -> None:
    said = one.said
    it = audit()
    for check in it.checks:
        assert {check.question, check.measured, check.threshold, check.key} <= set(one.words)
    assert "at most 0.1 %" in said
    assert "4: number 0–2, 7" in said
    assert "1.25e-08" in said
    for words in (
        "Masked",
        it.sentence,
        *it.warnings,
        "Worst-case accuracy 12.5 % 95 % interval 7.2–18.8 %",
        "Clean accuracy 97.5 %",
        "Required 20.0 %",
        "1 passed, 1 failed, 1 could not tell",
        "PGD-100 12.5 % 7.2–18.8 % 100 20,200 20,000 2.0",
        "Image 3 is a “digit 3”, but the model says “three”.",
        "image 3 (label digit 3)",
        "attack accuracy 95 % interval attacked forwards",
        "ran only on the images that earlier ones left (column attacked)",
        "FGSM's loss should rise with ε.",
        it.command,
        it.weights_sha256,
        "torch 2.13.0, surefoot 0.1.0",
        "Seed 1234",
        it.device,
        it.commit,
        "with a budget of 2 minutes",
    ):
        assert str(words) in said, words
    assert [h for h, _ in one.elements if h == "h1"] == ["h1"]


def test_what_could_not_be_told_is_called_so_for_those_who_hear_it_too() -> None:
    text = page([audit(), audit(model="another")])
    assert text.count('<span class="hidden">could not tell</span>') == 2
    assert '<span class="hidden">unclear</span>' not in text


def test_a_surface_tells_whether_the_model_is_right() -> None:
    right = replace(surface(0), label="7", prediction="7")
    assert surface_in_words(right).startswith("Image 0 is a “7”, and the model says so. The loss is ")
    wrong = surface_in_words(replace(right, prediction="2"))
    assert wrong.startswith("Image 0 is a “7”, but the model says “2”. The loss is ")


def test_each_verdict_has_a_word_a_colour_and_a_shape() -> None:
    shapes = set()
    for verdict in get_args(VerdictName):
        text = page([audit(verdict=verdict)])
        start = text.index('<div class="verdict ')
        shown = text[start : text.index("</p>", start)]
        assert f'class="verdict {verdict.replace(" ", "-")}"' in shown
        assert verdict.capitalize() in shown
        shapes.add(re.sub(r".*?<svg[^>]*>(.*)</svg>.*", r"\1", shown, flags=re.DOTALL))
    assert len(shapes) == len(get_args(VerdictName))


def test_several_models_stand_side_by_side(many: Read) -> None:
    assert "3 models: 1 robust, 1 not robust, 1 masked" in many.said
    assert many.said.count("Is there another?") == 2  # in the matrix, and with its model
    assert "not made" in many.said
    assert "passing all of them says that no sign of masking was found, not that the model is robust" in many.said
    assert {"#model-1", "#model-2", "#model-3"} == {a["href"] for a in many.all("a")}
    lines = many.figures["compared-accuracy-eps"]["choices"]
    assert [[line["name"] for line in choice["lines"]] for choice in lines] == [["normal", "fgsm-at", "sat-r2"]] * 2
    # image 3 is missing from the second model, so that one is drawn of two models only
    assert [len(parts) for parts in many.figures["compared-map"]["choices"]] == [2, 3]
    for parts in many.figures["compared-map"]["choices"]:
        assert len({many.figures[figure]["choices"][choice]["sample"] for figure, choice, _ in parts}) == 1


@pytest.mark.parametrize("which", ["one", "many"])
def test_it_loads_nothing(which: str, request: pytest.FixtureRequest) -> None:
    read: Read = request.getfixturevalue(which)
    for tag, attributes in read.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    (style,) = read.styles
    assert "url(" not in style
    assert "@import" not in style
    data, plotly, script = read.scripts
    assert "plotly.js v" in plotly[:200]
    assert read.text.count("plotly.js v") == 1
    policy = next(m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    assert allowed == {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in (plotly, script)}
    assert "http" not in policy + data


@pytest.mark.parametrize("which", ["one", "many"])
def test_it_can_be_read_without_eyes(which: str, request: pytest.FixtureRequest) -> None:
    read: Read = request.getfixturevalue(which)
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert read.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in read.all("img"))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in read.all("select"):
        assert attributes["id"] in {label["for"] for label in read.all("label")}
        assert set(attributes["data-figures"].split()) <= set(read.figures)
    assert set(read.figures) <= set(ids)
    described = [a[name] for _, a in read.elements for name in ("aria-describedby", "aria-labelledby") if name in a]
    assert described
    assert set(described) <= set(ids)
    plots = [a for _, a in read.elements if "plot" in a.get("class", "").split()]
    assert len(plots) == len(read.figures)
    assert all(plot["aria-label"] for plot in plots)


def luminance(colour: str) -> float:
    """WCAG's relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_words_stand_out_from_the_paper_in_light_and_dark() -> None:
    style = (files("surefoot.report") / "template" / "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root[^{]*\{([^}]*--paper[^}]*)\}", style)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#\w+);", block))
        for name in ("ink", "soft", "accent", "robust", "not-robust", "masked", "inconclusive"):
            for ground in ("paper", "wash") if name in ("ink", "soft") else ("paper",):
                light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def test_what_a_user_wrote_is_text() -> None:
    check = replace(
        checks()[0], key=HOSTILE, question=HOSTILE, measured=HOSTILE, threshold=HOSTILE, values={HOSTILE: HOSTILE}
    )
    hostile = audit(
        model=HOSTILE,
        sentence=HOSTILE,
        warnings=[HOSTILE],
        dataset=HOSTILE,
        split=HOSTILE,
        checks=[check],
        attacks=[{"name": HOSTILE}],
        curves=[Curve(plot="accuracy-eps", name=HOSTILE, x=[0, 1], y=[1, 0])],
        surfaces=[replace(surface(3), label=HOSTILE, prediction=HOSTILE)],
        pictures=[
            replace(picture(), label=HOSTILE, clean_prediction=HOSTILE, adversarial_prediction=HOSTILE, attack=HOSTILE)
        ],
        classes=[HOSTILE],
        device=HOSTILE,
        weights_sha256=HOSTILE,
        versions={HOSTILE: HOSTILE},
        commit=HOSTILE,
        command=HOSTILE,
        recipe=HOSTILE,
    )
    for audits in ([hostile], [hostile, replace(hostile, model=HOSTILE + "2")]):
        read = Read(page(audits))
        assert len(read.scripts) == 3
        assert all(image["src"].startswith("data:image/png;base64,") for image in read.all("img"))
        assert not [attributes for _, attributes in read.elements if "onerror" in attributes]
        assert HOSTILE in "".join(read.words)
        assert read.figures["model-1-accuracy-eps"]["choices"][0]["lines"][0]["name"] == HOSTILE


def test_nothing_but_a_verdict_is_enough() -> None:
    bare = audit(checks=[], attacks=[], curves=[], surfaces=[], pictures=[], warnings=[], classes=[], versions={})
    assert "No check was made." in Read(page([bare])).said
    assert Read(page([bare])).figures == {}
    mixed = Read(page([bare, audit(curves=[Curve(plot="loss-eps", name="FGSM", x=[], y=[])])]))
    assert "model-2-loss-eps" not in mixed.figures
    assert mixed.figures["model-2-surface"]["choices"]
    with pytest.raises(TypeError, match="audits is a single one; give a list of them"):
        write_page(audit(), Path("page.html"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one audit"):
        page([])


def test_losses_that_are_no_numbers_are_gaps() -> None:
    broken = surface(3)
    broken.loss[0][0] = math.inf
    broken.loss[1][2] = math.nan
    nothing = replace(surface(4), loss=[[math.nan] * 7] * 7)
    read = Read(page([audit(surfaces=[broken, nothing])]))
    (choice,) = read.figures["model-1-surface"]["choices"]
    assert [value for row in choice["loss"] for value in row].count(None) == 2
    assert "inf" not in choice["words"]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_are_the_pixels(channels: int) -> None:
    shown = picture(channels=channels)
    read = Read(page([audit(pictures=[shown])]))
    clean, adversarial, change = (decoded(image["src"]) for image in read.all("img"))
    before, after = (np.array(pixels) for pixels in (shown.clean, shown.adversarial))
    expected = [before, after, difference(before, after, 0.5 / EPS)]
    for got, pixels in zip((clean, adversarial, change), expected, strict=True):
        if channels == 2:  # neither grey nor colour: the mean is shown
            pixels = pixels.mean(axis=0, keepdims=True).round()
        assert (got == pixels).all()


def decoded(uri: str) -> Any:
    """`[channels, height, width]` of a PNG's data URI."""
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def test_a_difference_is_amplified_around_grey() -> None:
    clean, adversarial = np.array([[[100, 100, 100]]]), np.array([[[100, 110, 90]]])
    assert difference(clean, adversarial, 2.0).tolist() == [[[128, 148, 108]]]
    assert difference(clean, adversarial, 100.0).tolist() == [[[128, 255, 0]]]


@pytest.mark.parametrize("pixels", [[], [[1, 2]], [[[1, 2], [3]]], [[[256]]], [[["x"]]]])
def test_pixels_that_are_none_are_refused(pixels: Any) -> None:
    with pytest.raises(ValueError, match="picture's pixels"):
        page([audit(pictures=[replace(picture(), clean=pixels)])])


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="image 3"):
        page([audit(pictures=[replace(picture(), clean=picture(side=5).clean)])])


def test_many_large_pictures_leave_it_below_8_mb(tmp_path: Path) -> None:
    large = [picture(sample, channels=3, side=160) for sample in range(12)]
    wide = [surface(sample, side=81) for sample in range(12)]
    path = tmp_path / "page.html"
    write_page([audit(pictures=large, surfaces=wide), audit(pictures=large[:1], surfaces=wide[:1])], path)
    assert LARGEST * 0.9 < path.stat().st_size <= LARGEST
    read = Read(path.read_text(encoding="utf-8"))
    shown = [len(read.figures[f"model-{place}-surface"]["choices"]) for place in (1, 2)]
    pictures = len(read.all("img")) // 3
    left_out = re.findall(r"(\d+) more loss surfaces and images are left out", read.said)
    assert [int(each) for each in left_out] == [24 + 2 - sum(shown) - pictures]
    assert shown[1] == 1  # the small model loses nothing to the large one
    assert os.listdir(tmp_path) == ["page.html"]


def test_long_lines_are_thinned_but_keep_their_ends() -> None:
    x = [float(i) for i in range(10_000)]
    short = thinned(Curve(plot="training-loss", name="loss", x=x, y=x, low=x, high=None))
    assert (len(short.x), short.x[0], short.x[-1]) == (MOST_POINTS, 0.0, 9999.0)
    assert short.low == short.x
    assert short.high is None


def test_two_quantities_on_one_axis_are_told_apart() -> None:
    axes = AXES["training-agreement"]
    assert axes.y == "agreement: cosine; rising: share"
    assert "Gradient agreement: the cosine" in axes.note
    assert "Rising loss: the share" in axes.note


def test_a_line_keeps_its_look_from_plot_to_plot() -> None:
    def plot(key: Any, *names: str) -> Plot:
        return Plot(key=key, choices={"": [Curve(plot=key, name=name, x=[0], y=[0]) for name in names]})

    styles = line_styles(
        [
            plot("accuracy-eps", "PGD", "FGSM", "noise"),
            plot("loss-eps", "other", "FGSM", "PGD"),
            plot("training-loss", "noise", "other", "new"),
        ]
    )
    assert styles["accuracy-eps"] == {"PGD": 0, "FGSM": 1, "noise": 2}
    assert styles["loss-eps"] == {"other": 2, "FGSM": 1, "PGD": 0}
    assert styles["training-loss"] == {"noise": 2, "other": 0, "new": 1}  # `noise` and `other` never met before


def test_a_name_that_is_no_utf_8_costs_no_page(tmp_path: Path) -> None:
    write_page([audit(model="runs/na\udcefve/0")], tmp_path / "page.html")
    assert "runs/na\\udcefve/0" in (tmp_path / "page.html").read_text(encoding="utf-8")


# In a browser: Debian's Chromium, headless, with its software renderer.


def visit(browser: Any, audits: list[Audit], path: Path, width: int = 800, before: str = "") -> Visit:
    """Open the page of these audits."""
    write_page(audits, path)
    return open_page(browser, path, width, before)


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    found = visit(browser, [audit()], tmp_path_factory.mktemp("one") / "page.html")
    yield found
    found.page.context.close()


def test_each_plot_is_drawn_and_nothing_is_asked_for(opened: Visit, one: Read) -> None:
    for plot in one.figures:
        element = opened.show(plot)
        box = element.bounding_box()
        assert box["width"] > 200, plot
        assert box["height"] > 200, plot
    assert set(one.figures) == set(opened.ask("[...document.querySelectorAll('.js-plotly-plot')].map((e) => e.id)"))
    traces = {
        plot: opened.ask(f"document.getElementById('{plot}').data.map((trace) => trace.type)") for plot in one.figures
    }
    assert traces["model-1-surface"] == ["surface", "scatter3d"]
    assert traces["model-1-map"] == ["contour", None]
    assert traces["model-1-logit-distance"] == ["bar"]
    drawn = opened.ask("document.querySelectorAll('#model-1-accuracy-eps .scatterlayer .trace').length")
    assert drawn == 3  # two lines and one band
    assert not opened.faults


def test_the_surface_turns(opened: Visit) -> None:
    element = opened.show("model-1-surface")
    begin = opened.eye()
    box = element.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.page.mouse.move(*middle)
    opened.page.mouse.down()
    for pixels in range(10, 130, 10):
        opened.page.mouse.move(middle[0] + pixels, middle[1])
        # A busy machine draws late, and turns by what it has drawn.
        opened.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    opened.page.mouse.up()
    opened.page.wait_for_function(
        "(begin) => document.getElementById('model-1-surface').layout.scene.camera.eye.x !== begin", arg=begin[0]
    )
    dragged = opened.eye()
    assert math.dist(begin, dragged) > 0.1
    element.focus()
    opened.page.keyboard.press("ArrowRight")
    turned = opened.eye()
    assert math.dist(dragged, turned) > 0.05
    assert math.isclose(math.hypot(*dragged), math.hypot(*turned), rel_tol=1e-6)
    opened.page.keyboard.press("-")
    assert math.isclose(math.hypot(*opened.eye()), 1.1 * math.hypot(*turned), rel_tol=1e-6)
    opened.page.get_by_role("button", name="Reset view").click()
    assert opened.eye() == opened.ask("[-1.25, -1.25, 0.8]")
    assert not opened.faults


def test_another_image_changes_the_surface_its_map_and_its_words(opened: Visit) -> None:
    opened.show("model-1-surface")
    opened.show("model-1-map")
    seen = []
    for key in ("End", "Home"):
        opened.page.get_by_label("Image", exact=True).focus()
        opened.page.keyboard.press(key)
        highest = [
            opened.ask(f"Math.max(...document.getElementById('model-1-{plot}').data[0].z.flat())")
            for plot in ("surface", "map")
        ]
        assert highest[0] == highest[1]
        words = opened.page.locator("#model-1-surface-words").text_content()
        assert f"and {highest[0]:.3f}." in words
        seen.append((highest[0], re.findall(r"Image (\d+)", words)))
    assert seen == [(4.5, ["5"]), (0.5, ["3"])]
    assert not opened.faults


def test_details_open_by_keyboard(opened: Visit) -> None:
    summary = opened.page.locator("details.check > summary").first
    evidence = opened.page.get_by_text(checks()[0].threshold)
    assert not evidence.is_visible()
    summary.focus()
    opened.page.keyboard.press("Enter")
    assert evidence.is_visible()
    assert opened.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.page.keyboard.press("Enter")
    assert not evidence.is_visible()


def test_it_is_printed_open_light_and_within_the_paper(opened: Visit, one: Read) -> None:
    opened.page.emulate_media(color_scheme="dark")
    dark = opened.ask("getComputedStyle(document.body).backgroundColor")
    opened.ask("dispatchEvent(new Event('beforeprint'))")
    opened.page.emulate_media(media="print", color_scheme="dark")
    opened.page.set_viewport_size({"width": 680, "height": 900})
    assert opened.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)" != dark
    assert opened.ask("document.querySelectorAll('details:not([open])').length") == 0
    assert opened.ask("document.documentElement.scrollWidth") <= 680
    widths = opened.ask("[...document.querySelectorAll('.plot')].map((e) => [e.id, e.layout?.width])")
    assert all(width <= 660 for plot, width in widths if plot != "model-1-surface")
    assert not opened.page.locator("#model-1-surface").is_visible()
    opened.page.emulate_media(media="screen", color_scheme="light")
    opened.page.set_viewport_size({"width": 800, "height": 900})
    opened.ask("dispatchEvent(new Event('afterprint'))")
    assert opened.ask("document.querySelectorAll('details[open]').length") == 0
    assert opened.page.locator("#model-1-surface").is_visible()
    assert not opened.faults


def test_long_names_over_maps_side_by_side_do_not_touch(browser: Any, tmp_path: Path) -> None:
    audits = [
        replace(each, model=f"my_package.networks_{number}.resnets:wide_resnet_28_{number}")
        for number, each in enumerate(three())
    ]
    found = visit(browser, audits, tmp_path / "page.html", width=700)
    found.show("compared-map")
    boxes = found.ask(
        "[...document.querySelectorAll('#compared-map .annotation')].map((each) => each.getBoundingClientRect())"
        ".map((box) => [box.top, box.left, box.right])"
    )
    assert len(boxes) > 1
    for (top, _, right), (next_top, left, _) in pairwise(sorted(boxes)):
        assert right < left or next_top > top
    assert not found.faults


def test_three_models_on_a_phone(browser: Any, many: Read, tmp_path: Path) -> None:
    found = visit(browser, three(), tmp_path / "page.html", width=360)
    assert found.ask("document.documentElement.scrollWidth") == 360
    found.page.get_by_role("link", name="fgsm-at").click()
    found.page.wait_for_selector("#model-2[open]")  # by an event that comes after the click
    assert found.ask("[...document.querySelectorAll('details[open]')].map((e) => e.id)") == ["model-2"]
    for plot in many.figures:
        if plot.startswith(("compared", "model-2")):
            found.show(plot)
    found.page.locator("#compared-accuracy-eps-choice").select_option("1")
    lines = "document.getElementById('compared-accuracy-eps').data.map((trace) => trace.y.at(-1))"
    assert found.ask(lines) == [70, 70, 70]
    found.ask("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert found.ask("document.documentElement.scrollWidth") == 360
    assert not found.faults
    found.page.context.close()


def test_without_webgl_the_map_stands_in_and_what_a_user_wrote_does_not_run(browser: Any, tmp_path: Path) -> None:
    curves = [Curve(plot="accuracy-eps", name=HOSTILE, x=[0, 1], y=[1, 0])]
    found = visit(browser, [audit(model=HOSTILE, curves=curves)], tmp_path / "page.html", before=NO_WEBGL)
    found.show("model-1-map")
    assert found.page.get_by_text("This browser draws no WebGL").is_visible()
    assert not found.page.locator("#model-1-surface").is_visible()
    assert "onerror=alert(1)" in found.show("model-1-accuracy-eps").locator(".legendtext").text_content()
    assert found.page.locator("h1").text_content() == HOSTILE
    assert found.ask("document.querySelectorAll('img[onerror]').length") == 0
    assert not found.faults
    found.page.context.close()


def test_a_file_that_is_no_page_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "kept.txt"
    file.write_text("precious", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file that is no page, and would be lost; give another place"):
        write_page([audit()], file)
    assert file.read_text(encoding="utf-8") == "precious"
    write_page([audit()], tmp_path / "page.html")
    write_page([audit()], tmp_path / "page.html")  # a page may be replaced
