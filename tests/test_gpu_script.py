"""What runs on a GPU when one is at hand: every word of it is read here, and all of it runs, tiny, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from surefoot.cli.benchmark import AttackOptions, StepOptions
from surefoot.cli.evaluate import Options as EvaluateOptions
from surefoot.cli.options import parse
from surefoot.cli.reproduce import TARGETS
from surefoot.cli.reproduce import Options as ReproduceOptions
from surefoot.cli.train import Options as TrainOptions
from surefoot.recipes import RECIPES

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_gpu", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tiny", [False, True])
def test_every_command_is_one_that_surefoot_takes(gpu: ModuleType, tiny: bool, tmp_path: Path) -> None:
    plan = gpu.Plan(tmp_path, None, 2, tiny)
    commands = [command for _, piece in plan.pieces() for command in piece]
    assert len({command.key for command in commands}) == len(commands)
    runs = {str(command.trains) for command in commands if command.trains is not None}
    trained = set()
    for command in commands:
        program, *words = command.words
        if program == "pytest" or words[0] == "list":
            continue
        verb, name, *rest = words
        if verb == "reproduce":
            parse(ReproduceOptions, rest, prog="", description="")
            assert name in TARGETS
        elif verb == "benchmark":
            parse({"step-cost": StepOptions, "attacks": AttackOptions}[name], rest[1:], prog="", description="")
        elif verb == "train":
            options = parse(TrainOptions, rest, prog="", description="", default=TrainOptions(recipe=RECIPES[name]))
            assert str(options.out) == str(command.trains)
            trained.add(str(command.trains))
        else:
            found = parse(EvaluateOptions, rest, prog="", description="")
            assert {name, *([found.source] if found.source else [])} <= trained  # after what it measures
    assert trained == runs


def fake_plan(gpu: ModuleType, out: Path, pieces: dict[str, list[tuple[str, str]]]) -> object:
    class Fake(gpu.Plan):  # type: ignore[misc, name-defined]
        def pieces(self) -> object:
            for name, commands in pieces.items():
                yield name, [gpu.Command(key, ("timeit", "-n1", "-r1", code)) for key, code in commands]

    return Fake(out, None, 1, True)


def test_what_is_done_is_not_done_again_and_a_failure_does_not_stop_the_others(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = f"open({str(tmp_path / 'mark')!r}, 'a').write('x')"
    plan = fake_plan(gpu, tmp_path / "out", {"one": [("a", mark), ("b", "1/0")], "two": [("c", mark)]})
    assert gpu.work(plan, 600, []) == 1
    assert gpu.work(plan, 600, []) == 1
    assert (tmp_path / "mark").read_text() == "xx"
    assert "one: 1 of 2 done; failed: b" in capsys.readouterr().out
    assert "ZeroDivisionError" in (tmp_path / "out" / "log").read_text()


def test_a_call_ends_in_time_and_the_next_goes_on(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 1)
    slow = f"import time, pathlib; p = pathlib.Path({str(tmp_path / 'begun')!r}); first = not p.exists(); p.touch()"
    plan = fake_plan(gpu, tmp_path / "out", {"one": [("a", slow + "; time.sleep(60 if first else 0)")]})
    assert gpu.work(plan, 3, []) == gpu.STOPPED
    assert json.loads((tmp_path / "out" / "times.jsonl").read_text())["seconds"] < 30
    assert gpu.work(plan, 600, []) == 0


def test_a_training_that_was_begun_is_resumed(gpu: ModuleType, tmp_path: Path) -> None:
    command = gpu.Command("train", ("surefoot", "train", "mnist/normal"), trains=tmp_path)
    assert "--resume" not in command.now()
    (tmp_path / "recipe.json").touch()
    assert command.now()[-1] == "--resume"


def test_an_unknown_piece_is_one_sentence(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(["no-such-piece"])
    assert stop.value.code == 2
    assert "there is no piece 'no-such-piece'" in capsys.readouterr().err


@pytest.mark.slow
def test_all_of_it_runs_on_the_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--seconds", "3000"]) == 0, (tmp_path / "log").read_text()
    records = {path.stem for path in (tmp_path / "records").iterdir()}
    assert records == {"step-cost", "attacks", "digits-0"}
    assert "SAT-R1" in (tmp_path / "reproduction" / "smoke" / "table3.md").read_text(encoding="utf-8")
