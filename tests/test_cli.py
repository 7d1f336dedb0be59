"""The command line as a user meets it: what it prints, where, and how it ends."""

import dataclasses
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surefoot.attacks import ATTACKS, IFGSM
from surefoot.audit import Audit, audit
from surefoot.cli import audit as cli_audit
from surefoot.cli import main, models, output
from surefoot.cli import train as cli_train
from surefoot.cli.benchmark import ObjectiveName
from surefoot.cli.demo import AUDITED, what_it_means
from surefoot.cli.evaluate import AttackName, step_at
from surefoot.cli.options import number, parse
from surefoot.data import load
from surefoot.evaluation import Record, read_records
from surefoot.evaluation.identity import weights_sha256
from surefoot.models import load_factory
from surefoot.objectives import OBJECTIVES, EnsembleAT
from surefoot.recipes import RECIPES, load_run, train
from surefoot.training import save_weights
from surefoot.training.trial import try_training
from tests.tables import at_work

TOO_MANY = (os.cpu_count() or 1) + 2  # processes on this machine
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
    assert all(verb in out for verb in ("demo", "train", "evaluate", "audit", "list"))
    assert main(["--version"]) == 0


@pytest.mark.parametrize("verb", ["demo", "train", "evaluate", "audit", "list"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"surefoot {verb}" in capsys.readouterr().out


def test_the_source_of_an_audit_is_explained_as_an_audits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["audit", "--help"]) == 0
    out = capsys.readouterr().out
    assert "For the check by transfer: the model" in out
    assert "score on MODEL" not in out


def test_the_attacks_to_choose_from_are_in_the_order_of_the_documents(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = page[page.index("| `--attacks` |") : page.index("In Python each is")]
    names = re.findall(r"`([\w-]+)`", " ".join(row.split("|")[1] for row in table.strip().splitlines()[2:]))
    assert len(names) == 13
    assert main(["evaluate", "a", "--attacks", "foo"]) == 2
    assert f"Expected one of {(*names, 'None')}" in capsys.readouterr().err
    assert main(["evaluate", "a", "--attacks", "fgsm", "None"]) == 2
    assert "None is given beside other names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian", "digits/normal"], "did you mean train?"),
        (["train"], "train needs a recipe"),
        (["train", "--epochs", "1", "digits/sat-r3"], "train needs a recipe, before any option"),
        (["train", "digits/sat-r4"], "did you mean digits/sat-r"),
        (["train", "mnist/satr3"], "mnist/sat-r3"),
        (["train", "digits/sat-r3", "--epochs", "0"], "epochs is 0"),
        (["train", "digits/sat-r3", "--epochs", "9" * 23], "it must be at most 1000000"),
        (["train", "digits/sat-r3", "--seed", "9" * 20], "it must be at most 4294967295"),
        (["train", "digits/sat-r3", "--seed", "-1"], "seed is -1; it must be a whole number of at least 0"),
        (["train", "imagefolder:photos"], "surefoot train cifar10/sat-r2 --dataset imagefolder:photos --num-classes"),
        (["train", "digits/sat-r3", "--image-size", "100000"], "image_size is 100000; it must be at most 4096"),
        (
            ["train", "digits/sat-r3", "--devices", str(TOO_MANY), "--device", "cpu"],
            f"devices is {TOO_MANY}, but device",
        ),
        (["train", "digits/sat-r3", "--threads", "0"], "--threads is 0; it must be a whole number of at least 1"),
        (["demo", "--threads", "0"], "--threads is 0"),
        (["evaluate", "a", "--threads", "-3"], "--threads is -3"),
        (["audit", "a", "--threads", "99999999"], "--threads is 99999999; it must be at most 1024"),
        (["reproduce", "table3", "--threads", "0"], "--threads is 0"),
        (["reproduce", "table3", "--seeds", "9" * 12], "it must be at most 1000"),
        (["benchmark", "attacks", "--threads", "0"], "--threads is 0"),
        (["benchmark", "step-cost", "--threads", "0"], "--threads is 0"),
        (["benchmark", "step-cost", "--records", "."], "--records is ., a folder"),
        (["list", "--threads", "0"], "--threads is 0"),
        (["evaluate", "a", "--seed", "9" * 20], "it must be at most 4294967295"),
        (["audit", "a", "--seed", "-1"], "it must be a whole number of at least 0"),
        (["demo", "--seed", "9" * 20], "it must be at most 4294967295"),
        (["evaluate", "a", "--records", "."], "--records is ., a folder"),
        (["train", "digits/sat-r3", "--objective.eps", "8"], "write 8/255 instead of 8"),
        (["train", "digits/sat-r3", "--eps", "a/b"], "'a/b' is not a number"),
        (["train", "digits/sat-r3", "--objective.lamm", "1"], "--objective.lam"),
        (["train", "digits/sat-r3", "--resume"], "no run to go on with"),
        (["train", "digits/sat-r3", "--model", "resnet-19"], "resnet-18"),
        (["train", "digits/sat-r3", "--model", "no_such_module:factory"], "no_such_module"),
        (["train", "digits/sat-r3", "--dataset", "digit"], "digits"),
        (["train", "mnist/sat-r3", "--data-dir", "nowhere"], "nowhere"),
        (["evaluate"], "evaluate needs a model, before any option"),
        (["evaluate", "nowhere"], "nowhere is not a run"),
        (["evaluate", r"C:\runs\nowhere"], "not a run"),
        (["evaluate", "surefoot.models:build_model"], "needs --dataset"),
        (["evaluate", "a", "--source-weights", "w"], "--source-weights is for a --source"),
        (["evaluate", "a", "--source", "b", "--last-iterate"], "leave it out with --source"),
        (["evaluate", "a", "--source", "b", "--precision", "fast"], "a --source crafts in fp32"),
        (["evaluate", "a", "b", "--save-samples", "c"], "one folder for one model"),
        (["evaluate", "a", "--draws", "0"], "draws is 0"),
        (["evaluate", "a", "--attacks", "pgdd"], "pgd"),
        (["evaluate", "a", "--attacks"], "attacks is empty"),
        (["evaluate", "a", "--eps", "0.1", "x"], "'x' is not a number; write 0.3 or 8/255"),
        (["evaluate", "a", "--eps"], "no number is given"),
        (["evaluate", "a", "--attacks", "fgsm", "--steps", "0"], "steps is 0"),
        (["evaluate", "a", "--attacks", "fgsm", "--step-size", "2"], "step_size is 2"),
        (["evaluate", "a", "--attacks", "fgsm", "--random-step", "-0.1"], "random_step is -0.1"),
        (["evaluate", "a", "--attacks", "deepfool", "--eps", "8"], "write 8/255 instead of 8"),
        (["evaluate", "a", "--attacks", "fgsm", "--cw-steps", "0"], "steps is 0"),
        (["evaluate", "a", "--attacks", "fgsm", "--deepfool-shorten", "-1"], "shorten is -1"),
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


@pytest.mark.parametrize("verb", ["evaluate", "audit"])
def test_a_path_that_the_system_refuses_is_named_in_a_sentence(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = tmp_path / "recipe.json"
    refused.mkdir()
    assert main([verb, str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"surefoot: {refused} cannot be used (")
    assert "give another path" in err


def test_a_path_may_begin_at_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    options = parse(cli_train.Options, ["--out=~/run"], prog="train", description="", default=None)
    assert options.out == tmp_path / "run"


def test_radii_are_written_as_fractions() -> None:
    assert number("8/255") == 8 / 255
    assert number("0.3") == 0.3


def test_train_evaluate_and_list_make_a_whole(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", run_folder, "--steps", "3", "--num-examples", "40"]) == 0
    out = capsys.readouterr().out
    assert all(label in out for label in ("clean", "FGSM", "I-FGSM-3", "PGD-3", "PGD-CW-3", "95 % interval"))
    records = read_records(Path(run_folder) / "records.jsonl")
    assert [record.attack for record in records] == [None, "FGSM", "IFGSM", "PGD", "PGD", "WorstCase"]
    assert records[-1].robust_accuracy <= min(record.robust_accuracy for record in records[:-1])
    for record in records:
        assert (record.recipe, record.dataset, record.num_examples) == ("digits/sat-r2", "digits", 40)
        assert record.robust_interval[0] <= record.robust_accuracy <= record.robust_interval[1]
    assert main(["evaluate", run_folder, "--attacks", "fgsm", "--last", "--records", "all.jsonl"]) == 0
    assert len(read_records(Path(run_folder) / "records.jsonl")) == 8
    assert len(read_records(Path("all.jsonl"))) == 2
    assert main(["list", "recipes"]) == 0
    assert all(name in capsys.readouterr().out for name in ["digits/sat-r2"])
    assert main(["list", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: surefoot list [WHAT] ")


def test_fields_given_on_the_command_line_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--objective.lam", "0.5", "--objective.eps", "51/255", "--seed", "7", "--out", "here", *QUICK]
    assert main(["train", "digits/sat-r3", *given]) == 0
    recipe = load_run(Path("here")).recipe
    assert recipe.objective.lam == 0.5  # type: ignore[union-attr]
    assert recipe.objective.eps == 51 / 255  # type: ignore[union-attr]
    assert (recipe.epochs, recipe.training.seed, recipe.training.batch_size) == (1, 7, 256)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["digits/sat-r3", "--eps", "0.2"], "trained at ε = 0.3 and measured at 0.2"),
        (["digits/sat-r3", "--objective.eps", "51/255"], "trained at ε = 0.2 and measured at 0.3"),
        (["digits/sat-r3", "--objective.eps", "0.2", "--eps", "0.2"], None),
        (["digits/normal", "--eps", "0.2"], None),  # which is trained at none
        (["mnist/fast"], None),  # whose radius grows beyond what it is measured at
        (["mnist/fast", "--eps", "0.1"], "trained at ε = 0.06 to 0.36 and measured at 0.1"),
        (["cifar10/trades"], None),  # 0.031, as its authors have it
    ],
)
def test_a_radius_that_is_changed_alone_is_said(
    args: list[str], said: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_train, "train_with_progress", lambda *_, **__: None)
    assert main(["train", *args]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert (said in err) if said else ("measured at" not in err)


def test_a_later_phase_can_be_changed() -> None:
    args = ["--dataset", "digits", "--model", "digits-net", "--epochs", "1"]
    assert main(["train", "mnist/sat-r1-r3", *args, "--then.0.epochs", "1", "--then.0.objective.tau", "0.5"]) == 0
    run = load_run(Path("runs/mnist/sat-r1-r3/0"))
    assert [phase.epochs for phase in run.recipe.phases()] == [1, 1]
    assert run.recipe.then[0].objective.tau == 0.5  # type: ignore[attr-defined]
    assert run.epochs_done() == 2


@pytest.fixture
def ensemble(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What trains an ensemble on the digits, whose one source takes an epoch."""
    monkeypatch.setitem(RECIPES, "digits/normal", dataclasses.replace(RECIPES["digits/normal"], epochs=1))
    data = ["--dataset", "digits", "--model", "digits-net"]
    return ["train", "mnist/ensemble-at-a", *data, "--objective.sources", "digits/normal", *QUICK]


def test_weights_to_start_from_are_looked_at_before_a_source_is_trained(
    ensemble: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(nn.Linear(2, 2), "other.safetensors")
    for given, words in (("nowhere", "there is no nowhere"), ("other.safetensors", "is of another model")):
        assert main([*ensemble, "--initial-weights", given]) == 2
        assert words in capsys.readouterr().err
    assert not Path("runs").exists()


def test_ensemble_training_trains_a_missing_source_once(
    ensemble: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(ensemble) == 0
    assert "mnist/ensemble-at-a crafts on digits/normal, which is trained first" in capsys.readouterr().err
    source = Path("runs/digits/normal/0/model.safetensors")
    before = source.stat().st_mtime_ns
    assert main([*ensemble, "--out", "again"]) == 0
    assert "trained first" not in capsys.readouterr().err
    assert source.stat().st_mtime_ns == before
    objective = load_run(Path("again")).recipe.objective
    assert isinstance(objective, EnsembleAT)
    assert objective.sources == ("digits/normal",)


def test_no_source_is_trained_where_a_later_one_does_not_take_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--dataset", "digits", "--model", "digits-net"]
    assert main(["train", "mnist/ensemble-at-a", *data, "--objective.sources", "mnist/normal", "mnist/normal-a"]) == 2
    assert "mnist-a needs images of at least 9 pixels a side, got 8" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_several_processes_of_torchrun_train_no_source(
    ensemble: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert main(ensemble) == 2
    said = "train it before, without torchrun, in runs/digits/normal/0: surefoot train digits/normal"
    assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()


def test_ensemble_training_crafts_on_models_of_its_own_data(
    ensemble: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = ["--num-classes", "4", "--validation-size", "50"]
    assert main([*ensemble, *fewer]) == 0
    source = load_run(Path("runs/digits/normal/0")).recipe
    assert (source.num_classes, source.validation_size) == (4, 50)
    capsys.readouterr()
    assert main([*ensemble, "--out", "all"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "runs/digits/normal/0 was trained on other data (num_classes 4 instead of None, validation_size 50" in err
    with pytest.raises(ValueError, match="was trained on other data"):
        train(load_run(Path("runs/mnist/ensemble-at-a/0")).recipe, Path("x"), sources={"digits/normal": trained(10)})


def trained(classes: int) -> Path:
    """The run of an ordinary training on the digits of so many classes."""
    path = Path(f"of-{classes}")
    train(dataclasses.replace(RECIPES["digits/normal"], epochs=1, num_classes=classes), path)
    return path


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
    assert [record["attack"] for record in records] == [None, "FGSM", "IFGSM", "PGD", "PGD", "WorstCase"]
    assert [record["attack_seed"] for record in records] == [None, *[0] * 5]
    assert main(["evaluate", name, *common, *attack[:-1], "--device", "cuda"]) == 2
    capsys.readouterr()
    assert main(["evaluate", name, *common]) == 2
    assert "of this network behind a normalisation; give --mean 0.5 and --std 0.5" in capsys.readouterr().err
    # The network's own weights, saved by whoever normalised outside of it, do as well.
    own = {
        key.removeprefix("network."): tensor
        for key, tensor in load_file("runs/digits/sat-r3/0/model.safetensors").items()
        if key.startswith("network.")
    }
    save_file(own, "own.safetensors")
    common[1] = "own.safetensors"
    capsys.readouterr()
    assert main(["evaluate", name, *common, *attack]) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["robust_accuracy"] for record in again] == [record["robust_accuracy"] for record in records]
    save_file({"other": torch.zeros(1)}, "own.safetensors")
    assert main(["evaluate", name, *common, *attack]) == 2
    assert "own.safetensors is of another model: it lacks 1.weight" in capsys.readouterr().err


def test_runs_and_networks_of_ones_own_stand_side_by_side(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_networks_for_cli.py").write_text(FACTORY)
    for seed in range(2):
        torch.manual_seed(seed)
        save_weights(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), f"{seed}.safetensors")
    name, attack = "my_networks_for_cli:make", ["--dataset", "digits", "--eps", "0.1", "--attacks", "fgsm"]
    both = evaluated(capsys, name, run_folder, name, *attack, "--weights", "0.safetensors", "1.safetensors")
    first = evaluated(capsys, name, *attack, "--weights", "0.safetensors")
    second = evaluated(capsys, name, *attack, "--weights", "1.safetensors")
    own = evaluated(capsys, run_folder, *attack)
    alone = ["--weights", "0.safetensors", "--num-examples", "20"]
    standard = evaluated(capsys, name, *attack[:-1], "i-fgsm", "pgd", "pgd-cw", *alone)
    fields = [record["attack_fields"] for record in standard if record["attack"] in ("IFGSM", "PGD")]
    assert [(each["steps"], each.get("step_size")) for each in fields] == [(20, None), (20, 0.025), (20, 0.025)]
    clean, nowhere, *_ = evaluated(capsys, name, *attack[:3], "0", "--attacks", "pgd", *alone)
    assert nowhere["robust_accuracy"] == clean["robust_accuracy"]
    assert main(["evaluate", name, *attack[:2], *attack[4:], *alone]) == 2
    assert (
        "fgsm needs --eps, which only a run knows by itself; give --eps, for example 8/255." in capsys.readouterr().err
    )
    hashes = [record["weights_sha256"] for record in both]
    assert hashes == [record["weights_sha256"] for record in (*first, *own, *second)]
    assert len(set(hashes)) == 3
    assert main(["evaluate", name, run_folder, name, *attack, "--weights", "0.safetensors"]) == 2
    words = f"--weights names 1 of the 2 files that {name} and {name} need; give one for each"
    assert words in capsys.readouterr().err


def test_a_network_that_brings_its_own_weights_is_taken_as_it_is(
    run_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save_weights(network := nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "own.safetensors")
    Path("my_trained_network.py").write_text(
        "import torch\nfrom surefoot.training import load_weights\n"
        "def make(num_classes):\n"
        "    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))\n"
        "    load_weights(network, 'own.safetensors')\n    return network\n"
    )
    of_digits = ["--dataset", "digits", "--eps", "0.1", "--attacks", "fgsm", "--num-examples", "20"]
    clean, _ = evaluated(capsys, "my_trained_network:make", *of_digits)
    assert clean["weights_sha256"] == weights_sha256(network)
    assert main(["evaluate", run_folder, "--source", "my_trained_network:make", *of_digits[4:]]) == 0
    assert "with those that the function gives it" in capsys.readouterr().err


def test_a_run_that_may_not_be_written_in_is_evaluated_into_another_file(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path(run_folder) and access(path, mode))
    command = ["evaluate", run_folder, "--attacks", "fgsm", "--num-examples", "20"]
    assert main(command) == 2
    assert "(--records FILE is another) needs the folder" in capsys.readouterr().err
    assert main([*command, "--records", "elsewhere.jsonl"]) == 0
    assert [record.attack for record in read_records("elsewhere.jsonl")] == [None, "FGSM"]
    assert not Path(run_folder, "records.jsonl").exists()


def test_a_source_of_ones_own_may_have_its_normalisation(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_networks_for_cli.py").write_text(FACTORY)
    save_weights(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "own.safetensors")
    source = ["--source", "my_networks_for_cli:make", "--source-weights", "own.safetensors"]
    (_, plain) = evaluated(capsys, run_folder, *source, "--attacks", "fgsm")
    assert main(["evaluate", run_folder, *source, "--attacks", "fgsm", "--std", "0", "--json"]) == 2
    assert "std must be above 0" in capsys.readouterr().err
    (_, scaled) = evaluated(capsys, run_folder, *source, "--attacks", "fgsm", "--mean", "0.5", "--std", "0.5")
    assert plain["source"] == scaled["source"] == "my_networks_for_cli:make"


def shades(place: Path) -> str:
    """A data set of six classes, each a shade of its own."""
    for label in range(6):
        folder = place / "shades" / f"class-{label}"
        folder.mkdir(parents=True)
        for shade in range(10):
            Image.new("RGB", (8, 8), (40 * label, 40 * label, shade)).save(folder / f"{shade}.png")
    return f"imagefolder:{place / 'shades'}"


def test_with_a_source_models_of_other_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--dataset", shades(tmp_path), "--num-classes", "2", "--image-size", "8"]
    for seed in ("0", "1"):
        assert main(["train", "digits/normal", *QUICK, *data, "--data-seed", seed, "--out", seed]) == 0
    capsys.readouterr()
    assert main(["evaluate", "0", "1", "--source", "0", "--attacks", "fgsm"]) == 2
    assert "0 and 1 tell other classes of imagefolder:" in capsys.readouterr().err
    for verb in ("evaluate", "audit"):
        assert main([verb, "0", "--source", "1"]) == 2
        assert "1 tells other classes of imagefolder:" in capsys.readouterr().err
    assert main(["evaluate", "0", "--source", "0", "--attacks", "fgsm"]) == 0


def test_a_network_of_ones_own_is_measured_on_the_classes_that_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of = shades(tmp_path)
    Path("my_colour_networks.py").write_text(FACTORY.replace("64", "192"))
    save_weights(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), "own.safetensors")
    given = ["--dataset", folder_of, "--num-classes", "2", "--image-size", "8", "--weights", "own.safetensors"]
    for seed in ("0", "1"):
        attack = ["--eps", "0", "--attacks", "fgsm", "--save-samples", seed, "--data-seed", seed]
        evaluated(capsys, "my_colour_networks:make", *given, *attack)
        images = load_file(f"{seed}/1-FGSM.safetensors")["adv_inputs"]
        test = load(folder_of, num_classes=2, image_size=8, seed=int(seed)).test
        assert torch.equal((255 * images).round().to(torch.uint8), test.images)
    assert len({load(folder_of, num_classes=2, seed=seed).class_names for seed in (0, 1)}) == 2


def test_a_run_is_not_measured_on_other_images_than_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shades(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", "imagefolder:shades", "--image-size", "8"]
    training = ["train", "digits/normal", *data, "--epochs", "2", "--out", "run"]
    assert main(training) == 0
    assert "6 classes, " in capsys.readouterr().err
    assert load_run("run").recipe.dataset == f"imagefolder:{tmp_path / 'shades'}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the run knows where its images are
    assert main(["evaluate", str(tmp_path / "run"), "--attacks", "fgsm"]) == 0
    about = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    assert about["class_names"] == [f"class-{label}" for label in range(6)]
    shutil.copytree(tmp_path / "shades", tmp_path / "more")
    more = next((tmp_path / "shades" / "class-0").iterdir())
    for count in range(20):
        shutil.copy(more, more.with_name(f"more-{count}.png"))
    capsys.readouterr()
    for verb in ("evaluate", "audit"):
        assert main([verb, str(tmp_path / "run")]) == 2
        assert "so that it might be tested on what it has learned" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--attacks", "fgsm", "--dataset", "imagefolder:../more"]) == 0


def test_a_training_goes_on_with_the_images_that_it_was_begun_with(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES["digits/normal"], dataset=shades(tmp_path), image_size=8, epochs=2)

    def interrupt(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", on_epoch=interrupt)
    more = next((tmp_path / "shades" / "class-0").iterdir())
    shutil.copy(more, more.with_name("more.png"))
    with pytest.raises(ValueError, match="put the folder back as it was"):
        train(recipe, tmp_path / "run", resume=True)
    more.with_name("more.png").unlink()
    assert len(train(recipe, tmp_path / "run", resume=True).metrics) == 2


def test_an_audits_page_replaces_no_other_file(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path(run_folder, "model.safetensors")
    before = weights.read_bytes()
    assert main(["audit", run_folder, "--out", str(weights)]) == 2
    assert "a file that is no page, and would be lost" in capsys.readouterr().err
    assert weights.read_bytes() == before


def evaluated(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["evaluate", *args, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_attack_has_a_name_on_the_command_line(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    slow = {"auto-attack", "cw"}
    # The worst case over the attacks is added to them, and PGD-CW is PGD with another loss.
    assert set(get_args(AttackName)) == set(ATTACKS) - {"worst-case"} | {"pgd-cw"}
    names = [name for name in get_args(AttackName) if name not in slow]
    records = evaluated(capsys, run_folder, "--attacks", *names, "--steps", "2", "--num-examples", "10")
    kinds = ["PGD" if name == "pgd-cw" else getattr(ATTACKS[name], "__name__", "") for name in names]
    assert [record["attack"] for record in records] == [None, *kinds, "WorstCase"]
    assert all(record["precision"] == "strict" and not record["eight_bit"] for record in records)


def test_the_attacks_that_are_listed_are_those_that_evaluate_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attacks", "--json"]) == 0
    listed = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(listed) == sorted(get_args(AttackName))


def test_the_settings_of_an_evaluation_reach_its_records(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--attacks", "i-fgsm", "--num-examples", "30", "--steps", "3"]
    (_, fast) = evaluated(capsys, run_folder, *common, "--precision", "fast")
    (_, rounded) = evaluated(capsys, run_folder, *common, "--eight-bit", "--save-samples", "kept")
    assert (fast["precision"], rounded["precision"], rounded["eight_bit"]) == ("fast", "strict", True)
    kept = load_file("kept/1-IFGSM.safetensors")
    levels = 255 * kept["adv_inputs"][~kept["robust"]]
    assert kept["robust"].float().mean().item() == pytest.approx(rounded["robust_accuracy"])
    assert float((levels - levels.round()).abs().max()) < 1e-3


def test_the_settings_of_attacks_the_split_and_the_epoch_reach_the_records(
    run_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = Path(run_folder, "last.safetensors")
    save_file({name: 2 * tensor for name, tensor in load_file(last).items()}, last)
    radii = ["--eps", "51/255", "--steps", "3", "--step-size", "0.05", "--random-step", "0.15", "--restarts", "2"]
    of_cw = ["--cw-steps", "4", "--cw-search-steps", "2", "--cw-learning-rate", "0.3"]
    of_deepfool = ["--deepfool-steps", "7", "--deepfool-shorten", "0"]
    common = ["--attacks", "r-fgsm", "i-fgsm", "pgd", "deepfool", "cw", *radii, *of_deepfool, *of_cw]
    clean, rfgsm, ifgsm, pgd, deepfool, cw, _ = evaluated(capsys, run_folder, *common, "--split", "validation")
    assert (clean["split"], clean["num_examples"]) == ("validation", 240)
    for record, known in (
        (rfgsm, {"eps": 0.2, "random_step": 0.15}),
        (ifgsm, {"eps": 0.2, "steps": 3}),
        (pgd, {"eps": 0.2, "steps": 3, "step_size": 0.05, "restarts": 2, "start_radius": 0.05}),
        (deepfool, {"steps": 7, "shorten": 0}),
        (cw, {"steps": 4, "search_steps": 2, "learning_rate": 0.3}),
    ):
        assert known.items() <= record["attack_fields"].items()
    (of_last,) = {each["weights_sha256"] for each in evaluated(capsys, run_folder, "--attacks", "fgsm", "--last")}
    assert of_last != clean["weights_sha256"]


def test_several_radii_are_measured_in_one_go(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = [run_folder, "--eps", "0.15", "0.3", "--attacks", "deepfool", "fgsm", "pgd", "--num-examples", "40"]
    records = evaluated(capsys, *common, "--steps", "4", "--deepfool-steps", "2")
    assert [(record["attack"], record["attack_fields"].get("eps")) for record in records] == [
        *((None, None), ("DeepFool", None), ("FGSM", 0.15), ("FGSM", 0.3), ("PGD", 0.15), ("PGD", 0.3)),
        *2 * [("WorstCase", None)],
    ]
    small, large = (record["attack_fields"] for record in records if record["attack"] == "PGD")
    own = load_run(Path(run_folder)).recipe
    assert (own.eps, large["step_size"], large["start_radius"]) == (0.3, own.attack_step_size, own.attack_step_size)
    assert small["step_size"] == small["start_radius"] == pytest.approx(own.attack_step_size / 2)
    assert main(["evaluate", *common, "--steps", "4", "--deepfool-steps", "2"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "│" in line or "┃" in line]
    cells = [[cell.strip() for cell in re.split("[│┃]", row)[1:3]] for row in rows]
    assert cells == [
        *(["attack", "eps"], ["clean", ""], ["DeepFool", ""], ["FGSM", "0.15"], ["FGSM", "0.3"]),
        *(["PGD-4", "0.15"], ["PGD-4", "0.3"], ["worst case", "0.15"], ["worst case", "0.3"]),
    ]


def test_a_radius_that_is_given_twice_counts_once(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ["--eps", "8/255", str(8 / 255), "--attacks", "pgd", "--num-examples", "20", "--steps", "3"]
    assert [record["attack"] for record in evaluated(capsys, run_folder, *twice)] == [None, "PGD"]


def test_a_step_is_in_proportion_where_the_run_has_a_radius_and_in_range() -> None:
    assert step_at(0.1, {"eps": 0.0, "step_size": 0.01}) == 0.025
    assert step_at(0.5, {"eps": 0.005, "step_size": 0.02}) == 1.0


def test_attacks_that_one_of_several_models_cannot_have_are_told_before_the_first(
    run_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_networks_for_cli.py").write_text(FACTORY)
    save_weights(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "own.safetensors")
    own = ["my_networks_for_cli:make", "--dataset", "digits", "--weights", "own.safetensors"]
    assert main(["evaluate", run_folder, *own, "--attacks", "fgsm"]) == 2
    told = capsys.readouterr()
    assert "fgsm needs --eps" in told.err
    assert told.out == ""
    assert not Path(run_folder, "records.jsonl").exists()


@pytest.mark.parametrize(
    ("verb", "what", "given", "known"),
    [
        ("evaluate", "surefoot.cli.evaluate.evaluate", ["--seed", "7"], {"seed": 7}),
        ("evaluate", "surefoot.cli.evaluate.evaluate", ["--last-iterate"], {"last_iterate": True, "worst_case": False}),
        (
            "evaluate",
            "surefoot.cli.evaluate.evaluate_transfer",
            ["--seed", "7", "--eight-bit", "--source", "runs/digits/sat-r2/0"],
            {"seed": 7, "eight_bit": True},
        ),
        ("audit", "surefoot.cli.audit.examine", ["--require", "0.4", "--seed", "7"], {"required": 0.4, "seed": 7}),
        ("audit", "surefoot.cli.audit.examine", ["--budget", "9", "--batch-size", "5"], {"budget_minutes": 9}),
    ],
)
def test_what_an_evaluation_and_an_audit_are_given_reaches_them(
    verb: str,
    what: str,
    given: list[str],
    known: dict[str, Any],
    run_folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def stands_in(*_: Any, **named: Any) -> None:
        seen.update(named)
        raise ValueError("enough seen")

    monkeypatch.setattr(what, stands_in)
    assert main([verb, run_folder, *given]) == 2
    assert known.items() <= seen.items()


def test_one_source_crafts_for_several_models(run_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits/normal", *QUICK]) == 0
    source = "runs/digits/normal/0"
    common = ["--source", source, "--steps", "2", "--num-examples", "40"]
    records = evaluated(capsys, run_folder, source, *common)
    assert [(record["recipe"], record["attack"]) for record in records] == [
        ("digits/sat-r2", None),
        ("digits/normal", None),
        ("digits/sat-r2", "FGSM"),
        ("digits/normal", "FGSM"),
        ("digits/sat-r2", "MIFGSM"),
        ("digits/normal", "MIFGSM"),
    ]
    assert {record["source"] for record in records} == {"digits/normal"}
    for folder in (run_folder, source):
        kept = read_records(Path(folder) / "records.jsonl")
        assert {(record.recipe, record.source) for record in kept} == {(kept[0].recipe, "digits/normal")}
        assert len(kept) == 3
    network = ["--source", "surefoot.models.lenet:digits_net", "--source-weights", f"{source}/model.safetensors"]
    by_factory = evaluated(capsys, run_folder, *network, *common[2:])
    for one, other in zip(by_factory, records[::2], strict=True):
        assert one["robust_accuracy"] == other["robust_accuracy"]
    assert main(["evaluate", run_folder, "--source", source, "--source-weights", "w"]) == 2
    assert "is a run and has its own" in capsys.readouterr().err


def test_an_interrupted_evaluation_goes_on_and_writes_no_record_twice(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["evaluate", run_folder, "--steps", "3", "--num-examples", "60", "--batch-size", "20"]
    crafted = IFGSM.__call__
    calls: list[int] = []

    def interrupted(self: IFGSM, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        calls.append(len(inputs))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return crafted(self, model, inputs, labels)

    monkeypatch.setattr(IFGSM, "__call__", interrupted)
    assert main(args) == 130
    error = capsys.readouterr().err
    assert f"go on with: surefoot {' '.join(args)}" in error
    assert "Traceback" not in error
    assert [record.attack for record in read_records(Path(run_folder) / "records.jsonl")] == [None, "FGSM"]
    assert main(args) == 0
    records = read_records(Path(run_folder) / "records.jsonl")
    assert [record.attack for record in records] == [None, "FGSM", "IFGSM", "PGD", "PGD", "WorstCase"]


ODD = """
import torch
from torch import nn
class Odd(nn.Module):
    def __init__(self, num_classes, kind):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
        self.kind = kind
    def forward(self, inputs):
        logits = self.net(inputs)
        if self.kind == "dict":
            return {"logits": logits}
        if self.kind == "probabilities":
            return logits.softmax(dim=1)
        return logits + torch.randn_like(logits)
def a_dict(num_classes):
    return Odd(num_classes, "dict")
def probabilities(num_classes):
    return Odd(num_classes, "probabilities")
def noise(num_classes):
    return Odd(num_classes, "noise")
"""


def test_unusual_models_are_said_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd_networks_for_cli.py").write_text(ODD)
    torch.manual_seed(0)
    save_weights(nn.ModuleDict({"net": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}), Path("w.safetensors"))
    common = ["--weights", "w.safetensors", "--dataset", "digits", "--eps", "0.1", "--attacks", "fgsm", "--json"]
    for kind, words in (("a_dict", "dict"), ("probabilities", "probabilities")):
        assert main(["evaluate", f"odd_networks_for_cli:{kind}", *common]) == 0
        captured = capsys.readouterr()
        assert words in captured.err
        assert len(captured.out.splitlines()) == 2
    assert main(["evaluate", "odd_networks_for_cli:noise", *common]) == 2
    assert "--draws" in capsys.readouterr().err
    assert main(["evaluate", "odd_networks_for_cli:noise", *common, "--draws", "4"]) == 0


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
    saved = Path("runs/digits/sat-r2/0/state.ckpt")  # what an epoch writes last
    # A job that a shell started in the background has SIGINT ignored, and its children inherit that.
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not saved.exists() and process.poll() is None:
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


def demo_audit(verdict: str, worst: float) -> Audit:
    found = audit(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), eps=0.1)
    return dataclasses.replace(found, verdict=verdict, worst_case_accuracy=worst)  # type: ignore[arg-type]


def test_the_demos_lines_follow_the_audits() -> None:
    measured = {
        "normal": demo_records(0.1, 0.0),
        "fgsm-at": demo_records(0.8, 0.1),
        "sat-r2": demo_records(0.7, 0.6),
        "sat-r3": demo_records(0.75, 0.3),
    }
    told = what_it_means(
        measured,
        {
            "normal": demo_audit("not robust", 0.0),
            "fgsm-at": demo_audit("masked", 0.05),
            "sat-r2": demo_audit("robust", 0.5),
            "sat-r3": demo_audit("inconclusive", 0.25),
        },
    )
    _, robust, masked, not_robust, inconclusive = told.splitlines()
    assert masked.startswith("- masked, only looks robust")
    assert masked.endswith(": FGSM-AT (80.00 -> 5.00)")
    assert robust == "- robust, holds against everything that was tried: SAT-R2 (70.00 -> 50.00)"
    assert not_robust == "- not robust, too little is left: Normal (10.00 -> 0.00)"
    assert inconclusive.endswith("the evidence does not decide: SAT-R3 (75.00 -> 25.00)")
    only = what_it_means({"normal": measured["normal"]}, {"normal": demo_audit("not robust", 0.0)})
    assert "looks" not in only
    assert "holds" not in only


def test_the_demo_audits_all_test_digits() -> None:
    assert len(load("digits").test.labels) == AUDITED  # it has no option to give more


def test_the_demo_runs_ends_with_a_page_and_a_second_one_trains_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.cli.demo.AUDITED", 16)
    assert main(["demo", "--epochs", "1", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert all(name in captured.out for name in ("Normal", "FGSM-AT", "SAT-R1", "SAT-R2", "SAT-R3", "PGD-", "verdict"))
    assert captured.err.count("training for 1 epochs") == 5
    page = Path("runs/demo/audit.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("Normal", "FGSM-AT", "SAT-R1", "SAT-R2", "SAT-R3"))
    assert main(["demo", "--epochs", "1", "--threads", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert "training for" not in captured.err
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert len(lines) == 21
    assert [line["run"].split("/")[2] for line in lines[15:20]] == ["normal", "fgsm-at", "sat-r1", "sat-r2", "sat-r3"]
    assert all(line["verdict"] for line in lines[15:20])
    assert "conclusion" in lines[-1]
    assert main(["demo", "--epochs", "2"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_batch_is_large_on_an_accelerator_and_what_was_asked_for_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load("digits")
    for device, expected in (("cpu", 250), ("meta", 2000)):
        monkeypatch.setattr(models, "pick_device", lambda name, device=device: torch.device(device))
        assert models.split_batches(dataset, models.ModelOptions())[1].batch_size == expected
        assert models.split_batches(dataset, models.ModelOptions(batch_size=7))[1].batch_size == 7


# What goes wrong around the work must not cost the work.


@pytest.mark.parametrize(
    "content",
    [
        '{"epoch": 1, "monitor": [{"step": 1}]}\n',
        '{"epoch": 1, "monitor": [{"stap": 1}]}\n',
        "5\n",
        '{"epoch": 1, "moni',
        '{"monitor": 3}\n',
        "\udcff\n",
    ],
)
def test_a_damaged_metrics_file_costs_the_curves_and_not_the_audit(
    content: str, run_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(run_folder) / "metrics.jsonl"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["audit", run_folder, "--num-examples", "20", "--budget", "0.01"]) in (0, 3, 4, 5)
    error = capsys.readouterr().err
    assert f"line 1 of {file} is not a line of a training; the page does without the curves" in error
    assert "Traceback" not in error
    assert Audit.from_json((Path(run_folder) / "audit.json").read_text(encoding="utf-8")).model == run_folder
    assert (Path(run_folder) / "report.html").exists()


def test_a_look_holds_finite_numbers(run_folder: str) -> None:
    assert main(["train", "digits/fgsm-at", *QUICK, "--monitor-every", "2"]) == 0
    run = load_run(Path("runs/digits/fgsm-at/0"))
    (look, *_) = run.looks()

    def write(wrong: dict[str, Any]) -> None:
        line = {"epoch": 1, "monitor": [{**dataclasses.asdict(look), **wrong}, dataclasses.asdict(look)]}
        (run.path / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")

    for wrong in ({"fgsm_loss": math.nan}, {"pgd_loss": "low"}, {"losses_along": 3}):
        write(wrong)
        with pytest.raises(ValueError, match=r"line 1 of .* is not a line of a training"):
            run.looks()
    for unknown in ({"rfgsm_distance": None}, {"losses_along": [1.0, None]}):  # it was not finite: there is no point
        write(unknown)
        assert run.looks() == [look]


def test_an_audit_refuses_a_bad_place_for_its_page_before_it_begins(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.cli.audit.audit_one", lambda *_: pytest.fail("it was audited"))
    Path("file").write_text("mine")
    for out in (".", "file/page.html", "file/deeper/page.html"):
        assert main(["audit", run_folder, "--out", out]) == 2
        error = capsys.readouterr().err
        assert error.startswith("surefoot: --out ")
        assert error.endswith("place.\n") or "a folder; give the name of a file" in error
    assert Path("file").read_text() == "mine"


class Stream(io.TextIOWrapper):
    """Standard output in another encoding, or whose reader has gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8", *, closed: bool = False) -> None:
        read, write = os.pipe()
        self.bytes: bytes = b""
        self.read_end = None if closed else read
        if closed:
            os.close(read)
        else:
            os.set_blocking(read, False)
        super().__init__(os.fdopen(write, "wb"), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", self)

    def text(self) -> str:
        assert self.read_end is not None
        self.flush()
        return os.read(self.read_end, 1 << 20).decode(self.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_sign_gets_the_results_all_the_same(
    encoding: str, run_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(run_folder) / "metrics.jsonl").unlink()
    odd = Path(run_folder).rename("größe ε")
    stdout = Stream(monkeypatch, encoding)
    args = [str(odd), "--num-examples", "20"]
    assert main(["audit", *args, "--budget", "0.01"]) in (0, 3, 4, 5)
    assert "\\u03b5" in stdout.text()
    assert (odd / "report.html").exists()
    assert main(["audit", *args, "--budget", "0.01", "--json"]) in (0, 3, 4, 5)
    assert json.loads(stdout.text())["model"] == "größe ε"
    assert main(["evaluate", *args, "--attacks", "fgsm"]) == 0
    assert "FGSM" in stdout.text()
    assert main(["evaluate", *args, "--attacks", "fgsm", "--json"]) == 0
    assert len(stdout.text().splitlines()) == 2


@pytest.fixture
def ended_by_a_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.stdout, "lasting", False)  # as in a process of its own


@pytest.mark.usefixtures("ended_by_a_closed_pipe")
def test_a_training_outlives_the_reader_of_its_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Stream(monkeypatch, closed=True)
    assert main(["train", "digits/normal", "--epochs", "3", "--json"]) == 0
    assert load_run(Path("runs/digits/normal/0")).is_finished()
    assert capsys.readouterr().err.count("Nobody reads standard output any more; the work goes on.") == 1


@pytest.mark.usefixtures("ended_by_a_closed_pipe")
def test_an_audit_outlives_the_reader_of_its_output(run_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Stream(monkeypatch, closed=True)
    assert main(["audit", run_folder, "--num-examples", "20", "--budget", "0.01"]) in (0, 3, 4, 5)
    assert (Path(run_folder) / "report.html").exists()


@pytest.mark.usefixtures("ended_by_a_closed_pipe")
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_others_end_quietly_when_nobody_reads(
    json_too: list[str], run_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (["evaluate", run_folder, "--attacks", "fgsm", "--num-examples", "20"], ["list"]):
        monkeypatch.setattr(output.stdout, "lasting", False)
        Stream(monkeypatch, closed=True)
        assert main([*args, *json_too]) == 141
    assert capsys.readouterr().err == ""
    assert read_records(Path(run_folder) / "records.jsonl")  # what was measured is kept


@pytest.mark.parametrize("args", [["--help"], ["list", "recipes"], ["list", "--json", "recipes"]])
def test_standard_output_that_is_closed_is_no_error(args: list[str]) -> None:
    command = shlex.join([sys.executable, "-m", "surefoot", *args]) + " >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_ends_quietly_when_nobody_reads() -> None:
    command = f"{sys.executable} -m surefoot --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout in ("0\n", "141\n")  # `true` may end after all of it was written


def test_a_second_training_in_a_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", "digits/normal", *QUICK]
    folder = Path("runs/digits/normal/0")
    with at_work(folder):
        for more in ([], ["--resume"]):
            assert main([*args, *more]) == 2
            assert f"another training is at work in {folder}; wait for it" in capsys.readouterr().err
        with pytest.raises(ValueError, match="another training is at work"):
            train(RECIPES["digits/normal"], folder)
    assert not (folder / "recipe.json").exists()
    assert main(args) == 0  # the lock is no run
    assert main([*args, "--resume"]) == 2
    assert "finished run" in capsys.readouterr().err


def test_the_second_of_two_that_started_together_does_not_overwrite(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = dataclasses.replace(RECIPES["digits/normal"], epochs=1), Path("run")

    def meanwhile(*_: object) -> None:
        train(recipe, folder)

    with pytest.raises(ValueError, match="holds a finished run"):
        train(recipe, folder, on_start=meanwhile)


def test_a_file_is_no_runs_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    for out in ("file", "file/run"):
        assert main(["train", "digits/normal", *QUICK, "--out", out]) == 2
        assert "is a file; give another one with --out" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a place where nobody can make a folder is not known here")
def test_a_folder_that_cannot_be_made_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits/normal", *QUICK, "--out", "/proc/run"]) == 2
    said = "the run needs the folder /proc/run, which cannot be made (No such file or directory); give another place."
    assert said in capsys.readouterr().err


def test_hints_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits/normal", *QUICK, "--out", "x/i f ü"]) == 0
    assert "Measure it with: surefoot evaluate 'x/i f ü'" in capsys.readouterr().err


def test_an_interrupted_demo_or_audit_says_what_is_kept_and_how_to_go_on(
    run_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surefoot.cli.demo.train", interrupted)
    assert main(["demo", "--out", "a b"]) == 130
    assert "Finished epochs are kept in a b; go on with: surefoot demo --out 'a b'" in capsys.readouterr().err
    common = ["audit", run_folder, run_folder, "--num-examples", "20", "--budget", "0.01"]
    real, calls = cli_audit.audit_one, []

    def second(*args: Any) -> Audit:
        calls.append(args)
        return real(*args) if len(calls) == 1 else interrupted()  # type: ignore[return-value, func-returns-value]

    monkeypatch.setattr("surefoot.cli.audit.audit_one", second)
    assert main(common) == 130
    error = capsys.readouterr().err
    assert f"1 of 2 audits are done, in {run_folder}/audit.json; an unfinished one is not kept" in error
    assert f"start again with: surefoot {' '.join(common)}" in error


def test_objectives_have_one_name_everywhere() -> None:
    assert set(get_args(ObjectiveName)) == set(OBJECTIVES)


OWN = """
import torch
from torch import nn
class Own(nn.Module):
    def __init__(self, kind, inputs=64):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10))
        self.kind = kind
    def forward(self, inputs):
        logits = self.net(inputs)
        return {
            "raises": lambda: {}["x"],
            "none": lambda: None,
            "text": lambda: "logits",
            "array": lambda: logits.detach().numpy(),
            "dict": lambda: {"logits": logits},
            "flat": lambda: logits[:, 0],
            "deep": lambda: logits[:, :, None],
            "few": lambda: logits[:, :5],
            "nan": lambda: logits * float("nan"),
            "detached": lambda: logits.detach(),
            "one": lambda: logits[:1],
            "unrelated": lambda: inputs.flatten(1)[:, :10],
            "softmax": lambda: logits.softmax(dim=1),
            "later": lambda: logits if not self.training else 1 / 0,
        }.get(self.kind, lambda: logits)()
def factory_raises(): raise KeyError("x")
def exits(): raise SystemExit("bye")
def wrong_size(): return Own("", 100)
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
def frozen(): return Own("").requires_grad_(False)
def bare(): return _Bare()
def double(): return Own("").double()
def untracked(): return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), Own(""))
class _Bare(nn.Module):
    def forward(self, inputs): return inputs.flatten(1)[:, :10]
def tied():
    net = Own("")
    net.again = net.net
    return net
def __getattr__(kind): return lambda: Own(kind)
"""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", "fails on float32 [4, 1, 8, 8] images in [0, 1] in training mode (KeyError: 'x')"),
        ("wrong_size", "(RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x64 and 100x10)); it must return"),
        ("none", "returns a NoneType for float32 [4, 1, 8, 8] images in [0, 1] in training mode; it must return"),
        ("text", "returns a str"),
        ("array", "returns a ndarray"),
        ("dict", "returns a dict (surefoot.models.LogitsOnly(model, entry) takes the logits out) for"),
        ("flat", "returns float32 [4] for"),
        ("deep", "returns float32 [4, 10, 1] for"),
        ("few", "returns float32 [4, 5] for"),
        ("one", "returns float32 [1, 10] for"),
        ("nan", "returns NaN or infinity for"),
        ("detached", "gives no gradient in training mode"),
        ("unrelated", "has logits that depend on none of its weights"),
        ("later", "in training mode (ZeroDivisionError: division by zero)"),
        ("factory_raises", "fails when it is called without arguments (KeyError: 'x'); fix it first"),
        ("exits", "(SystemExit: bye)"),
        ("lazy", "nn.LazyLinear and its like"),
        ("frozen", "has only frozen weights"),
        ("double", "with its float64 weights fails on float32"),
        ("bare", "has no weights"),
        ("softmax", "returns probabilities for float32 [4, 1, 8, 8] images in [0, 1] in training mode; make it return"),
        ("untracked", "answer to an image depends on its batch"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_in_a_sentence(
    kind: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_networks_for_cli.py").write_text(OWN)
    assert main(["train", "digits/normal", "--model", f"own_networks_for_cli:{kind}", *QUICK]) == 2
    error = capsys.readouterr().err
    assert error.startswith((f"surefoot: own_networks_for_cli:{kind} ", f"surefoot: own_networks_for_cli:{kind}: "))
    assert words in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_model_with_an_unused_weight_and_more_logits_than_classes_can_be_trained() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    net.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    try_training(net, "it", load("digits").train, 10, torch.device("cpu"))


@pytest.mark.parametrize("verb", ["evaluate", "audit"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", "fails on [40, 1, 8, 8] images in [0, 1] (KeyError: 'x')"),
        ("wrong_size", "(RuntimeError: mat1 and mat2 shapes cannot be multiplied (40x64 and 100x10)); it must return"),
        ("none", "NoneType"),
        ("few", "a label is 9, but the model has 5 classes"),
        ("lazy", "nn.LazyLinear and its like"),
        ("double", "convert the model where it is made, with model.float()"),
        ("exits", "(SystemExit: bye)"),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused_in_a_sentence(
    verb: str, kind: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_networks_for_cli.py").write_text(OWN)
    size, dtype = (100 if kind == "wrong_size" else 64), (torch.float64 if kind == "double" else torch.float32)
    save_file({"net.1.weight": torch.zeros(10, size, dtype=dtype), "net.1.bias": torch.zeros(10, dtype=dtype)}, "w")
    common = ["--weights", "w", "--dataset", "digits", "--eps", "0.1", "--num-examples", "40"]
    common += ["--attacks", "fgsm"] if verb == "evaluate" else []
    assert main([verb, f"own_networks_for_cli:{kind}", *common]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"surefoot: own_networks_for_cli:{kind}")
    assert words in error
    assert error.count("\n") == 1


def test_a_trial_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10))
    net[2].eval()
    before, drawn = {name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()
    data = load("digits")
    try_training(net, "net", data.train, data.num_classes, torch.device("cpu"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [part.training for part in net] == [True, True, False, True, True]
    assert all(weight.grad is None for weight in net.parameters())


def test_tied_weights_are_saved_and_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_networks_for_cli.py").write_text(OWN)
    args = ["train", "digits/normal", "--model", "own_networks_for_cli:tied", "--batch-size", "256", "--out", "tied"]
    assert main([*args, "--epochs", "1"]) == 0
    run = load_run(Path("tied"))
    model = run.load_model(run.load_data())
    assert torch.equal(model.net[1].weight, model.again[1].weight)  # type: ignore[union-attr, index]
    assert main(["evaluate", "tied", "--attacks", "fgsm", "--num-examples", "20"]) == 0


def test_a_place_for_records_or_samples_is_refused_before_the_attack(
    run_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.cli.evaluate.white_box", lambda *_: pytest.fail("it was attacked"))
    for content in ("my precious notes", "my precious\nnotes", "my precious notes\n", '{"a": 1}\n'):
        Path("notes").write_text(content)
        assert main(["evaluate", run_folder, "--records", "notes"]) == 2
        assert "left as it is; give another file" in capsys.readouterr().err
        assert Path("notes").read_text() == content
    for option, place in (("--records", "notes/x"), ("--save-samples", "notes")):
        assert main(["evaluate", run_folder, option, place]) == 2
        assert f"surefoot: {option} needs the folder" in capsys.readouterr().err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nTraceback"), MemoryError()])
def test_memory_that_is_not_enough_is_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(args: list[str]) -> int:
        raise error

    monkeypatch.setattr("surefoot.cli.list.run", full)
    assert main(["list"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("surefoot: the memory is not enough (")
    assert said.endswith("give a smaller --batch-size.\n")
    assert "Traceback" not in said


def test_a_model_is_recognised_by_fewer_images_where_memory_is_short() -> None:
    class Large(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if len(inputs) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(inputs.flatten(1))

    inputs, labels = torch.rand(16, 1, 2, 2), torch.zeros(16, dtype=torch.int64)
    model = Large(4, 3)
    assert models.recognised(model, "large", inputs, labels, models.ModelOptions(), None) == (model, [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
@pytest.mark.parametrize("lasting", [True, False])
def test_output_that_cannot_be_written_ends_no_work_whose_results_are_files(
    lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as out, open("/dev/full", "w", encoding="utf-8") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(output.stdout, "lasting", lasting)
        output.say("a message")
        if lasting:
            output.print_json({"a": "result"})
            output.stdout.print("a table")
        else:
            with pytest.raises(OSError, match="No space left"):
                output.print_json({"a": "result"})
            output.silence(out)


def test_a_network_of_volumes_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights have no channels last."""
    source = (
        "from torch import nn\ndef net(): return nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3)), "
    )
    (tmp_path / "volumes.py").write_text(source + "nn.Flatten(), nn.Linear(72, 10))\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["volumes:net", "--dataset", "digits", "--eps", "0.1", "--attacks", "fgsm", "--num-examples", "20"]
    clean, fgsm = evaluated(capsys, *words, "--weights", weights_of("volumes:net", tmp_path))
    assert fgsm["robust_accuracy"] <= clean["robust_accuracy"]


def weights_of(factory: str, folder: Path) -> str:
    """A file with the weights that it starts from."""
    torch.manual_seed(0)
    save_file(load_factory(factory)().state_dict(), folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def test_a_split_without_images_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits/fgsm-at", "--epochs", "1", "--validation-size", "0", "--out", "run"]) == 0
    for source in ([], ["--source", "run"]):
        assert main(["evaluate", "run", *source, "--split", "validation"]) == 2
        assert "digits has no validation images" in capsys.readouterr().err


def test_the_demo_does_not_begin_where_a_file_that_is_no_page_would_be_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "audit.html").write_text("precious", encoding="utf-8")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "a file that is no page, and would be lost" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["audit.html"]
