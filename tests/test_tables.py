"""The paper's tables drawn from records: each number in its cell, a dash where there is none."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from surefoot.evaluation import Record, evaluate
from surefoot.paper.beside import Table
from surefoot.paper.printed import TABLE_6, TABLE_6_COLUMNS
from surefoot.paper.tables import auto_attack, reproduced
from surefoot.report import record_table

PAPER = Path(__file__).parents[2] / "shared" / "paper" / "regularizers-for-single-step-adversarial-training.md"


def record(attack: str | None, accuracy: float, **changes: Any) -> Record:
    (clean,) = evaluate(nn.Linear(2, 2), [(torch.rand(2, 2), torch.tensor([0, 1]))], [])
    fields = {
        "recipe": "mnist/sat-r1",
        "seed": 0,
        "weights_sha256": "one model",
        "dataset": "mnist",
        "num_examples": 10_000,
        "attack": attack,
        "clean_accuracy": 0.98,
        "robust_accuracy": accuracy,
        "robust_interval": (0.8, 0.9),
    }
    return Record(**{**vars(clean), **fields, **changes})


def row_of(table: Table, name: str) -> str:
    (row,) = (line for line in table.grid().splitlines() if line.startswith(f"| {name} |"))
    return row


def test_in_a_narrow_terminal_nothing_of_a_table_is_left_out() -> None:
    kinds = [("PGD", {"steps": 40}), ("PGD", {"steps": 40, "loss": {"name": "MarginLoss"}}), (None, {})]
    records = [record(attack, 0.875, attack_fields=fields) for attack, fields in kinds]
    console = Console(width=40, file=io.StringIO())
    console.print(record_table(records, "a model"))
    assert isinstance(console.file, io.StringIO)
    assert "…" not in console.file.getvalue()
    assert console.file.getvalue().count("87.50") == 3


def test_black_box_records_are_told_apart_by_their_source() -> None:
    fgsm, mifgsm = {"eps": 0.3}, {"eps": 0.3, "steps": 100, "decay": 1.0}
    records = [
        record("FGSM", 0.91, source="mnist/normal-c", attack_fields=fgsm),
        record("MIFGSM", 0.92, source="mnist/normal-d", attack_fields=mifgsm),
        record("MIFGSM", 0.10, source="mnist/normal-c", attack_fields={**mifgsm, "steps": 10}),
        record("MIFGSM", 0.13, source="mnist/normal-c", attack_fields={**mifgsm, "decay": 0.5}),
        record("FGSM", 0.11, attack_fields=fgsm),
        record("FGSM", 0.12, source="mnist/normal-d", num_examples=1000, attack_fields=fgsm),
        record("FGSM", 0.14, source="mnist/normal-d", attack_fields={"eps": 0.1}),
    ]
    row = row_of(reproduced(records, {})[0], "SAT-R1")
    assert row.endswith("| 91.00 (93.99 ± 0.09) | - (93.81 ± 0.07) | - (94.04 ± 0.06) | 92.00 (94.23 ± 0.07) | - | - |")


def test_table_6_has_fooling_rates_and_norms() -> None:
    records = [
        record("DeepFool", 0.05, mean_l2=4.2, num_examples=1000),
        record("PGD", 0.5, attack_fields={"steps": 100}),
    ]
    assert row_of(reproduced(records, {})[1], "SAT-R1") == "| SAT-R1 | 95.0 (89) | 4.20 (4.51) | - (100) | - (3.34) |"
    records.append(record("CarliniWagnerL2", 0.0, mean_l2=3.3, num_examples=200))
    assert row_of(reproduced(records, {})[1], "SAT-R1").endswith("| 100.0 (100) | 3.30 (3.34) |")


@pytest.mark.parametrize(
    "changes",
    [
        {"attack_fields": {"stop_when_fooled": False}},
        {"attack_fields": {"restarts": 20}},
        {"attack_fields": {"random_start": False}},
        {"eight_bit": True},
        {"precision": "fast"},
        {"dataset": "imagefolder:/corrupted"},
        {"weights_sha256": "another model"},
        {"seed": 1},
        {"recipe": None},
        {"recipe": "package.module:factory"},
    ],
    ids=str,
)
def test_a_row_is_of_one_model_and_of_the_attacks_as_the_tables_have_them(changes: dict[str, Any]) -> None:
    fields = {"eps": 0.3, "steps": 100, "step_size": 0.01, "random_start": True, "restarts": 1, "loss": "cross_entropy"}
    fields |= {"start_radius": 0.01, "stop_when_fooled": True}
    clean, pgd = record(None, 0.98, seed=0), record("PGD", 0.88, seed=0, attack_fields=fields)
    other = dataclasses.replace(
        pgd, robust_accuracy=0.11, **{**changes, "attack_fields": {**fields, **changes.get("attack_fields", {})}}
    )
    parts = [{"attack": "APGD", "attack_fields": {}, "robust_accuracy": 0.85}]
    auto = record("AutoAttack", 0.85, seed=0, parts=parts, num_examples=1000)
    for told in ([clean, pgd, auto, other], [clean, other, pgd, auto]):
        table, _ = reproduced(told, {})
        cells = [cell.partition(" (")[0] for cell in row_of(table, "SAT-R1").split(" | ")[1:]]
        assert cells == ["-", "-", "-", "88.00", *["-"] * 5, "85.00", "- |"]
        assert "11.00" not in table.grid() + auto_attack(told)
        assert "| 98.00 | 88.00 | 85.00 |" in auto_attack(told)


def test_auto_attack_is_shown_part_by_part() -> None:
    parts = [
        {"attack": "APGD", "attack_fields": {}, "precision": "fp32", "robust_accuracy": 0.9},
        {"attack": "Square", "attack_fields": {}, "precision": "fp32", "robust_accuracy": 0.85},
    ]
    pgd = {"eps": 0.3, "steps": 100, "step_size": 0.01, "start_radius": 0.01, "loss": "cross_entropy"}
    ours = record("AutoAttack", 0.85, parts=parts, num_examples=1000)
    header, _, row = auto_attack([ours]).splitlines()
    assert header == ("| trained by | seed | clean | PGD-100 | after APGD-CE | after Square | 95 % interval | images |")
    assert row == f"| SAT-R1 | {ours.seed} | 98.00 | - | 90.00 | 85.00 | 80.00 - 90.00 | 1000 |"
    on_all = record("PGD", 0.88, attack_fields=pgd, weights_sha256=ours.weights_sha256)
    on_same = dataclasses.replace(on_all, robust_accuracy=0.87, num_examples=1000)
    other = dataclasses.replace(on_same, weights_sha256="another model", robust_accuracy=0.1)
    assert "| 98.00 | 88.00 |" in auto_attack([other, ours, on_all])
    assert "| 98.00 | 87.00 |" in auto_attack([ours, on_same, on_all])


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not beside this checkout")
def test_table_6_is_the_papers() -> None:
    text = PAPER.read_text(encoding="utf-8")
    rows = text[text.index("TABLE 6") : text.index("TABLE 7")].splitlines()
    for name in TABLE_6["mnist"]:
        line = next(line for line in rows if line.startswith(f"{name}\t"))
        ours = [number for dataset in ("mnist", "cifar10", "imagenet-subset") for number in TABLE_6[dataset][name]]
        assert [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line.split("\t", 1)[1])] == ours
    assert all(len(row) == len(TABLE_6_COLUMNS) for table in TABLE_6.values() for row in table.values())
    assert {len(table) for table in TABLE_6.values()} == {9}
