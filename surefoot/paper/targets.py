"""The targets of `surefoot reproduce`: what each table and figure needs, and what is made of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from surefoot.evaluation import Record
from surefoot.paper import printed as paper
from surefoot.paper.beside import Cell, Table, accuracy_cell
from surefoot.paper.matrix import Grid, Matrix, accuracies
from surefoot.paper.printed import Printed
from surefoot.paper.runs import Task, Workplace

PRINTED_AS = {"mnist": "mnist", "cifar10": "cifar10", "tiny-imagenet-100": "imagenet-subset"}
"""Our data set, and the paper's."""


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


def cells(
    grid: Grid,
    matrix: Matrix,
    place: Workplace,
    rows: Mapping[str, Sequence[Printed]],
    columns: Sequence[str],
) -> list[tuple[str, list[Cell]]]:
    """The rows of a table of accuracies, each cell beside the paper's."""
    found = []
    for name, recipe in grid.wanted(matrix):
        line = []
        for column in grid.columns:
            paper_value = rows[name][columns.index(column.printed)] if column.printed in columns else None
            records = grid.records(column, recipe, matrix, place)
            line.append(accuracy_cell(records, paper_value, clean=column.clean))
        found.append((name, line))
    return found


def notes(matrix: Matrix, table: Table | None, records: Sequence[Record], extra: Sequence[str] = ()) -> tuple[str, ...]:
    """What a reader must know: scale, seeds, what was counted, what it cost, what is missing or far from the paper's."""
    seeds = f"{matrix.seeds} seeds (0-{matrix.seeds - 1})" if matrix.seeds > 1 else "1 seed (0)"
    found = [
        matrix.profile.note,
        f"{seeds}; after ± the sample deviation. An image that the attack fools once counts as fooled, also where "
        "its last step is right again: stricter than the paper's last iterate (black-box: the last).",
        *extra,
    ]
    if records:
        devices = ", ".join(sorted({record.device for record in records}))
        torch_versions = ", ".join(sorted({record.versions.get("torch", "?") for record in records}))
        minutes = sum(record.seconds for record in records) / 60
        found.append(f"Measured on {devices} with torch {torch_versions}, in {minutes:.1f} minutes of attacking.")
    if table is not None:
        missing, far = table.missing(), table.far()
        if missing:
            found.append(f"Not run, {len(missing)} of the cells: {'; '.join(missing)}.")
        if far and matrix.profile.name == "paper":
            found.append(f"More than two points from the paper's: {'; '.join(far)}.")
    return tuple(found)


def all_records(grid: Grid, matrix: Matrix, place: Workplace) -> list[Record]:
    """Each once, whatever cells show it."""
    found = {
        (record.recipe, record.seed, record.source, column.title): record
        for column in grid.columns
        if not column.clean
        for _, recipe in grid.wanted(matrix)
        for record in grid.records(column, recipe, matrix, place)
    }
    return list(found.values())


def minutes_cell(recipe: str, matrix: Matrix, place: Workplace) -> Cell:
    """What a training took, in minutes, over the seeds."""
    found = [training.minutes(place) for training in matrix.trainings(recipe)]
    return Cell(tuple(value for value in found if value is not None), digits=1)


def grid_table(
    name: str,
    title: str,
    grid: Grid,
    rows: Mapping[str, Sequence[Printed]],
    columns: Sequence[str],
    matrix: Matrix,
    place: Workplace,
) -> Table:
    """A table of accuracies, the minutes of training behind them."""
    lines = tuple(
        (row, (*line, minutes_cell(dict(grid.rows)[row], matrix, place)))
        for row, line in cells(grid, matrix, place, rows, columns)
    )
    heads = (*(column.title for column in grid.columns), "minutes")
    bare = Table(name, title, "trained by", heads, lines)
    return Table(name, title, "trained by", heads, lines, notes(matrix, bare, all_records(grid, matrix, place)))


def accuracy_target(
    name: str, dataset: str, title: str, rows: Mapping[str, Sequence[Printed]], columns: Sequence[str]
) -> Target:
    """Table 3, 4 or 5."""

    def grid(matrix: Matrix) -> Grid:
        return accuracies(dataset, SOURCES[dataset], matrix.profile)

    return Target(
        name,
        lambda matrix: grid(matrix).tasks(matrix),
        lambda matrix, place: grid_table(name, title, grid(matrix), rows, columns, matrix, place),
    )


TARGETS: dict[str, Target] = {
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
            "Table 5: tiny-imagenet-100 in place of ImageNet-subset, accuracy in % at eps 8/255",
            paper.TABLE_5,
            paper.TABLE_5_COLUMNS,
        ),
    )
}
