"""The figures of `surefoot reproduce`: what each needs, and its panels as data, from which it is drawn."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from surefoot.paper.matrix import (
    SAT,
    Column,
    Grid,
    Matrix,
    column_radius,
    pgd,
    radius_columns,
    rows_of,
    step_columns,
)
from surefoot.paper.measurements import Around
from surefoot.paper.runs import Task, Training, Workplace
from surefoot.paper.watch import PROBE, STAGES
from surefoot.recipes.mnist import BATCH, PAIRS, PERCENTAGES, pairs_of

Panel = dict[str, Any]
"""JSON values: `title`, and `x_label`, `y_label`, `log_x` and `series` of `name`, `x`, `y`; or a `surface` of `e1`,
`e2` and `loss`; or `missing`, why there is nothing to draw."""


@dataclass(frozen=True)
class Figure:
    """One of the paper's figures.

    Args:
        name: `fig1`.
        title: what it shows.
        images: that it is measured on; `{}` stands for how many a curve has.
        columns: panels side by side.
        tasks: what must be done at a matrix's scale.
        panels: what is there, as data.
        dataset: that it is of, whatever was asked for; None is the matrix's.
    """

    name: str
    title: str
    images: str
    columns: int
    tasks: Callable[[Matrix], Sequence[Task]]
    panels: Callable[[Matrix, Workplace], list[Panel]]
    dataset: str | None = None

    def of(self, matrix: Matrix) -> Matrix:
        """The matrix on the figure's own data set, where it has one."""
        return dataclasses.replace(matrix, dataset=self.dataset or matrix.dataset)

    def file_name(self, matrix: Matrix) -> str:
        """What its file is called."""
        return f"{self.of(matrix).named(self.name)}.jsonl"

    def lines(self, matrix: Matrix, place: Workplace) -> list[dict[str, Any]]:
        """The figure's file: a line about it, then a line a panel."""
        matrix = self.of(matrix)
        about = {
            "figure": self.name,
            "title": f"{self.title} ({matrix.written})",
            "columns": self.columns,
            "profile": matrix.profile.name,
            "note": matrix.profile.note,
            "images": f"Measured on the first {self.images.format(matrix.profile.curve_images)}.",
        }
        return [about, *self.panels(matrix, place)]


def missing(title: str, why: str = "not run") -> Panel:
    """A panel that has nothing to show."""
    return {"title": title, "missing": why}


def measured(lines: Sequence[dict[str, Any]]) -> bool:
    """Has a figure's file, a line about it and a line a panel, anything to show?

    >>> measured([{"figure": "fig1"}, missing("early")])
    False
    """
    return any("missing" not in panel for panel in lines[1:])


def curve(title: str, x_label: str, y_label: str, series: list[dict[str, Any]], *, log_x: bool = False) -> Panel:
    """A panel of lines; `missing` where there is none."""
    if not series:
        return missing(title)
    return {"title": title, "x_label": x_label, "y_label": y_label, "log_x": log_x, "series": series}


RADIUS, LOSS, ACCURACY = "radius (pixel units)", "mean loss (nats)", "accuracy (%)"


def watched_training(matrix: Matrix, method: str) -> Training:
    """The training that Fig. 1-4 follow."""
    return dataclasses.replace(matrix.training(f"{matrix.dataset}/{method}"), followed=True)


def watched_lines(matrix: Matrix, place: Workplace, method: str) -> list[dict[str, Any]]:
    """What was seen of it."""
    training = watched_training(matrix, method)
    return training.seen(place) if training.done(place) else []


def stages(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The lines of the early and the late stage, by its name."""
    return {line["stage"]: line for line in lines}


UNWATCHED = "not run, or taken from a run that was not watched"


def during(method: str, matrix: Matrix, place: Workplace) -> list[Panel]:
    """Fig. 1 and 2: logit distances over the training, the loss over the radius early and late."""
    lines = watched_lines(matrix, place, method)
    seen = stages(lines)
    distances = [line for line in lines if "distances" in line]
    series = [
        {
            "name": f"FGSM to {label}",
            "x": [line["step"] for line in distances],
            "y": [line["distances"][key] for line in distances],
        }
        for key, label in (("ifgsm", "I-FGSM"), ("rfgsm", "R-FGSM"))
        if distances
    ]
    title = "l2 distance of the logits of adversarial samples"
    panels = [curve(title, "step", "mean l2 distance", series) if series else missing(title, UNWATCHED)]
    for stage in STAGES:
        line = seen.get(stage)
        if line is None:
            panels.append(missing(stage, UNWATCHED))
        else:
            panels.append(curve(f"{stage}, step {line['step']}", RADIUS, LOSS, loss_series(line["losses"])))
    return panels


def loss_series(losses: dict[str, Any]) -> list[dict[str, Any]]:
    """The loss on FGSM and on PGD samples."""
    return [
        {"name": label, "x": losses["radii"], "y": losses[key]} for key, label in (("fgsm", "FGSM"), ("pgd", "PGD"))
    ]


def surfaces_during(method: str, matrix: Matrix, place: Workplace) -> list[Panel]:
    """Fig. 3 and 4: the loss surface early and late."""
    seen = stages(watched_lines(matrix, place, method))
    return [
        {"title": f"{stage}, step {seen[stage]['step']}", "surface": seen[stage]["surface"]}
        if stage in seen
        else missing(stage, UNWATCHED)
        for stage in STAGES
    ]


def around(matrix: Matrix, method: str, what: Any) -> Around:
    """A measurement of a method's first model."""
    model = matrix.training(f"{matrix.dataset}/{method}")
    return Around(model, what, matrix.profile.curve_images, matrix.profile.points)


def arounds(methods: Sequence[tuple[str, str]], what: str, matrix: Matrix) -> list[tuple[str, Around]]:
    """Name on paper, and the measurement."""
    return [(name, around(matrix, method, what)) for name, method in methods if matrix.wants(f"/{method}")]


ADVERSARIAL = (("FGSM-AT", "fgsm-at"), ("PGD-AT", "pgd-at"))


def fgsm_losses(matrix: Matrix, place: Workplace) -> list[Panel]:
    """Fig. 5: the loss over FGSM's radius after single-step and multi-step training."""
    panels = []
    for name, task in arounds(ADVERSARIAL, "losses", matrix):
        series = [loss_series(line)[0] for line in task.lines(place)]
        panels.append(curve(name, RADIUS, LOSS, series))
    return panels


def losses(matrix: Matrix, place: Workplace) -> list[Panel]:
    """Fig. 9: the loss over the radius of FGSM and PGD."""
    return [
        curve(name, RADIUS, LOSS, [series for line in task.lines(place) for series in loss_series(line)])
        for name, task in arounds(SAT, "losses", matrix)
    ]


def surfaces(matrix: Matrix, place: Workplace) -> list[Panel]:
    """Fig. 10: loss surfaces."""
    panels = []
    for name, task in arounds(SAT, "surface", matrix):
        lines = task.lines(place)
        panels.append({"title": name, "surface": lines[0]} if lines else missing(name))
    return panels


PAIRS_SWEPT = ((1, "sat-r1"), *((k, f"ablation-r1-2-k{k}") for k in PAIRS))
SHARES_SWEPT = tuple((100 * pairs_of(share) / BATCH, f"ablation-r1-3-{share}") for share in PERCENTAGES)


def sweep_grid(matrix: Matrix) -> Grid:
    """Fig. 6's trainings under PGD on validation images; MNIST, as in the paper."""
    methods = [(method, method) for _, method in (*PAIRS_SWEPT, *SHARES_SWEPT)]
    column = Column("PGD", pgd, matrix.profile.curve_images, split="validation")
    return Grid(rows_of("mnist", methods), (column,))


def sweeps(matrix: Matrix, place: Workplace) -> list[Panel]:
    """Fig. 6: PGD accuracy over k with the regularizer, and over the share of I-FGSM samples without it."""
    grid = sweep_grid(matrix)
    panels = []
    for title, label, swept in (
        ("SAT-R1 (Ablation-R1-2)", "k", PAIRS_SWEPT),
        ("no regularizer (Ablation-R1-3)", f"I-FGSM samples (% of a mini-batch of {BATCH})", SHARES_SWEPT),
    ):
        points = [
            (value, fmean(100 * record.robust_accuracy for record in records))
            for value, method in swept
            if (records := grid.records(grid.columns[0], f"mnist/{method}", matrix, place))
        ]
        series = [{"name": "PGD", "x": [x for x, _ in points], "y": [y for _, y in points]}] if points else []
        panels.append(curve(title, label, "accuracy on validation images (%)", series))
    return panels


def sat_grid(columns: Callable[[Matrix], tuple[Column, ...]], matrix: Matrix) -> Grid:
    """The SAT rows under the columns of a figure."""
    return Grid(rows_of(matrix.dataset, SAT), columns(matrix))


def over_steps(matrix: Matrix, place: Workplace) -> list[Panel]:
    """Fig. 7: accuracy over the steps of PGD."""
    grid = sat_grid(step_columns, matrix)
    return [accuracy_curve(grid, "steps of PGD", lambda column: int(column.title[4:]), matrix, place, log_x=True)]


def over_radius(matrix: Matrix, place: Workplace) -> list[Panel]:
    """Fig. 8: accuracy over the radius of PGD."""
    grid = sat_grid(radius_columns, matrix)
    return [accuracy_curve(grid, RADIUS, lambda column: column_radius(column, matrix), matrix, place)]


def accuracy_curve(
    grid: Grid,
    x_label: str,
    x_of: Callable[[Column], float],
    matrix: Matrix,
    place: Workplace,
    *,
    log_x: bool = False,
) -> Panel:
    """A line a row, a point a column, the mean over the seeds."""
    series = []
    for name, recipe in grid.wanted(matrix):
        points = [
            (x_of(column), fmean(100 * record.robust_accuracy for record in records))
            for column in grid.columns
            if (records := grid.records(column, recipe, matrix, place))
        ]
        if points:
            series.append({"name": name, "x": [x for x, _ in points], "y": [y for _, y in points]})
    return curve("", x_label, ACCURACY, series, log_x=log_x)


def watched_figure(
    name: str, title: str, images: str, method: str, panels: Callable[[str, Matrix, Workplace], list[Panel]]
) -> Figure:
    """Fig. 1-4."""
    return Figure(name, title, images, 3, lambda matrix: [watched_training(matrix, method)], partial(panels, method))


def around_figure(
    name: str,
    title: str,
    images: str,
    methods: Sequence[tuple[str, str]],
    what: str,
    panels: Callable[[Matrix, Workplace], list[Panel]],
) -> Figure:
    """Fig. 5, 9 and 10."""
    return Figure(name, title, images, 3, lambda matrix: [task for _, task in arounds(methods, what, matrix)], panels)


def grid_figure(
    name: str,
    title: str,
    images: str,
    columns: int,
    grid: Callable[[Matrix], Grid],
    panels: Callable[[Matrix, Workplace], list[Panel]],
    dataset: str | None = None,
) -> Figure:
    """Fig. 6-8."""
    return Figure(name, title, images, columns, lambda matrix: grid(matrix).tasks(matrix), panels, dataset)


TEST, ONE_TEST, VALIDATION = "{} test images", "test image", "{} validation images; any step counts"
LAST_OF_TEST = f"{TEST}; the last step counts, as in the paper"
WATCHED_ON, ONE_WATCHED = f"{PROBE} validation images", "validation image"

FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        watched_figure("fig1", "Fig. 1: logit distances and losses during FGSM-AT", WATCHED_ON, "fgsm-at", during),
        watched_figure("fig2", "Fig. 2: logit distances and losses during PGD-AT", WATCHED_ON, "pgd-at", during),
        watched_figure("fig3", "Fig. 3: loss surface during FGSM-AT", ONE_WATCHED, "fgsm-at", surfaces_during),
        watched_figure("fig4", "Fig. 4: loss surface during PGD-AT", ONE_WATCHED, "pgd-at", surfaces_during),
        around_figure("fig5", "Fig. 5: loss over FGSM's radius", TEST, ADVERSARIAL, "losses", fgsm_losses),
        grid_figure(
            "fig6",
            "Fig. 6: SAT-R1's k pairs, and I-FGSM samples without the regularizer",
            VALIDATION,
            2,
            sweep_grid,
            sweeps,
            "mnist",
        ),
        grid_figure(
            "fig7",
            "Fig. 7: accuracy over the steps of PGD",
            LAST_OF_TEST,
            1,
            partial(sat_grid, step_columns),
            over_steps,
        ),
        grid_figure(
            "fig8",
            "Fig. 8: accuracy over the radius of PGD",
            LAST_OF_TEST,
            1,
            partial(sat_grid, radius_columns),
            over_radius,
        ),
        around_figure("fig9", "Fig. 9: loss over the radius of FGSM and PGD", TEST, SAT, "losses", losses),
        around_figure("fig10", "Fig. 10: loss surfaces", ONE_TEST, SAT, "surface", surfaces),
    )
}
