"""Tables of records, for a terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from surefoot.evaluation import Record

ON_PAPER = {
    "RFGSM": "R-FGSM",
    "IFGSM": "I-FGSM",
    "MIFGSM": "MI-FGSM",
    "CarliniWagnerL2": "C&W",
    "APGD": "APGD-CE",
    "APGDT": "APGD-T",
    "FABT": "FAB-T",
    "WorstCase": "worst case",
}
WITH_STEPS = ("IFGSM", "MIFGSM", "PGD")


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
    if attack not in WITH_STEPS:
        return label
    loss = fields.get("loss")
    if isinstance(loss, dict) and loss.get("name") == "MarginLoss":
        label += "-CW"
    return f"{label}-{fields['steps']}"


def radius_in(fields: Mapping[str, Any]) -> float | None:
    """The largest radius in an attack's settings or its parts'; None where it holds none.

    >>> radius_in({"attacks": [{"name": "FGSM", "eps": 0.1}, {"name": "PGD", "eps": 0.3}]}), radius_in({"steps": 50})
    (0.3, None)
    """
    found = [fields.get("eps"), *(radius_in(part) for part in fields.get("attacks", ()))]
    return max((each for each in found if each is not None), default=None)


def percent(fraction: float) -> str:
    """A fraction as percent with two decimals."""
    return f"{100 * fraction:.2f}"


def record_table(records: Sequence[Record], title: str) -> Table:
    """One model's records, a row an attack: accuracy, its 95 % interval, what fooled it by how much, and the time.

    Below an attack of several parts there is a row a part, with the accuracy after it. `mean l2` is over the samples
    that were fooled. Where the attacks hold several radii, a column has them.

    Args:
        records: of one model, as `evaluate` gives them.
        title: above the table.

    Example:
        >>> import torch
        >>> from surefoot.attacks import FGSM
        >>> from surefoot.evaluation import evaluate
        >>> batches = [(torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))]
        >>> record_table(evaluate(torch.nn.Linear(4, 3), batches, [FGSM(eps=0.1)]), "a linear model").row_count
        2
    """
    table = Table(title=title, title_justify="left")
    radii = [radius_in(record.attack_fields) for record in records]
    several = len({each for each in radii if each is not None}) > 1
    for name in ("attack", *["eps"] * several, "accuracy %", "95 % interval", "mean l2", "seconds"):
        table.add_column(name, justify="left" if name == "attack" else "right", overflow="fold")
    for record, eps in zip(records, radii, strict=True):
        low, high = record.robust_interval
        table.add_row(
            attack_label(record.attack, record.attack_fields),
            *["" if eps is None else f"{eps:.4g}"] * several,
            percent(record.robust_accuracy),
            f"{percent(low)} - {percent(high)}",
            "" if record.mean_l2 is None else f"{record.mean_l2:.2f}",
            f"{record.seconds:.1f}",
        )
        for part in record.parts:
            if part["attack"] != record.attack:  # a screening is no part of its own
                label = attack_label(part["attack"], part["attack_fields"])
                table.add_row(f"  after {label}", *[""] * several, percent(part["robust_accuracy"]), "", "", "")
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table: the first `left` columns to the left, the others to the right.

    Args:
        header: a name a column.
        rows: of as many cells each.

    Example:
        >>> print(markdown_table(["method", "PGD"], [["SAT-R1", "50.00"]]))
        | method | PGD |
        | --- | ---: |
        | SAT-R1 | 50.00 |
    """
    lines = [header, [*["---"] * left, *["---:"] * (len(header) - left)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
