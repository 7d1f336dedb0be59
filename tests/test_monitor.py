"""The monitor: what it sees, how rarely it errs, and what a training does about it."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from surefoot.attacks import FGSM, IFGSM, PGD, RFGSM
from surefoot.attacks.gradient_sign import ascend, random_signs
from surefoot.audit.landscape import gradients
from surefoot.cli import main
from surefoot.cli import train as cli_train
from surefoot.cli.models import TRAINING_PLOTS, training_curves
from surefoot.core.files import load_tensors
from surefoot.core.geometry import project
from surefoot.core.gradients import crafting
from surefoot.core.seeding import seeded
from surefoot.core.types import LossTerms, Objective
from surefoot.data import Batches, Dataset, Split, load
from surefoot.evaluation import accuracy, read_records
from surefoot.evaluation.probes import logit_distances, losses_along, sample_losses
from surefoot.evaluation.stages import predictions
from surefoot.evaluation.statistics import binomial_tail
from surefoot.models import build_model
from surefoot.objectives import FgsmAT, SatR1
from surefoot.recipes import RECIPES, load_run, train
from surefoot.recipes.run import Run, check_folder, recipe_monitor, recipe_repair
from surefoot.report.plots import AXES
from surefoot.training import CheckpointError, FitConfig, FitResult, Look, Monitor, Phase, describe, fit, monitor_curves
from surefoot.training.monitor import Guard, OnMasking
from tests.tables import forwards_that_spoil_autocast

EPS = 0.3
GREY = 128 / 255
RESULTS = Path(__file__).parents[1] / "results" / "monitor"


class Planted(nn.Module):
    """Two logits whose margin falls with |x - grey| where the first pixel is white: no gradient at a grey image itself.

    So FGSM does nothing there and PGD, which starts beside it, does all. `strength` is how steeply it falls.
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = inputs.flatten(1)
        masked = (pixels[:, 0] > 0.5).float()
        margin = 1 - 10 * self.strength * masked * (pixels[:, 1:] - GREY).abs().mean(dim=1)
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


def greys(count: int, masked: float) -> tuple[Tensor, Tensor]:
    """`count` grey images of class 0, the given share of which `Planted` masks."""
    images = torch.full((count, 1, 4, 4), GREY)
    images[:, 0, 0, 0] = (torch.arange(count) < masked * count).float()
    return images, torch.zeros(count, dtype=torch.int64)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("digits-net", num_classes=10, in_channels=1, image_size=8)


def look_at(model: nn.Module, masked: float = 1.0, **settings: Any) -> Look:
    look = Monitor(*greys(128, masked), eps=EPS, every=1, **settings)(model, 1)
    assert look is not None
    return look


def test_planted_masking_is_seen_and_a_linear_model_is_not_suspected() -> None:
    look = look_at(Planted())
    assert (look.fgsm_accuracy, look.pgd_accuracy, look.lost) == (1.0, 0.0, 128)
    assert look.masked
    assert look.pgd_loss > look.fgsm_loss
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    assert not look_at(linear).masked
    assert look_at(linear).lost == 0  # one step is the strongest attack on it


def test_a_look_does_not_spoil_the_autocast_of_a_training_step_around_it() -> None:
    net = network()
    found = forwards_that_spoil_autocast(net)
    with torch.autocast("cpu", torch.bfloat16):
        Monitor(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64), eps=EPS, every=1)(net, 1)
    assert found
    assert not any(found)


def test_a_difference_that_is_merely_significant_is_no_masking() -> None:
    few = look_at(Planted(), masked=0.2)
    assert few.lost == 26
    assert binomial_tail(few.lost, 128, 0.05) < 1e-6  # far from chance, and yet within the bound
    assert not few.masked
    assert look_at(Planted(), masked=0.2, bound=0.05).masked
    assert not look_at(Planted(), masked=0.35).masked  # above the bound, but not clearly
    assert look_at(Planted(), masked=0.5).masked


@pytest.mark.parametrize(("slope", "agreement"), [(0.0, 0.0), (1e-30, 1.0), (1.0, 1.0)])
def test_a_gradient_that_is_zero_agrees_with_nothing_and_a_tiny_one_still_counts(
    slope: float, agreement: float
) -> None:
    linear = nn.Linear(16, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[slope], [0.0]]))
    assert look_at(nn.Sequential(nn.Flatten(), linear)).agreement == pytest.approx(agreement)


@pytest.mark.parametrize(("masked", "kept"), [(0.2, 1), (0.35, 0)])
def test_a_look_above_the_bound_is_nothing_to_go_back_to(masked: float, kept: int) -> None:
    weight = torch.zeros(1)
    guard = Guard(Monitor(*greys(128, masked), eps=EPS, every=1), "stop", None, lambda: {"weight": weight})
    assert not guard(Planted(), 1)
    assert not guard.monitor.history[0].masked
    assert guard.healthy_step == kept


def test_a_model_that_fgsm_fools_as_well_is_not_robust_but_not_masked() -> None:
    class Weak(Planted):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs + 0.1)

    look = look_at(Weak())
    assert look.fgsm_accuracy == look.pgd_accuracy == 0
    assert not look.masked


def test_the_measurements_are_those_of_the_attacks_and_probes() -> None:
    model = network()
    inputs, labels = torch.rand(32, 1, 8, 8), torch.randint(10, (32,))
    look = Monitor(inputs, labels, eps=EPS, every=1, steps=4)(model, 1)
    assert look is not None
    fgsm, ifgsm = FGSM(EPS)(model, inputs, labels), IFGSM(EPS, 4)(model, inputs, labels)
    with seeded(0):
        rfgsm = RFGSM(EPS, EPS / 2)(model, inputs, labels)
    with seeded(0), crafting(model) as frozen:
        corner = project(inputs + EPS / 2 * random_signs(inputs), inputs, EPS)
        pgd = ascend(frozen, inputs, labels, corner, eps=EPS, steps=4, step_size=EPS / 2)
    signs = (fgsm - inputs).sign()
    along = losses_along(model, inputs, labels, signs, [0, EPS / 3, 2 * EPS / 3, EPS])
    close = partial(pytest.approx, rel=1e-4, abs=1e-6)
    assert look.fgsm_loss == close(sample_losses(model, fgsm, labels).mean().item())
    assert look.pgd_loss == close(sample_losses(model, pgd, labels).mean().item())
    assert look.losses_along == close(along.mean(dim=1).tolist())
    assert look.rising == close((along.diff(dim=0) >= 0).all(dim=0).float().mean().item())
    assert look.rfgsm_distance == close(logit_distances(model, fgsm, rfgsm).mean().item())
    assert look.ifgsm_distance == close(logit_distances(model, fgsm, ifgsm).mean().item())
    here, there = (gradients(model, each, labels).flatten(1) for each in (inputs, corner))
    assert look.agreement == close(F.cosine_similarity(here, there).mean().item())
    stands, still = (predictions(model, each) == labels for each in (fgsm, pgd))
    assert look.lost == int((stands & ~still).sum())
    assert look.fgsm_accuracy == close(stands.float().mean().item())
    assert look.pgd_accuracy == close(still.float().mean().item())


def test_the_tail_is_the_binomials() -> None:
    for rate in (0.05, 0.25, 0.9):
        for successes in (0, 1, 5, 20, 40):
            exact = sum(math.comb(40, k) * rate**k * (1 - rate) ** (40 - k) for k in range(successes, 41))
            assert binomial_tail(successes, 40, rate) == pytest.approx(exact, rel=1e-9)


def test_the_false_alarms_of_all_looks_together_stay_below_the_rate() -> None:
    monitor = Monitor(*greys(128, 0.4), eps=EPS, every=1, bound=0.3, false_alarm_rate=0.01)
    for step in range(1, 13):
        monitor(Planted(), step)
    spent = 0.0
    for look in monitor.history:
        least = min(lost for lost in range(129) if binomial_tail(lost, 128, 0.3) <= look.level)
        spent += binomial_tail(least, 128, 0.3)  # the chance of a false alarm where the share is the bound itself
    assert 0 < spent <= 0.01
    assert sum(1 / (k * (k + 1)) for k in range(1, 100_000)) <= 1
    assert [look.level for look in monitor.history] == [0.01 / (k * (k + 1)) for k in range(1, 13)]


def test_a_look_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [part.training for part in model.modules()]
    generator = torch.get_rng_state()
    look = Monitor(torch.rand(40, 1, 8, 8), torch.randint(10, (40,)), eps=EPS, every=5)
    generator = torch.get_rng_state()
    assert look(model, 4) is None
    assert look(model, 5) is not None
    assert torch.equal(generator, torch.get_rng_state())
    assert flags == [part.training for part in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad


def test_looks_are_json_and_lines_to_plot() -> None:
    look = look_at(Planted())
    assert Look(**json.loads(json.dumps(dataclasses.asdict(look)))) == look
    curves = monitor_curves([look, dataclasses.replace(look, step=2, pgd_loss=5.0)])
    assert curves["PGD loss"] == ([1.0, 2.0], [look.pgd_loss, 5.0])
    assert {"FGSM - R-FGSM", "FGSM - I-FGSM"} <= curves.keys()
    sentence = describe(look)
    assert f"FGSM's loss is {look.fgsm_loss:.3g}, PGD's {look.pgd_loss:.3g}" in sentence
    assert "100 % of the held-out images withstand FGSM but fall to PGD" in sentence
    assert sentence.startswith("gradients are masked at step 1: ")
    assert describe(dataclasses.replace(look, masked=False)).startswith("no clear sign of masking at step 1: ")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eps": 0.0}, "eps is 0"),
        ({"eps": 8}, "write 8/255"),
        ({"every": 0}, "every is 0"),
        ({"steps": 1}, "steps is 1"),
        ({"bound": 1.0}, "bound is 1"),
        ({"false_alarm_rate": 0.0}, "false_alarm_rate is 0"),
        ({"inputs": torch.full((128, 1, 4, 4), 2.0)}, "pixels in"),
        ({"inputs": torch.zeros(0, 1, 4, 4), "labels": torch.zeros(0, dtype=torch.int64)}, "no images"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    inputs, labels = greys(128, 1.0)
    with pytest.raises(ValueError, match=words):
        Monitor(**{"inputs": inputs, "labels": labels, "eps": EPS, **settings})


# Training


@dataclasses.dataclass(frozen=True)
class Push:
    """An objective that moves `Planted`'s strength by `speed` times the learning rate each step: it masks, or mends."""

    speed: float

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        strength = dict(model.named_parameters())[
            next(name for name, _ in model.named_parameters() if name.endswith("strength"))
        ]
        loss = -self.speed * strength + 0 * model(inputs).sum()
        return LossTerms(loss, loss.detach(), torch.zeros(()))


SLOWLY = FitConfig(
    batch_size=8, learning_rate=0.06, schedule="constant", momentum=0.5, weight_decay=0.0, device="cpu", monitor_every=3
)


@pytest.fixture(scope="module")
def grey_data() -> Dataset:
    """32 training images (4 steps an epoch), all of which `Planted` masks."""
    images, labels = greys(64, 1.0)
    images = (images * 255).round().to(torch.uint8)
    part = Split(images[:32], labels[:32])
    return Dataset("greys", part, Split(images, labels), part, 2, ("0", "1"))


def fit_planted(
    data: Dataset, action: OnMasking, *, epochs: int = 4, repair: Objective | None = None, **settings: Any
) -> tuple[FitResult, Planted, Monitor]:
    model, config = Planted(0.0), dataclasses.replace(SLOWLY, on_masking=action)
    images, labels = data.validation
    monitor = Monitor(images.float() / 255, labels, eps=EPS, every=3)
    monitor.history.append(look_at(Planted()))  # of another training
    phases = [Phase(Push(0.5), epochs)]
    result = fit(model, data, phases, config, monitor=monitor, repair=repair, **settings)
    return result, model, monitor


def events(result: FitResult) -> list[Any]:
    return [line["masking"] for line in result.metrics]


def test_warn_says_it_once_and_changes_nothing(grey_data: Dataset) -> None:
    notes: list[str] = []
    result, watched, monitor = fit_planted(grey_data, "warn", on_note=notes.append)
    _, alone, _ = fit_planted(grey_data, "off")
    assert torch.equal(watched.strength, alone.strength)
    assert [look.step for look in monitor.history] == [3, 6, 9, 12, 15]
    assert [look.masked for look in monitor.history] == [False, False, True, True, True]
    assert [len(line["monitor"]) for line in result.metrics] == [1, 1, 2, 1]
    assert events(result) == [None, None, {"step": 9, "action": "warn", "back_to": None}, None]
    assert len(notes) == 1
    assert notes[0].startswith("gradients are masked at step 9: FGSM's loss is")
    assert "on_masking 'repair' (`--on-masking repair`) goes back" in notes[0]  # as Python and as a shell take it


def test_nothing_is_seen_while_the_radius_is_still_growing(grey_data: Dataset) -> None:
    @dataclasses.dataclass(frozen=True)
    class Narrow(Push):
        eps: float

    images, labels = grey_data.validation
    monitor = Monitor(images.float() / 255, labels, eps=EPS, every=3)
    phases = [Phase(Narrow(0.5, EPS / 2), 2), Phase(Narrow(0.5, EPS), 1), Phase(Push(0.5), 1)]
    fit(Planted(0.0), grey_data, phases, SLOWLY, monitor=monitor)
    assert [look.step for look in monitor.history] == [9, 12, 15]  # of 4 steps an epoch, from the third on


def test_stop_ends_at_the_last_healthy_look(grey_data: Dataset, tmp_path: Path) -> None:
    notes: list[str] = []
    result, model, monitor = fit_planted(grey_data, "stop", run_dir=tmp_path, on_note=notes.append)
    (healthy,) = (look for look in monitor.history if look.step == 6)
    assert healthy.lost == 0
    assert [line["epoch"] for line in result.metrics] == [1, 2, 3]
    assert events(result)[-1] == {"step": 9, "action": "stop", "back_to": 6}
    assert result.best_epoch == 3
    assert "put back to step 6, its last healthy look, and the training ends there" in notes[0]
    fresh, _, _ = fit_planted(grey_data, "off", epochs=1)  # steps 1-4 are the same
    assert fresh.metrics[0]["loss"] == result.metrics[0]["loss"]
    for name in ("model.safetensors", "last.safetensors"):
        kept = load_file(tmp_path / name)
        assert torch.equal(kept["strength"], model.strength)
    assert look_at(model).lost == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    again, _, _ = fit_planted(grey_data, "stop", run_dir=tmp_path, resume=True)
    assert len(again.metrics) == 3  # stopped for good
    assert (tmp_path / "model.safetensors").read_bytes() == before

    recipe = dataclasses.replace(RECIPES["digits/fgsm-at"], epochs=4)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    assert Run(tmp_path, recipe).is_finished()
    with pytest.raises(ValueError, match="finished run"):
        check_folder(recipe, tmp_path, resume=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stop_before_any_healthy_look_goes_back_to_the_start(
    grey_data: Dataset, tmp_path: Path, optimizer: Literal["sgd", "adamw"]
) -> None:
    config = dataclasses.replace(SLOWLY, on_masking="stop", learning_rate=1.0, optimizer=optimizer)
    model, notes = Planted(0.0), list[str]()
    images, labels = grey_data.validation
    monitor = Monitor(images.float() / 255, labels, eps=EPS, every=3)
    fit(model, grey_data, [Phase(Push(0.5), 2)], config, monitor=monitor, run_dir=tmp_path, on_note=notes.append)
    assert model.strength.item() == 0
    state, _ = load_tensors(tmp_path / "state.ckpt")
    kept = {"sgd": {"momentum"}, "adamw": {"momentum", "square", "steps"}}[optimizer]
    assert {name for name in state if name.endswith(".strength")} >= {f"{kind}.strength" for kind in kept}
    assert all(not state[f"{kind}.strength"].any() for kind in kept)
    (note,) = notes
    assert "put back before the first step, and the training ends there, with the weights that it began with" in note


def test_repair_goes_back_and_on_with_the_other_objective(grey_data: Dataset) -> None:
    notes: list[str] = []
    result, model, monitor = fit_planted(grey_data, "repair", epochs=5, repair=Push(-0.2), on_note=notes.append)
    assert events(result)[2] == {"step": 9, "action": "repair", "back_to": 6}
    assert events(result)[3:] == [None, None]
    assert "put back to step 6, its last healthy look, and goes on with Push" in notes[0]
    assert [look.masked for look in monitor.history] == [False, False, True, False, False, False]
    assert result.best_epoch >= 3
    assert 0 < model.strength.item() < 0.33
    assert result.metrics[-1]["loss"] > 0 > result.metrics[0]["loss"]  # the repair's sign
    assert look_at(model).lost == 0


def test_a_radius_that_is_eight_255ths_but_for_rounding_is_looked_at(grey_data: Dataset) -> None:
    @dataclasses.dataclass(frozen=True)
    class Rounded(Push):
        eps: float

    images, labels = grey_data.validation
    monitor = Monitor(images.float() / 255, labels, eps=8 / 255, every=3)
    fit(Planted(0.0), grey_data, [Phase(Rounded(0.5, 0.031), 1)], SLOWLY, monitor=monitor)
    assert [look.step for look in monitor.history] == [3]


def test_a_training_that_only_warned_and_goes_on_to_stop_tells_where_it_goes_back_to(
    grey_data: Dataset, tmp_path: Path
) -> None:
    fit_planted(grey_data, "warn", epochs=1, run_dir=tmp_path)
    notes: list[str] = []
    resumed, model, _ = fit_planted(grey_data, "stop", run_dir=tmp_path, resume=True, on_note=notes.append)
    assert events(resumed)[-1] == {"step": 9, "action": "stop", "back_to": 6}
    fit_planted(grey_data, "warn", epochs=2, run_dir=tmp_path / "later")
    resumed, model, _ = fit_planted(grey_data, "stop", run_dir=tmp_path / "later", resume=True, on_note=notes.append)
    assert events(resumed)[-1] == {"step": 9, "action": "stop", "back_to": 8}  # of 4 steps an epoch: where it was cut
    assert "put back to step 8, and the training ends there" in notes[-1]
    assert model.strength.item() > 0


def test_a_probe_made_in_inference_mode_serves() -> None:
    with torch.inference_mode():
        images, labels = greys(8, 0.0)
        monitor = Monitor(images.clone(), labels.clone(), eps=EPS, every=1)
    assert monitor(Planted(), 1) is not None


@pytest.mark.parametrize(("little", "told"), [(0.2, False), (0.3, True)])
def test_a_repair_that_comes_too_late_is_said_to(
    grey_data: Dataset, monkeypatch: pytest.MonkeyPatch, little: float, told: bool
) -> None:
    monkeypatch.setattr(sys.modules["surefoot.training.fit"], "LITTLE", little)  # a quarter is left
    notes: list[str] = []
    result, _, _ = fit_planted(grey_data, "repair", epochs=3, repair=Push(-0.2), on_note=notes.append)
    assert events(result)[2] == {"step": 9, "action": "repair", "back_to": 6}
    late = [note for note in notes if "mend little" in note]
    assert len(late) == told
    if told:
        assert "3 of 12 steps are left to repair it with, at learning rates of at most " in late[0]
        assert "Train again with Push from the start, or for more epochs." in late[0]


@pytest.mark.parametrize("action", ["warn", "repair"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_training_remembers_its_looks_and_where_to_go_back_to(
    grey_data: Dataset, tmp_path: Path, action: OnMasking, cut: int
) -> None:
    class Cut(Exception):
        pass

    def interrupt(line: dict[str, Any]) -> None:
        if line["epoch"] == cut:
            raise Cut

    repair = Push(-0.01)
    _, _, whole = fit_planted(grey_data, action, repair=repair, run_dir=tmp_path / "whole")
    with pytest.raises(Cut):
        fit_planted(grey_data, action, repair=repair, run_dir=tmp_path / "cut", on_epoch=interrupt)
    _, _, resumed = fit_planted(grey_data, action, repair=repair, run_dir=tmp_path / "cut", resume=True)

    def timeless(history: list[Look]) -> list[Look]:
        return [dataclasses.replace(look, seconds=0.0) for look in history]

    assert timeless(resumed.history) == timeless(whole.history)
    (state, about), (cut_state, cut_about) = (load_tensors(tmp_path / name / "state.ckpt") for name in ("whole", "cut"))
    assert state.keys() == cut_state.keys()
    assert all(torch.equal(state[name], cut_state[name]) for name in state)
    assert about["healthy_step"] == cut_about["healthy_step"] == (6 if action == "repair" else 0)


@pytest.mark.parametrize("action", ["stop", "repair"])
def test_a_training_that_was_put_back_goes_on_in_the_same_way_only(
    grey_data: Dataset, tmp_path: Path, action: OnMasking
) -> None:
    class Cut(Exception):
        pass

    def interrupt(line: dict[str, Any]) -> None:
        if line["masking"]:
            raise Cut

    with pytest.raises(Cut):
        fit_planted(grey_data, action, repair=Push(-0.01), run_dir=tmp_path, on_epoch=interrupt)
    for other in ("off", "warn"):
        with pytest.raises(CheckpointError, match=f"on_masking was {action} and is {other}"):
            fit_planted(grey_data, other, repair=Push(-0.01), run_dir=tmp_path, resume=True)
    if action == "repair":
        with pytest.raises(CheckpointError, match=r"repair, speed was -0\.01 and is -0\.2"):
            fit_planted(grey_data, action, repair=Push(-0.2), run_dir=tmp_path, resume=True)
    fit_planted(grey_data, action, repair=Push(-0.01), run_dir=tmp_path, resume=True)


def test_the_settings_say_how_often_the_monitor_looks(grey_data: Dataset) -> None:
    images, labels = grey_data.validation
    monitor = Monitor(images.float() / 255, labels, eps=EPS, every=500)
    fit(Planted(), grey_data, [Phase(Push(0.0), 2)], SLOWLY, monitor=monitor)  # 8 steps
    assert [look.step for look in monitor.history] == [3, 6]
    assert monitor.every == 500


def test_a_training_with_the_monitor_on_is_bit_identical_to_one_without() -> None:
    digits = load("digits")
    data = dataclasses.replace(digits, train=Split(digits.train.images[:160], digits.train.labels[:160]))
    images, labels = (tensor[:40] for tensor in digits.validation)
    trained = []
    for monitor in (None, Monitor(images.float() / 255, labels.clone(), eps=EPS, every=2)):
        model = nn.Sequential(network(), nn.Dropout(0.2))  # dropout draws from the generator in each step
        config = FitConfig(batch_size=32, device="cpu", ema_decay=0.9)
        fit(model, data, [Phase(SatR1(EPS, lam=0.2, steps=3), 2)], config, monitor=monitor)
        trained.append(model.state_dict())
    assert monitor is not None
    assert len(monitor.history) == 5
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_what_is_missing_or_unknown_is_refused(grey_data: Dataset) -> None:
    with pytest.raises(ValueError, match="on_masking is 'ignore'"):
        FitConfig(on_masking="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="monitor_every is 0"):
        FitConfig(monitor_every=0)
    with pytest.raises(ValueError, match="nothing looks at the model"):
        fit(Planted(), grey_data, [Phase(Push(1.0), 1)], dataclasses.replace(SLOWLY, on_masking="stop"))
    with pytest.raises(ValueError, match="no objective to repair with"):
        fit_planted(grey_data, "repair")


def test_recipes_bring_their_monitor_and_their_repair() -> None:
    digits = load("digits")
    monitor = recipe_monitor(RECIPES["digits/fgsm-at"], digits)
    assert monitor is not None
    assert (monitor.eps, monitor.every, len(monitor.labels)) == (EPS, 500, 128)
    short = recipe_monitor(dataclasses.replace(RECIPES["digits/fgsm-at"], epochs=1), digits)
    assert short is not None
    assert short.every == len(digits.train.labels) // 2 // 32  # a training that sees few images is looked at twice
    assert recipe_monitor(RECIPES["digits/normal"], digits) is None
    recipe = RECIPES["digits/fgsm-at"]
    stop = dataclasses.replace(RECIPES["digits/normal"].training, on_masking="stop")
    stopped = dataclasses.replace(RECIPES["digits/normal"], training=stop)
    with pytest.raises(ValueError, match="ordinary training masks no gradients"):
        recipe_monitor(stopped, digits)
    weak = dataclasses.replace(recipe, objective=FgsmAT(EPS / 2))  # at which nothing looks
    assert recipe_monitor(weak, digits) is None
    with pytest.raises(ValueError, match="no objective's eps reaches the recipe's, 0"):
        recipe_monitor(dataclasses.replace(weak, training=stop), digits)
    late = dataclasses.replace(weak, epochs=9, then=(Phase(FgsmAT(EPS), 1),))
    at_the_end = recipe_monitor(late, digits)
    assert at_the_end is not None
    assert at_the_end.every == short.every
    off = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, on_masking="off"))
    assert recipe_monitor(off, digits) is None
    assert recipe_repair(recipe) == RECIPES["digits/sat-r1"].objective
    assert recipe_repair(dataclasses.replace(recipe, dataset="imagefolder:x", eps=0.1)) == SatR1(0.1, lam=0.2, steps=3)
    old = {key: value for key, value in recipe.to_json()["training"].items() if not key.startswith(("on_m", "monitor"))}
    assert FitConfig(**old) == recipe.training  # a recipe.json of before there was a monitor


# Evidence


def test_the_committed_looks_say_what_the_docs_say() -> None:
    lines = [json.loads(line) for line in (RESULTS / "digits.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["recipe"] for line in lines} == {"digits/fgsm-at", "digits/sat-r2", "digits/pgd-at"}
    assert sorted((line["recipe"], line["seed"]) for line in lines) == sorted(
        (f"digits/{method}", seed) for method in ("fgsm-at", "sat-r2", "pgd-at") for seed in range(10)
    )
    for run in lines:
        looks = [Look(**look) for look in run["monitor"]]
        for number, look in enumerate(looks, start=1):
            assert look.p_value == pytest.approx(binomial_tail(look.lost, 128, 0.3))
            assert look.masked == (look.p_value <= 0.01 / (number * (number + 1)))
        assert run["alarm_step"] == next((look.step for look in looks if look.masked), None)
        masked = run["recipe"] == "digits/fgsm-at"
        assert (run["alarm_step"] is not None) == masked
        assert (run["fgsm_accuracy"] - run["pgd_40_accuracy"] > 0.4) == masked


def test_the_committed_repair_on_mnist_is_what_the_document_says() -> None:
    text = (Path(__file__).parents[1] / "docs" / "monitor.md").read_text(encoding="utf-8")
    pgd = {}
    for action in ("warn", "repair"):
        folder = RESULTS / f"mnist-{action}"
        clean, fgsm, pgd[action], _ = read_records(folder / "records.jsonl")
        cells = [f"{100 * each.robust_accuracy:.1f}" for each in (clean, fgsm, pgd[action])]
        assert f"| `{action}` | {' | '.join(cells)} |" in text
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["masking"] for line in lines if line["masking"]] == [
            {"step": 1000, "action": action, "back_to": 0 if action == "repair" else None}
        ]
    assert pgd["warn"].robust_accuracy < 0.1 < 0.8 < pgd["repair"].robust_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fgsm-at", "sat-r2", "pgd-at"])
def test_ten_seeds_on_the_digits_have_no_false_alarm_and_no_miss(method: str, tmp_path: Path) -> None:
    for seed in range(10):
        recipe = RECIPES[f"digits/{method}"]
        training = dataclasses.replace(recipe.training, seed=seed, monitor_every=100)
        notes: list[str] = []
        train(dataclasses.replace(recipe, training=training), tmp_path / str(seed), on_note=notes.append)
        run = load_run(tmp_path / str(seed))
        data = run.load_data()
        model, test = run.load_model(data, "last.safetensors"), Batches(data.test, 360)
        fgsm, pgd = (accuracy(model, test, attack) for attack in (FGSM(EPS), PGD(EPS, 40, 0.02)))
        assert bool(notes) == (method == "fgsm-at"), (seed, fgsm, pgd)
        assert (fgsm - pgd > 0.4) == (method == "fgsm-at"), (seed, fgsm, pgd)


def test_what_it_saw_is_on_the_page_of_the_run(tmp_path: Path) -> None:
    assert TRAINING_PLOTS.keys() == monitor_curves([]).keys()
    assert set(TRAINING_PLOTS.values()) <= AXES.keys()
    assert training_curves(None) == []
    words = [
        "digits/fgsm-at",
        "--epochs",
        "1",
        "--monitor-every",
        "15",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["train", *words]) == 0
    looks = load_run(tmp_path / "run").looks()
    assert [look.step for look in looks] == [15, 30]
    curves = {curve.name: curve for curve in training_curves(tmp_path / "run")}
    assert curves.keys() == TRAINING_PLOTS.keys()
    assert curves["PGD loss"].x == [15.0, 30.0]
    assert curves["PGD loss"].y == [look.pgd_loss for look in looks]
    (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1}\n', encoding="utf-8")  # of before there was a monitor
    assert training_curves(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("masking", "told"),
    [
        ({"step": 9, "action": "stop", "back_to": 6}, "the state of step 6 is selected (50.00 % on validation)"),
        ({"step": 9, "action": "repair", "back_to": 6}, "epoch 1 is selected"),
        (None, "epoch 1 is selected"),
    ],
)
def test_what_a_stopped_training_selects_is_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], masking: Any, told: str
) -> None:
    line = {"validation_clean_accuracy": 0.9, "validation_robust_accuracy": 0.5, "masking": masking}
    monkeypatch.setattr(cli_train, "train", lambda *_, **__: FitResult(1, 0.5, [line], 1.0))
    assert main(["train", "digits/fgsm-at", "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    assert told in capsys.readouterr().err


def test_where_nothing_can_be_captured_every_look_is_run() -> None:
    """On a machine without CUDA a capture fails, as it does for a model that waits for its device."""
    model = network()
    generator = torch.Generator().manual_seed(0)
    monitor = Monitor(torch.rand(64, 1, 8, 8, generator=generator), torch.zeros(64, dtype=torch.int64), eps=EPS)
    seen = []
    for _ in range(4):
        with seeded(0):
            expected = monitor._numbers(model)
        with seeded(0):
            assert torch.equal(monitor._replayed(model), expected)
        seen.append(float(expected[0]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    assert len(set(seen)) == 4


@pytest.mark.gpu
def test_looks_replayed_as_a_graph_are_those_that_the_host_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().to("cuda")
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(128, 1, 8, 8, generator=generator), torch.randint(10, (128,), generator=generator)
    replayed, hosted = (Monitor(*probe, eps=EPS, every=1) for _ in range(2))
    monkeypatch.setattr(hosted, "_replayed", hosted._numbers)
    runs: list[int] = []

    def counted(model: nn.Module, run: Any = replayed._numbers) -> Tensor:
        runs.append(1)
        return run(model)  # type: ignore[no-any-return]

    monkeypatch.setattr(replayed, "_numbers", counted)
    for step in range(1, 6):
        one, other = replayed(model, step), hosted(model, step)
        assert one is not None
        assert other is not None
        for name in ("fgsm_loss", "pgd_loss", "rfgsm_distance", "ifgsm_distance", "agreement", "lost"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-5), name
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    assert len(runs) == 2  # the first look, and the capture
    assert len({round(look.fgsm_loss, 4) for look in replayed.history}) == 5
