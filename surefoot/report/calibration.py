"""The lines of `surefoot audit --calibrate --json`, as Markdown: `python -m surefoot.report.calibration FILE`."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from surefoot.core.files import checked_lines
from surefoot.core.programs import exit_code
from surefoot.report.benchmarks import Line
from surefoot.report.tables import markdown_table

TRUTHS = ("robust", "not robust", "masked")
VERDICTS = ("robust", "not robust", "masked", "inconclusive")


def confusion_table(lines: Iterable[Line]) -> str:
    """How often each truth (a row) was given each verdict (a column).

    >>> print(confusion_table([{"truth": "masked", "verdict": "masked"}]).splitlines()[-1])
    | masked | 0 | 0 | 1 | 0 |
    """
    counts = Counter((line["truth"], line["verdict"]) for line in lines if "truth" in line)
    rows = [[truth, *(str(counts[truth, verdict]) for verdict in VERDICTS)] for truth in TRUTHS]
    return markdown_table(["truth", "called robust", *VERDICTS[1:]], rows)


def models_table(lines: Iterable[Line]) -> str:
    """A row a model: what it is, what the audit said, and why; accuracies in %."""
    header = ["model", "truth", "verdict", "clean", "FGSM", "PGD-40", "AutoAttack", "worst case", "checks that failed"]
    return markdown_table(header, [model_row(line) for line in lines if "truth" in line], left=3)


def model_row(line: Line) -> list[str]:
    """One model's."""
    facts: dict[str, Any] = line["facts"]
    shares = [facts["clean"], facts["fgsm"], facts["pgd"], facts["left"], line["worst_case_accuracy"]]
    failed = [f"`{check['key']}`" for check in line["checks"] if check["outcome"] == "failed"]
    _, _, name = str(line["model"]).partition(" ")  # the data set is the table's
    accuracies = [f"{100 * share:.1f}" for share in shares]
    return [name, line["truth"], line["verdict"], *accuracies, ", ".join(failed) or "–"]


def main(args: Sequence[str]) -> int:
    """Print both tables of the file named in `args`."""
    if len(args) != 1:
        print("usage: python -m surefoot.report.calibration FILE", file=sys.stderr)
        return 2

    def work() -> None:
        lines = checked_lines(Path(args[0]))
        if not any("truth" in line for line in lines):
            raise ValueError(f"{args[0]} is not a calibration; give what `surefoot audit --calibrate --json` printed.")
        print(confusion_table(lines), models_table(lines), sep="\n\n")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
