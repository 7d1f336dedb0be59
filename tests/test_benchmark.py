"""The benchmark of attacks: what is timed, in which order, and what a line says. No test looks at a real clock."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from surefoot.attacks import PGD, CarliniWagnerL2, DeepFool
from surefoot.benchmark import PEERS, AttackBenchmark, AttackLine, Subject
from surefoot.benchmark.peers import Craft, PeerSpec
from surefoot.benchmark.timing import Timing, race
from surefoot.cli import main
from surefoot.cli.benchmark import AttackOptions, StepOptions
from surefoot.cli.models import ModelOptions
from surefoot.core.types import Attack
from surefoot.models import build_model
from surefoot.recipes import RECIPES
from surefoot.training import FitConfig, save_weights
from tests.tables import CLASSES, PlainNet, random_batch, random_net, trained

EPS, STEP_SIZE = 0.1, 0.03
FIELDS = (
    *("library", "attack", "model", "batch", "precision", "device", "seconds"),
    *("ratio_to_limit", "robust_accuracy", "mean_l2"),
)


class FakeClock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


# The race.


def test_contestants_take_turns_after_a_warm_up_of_each() -> None:
    seen: list[str] = []

    def contestant(name: str) -> Callable[[], Callable[[], None]]:
        def get_ready() -> Callable[[], None]:
            seen.append(f"{name} gets ready")
            return lambda: seen.append(name)

        return get_ready

    told: list[tuple[str, int, int]] = []
    race({name: contestant(name) for name in "abc"}, 2, on_turn=lambda *report: told.append(report))
    assert seen == ["a gets ready", "b gets ready", "c gets ready", *"abc", *"abc"]
    assert told == [(name, done, 9) for done, name in enumerate("abcabcabc", start=1)]


def test_a_median_is_of_the_turns_alone_and_a_slow_contestant_is_slower() -> None:
    clock = FakeClock()

    def contestant(*seconds: float) -> Callable[[], Callable[[], float]]:
        def get_ready() -> Callable[[], float]:
            clock.pass_by(1000)  # imports and warm-up
            left = iter(seconds)

            def turn() -> float:
                took = next(left)
                clock.pass_by(took)
                return took

            return turn

        return get_ready

    timings = race({"fast": contestant(5, 1, 3), "slow": contestant(30, 30, 10)}, 3, clock=clock)
    assert timings["fast"] == Timing((5, 1, 3), result=3)
    assert (timings["fast"].median, timings["slow"].median) == (3, 30)


def test_the_clock_is_read_when_the_device_is_idle() -> None:
    seen: list[str] = []

    def clock() -> float:
        seen.append("clock")
        return 0.0

    race({"a": lambda: lambda: seen.append("turn")}, 1, clock=clock, synchronise=lambda: seen.append("idle"))
    assert seen == ["idle", "clock", "turn", "idle", "clock"]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_that_fails_is_reported_and_the_rest_go_on(at: int) -> None:
    turns = []

    def failing() -> Callable[[], int]:
        def turn() -> int:
            turns.append("failing")
            if len(turns) == at:
                raise RuntimeError("two\nlines")
            return 1

        if at == 0:
            raise RuntimeError("two\nlines")
        return turn

    timings = race({"failing": failing, "fine": lambda: lambda: 2}, 3)
    assert timings["failing"].error == "RuntimeError: two lines"
    assert timings["failing"].median is None
    assert len(turns) == at
    assert timings["fine"].error is None
    assert len(timings["fine"].seconds) == 3


def test_an_interruption_is_no_failure() -> None:
    def interrupted() -> Callable[[], None]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race({"a": interrupted}, 1)


def test_a_race_without_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="rounds is 0"):
        race({}, 0)


# The benchmark, with a network whose forward pass takes a second an image on a clock that nothing else moves.


class Slow(nn.Module):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.net = trained()[0]
        self.clock = clock

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.pass_by(len(inputs))
        logits: Tensor = self.net(inputs)
        return logits

    def __deepcopy__(self, memo: Any) -> Slow:
        return Slow(self.clock)


def subject_of(model: nn.Module, images: int = 8) -> Subject:
    _, inputs, labels = trained()
    rows = torch.arange(images) % len(inputs)
    return Subject("small", model, inputs[rows], labels[rows], eps=EPS, step_size=STEP_SIZE)


def measured(benchmark: AttackBenchmark, images: int = 8) -> dict[tuple[str, str], AttackLine]:
    clock = FakeClock()
    lines = benchmark(subject_of(Slow(clock), images), clock=clock)
    return {(line.library, line.precision): line for line in lines}


def thrice(attack: Attack, model: nn.Module, inputs: Tensor) -> Craft:
    """A peer that runs our attack three times."""
    return lambda inputs, labels: [attack(model, inputs, labels) for _ in range(3)][-1]


def broken(attack: Attack, model: nn.Module, inputs: Tensor) -> Craft:
    raise NotImplementedError("not this one")


def lazy(attack: Attack, model: nn.Module, inputs: Tensor) -> Craft:
    """A peer that does nothing."""
    return lambda inputs, labels: inputs


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, adapt in {"torchattacks": thrice, "foolbox": broken, "art": lazy}.items():
        monkeypatch.setitem(PEERS, name, PeerSpec("torch", adapt))


@pytest.mark.usefixtures("planted")
def test_ratios_are_of_medians_to_the_limit_of_as_many_steps() -> None:
    lines = measured(AttackBenchmark(steps=5, rounds=2, batch_size=8))
    assert [line.library for line in lines.values()] == ["limit", "surefoot", "torchattacks", "foolbox", "art"]
    limit, own, slow = (lines[name, "fp32"] for name in ("limit", "surefoot", "torchattacks"))
    assert (limit.seconds, limit.ratio_to_limit, limit.robust_accuracy) == (5 * 8, 1, None)
    assert (own.seconds, own.ratio_to_limit) == (5 * 8, 1)  # scoring is not timed
    assert (slow.seconds, slow.ratio_to_limit) == (3 * 5 * 8, 3)
    assert (own.rounds, own.all_seconds, own.steps, own.images, own.batch) == (2, (40, 40), 5, 8, 8)
    assert own.robust_accuracy == slow.robust_accuracy
    assert own.robust_accuracy is not None
    assert own.robust_accuracy < 1
    assert own.mean_l2 is not None
    assert own.mean_l2 > 0


@pytest.mark.usefixtures("planted")
def test_a_library_that_fails_has_a_line_with_the_reason_and_no_numbers() -> None:
    line = measured(AttackBenchmark(steps=2, rounds=1, batch_size=8))["foolbox", "fp32"]
    assert line.error == "NotImplementedError: not this one"
    assert (line.seconds, line.ratio_to_limit, line.robust_accuracy, line.mean_l2) == (None,) * 4


@pytest.mark.usefixtures("planted")
def test_an_attack_that_does_nothing_shows_as_such() -> None:
    line = measured(AttackBenchmark(steps=2, rounds=1, batch_size=8))["art", "fp32"]
    assert (line.seconds, line.robust_accuracy, line.mean_l2) == (0, 1, None)


@pytest.mark.usefixtures("planted")
def test_accuracy_is_over_all_images_in_batches_and_its_scoring_is_timed() -> None:
    sizes = {"accuracy_steps": 20, "rounds": 1, "batch_size": 3, "num_examples": 7, "max_seconds": 1e6}
    lines = measured(AttackBenchmark(("accuracy",), peers=("torchattacks", "art"), **sizes))  # type: ignore[arg-type]
    assert list(lines) == [("surefoot", "strict"), ("surefoot", "fast"), ("torchattacks", "fp32"), ("art", "fp32")]
    assert {(line.images, line.batch, line.steps, line.ratio_to_limit) for line in lines.values()} == {(7, 3, 20, None)}
    scoring = lines["art", "fp32"].seconds
    assert scoring == 2 * 7  # clean and under attack
    assert lines["torchattacks", "fp32"].seconds == scoring + 3 * 20 * 7
    strict, peer = lines["surefoot", "strict"], lines["torchattacks", "fp32"]
    assert strict.seconds is not None
    assert strict.seconds < 20 * 7  # whoever is fooled leaves the batch
    assert strict.robust_accuracy is not None
    assert peer.robust_accuracy is not None
    assert strict.robust_accuracy <= peer.robust_accuracy < 1


def test_every_precision_is_a_race_of_its_own() -> None:
    lines = measured(AttackBenchmark(precision=("fp32", "bf16"), steps=2, rounds=1, batch_size=8, peers=()))
    assert list(lines) == [(library, name) for name in ("fp32", "bf16") for library in ("limit", "surefoot")]
    assert all(line.ratio_to_limit == 1 for line in lines.values())


def test_who_is_too_slow_gets_a_tenth_of_the_images() -> None:
    # 200 images: 10 steps take 2,000 s, of 20 images 200 s
    lines = measured(AttackBenchmark(steps=10, rounds=1, batch_size=200, peers=(), max_seconds=250), images=200)
    own = lines["surefoot", "fp32"]
    assert (own.images, own.batch, own.seconds, own.ratio_to_limit) == (20, 20, 200, 1)
    (own,) = list(measured(AttackBenchmark(steps=10, rounds=1, batch_size=8, peers=(), max_seconds=5)).values())[1:]
    assert own.images == 8
    assert own.error is not None
    assert "--max-seconds" in own.error


@pytest.mark.usefixtures("planted")
def test_a_ratio_compares_equal_numbers_of_images() -> None:
    # the limit's 10 steps take 2,000 s, the slow peer's 6,000 s
    benchmark = AttackBenchmark(steps=10, rounds=1, batch_size=200, peers=("torchattacks",), max_seconds=3000)
    peer = measured(benchmark, images=200)["torchattacks", "fp32"]
    assert (peer.images, peer.seconds, peer.ratio_to_limit) == (20, 600, None)


def test_what_is_crafted_in_tf32_is_scored_in_float32_proper(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU PyTorch lets convolutions round to TF32, for everybody alike."""
    crafted: list[bool] = []
    scored: list[bool] = []

    class Sees(PlainNet):
        def forward(self, inputs: Tensor) -> Tensor:
            (crafted if inputs.requires_grad else scored).append(torch.backends.cudnn.allow_tf32)
            return super().forward(inputs)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    net, (inputs, labels) = Sees(), random_batch(8)
    list(AttackBenchmark(rounds=1, steps=2, peers=())(Subject("sees", net, inputs, labels, eps=0.1, step_size=0.05)))
    assert (set(crafted), set(scored)) == ({True}, {False})


def test_the_score_is_the_share_that_survives_and_the_length_of_what_fooled() -> None:
    linear = nn.Linear(2, 2, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.eye(2))
    net = nn.Sequential(nn.Flatten(), linear)
    inputs = torch.tensor([[0.9, 0.1], [0.6, 0.5], [0.2, 0.4], [0.5, 0.4]]).view(4, 1, 1, 2)
    adv_inputs = inputs + torch.tensor([[0, 0], [-0.3, 0.4], [0, 0.1], [-0.1, 0.1]]).view(4, 1, 1, 2)
    subject = Subject("linear", net, inputs, torch.zeros(4).long(), eps=EPS, step_size=STEP_SIZE)
    for batch_size in (1, 3, 4):
        robust_accuracy, mean_l2 = AttackBenchmark(batch_size=batch_size).score(subject, adv_inputs)
        assert robust_accuracy == 1 / 4
        assert mean_l2 == pytest.approx((0.5 + 0.02**0.5) / 2)  # the third was wrong before


@pytest.mark.parametrize("freeze", [False, True])
def test_the_network_is_left_as_it_was(freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []

    def backward(attack: Attack, model: nn.Module, inputs: Tensor) -> Craft:
        def craft(inputs: Tensor, labels: Tensor) -> Tensor:
            given.append(any(weight.requires_grad for weight in model.parameters()))
            leaf = inputs.detach().requires_grad_()
            model(leaf).sum().backward()
            return inputs

        return craft

    monkeypatch.setitem(PEERS, "foolbox", PeerSpec("torch", backward))
    model = random_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    benchmark = AttackBenchmark(steps=2, rounds=1, batch_size=8, peers=("foolbox",), freeze_weights=freeze)
    lines = list(benchmark(subject_of(model)))
    assert {line.error for line in lines} == {None}
    assert {line.frozen_weights for line in lines} == {freeze}
    assert set(given) == {not freeze}
    assert model.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "rounds is 0; it must be a whole number of at least 1"),
        ({"cw_search_steps": -1}, "cw_search_steps is -1"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0; it must be above 0"),
        ({"attacks": ()}, "attacks is empty"),
        ({"precision": ()}, "precision is empty"),
    ],
)
def test_a_bad_field_is_refused_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttackBenchmark(**fields)


# The libraries. `make test` installs them, so these run there.


def adapted(name: str, attack: Attack, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    if PEERS[name].version() is None:
        pytest.skip(f"{name} is not installed")
    return PEERS[name].adapt(attack, model, inputs)(inputs, labels)


@pytest.mark.parametrize("name", PEERS)
def test_a_library_is_given_the_same_pgd(name: str) -> None:
    net, (inputs, labels) = random_net(PlainNet, 3).eval(), random_batch(6)
    attack = PGD(EPS, 7, STEP_SIZE, random_start=False)
    theirs = adapted(name, attack, net, inputs, labels)
    assert torch.allclose(theirs, attack(net, inputs, labels), atol=1e-6)
    assert not torch.allclose(theirs, inputs, atol=EPS / 2)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("kind", ["deepfool", "cw"])
def test_a_library_finds_what_our_l2_attacks_find(kind: str, name: str) -> None:
    net, inputs, labels = trained()
    inputs, labels = inputs[:6], labels[:6]
    attack: Attack = DeepFool()
    if kind == "cw":
        attack = CarliniWagnerL2(steps=25, search_steps=3, learning_rate=0.05)
    lengths = []
    for adv_inputs in (attack(net, inputs, labels), adapted(name, attack, net, inputs, labels)):
        assert adv_inputs.shape == inputs.shape
        assert adv_inputs.dtype == inputs.dtype
        assert bool(((adv_inputs >= 0) & (adv_inputs <= 1)).all())
        assert bool((net(adv_inputs).argmax(1) != labels).all())
        lengths.append(float((adv_inputs - inputs).flatten(1).norm(dim=1).mean()))
    assert 0.8 * lengths[0] < lengths[1] < 1.6 * lengths[0]  # torchattacks' C&W has one c and is the longest


def test_foolbox_leaves_an_image_alone_that_it_gives_up_on() -> None:
    linear = nn.Linear(72, CLASSES).requires_grad_(False)
    linear.weight.mul_(0.01)
    linear.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # nothing fools it
    net = nn.Sequential(nn.Flatten(), linear).eval()
    inputs, _ = random_batch(3)
    attack = CarliniWagnerL2(steps=2, search_steps=1)
    theirs = adapted("foolbox", attack, net, inputs, torch.zeros(3).long())
    assert torch.equal(theirs, inputs)


@pytest.mark.parametrize("name", PEERS)
def test_a_library_refuses_what_it_has_no_equal_of(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has nothing that equals"):
        adapted(name, PGD(EPS, 3, STEP_SIZE), random_net().eval(), *random_batch())


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert PeerSpec("surely-not-installed-anywhere", lazy).version() is None


# The command line.

TINY = ["--rounds", "1", "--batch-size", "3", "--threads", "1"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_library_every_attack_and_precision_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--steps", "2", "--num-examples", "4", "--accuracy-steps", "2", "--deepfool-steps", "2"]
    cheap = ["--cw-steps", "2", "--cw-search-steps", "1", "--precision", "fp32", "bf16"]
    all_of_it = ["--attacks", "pgd", "accuracy", "deepfool", "cw", "--json", "--records", "kept/lines.jsonl"]
    assert main(["benchmark", "attacks", "digits-net", *TINY, *few, *cheap, *all_of_it]) == 0
    out = capsys.readouterr().out
    assert Path("kept/lines.jsonl").read_text() == out
    lines = [json.loads(line) for line in out.splitlines()]
    installed = [name for name in PEERS if PEERS[name].version() is not None]
    assert len(lines) == 2 * (2 + len(installed)) + (2 + 2 * len(installed)) + 4 * (1 + len(installed))
    for line in lines:
        assert set(FIELDS) <= set(line)
        assert line["error"] is None, line
        assert line["seconds"] > 0
        assert (line["model"], line["device"], line["dataset"], line["rounds"]) == ("digits-net", "cpu", None, 1)
        assert (line["ratio_to_limit"] is None) == (line["attack"] != "pgd")
        assert (line["robust_accuracy"] is None) == (line["library"] == "limit")
        assert line["images"] == (4 if line["attack"] == "accuracy" else 3)
        assert line["threads"] == 1
        assert "torch" in line["versions"]
        assert line["library"] not in PEERS or PEERS[line["library"]].package in line["versions"]


def test_a_run_is_measured_on_its_own_images_and_shown_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = RECIPES["digits/normal"], "runs/digits/normal/0"
    save_weights(
        build_model(recipe.model, num_classes=10, in_channels=1, image_size=8), Path(run) / "model.safetensors"
    )
    (Path(run) / "recipe.json").write_text(json.dumps(recipe.to_json()))
    few = ["--attacks", "pgd", "accuracy", "--peers", "--num-examples", "10", "--steps", "2", "--accuracy-steps", "3"]
    assert main(["benchmark", "attacks", run, "digits-net", *TINY, *few]) == 0
    captured = capsys.readouterr()
    for words in (f"{run}, PGD-2, batch 3", "digits-net, accuracy under PGD-3", "limit fp32", "surefoot strict"):
        assert words in captured.out
    assert main(["benchmark", "attacks", run, *TINY, *few, "--json", "--cpu-seconds"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["library"] for line in lines] == ["limit", "surefoot", "surefoot", "surefoot"]
    assert {(line["dataset"], line["cpu_seconds"]) for line in lines} == {("digits", True)}
    assert lines[1]["attack_fields"]["eps"] == 0.3


def test_what_fails_is_said_and_what_is_missing_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEERS, "foolbox", PeerSpec("torch", broken))
    monkeypatch.setitem(PEERS, "art", PeerSpec("surely-not-installed-anywhere", lazy))
    args = ["benchmark", "attacks", "digits-net", *TINY, "--steps", "2", "--peers", "foolbox", "art"]
    assert main(args) == 0
    captured = capsys.readouterr()
    assert "art is not installed, so it is left out; `pip install surely-not-installed-anywhere`" in captured.err
    assert "foolbox failed in pgd on digits-net: NotImplementedError: not this one" in captured.err
    assert "failed" in captured.out
    assert "art" not in captured.out

    def fail(self: object, *args: object) -> Tensor:
        raise RuntimeError("ours")

    monkeypatch.setattr(PGD, "__call__", fail)
    assert main([*args[:-2], "--json"]) == 1
    line = json.loads(capsys.readouterr().out.splitlines()[1])
    assert (line["library"], line["error"], line["seconds"]) == ("surefoot", "RuntimeError: ours", None)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "benchmark needs what to measure"),
        (["--json"], "benchmark needs what to measure"),
        (["attack"], "did you mean attacks?"),
        (["attacks", "lenet"], "did you mean lenet-plus"),
        (["attacks", "nowhere/at/all"], "no run or network 'nowhere/at/all'"),
        (["attacks", "--rounds", "0"], "rounds is 0; it must be a whole number of at least 1"),
        (["attacks", "--eps", "8"], "write 8/255 instead of 8"),
        (["attacks", "--attacks", "fgsm"], "fgsm"),
        (["attacks", "--peers", "advertorch"], "advertorch"),
        (["attacks", "--attacks"], "attacks is empty"),
    ],
)
def test_wrong_input_gets_one_clear_message_and_code_2(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *args]) == 2
    captured = capsys.readouterr()
    assert words in " ".join(captured.err.replace("│", " ").split())
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_the_help_says_what_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--help"]) == 0
    assert main(["benchmark", "attacks", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: surefoot benchmark WHAT" in out
    assert "usage: surefoot benchmark attacks" in out


def test_what_is_measured_runs_where_everything_else_does() -> None:
    devices = [get_type_hints(options)["device"] for options in (AttackOptions, StepOptions, ModelOptions, FitConfig)]
    assert devices == [devices[0]] * 4
    assert "mps" in get_args(devices[0])


def test_a_line_is_json_as_it_is() -> None:
    for line in measured(AttackBenchmark(steps=2, rounds=1, batch_size=8, peers=())).values():
        assert json.loads(json.dumps(dataclasses.asdict(line)))["all_seconds"] == list(line.all_seconds)
