"""How evaluations are run: screened, in two precisions, in halves, in 8 bits, for several models, after a stop."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from surefoot.attacks import (
    APGD,
    FABT,
    FGSM,
    IFGSM,
    MIFGSM,
    PGD,
    RFGSM,
    AutoAttack,
    CarliniWagnerL2,
    DeepFool,
    MarginLoss,
    Square,
    WorstCase,
)
from surefoot.core.files import save_tensors
from surefoot.core.types import Attack
from surefoot.evaluation import evaluate, evaluate_transfer
from surefoot.evaluation.attack_settings import screening_of, with_stop
from surefoot.evaluation.identity import Nameless, settings_known_by
from surefoot.evaluation.outcomes import Outcome, Store
from surefoot.evaluation.precision import fast_in_half
from surefoot.evaluation.stages import (
    Precision,
    Stage,
    StageRunner,
    at_an_eight_bit_radius,
    eight_bit_pixels,
    is_out_of_memory,
)
from surefoot.models import Averaged, LogitsOnly
from surefoot.paper.tables import is_of
from tests.tables import EPS, Batches, SmallNet, Threshold, grey, random_net, trained, trained_batches, without_time

STEP = EPS / 20


@dataclass(frozen=True)
class Fixed:
    """Moves every image by `shift`, and remembers nothing else than how often it was asked."""

    shift: float
    calls: list[int]
    eps: float = 1.0
    attacks_fail_above: int | None = None

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        self.calls.append(len(inputs))
        if self.attacks_fail_above is not None and len(inputs) > self.attacks_fail_above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return (inputs + self.shift).clamp(0, 1)


# Strict: screened, never weaker.


@pytest.mark.parametrize("eps", [EPS / 4, EPS / 2, 0.6 * EPS])
@pytest.mark.parametrize(
    "build",
    [
        lambda eps: IFGSM(eps, 20),
        lambda eps: MIFGSM(eps, 20),
        lambda eps: PGD(eps, 20, eps / 10, random_start=False),
        lambda eps: PGD(eps, 20, eps / 10, random_start=False, loss=MarginLoss()),
        lambda eps: PGD(eps, 20, eps / 200, random_start=False),  # too short to get anywhere by itself
    ],
    ids=["I-FGSM", "MI-FGSM", "PGD", "PGD-CW", "PGD-short"],
)
def test_strict_is_never_weaker_than_float32_alone(build: Callable[[float], Any], eps: float, tmp_path: Path) -> None:
    net, inputs, labels = trained()
    attack = build(eps)
    evaluate(net, [(inputs, labels)], [attack], samples=tmp_path)
    robust = load_file(tmp_path / f"1-{type(attack).__name__}.safetensors")["robust"]
    alone = replace(attack, stop_when_fooled=True)(net, inputs, labels)
    with torch.no_grad():
        survives_alone = net(alone).argmax(1) == labels
    assert not bool((robust & ~survives_alone).any())  # sample by sample
    assert int(survives_alone.sum()) > 0


def test_the_screening_is_the_same_attack_in_a_few_long_steps_and_the_record_has_both() -> None:
    net, batches = trained_batches()
    attack = PGD(EPS, 40, STEP, restarts=3, loss=MarginLoss(), start_radius=STEP)
    record = evaluate(net, batches, [attack])[1]
    screening, main = record.parts
    assert main["attack_fields"] == record.attack_fields
    assert record.attack_fields["steps"] == 40
    assert {
        name: value for name, value in screening["attack_fields"].items() if value != main["attack_fields"][name]
    } == {
        "steps": 5,
        "step_size": 2 * EPS / 5,
        "restarts": 1,
    }
    assert main["precision"] == "fp32"
    assert main["robust_accuracy"] == record.robust_accuracy <= screening["robust_accuracy"] < record.clean_accuracy
    assert record.precision == "strict"


def test_screening_saves_passes_on_a_model_that_is_not_robust() -> None:
    net, batches = trained_batches()
    attack = PGD(EPS, 100, EPS / 50, random_start=False)
    not_screened = replace(attack, steps=19)
    assert evaluate(net, batches, [attack])[1].forwards < evaluate(net, batches, [not_screened])[1].forwards


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(EPS),
        IFGSM(EPS, 19, stop_when_fooled=True),
        IFGSM(EPS, 40),
        IFGSM(0.0, 40, stop_when_fooled=True),
        PGD(EPS, 40, EPS / 25, stop_when_fooled=True),
        APGD(EPS, 40),
    ],
    ids=["one step", "few steps", "does not stop", "no radius", "a shorter way", "steps of its own choice"],
)
def test_what_is_short_or_counts_its_last_step_is_not_screened(attack: Attack) -> None:
    assert screening_of(attack) is None


def test_a_screening_does_not_fool_what_the_attack_cannot_reach() -> None:
    """20 steps of 0.01 move a pixel by 0.2, whatever the radius; 5 long ones reach its 0.3."""
    batches = [(grey(0.75, 0.65), torch.tensor([1, 1]))]
    short, long = (PGD(0.3, 20, step_size, random_start=False) for step_size in (0.01, 0.03))
    assert [record.robust_accuracy for record in evaluate(Threshold(), batches, [short, long])[1:]] == [0.5, 0.0]


def altered(net: nn.Module) -> nn.Module:
    """A network near this one."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize(
    "attack",
    [APGD(EPS, 10), Square(EPS, 60), AutoAttack(EPS, 5, queries=20)],
    ids=lambda attack: type(attack).__name__,
)
def test_samples_that_are_to_fool_another_model_go_on_after_the_source_is_fooled(attack: Any) -> None:
    net, batches = trained_batches()
    model = altered(trained()[0]).eval()

    def as_it_stops(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        adv_inputs: Tensor = attack(model, inputs, labels)
        return adv_inputs

    clean, stopped, found = evaluate(model, batches, [as_it_stops, attack], source=net)
    assert found.robust_accuracy < stopped.robust_accuracy < clean.robust_accuracy
    assert is_of(found, attack)
    fields = [part["attack_fields"] for part in found.parts] or [found.attack_fields]
    assert all(each.get("stop_when_fooled", False) is False for each in fields)
    white = evaluate(net, batches, [attack])[1]
    fields = [part["attack_fields"] for part in white.parts] or [white.attack_fields]
    assert any(each.get("stop_when_fooled") is True for each in fields)


def test_the_last_iterate_and_the_black_box_are_not_screened() -> None:
    net, batches = trained_batches()
    several: list[dict[str, Any]] = [{"last_iterate": True}, {"source": random_net()}]
    for settings in several:
        record = evaluate(net, batches, [IFGSM(EPS, 20)], **settings)[1]
        assert record.parts == []


class WrongInHalf(nn.Module):
    """Under autocast everything looks fooled; in float32 nothing moves: only float32 may count."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.flatten(1).mean(dim=1)
        sign = -1.0 if torch.is_autocast_enabled("cpu") else 1.0
        return torch.stack([1.0 + 0 * mean, 0.001 * mean], dim=1) * sign


@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_what_only_half_precision_takes_for_fooled_is_not(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.evaluation.stages.fast_in_half", lambda model: True)
    batches = [(grey(0.2, 0.7), torch.tensor([0, 0]))]
    assert evaluate(WrongInHalf(), batches, [IFGSM(0.3, 20)], precision=precision)[1].robust_accuracy == 1


def test_strict_is_float32_also_inside_the_callers_autocast() -> None:
    batches = [(grey(0.2, 0.7), torch.tensor([0, 0]))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        clean, attacked = evaluate(WrongInHalf(), batches, [FGSM(0.3)])
    assert clean.robust_accuracy == attacked.robust_accuracy == 1


def test_half_precision_pays_only_for_float32_weights() -> None:
    assert not fast_in_half(random_net(dtype=torch.float64))
    assert not fast_in_half(Threshold())  # no weights: nothing to gain


# Fast.


def test_fast_is_named_and_close_to_strict() -> None:
    net, batches = trained_batches()
    attack = PGD(EPS / 2, 20, EPS / 10, random_start=False)
    strict, fast = (evaluate(net, batches, [attack], precision=name)[1] for name in ("strict", "fast"))
    assert (strict.precision, fast.precision) == ("strict", "fast")
    assert 0 < fast.robust_accuracy < fast.clean_accuracy
    assert abs(strict.robust_accuracy - fast.robust_accuracy) <= 2 / 48


class LooksFooledSoon(nn.Module):
    """In half precision the border lies nearer, at 0.4: an attack that trusts it stops short of the real one."""

    def forward(self, inputs: Tensor) -> Tensor:
        border = 0.4 if torch.is_autocast_enabled("cpu") else 0.5
        gap = 10 * (inputs.flatten(1).mean(dim=1) - border)
        return torch.stack([-gap, gap], dim=1)


def test_fast_goes_on_where_float32_does_not_confirm_what_half_precision_let_go() -> None:
    batches = [(grey(0.3, 0.05), torch.tensor([0, 0]))]
    record = evaluate(LooksFooledSoon(), batches, [IFGSM(0.3, 10)], precision="fast")[1]
    assert record.robust_accuracy == 1 / 2  # 0.3 reaches 0.6; 0.05 reaches 0.35
    assert record.mean_l2 == pytest.approx(0.3 * 2)  # to the last step


class BlindInHalf(nn.Module):
    """In half precision the inputs do nothing; in float32 class 1 begins at 0.5."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.flatten(1).mean(dim=1)
        gap = 10 * (mean - 0.5) if not torch.is_autocast_enabled("cpu") else 0 * mean - 1
        return torch.stack([-gap, gap], dim=1)


@pytest.mark.parametrize("attack", [IFGSM(0.3, 10), MIFGSM(0.3, 10), PGD(0.3, 10, 0.03, random_start=False)])
def test_fast_finishes_in_float32_what_half_precision_left(attack: Attack) -> None:
    batches = [(grey(0.45, 0.4), torch.tensor([0, 0]))]
    assert evaluate(BlindInHalf(), batches, [attack])[1].robust_accuracy == 0
    record = evaluate(BlindInHalf(), batches, [attack], precision="fast")[1]
    assert record.robust_accuracy == 1 / 2  # one step of 0.09 on: 0.45 reaches 0.54, 0.4 reaches 0.49
    assert record.mean_l2 == pytest.approx(0.09 * 2)
    last = evaluate(BlindInHalf(), batches, [attack], precision="fast", last_iterate=True)[1]
    assert last.robust_accuracy == 1  # the last iterate is the attack's own


class HalfSeesOnePixel(nn.Module):
    """In half precision the first pixel alone has a gradient; in float32 class 1 begins at a mean of 0.57."""

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = inputs.flatten(1)
        gap = 10 * (pixels.mean(dim=1) - 0.57) if not torch.is_autocast_enabled("cpu") else pixels[:, 0] - 2
        return torch.stack([-gap, gap], dim=1)


def test_fast_finishes_from_where_half_precision_ended() -> None:
    record = evaluate(HalfSeesOnePixel(), [(grey(0.45), torch.tensor([0]))], [IFGSM(0.3, 10)], precision="fast")[1]
    assert record.robust_accuracy == 0  # (0.75 + 3 x 0.54) / 4; all of the clean pixels would reach 0.54


def test_an_attack_that_is_float32_only_stays_strict_under_fast() -> None:
    net, batches = trained_batches()
    attack = AutoAttack(EPS, steps=2, queries=3)
    fast = evaluate(net, batches, [attack, IFGSM(EPS, 2)], precision="fast")
    assert [record.precision for record in fast] == ["strict", "strict", "fast"]
    assert {part["precision"] for part in fast[1].parts} == {"fp32"}
    assert [part["attack"] for part in fast[1].parts] == ["APGD", "APGDT", "FABT", "Square"]


def test_an_attack_of_minimal_norm_is_the_same_under_fast() -> None:
    net, batches = trained_batches()
    attacks: list[Attack] = [DeepFool(steps=20), CarliniWagnerL2(steps=30, search_steps=2, learning_rate=0.1)]
    strict, fast = (evaluate(net, batches, attacks, precision=precision) for precision in ("strict", "fast"))
    assert [each.attack for each in fast] == [None, "DeepFool", "CarliniWagnerL2"]
    assert [(each.robust_accuracy, each.mean_l2) for each in fast] == [
        (each.robust_accuracy, each.mean_l2) for each in strict
    ]


class LooksFooledInTF32(nn.Module):
    """Where `tf32` stands for the rounding of a GPU, every image that was moved looks fooled."""

    tf32 = False

    def forward(self, inputs: Tensor) -> Tensor:
        gap = 10 * (inputs.flatten(1).mean(dim=1) - (0.21 if self.tf32 else 0.5))
        return torch.stack([-gap, gap], dim=1)


def test_tf32_is_what_float32_only_attacks_are_crafted_in_under_fast_and_float32_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextlib.contextmanager
    def computed_in(arithmetic: str, device: torch.device) -> Iterator[None]:
        net.tf32 = arithmetic == "tf32"
        yield
        net.tf32 = False

    net = LooksFooledInTF32()
    monkeypatch.setattr("surefoot.evaluation.stages.computed_in", computed_in)
    monkeypatch.setattr("surefoot.evaluation.stages.has_tf32", lambda model: True)
    batches = [(grey(0.3, 0.05, 0.15), torch.tensor([0, 0, 0]))]
    strict, fast = (
        evaluate(net, batches, [AutoAttack(0.3, steps=5, queries=3)], precision=name)[1] for name in get_args(Precision)
    )
    assert (strict.precision, fast.precision) == ("strict", "fast")
    assert {part["precision"] for part in fast.parts} == {"tf32"}
    assert strict.robust_accuracy == fast.robust_accuracy == 2 / 3  # 0.3 reaches 0.6, the others not 0.5


class RecordsPrecision(nn.Module):
    """Notes what float32 products are computed in at each of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, str]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(products_in())
        return inputs.flatten(1)[:, :2]


def products_in() -> tuple[bool, str]:
    """May products on CUDA, and matrix products anywhere, be computed in less than float32? As PyTorch has it set."""
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture
def precision_put_back() -> Iterator[None]:
    before = products_in()
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("chosen", ["medium", "high", "highest"])
@pytest.mark.usefixtures("precision_put_back")
def test_float32_is_float32_and_the_callers_precision_of_products_is_put_back(chosen: str) -> None:
    torch.set_float32_matmul_precision(chosen)
    before, net = products_in(), RecordsPrecision()
    evaluate(net, [(torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))], [FGSM(EPS)])
    assert set(net.seen) == {(False, "highest")}
    assert products_in() == before


def fp32_precisions() -> list[str]:
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    return [place.fp32_precision for place in places]


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="new in PyTorch 2.9")
@pytest.mark.parametrize(
    ("place", "chosen"), [("cuda.matmul", "tf32"), ("cudnn.conv", "ieee"), ("mkldnn.matmul", "bf16")]
)
@pytest.mark.usefixtures("precision_put_back")
def test_so_is_what_the_caller_chose_by_fp32_precision(place: str, chosen: str) -> None:
    """Beside it PyTorch refuses to tell its older flags."""
    backend = functools.reduce(getattr, place.split("."), torch.backends)
    backend.fp32_precision = chosen  # type: ignore[attr-defined]
    before, seen = fp32_precisions(), []
    net = LooksFooledInTF32()
    net.register_forward_hook(lambda *_: seen.append(fp32_precisions()))
    evaluate(net, [(grey(0.2), torch.tensor([0]))], [FGSM(EPS)])
    assert seen
    assert {value for each in seen for value in each} == {"ieee"}
    assert fp32_precisions() == before


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'half'; it is 'strict' or 'fast'"):
        evaluate(Threshold(), [(grey(0.2), torch.tensor([0]))], [], precision="half")  # type: ignore[arg-type]


# Memory.


def test_out_of_memory_halves_the_batch_and_goes_on_with_the_smaller_one() -> None:
    inputs, labels = grey(*[0.2] * 9), torch.zeros(9, dtype=torch.int64)
    calls: list[int] = []
    notes: list[str] = []
    attack = Fixed(0.4, calls, attacks_fail_above=3)
    batches = [(inputs, labels), (inputs, labels)]
    record = evaluate(Threshold(), batches, [attack], on_note=notes.append)[1]
    assert record.robust_accuracy == 0
    assert calls == [9, 5, 3, 3, 3, 3, 3, 3]  # the second batch is not tried in full again
    assert notes == [
        "Memory was not enough for 9 images at a time; going on with 5.",
        "Memory was not enough for 5 images at a time; going on with 3.",
    ]


def test_halving_comes_down_to_one_image_at_a_time() -> None:
    calls: list[int] = []
    attack = Fixed(0.4, calls, attacks_fail_above=1)
    evaluate(Threshold(), [(grey(*[0.2] * 4), torch.zeros(4, dtype=torch.int64))], [attack])
    assert calls == [4, 2, 1, 1, 1, 1]


def test_halving_gives_each_sample_its_own_result() -> None:
    levels = torch.linspace(0.1, 0.45, 9)
    inputs, labels = grey(*levels.tolist()), torch.zeros(9, dtype=torch.int64)
    whole = evaluate(Threshold(), [(inputs, labels)], [Fixed(0.2, [])])[1]
    halved = evaluate(Threshold(), [(inputs, labels)], [Fixed(0.2, [], attacks_fail_above=2)])[1]
    assert halved.robust_accuracy == whole.robust_accuracy == int((levels + 0.2 < 0.5).sum()) / 9


@pytest.mark.parametrize(
    ("message", "is_one"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_what_a_full_memory_says(message: str, is_one: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) is is_one


def test_one_image_that_does_not_fit_is_an_error_and_other_errors_are_not_taken_for_it() -> None:
    batches = [(grey(0.2, 0.2), torch.tensor([0, 0]))]
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Threshold(), batches, [Fixed(0.4, [], attacks_fail_above=0)])

    @dataclass(frozen=True)
    class Broken:
        def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        evaluate(Threshold(), batches, [Broken()])


# Eight bits.


def test_rounding_to_eight_bits_stays_in_the_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (4, 3, 5, 5), generator=generator) / 255
    for eps in (8 / 255, 0.3, 0.5 / 255):
        adv_inputs = (inputs + eps * (2 * torch.rand(inputs.shape, generator=generator) - 1)).clamp(0, 1)
        rounded = eight_bit_pixels(adv_inputs, inputs, eps)
        levels = rounded * 255
        assert float((levels - levels.round()).abs().max()) < 1e-4
        assert float((rounded - inputs).abs().max()) <= eps + 1e-6
        assert float((rounded - adv_inputs).abs().max()) <= 1 / 255 + 1e-6
    assert torch.equal(eight_bit_pixels(inputs, inputs, 8 / 255), inputs)
    assert torch.equal(
        eight_bit_pixels(inputs + 8 / 255, inputs, 8 / 255), ((inputs * 255).round() + 8).clamp(0, 255) / 255
    )


def test_a_pixel_whose_ball_holds_no_eight_bit_value_stays_clean() -> None:
    inputs = torch.tensor([[10.0, 10.4, 10.5, 10.8, 0.1, 254.9]]) / 255
    for eps in (0.3 / 255, 0.12 / 255):
        for sign in (-1, 1):
            rounded = eight_bit_pixels((inputs + sign * eps).clamp(0, 1), inputs, eps)
            assert float((rounded - inputs).abs().max()) <= eps + 1e-5
            moved = (rounded != inputs)[0]
            assert torch.allclose((rounded * 255)[0][moved], (rounded * 255)[0][moved].round(), atol=1e-4)
    assert moved.tolist() == [False, False, False, False, True, True]


def test_a_perturbation_that_rounding_undoes_does_not_count() -> None:
    inputs = grey(127 / 255)  # 0.498: 0.003 are enough to fool, and rounding takes 0.0015 of less than 0.5/255 back
    batches = [(inputs, torch.tensor([0]))]
    tiny = FGSM(0.0025)
    assert evaluate(Threshold(), batches, [tiny])[1].robust_accuracy == 0
    assert evaluate(Threshold(), batches, [tiny], eight_bit=True)[1].robust_accuracy == 1
    record = evaluate(Threshold(), batches, [FGSM(1 / 255)], eight_bit=True)[1]
    assert (record.robust_accuracy, record.eight_bit) == (0, True)


def test_an_attack_that_stopped_too_early_for_eight_bits_goes_on() -> None:
    # 0.4985 crosses with the first small step, which rounding undoes; the later ones survive it
    batches = [(grey(127 / 255), torch.tensor([0]))]
    attack = IFGSM(4 / 255, steps=16)
    assert evaluate(Threshold(), batches, [attack], eight_bit=True)[1].robust_accuracy == 0


@pytest.mark.parametrize("eps", [8 / 255, 12 / 255, 16 / 255])
def test_an_attack_that_ends_at_the_boundary_is_rounded_away_from_the_image(eps: float) -> None:
    """Rounding to the nearest undoes what ends at its first hit."""
    net, inputs, labels = trained()
    inputs = (inputs * 255).round() / 255
    attack = FABT(eps, steps=20, targets=3)
    exact, rounded = (evaluate(net, [(inputs, labels)], [attack], eight_bit=each)[1] for each in (False, True))
    assert 0 < exact.robust_accuracy < 1
    assert rounded.robust_accuracy <= exact.robust_accuracy + 0.02


@pytest.mark.parametrize("name", ["fgsm", "pgd", "square", "auto-attack"])
def test_eight_bit_images_are_attacked_at_a_radius_of_theirs(name: str) -> None:
    """What ends at its first hit beyond the last whole level would be undone by rounding."""
    net, inputs, labels = trained()
    inputs = (inputs * 255).round() / 255

    def attack(eps: float) -> Attack:
        made: dict[str, Attack] = {
            "fgsm": FGSM(eps),
            "pgd": PGD(eps, steps=5, step_size=0.01),
            "square": Square(eps, queries=200),
            "auto-attack": AutoAttack(eps, steps=5, queries=50),
        }
        return made[name]

    between, whole = (
        evaluate(net, [(inputs, labels)], [attack(eps)], eight_bit=True)[1] for eps in (12.5 / 255, 12 / 255)
    )
    assert 0 < whole.robust_accuracy < 1
    assert between.robust_accuracy == whole.robust_accuracy
    assert between.attack_fields["eps"] == 12.5 / 255


def test_images_that_are_not_in_eight_bits_keep_the_radius() -> None:
    attack = FGSM(0.0125)
    assert at_an_eight_bit_radius(attack, torch.full((1, 4), 0.0021)) is attack
    assert at_an_eight_bit_radius(FGSM(0.002), torch.zeros(1, 4)) == FGSM(0.002)  # no level lies within it
    started = RFGSM(0.0125, random_step=0.0125)
    assert at_an_eight_bit_radius(started, torch.zeros(1, 4)) is started


# Several attacks and several models.


def test_the_worst_case_is_of_each_sample() -> None:
    batches = [(grey(0.45, 0.35), torch.tensor([0, 0])), (grey(0.55, 0.9), torch.tensor([1, 1]))]
    up, down = Fixed(0.1, []), Fixed(-0.1, [])
    clean, one, other, worst = evaluate(Threshold(), batches, [up, down], worst_case=True)
    assert (clean.robust_accuracy, one.robust_accuracy, other.robust_accuracy) == (1, 3 / 4, 3 / 4)
    assert worst.attack == "WorstCase"
    assert worst.robust_accuracy == 2 / 4
    assert worst.mean_l2 == pytest.approx(0.2)
    assert [each["name"] for each in worst.attack_fields["attacks"]] == ["Fixed", "Fixed"]
    assert worst.seconds == one.seconds + other.seconds


def test_the_worst_case_leaves_out_what_holds_no_radius() -> None:
    net, batches = trained_batches()
    small: list[Attack] = [FGSM(EPS / 4), WorstCase((IFGSM(EPS / 4, 3),))]
    *_, worst = evaluate(net, batches, [DeepFool(steps=5), *small], worst_case=True)
    *_, alone = evaluate(net, batches, small, worst_case=True)
    assert worst.robust_accuracy == alone.robust_accuracy > 0
    assert [each["name"] for each in worst.attack_fields["attacks"]] == ["FGSM", "WorstCase"]
    assert len(evaluate(net, batches, [DeepFool(steps=5), FGSM(EPS)], worst_case=True)) == 3  # one is no case
    assert len(evaluate(net, batches, [DeepFool(steps=5), DeepFool(steps=9)], worst_case=True)) == 4


def test_every_radius_has_a_worst_case_of_its_own() -> None:
    net, batches = trained_batches()
    attacks: list[Attack] = [FGSM(EPS / 4), FGSM(EPS), IFGSM(EPS / 4, 3), IFGSM(EPS, 3), IFGSM(EPS / 2, 3)]
    *_, small, large = found = evaluate(net, batches, attacks, worst_case=True)
    assert [record.attack for record in found] == [None, "FGSM", "FGSM", "IFGSM", "IFGSM", "IFGSM", *2 * ["WorstCase"]]
    for worst, eps in ((small, EPS / 4), (large, EPS)):
        assert {each["eps"] for each in worst.attack_fields["attacks"]} == {eps}
        alone = evaluate(net, batches, [FGSM(eps), IFGSM(eps, 3)], worst_case=True)[-1]
        assert worst.robust_accuracy == alone.robust_accuracy
    assert small.robust_accuracy > large.robust_accuracy


@dataclass(frozen=True)
class Several:
    """Attacks in turn, as WorstCase and AutoAttack have them."""

    attacks: tuple[Attack, ...]

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError("evaluate runs the parts")


def test_a_compound_attack_is_run_part_by_part_on_what_is_left() -> None:
    first: list[int] = []
    second: list[int] = []
    batches = [(grey(0.45, 0.35, 0.1), torch.tensor([0, 0, 0])), (grey(0.6), torch.tensor([1]))]
    attack = Several((Fixed(0.1, first), Fixed(0.2, second)))
    names: list[str] = []
    record = evaluate(Threshold(), batches, [attack], progress=lambda name, done, total: names.append(name))[1]
    assert (first, second) == ([3, 1], [2, 1])
    assert [part["robust_accuracy"] for part in record.parts] == [3 / 4, 2 / 4]
    assert record.robust_accuracy == 2 / 4
    assert names == ["clean"] * 2 + ["Several: Fixed"] * 4


def test_a_targeted_attack_is_refused() -> None:
    @dataclass(frozen=True)
    class Targeted(Fixed):
        targeted: bool = True

    with pytest.raises(ValueError, match="is targeted"):
        evaluate(Threshold(), [(grey(0.2), torch.tensor([0]))], [Targeted(0.1, [])])


def test_a_source_crafts_once_for_all_models_and_each_is_scored_as_alone() -> None:
    source, batches = trained_batches()
    models = [random_net(seed=1), source, random_net(seed=2)]
    attacks: list[Attack] = [MIFGSM(EPS, 4), PGD(EPS, 3, EPS / 3)]
    together = evaluate_transfer(source, models, batches, attacks, about=[{"recipe": str(i)} for i in range(3)])
    for model, row, name in zip(models, together, "012", strict=True):
        alone = evaluate(model, batches, attacks, source=source, about={"recipe": name})
        for one, other in zip(row, alone, strict=True):
            assert replace(one, seconds=0) == replace(other, seconds=0)
    calls: list[int] = []
    evaluate_transfer(source, models, batches, [Fixed(0.1, calls)])
    assert calls == [20, 20, 8]


@dataclass(frozen=True)
class Shifted:
    """Every pixel by so much."""

    by: float

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return inputs + self.by


class Beyond(nn.Module):
    """Class 1 where the mean is further than 0.1 from grey, on one side."""

    def __init__(self, side: float) -> None:
        super().__init__()
        self.side = side

    def forward(self, inputs: Tensor) -> Tensor:
        gap = self.side * (inputs.flatten(1).mean(dim=1) - 0.5) - 0.1
        return torch.stack([-gap, gap], dim=1)


def test_what_a_part_fooled_stays_fooled_though_the_next_is_run_for_another_model() -> None:
    parts = WorstCase((Shifted(0.2), Shifted(-0.2)))
    batches = [(grey(0.5), torch.tensor([0]))]
    for row in evaluate_transfer(Beyond(1.0), [Beyond(1.0), Beyond(-1.0)], batches, [parts]):
        assert (row[1].clean_accuracy, row[1].robust_accuracy) == (1.0, 0.0)


def test_a_batch_is_known_by_its_type_and_shape_too(tmp_path: Path) -> None:
    inputs, labels = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    same_bytes = (inputs, inputs.view(4, 1, 4, 1), inputs.view(torch.int32))
    assert len({Store(tmp_path).file({}, 0, each, labels) for each in same_bytes}) == 3


def test_what_nobody_went_on_with_for_a_month_is_removed_and_nothing_else(tmp_path: Path) -> None:
    net, batches = trained_batches()
    kept: dict[str, bool] = {}
    for name, file, days, stays in (
        ("0" * 24, "1-a.safetensors", 31, False),
        ("1" * 24, ".1-a.safetensors.77.tmp", 31, False),
        ("2" * 24, "1-a.safetensors", 29, True),
        ("3" * 24, "notes.txt", 31, True),
        ("mine", "1-a.safetensors", 31, True),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"")
        for path in (tmp_path / name / file, tmp_path / name):
            os.utime(path, (time.time() - days * 24 * 3600,) * 2)
        kept[name] = stays
    evaluate(net, batches, [FGSM(EPS)], unfinished=tmp_path)
    assert {name: (tmp_path / name).exists() for name in kept} == kept


# Wrapped models.


def test_a_wrapped_model_is_known_by_its_own_weights_and_each_draw_is_a_pass() -> None:
    net, batches = trained_batches()
    wrapped = Averaged(LogitsOnly(net), draws=3)
    bare, attacked = (evaluate(model, batches, [FGSM(EPS)])[1] for model in (net, wrapped))
    assert attacked.weights_sha256 == bare.weights_sha256
    assert (attacked.forwards, attacked.backwards) == (3 * bare.forwards, 3 * bare.backwards)
    assert attacked.robust_accuracy == bare.robust_accuracy


# Samples.


def test_what_happened_to_each_sample_can_be_kept(tmp_path: Path) -> None:
    batches = [(grey(0.45, 0.35), torch.tensor([0, 0])), (grey(0.6), torch.tensor([0]))]
    records = evaluate(Threshold(), batches, [FGSM(0.1), IFGSM(0.2, 4)], samples=tmp_path)
    one, other = (load_file(tmp_path / name) for name in ("1-FGSM.safetensors", "2-IFGSM.safetensors"))
    assert one["robust"].tolist() == [False, True, False]
    assert one["prediction"].tolist() == [1, 0, 1]
    assert one["clean_prediction"].tolist() == [0, 0, 1]
    assert one["labels"].tolist() == [0, 0, 0]
    assert torch.allclose(one["linf"], torch.tensor([0.1, 0.1, 0.0]))  # the third was wrong and was not attacked
    assert torch.allclose(one["l2"], 2 * one["linf"])
    assert torch.allclose(one["adv_inputs"], grey(0.55, 0.45, 0.6))
    assert other["robust"].float().mean() == records[2].robust_accuracy == 0


# Going on.


class Stops(Exception):
    pass


def stopping(after: int) -> Callable[[str, int, int], None]:
    """A progress that interrupts when it is told so many times."""
    told: list[str] = []

    def stop(name: str, done: int, total: int) -> None:
        told.append(name)
        if len(told) == after:
            raise Stops

    return stop


@pytest.mark.parametrize("stop_after", range(1, 12))
def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_records(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, stop_after: int
) -> None:
    net, batches = trained_batches()
    attacks: list[Attack] = [PGD(EPS / 2, 20, EPS / 20), PGD(EPS, 2, EPS / 2)]
    with pytest.raises(Stops):
        evaluate(
            net, batches, attacks, progress=stopping(stop_after), unfinished=tmp_path, samples=tmp_path / "samples"
        )
    calls: list[int] = []
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    resumed = evaluate(net, batches, attacks, unfinished=tmp_path, samples=tmp_path / "samples")
    again = len(calls)
    calls.clear()
    anew = evaluate(net, batches, attacks, unfinished=tmp_path_factory.mktemp("other"))
    assert without_time(anew) == without_time(resumed)
    assert again < len(calls)  # what was finished was not run again
    handle.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]  # and nothing is left behind


def test_what_was_kept_is_for_the_same_call_only(tmp_path: Path) -> None:
    net, batches = trained_batches()

    def stopped(name: str, done: int, total: int) -> None:
        if name == "IFGSM" and done == total:
            raise Stops

    with pytest.raises(Stops):
        evaluate(net, batches, [IFGSM(EPS, 3)], unfinished=tmp_path, progress=stopped)
    others: list[tuple[nn.Module, Batches, Attack, dict[str, Any]]] = [
        (random_net(seed=5), batches, IFGSM(EPS, 3), {}),
        (net, [(inputs.flip(-1), labels) for inputs, labels in batches], IFGSM(EPS, 3), {}),
        (net, [(inputs, (labels + 1) % 3) for inputs, labels in batches], IFGSM(EPS, 3), {}),
        (net, batches, IFGSM(EPS / 2, 3), {}),
        (net, batches, IFGSM(EPS, 3), {"eight_bit": True}),
        (net, batches, IFGSM(EPS, 3), {"last_iterate": True}),
        (net, batches, IFGSM(EPS, 3), {"source": random_net(seed=5)}),
    ]
    for model, other, attack, settings in others:
        kept = evaluate(model, other, [attack], unfinished=tmp_path, **settings)
        assert without_time(kept) == without_time(evaluate(model, other, [attack], **settings))


class Through(nn.Module):
    """A model behind a function of itself and the inputs: of the same weights, names and class whatever that is."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net = trained()[0]
        self.function = function
        self.limit = 0.0
        self.bounds = (0.0, 1.0)

    def forward(self, inputs: Tensor) -> Any:
        return self.function(self.net, inputs)

    def extra_repr(self) -> str:
        return f"bounds={self.bounds}"


class Alike(Through):
    """Known from `Through` by its name alone."""


class Blurred(torch.autograd.Function):
    """The inputs, with a gradient that is not theirs."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(gradient, 3, 1, 1)


def blurred(net: nn.Module, inputs: Tensor) -> Any:
    return net(Blurred.apply(inputs))  # type: ignore[no-untyped-call]


def noisy(net: nn.Module, inputs: Tensor) -> Any:
    return net(inputs + 0.1 * torch.randn_like(inputs))


def plain(net: nn.Module, inputs: Tensor) -> Any:
    return net(inputs)


def in_levels(net: nn.Module, inputs: Tensor) -> Any:
    """Rounds to 8 bits and hides it: images in 8 bits have the same logits and gradients."""
    return net(inputs + ((inputs * 255).round() / 255 - inputs).detach())


def with_limit(limit: float) -> nn.Module:
    model = Through(plain)
    model.limit = limit
    return model


def with_bounds(high: float) -> nn.Module:
    model = Through(plain)
    model.bounds = (0.0, high)
    return model


def masked(scale: float) -> nn.Module:
    """Without a gradient, and with a class that is never given."""
    return Through(lambda net, x: torch.cat([scale * net(x), torch.full_like(x[:, 0, 0, :1], -1e9)], dim=1).detach())


def either(net: nn.Module, inputs: Tensor) -> Any:
    return net(inputs), -net(inputs)


TWINS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "a class": (lambda: Through(plain), lambda: Alike(plain)),
    "fewer levels": (lambda: Through(plain), lambda: Through(in_levels)),
    "a scale": (lambda: Through(plain), lambda: Through(lambda net, x: net(x) * 1e4)),
    "a scale beside a huge logit": (lambda: masked(1.0), lambda: masked(1.5)),
    "a gradient": (lambda: Through(plain), lambda: Through(blurred)),
    "no gradient": (lambda: Through(plain), lambda: Through(lambda net, x: net(x).detach())),
    "draws": (lambda: Averaged(Through(noisy), 1), lambda: Averaged(Through(noisy), 8)),
    "an entry": (lambda: LogitsOnly(Through(either), 0), lambda: LogitsOnly(Through(either), 1)),
    "a number": (lambda: with_limit(1.0), lambda: with_limit(2.0)),
    "what is printed": (lambda: with_bounds(1.0), lambda: with_bounds(2.0)),
}


def batches_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a name for each batch that is run and not taken from what was kept."""
    run: list[str] = []
    real = StageRunner.run

    def counted(self: StageRunner, stage: Stage | None, *others: Any) -> list[Outcome]:
        run.append("clean" if stage is None else stage.name)
        return real(self, stage, *others)

    monkeypatch.setattr(StageRunner, "run", counted)
    return run


def stopped_at_the_end(name: str, done: int, total: int) -> None:
    if name not in ("clean", "none") and done == total:
        raise Stops


@pytest.mark.parametrize("as_source", [False, True])
@pytest.mark.parametrize(("one", "other"), TWINS.values(), ids=TWINS)
def test_models_of_the_same_weights_do_not_take_up_each_others_batches(
    one: Callable[[], nn.Module],
    other: Callable[[], nn.Module],
    as_source: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = [((inputs * 255).round() / 255, labels) for inputs, labels in trained_batches()[1]]
    attack = Fixed(0.1, [])
    run = batches_run(monkeypatch)

    def evaluated(model: nn.Module, progress: Any = None) -> list[str]:
        run.clear()
        fixed: list[Attack] = [replace(attack, calls=[])]
        scored, source = (random_net(seed=3), model) if as_source else (model, None)
        with contextlib.suppress(Stops):
            evaluate(scored, batches, fixed, source=source, unfinished=tmp_path, progress=progress)
        return list(run)

    everything = ["clean"] * 3 + ["Fixed"] * 3
    assert evaluated(one(), stopped_at_the_end) == everything
    assert evaluated(one().train(), stopped_at_the_end) == []  # made anew, it is known again
    assert evaluated(other(), stopped_at_the_end) == everything
    assert evaluated(other()) == []


def test_a_model_that_no_seed_reaches_is_known_by_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.Generator().manual_seed(0)
    model = Through(lambda net, x: net(x + 0.1 * torch.randn(x.shape, generator=own)))
    run = batches_run(monkeypatch)
    for _ in range(2):
        with pytest.raises(Stops):
            evaluate(model, trained_batches()[1], [FGSM(EPS)], unfinished=tmp_path, progress=stopped_at_the_end)
    assert run == ["clean"] * 3 + ["FGSM"] * 3


def negative(logits: Tensor, labels: Tensor) -> Tensor:
    return -nn.functional.cross_entropy(logits, labels, reduction="none")


def of_a_script() -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return negative(logits, labels)

    loss.__module__, loss.__qualname__ = "__main__", "loss"
    monkey = sys.modules["__main__"]
    monkey.loss = loss  # type: ignore[attr-defined]
    return loss


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda: negative, True),
        (lambda: MarginLoss(3.0), True),
        (lambda: lambda z, y: -negative(z, y), False),
        (lambda: functools.partial(negative), False),
        (of_a_script, False),
        (lambda: Through(plain).forward, False),
    ],
    ids=["a function", "a dataclass", "a lambda", "a partial", "a script's", "a method"],
)
def test_nothing_is_kept_of_an_attack_with_a_function_that_cannot_be_imported(
    make: Callable[[], Any], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batches = trained_batches()
    run = batches_run(monkeypatch)
    for attack in (PGD(EPS, 2, EPS / 2, loss=make()), WorstCase((PGD(EPS, 2, EPS / 2, loss=make()),))):
        name = "PGD" if isinstance(attack, PGD) else "WorstCase: PGD"
        for turn in range(2):
            run.clear()
            settings: dict[str, Any] = {"unfinished": tmp_path, "progress": stopped_at_the_end}
            with contextlib.suppress(Stops, TypeError):  # the method is no loss, and is run too
                evaluate(net, batches, [attack], **settings)
            assert (name in run) is (turn == 0 or not kept)
    monkeypatch.delattr(sys.modules["__main__"], "loss", raising=False)


def test_an_attack_that_was_edited_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "attack_of_ones_own.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    known = []
    for body in ("inputs", "1 - inputs"):
        file.write_text(f"def weak(model, inputs, labels):\n    return {body}\n", encoding="utf-8")
        sys.modules.pop("attack_of_ones_own", None)
        known.append(settings_known_by(importlib.import_module("attack_of_ones_own").weak))
    assert known[0][0] == known[1][0] == "attack_of_ones_own.weak"
    assert known[0] != known[1]
    monkeypatch.delitem(sys.modules, "attack_of_ones_own")


def test_an_attack_is_known_by_the_module_of_its_class() -> None:
    assert settings_known_by(FGSM(0.1))[0] == "surefoot.attacks.gradient_sign.FGSM"
    here = sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    assert settings_known_by(Several((Fixed(0.1, [3]), FGSM(0.2)))) == [
        ["tests.test_stages.Several", here],
        {
            "attacks": [
                [
                    ["tests.test_stages.Fixed", here],
                    {"shift": 0.1, "calls": [3], "eps": 1.0, "attacks_fail_above": None},
                ],
                ["surefoot.attacks.gradient_sign.FGSM", {"eps": 0.2, "loss": "surefoot.core.losses.cross_entropy"}],
            ]
        },
    ]
    unknown: list[Any] = [torch.ones(1), object(), nn.ReLU()]
    for value in unknown:
        with pytest.raises(Nameless):
            settings_known_by(Fixed(value, []))


class Shaken:
    """Batches that are augmented anew at each reading, from torch's global generator."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in self.batches:
            yield (inputs + 0.2 * torch.rand(len(inputs), 1, 1, 1) - 0.1).clamp(0, 1), labels


@pytest.mark.parametrize("shaken", [False, True])
@pytest.mark.parametrize("stop_after", [1, 2, 4, 5])
def test_a_random_model_goes_on_with_the_draws_that_it_would_have_had(
    stop_after: int, shaken: bool, tmp_path: Path
) -> None:
    model = Averaged(Through(lambda net, x: net(x + 0.3 * torch.randn_like(x))), 2)
    batches: Any = trained_batches(size=12)[1]
    batches = Shaken(batches) if shaken else batches
    with pytest.raises(Stops):
        evaluate(model, batches, [FGSM(EPS / 2)], progress=stopping(stop_after), unfinished=tmp_path)
    resumed = evaluate(model, batches, [FGSM(EPS / 2)], unfinished=tmp_path, samples=None)
    whole = evaluate(model, batches, [FGSM(EPS / 2)])
    assert without_time(resumed) == without_time(whole)
    assert 0 < whole[1].robust_accuracy < whole[0].robust_accuracy < 1


@pytest.mark.parametrize(
    "attack",
    [PGD(EPS / 2, steps=19, step_size=EPS / 20), APGD(EPS / 2, 10)],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("wrapped", ["averaged", "averaged inside", "not at all"])
def test_a_random_model_is_attacked_to_the_last_step(attack: Any, wrapped: str) -> None:
    """What one noisy answer calls wrong, the next may call right."""
    noisy = Through(lambda net, x: net(x + 0.4 * torch.randn_like(x)))
    model = {"averaged": Averaged(noisy, 2), "averaged inside": nn.Sequential(Averaged(noisy, 2)), "not at all": noisy}[
        wrapped
    ]
    batches = trained_batches()[1]

    def to_the_end(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        adv_inputs: Tensor = replace(attack, stop_when_fooled=False)(model, inputs, labels)
        return adv_inputs

    clean, found, expected = evaluate(model, batches, [attack, to_the_end])
    assert found.attack_fields["stop_when_fooled"] is False
    assert found.robust_accuracy == expected.robust_accuracy < clean.robust_accuracy


def test_attacks_within_an_attack_within_another_let_go_at_any_iterate_too() -> None:
    inner = WorstCase([IFGSM(EPS, 3)])
    settled: Any = with_stop(WorstCase([inner, FGSM(EPS)]), when_fooled=True)
    assert settled == WorstCase([IFGSM(EPS, 3, stop_when_fooled=True), FGSM(EPS)])


@pytest.mark.parametrize("named", [{"last_iterate": True}, {"source": SmallNet()}, {"eight_bit": True}, {}])
def test_attacks_within_an_attack_within_another_are_run_as_they_are_beside_each_other(named: dict[str, Any]) -> None:
    net, batches = trained_batches()
    first, second = FGSM(EPS), IFGSM(0.11, 5)
    (_, flat), (_, nested) = (
        evaluate(net, batches, [attack], **named)
        for attack in (WorstCase((first, second)), WorstCase((WorstCase((first, second)),)))
    )
    assert nested.parts == flat.parts
    assert len(flat.parts) == 2
    cost = [(each.robust_accuracy, each.mean_l2, each.forwards, each.backwards) for each in (flat, nested)]
    assert cost[0] == cost[1]


def test_eight_bit_pixels_stay_in_the_ball_of_attacks_within_an_attack_within_another(tmp_path: Path) -> None:
    """0.3 is half a level beyond 76/255."""
    net, batches = trained_batches()
    evaluate(net, batches, [WorstCase((WorstCase((FGSM(0.3),)),))], eight_bit=True, samples=tmp_path)
    moved = load_file(tmp_path / "1-WorstCase.safetensors")["linf"]
    assert 0.29 < moved.max() <= 0.3 + 1e-5


class OtherwiseUnderAutograd(nn.Module):
    """Grey images of 0.75 and 0.2 pixels: rounded when scored, smooth where a gradient is taken (BPDA)."""

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        gap = (flat if torch.is_grad_enabled() else flat.round()).mean(dim=1) - 0.5
        return torch.stack([gap, -gap], dim=1)


@pytest.mark.parametrize("named", [{}, {"precision": "fast"}, {"eight_bit": True}])
@pytest.mark.parametrize("attack", [IFGSM(0.3, 20), PGD(0.3, 20, 0.03, random_start=False), APGD(0.3, 20)])
def test_what_an_attack_let_go_and_is_not_fooled_as_it_is_scored_is_attacked_to_the_end(
    attack: Attack, named: dict[str, Any]
) -> None:
    images = torch.full((4, 1, 4, 4), 0.2)
    images.view(4, 16)[:, :9] = 0.75
    batches = [(images, torch.zeros(4, dtype=torch.int64))]
    clean, found = evaluate(OtherwiseUnderAutograd(), batches, [attack], **named)
    assert (clean.robust_accuracy, found.robust_accuracy) == (1, 0)


class WithoutGradient(nn.Module):
    """Computes in NumPy, which refuses tensors that carry a gradient."""

    def forward(self, inputs: Tensor) -> Tensor:
        gap = torch.from_numpy(inputs.numpy().mean(axis=(1, 2, 3))) - 0.5
        return torch.stack([gap, -gap], dim=1)


def test_a_model_without_gradients_is_attacked_by_what_needs_none() -> None:
    batches = [(torch.full((2, 1, 4, 4), 0.6), torch.zeros(2, dtype=torch.int64))]
    clean, square = evaluate(WithoutGradient(), batches, [Square(0.3, queries=50)])
    assert (clean.robust_accuracy, square.robust_accuracy) == (1, 0)


def test_a_model_that_is_called_by_keyword_is_counted() -> None:
    net, batches = trained_batches()

    class Named(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return net(pixel_values)  # type: ignore[no-any-return]

    def named(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        model(pixel_values=inputs)
        return inputs

    total = sum(len(labels) for _, labels in batches)
    assert evaluate(Named(), batches, [named])[1].forwards == 2 * total


def test_weights_that_an_attack_of_ones_own_freezes_learn_again() -> None:
    net, batches = trained_batches()
    frozen = next(net.parameters()).requires_grad_(False)

    def freezing(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        model.requires_grad_(False)
        return inputs

    evaluate(net, batches, [freezing])
    assert [each.requires_grad for each in net.parameters()] == [each is not frozen for each in net.parameters()]


def test_a_random_model_has_the_same_clean_draws_alone_and_with_others() -> None:
    model = Averaged(Through(lambda net, x: net(x + 0.3 * torch.randn_like(x))), 2)
    batches = trained_batches()[1]
    rows = evaluate_transfer(random_net(), [model, model], batches, [])
    (alone,) = evaluate(model, batches, [], source=random_net())
    assert {row[0].robust_accuracy for row in rows} == {alone.robust_accuracy}
    assert 0 < alone.robust_accuracy < 1


def test_where_batches_cannot_be_kept_the_evaluation_goes_on_and_says_so(tmp_path: Path) -> None:
    net, batches = trained_batches()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    said: list[str] = []
    records = evaluate(net, batches, [IFGSM(EPS, 3)], unfinished=tmp_path / "file", on_note=said.append)
    assert without_time(records) == without_time(evaluate(net, batches, [IFGSM(EPS, 3)]))
    assert len(said) == 1
    assert "finished batches are not kept (" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("harm", ["cut short", "of another version"])
def test_a_file_that_cannot_be_used_is_run_again(tmp_path: Path, harm: str) -> None:
    net, batches = trained_batches()

    def stopped(name: str, done: int, total: int) -> None:
        if name == "IFGSM":
            raise Stops

    with pytest.raises(Stops):
        evaluate(net, batches, [IFGSM(EPS, 3)], unfinished=tmp_path, progress=stopped)
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 4  # three clean batches, one attacked
    for file in files:
        if harm == "cut short":
            file.write_bytes(file.read_bytes()[:-3])
        else:
            save_tensors(file, load_file(file), {"names": [["robust"]]})
    kept = evaluate(net, batches, [IFGSM(EPS, 3)], unfinished=tmp_path)
    assert without_time(kept) == without_time(evaluate(net, batches, [IFGSM(EPS, 3)]))


def test_fast_is_what_a_record_says_where_a_part_is_crafted_so() -> None:
    net, batches = trained_batches()
    apgd, fgsm = APGD(EPS, 2), FGSM(EPS)
    attacks: list[Attack] = [WorstCase((apgd,)), WorstCase((apgd, fgsm)), AutoAttack(EPS, steps=2, queries=2)]
    _, *found = evaluate(net, batches, attacks, precision="fast")
    assert [record.precision for record in found] == ["strict", "fast", "strict"]


def test_a_model_of_one_logit_is_refused() -> None:
    """The cross-entropy of one class is 0 everywhere: every attack looked in vain, and all images were robust."""
    with pytest.raises(ValueError, match=r"logits have shape \[2, 1\] for 2 images; give \[batch, classes\]; "):
        evaluate(nn.Linear(4, 1), [(torch.rand(2, 4), torch.zeros(2, dtype=torch.int64))], [FGSM(EPS)])
