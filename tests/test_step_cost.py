"""What a training step costs: counted against the formula, timed against its floor. No test looks at a real clock."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surefoot.benchmark import StepCostBenchmark, StepSubject, step_cost
from surefoot.benchmark.step_cost import HeldMemory, count_passes, floor_passes, forward_flops
from surefoot.cli import main
from surefoot.core.types import LossTerms, Objective
from surefoot.models import build_model, layers
from surefoot.models.layers import HiddenLinear
from surefoot.objectives import EnsembleAT, FgsmAT, NFgsmAT, NormalTraining, PgdAT, RFgsmAT, SatR1, SatR2, SatR3, Trades

BATCH = 6
UNITS: list[tuple[Objective, float, int]] = [  # the objective, units a sample, gradients one after the other
    (NormalTraining(), 3, 0),
    (FgsmAT(0.1), 4, 1),
    (FgsmAT(0.1, share=0.3), 3 + 2 * 2 / 6, 1),  # 0.3 of 6, rounded up
    (RFgsmAT(0.1, random_step=0.05, share=1.0), 5, 1),
    (NFgsmAT(0.1, noise=0.2), 5, 1),
    (PgdAT(0.1, steps=7, step_size=0.03), 17, 7),
    (Trades(0.1, steps=4, step_size=0.03, beta=1.0), 15, 4),
    (SatR1(0.1, lam=0.2, steps=5, k=2), 5 + 2 * 11 / 6, 5),
    (SatR1(0.1, lam=0.2, steps=1, k=99), 5 + 3, 1),
    (SatR2(0.1, random_step=0.05, lam=1.0), 10, 1),
    (SatR3(0.1, eps_low=0.05, lam=1.0, tau=0.5), 8, 1),
]


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(("objective", "units", "serial"), UNITS, ids=lambda value: type(value).__name__)
def test_every_objective_costs_its_floor_and_no_pass_more(objective: Objective, units: float, serial: int) -> None:
    net, inputs, labels = small_net(), torch.rand(BATCH, 1, 6, 6), torch.arange(BATCH) % 3
    counted = count_passes(lambda: objective(net, inputs, labels).loss.backward(), [net])  # type: ignore[no-untyped-call]
    floor = floor_passes(objective, BATCH)
    assert counted.units / BATCH == pytest.approx(units)
    assert sum(passes.units for passes in floor) == counted.units
    assert counted.crafting_passes == serial
    assert sum(passes.samples * passes.times for passes in floor) == counted.forwards


def test_a_source_of_an_ensemble_is_counted_too() -> None:
    net, source = small_net(), small_net().requires_grad_(False)
    objective = EnsembleAT(0.1, sources=(source,))
    inputs, labels = torch.rand(BATCH, 1, 6, 6), torch.arange(BATCH) % 3
    for seed in range(4):  # the source is drawn in some, the model in others
        torch.manual_seed(seed)
        counted = count_passes(lambda: objective(net, inputs, labels).loss.backward(), [net, source])  # type: ignore[no-untyped-call]
        assert counted.units == sum(passes.units for passes in floor_passes(objective, BATCH)) == 4 * BATCH


def test_a_wasted_forward_is_seen() -> None:
    class Wasteful:
        def __call__(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> LossTerms:
            model(inputs)
            return NormalTraining()(model, inputs, labels)

    net, inputs, labels = small_net(), torch.rand(BATCH, 1, 6, 6), torch.arange(BATCH) % 3
    counted = count_passes(lambda: Wasteful()(net, inputs, labels).loss.backward(), [net])  # type: ignore[no-untyped-call]
    assert counted.units == 4 * BATCH


def test_an_objective_without_a_known_floor_is_refused() -> None:
    class Mine:
        def __call__(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> LossTerms:
            return NormalTraining()(model, inputs, labels)

    with pytest.raises(ValueError, match="floor of Mine is not known"):
        floor_passes(Mine(), 4)


def ticking() -> Callable[[], float]:
    """A clock by which every turn takes two seconds."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 2.0
        return now

    return clock


def subject(**objectives: Objective) -> StepSubject:
    torch.manual_seed(0)
    return StepSubject("net", small_net(), torch.rand(BATCH, 1, 6, 6), torch.arange(BATCH) % 3, objectives)


def test_a_products_arithmetic_counts_whoever_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Flatten(), HiddenLinear(36, 7))
    measured = StepSubject("net", net, torch.rand(BATCH, 1, 6, 6), torch.zeros(BATCH, dtype=torch.long), {})
    assert forward_flops(measured) == 2 * BATCH * 36 * 7
    monkeypatch.setattr(layers, "WORTH_ONEDNN", 0)
    monkeypatch.setattr(layers, "is_intel", lambda: False)
    assert forward_flops(measured) == 2 * BATCH * 36 * 7


def test_a_line_says_what_was_measured() -> None:
    bench = StepCostBenchmark(precision=("fp32", "bf16"), rounds=2, steps=4, peak_size=16)
    lines = list(bench(subject(normal=NormalTraining(), third=SatR3(0.1, 0.05, lam=1.0, tau=0.5)), clock=ticking()))
    assert [(line.objective, line.precision) for line in lines] == [
        *(("normal", "fp32"), ("third", "fp32")),
        *(("normal", "bf16"), ("third", "bf16")),
    ]
    line = lines[1]
    assert line.error is None
    assert line.seconds_per_step == line.floor_seconds == 0.5  # two seconds a turn of four steps
    assert line.ratio_to_floor == 1
    assert line.images_per_second == 2 * BATCH
    assert (line.floor_units, line.units, line.forwards, line.backwards) == (8, 8, 3 * BATCH, 3 * BATCH)
    forward = 2 * BATCH * (4 * 16 * 9 + 64 * 3)  # two operations a multiply-add, convolution and layer
    assert line.flops == 8 * forward
    assert line.share_of_peak == pytest.approx((8 * forward / 0.5) / (2 * 16**3 / 2.0))
    assert line.copy_bytes_per_second == pytest.approx(2 * 4 * (16 << 20) / 2.0)
    assert line.peak_memory is not None
    assert line.peak_memory > 2 * 3 * BATCH * 4 * 16 * 4  # the feature maps of both kinds of samples, at least


def test_the_network_given_is_left_as_it_was() -> None:
    given = subject(first=SatR1(0.1, lam=0.2, steps=2))
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    list(StepCostBenchmark(rounds=1, peak_size=16)(given))
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.model.state_dict().items())
    assert all(parameter.grad is None for parameter in given.model.parameters())


def test_one_that_fails_has_a_line_that_says_so_and_the_others_go_on() -> None:
    class Broken(SatR3):
        def __call__(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> LossTerms:
            raise RuntimeError("no such kernel")

    lines = {
        line.objective: line
        for line in StepCostBenchmark(rounds=1, peak_size=16)(
            subject(normal=NormalTraining(), broken=Broken(0.1, 0.05, lam=1.0, tau=0.5))
        )
    }
    assert lines["normal"].error is None
    assert "no such kernel" in (lines["broken"].error or "")
    assert lines["broken"].seconds_per_step is None


def test_memory_is_what_is_held_at_once() -> None:
    with HeldMemory() as held:
        for _ in range(5):
            first = torch.zeros(1000)
            second = first + 1
            del first, second
        view = torch.zeros(10).view(2, 5).t()
    assert held.peak == 8000
    assert held.now == view.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"peak_size": -1}, "peak_size is -1"),
        ({"precision": ()}, "precision is empty"),
        ({"mode": ()}, "mode is empty"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepCostBenchmark(**fields)  # type: ignore[arg-type]


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="for a CUDA device, and this is cpu"):
        next(StepCostBenchmark(mode=("captured",))(subject(normal=NormalTraining())))


def test_the_command_prints_lines_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lines.jsonl"
    words = ["--objectives", "normal", "rfgsm-at", "ensemble-at", "--rounds", "1", "--batch-size", "4"]
    options = ["--peak-size", "16", "--json", "--records", str(file)]
    assert main(["benchmark", "step-cost", "digits-net", *words, *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["objective"] for line in lines] == ["normal", "rfgsm-at", "ensemble-at"]
    assert lines[0].keys() >= {
        *("objective", "model", "batch", "precision", "device", "floor_units", "forwards", "backwards"),
        *("seconds_per_step", "ratio_to_floor", "images_per_second", "share_of_peak", "peak_memory", "commit"),
    }
    assert lines[0]["images_per_second"] == pytest.approx(4 / lines[0]["seconds_per_step"])


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--objectives", "sat-r3", "--rounds", "1", "--batch-size", "4", "--peak-size", "16"]
    assert main(["benchmark", "step-cost", "digits-net", *words]) == 0
    shown = capsys.readouterr().out
    assert "sat-r3" in shown
    assert "8.00" in shown


def test_a_network_of_ones_own_is_measured_at_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_net_of_the_benchmark.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 5 * 5, num_classes))\n"
    )
    name, few = "own_net_of_the_benchmark:make", ["--objectives", "sat-r1", "--rounds", "1", "--batch-size", "4"]
    sizes = ["--in-channels", "2", "--image-size", "7"]
    assert main(["benchmark", "step-cost", name, *few, *sizes, "--peak-size", "16", "--json"]) == 0
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["model"], line["batch"], line["error"]) == (name, 4, None)
    assert main(["benchmark", "step-cost", name, *few]) == 2
    error = capsys.readouterr().err
    assert "fails on float32 [4, 3, 32, 32] images" in error
    assert "--in-channels, --image-size and --num-classes tell its images and classes" in error


@pytest.mark.parametrize("option", ["--num-classes", "--in-channels", "--image-size"])
def test_a_run_has_its_own_sizes(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    assert main(["benchmark", "step-cost", str(tmp_path), option, "10"]) == 2
    assert f"{option} is for a network's name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "0"], "image_size is 0"),
        (["no-such-net"], "there is no run or network 'no-such-net'"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--mode", "captured", "--objectives", "normal", "--device", "cpu"], "leave it out"),
    ],
)
def test_wrong_usage_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "step-cost", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_lines_are_json_numbers_only() -> None:
    (line,) = StepCostBenchmark(rounds=1, peak_size=16)(subject(normal=NormalTraining()))
    assert json.loads(json.dumps(dataclasses.asdict(line), allow_nan=False))["units"] == 3


def test_a_floor_folds_batch_norms_once_an_attack_as_a_step_does(monkeypatch: pytest.MonkeyPatch) -> None:
    folds: list[Any] = []
    folded = layers._folded

    def counted(*args: Any) -> Any:
        folds.append(args)
        return folded(*args)

    monkeypatch.setattr(layers, "_folded", counted)
    model = build_model("conv-norm", num_classes=10, in_channels=3, image_size=16)
    objective = PgdAT(0.03, steps=5, step_size=0.01)
    subject = StepSubject("conv-norm", model, torch.rand(2, 3, 16, 16), torch.tensor([0, 1]), {"pgd-at": objective})
    bench = step_cost._Bench(StepCostBenchmark(rounds=1, peak_size=8), subject, "fp32")
    floor = bench.floor("pgd-at")
    folds.clear()
    floor()
    of_the_floor = len(folds)
    folds.clear()
    objective(model, subject.inputs, subject.labels)
    assert len(folds) == of_the_floor > 0


def test_kept_lines_are_whole_ones_beside_whole_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lines.jsonl"
    words = ["benchmark", "step-cost", "digits-net", "--image-size", "8", "--batch-size", "2", "--rounds", "1"]
    words += ["--objectives", "normal", "--peak-size", "8", "--records", str(file)]
    assert main(words) == 0
    with open(file, "a", encoding="utf-8") as torn:
        torn.write('{"objective": "nor')  # a stop while it wrote
    assert main(words) == 0
    assert [json.loads(line)["objective"] for line in file.read_text(encoding="utf-8").splitlines()] == ["normal"] * 2
    file.write_text("hello\n", encoding="utf-8")
    assert main(words) == 2
    assert "not a benchmark's line" in " ".join(capsys.readouterr().err.split())
    assert file.read_text(encoding="utf-8") == "hello\n"
