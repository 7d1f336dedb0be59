"""Our records beside the paper's tables, as Markdown.

`python -m surefoot.paper.tables results/mnist` prints Table 3's white-box half.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from surefoot.evaluation import Record, read_records
from surefoot.paper.printed import TABLE_3, TABLE_3_COLUMNS, Printed
from surefoot.report import attack_label, markdown_table
from surefoot.report.tables import percent

METHODS = {
    "normal": "NT",
    "fgsm-at": "FGSM-AT",
    "ensemble-at-a": "EAT ens-A",
    "ensemble-at-b": "EAT ens-B",
    "ensemble-at-c": "EAT ens-C",
    "pgd-at": "PGD-AT",
    "trades": "TRADES",
    "sat-r1": "SAT-R1",
    "sat-r2": "SAT-R2",
    "sat-r3": "SAT-R3",
}
WHITE_BOX = {
    "clean": "Clean",
    "FGSM": "FGSM",
    "I-FGSM-100": "IFGSM",
    "PGD-100": "PGD",
    "PGD-CW-100": "PGD-CW",
}
"""Our label of an attack, and the paper's column."""


def table_3(records: Sequence[Record], minutes: Mapping[str, float]) -> str:
    """Table 3's white-box half: a cell is our accuracy in percent, and the paper's in brackets.

    Only rows that have records are there; a cell without one is a dash. Of several records of one attack
    on one recipe the last one counts. Only white-box records on all 10,000 MNIST test images count.

    Args:
        records: of any models.
        minutes: the time that a recipe's training took, selection of the epoch included.
    """
    measured = {
        (record.recipe, attack_label(record.attack, record.attack_fields)): record
        for record in records
        if record.dataset == "mnist" and record.split == "test" and record.num_examples == 10_000 and not record.source
    }
    rows = []
    for method, printed_name in METHODS.items():
        recipe = f"mnist/{method}"
        if not any(key[0] == recipe for key in measured):
            continue
        cells = []
        for label, column in WHITE_BOX.items():
            record = measured.get((recipe, label))
            ours = percent(record.robust_accuracy) if record else "-"
            cells.append(f"{ours} ({printed(TABLE_3[printed_name][TABLE_3_COLUMNS.index(column)])})")
        rows.append([printed_name, *cells, f"{minutes[recipe]:.0f}" if recipe in minutes else "-"])
    return markdown_table(["trained by", *WHITE_BOX, "minutes"], rows)


def printed(value: Printed) -> str:
    """A printed number as the paper has it."""
    return f"{value[0]:.2f} ± {value[1]:.2f}" if isinstance(value, tuple) else f"{value:.2f}"


def read_runs(root: Path) -> tuple[list[Record], dict[str, float]]:
    """All records of the runs below a folder, and how many minutes each recipe's training took.

    Raises:
        ValueError: there are none, or a file is damaged.
    """
    files = sorted(root.rglob("records.jsonl"))
    if not files:
        raise ValueError(f"there is no records.jsonl below {root}; give a folder of runs.")
    records = [record for file in files for record in read_records(file)]
    minutes = {}
    for file in sorted(root.rglob("metrics.jsonl")):
        recipe = json.loads((file.parent / "recipe.json").read_text(encoding="utf-8"))["name"]
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        minutes[recipe] = sum(line["seconds"] for line in lines) / 60
    return records, minutes


def main(argv: Sequence[str]) -> int:
    """Print Table 3 from the runs below the folder named in `argv`."""
    if len(argv) != 1:
        print("usage: python -m surefoot.paper.tables FOLDER", file=sys.stderr)
        return 2
    try:
        print(table_3(*read_runs(Path(argv[0]))))
    except (OSError, ValueError, KeyError) as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
