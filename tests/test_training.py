"""Training: what a run writes, what it survives, and what it refuses."""

import copy
import dataclasses
import errno
import io
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from surefoot.attacks import FGSM, IFGSM
from surefoot.cli.models import pick_device
from surefoot.cli.output import TrainingProgress
from surefoot.core.files import append_lines, load_metadata, load_tensors, save_tensors, write_text
from surefoot.core.gradients import plain_module
from surefoot.data import Batches, Dataset, Split, load
from surefoot.evaluation import accuracy, append_records
from surefoot.models import build_model
from surefoot.objectives import FgsmAT, LossTerms, NormalTraining, SatR1, SatR2, SatR3
from surefoot.recipes import RECIPES, Recipe, load_run, train
from surefoot.training import (
    CheckpointError,
    FitConfig,
    Phase,
    TrainingDiverged,
    fit,
    load_weights,
    save_weights,
)
from surefoot.training.averaging import MovingAverage
from surefoot.training.fit import StepReport, guesses, refuse_non_finite
from surefoot.training.machines import best_device, make_fabric
from surefoot.training.schedules import SCHEDULES, one_cycle, steps
from surefoot.training.step import EagerStep
from surefoot.training.trial import try_training
from tests.tables import at_work

QUICK = FitConfig(batch_size=32, learning_rate=0.05, device="cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """240 training, 60 validation and 60 test digits."""
    whole = load("digits", cache_dir=tmp_path_factory.mktemp("cache"))

    def first(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count])

    return dataclasses.replace(
        whole,
        train=first(whole.train, 240),
        validation=first(whole.validation, 60),
        test=first(whole.test, 60),
    )


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("digits-net", num_classes=10, in_channels=1, image_size=8)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@dataclasses.dataclass(frozen=True)
class Recording:
    """An objective that writes down how often it was called."""

    calls: list[str]
    name: str

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        self.calls.append(self.name)
        return NormalTraining()(model, inputs, labels)


def test_training_learns_and_selects_its_best_epoch(digits: Dataset) -> None:
    model = network()
    config = dataclasses.replace(QUICK, schedule="constant")
    result = fit(model, digits, [Phase(FgsmAT(0.05), 12)], config, selection=IFGSM(0.1, 3))
    scores = [line["validation_robust_accuracy"] for line in result.metrics]
    assert result.best_score == max(scores)
    assert result.best_epoch == scores.index(max(scores)) + 1
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"]
    assert accuracy(model, Batches(digits.validation, 500), IFGSM(0.1, 3)) == pytest.approx(result.best_score)
    assert accuracy(model, Batches(digits.test, 60)) > 0.5


def test_without_an_attack_the_clean_accuracy_selects_and_no_other_is_told(
    digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    result = fit(network(), digits, [Phase(NormalTraining(), 4)], QUICK)
    scores = [line["validation_clean_accuracy"] for line in result.metrics]
    assert result.best_score == max(scores)
    assert {line["validation_robust_accuracy"] for line in result.metrics} == {None}
    TrainingProgress("digits/normal").on_epoch(result.metrics[0])
    said = capsys.readouterr().err
    assert f"validation {100 * scores[0]:.2f} % clean" in said
    assert "attacked" not in said


def test_of_equal_scores_the_clean_accuracy_selects(digits: Dataset) -> None:
    """An attack that nothing withstands selects the first epoch no longer."""
    config = dataclasses.replace(QUICK, learning_rate=0.1, schedule="constant")
    result = fit(network(), digits, [Phase(NormalTraining(), 6)], config, selection=IFGSM(1.0, 3))
    clean = [line["validation_clean_accuracy"] for line in result.metrics]
    assert {line["validation_robust_accuracy"] for line in result.metrics} == {0.0}
    assert result.best_epoch == clean.index(max(clean)) + 1 > 1


def test_progress_is_told_with_the_loss_its_terms_the_speed_and_the_time_left(digits: Dataset) -> None:
    told: list[StepReport] = []
    lam = 5.0
    config = dataclasses.replace(QUICK, batch_size=4, learning_rate=0.01)  # 60 steps an epoch
    result = fit(network(), digits, [Phase(SatR2(0.3, 0.01, lam), 2)], config, on_step=told.append)
    assert [(each.epoch, each.step) for each in told] == [(1, 50), (1, 60), (2, 50), (2, 60)]
    assert {(each.epochs, each.steps) for each in told} == {(2, 60)}
    for each in told:
        assert each.loss == pytest.approx(each.classification + lam * each.regularizer, rel=1e-4)
        left = 60 * (3 - each.epoch) - each.step
        assert each.seconds_left == pytest.approx(left * 4 / each.images_per_second)
    for epoch, line in enumerate(result.metrics):
        first, last = told[2 * epoch : 2 * epoch + 2]
        assert line["loss"] == pytest.approx((50 * first.loss + 10 * last.loss) / 60, rel=1e-4)


def test_an_epoch_is_on_the_disk_when_it_is_told(digits: Dataset, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def look(line: dict[str, Any]) -> None:
        lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[-1]) == line
        seen.append((len(lines), len(load_metadata(tmp_path / "state.ckpt")["metrics"])))

    fit(network(), digits, [Phase(NormalTraining(), 3)], QUICK, run_dir=tmp_path, on_epoch=look)
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_the_bar_shows_what_it_is_told() -> None:
    progress = TrainingProgress("digits/sat-r2")
    progress.on_step(StepReport(2, 5, 30, 60, 1.5, 1.25, 0.05, 480.4, 125.0))
    shown = io.StringIO()
    Console(file=shown, width=200).print(progress.bar.get_renderable())
    for words in ("epoch 2/5", "loss 1.500", "classification 1.250", "regularizer 0.05", "480 images/s", "2:05 left"):
        assert words in shown.getvalue()
    (task,) = progress.bar.tasks
    assert task.percentage == 50


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(digits: Dataset) -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        model = network()
        torch.manual_seed(random.randrange(2**31))  # the state that fit finds must not matter
        fit(model, digits, [Phase(SatR2(0.3, 0.01, 5.0), 1)], dataclasses.replace(QUICK, seed=seed))
        return weights(model)

    assert equal(trained(0), trained(0))
    assert not equal(trained(0), trained(1))


def test_a_training_leaves_the_generators_the_layout_and_no_gradient(digits: Dataset) -> None:
    fit(model := network(), digits, [Phase(NormalTraining(), 1)], QUICK)
    drawn = [float(torch.rand(()))]
    torch.manual_seed(0)
    build_model("digits-net", num_classes=10, in_channels=1, image_size=8)
    drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1]
    assert all(weight.is_contiguous() and weight.grad is None for weight in model.parameters())
    nn.utils.parameters_to_vector(model.parameters())
    last = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit(last, digits, [Phase(NormalTraining(), 1)], QUICK)
    assert any(not weight.is_contiguous() for weight in last.parameters())


def test_phases_run_in_turn_for_their_epochs_at_their_rates(digits: Dataset) -> None:
    calls: list[str] = []
    phases = [Phase(Recording(calls, "first"), 1), Phase(Recording(calls, "second"), 2, learning_rate=0.01)]
    result = fit(network(), digits, phases, dataclasses.replace(QUICK, schedule="constant"))
    per_epoch = len(Batches(digits.train, 32))
    assert calls == ["first"] * per_epoch + ["second"] * 2 * per_epoch
    assert [line["learning_rate"] for line in result.metrics] == [0.05, 0.01, 0.01]


def test_what_is_selected_has_been_through_every_phase(digits: Dataset, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_after_the_first_phase(line: dict[str, object]) -> None:
        if line["epoch"] == 6:
            raise Stop

    class Unlearning:
        def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
            return NormalTraining()(model, inputs, (labels + 1) % 10)

    phases, config = (
        [Phase(NormalTraining(), 6), Phase(Unlearning(), 2)],
        dataclasses.replace(QUICK, schedule="constant"),
    )
    whole = fit(network(), digits, phases, config, run_dir=tmp_path / "whole")
    scores = [line["validation_clean_accuracy"] for line in whole.metrics]
    assert max(scores[:6]) > max(scores[6:])
    assert whole.best_epoch == 7 + scores[6:].index(max(scores[6:]))
    assert whole.best_score == max(scores[6:])
    with pytest.raises(Stop):
        fit(network(), digits, phases, config, run_dir=tmp_path / "cut", on_epoch=stop_after_the_first_phase)
    assert fit(network(), digits, phases, config, run_dir=tmp_path / "cut", resume=True).best_epoch == whole.best_epoch
    whole_weights, cut_weights = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert equal(whole_weights, cut_weights)


def test_the_rate_follows_the_schedule_from_step_to_step(digits: Dataset) -> None:
    config = dataclasses.replace(QUICK, schedule="one-cycle")
    result = fit(network(), digits, [Phase(NormalTraining(), 1), Phase(NormalTraining(), 2)], config)
    steps = len(Batches(digits.train, config.batch_size))
    last = [((epoch + 1) * steps - 1) / (3 * steps) for epoch in range(3)]  # of each epoch, as progress of the run
    expected = [config.learning_rate * one_cycle(progress) for progress in last]
    assert [line["learning_rate"] for line in result.metrics] == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_is_bit_identical_to_one_without_a_break(
    digits: Dataset, tmp_path: Path, optimizer: Literal["sgd", "adamw"]
) -> None:
    phases = [Phase(SatR2(0.3, 0.01, 5.0), 2), Phase(SatR3(0.3, 0.1, 1.0, 0.4), 2)]
    config = dataclasses.replace(QUICK, ema_decay=0.9, optimizer=optimizer)
    whole = network()
    fit(whole, digits, phases, config, selection=IFGSM(0.3, 3), run_dir=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop_after_two(line: dict[str, object]) -> None:
        if line["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(
            network(),
            digits,
            phases,
            config,
            selection=IFGSM(0.3, 3),
            run_dir=tmp_path / "cut",
            on_epoch=stop_after_two,
        )
    resumed = network(seed=5)  # other initial weights: all must come from the checkpoint
    fit(resumed, digits, phases, config, selection=IFGSM(0.3, 3), run_dir=tmp_path / "cut", resume=True)
    assert equal(weights(whole), weights(resumed))
    for name in ("model.safetensors", "last.safetensors"):
        assert equal(load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name))
    state, about = load_tensors(tmp_path / "whole" / "state.ckpt")
    cut_state, cut_about = load_tensors(tmp_path / "cut" / "state.ckpt")
    assert equal(state, cut_state)
    assert about["best_epoch"] == cut_about["best_epoch"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fit_takes_the_steps_of_pytorchs_own_optimizer(digits: Dataset, optimizer: Literal["sgd", "adamw"]) -> None:
    settings: dict[str, Any] = {"weight_decay": 0.1, "batch_size": 64, "seed": 3}
    config = FitConfig(
        device="cpu", optimizer=optimizer, learning_rate=0.003, momentum=0.8, schedule="constant", **settings
    )
    found, expected = network(), network()
    fit(found, digits, [Phase(NormalTraining(), 1)], config, selection=None)
    weights_of = expected.train().parameters()
    own = (
        torch.optim.AdamW(weights_of, lr=0.003, betas=(0.8, 0.999), weight_decay=0.1)
        if optimizer == "adamw"
        else torch.optim.SGD(weights_of, lr=0.003, momentum=0.8, weight_decay=0.1)
    )
    batches = Batches(digits.train, 64, shuffle=True, seed=3)
    for inputs, labels in batches.epoch(1):
        own.zero_grad()
        NormalTraining()(expected, inputs, labels).loss.backward()  # type: ignore[no-untyped-call]
        own.step()
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)


TRAIN_IN_A_PROCESS = """
import dataclasses, sys
from pathlib import Path
from surefoot.recipes import Recipe, train
import json
import shutil
recipe = Recipe.from_json(json.loads(sys.argv[1]))
train(recipe, Path(sys.argv[2]), on_epoch=lambda line: print(line["epoch"], flush=True))
"""


def quick_recipe(name: str = "digits/sat-r2", epochs: int = 4) -> Recipe:
    recipe = RECIPES[name]
    return dataclasses.replace(recipe, epochs=epochs, training=dataclasses.replace(recipe.training, batch_size=128))


def test_a_run_killed_at_a_random_moment_resumes_to_identical_weights(tmp_path: Path) -> None:
    recipe = quick_recipe(epochs=6)
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN_IN_A_PROCESS, json.dumps(recipe.to_json()), str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first epoch is saved
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    train(recipe, tmp_path / "whole")
    if load_run(tmp_path / "killed").epochs_done() < 6:
        (tmp_path / "killed" / f".state.ckpt.{process.pid}.tmp").touch()  # as where it is killed while it writes
        train(recipe, tmp_path / "killed", resume=True)
    for name in ("model.safetensors", "last.safetensors"):
        assert equal(load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name))
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "killed").glob("*.tmp"))


def test_a_finished_run_without_its_state_is_not_trained_again(tmp_path: Path) -> None:
    recipe = quick_recipe(epochs=1)
    train(recipe, tmp_path)
    (tmp_path / "state.ckpt").unlink()  # to save its room: it is only to go on from
    assert load_run(tmp_path).is_finished()
    with pytest.raises(ValueError, match=r"holds a finished run, which is never overwritten.*--initial-weights"):
        train(recipe, tmp_path, resume=True)


def test_weights_selected_so_far_that_are_gone_end_a_resumed_training_before_its_first_epoch(tmp_path: Path) -> None:
    def stop(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(quick_recipe(), tmp_path, on_epoch=stop)
    (tmp_path / "model.safetensors").unlink()  # as where the state alone was copied
    lines: list[dict[str, Any]] = []
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        train(quick_recipe(), tmp_path, resume=True, on_epoch=lines.append)
    assert lines == []


def test_a_run_folder_holds_what_it_promises(tmp_path: Path) -> None:
    recipe = quick_recipe(epochs=1)
    train(recipe, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"recipe.json", "data.json", "metrics.jsonl", "model.safetensors", "last.safetensors", "state.ckpt"}
    run = load_run(tmp_path / "run")
    assert run.recipe == recipe
    assert run.epochs_done() == 1
    dataset, drawn = run.load_data(), torch.get_rng_state()
    assert not run.load_model(dataset).training
    assert torch.equal(torch.get_rng_state(), drawn)  # the caller's own random numbers go on


def test_a_finished_an_unfinished_and_another_run_are_not_overwritten(tmp_path: Path) -> None:
    recipe = quick_recipe(epochs=1)
    train(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="finished run"):
        train(recipe, tmp_path / "run")
    other = dataclasses.replace(recipe, epochs=2)
    cut(other, tmp_path / "cut")
    with pytest.raises(ValueError, match="--resume"):
        train(other, tmp_path / "cut")
    with pytest.raises(ValueError, match=r"other settings \(epochs\)"):
        train(dataclasses.replace(recipe, epochs=3), tmp_path / "cut", resume=True)
    for name in ("state.ckpt", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(ValueError, match=r"holds model\.safetensors and last\.safetensors of a run, but no state"):
        train(recipe, tmp_path / "run")
    with pytest.raises(ValueError, match="no run to go on with"):
        train(recipe, tmp_path / "nothing", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def cut(recipe: Recipe, folder: Path, after: int = 1) -> None:
    """Train so many epochs, as if interrupted."""

    def interrupt(line: dict[str, Any]) -> None:
        if line["epoch"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, folder, on_epoch=interrupt)


def test_without_its_state_a_run_of_some_epochs_is_not_begun_anew_over_its_weights(tmp_path: Path) -> None:
    recipe = quick_recipe(epochs=3)
    cut(recipe, tmp_path, after=2)
    (tmp_path / "state.ckpt").unlink()
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"no state\.ckpt to go on from"):
        train(recipe, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_where_no_epoch_was_saved_another_training_may_begin(tmp_path: Path) -> None:
    diverging = dataclasses.replace(quick_recipe(epochs=1), training=dataclasses.replace(QUICK, learning_rate=1e20))
    with pytest.raises(TrainingDiverged):
        train(diverging, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "data.json"}
    train(quick_recipe(epochs=1), tmp_path)
    assert load_run(tmp_path).recipe == quick_recipe(epochs=1)


def test_a_state_without_its_epochs_is_refused(tmp_path: Path) -> None:
    train(quick_recipe(epochs=1), tmp_path / "run")
    shutil.copy(tmp_path / "run" / "model.safetensors", tmp_path / "run" / "state.ckpt")
    with pytest.raises(CheckpointError, match=r"state\.ckpt is not a training state"):
        train(quick_recipe(epochs=1), tmp_path / "run", resume=True)


def test_a_last_batch_of_one_does_not_stop_batch_norm(digits: Dataset) -> None:
    norm = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    odd = dataclasses.replace(digits, train=Split(*(part[:65] for part in digits.train)))
    config = dataclasses.replace(QUICK, batch_size=32)
    assert fit(norm, odd, [Phase(NormalTraining(), 1)], config).best_epoch == 1


@dataclasses.dataclass(frozen=True)
class Exploding:
    """A loss that is not finite from a given call on."""

    calls: list[int]
    after: int

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        self.calls.append(1)
        terms = NormalTraining()(model, inputs, labels)
        return terms if len(self.calls) <= self.after else terms._replace(loss=terms.loss * float("nan"))


def test_a_loss_that_is_not_finite_stops_with_where_and_the_last_good_checkpoint(
    digits: Dataset, tmp_path: Path
) -> None:
    per_epoch = len(Batches(digits.train, 32))
    with pytest.raises(
        TrainingDiverged, match=r"nan in epoch 2, step 3, at learning rate 0.05.*state.ckpt, after epoch 1"
    ):
        fit(
            network(),
            digits,
            [Phase(Exploding([], per_epoch + 2), 3)],
            dataclasses.replace(QUICK, schedule="constant"),
            run_dir=tmp_path,
        )
    assert len(load_tensors(tmp_path / "state.ckpt")[1]["metrics"]) == 1
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model.safetensors").values())
    with pytest.raises(TrainingDiverged, match="no checkpoint yet"):
        fit(network(), digits, [Phase(Exploding([], 0), 1)], QUICK)
    # the rate of the step itself, not that of the look at the losses some steps later
    one_cycle_at_first = 0.05 * one_cycle(2 / per_epoch)
    with pytest.raises(TrainingDiverged, match=rf"epoch 1, step 3, at learning rate {one_cycle_at_first:.4g};"):
        fit(network(), digits, [Phase(Exploding([], 2), 1)], dataclasses.replace(QUICK, schedule="one-cycle"))


def test_a_training_that_diverges_without_a_folder_leaves_the_best_weights(digits: Dataset) -> None:
    model, seen = network(), list[dict[str, Tensor]]()
    per_epoch = -(-len(digits.train.labels) // QUICK.batch_size)

    def kept(line: dict[str, Any]) -> None:
        seen.append(weights(model))

    with pytest.raises(TrainingDiverged, match=r"the model has the weights of epoch 1, the best so far"):
        fit(model, digits, [Phase(Exploding([], per_epoch + 2), 3)], QUICK, on_epoch=kept)
    assert equal(weights(model), seen[0])


def test_weights_that_an_epochs_last_step_spoils_are_not_kept(digits: Dataset, tmp_path: Path) -> None:
    """Whose loss is as it was before the step."""

    def cusp(model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        terms, weight = NormalTraining()(model, inputs, labels), next(model.parameters())
        return LossTerms(terms.loss + torch.sqrt((weight - weight.detach()) ** 2).sum(), *terms[1:])

    with pytest.raises(TrainingDiverged, match="weights are NaN or infinite after epoch 1, at learning rate"):
        fit(network(), digits, [Phase(cusp, 1)], dataclasses.replace(QUICK, batch_size=240), run_dir=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_loss_that_is_not_finite_passes(value: float) -> None:
    losses = torch.tensor([[1.0, 1.0, 0.0], [value, 1.0, 0.0]])
    with pytest.raises(TrainingDiverged, match=rf"the loss is {value} in epoch 1, step 12, "):
        refuse_non_finite(losses, 1, 10, lambda step: 0.1, "there is no checkpoint yet")


class Steep:
    """Ordinary training whose loss, and gradient, is so many times as large."""

    def __init__(self, times: float) -> None:
        self.times = times

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        terms = NormalTraining()(model, inputs, labels)
        return LossTerms(self.times * terms.loss, self.times * terms.classification, terms.regularizer)


@pytest.mark.parametrize(("times", "longest"), [(1e3, 0.5), (0.01, 0.5), (1e3, None)])
def test_a_step_is_no_longer_than_the_bound_on_its_gradient(
    times: float, longest: float | None, digits: Dataset
) -> None:
    net, free = network(), network()
    inputs, labels = next(iter(Batches(digits.train, 16)))
    before = [weight.clone() for weight in net.parameters()]
    step = EagerStep(make_fabric(QUICK), net, torch.optim.SGD(net.parameters(), lr=1.0), longest)
    step(Steep(times), inputs, labels, 0.1)
    moved = torch.cat([(weight - old).flatten() for weight, old in zip(net.parameters(), before, strict=True)])
    gradient = torch.autograd.grad(Steep(times)(free, inputs, labels).loss, list(free.parameters()))
    whole = torch.cat([each.flatten() for each in gradient])
    expected = whole if longest is None else whole * min(1.0, longest / float(whole.norm()))
    torch.testing.assert_close(moved, -0.1 * expected, rtol=1e-4, atol=1e-7)


class Taut:
    """Ordinary training and a hundred times the squared logits, which a step of SGD overshoots."""

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        logits = model(inputs)
        classification, regularizer = nn.functional.cross_entropy(logits, labels), logits.square().sum(dim=1).mean()
        return LossTerms(classification + 100 * regularizer, classification.detach(), regularizer.detach())


def test_a_bound_on_the_gradient_saves_a_training_that_diverges_without(digits: Dataset) -> None:
    notes: list[str] = []
    with pytest.raises(TrainingDiverged, match=r"Train again with a bound on the gradient \(max_grad_norm, "):
        fit(network(), digits, [Phase(Taut(), 1)], QUICK)
    bounded = dataclasses.replace(QUICK, max_grad_norm=1.0)
    result = fit(network(), digits, [Phase(Taut(), 1)], bounded, on_note=notes.append)
    assert result.metrics[0]["regularizer"] < 1
    (note,) = notes  # it did not diverge, and in one epoch beside that regularizer it learns nothing
    assert "nothing was learned. Train again with a smaller learning rate or more epochs." in note  # it is bounded


def test_a_training_that_learned_nothing_is_told(digits: Dataset) -> None:
    notes: list[str] = []
    still, learns = (dataclasses.replace(QUICK, learning_rate=rate) for rate in (1e-9, 0.1))
    fit(network(), digits, [Phase(NormalTraining(), 9)], learns, on_note=notes.append)
    assert notes == []
    fit(network(), digits, [Phase(NormalTraining(), 2)], still, on_note=notes.append)
    (note,) = notes
    assert re.match(
        r"epoch [12], which is selected, is right on \d+\.\d % of the .* as often as a guess: nothing", note
    )
    held_out = Split(digits.validation.images[:0], digits.validation.labels[:0])
    notes.clear()
    unseen = dataclasses.replace(digits, validation=held_out)
    fit(network(), unseen, [Phase(NormalTraining(), 2)], still, on_note=notes.append)
    assert notes == []  # nothing to tell it by
    few = dataclasses.replace(digits, validation=Split(digits.validation.images[:1], digits.validation.labels[:1]))
    fit(network(), few, [Phase(NormalTraining(), 2)], learns, on_note=notes.append)
    assert notes == []  # too little


def test_a_training_whose_selected_epoch_alone_learned_nothing_is_told_so(digits: Dataset) -> None:
    """All but the first learn, and all but the first fall to the attack that selects."""
    calls: list[int] = []

    def late(model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        calls.append(len(labels))
        terms = NormalTraining()(model, inputs, labels)
        return terms if sum(calls) > len(digits.train.labels) else LossTerms(0 * terms.loss, *terms[1:])

    def swapped(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        another = (model(inputs).argmax(dim=1) != labels.unsqueeze(1)).int().argmax(dim=1)  # answered otherwise
        return inputs[another] if sum(calls) > len(digits.train.labels) else inputs.clone()

    notes: list[str] = []
    config = dataclasses.replace(QUICK, learning_rate=0.1, weight_decay=0.0)
    result = fit(network(1), digits, [Phase(late, 10)], config, selection=swapped, on_note=notes.append)
    assert result.best_epoch == 1
    (note,) = notes
    assert re.search(
        r"as often as a guess: epoch \d+ is right on \d\d\.\d %, but withstands .* \(selection=None, ", note
    )


def test_a_training_that_diverged_to_finite_losses_is_told(digits: Dataset) -> None:
    notes: list[str] = []
    fit(network(), digits, [Phase(Steep(1e4), 1)], QUICK, on_note=notes.append)
    (note,) = notes
    assert "where guessing one of 10 classes has 2.3: the training has diverged. Train again with a bound" in note


def test_steps_are_the_papers_quarters() -> None:
    assert [steps(epoch / 20) for epoch in (0, 4.99, 5, 10, 15, 19.99)] == [
        1,
        1,
        1 / 5,
        1 / 25,
        1 / 125,
        1 / 125,
    ]


def test_one_cycle_is_pytorchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=1001, cycle_momentum=False)
    for step in range(1001):  # theirs peaks a step early and ends a step early
        assert one_cycle(step / 1000) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.005)
        optimizer.step()
        theirs.step()
    assert one_cycle(0.0) == pytest.approx(1 / 25)
    assert one_cycle(1.0) == pytest.approx(1 / 250_000)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_in_range(name: str) -> None:
    assert all(0 < SCHEDULES[name](step / 1000) <= 1 for step in range(1000))


@dataclasses.dataclass(frozen=True)
class Watching:
    """An objective that keeps the weights it is called with."""

    seen: list[dict[str, Tensor]]

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        self.seen.append(weights(plain_module(model)))
        return NormalTraining()(model, inputs, labels)


def test_the_moving_average_follows_its_equation_and_is_what_is_kept(digits: Dataset, tmp_path: Path) -> None:
    watching = Watching([])
    model = network()
    config = dataclasses.replace(QUICK, ema_decay=0.8, schedule="constant")
    fit(model, digits, [Phase(watching, 1)], config, run_dir=tmp_path)
    raw = load_tensors(tmp_path / "state.ckpt")[0]
    for name, average in model.state_dict().items():
        expected, *after_each_step = [*(seen[name] for seen in watching.seen), raw[f"model.{name}"]]
        for value in after_each_step:
            expected = 0.8 * expected + 0.2 * value
        torch.testing.assert_close(average, expected)
        assert not torch.equal(average, after_each_step[-1])


def test_averaged_weights_have_statistics_of_their_own() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.Flatten())
    average: Any = MovingAverage(model, decay=0.5)
    before = model[1].weight.detach().clone()
    with torch.no_grad():
        model[1].weight.mul_(3)
        model[2].running_mean.fill_(9.0)
    average.update(model)
    torch.testing.assert_close(average.module[1].weight, 0.5 * before + 0.5 * 3 * before)
    batches = [torch.rand(4, 1, 5, 5) + shift for shift in (0, 1)]
    average.module.eval()
    average.refresh(model, batches)
    maps = [nn.functional.conv2d(batch, average.module[1].weight, average.module[1].bias) for batch in batches]
    norm = average.module[2]
    torch.testing.assert_close(norm.running_mean, torch.stack([each.mean(dim=(0, 2, 3)) for each in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([each.var(dim=(0, 2, 3)) for each in maps]).mean(0))
    assert (norm.momentum, norm.training, average.module.training) == (0.3, False, False)
    assert model[2].running_mean.tolist() == [9.0] * 3


def test_a_batch_norm_of_ones_own_class_has_statistics_of_its_own_too() -> None:
    class Norm(nn.BatchNorm2d):
        pass

    means = []
    for kind in (nn.BatchNorm2d, Norm):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Conv2d(1, 3, 3), kind(3), nn.Flatten())
        average: Any = MovingAverage(model, decay=0.5)
        average.refresh(model, [torch.rand(4, 1, 5, 5)])
        means.append(average.module[1].running_mean)
    torch.testing.assert_close(means[0], means[1])
    assert float(means[0].abs().min()) > 0


def test_a_layer_that_is_skipped_at_random_has_its_momentum_from_the_start(digits: Dataset) -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)
            self.calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.first(inputs.flatten(1)).relu()
            self.calls += self.training
            return self.head(hidden if self.training and self.calls < 3 else self.second(hidden))  # type: ignore[no-any-return]

    net = Skips()
    before = weights(net.second)
    fit(net, digits, [Phase(NormalTraining(), 1)], dataclasses.replace(QUICK, on_masking="off"))
    assert not equal(weights(net.second), before)


def test_a_batch_norm_that_the_model_keeps_frozen_is_frozen_in_the_average_too(digits: Dataset) -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self[1].eval()
            return self

    norm = nn.BatchNorm2d(2)
    norm.running_mean, norm.running_var = torch.full((2,), 0.3), torch.full((2,), 4.0)
    model = Frozen(nn.Conv2d(1, 2, 3), norm, nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))
    fit(model, digits, [Phase(NormalTraining(), 1)], dataclasses.replace(QUICK, ema_decay=0.9))
    assert (norm.running_mean.tolist(), norm.running_var.tolist()) == ([pytest.approx(0.3)] * 2, [4.0] * 2)
    assert float(model[2].running_var.sub(1).abs().min()) > 1e-3  # type: ignore[operator]


class Named(nn.Linear):
    """A layer with a state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"name": "mine"}

    def set_extra_state(self, state: Any) -> None:
        pass


class Unusual(nn.Module):
    """Parameters of kinds that images do not need."""

    def __init__(self, extra: Tensor) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(72, 10)
        self.extra = nn.Parameter(extra, requires_grad=extra.is_floating_point() or extra.is_complex())

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(inputs).flatten(1))
        return logits + self.extra.abs().sum()


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize(
    "extra",
    [torch.rand(1, 1, 1, 1, 2), torch.rand(2, dtype=torch.complex64), torch.arange(3)],
    ids=["5-D", "complex", "integer"],
)
def test_models_with_parameters_of_any_kind_train(digits: Dataset, extra: Tensor, decay: float, tmp_path: Path) -> None:
    model, config = Unusual(extra), dataclasses.replace(QUICK, ema_decay=decay)
    before = model.head.weight.detach().clone()
    assert fit(model, digits, [Phase(NormalTraining(), 1)], config, run_dir=tmp_path).best_epoch == 1
    assert not torch.equal(model.head.weight, before)


def test_a_state_that_no_checkpoint_holds_is_refused_before_the_first_step(digits: Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), Named(64, 10))
    with pytest.raises(ValueError, match=r"the model's state has 1\._extra_state, an object of type dict"):
        fit(model, digits, [Phase(NormalTraining(), 1)], QUICK)


def test_weights_reach_a_model_whose_state_dict_is_a_copy(digits: Dataset, tmp_path: Path) -> None:
    """A hook that clones: what is copied into such a state_dict is lost."""

    def copied() -> nn.Module:
        model = network()
        model._register_state_dict_hook(  # type: ignore[no-untyped-call]
            lambda module, state, *_: {name: each.clone() for name, each in state.items()}
        )
        return model

    whole, phases = copied(), [Phase(NormalTraining(), 2)]
    fit(whole, digits, phases, QUICK, run_dir=tmp_path / "whole")
    other = copied()
    load_weights(other, tmp_path / "whole" / "model.safetensors")
    assert equal(weights(other), weights(whole))

    def cut(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(copied(), digits, phases, QUICK, run_dir=tmp_path / "cut", on_epoch=cut)
    resumed = copied()
    fit(resumed, digits, phases, QUICK, run_dir=tmp_path / "cut", resume=True)
    assert equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_names_that_a_wrapper_wrote_are_taken_without_it(tmp_path: Path, prefix: str) -> None:
    whole, other = network(1), network(2)
    save_file({prefix + name: each for name, each in weights(whole).items()}, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert equal(weights(other), weights(whole))
    with pytest.raises(CheckpointError, match=f"it has {re.escape(prefix)}0.bias|it lacks"):
        load_weights(nn.Linear(2, 2), tmp_path / "weights.safetensors")


def test_a_model_with_its_normalisation_in_front_takes_the_weights_of_its_network(tmp_path: Path) -> None:
    build = partial(build_model, num_classes=10, in_channels=1, image_size=8)
    whole, model = build("digits-net"), build("digits-net", mean=[0.3])
    save_file({"module." + name: each for name, each in weights(whole).items()}, tmp_path / "weights.safetensors")
    load_weights(nn.DataParallel(model), tmp_path / "weights.safetensors")
    assert equal(weights(model.get_submodule("network")), weights(whole))
    assert model.state_dict()["normalize.mean"].item() == pytest.approx(0.3)
    with pytest.raises(CheckpointError, match=r"it lacks \d"):
        load_weights(build("lenet-small", std=[0.2]), tmp_path / "weights.safetensors")
    save_weights(model, tmp_path / "weights.safetensors")
    load_weights(build("digits-net", mean=[0.3]), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"normalises by the std 1, and here std is 0\.25; give the same"):
        load_weights(build("digits-net", mean=[0.3], std=[0.25]), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_a_network_behind_a_normalisation_say_so_to_the_bare_one(tmp_path: Path, prefix: str) -> None:
    build = partial(build_model, num_classes=10, in_channels=1, image_size=8)
    names = weights(build("digits-net", mean=[0.3], std=[0.25]))
    save_file({prefix + name: each for name, each in names.items()}, tmp_path / "weights.safetensors")
    with pytest.raises(
        CheckpointError, match=r"of this network behind a normalisation; give --mean 0\.3 and --std 0\.25"
    ):
        load_weights(build("digits-net"), tmp_path / "weights.safetensors")
    for other in (build("lenet-small"), build("digits-net", num_classes=7)):
        with pytest.raises(CheckpointError, match="of another model"):
            load_weights(other, tmp_path / "weights.safetensors")


def test_a_wrapped_models_weights_are_saved_and_loaded_as_the_models_own(tmp_path: Path) -> None:
    whole, other = network(1), network(2)
    compiled: Any = torch.compile(whole, backend="eager")
    save_weights(nn.DataParallel(compiled), tmp_path / "weights.safetensors")
    assert load_file(tmp_path / "weights.safetensors").keys() == whole.state_dict().keys()
    compiled = torch.compile(nn.DataParallel(other), backend="eager")
    load_weights(compiled, tmp_path / "weights.safetensors")
    assert equal(weights(other), weights(whole))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_torchscript_program_is_no_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)), tmp_path / "program.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(CheckpointError, match="is a TorchScript program"):
        load_weights(nn.Linear(2, 2), tmp_path / "program.pt")


def test_a_training_that_is_refused_writes_nothing_beside_another(digits: Dataset, tmp_path: Path) -> None:
    fit(network(), digits, [Phase(NormalTraining(), 1)], QUICK, run_dir=tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"but no recipe\.json: a training would write over what is not its own"):
        train(quick_recipe(epochs=1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["data.json", "metrics.jsonl", "last.safetensors", "model.safetensors"])
def test_a_training_does_not_write_over_files_that_it_did_not_make(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious", encoding="utf-8")
    with pytest.raises(ValueError, match=f"holds {name}, but no recipe.json"):
        train(quick_recipe(epochs=1), tmp_path)
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_without_batch_norm_averaged_weights_read_no_images_and_take_the_buffers_as_they_are() -> None:
    model = network()
    model.register_buffer("count", torch.zeros(1))
    average = MovingAverage(model, decay=0.5)
    model.get_buffer("count").fill_(3.0)
    average.refresh(model, (pytest.fail("read") for _ in range(1)))
    assert average.module.get_buffer("count").item() == 3


def test_bf16_trains_to_about_the_same_accuracy(digits: Dataset) -> None:
    reached = {}
    for precision in ("fp32", "bf16"):
        model = network()
        config = dataclasses.replace(QUICK, precision=precision)
        fit(model, digits, [Phase(FgsmAT(0.1), 6)], config)
        assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())
        reached[precision] = accuracy(model, Batches(digits.test, 60))
    assert abs(reached["bf16"] - reached["fp32"]) < 0.15


def test_objectives_work_in_a_fabric_loop_as_in_a_plain_one(digits: Dataset) -> None:
    inputs, labels = next(iter(Batches(digits.train, 16)))
    plain, wrapped = network(), network()
    fabric = Fabric(accelerator="cpu", devices=1)
    module = fabric.setup(wrapped)
    objective = SatR1(0.3, 0.2, 5, k=2)
    one, other = objective(plain, inputs, labels), objective(module, inputs, labels)
    assert torch.equal(one.loss, other.loss)


def test_weights_of_another_model_truncated_or_pickled_are_refused(tmp_path: Path) -> None:
    model = network()
    save_weights(model, tmp_path / "good.safetensors")
    load_weights(network(1), tmp_path / "good.safetensors")
    other = build_model("digits-net", num_classes=7, in_channels=1, image_size=8)
    with pytest.raises(CheckpointError, match=r"another model: .* has shape"):
        load_weights(other, tmp_path / "good.safetensors")
    with pytest.raises(CheckpointError, match="another model: it lacks"):
        load_weights(nn.Linear(3, 3), tmp_path / "good.safetensors")
    content = (tmp_path / "good.safetensors").read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            load_weights(model, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(model, tmp_path / "none.safetensors")


def test_a_single_changed_byte_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3),
        "a": torch.tensor(3),
        "c": torch.tensor([True]),
        "e": torch.ones(0),
    }
    save_tensors(path, {**tensors, "d": torch.ones(2, 2, dtype=torch.bfloat16).t()}, {"best_epoch": 12})
    assert load_tensors(path)[1] == {"best_epoch": 12}
    whole = path.read_bytes()
    name = whole.index(b"crc32")  # without which it is another program's file
    for place in (each for each in range(len(whole)) if not name <= each < name + 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            load_tensors(path)


def test_weights_that_another_program_wrote_have_no_checksum_to_check(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert load_tensors(tmp_path / "w.safetensors")[0]["a"].equal(torch.ones(2))


class Bomb:
    """Unpickling this would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("length", [0x80, 0x180, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(tmp_path: Path, length: int) -> None:
    path = tmp_path / "state.ckpt"
    for padding in range(max(0, length - 200), length):
        save_tensors(path, {"a": torch.ones(2)}, {"note": "x" * padding})
        written = int.from_bytes(path.read_bytes()[:8], "little")
        if written >= length:
            break
    assert written == length
    tensors, about = load_tensors(path)
    assert torch.equal(tensors["a"], torch.ones(2))
    assert about == {"note": "x" * padding}


def test_what_a_full_disk_has_no_room_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"file cannot be written \(No space left on device\); make room"):
        write_text(tmp_path / "file", "text")
    with pytest.raises(OSError, match=r"file cannot be written \(No space left on device\); make room"):
        append_records(tmp_path / "file", [])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the platform has no limit on a file's size")
def test_lines_that_closing_the_file_cannot_write_either_are_of_a_named_file(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        with pytest.raises(OSError, match=r"file cannot be written .*make room"):
            append_lines(tmp_path / "file", ["{" + "1" * 100], lambda line: True, "a line", b"{")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_whom_the_umask_lets_read_may_read_weights_too(tmp_path: Path) -> None:
    save_tensors(tmp_path / "weights.safetensors", {"a": torch.ones(2)}, {})
    (tmp_path / "other").write_text("", encoding="utf-8")
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("surefoot.core.files.save_file", full)
    with pytest.raises(OSError, match=r"state.ckpt cannot be written \(No space left on device"):
        save_tensors(tmp_path / "state.ckpt", {"a": torch.ones(2)}, {})
    assert list(tmp_path.iterdir()) == []


def test_what_was_loaded_no_longer_hangs_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    save_tensors(path, {"a": torch.ones(2)}, {})
    tensors, _ = load_tensors(path)
    content = path.read_bytes()
    with open(path, "r+b") as file:  # in place: a mapping of the file would show it
        file.write(content[:-4] + bytes(4))
    assert torch.equal(tensors["a"], torch.ones(2))


def test_what_another_program_wrote_beside_the_tensors_does_not_matter(tmp_path: Path) -> None:
    saved, file = network(1), tmp_path / "weights.safetensors"
    save_file(saved.state_dict(), file, metadata={"format": "pt", "author": "somebody"})
    model = network(2)
    load_weights(model, file)
    assert equal(weights(model), weights(saved))
    assert load_metadata(file) == {}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_of_torch_save_loads_without_its_code(tmp_path: Path, zipped: bool) -> None:
    saved, path = network(), tmp_path / "w.pt"
    torch.manual_seed(7)
    for parameter in saved.parameters():
        nn.init.normal_(parameter)
    for content in (saved.state_dict(), {"state_dict": saved.state_dict(), "epoch": 3}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        loaded = network()
        load_weights(loaded, path)
        for one, other in zip(loaded.parameters(), saved.parameters(), strict=True):
            assert torch.equal(one, other)
    torch.save({"epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="more than a model's weights"):
        load_weights(network(), path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"truncated or damaged|pickled code"):
        load_weights(network(), path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_checkpoint_is_refused_and_never_unpickled(tmp_path: Path, zipped: bool) -> None:
    torch.save({"weight": Bomb(tmp_path / "exploded")}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="pickled code"):
        load_weights(network(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="pickled code"):
        load_tensors(tmp_path / "w.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_state_of_another_model_or_weights_alone_are_no_state(digits: Dataset, tmp_path: Path) -> None:
    save_tensors(tmp_path / "state.ckpt", {"model.weight": torch.zeros(2)}, {})
    with pytest.raises(CheckpointError, match="not a training state"):
        fit(network(), digits, [Phase(NormalTraining(), 1)], QUICK, run_dir=tmp_path, resume=True)
    about = {"metrics": [], "best_epoch": 0, "best_score": -1.0}
    save_tensors(tmp_path / "state.ckpt", {"model.weight": torch.zeros(2)}, about)
    with pytest.raises(CheckpointError, match="another model"):
        fit(network(), digits, [Phase(NormalTraining(), 1)], QUICK, run_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("batch_size", 0, "batch_size is 0"),
        ("max_grad_norm", 0.0, "max_grad_norm is 0.0; it must be a finite number above 0"),
        ("max_grad_norm", math.inf, "max_grad_norm is inf"),
        ("devices", 0, "devices is 0"),
        ("batch_size", 32.0, "batch_size is 32.0; it must be a whole number of at least 1"),
        ("devices", "2", "devices is '2'; it must be a whole number of at least 1"),
        ("monitor_every", 0, "monitor_every is 0; it must be a whole number of at least 1"),
        ("learning_rate", -1.0, "learning_rate is -1"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("momentum", 1.0, "momentum is 1"),
        ("ema_decay", -0.1, "ema_decay is -0.1"),
        ("weight_decay", -1.0, "weight_decay is -1"),
        ("schedule", "cosine", "schedule is 'cosine'"),
        ("precision", "fp16", "precision is 'fp16'; it is one of fp32, bf16"),
        ("capture", "on", "capture is 'on'; it is one of auto, off"),
        ("augment", "flip", "augment is 'flip'; it is one of none, crop-flip"),
        ("device", "gpu", "device is 'gpu'; it is one of auto, cpu, cuda, mps"),
    ],
)
def test_bad_settings_are_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FitConfig(**{field: value})  # type: ignore[arg-type]


def test_a_batch_too_small_for_its_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 2, but devices is 3; each device needs a sample"):
        FitConfig(batch_size=2, devices=3)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], "the training split has no images"),
        ([0, 10], "a label is 10 in the training split; labels are class indices from 0 to 9"),
        ([0, -1], "a label is -1 in the training split"),
    ],
)
def test_images_that_cannot_be_trained_on_are_refused(labels: list[int], words: str, digits: Dataset) -> None:
    train_split = Split(digits.train.images[: len(labels)], torch.tensor(labels, dtype=torch.int64))
    with pytest.raises(ValueError, match=words):
        fit(network(), dataclasses.replace(digits, train=train_split), [Phase(NormalTraining(), 1)], QUICK)


def test_a_validation_label_that_is_no_class_is_refused_before_the_first_epoch(digits: Dataset) -> None:
    wrong = digits.validation._replace(labels=digits.validation.labels - 1)
    with pytest.raises(ValueError, match="a label is -1 in the validation split"):
        fit(network(), dataclasses.replace(digits, validation=wrong), [Phase(NormalTraining(), 1)], QUICK)


def test_weights_that_are_not_made_yet_are_refused(digits: Dataset) -> None:
    with pytest.raises(ValueError, match=r"the model has layers that take their size from their first input"):
        fit(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), digits, [Phase(NormalTraining(), 1)], QUICK)


def test_one_number_a_sample_is_told_what_makes_two_logits_of_it(digits: Dataset) -> None:
    two = Split(digits.train.images, digits.train.labels % 2)
    with pytest.raises(ValueError, match=r"returns float32 \[4, 1\] \(surefoot\.models\.TwoLogits\(model\) makes"):
        try_training(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "it", two, 2, torch.device("cpu"))


def test_a_training_called_without_gradients_takes_its_own(digits: Dataset) -> None:
    model = network()
    before = weights(model)
    with torch.no_grad():
        fit(model, digits, [Phase(NormalTraining(), 1)], QUICK)
        assert not torch.is_grad_enabled()
    assert not equal(weights(model), before)


def test_numpys_numbers_are_numbers_in_what_is_written(digits: Dataset, tmp_path: Path) -> None:
    whole: Any = np.int64(32)
    number: Any = np.float32(0.1)
    config = dataclasses.replace(QUICK, batch_size=whole, learning_rate=number)
    fit(network(), digits, [Phase(FgsmAT(number), 1)], config, run_dir=tmp_path)
    settings = load_metadata(tmp_path / "state.ckpt")["settings"]
    assert (settings["batch_size"], settings["objective of epoch 1, eps"]) == (32, pytest.approx(0.1))
    recipe = dataclasses.replace(RECIPES["digits/fgsm-at"], eps=number, epochs=whole)
    assert Recipe.from_json(recipe.to_json()).epochs == 32


def test_what_is_not_finite_is_null_in_the_lines(digits: Dataset, tmp_path: Path) -> None:
    def far(model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        terms = NormalTraining()(model, inputs, labels)
        return terms._replace(regularizer=torch.tensor(torch.inf))

    fit(network(), digits, [Phase(far, 1)], QUICK, run_dir=tmp_path)
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["regularizer"] is None


def test_two_trainings_in_one_folder_are_refused(digits: Dataset, tmp_path: Path) -> None:
    with at_work(tmp_path), pytest.raises(ValueError, match="another training is at work in"):
        fit(network(), digits, [Phase(NormalTraining(), 1)], QUICK, run_dir=tmp_path)
    fit(network(), digits, [Phase(NormalTraining(), 1)], QUICK, run_dir=tmp_path)
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_model_with_fewer_logits_than_labels_is_refused_before_the_first_step(split: str, digits: Dataset) -> None:
    def up_to(highest: int, images: Tensor, labels: Tensor) -> Split:
        return Split(images[:60], labels[:60].clamp(max=highest))

    train_split = up_to(9 if split == "train" else 4, *digits.train)
    few = dataclasses.replace(digits, train=train_split, validation=up_to(9, *digits.validation))
    steps: list[int] = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    net.register_forward_hook(lambda module, inputs, output: steps.append(len(output)) if module.training else None)
    with pytest.raises(ValueError, match="a label is 9, but the model has the classes 0 to 4; give the data that it"):
        fit(net, few, [Phase(NormalTraining(), 1)], QUICK)
    assert steps == []


@pytest.mark.parametrize("name", ["lightning_fabric", "lightning.fabric"])
def test_a_training_leaves_the_callers_loggers_as_they_are(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = f"{name}.utilities.rank_zero"
    with caplog.at_level(logging.INFO, logger):
        make_fabric(QUICK)
        assert logging.getLogger(logger).level == logging.INFO


BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"model": "lenet-plus"}, "the model is an object of type str, not a torch.nn.Module"),
    ({"dataset": (1, 2)}, "dataset is an object of type tuple; give a Dataset, as surefoot.data.load gives it"),
    ({"config": {"batch_size": 32}}, "config is an object of type dict; give a FitConfig"),
    ({"phases": Phase(NormalTraining(), 1)}, r"phases is a single one; give a list of them, as \[phase\]"),
    ({"repair": FgsmAT}, r"repair is <class .*; give one with its settings, for example FgsmAT"),
]


@pytest.mark.parametrize(("given", "words"), BAD_CALLS, ids=[next(iter(given)) for given, _ in BAD_CALLS])
def test_an_argument_of_another_kind_is_refused(given: dict[str, Any], words: str, digits: Dataset) -> None:
    usual = {"model": network(), "dataset": digits, "phases": [Phase(NormalTraining(), 1)], "config": QUICK}
    with pytest.raises(TypeError, match=words):
        fit(**{**usual, **given})


def test_a_model_without_a_weight_to_train_is_refused(digits: Dataset) -> None:
    with pytest.raises(ValueError, match="no weight of the model has requires_grad"):
        fit(network().requires_grad_(False), digits, [Phase(NormalTraining(), 1)], QUICK)


BAD_TERMS: dict[str, Callable[[Tensor], Any]] = {
    "an object of type Tensor": lambda loss: loss.mean(),
    "an object of type tuple": lambda loss: (loss.mean(), loss.mean().detach(), 0.0),
    "a loss that is no scalar tensor": lambda loss: LossTerms(loss, loss.mean().detach(), loss.new_zeros(())),
    "a regularizer that is no scalar tensor": lambda loss: LossTerms(loss.mean(), loss.mean().detach(), 0.0),  # type: ignore[arg-type]
    "a loss without a gradient": lambda loss: LossTerms(*3 * [loss.mean().detach()]),
}


@pytest.mark.parametrize("found", BAD_TERMS)
def test_an_objective_of_ones_own_that_returns_something_else_is_told(found: str, digits: Dataset) -> None:
    def mine(model: nn.Module, inputs: Tensor, labels: Tensor) -> Any:
        return BAD_TERMS[found](nn.functional.cross_entropy(model(inputs), labels, reduction="none"))

    with pytest.raises(TypeError, match=f"^mine returned {found}; an objective returns LossTerms"):
        fit(network(), digits, [Phase(mine, 1)], QUICK)


def test_what_is_kept_of_a_step_holds_no_graph(digits: Dataset) -> None:
    def mine(model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        return LossTerms(loss, loss, loss)  # not detached

    net = network()
    step = EagerStep(make_fabric(QUICK), net, torch.optim.SGD(net.parameters()))
    assert not step(mine, *next(iter(Batches(digits.train, 16))), 0.1).requires_grad


def test_a_state_of_more_epochs_than_the_phases_have_is_refused(digits: Dataset, tmp_path: Path) -> None:
    fit(network(), digits, [Phase(NormalTraining(), 2)], QUICK, run_dir=tmp_path)
    mine = network()
    with pytest.raises(CheckpointError, match="of another run: it has 2 epochs, and the phases 1"):
        fit(mine, digits, [Phase(NormalTraining(), 1)], QUICK, run_dir=tmp_path, resume=True)
    torch.testing.assert_close(mine.state_dict(), network().state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda: {"config": dataclasses.replace(QUICK, learning_rate=0.02)}, "learning_rate was 0.05 and is 0.02"),
        (lambda: {"phases": [Phase(FgsmAT(0.1), 2)]}, "objective of epoch 1, eps was 0.2 and is 0.1"),
        (lambda: {"phases": [Phase(NormalTraining(), 2)]}, "objective of epoch 1 was FgsmAT and is NormalTraining"),
        (lambda: {"phases": [Phase(FgsmAT(0.2), 2, 0.3)]}, "learning rate of epoch 1 was None and is 0.3"),
        (lambda: {"config": dataclasses.replace(QUICK, optimizer="adamw")}, "optimizer was sgd and is adamw"),
        (lambda: {"selection": None}, "selection was FGSM and is None"),
        (lambda: {"selection": FGSM(0.3)}, "selection, eps was 0.2 and is 0.3"),
    ],
)
def test_a_training_goes_on_by_the_settings_that_it_was_begun_with(
    digits: Dataset, tmp_path: Path, change: Callable[[], dict[str, Any]], told: str
) -> None:
    begun = {"phases": [Phase(FgsmAT(0.2), 1)], "config": QUICK, "selection": FGSM(0.2)}
    fit(network(), digits, **begun, run_dir=tmp_path)  # type: ignore[arg-type]
    before = (tmp_path / "state.ckpt").read_bytes()
    mine = network()
    with pytest.raises(CheckpointError, match=f"was trained with other settings: {re.escape(told)}"):
        fit(mine, digits, **begun | change(), run_dir=tmp_path, resume=True)  # type: ignore[arg-type]
    torch.testing.assert_close(mine.state_dict(), network().state_dict(), rtol=0, atol=0)
    assert (tmp_path / "state.ckpt").read_bytes() == before
    longer = {
        "phases": [Phase(FgsmAT(0.2), 1), Phase(NormalTraining(), 1)],
        "config": dataclasses.replace(QUICK, on_masking="off"),
    }
    assert len(fit(network(), digits, **begun | longer, run_dir=tmp_path, resume=True).metrics) == 2  # type: ignore[arg-type]


def test_a_training_goes_on_by_the_fields_of_an_objective_of_any_kind(digits: Dataset, tmp_path: Path) -> None:
    fit(network(), digits, [Phase(Steep(1.0), 1)], QUICK, run_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"objective of epoch 1, times was 1\.0 and is 2\.0"):
        fit(network(), digits, [Phase(Steep(2.0), 2)], QUICK, run_dir=tmp_path, resume=True)


def test_a_state_without_its_settings_as_older_ones_are_is_gone_on_with(digits: Dataset, tmp_path: Path) -> None:
    fit(network(), digits, [Phase(NormalTraining(), 1)], QUICK, run_dir=tmp_path)
    tensors, about = load_tensors(tmp_path / "state.ckpt")
    assert about.pop("settings")["batch_size"] == QUICK.batch_size
    save_tensors(tmp_path / "state.ckpt", tensors, about)
    assert len(fit(network(), digits, [Phase(NormalTraining(), 2)], QUICK, run_dir=tmp_path, resume=True).metrics) == 2


def test_a_training_is_written_over_only_to_go_on_with_it(digits: Dataset, tmp_path: Path) -> None:
    phases = [Phase(NormalTraining(), 1)]
    fit(network(), digits, phases, QUICK, run_dir=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"holds a training already \(state\.ckpt, model\.safetensors\).*resume=True"):
        fit(network(), digits, phases, QUICK, run_dir=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert fit(network(), digits, phases, QUICK, run_dir=tmp_path, resume=True).best_epoch == 1
    with pytest.raises(ValueError, match="no run_dir to go on from"):
        fit(network(), digits, phases, QUICK, resume=True)


def test_an_average_of_a_model_that_cannot_be_copied_is_refused(digits: Dataset) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    prune.random_unstructured(net[1], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"cannot be copied .*; train without ema_decay, or make pruning permanent"):
        fit(net, digits, [Phase(NormalTraining(), 1)], dataclasses.replace(QUICK, ema_decay=0.9))
    assert fit(net, digits, [Phase(NormalTraining(), 1)], QUICK).best_epoch == 1


def test_a_selection_without_its_settings_is_refused_before_the_first_epoch(digits: Dataset) -> None:
    with pytest.raises(TypeError, match=r"give attacks with their settings, for example FGSM\(eps=0.1\)"):
        fit(network(), digits, [Phase(NormalTraining(), 1)], QUICK, selection=IFGSM)  # type: ignore[arg-type]


def test_no_phases_and_no_epochs_are_refused(digits: Dataset) -> None:
    with pytest.raises(ValueError, match="phases is empty"):
        fit(network(), digits, [], QUICK)
    with pytest.raises(ValueError, match="epochs is 0"):
        Phase(NormalTraining(), 0)
    with pytest.raises(TypeError, match=r"objective is <class .*; give one with its settings"):
        Phase(NormalTraining, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"phases has NormalTraining\(.*; give Phase\(objective, epochs\)"):
        fit(network(), digits, [NormalTraining()], QUICK)  # type: ignore[list-item]


def test_a_device_that_is_not_there_is_refused(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        fit(network(), digits, [Phase(NormalTraining(), 1)], dataclasses.replace(QUICK, device="cuda"))


def test_under_torchrun_the_processes_are_shared_out_over_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"torchrun started 2 processes on this machine.*devices is 1; give 2"):
        make_fabric(dataclasses.replace(QUICK, devices=1))
    seen: list[dict[str, Any]] = []

    class Asked:
        def __init__(self, **settings: Any) -> None:
            seen.append(settings)

        def launch(self) -> None: ...

    monkeypatch.setattr(sys.modules["surefoot.training.machines"], "Fabric", Asked)
    make_fabric(dataclasses.replace(QUICK, devices=2))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    make_fabric(dataclasses.replace(QUICK, devices=2))
    assert [(settings["devices"], settings["num_nodes"]) for settings in seen] == [(2, 3), (2, 1)]


def test_without_a_validation_split_the_last_epoch_is_kept(digits: Dataset) -> None:
    empty = Split(digits.validation.images[:0], digits.validation.labels[:0])
    result = fit(network(), dataclasses.replace(digits, validation=empty), [Phase(NormalTraining(), 2)], QUICK)
    assert result.best_epoch == 2
    assert result.metrics[-1]["validation_clean_accuracy"] is None


def test_without_a_gpu_pytorch_built_for_cuda_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert best_device() == torch.device("cpu")
    assert pick_device("auto") == torch.device("cpu")


def test_few_images_do_not_tell_a_guess() -> None:
    """Five of six right was called as often as a guess, where half are of one class."""
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert not guesses(torch.tensor([0, 0, 0, 0, 2, 2]), labels)
    assert not guesses(torch.zeros_like(labels), labels)
    assert not guesses(labels[:0], labels[:0])
    assert guesses(torch.zeros(60, dtype=torch.int64), labels.repeat(10))


def test_the_statistics_of_averaged_weights_are_measured_behind_our_own_convolutions_too() -> None:
    """Crafting takes a batch-norm into the convolution before it; one that measures must not be."""
    model = build_model("conv-norm", num_classes=3, in_channels=1, image_size=8)
    average = MovingAverage(model, decay=0.5)
    inputs = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    average.refresh(model, [inputs])
    reference = copy.deepcopy(model).train()
    norms = [[part for part in net.modules() if isinstance(part, nn.BatchNorm2d)] for net in (average, reference)]
    for norm in norms[1]:
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        reference(inputs)
    assert norms[0]
    for ours, theirs in zip(*norms, strict=True):
        assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-5)
        assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-5)
