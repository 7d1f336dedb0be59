"""Records: flat JSON objects, one attack on one model each, from which every table is drawn."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.core.files import append_lines, check_can_write


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964.

    Args:
        successes: in [0, trials].
        trials: at least 1.

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: counts out of range.

    Example:
        >>> low, high = wilson_interval(900, 1000)
        >>> round(low, 4), round(high, 4)
        (0.8798, 0.9171)

    Source:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is not a share; give 0 <= successes <= trials and trials >= 1.")
    z = 1.959963984540054
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    scale = 1 + z * z / trials
    # At the ends the bound is the share itself, which rounding misses.
    low = 0.0 if successes == 0 else (centre - half) / scale
    return low, 1.0 if successes == trials else (centre + half) / scale


@dataclass(frozen=True, kw_only=True)
class Record:
    """One attack on one model: what was run, on what, and what came out.

    Accuracies are fractions in [0, 1]. `attack` is the attack's class name, None for clean accuracy;
    `source` names the model that crafted, None for white-box. `mean_l2` is over the samples that the
    attack fooled, None where there are none. `forwards` and `backwards` count samples through the networks,
    a black-box attack's source among them. `precision` is `strict` or `fast`, as `evaluate` has them (`fp32` in
    records from before there were two; `mixed` of a worst case over both). `eight_bit`: only what survives rounding
    to 8-bit pixels counts as fooled. `seed` is the training's, `attack_seed` that of the attack's random numbers (None
    for clean accuracy, and in records from before it was kept). `parts` lists what was run in turn, where that is more
    than one attack: a screening, or the parts of `AutoAttack` and `WorstCase`, each with `attack`, `attack_fields`,
    `precision` and the accuracy after it.
    """

    recipe: str | None
    seed: int | None
    weights_sha256: str
    dataset: str | None
    split: str
    num_examples: int
    attack: str | None
    attack_fields: dict[str, Any]
    source: str | None
    clean_accuracy: float
    robust_accuracy: float
    robust_interval: tuple[float, float]
    mean_l2: float | None
    seconds: float
    forwards: int
    backwards: int
    device: str
    precision: str
    versions: dict[str, str]
    commit: str | None
    eight_bit: bool = False
    attack_seed: int | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


def append_records(path: str | Path, records: Iterable[Record]) -> None:
    """Append records to a `.jsonl` file, whole lines only, synced before this returns; several processes may.

    A last line that an interruption left unfinished is cut off first; a record that lacks its newline gets it.

    Args:
        path: the file, made where missing, and its folder too.
        records: in the order in which they are written.

    Raises:
        ValueError: the file holds something other than records, and is left as it is.
        OSError: it cannot be written.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from surefoot.evaluation import evaluate
        >>> records = evaluate(torch.nn.Linear(4, 3), [(torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))], [])
        >>> with TemporaryDirectory() as folder:
        ...     append_records(Path(folder) / "records.jsonl", records)
        ...     read_records(Path(folder) / "records.jsonl") == records
        True
    """
    append_lines(Path(path), (record.to_json() for record in records), is_record, "a record", b'{"recipe": ')


def check_records(path: Path, what: str) -> None:
    """Refuse a file that `append_records` would refuse, or cannot write, before there is something to append.

    Args:
        path: where records are to go.
        what: what asked for that.

    Raises:
        ValueError: with what to do.
    """
    check_can_write(path, what)
    if path.exists():
        append_records(path, [])
        read_records(path)


def is_record(line: bytes) -> bool:
    """Is this a record's line?"""
    try:
        record_of(line)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def record_of(line: bytes) -> Record:
    """The record of a line; raises as `json.loads` and `Record` do."""
    fields = json.loads(line)
    return Record(**{**fields, "robust_interval": tuple(fields["robust_interval"])})


def read_records(path: str | Path) -> list[Record]:
    """Read the records of a `.jsonl` file; an unfinished last line is left out.

    Args:
        path: what `append_records` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is not a record, with its number.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     append_records(Path(folder) / "records.jsonl", [])
        ...     read_records(Path(folder) / "records.jsonl")
        []
    """
    records = []
    with open(path, "rb") as file:  # bytes: an unfinished line may end within a character
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                records.append(record_of(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"line {number} of {path} is not a record ({error}); remove it.") from error
    return records
