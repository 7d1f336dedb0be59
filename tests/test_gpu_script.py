"""What runs on a GPU when one is at hand: every word of it is read here, and all of it runs, tiny, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from surefoot.cli.benchmark import AttackOptions, StepOptions
from surefoot.cli.evaluate import Options as EvaluateOptions
from surefoot.cli.options import parse
from surefoot.cli.reproduce import TARGETS
from surefoot.cli.reproduce import Options as ReproduceOptions
from surefoot.cli.train import Options as TrainOptions
from surefoot.recipes import RECIPES

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


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
    trained, done = set(), set()
    for command in commands:
        program, *words = command.words
        assert command.after is None or command.after in done
        assert (command.after is None) == (words[0] != "evaluate" and not {*words} & runs - {str(command.trains)})
        done.add(command.key)
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


def fake_plan(gpu: ModuleType, out: Path, pieces: dict[str, list[tuple[str, str]]]) -> Any:
    class Fake(gpu.Plan):  # type: ignore[misc, name-defined]
        def pieces(self) -> object:
            for name, commands in pieces.items():
                yield name, [gpu.Command(key, ("timeit", "-n1", "-r1", code)) for key, code in commands]

    return Fake(out, None, 1, True)


@pytest.fixture
def ran(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the commands that would have been run."""
    keys: list[str] = []

    def run(command: Any, *_: Any) -> int:
        keys.append(command.key)
        return 0

    monkeypatch.setattr(gpu, "run", run)
    return keys


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


@pytest.mark.parametrize("limit", [["--minutes", "-1"], ["--seconds", "0"], ["--seeds", "0"]])
def test_a_limit_that_leaves_nothing_is_one_sentence(
    gpu: ModuleType, limit: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main([*limit, "--tiny", "--out", str(tmp_path / "out"), "check"])
    assert stop.value.code == 2
    assert f"{limit[0]} is {limit[1]}; give a number above 0." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seconds", "minutes", "expected"),
    [
        (540, math.inf, ["train", "long train", "benchmark", "table"]),
        (200, math.inf, ["train", "long train", "table"]),  # a benchmark of 300 s would be cut, and begin anew
        (540, 4, ["train", "table"]),  # neither of 300 s can end; a part of the table can
        (540, 14, ["train", "long train", "benchmark", "table"]),
        (60, 14, ["train", "long train", "table"]),
        (540, 2, ["train"]),
        (540, 0.5, []),
    ],
)
def test_what_cannot_end_is_not_begun(
    gpu: ModuleType, tmp_path: Path, ran: list[str], seconds: float, minutes: float, expected: list[str]
) -> None:
    commands = [
        gpu.Command("train", ("surefoot", "train"), takes=20),
        gpu.Command("long train", ("surefoot", "train"), takes=300),
        gpu.Command("evaluate", ("surefoot", "evaluate"), takes=5, after="never trained"),
        gpu.Command("benchmark", ("surefoot", "benchmark"), takes=300),
        gpu.Command("table", ("surefoot", "reproduce"), takes=900),
    ]
    plan = fake_plan(gpu, tmp_path, {})
    plan.__class__.pieces = lambda self: iter([("piece", commands)])
    assert gpu.work(plan, seconds, [], minutes) == gpu.STOPPED
    assert ran == expected


def test_what_earlier_calls_have_done_of_a_command_counts(gpu: ModuleType, tmp_path: Path, ran: list[str]) -> None:
    plan = fake_plan(gpu, tmp_path, {})
    plan.__class__.pieces = lambda self: iter([("piece", [gpu.Command("a", ("surefoot", "train"), takes=300)])])
    assert gpu.work(plan, 540, [], minutes=4) == gpu.STOPPED
    (tmp_path / "times.jsonl").write_text('{"command": "a", "seconds": 150}\n{"command": "b", "seconds": 9}\n')
    assert gpu.work(plan, 540, [], minutes=4) == 0
    assert ran == ["a"]


def test_pieces_or_the_beginnings_of_names_choose_in_their_order(
    gpu: ModuleType, tmp_path: Path, ran: list[str]
) -> None:
    plan = fake_plan(gpu, tmp_path, {"one": [("a 1", ""), ("a 2", "")], "two": [("b 1", ""), ("one", "")]})
    assert gpu.work(plan, 600, ["two", "a 2", "b"]) == 0
    assert ran == ["b 1", "one", "a 2"]


def test_what_is_worth_keeping_is_one_file_after_every_command(gpu: ModuleType, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "back" / "evidence.tar.gz"
    make = (
        "import pathlib\n"
        "for name in ('runs/mnist/sat-r1/0/metrics.jsonl', 'runs/mnist/sat-r1/0/model.safetensors', 'cache/images.npy',"
        "'reproduction/logs/a.log', 'reproduction/runs/a/records.jsonl', 'records/attacks.jsonl'):\n"
        f"    path = pathlib.Path({str(out)!r}) / name\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.write_text(name)"
    )
    plan = fake_plan(gpu, out, {"one": [("a", f"exec({make!r})"), ("b", f"assert open({str(file)!r}, 'rb').read()")]})
    assert gpu.work(plan, 600, [], evidence=file) == 0, (out / "log").read_text()
    with tarfile.open(file) as archive:
        names = {each.name for each in archive if each.isfile()}
    assert names == {
        "runs/mnist/sat-r1/0/metrics.jsonl",
        "reproduction/runs/a/records.jsonl",
        "records/attacks.jsonl",
        "log",
        "times.jsonl",
        "done.json",
    }
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_after_a_failure_that_broke_cuda_commands_run_in_processes_of_their_own(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart: list[bool] = []

    def fail(command: Any, seconds: float, out: Path, own_process: bool) -> int:
        apart.append(own_process)
        return 1

    monkeypatch.setattr(gpu, "run", fail)
    for broken in (False, True):
        monkeypatch.setattr(gpu, "cuda_is_broken", lambda broken=broken: broken)
        plan = fake_plan(gpu, tmp_path / str(broken), {"one": [("a", ""), ("b", ""), ("c", "")]})
        assert gpu.work(plan, 600, []) == 1
    assert apart == [False, False, False, False, True, True]


def test_cuda_is_broken_where_it_refuses_to_wait(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert not gpu.cuda_is_broken()
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    assert not gpu.cuda_is_broken()
    monkeypatch.setattr("torch.cuda.synchronize", refuse)
    assert gpu.cuda_is_broken()


@pytest.mark.parametrize("works", [True, False])
def test_processes_share_a_gpu_where_mps_works_and_only_there(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    asked: list[tuple[list[str], str]] = []

    def succeeds(words: list[str], told: str = "") -> bool:
        asked.append((words, told))
        return works or words[0] != sys.executable  # it starts, and no program can use it

    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu, "succeeds", succeeds)
    with gpu.sharing(tmp_path):
        assert ("CUDA_MPS_PIPE_DIRECTORY" in os.environ) == works
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert [told for words, told in asked if words == ["nvidia-cuda-mps-control"]] == ["quit\n"]


def test_without_mps_nothing_changes(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    before = dict(os.environ)
    with gpu.sharing(tmp_path):
        assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []
    assert not gpu.succeeds([str(tmp_path / "no such program")])


def test_the_check_reads_the_files_with_tests_for_a_gpu(gpu: ModuleType, tmp_path: Path) -> None:
    (command,) = gpu.Plan(tmp_path, None, 1, False).check()
    names = ("batches", "gpu", "monitor", "step")
    assert {f"tests/test_{name}.py" for name in names} <= set(command.words)
    assert "tests/test_readme.py" not in command.words
    assert all((ROOT / word).exists() for word in command.words if word.startswith("tests/"))


def test_the_script_finds_the_checkout_that_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python"), "PYTHONPATH": "other"}
    script = [str(ROOT / "benchmarks" / "gpu.sh"), "--plan"]
    printed = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.split("\n")[:3] == [f"{ROOT}:other", "benchmarks/gpu.py", "--plan"]


def test_the_plan_fits_calls_and_says_what_it_takes(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--plan", "attacks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[attacks] attacks resnet-18 pgd: 30 s, 30 s in all"
    commands = [each for _, piece in gpu.Plan(Path("out"), None, 1, False).pieces() for each in piece]
    assert all(each.goes_on or each.takes <= 540 - gpu.GRACE for each in commands)
    assert all(each.takes > 0 for each in commands)


@pytest.mark.slow
def test_all_of_it_runs_on_the_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--seconds", "3000"]) == 0, (tmp_path / "log").read_text()
    records = {path.stem for path in (tmp_path / "records").iterdir()}
    assert records == {"step-cost", "attacks", "digits-0"}
    assert "SAT-R1" in (tmp_path / "reproduction" / "smoke" / "table3.md").read_text(encoding="utf-8")
