"""Every number of the paper's tables is in `printed.py`, as the paper has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surefoot.paper import printed
from surefoot.paper.printed import Printed

PAPER = Path(__file__).parents[2] / "shared" / "paper" / "regularizers-for-single-step-adversarial-training.md"
beside_the_paper = pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not beside this checkout")

DATASETS = ("mnist", "cifar10", "imagenet-subset")
METHODS = ["NT", "FGSM-AT", "EAT ens-A", "EAT ens-B", "EAT ens-C", "PGD-AT", "TRADES", "SAT-R1", "SAT-R2", "SAT-R3"]


def cells_of(number: int) -> dict[str, list[str]]:
    """The rows of a table in the paper's text: what is before the first tab, and the cells behind it."""
    text = PAPER.read_text(encoding="utf-8")
    part = text[re.search(rf"^TABLE {number}\b", text, flags=re.MULTILINE).start() :]  # type: ignore[union-attr]
    end = re.search(rf"^TABLE {number + 1}\b", part, flags=re.MULTILINE)
    rows = {}
    for line in part[: end.start() if end else None].splitlines():
        name, *cells = line.split("\t")
        if cells:
            rows[re.sub(r"[*$^{}\\]", "", name).strip()] = [cell.strip() for cell in cells]
    return rows


def value(cell: str) -> Printed:
    """`98.15 $\\pm 0.05$` as a pair, `99` as a number."""
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else numbers[0]


@pytest.mark.parametrize(
    ("rows", "columns", "shape", "pairs"),
    [
        (printed.TABLE_3, printed.TABLE_3_COLUMNS, (10, 9), 27),
        (printed.TABLE_4, printed.TABLE_4_COLUMNS, (10, 9), 27),
        (printed.TABLE_5, printed.TABLE_5_COLUMNS, (10, 9), 27),
        (printed.TABLE_6["mnist"], printed.TABLE_6_COLUMNS, (9, 4), 0),
        (printed.TABLE_6["cifar10"], printed.TABLE_6_COLUMNS, (9, 4), 0),
        (printed.TABLE_6["imagenet-subset"], printed.TABLE_6_COLUMNS, (9, 4), 0),
        (printed.TABLE_7, printed.TABLE_7_COLUMNS, (8, 4), 12),
        (printed.TABLE_9, printed.TABLE_9_COLUMNS, (3, 4), 12),
    ],
    ids=["3", "4", "5", "6 mnist", "6 cifar10", "6 imagenet", "7", "9"],
)
def test_a_table_is_complete(
    rows: dict[str, tuple[Printed, ...]], columns: tuple[str, ...], shape: tuple[int, int], pairs: int
) -> None:
    assert (len(rows), len(columns)) == shape
    assert all(len(row) == len(columns) for row in rows.values())
    assert len(set(columns)) == len(columns)
    assert sum(isinstance(cell, tuple) for row in rows.values() for cell in row) == pairs


@beside_the_paper
@pytest.mark.parametrize("number", [3, 4, 5])
def test_accuracies_are_the_papers(number: int) -> None:
    text = cells_of(number)
    rows = getattr(printed, f"TABLE_{number}")
    assert list(rows) == METHODS == [name for name in text if name in METHODS]
    for name, row in rows.items():
        assert [value(cell) for cell in text[name]] == list(row)


@beside_the_paper
def test_minimal_norms_are_the_papers() -> None:
    text = cells_of(6)
    names = [name for name in METHODS if name != "TRADES"]
    for name in names:
        ours = [number for dataset in DATASETS for number in printed.TABLE_6[dataset][name]]
        assert [value(cell) for cell in text[name]] == ours
    assert all(list(table) == names for table in printed.TABLE_6.values())


@beside_the_paper
@pytest.mark.parametrize(("number", "names"), [(7, None), (9, {"SAT-R3": "SAT-R3 (20 epochs)"})])
def test_ablations_and_sequences_are_the_papers(number: int, names: dict[str, str] | None) -> None:
    text = {re.sub(r" \(\d+\+\d+ epochs\)", "", name): cells for name, cells in cells_of(number).items()}
    rows = getattr(printed, f"TABLE_{number}")
    for name, row in rows.items():
        assert [value(cell) for cell in text[(names or {}).get(name, name)]] == list(row)
    numbers = [name for name, cells in text.items() if all(re.match(r"\d", cell) for cell in cells)]
    assert len(numbers) == len(rows)


@beside_the_paper
def test_costs_are_the_papers() -> None:
    text = cells_of(8)
    for name in printed.TABLE_8["mnist"]:
        *costs, needed = text[name]
        for dataset, cost in zip(DATASETS, costs, strict=True):
            number, *iterated = re.findall(r"\d+", cost)
            assert int(number) == printed.TABLE_8[dataset][name]
            assert [int(steps) for steps in iterated] == (
                [printed.TABLE_8_ITERATED[dataset]] if name == "SAT-R1" else []
            )
        assert (needed == "Yes") == (name in printed.TABLE_8_PRE_TRAINED)
    assert {len(table) for table in printed.TABLE_8.values()} == {7}


@beside_the_paper
def test_sources_are_the_papers() -> None:
    text = cells_of(2)
    for cells, dataset in zip((text["MNIST"], text["CIFAR-10"], text["ImageNet Subset"]), DATASETS, strict=True):
        trained, sources = cells
        pairs = re.findall(r"(\S+, \S+)", sources)
        assert len(re.findall(r"ens-[ABC]", trained)) == len(pairs) == 3
        assert [", ".join(pair) for pair in printed.TABLE_2[dataset].values()] == pairs


def test_sums_have_not_moved() -> None:
    """What every table sums to, so that a slip of a key shows where the paper's text is not there."""

    def total(rows: dict[str, tuple[Printed, ...]]) -> float:
        return round(sum(cell[0] if isinstance(cell, tuple) else cell for row in rows.values() for cell in row), 2)

    sums = [6627.27, 5398.25, 4285.19, 2112.01, 1101.62]
    assert [total(getattr(printed, f"TABLE_{number}")) for number in (3, 4, 5, 7, 9)] == sums
    assert [total({**table}) for table in printed.TABLE_6.values()] == [1800.96, 1754.26, 1739.39]


def test_no_other_file_holds_an_accuracy_that_the_paper_prints() -> None:
    tables = (printed.TABLE_3, printed.TABLE_4, printed.TABLE_5, printed.TABLE_7, printed.TABLE_9)
    cells = [cell for table in tables for row in table.values() for cell in row]
    theirs = {f"{cell[0] if isinstance(cell, tuple) else cell:.2f}" for cell in cells}
    alone = Path(printed.__file__)
    found = {
        f"{file.name}: {number}"
        for file in alone.parents[1].rglob("*.py")
        if file != alone
        for number in re.findall(r"(?<![\d.])\d\d\.\d\d(?![\d.])", file.read_text(encoding="utf-8"))
        if number in theirs
    }
    assert "88.76" in theirs
    assert found == set()
