"""Our records beside the paper's tables, as Markdown.

`python -m surefoot.paper.tables results/mnist` prints Table 3 and Table 6's MNIST columns as `surefoot reproduce` has
them, and what AutoAttack leaves, part by part, which the paper lacks.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surefoot.core.files import checked_lines
from surefoot.core.programs import exit_code
from surefoot.core.types import Attack
from surefoot.evaluation import Record, read_records
from surefoot.evaluation.attack_settings import fields_of, with_stop
from surefoot.paper import targets
from surefoot.paper.beside import Table
from surefoot.paper.matrix import METHODS, Column, Grid, Matrix, accuracies, pgd
from surefoot.paper.printed import TABLE_3, TABLE_3_COLUMNS
from surefoot.paper.profiles import PAPER
from surefoot.paper.targets import SOURCES, grid_table
from surefoot.recipes import RECIPES
from surefoot.recipes.run import RECIPE_FILE
from surefoot.report import attack_label, markdown_table
from surefoot.report.tables import percent
from surefoot.training.checkpoint import METRICS


def is_of(record: Record, attack: Attack) -> bool:
    """Is a record of this attack with all its settings, as far as older records name them?"""
    name, wanted = type(attack).__name__, fields_of(with_stop(attack, when_fooled=not record.source))
    return attack_label(record.attack, record.attack_fields) == attack_label(name, wanted) and all(
        field in wanted and value == wanted[field] for field, value in record.attack_fields.items()
    )


def comparable(records: Sequence[Record]) -> list[Record]:
    """Those of our recipes on MNIST's test images, in the precision and with the pixels that the tables are of."""
    return [
        record
        for record in records
        if record.recipe in RECIPES
        and (record.dataset, record.split, record.eight_bit) == ("mnist", "test", False)
        and record.precision in ("strict", "fp32")
    ]


def of_one_model(records: Sequence[Record]) -> list[Record]:
    """Of each recipe those of one model: of its first seed, and there of the weights that have the most.

    The model that crafts is not told apart: records name its recipe alone.
    """
    counts: dict[str | None, Counter[tuple[float, str]]] = {}
    for record in records:
        counts.setdefault(record.recipe, Counter())[model_of(record)] += 1
    kept = {recipe: min(found, key=lambda model: (model[0], -found[model])) for recipe, found in counts.items()}
    return [record for record in records if model_of(record) == kept[record.recipe]]


def model_of(record: Record) -> tuple[float, str]:
    """Its seed, after all others where it is not known, and the hash of its weights."""
    return (math.inf if record.seed is None else record.seed, record.weights_sha256)


def auto_attack(records: Sequence[Record]) -> str:
    """What AutoAttack leaves on MNIST, part by part, with the 95 % interval, a row a model; the paper lacks it.

    Beside it PGD-100 of the same model, on the same images or, where that was not run, on all 10,000.
    """
    rows = []
    header = ["trained by"]
    for name, method in METHODS:
        recipe = RECIPES[f"mnist/{method}"]
        ours = [record for record in comparable(records) if record.recipe == recipe.name and record.source is None]
        for record in ours:
            if not is_of(record, PAPER.auto_attack(recipe.eps)):
                continue
            low, high = record.robust_interval
            labels = [attack_label(part["attack"], part["attack_fields"]) for part in record.parts]
            header = [
                *("trained by", "seed", "clean", "PGD-100"),
                *(f"after {label}" for label in labels),
                *("95 % interval", "images"),
            ]
            after = [percent(part["robust_accuracy"]) for part in record.parts]
            beside = {
                other.num_examples: percent(other.robust_accuracy)
                for other in ours
                if model_of(other) == model_of(record) and is_of(other, pgd(recipe))
            }
            on_pgd = beside.get(record.num_examples) or beside.get(10_000, "-")
            numbers = [str(record.seed), percent(record.clean_accuracy), on_pgd, *after]
            rows.append([name, *numbers, f"{percent(low)} - {percent(high)}", str(record.num_examples)])
    return markdown_table(header, rows)


@dataclass(frozen=True)
class Committed:
    """The results of finished runs on MNIST, by what their records say of themselves.

    Args:
        found: records of any models.
        spent: minutes of each recipe's training.
        whole: how many images all test images are.
    """

    found: Sequence[Record]
    spent: Mapping[str, float]
    whole: int = 10_000

    def records(self, grid: Grid, column: Column, recipe: str, matrix: Matrix) -> list[Record]:
        """The last record of each seed that is of the cell's attack, source and number of images."""
        attack = column.attack(RECIPES[recipe])
        seeds = {
            record.seed: record
            for record in self.found
            if (record.recipe, record.source, record.split) == (recipe, column.source, column.split)
            and is_of(record, attack)
            and record.num_examples == (column.images or self.whole)
        }
        return list(seeds.values())

    def minutes(self, recipe: str, matrix: Matrix) -> list[float]:
        """What the training took, where it is known."""
        return [self.spent[recipe]] if recipe in self.spent else []


def reproduced(records: Sequence[Record], minutes: Mapping[str, float]) -> tuple[Table, Table]:
    """Tables 3 and 6 as `surefoot reproduce --profile paper` has them, from finished runs on MNIST of seed 0."""
    first = of_one_model([record for record in comparable(records) if record.seed == 0])
    results, scale = Committed(first, minutes), Matrix(PAPER, 1)
    grid = accuracies("mnist", SOURCES["mnist"], PAPER)
    title = "Table 3: MNIST, accuracy in % at eps 0.3"
    return (
        grid_table("table3", title, grid, TABLE_3, TABLE_3_COLUMNS, scale, results),
        targets.table_6(scale, results),
    )


def read_runs(root: Path) -> tuple[list[Record], dict[str, float]]:
    """All records of the runs below a folder, and how many minutes each recipe's first seed was trained.

    Raises:
        ValueError: there are none, or a file is damaged.
    """
    files = sorted(root.rglob("records.jsonl"))
    if not files:
        raise ValueError(f"there is no records.jsonl below {root}; give a folder of runs.")
    records = [record for file in files for record in read_records(file)]
    if not records:
        raise ValueError(f"the records.jsonl below {root} hold no record; measure one with `surefoot evaluate RUN`.")
    minutes: dict[str, float] = {}
    for file in sorted(root.rglob(METRICS)):
        recipe = json.loads((file.parent / RECIPE_FILE).read_text(encoding="utf-8"))["name"]
        minutes.setdefault(recipe, sum(line["seconds"] for line in checked_lines(file)) / 60)
    return records, minutes


def main(argv: Sequence[str]) -> int:
    """Print the tables from the runs below the folder named in `argv`."""
    if len(argv) != 1:
        print("usage: python -m surefoot.paper.tables FOLDER", file=sys.stderr)
        return 2
    return exit_code(lambda: show(Path(argv[0])))


def show(root: Path) -> None:
    """Print the tables of the runs below a folder."""
    records, minutes = read_runs(root)
    print(*(table.markdown() for table in reproduced(records, minutes)), auto_attack(records), sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
