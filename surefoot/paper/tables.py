"""Our records beside the paper's tables, as Markdown.

`python -m surefoot.paper.tables results/mnist` prints Table 3, its black-box half, Table 6's MNIST columns, and what
AutoAttack leaves, which the paper lacks; then Tables 3 and 6 in the form of `surefoot reproduce`.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surefoot.attacks import MIFGSM
from surefoot.core.programs import exit_code
from surefoot.core.types import Attack
from surefoot.evaluation import Record, read_records
from surefoot.evaluation.worker import fields_of, stopping_early
from surefoot.paper import targets
from surefoot.paper.beside import Table, printed
from surefoot.paper.matrix import METHODS as ROWS
from surefoot.paper.matrix import Column, Grid, Matrix, accuracies
from surefoot.paper.printed import TABLE_3, TABLE_3_COLUMNS, TABLE_6, TABLE_6_COLUMNS
from surefoot.paper.profiles import PAPER
from surefoot.paper.targets import SOURCES, grid_table
from surefoot.recipes import RECIPES
from surefoot.report import attack_label, markdown_table
from surefoot.report.benchmarks import read_lines
from surefoot.report.tables import percent

METHODS = {method: name for name, method in ROWS}
WHITE_BOX = {
    "clean": "Clean",
    "FGSM": "FGSM",
    "I-FGSM-100": "IFGSM",
    "PGD-100": "PGD",
    "PGD-CW-100": "PGD-CW",
}
"""Our label of an attack, and the paper's column."""


BLACK_BOX = {
    ("mnist/normal-c", "FGSM"): "C FGSM",
    ("mnist/normal-c", "MI-FGSM-100"): "C MI-FGSM",
    ("mnist/normal-d", "FGSM"): "D FGSM",
    ("mnist/normal-d", "MI-FGSM-100"): "D MI-FGSM",
}
"""The model that crafts and our label of an attack, and the paper's column."""


def cell(ours: str, printed_name: str, column: str) -> str:
    """Our number, and the paper's in brackets."""
    return f"{ours} ({printed(TABLE_3[printed_name][TABLE_3_COLUMNS.index(column)])})"


def is_of(record: Record, attack: Attack) -> bool:
    """Is a record of this attack with all its settings, as far as older records name them?"""
    name, wanted = type(attack).__name__, fields_of(attack if record.source else stopping_early(attack))
    return attack_label(record.attack, record.attack_fields) == attack_label(name, wanted) and all(
        field in wanted and value == wanted[field] for field, value in record.attack_fields.items()
    )


def is_the_tables(record: Record) -> bool:
    """Is it of an attack as the paper's tables have it? Others with the same label have another radius or step."""
    recipe = RECIPES[str(record.recipe)]
    label = attack_label(record.attack, record.attack_fields)
    minimal = [attack for attack, _ in PAPER.minimal_norm().values()]
    others = (MIFGSM(recipe.eps, recipe.attack_steps), PAPER.auto_attack(recipe.eps))
    attacks: list[Attack] = [*recipe.attacks().values(), *others, *minimal]
    alike = [each for each in attacks if attack_label(type(each).__name__, fields_of(each)) == label]
    return not alike or any(is_of(record, each) for each in alike)


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


def on_mnist(records: Sequence[Record], num_examples: int | None = None) -> dict[tuple[str | None, ...], Record]:
    """Records on MNIST's test images by recipe, source and attack; of several alike the last one counts."""
    return {
        (record.recipe, record.source, attack_label(record.attack, record.attack_fields)): record
        for record in of_one_model(comparable(records))
        if num_examples in (None, record.num_examples) and is_the_tables(record)
    }


def table_3(records: Sequence[Record], minutes: Mapping[str, float]) -> str:
    """Table 3's white-box half: a cell is our accuracy in percent, and the paper's in brackets.

    Only rows that have records are there; a cell without one is a dash. Only records on all 10,000 MNIST test
    images count.

    Args:
        records: of any models.
        minutes: the time that a recipe's training took, selection of the epoch included.
    """
    measured = on_mnist(records, 10_000)
    rows = []
    for method, name in METHODS.items():
        recipe = f"mnist/{method}"
        found = {label: measured.get((recipe, None, label)) for label in WHITE_BOX}
        if any(found.values()):
            cells = [
                cell(percent(record.robust_accuracy) if record else "-", name, WHITE_BOX[label])
                for label, record in found.items()
            ]
            rows.append([name, *cells, f"{minutes[recipe]:.0f}" if recipe in minutes else "-"])
    return markdown_table(["trained by", *WHITE_BOX, "minutes"], rows)


def table_3_black_box(records: Sequence[Record]) -> str:
    """Table 3's black-box half, likewise: samples crafted on networks C and D."""
    measured = on_mnist(records, 10_000)
    rows = []
    for method, name in METHODS.items():
        found = {
            column: measured.get((f"mnist/{method}", source, label)) for (source, label), column in BLACK_BOX.items()
        }
        if any(found.values()):
            cells = [
                cell(percent(record.robust_accuracy) if record else "-", name, column)
                for column, record in found.items()
            ]
            rows.append([name, *cells])
    return markdown_table(["trained by", *BLACK_BOX.values()], rows)


def table_6(records: Sequence[Record]) -> str:
    """Table 6's MNIST columns: fooling rate in percent and mean l2 of the fooled, ours and in brackets the paper's.

    The paper has no row for TRADES. `images` is how many test images ours are of, under DeepFool and under C&W.
    """
    measured = on_mnist(records)
    rows = []
    for method, name in METHODS.items():
        found = [measured.get((f"mnist/{method}", None, label)) for label in ("DeepFool", "C&W")]
        if not any(found) or name not in TABLE_6["mnist"]:
            continue
        cells = []
        for record, (rate, length) in zip(found, (TABLE_6["mnist"][name][:2], TABLE_6["mnist"][name][2:]), strict=True):
            ours = f"{100 * (1 - record.robust_accuracy):.1f}" if record else "-"
            norm = f"{record.mean_l2:.2f}" if record and record.mean_l2 is not None else "-"
            cells += [f"{ours} ({rate:.0f})", f"{norm} ({length:.2f})"]
        rows.append([name, *cells, " / ".join(str(record.num_examples) if record else "-" for record in found)])
    return markdown_table(["trained by", *TABLE_6_COLUMNS, "images"], rows)


def auto_attack(records: Sequence[Record]) -> str:
    """What AutoAttack leaves on MNIST, part by part, with the 95 % interval, a row a model; the paper lacks it.

    Beside it PGD-100 of the same model, on the same images or, where that was not run, on all 10,000.
    """
    rows = []
    header = ["trained by"]
    for method, name in METHODS.items():
        ours = [
            record for record in comparable(records) if record.recipe == f"mnist/{method}" and is_the_tables(record)
        ]
        for record in ours:
            if record.attack != "AutoAttack":
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
                if model_of(other) == model_of(record)
                and other.source is None
                and attack_label(other.attack, other.attack_fields) == "PGD-100"
            }
            pgd = beside.get(record.num_examples) or beside.get(10_000, "-")
            numbers = [str(record.seed), percent(record.clean_accuracy), pgd, *after]
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
    for file in sorted(root.rglob("metrics.jsonl")):
        recipe = json.loads((file.parent / "recipe.json").read_text(encoding="utf-8"))["name"]
        minutes.setdefault(recipe, sum(line["seconds"] for line in read_lines(file)) / 60)
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
    print(
        table_3(records, minutes),
        table_3_black_box(records),
        table_6(records),
        auto_attack(records),
        *(table.markdown() for table in reproduced(records, minutes)),
        sep="\n\n",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
