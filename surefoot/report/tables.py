"""Tables of records, for a terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from surefoot.evaluation import Record

ON_PAPER = {"FGSM": "FGSM", "RFGSM": "R-FGSM", "IFGSM": "I-FGSM", "MIFGSM": "MI-FGSM", "PGD": "PGD"}


def attack_label(attack: str | None, fields: Mapping[str, Any]) -> str:
    """A record's attack as a paper writes it, with its steps: `clean`, `FGSM`, `PGD-100`.

    Args:
        attack: its class name; None is clean.
        fields: its settings, as in `Record.attack_fields`.

    Example:
        >>> attack_label("PGD", {"steps": 100, "loss": {"name": "MarginLoss", "confidence": 50.0}})
        'PGD-CW-100'
    """
    if attack is None:
        return "clean"
    label = ON_PAPER.get(attack, attack)
    loss = fields.get("loss")
    if isinstance(loss, dict) and loss.get("name") == "MarginLoss":
        label += "-CW"
    steps = fields.get("steps")
    return f"{label}-{steps}" if steps is not None else label


def percent(fraction: float) -> str:
    """A fraction as percent with two decimals."""
    return f"{100 * fraction:.2f}"


def record_table(records: Sequence[Record], title: str) -> Table:
    """One model's records, a row an attack: accuracy, its 95 % interval, and the time it took."""
    table = Table(title=title, title_justify="left")
    for name in ("attack", "accuracy %", "95 % interval", "seconds"):
        table.add_column(name, justify="left" if name == "attack" else "right")
    for record in records:
        low, high = record.robust_interval
        table.add_row(
            attack_label(record.attack, record.attack_fields),
            percent(record.robust_accuracy),
            f"{percent(low)} - {percent(high)}",
            f"{record.seconds:.1f}",
        )
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right.

    Example:
        >>> print(markdown_table(["method", "PGD"], [["SAT-R1", "88.76"]]))
        | method | PGD |
        | --- | ---: |
        | SAT-R1 | 88.76 |
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
