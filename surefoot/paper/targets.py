"""The tables of `surefoot reproduce`: what each needs, and how it is drawn from what is there."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Protocol

from surefoot.data import DATASETS
from surefoot.evaluation import Record
from surefoot.paper import printed as paper
from surefoot.paper.beside import NOT_NEGATIVE, Cell, Table, accuracy_cell, fooling_cells
from surefoot.paper.matrix import (
    SAT,
    Column,
    Grid,
    Matrix,
    accuracies,
    column_radius,
    ladder,
    minimal_norms,
    radius_columns,
    rows_of,
)
from surefoot.paper.measurements import PassCount
from surefoot.paper.printed import Printed
from surefoot.paper.runs import Task, Workplace
from surefoot.report import attack_label

PRINTED_AS = {"mnist": "mnist", "cifar10": "cifar10", "tiny-imagenet-100": "imagenet-subset"}
"""Our data set, and the paper's."""
STAND_IN = "tiny-imagenet-100 in place of "
"""In Table 5's title, where the user gave no ImageNet."""


@dataclass(frozen=True)
class Target:
    """One of the paper's tables: the tasks that it needs, and the table drawn from their results.

    Args:
        name: `table3`.
        tasks: what must be done at a matrix's scale.
        table: draws what is there; what is missing is shown as missing.
    """

    name: str
    tasks: Callable[[Matrix], Sequence[Task]]
    table: Callable[[Matrix, Workplace], Table]


SOURCES = {
    "mnist": (("C", "normal-c"), ("D", "normal-d")),
    "cifar10": (("VGG-11", "normal-vgg-11"), ("DenseNet-BC-100", "normal-densenet-bc-100")),
    "tiny-imagenet-100": (("VGG-13", "normal-vgg-13"), ("ResNet-50", "normal-resnet-50")),
}
"""The models that craft in the black-box columns."""


class Results(Protocol):
    """Where a table's numbers come from."""

    def records(self, grid: Grid, column: Column, recipe: str, matrix: Matrix) -> list[Record]:
        """What a cell shows, a record a seed, as far as they are there."""

    def minutes(self, recipe: str, matrix: Matrix) -> list[float]:
        """What the trainings of a row took."""


@dataclass(frozen=True)
class OfTasks:
    """The results of a reproduction's own tasks."""

    place: Workplace

    def records(self, grid: Grid, column: Column, recipe: str, matrix: Matrix) -> list[Record]:
        return grid.records(column, recipe, matrix, self.place)

    def minutes(self, recipe: str, matrix: Matrix) -> list[float]:
        return list(known(*(training.minutes(self.place) for training in matrix.trainings(recipe))))


def cells(
    grid: Grid,
    matrix: Matrix,
    results: Results,
    rows: Mapping[str, Sequence[Printed]],
    columns: Sequence[str],
) -> list[tuple[str, list[Cell]]]:
    """The rows of a table of accuracies, each cell beside the paper's."""
    found = []
    for name, recipe in grid.wanted(matrix):
        line = []
        for column in grid.columns:
            paper_value = rows[name][columns.index(column.printed)] if column.printed in columns else None
            records = results.records(grid, column, recipe, matrix)
            line.append(accuracy_cell(records, paper_value, clean=column.clean))
        found.append((name, line))
    return found


ANY_STEP = (
    "White-box, an image counts as fooled once any step fools it, which is stricter than the paper's last step; "
    "black-box, the last step counts."
)
LAST_STEP = "The last step counts, as in the paper, and images that are wrong before it are attacked too"


def notes(
    matrix: Matrix, table: Table, records: Sequence[Record], extra: Sequence[str] = (), counted: str = ANY_STEP
) -> tuple[str, ...]:
    """What a reader must know: scale, seeds, what was counted, what it cost, what is missing or far off."""
    seeds = seeds_behind(records, matrix.seeds)
    found = [
        matrix.profile.note,
        f"{seeds}; ± is the sample deviation. {counted}",
        *screened(records),
        *extra,
    ]
    if records:
        devices = ", ".join(sorted({record.device for record in records}))
        torch_versions = ", ".join(sorted({record.versions.get("torch", "?") for record in records}))
        minutes = sum(record.seconds for record in records) / 60
        found.append(f"Attacked on {devices} with torch {torch_versions}, for {minutes:.1f} minutes.")
    missing, far = table.missing(), table.far_note()
    if missing:
        found.append(f"Not run: {'; '.join(missing)}.")
    if far and matrix.profile.name.startswith("paper"):
        found.append(far)
    return tuple(found)


def screened(records: Sequence[Record]) -> tuple[str, ...]:
    """Which attacks were preceded by themselves in a few long steps, and which of them these outreach."""
    outreached: dict[str, bool] = {}
    counts = set()
    for record in records:
        if record.parts and record.parts[0]["attack"] == record.attack:
            first = record.parts[0]["attack_fields"]
            own, long = (fields["steps"] * fields.get("step_size", 0) for fields in (record.attack_fields, first))
            label = attack_label(record.attack, record.attack_fields)
            outreached[label] = outreached.get(label, False) or own < long - 1e-9
            counts.add(first["steps"])
    if not outreached:
        return ()
    several, short = (", ".join(sorted(outreached)), ", ".join(sorted(key for key, less in outreached.items() if less)))
    counted = f"Screened first by the same attack in {max(counts)} long steps, whose successes count: {several}."
    return (
        f"{counted} The steps of {short} add up to less than those, and alone may leave more." if short else counted,
    )


def seeds_behind(records: Sequence[Record], planned: int) -> str:
    """Which trainings the numbers rest on, or how many where they differ; where nothing was run, which they would.

    >>> seeds_behind([], 3), seeds_behind([], 1)
    ('3 seeds (0-2)', '1 seed (0)')
    """
    found: dict[tuple[str | None, ...], set[int | None]] = {}
    for each in records:
        found.setdefault((each.recipe, each.source, each.attack, str(each.attack_fields)), set()).add(each.seed)
    behind = list(found.values()) or [set(range(planned))]
    fewest, most = min(map(len, behind)), max(map(len, behind))
    if fewest < most:
        return f"{fewest} to {most} seeds a number"
    counted = "1 seed" if most == 1 else f"{most} seeds"
    if any(each != behind[0] for each in behind):
        return f"{counted} a number"
    named = sorted(seed for seed in behind[0] if seed is not None)
    if len(named) < most:
        return counted
    if named == list(range(named[0], named[-1] + 1)) and len(named) > 1:
        return f"{counted} ({named[0]}-{named[-1]})"
    return f"{counted} ({', '.join(map(str, named))})"


def all_records(grid: Grid, matrix: Matrix, results: Results) -> list[Record]:
    """Each once, whatever cells show it."""
    found = {
        (record.recipe, record.seed, record.source, column.title): record
        for column in grid.columns
        if not column.clean
        for _, recipe in grid.wanted(matrix)
        for record in results.records(grid, column, recipe, matrix)
    }
    return list(found.values())


def known(*values: float | None) -> tuple[float, ...]:
    """The values that there are."""
    return tuple(value for value in values if value is not None)


def grid_table(
    name: str,
    title: str,
    grid: Grid,
    rows: Mapping[str, Sequence[Printed]],
    columns: Sequence[str],
    matrix: Matrix,
    results: Results,
) -> Table:
    """A table of accuracies, the minutes of training behind them."""
    lines = tuple(
        (row, (*line, Cell(tuple(results.minutes(dict(grid.rows)[row], matrix)), digits=1, limits=NOT_NEGATIVE)))
        for row, line in cells(grid, matrix, results, rows, columns)
    )
    heads = (*(column.title for column in grid.columns), "minutes")
    bare = Table(name, title, "trained by", heads, lines)
    of_auto_attack = "; AutoAttack stops at the first success" if "AutoAttack" in heads else ""
    counted = f"{LAST_STEP}{of_auto_attack}." if matrix.profile.last_iterate else ANY_STEP
    records = all_records(grid, matrix, results)
    return dataclasses.replace(bare, notes=notes(matrix, bare, records, counted=counted))


def accuracy_target(
    name: str, dataset: str, title: str, rows: Mapping[str, Sequence[Printed]], columns: Sequence[str]
) -> Target:
    """Table 3, 4 or 5."""

    def grid(matrix: Matrix) -> Grid:
        return accuracies(dataset, SOURCES[dataset], matrix.profile)

    def table(matrix: Matrix, place: Workplace) -> Table:
        shown = title.replace(STAND_IN, "") if matrix.profile.imagenet else title
        return grid_table(name, shown, grid(matrix), rows, columns, matrix, OfTasks(place))

    return Target(name, lambda matrix: grid(matrix).tasks(matrix), table)


def ladder_target(
    name: str, title: str, methods: Sequence[tuple[str, str]], rows: Mapping[str, Sequence[Printed]]
) -> Target:
    """Table 7 or 9."""

    def grid(matrix: Matrix) -> Grid:
        return ladder(rows_of("mnist", methods), matrix.profile)

    return Target(
        name,
        lambda matrix: grid(matrix).tasks(matrix),
        lambda matrix, place: grid_table(
            name, title, grid(matrix), rows, paper.TABLE_7_COLUMNS, matrix, OfTasks(place)
        ),
    )


ABLATIONS = (
    ("Ablation-R1-1", "ablation-r1-1"),
    ("SAT-R1", "sat-r1"),
    ("Ablation-R2-1", "ablation-r2-1"),
    ("Ablation-R2-2", "ablation-r2-2"),
    ("SAT-R2", "sat-r2"),
    ("Ablation-R3-1", "ablation-r3-1"),
    ("Ablation-R3-2", "ablation-r3-2"),
    ("SAT-R3", "sat-r3"),
)
SEQUENCES = (("SAT-R3", "sat-r3"), ("SAT-R1 + SAT-R3", "sat-r1-r3"), ("SAT-R3 + SAT-R2", "sat-r3-r2"))


def table_6_tasks(matrix: Matrix) -> Sequence[Task]:
    """DeepFool and C&W on each row."""
    return minimal_norms(matrix.dataset, matrix.profile).tasks(matrix)


def table_6(matrix: Matrix, results: Results) -> Table:
    """Fooling rates and mean l2."""
    grid = minimal_norms(matrix.dataset, matrix.profile)
    rows = paper.TABLE_6[PRINTED_AS[matrix.dataset]]
    lines = []
    for name, recipe in grid.wanted(matrix):
        line: list[Cell | str] = []
        for index, column in enumerate(grid.columns):
            rate, length = rows[name][2 * index : 2 * index + 2]
            line += fooling_cells(results.records(grid, column, recipe, matrix), (rate, length))
        lines.append((name, tuple(line)))
    steps, weights, rate = matrix.profile.cw
    extra = [
        "FR: misclassified images in %, those that were wrong to begin with among them. Mean l2: of the perturbations "
        "that fooled.",
        f"The paper does not give C&W's settings: here {weights} weights, {steps} steps of Adam at {rate:g} for each.",
    ]
    title = f"Table 6: {matrix.written}, DeepFool and C&W"
    bare = Table(matrix.named("table6"), title, "trained by", paper.TABLE_6_COLUMNS, tuple(lines))
    return dataclasses.replace(bare, notes=notes(matrix, bare, all_records(grid, matrix, results), extra))


TABLE_8_ROWS = (
    ("FGSM-AT", "fgsm-at"),
    ("EAT", "ensemble-at-a"),
    ("PGD-AT", "pgd-at"),
    ("TRADES", "trades"),
    *SAT,
)


def passes_of(matrix: Matrix) -> list[tuple[str, str, PassCount]]:
    """Table 8's rows: name on paper, recipe, and the count of its passes."""
    rows = rows_of(matrix.dataset, TABLE_8_ROWS)
    return [(name, recipe, PassCount(matrix.training(recipe).recipe)) for name, recipe in rows if matrix.wants(recipe)]


def table_8(matrix: Matrix, place: Workplace) -> Table:
    """Passes, counted; and images a second, where the row was trained."""
    dataset = PRINTED_AS[matrix.dataset]
    lines = []
    for name, recipe, passes in passes_of(matrix):
        found = passes.lines(place)
        counted = found[0] if found else None
        crafted: float | None = counted["crafting_backwards"] if counted else None
        pairs = getattr(passes.recipe.objective, "k", 0) if name == "SAT-R1" else 0
        of_pairs = None
        if counted and crafted is not None and pairs:  # every sample has one, the pairs share all beyond
            of_pairs = 1 + (crafted - 1) * counted["batch_size"] / pairs
        speeds = [training.speed(place) for training in matrix.trainings(recipe)]
        lines.append(
            (
                name,
                (
                    Cell(known(crafted), paper=float(paper.TABLE_8[dataset][name]), paper_digits=0),
                    Cell(known(of_pairs), paper=float(paper.TABLE_8_ITERATED[dataset]), digits=0) if pairs else "",
                    Cell(known(counted["units"] if counted else None), digits=1),
                    Cell(known(*speeds), digits=0, limits=NOT_NEGATIVE),
                    "Yes" if name in paper.TABLE_8_PRE_TRAINED else "No",
                ),
            )
        )
    columns = ("FBP", "FBP of the I-FGSM pair", "forward units", "images/s", "pre-trained models")
    title = f"Table 8: {matrix.written}, what a training step costs"
    bare = Table(matrix.named("table8"), title, "trained by", columns, tuple(lines))
    extra = (
        matrix.profile.note,
        "FBP: backward passes of crafting per sample of the mini-batch, counted by hooks during one step; FGSM-AT and "
        "EAT craft half of the mini-batch. Forward units: all passes of a step per sample, a forward 1, a backward to "
        "the inputs 1, to the weights 1 more. Images/s: of the trainings behind the other tables, where they were run; "
        "compare them only where nothing else ran beside them.",
    )
    missing = bare.missing()
    more = (f"Not run: {'; '.join(missing)}.",) if missing else ()
    return dataclasses.replace(bare, notes=(*extra, *more), judged=False)


def sanity_grid(matrix: Matrix) -> Grid:
    """What section 5.4 looks at: a table's attacks on the SAT rows, and PGD over the radius.

    The last step counts everywhere. By any step, and after a screening, many steps beat one where they only get stuck,
    and white-box beats black-box where both are the same.
    """
    profile = dataclasses.replace(matrix.profile, last_iterate=True)
    columns = accuracies(matrix.dataset, SOURCES[matrix.dataset], profile).columns[:-1]
    return Grid(rows_of(matrix.dataset, SAT), (*columns, *radius_columns(matrix)))


def sanity(matrix: Matrix, place: Workplace) -> Table:
    """Section 5.4: four tests, passed or failed, with the numbers that they rest on."""
    grid = sanity_grid(matrix)
    over_radius = radius_columns(matrix)
    lines = []
    for name, recipe in grid.wanted(matrix):
        found = {column.title: grid.records(column, recipe, matrix, place) for column in grid.columns}
        share = {
            title: fmean(record.robust_accuracy for record in records) for title, records in found.items() if records
        }
        scaled = matrix.training(recipe).recipe
        classes = scaled.num_classes or DATASETS[scaled.dataset].num_classes
        path = [share.get(column.title) for column in over_radius]
        single = share.get("FGSM")
        weaker = largest(share.get("IFGSM"), share.get("PGD"))
        white = smallest(*(share.get(title) for title in paper.WHITE_BOX_COLUMNS[1:]))
        black = smallest(*(share.get(column.title) for column in grid.columns if column.source))
        rise = None if None in path else max(after - before for before, after in pairwise(known(*path)))
        lines.append(
            (
                name,
                (
                    verdict(below(weaker, single)),
                    number(single),
                    number(weaker),
                    verdict(below(white, black)),
                    number(white),
                    number(black),
                    verdict(None if path[-1] is None else path[-1] <= 1 / classes),
                    number(path[-1]),
                    verdict(None if rise is None else rise <= 0),
                    number(rise),
                ),
            )
        )
    columns = (
        "(i) many steps beat one",
        "FGSM",
        "weaker of I-FGSM and PGD",
        "(ii) white-box beats black-box",
        "strongest white-box",
        "strongest black-box",
        "(iii) a large radius leaves at most chance",
        "at the largest radius",
        "(iv) accuracy never rises with the radius",
        "largest rise",
    )
    bare = Table(
        matrix.named("sanity"), f"Section 5.4: sanity tests, {matrix.written}", "trained by", columns, tuple(lines)
    )
    end = max(column_radius(column, matrix) for column in over_radius)
    images = matrix.profile.curve_images
    extra = [
        f"Accuracies in %; PGD over the radius as in Fig. 8, up to {end:.3g}, on the first {images} test images.",
    ]
    records = all_records(grid, matrix, OfTasks(place))
    return dataclasses.replace(bare, notes=notes(matrix, bare, records, extra, f"{LAST_STEP}."))


def verdict(passed: bool | None) -> str:
    """`passed`, `FAILED`, or `not run` where that is not known."""
    return {True: "passed", False: "FAILED", None: "not run"}[passed]


def below(one: float | None, other: float | None) -> bool | None:
    """Is one truly smaller than the other? None where one of them is not there."""
    return None if one is None or other is None else one < other


def largest(*shares: float | None) -> float | None:
    """Of all; None where one is not there."""
    return None if None in shares else max(known(*shares))


def smallest(*shares: float | None) -> float | None:
    """Likewise."""
    return None if None in shares else min(known(*shares))


def number(share: float | None) -> Cell:
    """A fraction as a cell in percent."""
    return Cell(() if share is None else (100 * share,))


TABLES: dict[str, Target] = {
    target.name: target
    for target in (
        accuracy_target(
            "table3",
            "mnist",
            "Table 3: MNIST, accuracy in % at eps 0.3",
            paper.TABLE_3,
            paper.TABLE_3_COLUMNS,
        ),
        accuracy_target(
            "table4",
            "cifar10",
            "Table 4: CIFAR-10, accuracy in % at eps 8/255",
            paper.TABLE_4,
            paper.TABLE_4_COLUMNS,
        ),
        accuracy_target(
            "table5",
            "tiny-imagenet-100",
            f"Table 5: {STAND_IN}ImageNet-subset, accuracy in % at eps 8/255",
            paper.TABLE_5,
            paper.TABLE_5_COLUMNS,
        ),
        Target("table6", table_6_tasks, lambda matrix, place: table_6(matrix, OfTasks(place))),
        ladder_target("table7", "Table 7: MNIST, ablations, accuracy in % at eps 0.3", ABLATIONS, paper.TABLE_7),
        Target("table8", lambda matrix: [passes for _, _, passes in passes_of(matrix)], table_8),
        ladder_target("table9", "Table 9: MNIST, sequences, accuracy in % at eps 0.3", SEQUENCES, paper.TABLE_9),
        Target("sanity", lambda matrix: sanity_grid(matrix).tasks(matrix), sanity),
    )
}
"""The tables, and section 5.4's tests."""
