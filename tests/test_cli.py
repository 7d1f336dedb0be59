"""The command line as a user meets it: what it prints, where, and how it ends."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from surefoot.cli import main
from surefoot.cli.demo import what_it_means
from surefoot.cli.options import number
from surefoot.evaluation import Record, read_records
from surefoot.objectives import EnsembleAT
from surefoot.recipes import RECIPES, load_run
from surefoot.training import save_weights

QUICK = ["--epochs", "1", "--batch-size", "256"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def run_folder(capsys: pytest.CaptureFixture[str]) -> str:
    """A trained run."""
    assert main(["train", "digits/sat-r2", *QUICK]) == 0
    capsys.readouterr()
    return "runs/digits/sat-r2/0"


def test_without_a_verb_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("demo", "train", "evaluate", "list"))
    assert main(["--version"]) == 0


@pytest.mark.parametrize("verb", ["demo", "train", "evaluate", "list"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"surefoot {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian", "digits/normal"], "did you mean train?"),
        (["train"], "train needs a recipe"),
        (["train", "digits/sat-r4"], "did you mean digits/sat-r"),
        (["train", "mnist/satr3"], "mnist/sat-r3"),
        (["train", "digits/sat-r3", "--epochs", "0"], "epochs is 0"),
        (["train", "digits/sat-r3", "--objective.eps", "8"], "write 8/255 instead of 8"),
        (["train", "digits/sat-r3", "--eps", "a/b"], "'a/b' is no number"),
        (["train", "digits/sat-r3", "--objective.lamm", "1"], "--objective.lam"),
        (["train", "digits/sat-r3", "--resume"], "no run to go on with"),
        (["train", "digits/sat-r3", "--model", "resnet-19"], "resnet-18"),
        (["train", "digits/sat-r3", "--model", "no_such_module:factory"], "no_such_module"),
        (["train", "digits/sat-r3", "--dataset", "digit"], "digits"),
        (["train", "mnist/sat-r3", "--data-dir", "nowhere"], "nowhere"),
        (["evaluate"], "evaluate needs a model"),
        (["evaluate", "nowhere"], "no run"),
        (["evaluate", "surefoot.models:build_model"], "needs --weights"),
        (["list", "recipe"], "did you mean recipes"),
    ],
)
def test_wrong_input_gets_one_clear_message_and_code_2(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    captured = capsys.readouterr()
    assert words in " ".join(captured.err.replace("│", " ").split()).replace("- ", "-")
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_radii_are_written_as_fractions() -> None:
    assert number("8/255") == 8 / 255
    assert number("0.3") == 0.3


def test_train_evaluate_and_list_make_a_whole(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", run_folder, "--steps", "3", "--num-examples", "40"]) == 0
    out = capsys.readouterr().out
    assert all(label in out for label in ("clean", "FGSM", "I-FGSM-3", "PGD-3", "PGD-CW-3", "95 % interval"))
    records = read_records(Path(run_folder) / "records.jsonl")
    assert [record.attack for record in records] == [None, "FGSM", "IFGSM", "PGD", "PGD"]
    for record in records:
        assert (record.recipe, record.dataset, record.num_examples) == ("digits/sat-r2", "digits", 40)
        assert record.robust_interval[0] <= record.robust_accuracy <= record.robust_interval[1]
    assert main(["evaluate", run_folder, "--attacks", "fgsm", "--last", "--records", "all.jsonl"]) == 0
    assert len(read_records(Path(run_folder) / "records.jsonl")) == 7
    assert len(read_records(Path("all.jsonl"))) == 2
    assert main(["list", "recipes"]) == 0
    assert all(name in capsys.readouterr().out for name in ["digits/sat-r2"])


def test_fields_given_on_the_command_line_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--objective.lam", "0.5", "--objective.eps", "51/255", "--seed", "7", "--out", "here", *QUICK]
    assert main(["train", "digits/sat-r3", *given]) == 0
    recipe = load_run(Path("here")).recipe
    assert recipe.objective.lam == 0.5  # type: ignore[union-attr]
    assert recipe.objective.eps == 51 / 255  # type: ignore[union-attr]
    assert (recipe.epochs, recipe.training.seed, recipe.training.batch_size) == (1, 7, 256)


def test_a_later_phase_can_be_changed() -> None:
    args = ["--dataset", "digits", "--model", "digits-net", "--epochs", "1"]
    assert main(["train", "mnist/sat-r1-r3", *args, "--then.0.epochs", "1", "--then.0.objective.tau", "0.5"]) == 0
    run = load_run(Path("runs/mnist/sat-r1-r3/0"))
    assert [phase.epochs for phase in run.recipe.phases()] == [1, 1]
    assert run.recipe.then[0].objective.tau == 0.5  # type: ignore[attr-defined]
    assert run.epochs_done() == 2


def test_ensemble_training_trains_a_missing_source_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = dataclasses.replace(RECIPES["digits/normal"], epochs=1)
    monkeypatch.setitem(RECIPES, "digits/normal", quick)
    args = ["--dataset", "digits", "--model", "digits-net", "--objective.sources", "digits/normal", *QUICK]
    assert main(["train", "mnist/ensemble-at-a", *args]) == 0
    assert "mnist/ensemble-at-a crafts on digits/normal, which is trained first" in capsys.readouterr().err
    source = Path("runs/digits/normal/0/model.safetensors")
    before = source.stat().st_mtime_ns
    assert main(["train", "mnist/ensemble-at-a", *args, "--out", "again"]) == 0
    assert "trained first" not in capsys.readouterr().err
    assert source.stat().st_mtime_ns == before
    objective = load_run(Path("again")).recipe.objective
    assert isinstance(objective, EnsembleAT)
    assert objective.sources == ("digits/normal",)


@pytest.mark.parametrize("verb", ["train", "evaluate", "list"])
def test_json_prints_one_object_a_line_and_nothing_else(
    verb: str, run_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {
        "train": ["train", "digits/normal", *QUICK],
        "evaluate": ["evaluate", run_folder, "--attacks", "fgsm"],
        "list": ["list"],
    }[verb]
    assert main([*args, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 1
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_a_finished_run_is_not_overwritten(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (Path(run_folder) / "model.safetensors").read_bytes()
    assert main(["train", "digits/sat-r2", *QUICK]) == 2
    assert "finished run" in capsys.readouterr().err
    assert (Path(run_folder) / "model.safetensors").read_bytes() == before


def test_damaged_weights_are_refused(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path(run_folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["evaluate", run_folder]) == 2
    assert "truncated or damaged" in capsys.readouterr().err


FACTORY = """
from torch import nn
def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_anybodys_network_can_be_trained_and_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_networks_for_cli.py").write_text(FACTORY)
    name = "my_networks_for_cli:make"
    assert main(["train", "digits/sat-r3", "--model", name, "--mean", "0.5", "--std", "0.5", *QUICK]) == 0
    assert main(["evaluate", "runs/digits/sat-r3/0", "--attacks", "fgsm"]) == 0
    common = ["--weights", "runs/digits/sat-r3/0/model.safetensors", "--dataset", "digits", "--eps", "0.1"]
    attack = ["--steps", "3", "--step-size", "1/30", "--mean", "0.5", "--std", "0.5", "--json"]
    capsys.readouterr()
    assert main(["evaluate", name, *common, *attack]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["attack"] for record in records] == [None, "FGSM", "IFGSM", "PGD", "PGD"]
    assert main(["evaluate", name, *common, *attack[:-1], "--device", "cuda"]) == 2


def test_weights_of_another_network_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(nn.Linear(3, 3), Path("other.safetensors"))
    given = [
        "--weights",
        "other.safetensors",
        "--dataset",
        "digits",
        "--eps",
        "0.1",
        "--steps",
        "2",
        "--step-size",
        "0.1",
    ]
    assert main(["evaluate", "surefoot.models.lenet:digits_net", *given]) == 2
    assert "another model" in capsys.readouterr().err


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on() -> None:
    args = ["train", "digits/sat-r2", "--epochs", "400", "--batch-size", "256", "--threads", "1"]
    command = [sys.executable, "-m", "surefoot", *args]
    metrics = Path("runs/digits/sat-r2/0/metrics.jsonl")
    # A job that a shell started in the background has SIGINT ignored, and its children inherit that.
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not metrics.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert "go on with: surefoot train digits/sat-r2 --epochs 400" in err
    assert "Traceback" not in err
    assert out == ""
    assert load_run(Path("runs/digits/sat-r2/0")).epochs_done() >= 1


def test_a_loss_that_is_not_finite_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits/normal", "--learning-rate", "1e30", "--epochs", "2"]) == 1
    err = capsys.readouterr().err
    assert "the loss is" in err
    assert "learning rate" in err


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m surefoot list | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def demo_record(attack: str | None, accuracy: float) -> Record:
    return Record(
        recipe="digits/x",
        seed=0,
        weights_sha256="",
        dataset="digits",
        split="test",
        num_examples=100,
        attack=attack,
        attack_fields={"eps": 0.3, "steps": 40} if attack == "PGD" else {"eps": 0.3},
        source=None,
        clean_accuracy=0.95,
        robust_accuracy=accuracy,
        robust_interval=(0.0, 1.0),
        mean_l2=None,
        seconds=0.0,
        forwards=0,
        backwards=0,
        device="cpu",
        precision="fp32",
        versions={},
        commit=None,
    )


def demo_records(fgsm: float, pgd: float) -> list[Record]:
    return [demo_record(None, 0.95), demo_record("FGSM", fgsm), demo_record("PGD", pgd)]


def test_the_demos_sentence_follows_the_numbers() -> None:
    told = what_it_means(
        {
            "normal": demo_records(0.1, 0.0),
            "fgsm-at": demo_records(0.8, 0.1),
            "sat-r2": demo_records(0.7, 0.6),
        }
    )
    assert "FGSM-AT (80.00 -> 10.00) only looked robust" in told
    assert "SAT-R2 (70.00 -> 60.00)" in told.split(";")[1]
    assert "Normal" not in told
    turned = what_it_means({"fgsm-at": demo_records(0.8, 0.7), "sat-r2": demo_records(0.7, 0.1)})
    assert "SAT-R2 (70.00 -> 10.00) only looked robust" in turned
    nothing = what_it_means({"normal": demo_records(0.1, 0.0)})
    assert "no model only looked robust" in nothing
    assert "no model holds" in nothing


def test_the_demo_runs_and_a_second_one_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--epochs", "1", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert all(name in captured.out for name in ("Normal", "FGSM-AT", "SAT-R1", "SAT-R2", "SAT-R3", "PGD-"))
    assert captured.err.count("training for 1 epochs") == 5
    assert main(["demo", "--epochs", "1", "--threads", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert "training for" not in captured.err
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert len(lines) == 16
    assert "conclusion" in lines[-1]
    assert main(["demo", "--epochs", "2"]) == 2
    assert "other settings" in capsys.readouterr().err
