"""A table in which each of our numbers stands beside the paper's, as Markdown and as CSV."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.special import stdtrit  # type: ignore[import-untyped]

from surefoot.evaluation import Record, wilson_interval
from surefoot.paper.printed import Printed
from surefoot.report import markdown_table

PERCENT = (0.0, 100.0)
NOT_NEGATIVE = (0.0, math.inf)
NEAR = 2.0
"""Points, up to which a difference from the paper is near."""
NEAR_SHARE = 0.1
"""The same as a share of the paper's number, where it is not a percentage."""
CSV_COLUMNS = (
    "table",
    "row",
    "column",
    "seeds",
    "ours",
    "deviation",
    "low",
    "high",
    "images",
    "paper",
    "paper_deviation",
)


@dataclass(frozen=True)
class Cell:
    """Our numbers, one a seed, and the paper's.

    Args:
        values: in the unit in which the paper prints them; none where it was not run.
        interval: 95 % of one seed's number; of several it follows from their spread, where they have one.
        images: how many were attacked; None where it was not run.
        paper: None where the paper has no such number.
        digits: behind the point.
        paper_digits: likewise, of the paper's; None is as many.
        limits: between which any such number lies; None is anywhere.
    """

    values: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None
    images: int | None = None
    paper: Printed | None = None
    digits: int = 2
    paper_digits: int | None = None
    limits: tuple[float, float] | None = None

    def missing(self) -> bool:
        """Was it not run? What was run may have no number: a mean length where nothing was fooled."""
        return not self.values and self.images is None

    def mean(self) -> float | None:
        """Over the seeds."""
        return statistics.fmean(self.values) if self.values else None

    def deviation(self) -> float | None:
        """The sample deviation over two seeds or more."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def bounds(self) -> tuple[float, float] | None:
        """95 %: Wilson's of one seed's images, Student's of several seeds' means, cut off at the limits.

        Seeds that all agree have no spread to go by, and Wilson's interval of their images is theirs.

        >>> Cell((12.0, 98.0), limits=(0.0, 100.0)).bounds()
        (0.0, 100.0)
        """
        if len(set(self.values)) < 2:
            return self.interval
        spread = statistics.stdev(self.values) / len(self.values) ** 0.5
        reach = float(stdtrit(len(self.values) - 1, 0.975)) * spread
        low, high = self.limits or (-math.inf, math.inf)
        mean = statistics.fmean(self.values)
        return max(low, mean - reach), min(high, mean + reach)

    @property
    def printed_digits(self) -> int:
        """Behind the point of the paper's number."""
        return self.digits if self.paper_digits is None else self.paper_digits

    def paper_mean(self) -> float | None:
        """The paper's number without its deviation."""
        return self.paper[0] if isinstance(self.paper, tuple) else self.paper

    def far(self) -> bool:
        """Is the mean more than two points from the paper's, or more than a tenth of that where it is a length?

        >>> Cell((52.5,), paper=50.0, limits=PERCENT).far(), Cell((2.5,), paper=2.6, limits=NOT_NEGATIVE).far()
        (True, False)
        """
        mean, theirs = self.mean(), self.paper_mean()
        if mean is None or theirs is None:
            return False
        return abs(mean - theirs) > (NEAR if self.limits == PERCENT else NEAR_SHARE * theirs)

    def paper_text(self) -> str:
        """The paper's number as it prints it; empty where it has none."""
        if self.paper is None:
            return ""
        return printed(self.paper, self.printed_digits)

    def text(self) -> str:
        """`98.40 ± 0.14 (97.35 ± 0.05)`; a dash where there is nothing of ours.

        >>> Cell((98.3, 98.5), paper=(97.35, 0.05)).text(), Cell(paper=1.0).text(), Cell((2.0,)).text()
        ('98.40 ± 0.14 (97.35 ± 0.05)', '- (1.00)', '2.00')
        """
        mean, deviation = self.mean(), self.deviation()
        ours = "-" if mean is None else f"{mean:.{self.digits}f}"
        if deviation is not None:
            ours += f" ± {deviation:.{self.digits}f}"
        return ours if self.paper is None else f"{ours} ({self.paper_text()})"


@dataclass(frozen=True)
class Table:
    """Rows of cells under their columns, and what must be known to read them.

    Args:
        name: `table3`.
        title: what it shows.
        head: what the first column is.
        columns: the other columns' heads.
        rows: a name and as many cells as there are columns; a string is shown as it is.
        notes: sentences below the table.
        judged: does a difference from the paper tell how well it was reproduced? Not where the setting makes it.
    """

    name: str
    title: str
    head: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | str, ...]], ...]
    notes: tuple[str, ...] = field(default=())
    judged: bool = True

    def measured(self) -> bool:
        """Is there any number of ours in it?"""
        return any(isinstance(cell, Cell) and cell.mean() is not None for _, cells in self.rows for cell in cells)

    def grid(self) -> str:
        """The bare table as Markdown."""
        lines = [
            [name, *(cell if isinstance(cell, str) else cell.text() for cell in cells)] for name, cells in self.rows
        ]
        return markdown_table([self.head, *self.columns], lines)

    def markdown(self) -> str:
        """Title, table, intervals and notes."""
        parts = [f"# {self.title}", "Ours, and in brackets the paper's.", self.grid()]
        bounded = [
            (name, cells)
            for name, cells in self.rows
            if any(isinstance(cell, Cell) and cell.bounds() for cell in cells)
        ]
        if bounded:
            kept = [
                index
                for index in range(len(self.columns))
                if any(isinstance(cells[index], Cell) and cells[index].bounds() for _, cells in bounded)  # type: ignore[union-attr]
            ]
            lines = [[name, *(interval_text(cells[index]) for index in kept)] for name, cells in bounded]
            parts += [
                "95 % intervals: Student's t over the seeds; Wilson's over the images of one seed, or where all agree:",
                markdown_table([self.head, *(self.columns[index] for index in kept)], lines),
            ]
        parts += list(self.notes)
        return "\n\n".join(parts) + "\n"

    def lines(self) -> list[dict[str, Any]]:
        """A flat object for each cell that has a number of ours or of the paper."""
        found = []
        for name, cells in self.rows:
            for column, cell in zip(self.columns, cells, strict=True):
                if isinstance(cell, str):
                    continue
                low, high = cell.bounds() or (None, None)
                paper_deviation = cell.paper[1] if isinstance(cell.paper, tuple) else None
                values = (
                    self.name,
                    name,
                    column,
                    len(cell.values),
                    cell.mean(),
                    cell.deviation(),
                    low,
                    high,
                    cell.images,
                    cell.paper_mean(),
                    paper_deviation,
                )
                found.append(dict(zip(CSV_COLUMNS, values, strict=True)))
        return found

    def csv(self) -> str:
        """`lines` as CSV with a head; empty where there is no number."""
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.lines())
        return text.getvalue()

    def missing(self) -> list[str]:
        """The rows and cells that were not run."""
        found = []
        for name, cells in self.rows:
            numbers = [
                (column, cell) for column, cell in zip(self.columns, cells, strict=True) if isinstance(cell, Cell)
            ]
            lost = [column for column, cell in numbers if cell.missing()]
            found += [name] if len(lost) == len(numbers) else [f"{name} {column}" for column in lost]
        return found

    def far(self) -> list[str]:
        """The cells whose mean is far from the paper's, and by how much."""
        return [
            f"{name} {column} {cell.mean() - cell.paper_mean():+.2f}"  # type: ignore[operator]
            for name, cells in self.rows
            for column, cell in zip(self.columns, cells, strict=True)
            if isinstance(cell, Cell) and cell.far()
        ]

    def far_note(self) -> str:
        """These in a sentence, with the rule; empty where there are none."""
        printed = [
            cell for _, cells in self.rows for cell in cells if isinstance(cell, Cell) and cell.paper is not None
        ]
        lengths = ", or a tenth of it where it is a length" if any(cell.limits != PERCENT for cell in printed) else ""
        far = "; ".join(self.far())
        return f"More than two points from the paper's{lengths}: {far}." if far else ""


def interval_text(cell: Cell | str) -> str:
    """The bounds of a cell, where it has them."""
    bounds = None if isinstance(cell, str) else cell.bounds()
    return "-" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def printed(value: Printed, digits: int = 2) -> str:
    """A printed number as the paper has it.

    >>> printed((97.35, 0.05)), printed(99.0, 0)
    ('97.35 ± 0.05', '99')
    """
    if isinstance(value, tuple):
        return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"
    return f"{value:.{digits}f}"


def accuracy_cell(records: Sequence[Record], paper: Printed | None = None, *, clean: bool = False) -> Cell:
    """Robust (or clean) accuracy in percent from one record a seed."""
    if not records:
        return Cell(paper=paper, limits=PERCENT)
    values = tuple(100 * (record.clean_accuracy if clean else record.robust_accuracy) for record in records)
    images = records[0].num_examples
    low, high = records[0].robust_interval
    if clean:
        low, high = wilson_interval(round(records[0].clean_accuracy * images), images)
    return Cell(values, (100 * low, 100 * high), images, paper, limits=PERCENT)


def fooling_cells(records: Sequence[Record], paper: tuple[float, float] | None) -> tuple[Cell, Cell]:
    """Fooling rate in percent and mean l2 of what fooled, from one record a seed."""
    rate, length = (None, None) if paper is None else paper
    if not records:
        return Cell(paper=rate, paper_digits=0, limits=PERCENT), Cell(paper=length, limits=NOT_NEGATIVE)
    images = records[0].num_examples
    rates = tuple(100 * (1 - record.robust_accuracy) for record in records)
    low, high = records[0].robust_interval
    lengths = tuple(record.mean_l2 for record in records if record.mean_l2 is not None)
    return (
        Cell(rates, (100 * (1 - high), 100 * (1 - low)), images, rate, digits=1, paper_digits=0, limits=PERCENT),
        Cell(lengths, None, images, length, limits=NOT_NEGATIVE),
    )
