"""Accuracy under attack as data: the right numbers, the right counts, and nothing changed on the way."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from scipy.stats import binomtest  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from surefoot import data
from surefoot.attacks import FGSM, IFGSM, PGD, RFGSM, MarginLoss
from surefoot.core.files import load_metadata, lock_of, locked
from surefoot.core.seeding import seeded
from surefoot.core.types import Attack
from surefoot.evaluation import (
    Record,
    accuracy,
    append_records,
    evaluate,
    evaluate_transfer,
    read_records,
    recognise,
    wilson_interval,
)
from surefoot.evaluation.attack_settings import fields_of, with_stop
from surefoot.evaluation.identity import LOOKED_AT, weights_sha256
from surefoot.evaluation.passes import PassCounter
from surefoot.evaluation.stages import Precision, predictions
from surefoot.models.wrappers import Averaged
from surefoot.training import Monitor
from tests.tables import (
    ATTACKS,
    EPS,
    AttackCase,
    Batches,
    Threshold,
    forwards_that_spoil_autocast,
    grey,
    random_batch,
    random_net,
    trained,
    trained_batches,
    without_time,
)

# distances to the threshold: 0.05, 0.15, 0.25 | 0.05 and 0.3 | wrong from the start, by 0.1
LEVELS = grey(0.45, 0.35, 0.25, 0.55, 0.8, 0.6)
LABELS = torch.tensor([0, 0, 0, 1, 1, 0])
HAND: Batches = [(LEVELS[:4], LABELS[:4]), (LEVELS[4:], LABELS[4:])]


# Accuracy.


@pytest.mark.parametrize(("eps", "right"), [(0.0, 5), (0.04, 5), (0.06, 3), (0.16, 2), (0.26, 1), (0.31, 0), (1.0, 0)])
def test_accuracy_under_attack_by_hand(eps: float, right: int) -> None:
    assert accuracy(Threshold(), HAND) == 5 / 6
    assert accuracy(Threshold(), HAND, FGSM(eps)) == right / 6
    clean, attacked = evaluate(Threshold(), HAND, [FGSM(eps)])
    assert clean.attack is None
    assert clean.clean_accuracy == clean.robust_accuracy == attacked.clean_accuracy == 5 / 6
    assert attacked.robust_accuracy == right / 6
    assert attacked.num_examples == clean.num_examples == 6
    assert attacked.robust_interval == wilson_interval(right, 6)


def test_the_mean_l2_is_over_the_samples_that_the_attack_fooled() -> None:
    _, attacked, nothing = evaluate(Threshold(), HAND, [FGSM(0.16), FGSM(0.01)])
    assert attacked.mean_l2 == pytest.approx(0.16 * 2)  # four pixels moved by 0.16 each
    assert nothing.mean_l2 is None


def test_the_mean_l2_leaves_out_samples_that_were_wrong_before() -> None:
    batches = [(grey(0.45, 0.95), torch.tensor([0, 0]))]  # the second is wrong, and can move by 0.05 only
    for last_iterate in (False, True):
        _, attacked = evaluate(Threshold(), batches, [FGSM(0.16)], last_iterate=last_iterate)
        assert attacked.mean_l2 == pytest.approx(0.16 * 2)


@dataclass(frozen=True)
class Rescue:
    """Turns every image into its right one: what `last_iterate` lets count and the default does not."""

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return (labels.float() * 0.8 + 0.1).view(-1, 1, 1, 1).expand_as(inputs).clone()


def test_a_sample_that_is_wrong_from_the_start_counts_as_fooled_unless_only_the_last_iterate_counts() -> None:
    assert evaluate(Threshold(), HAND, [Rescue()])[1].robust_accuracy == 5 / 6
    assert evaluate(Threshold(), HAND, [Rescue()], last_iterate=True)[1].robust_accuracy == 1.0


@dataclass(frozen=True)
class Recorder:
    """Does nothing but remember whom it was asked to attack, on which model and how."""

    seen: list[tuple[nn.Module, Tensor, bool]]
    stop_when_fooled: bool = False

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((model, inputs, self.stop_when_fooled))
        return inputs


def test_by_default_only_right_samples_are_attacked_and_let_go_once_fooled() -> None:
    seen: list[tuple[nn.Module, Tensor, bool]] = []
    evaluate(model := Threshold(), HAND, [Recorder(seen)])
    assert [len(inputs) for _, inputs, _ in seen] == [4, 1]  # the sixth is wrong anyway
    assert all(crafted_on is model and stop for crafted_on, _, stop in seen)


def test_with_last_iterate_every_sample_is_attacked_to_the_end() -> None:
    seen: list[tuple[nn.Module, Tensor, bool]] = []
    evaluate(Threshold(), HAND, [Recorder(seen)], last_iterate=True)
    assert [len(inputs) for _, inputs, _ in seen] == [4, 2]
    assert not any(stop for _, _, stop in seen)


def test_black_box_crafts_on_the_source_to_the_end_and_scores_on_the_model() -> None:
    seen: list[tuple[nn.Module, Tensor, bool]] = []
    source = Threshold()
    _, record = evaluate(Threshold(), HAND, [Recorder(seen)], source=source)
    assert [len(inputs) for _, inputs, _ in seen] == [4, 2]
    assert all(crafted_on is source and not stop for crafted_on, _, stop in seen)
    assert record.source == "model"
    assert record.robust_accuracy == 5 / 6


class Backwards(Threshold):
    """Its gradient points the wrong way, so what it crafts helps the model that is scored."""

    def forward(self, inputs: Tensor) -> Tensor:
        return -super().forward(inputs)


def test_a_source_that_points_the_wrong_way_helps() -> None:
    _, white = evaluate(Threshold(), HAND, [FGSM(0.2)])
    clean, black = evaluate(Threshold(), HAND, [FGSM(0.2)], source=Backwards(), about={"source": "lenet"})
    assert white.robust_accuracy == 2 / 6
    assert black.robust_accuracy == 1.0  # also the sixth, which was wrong
    assert (clean.source, black.source, white.source) == ("lenet", "lenet", None)


def test_a_source_with_a_trace_to_leave_is_left_alone() -> None:
    net, batches = trained_batches()
    source = random_net().train()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    evaluate(net, batches, [PGD(EPS, 2, EPS / 2)], source=source)
    assert source.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_stopping_early_is_never_kinder_to_the_model_than_the_last_iterate() -> None:
    net, batches = trained_batches()
    attacks: list[Attack] = [IFGSM(EPS / 2, 5), PGD(EPS / 2, 5, EPS / 6)]
    early, late = (evaluate(net, batches, attacks, last_iterate=last) for last in (False, True))
    for one, other in zip(early[1:], late[1:], strict=True):
        assert one.robust_accuracy <= other.robust_accuracy
    assert late[1].robust_accuracy < 1


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_every_attack_can_be_evaluated(case: AttackCase) -> None:
    net, batches = trained_batches()
    clean, attacked = evaluate(net, batches, [case.build(EPS)])
    assert attacked.robust_accuracy < clean.robust_accuracy
    assert attacked.attack == type(case.build(EPS)).__name__
    assert attacked.attack_fields == json.loads(json.dumps(attacked.attack_fields))
    if case.bounded:
        settings = attacked.attack_fields
        assert all(each["eps"] == EPS for each in settings.get("attacks", [settings]))
        assert attacked.mean_l2 is not None
        assert 0 < attacked.mean_l2 <= EPS * math.sqrt(72) + 1e-5
    with torch.no_grad():  # the same seed, the same attack, the last iterate: by hand
        last = evaluate(net, batches, [case.build(EPS)], last_iterate=True, seed=5)[1]
        attack = with_stop(case.build(EPS), when_fooled=False)
        right = 0
        for number, (x, y) in enumerate(batches):  # each batch from a seed of its own
            torch.manual_seed(5 * 1_000_003 + number)
            right += int((net(attack(net, x, y)).argmax(1) == y).sum())
        assert last.robust_accuracy == right / 48
        torch.manual_seed(5)
        right = sum(int((net(attack(net, x, y)).argmax(1) == y).sum()) for x, y in batches)
        assert accuracy(net, batches, attack, seed=5) == right / 48


def test_accuracies_do_not_depend_on_the_size_of_the_batches() -> None:
    net, inputs, labels = trained()
    net, inputs = net.double(), inputs.double()
    results = [
        [
            (record.robust_accuracy, record.mean_l2 and round(record.mean_l2, 9))
            for record in evaluate(
                net,
                list(zip(torch.split(inputs, size), torch.split(labels, size), strict=True)),
                [IFGSM(EPS / 2, 3)],
            )
        ]
        for size in (1, 7, 48)
    ]
    assert results[0] == results[1] == results[2]


# Counts.


def test_passes_are_counted_by_the_sample() -> None:
    net, batches = trained_batches()  # 48 samples, all of them right
    clean, fgsm, pgd = evaluate(net, batches, [FGSM(0.0), PGD(EPS, 5, EPS / 5, random_start=False)], last_iterate=True)
    assert (clean.forwards, clean.backwards) == (48, 0)
    assert (fgsm.forwards, fgsm.backwards) == (48 * 2, 48)  # one to craft, one to score
    assert (pgd.forwards, pgd.backwards) == (48 * 6, 48 * 5)


@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_there_is_no_pass_beside_those_of_the_records_and_clean_predictions_are_made_once(precision: Precision) -> None:
    net, batches = trained_batches()
    attacks: list[Attack] = [FGSM(EPS), IFGSM(EPS, 8), PGD(EPS, 25, EPS / 5)]  # the last has a screening
    with PassCounter(net) as everything:
        records = evaluate(net, batches, attacks, precision=precision)
    assert records[0].forwards == 48
    looks = 2 * LOOKED_AT  # at whether the model answers at random
    assert everything.forwards - looks == sum(record.forwards for record in records)
    assert everything.backwards == sum(record.backwards for record in records)


def test_passes_of_restarts_are_counted_with_those_that_score_them() -> None:
    net, batches = trained_batches()
    _, pgd = evaluate(net, batches, [PGD(EPS, 3, EPS / 3, restarts=2)], last_iterate=True)
    assert (pgd.forwards, pgd.backwards) == (48 * (2 * (3 + 1) + 1), 48 * 6)


def test_letting_go_of_fooled_samples_saves_passes() -> None:
    net, batches = trained_batches()
    early, late = (evaluate(net, batches, [IFGSM(2 * EPS, 8)], last_iterate=last)[1] for last in (False, True))
    assert early.forwards < late.forwards
    assert early.backwards < late.backwards


def test_the_passes_of_a_black_box_attack_are_its_sources_and_the_scoring_ones() -> None:
    net, batches = trained_batches()
    _, record = evaluate(net, batches, [IFGSM(EPS, 8)], source=random_net())
    assert (record.forwards, record.backwards) == (48 * (8 + 1), 48 * 8)


def test_the_counter_lets_go_of_the_module_also_through_an_exception() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(KeyError), PassCounter(net):
        raise KeyError
    assert len(net._forward_hooks) == 0


# Nothing changes.


def test_evaluating_changes_neither_the_model_nor_any_generator() -> None:
    net, batches = trained_batches()
    net.train()
    net.get_submodule("norm").eval()
    weight = net.get_parameter("head.weight")
    weight.grad = torch.full_like(weight, 7.0)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    torch.manual_seed(123)
    before, python = torch.get_rng_state(), random.getstate()
    attacks: list[Attack] = [PGD(EPS, 2, EPS / 2), RFGSM(EPS, EPS / 2)]
    evaluate(net, batches, attacks, progress=lambda name, done, total: None)
    accuracy(net, batches, attacks[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(weight.grad, torch.full_like(weight, 7.0))
    assert all(p.grad is None for name, p in net.named_parameters() if name != "head.weight")
    assert all(len(part._forward_hooks) == 0 for part in net.modules())


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_data_loader_works_and_its_own_draws_do_not_move_the_global_generator(shuffle: bool) -> None:
    net, inputs, labels = trained()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=16, shuffle=shuffle)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    by_loader = evaluate(net, loader, [IFGSM(EPS / 2, 3)])
    assert torch.equal(torch.get_rng_state(), before)
    by_list = evaluate(net, [(inputs, labels)], [IFGSM(EPS / 2, 3)])
    assert [r.robust_accuracy for r in by_loader] == [r.robust_accuracy for r in by_list]
    accuracy(net, loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_loader_that_shuffles_by_a_generator_of_its_own_is_refused() -> None:
    """Each attack would meet the images in another order, and take what is right of others' for its own."""
    net, inputs, labels = trained()
    own = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=16, shuffle=True, generator=own)
    with pytest.raises(ValueError, match="batch 0 has other labels than when it was first read"):
        evaluate(net, loader, [FGSM(EPS)])


class Flipped(Dataset[tuple[Tensor, Tensor]]):
    """Flips at random, by Python's generator, which no DataLoader of one process seeds."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels, self.random = inputs, labels, random.Random(0)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.inputs[index]
        return image.flip(2) if self.random.random() < 0.5 else image, self.labels[index]


def test_images_that_are_augmented_anew_each_time_are_refused() -> None:
    """An attack would meet others than those that were found right."""
    net, inputs, labels = trained()
    with pytest.raises(ValueError, match=r"batch 0 has other images than when .*, not augmented at random"):
        evaluate(net, DataLoader(Flipped(inputs, labels), batch_size=16), [FGSM(EPS)])


def test_a_folder_for_samples_that_cannot_be_made_is_told_before_the_first_attack(tmp_path: Path) -> None:
    net = Threshold()
    net.register_forward_hook(lambda *_: pytest.fail("told only after it has run"))
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=r"samples needs the folder .*taken, which cannot be made"):
        evaluate(net, HAND, [FGSM(0.1)], samples=tmp_path / "taken")


def test_a_seed_decides_what_is_drawn_and_only_inside() -> None:
    torch.manual_seed(3)
    expected, after = torch.rand(2), torch.rand(2)
    torch.manual_seed(3)
    torch.rand(2)
    with seeded(3):
        assert torch.equal(torch.rand(2), expected)
    assert torch.equal(torch.rand(2), after)


def test_the_generator_of_an_apple_gpu_comes_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)  # stands for it; torch.manual_seed reaches it as it does there
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "manual_seed", generator.manual_seed)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: generator.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: generator.set_state(state))
    before = generator.get_state()
    with seeded(7):
        assert generator.initial_seed() == 7
    assert torch.equal(generator.get_state(), before)


def test_the_generators_come_back_through_an_exception() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(7):
        torch.rand(1 // 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_gives_the_same_records_and_each_attack_its_own_start() -> None:
    net, batches = trained_batches()
    pgd, other = PGD(EPS / 2, 2, EPS / 4), IFGSM(EPS, 2)
    alone = evaluate(net, batches, [pgd], seed=3)
    assert [record.attack_seed for record in alone] == [None, 3]
    assert without_time(evaluate(net, batches, [pgd], seed=3)) == without_time(alone)
    # what runs before an attack does not change its result
    after = evaluate(net, batches, [other, RFGSM(EPS, EPS / 2), pgd], seed=3)
    assert without_time(after)[-1] == without_time(alone)[-1]


def test_wrapped_models_give_the_same_records() -> None:
    net, batches = trained_batches()
    wrapped = Fabric(accelerator="cpu", devices=1).setup(net)
    attacks: list[Attack] = [PGD(EPS, 2, EPS / 2)]
    assert without_time(evaluate(wrapped, batches, attacks)) == without_time(evaluate(net, batches, attacks))


class Stacked(nn.Module):
    """The mean of several networks by torch.func; the module that plans them is on the meta device."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.plan = copy.deepcopy(networks[0]).to("meta")
        self.weights = torch.func.stack_module_state(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        def one(parameters: Any, buffers: Any) -> Any:
            return torch.func.functional_call(self.plan, (parameters, buffers), (inputs,))

        return torch.as_tensor(torch.vmap(one)(*self.weights).mean(0))


def test_an_ensemble_by_torch_func_is_measured_as_one_of_modules() -> None:
    class Listed(nn.ModuleList):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.stack([each(inputs) for each in self]).mean(0)

    networks = [random_net(seed=seed).eval() for seed in range(3)]
    stacked, listed = Stacked(networks).eval(), Listed(networks).eval()
    inputs, labels = random_batch(20)
    attacks: list[Attack] = [FGSM(EPS), PGD(EPS, 3, EPS / 2)]
    one, other = (
        [each.robust_accuracy for each in evaluate(net, [(inputs, labels)], attacks)] for net in (stacked, listed)
    )
    assert one == other
    assert recognise(stacked, inputs, labels) == (stacked, [])
    looks = [Monitor(inputs, labels, eps=EPS, every=1)(net, 1) for net in (stacked, listed)]
    assert looks[0] is not None
    assert looks[1] is not None
    assert looks[0].pgd_loss == pytest.approx(looks[1].pgd_loss, rel=1e-4)


def test_a_label_that_the_model_does_not_know_is_refused_and_not_counted_as_wrong() -> None:
    batches = [(torch.rand(2, 4), torch.tensor([0, 3]))]
    for measure in (lambda: evaluate(nn.Linear(4, 3), batches, []), lambda: accuracy(nn.Linear(4, 3), batches)):
        with pytest.raises(ValueError, match="a label is 3, but the model has the classes 0 to 2"):
            measure()


def test_predictions_are_made_in_evaluation_mode() -> None:
    net, (inputs, _) = random_net(), random_batch()
    expected = net.eval()(inputs).argmax(1)
    assert torch.equal(predictions(net.train(), inputs), expected)
    assert net.training


# Refusals.


def test_no_samples_is_an_error_not_a_nan() -> None:
    for nothing in ([], [(LEVELS[:0], LABELS[:0])]):
        with pytest.raises(ValueError, match="no samples"):
            evaluate(Threshold(), nothing, [])
        with pytest.raises(ValueError, match="no samples"):
            accuracy(Threshold(), nothing)


def test_weights_of_another_type_than_the_images_are_refused_in_a_sentence() -> None:
    with pytest.raises(TypeError, match="weights are float64, the images float32, and it does not take them"):
        evaluate(random_net().double(), [random_batch()], [FGSM(EPS)])


def test_an_accuracy_does_not_spoil_the_autocast_of_a_training_step_around_it() -> None:
    net = random_net()
    found = forwards_that_spoil_autocast(net)
    with torch.autocast("cpu", torch.bfloat16):
        accuracy(net, [random_batch()], FGSM(EPS))
    assert found
    assert not any(found)


@pytest.mark.parametrize("attacks", [[], [FGSM(0.1)]], ids=["clean", "attacked"])
def test_pixels_outside_the_range_are_refused_also_for_clean_accuracy(attacks: list[Attack]) -> None:
    with pytest.raises(ValueError, match=re.escape("pixels in [0, 1]")):
        evaluate(Threshold(), [(LEVELS * 255, LABELS)], attacks)
    with pytest.raises(ValueError, match=re.escape("pixels in [0, 1]")):
        accuracy(Threshold(), [(LEVELS * 255, LABELS)])


@pytest.mark.parametrize("attacks", [[], [FGSM(0.1)]], ids=["clean", "attacked"])
def test_a_generator_that_can_be_read_once_is_refused_instead_of_scored_as_zero(
    attacks: list[Attack],
) -> None:
    def once() -> Iterator[tuple[Tensor, Tensor]]:
        yield from HAND

    with pytest.raises(ValueError, match="not a generator"):
        evaluate(Threshold(), once(), attacks)
    assert accuracy(Threshold(), once()) == 5 / 6  # reads them once


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ((LEVELS, LABELS), "a tensor [6, 1, 2, 2] of float32"),
        ([{"image": LEVELS, "label": LABELS}], "a dict of 'image' [6, 1, 2, 2] and 'label' [6]"),
        ([(LEVELS, LABELS, LABELS)], "a tuple of [6, 1, 2, 2], [6] and [6]"),
        ([(LEVELS[0], LABELS[0])], "a tuple of [1, 2, 2] and []"),
    ],
    ids=["a pair alone", "dicts", "triples", "single images"],
)
def test_batches_that_are_no_pairs_are_refused_with_what_they_are(batches: Any, said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"batches gave {said}; give pairs")):
        accuracy(Threshold(), batches)
    with pytest.raises(TypeError, match=re.escape(f"batches gave {said}; give pairs")):
        evaluate(Threshold(), batches, [FGSM(0.1)])


@pytest.mark.parametrize("attacks", [FGSM(0.1), [FGSM], ["fgsm"]], ids=["one", "a class", "a name"])
def test_what_is_no_list_of_attacks_is_refused_before_anything_runs(attacks: Any) -> None:
    told: list[Record] = []
    with pytest.raises(TypeError, match=r"attacks (is|has) .*; give .*FGSM\(eps=0.1\)"):
        evaluate(Threshold(), HAND, attacks, on_record=told.append)
    assert told == []


def test_attacks_may_come_from_a_generator() -> None:
    attacks: Any = (FGSM(eps) for eps in (0.1, 0.2))
    assert len(evaluate(Threshold(), HAND, attacks)) == 3


@dataclass(frozen=True)
class Own:
    """Somebody's own attack, with a fault or without."""

    change: Callable[[Tensor], Any]
    eps: float = 0.2

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.change(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inputs: inputs * torch.nan, "Own returned pixels that are NaN"),
        (lambda inputs: inputs - 0.5, "Own returned pixels from -0."),
        (lambda inputs: (inputs + 0.3).clamp(0, 1), "Own moved a pixel by 0.3, further than its eps, 0.2"),
        (lambda inputs: inputs.add_(0.3).clamp_(0, 1), "Own moved a pixel by 0.3, further than its eps, 0.2"),
        (lambda inputs: inputs[:, 0], "Own returned shape [4, 2, 2] for inputs of shape [4, 1, 2, 2]"),
        (lambda inputs: inputs.double(), "Own returned pixels of float64 for inputs of float32"),
        (lambda inputs: None, "Own returned an object of type NoneType"),
    ],
    ids=["NaN", "outside the range", "outside the ball", "outside the ball in place", "shape", "type", "nothing"],
)
def test_what_an_own_attack_may_not_give_is_refused_instead_of_counted_as_fooled(
    change: Callable[[Tensor], Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        accuracy(Threshold(), HAND, Own(change))
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        evaluate(Threshold(), HAND, [Own(change)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_own_attack_to_the_rim_of_its_ball_is_taken(dtype: torch.dtype) -> None:
    batches = [(inputs.to(dtype), labels) for inputs, labels in HAND]
    assert evaluate(Threshold(), batches, [Own(lambda inputs: (inputs + 0.2).clamp(0, 1))])[1].attack == "Own"


@pytest.mark.parametrize("eps", [np.float32(0.2), torch.tensor(0.2), torch.tensor([0.2], requires_grad=True)], ids=repr)
def test_an_own_eps_of_numpy_or_torch_is_held_too(eps: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("Own moved a pixel by 0.3, further than its eps, 0.2")):
        evaluate(Threshold(), HAND, [Own(lambda inputs: (inputs + 0.3).clamp(0, 1), eps)])
    assert evaluate(Threshold(), HAND, [Own(lambda inputs: (inputs + 0.2).clamp(0, 1), eps)])[1].attack == "Own"


def test_images_that_ask_for_gradients_are_measured_as_others_are(tmp_path: Path) -> None:
    asking = [(inputs.clone().requires_grad_(), labels) for inputs, labels in HAND]
    found, plain = (evaluate(Threshold(), each, [FGSM(0.2)], samples=tmp_path) for each in (asking, HAND))
    assert load_metadata(tmp_path / "1-FGSM.safetensors")["attack_fields"]["eps"] == 0.2
    assert [each.robust_accuracy for each in found] == [each.robust_accuracy for each in plain]
    assert accuracy(Threshold(), asking, FGSM(0.2)) == accuracy(Threshold(), HAND, FGSM(0.2))


def test_an_own_attack_that_works_in_place_leaves_the_images_alone() -> None:
    before = [inputs.clone() for inputs, _ in HAND]
    record = evaluate(Threshold(), HAND, [Own(lambda inputs: inputs.add_(0.2).clamp_(0, 1))])[1]
    accuracy(Threshold(), HAND, Own(lambda inputs: inputs.add_(0.2).clamp_(0, 1)))
    assert all(torch.equal(inputs, kept) for (inputs, _), kept in zip(HAND, before, strict=True))
    assert record.mean_l2 == pytest.approx(0.4)  # of four pixels


@pytest.mark.parametrize("seed", ["0", 0.5, -1, None, 2**64])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    said = r"seed is .*; it must be (a whole number of at least 0|at most 4294967295)\."
    with pytest.raises(ValueError, match=said):
        evaluate(Threshold(), HAND, [FGSM(0.1)], seed=seed)
    with pytest.raises(ValueError, match=said):
        evaluate_transfer(Threshold(), [Threshold()], HAND, [FGSM(0.1)], seed=seed)
    with pytest.raises(ValueError, match=said):
        accuracy(Threshold(), HAND, seed=seed)


def test_an_attack_without_its_settings_is_refused() -> None:
    with pytest.raises(TypeError, match=r"give attacks with their settings, for example FGSM\(eps=0.1\)"):
        accuracy(Threshold(), HAND, FGSM)  # type: ignore[arg-type]


def test_an_attack_of_torchattacks_is_refused_with_what_wraps_it() -> None:
    class Theirs:
        """As `torchattacks.PGD(model)`, which is called with inputs and labels."""

        def __init__(self) -> None:
            self.model, self.attack_mode, self.targeted = Threshold(), "default", False

        def __call__(self, inputs: Tensor, labels: Tensor, *more: Any) -> Tensor:
            return self.forward(inputs, labels, *more)

        def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
            return inputs

    wrapped = re.escape("lambda model, inputs, labels: torchattacks.Theirs(model)(inputs, labels)")
    theirs: Any = Theirs()
    with pytest.raises(TypeError, match=wrapped):
        evaluate(Threshold(), HAND, [theirs])
    assert len(evaluate(Threshold(), HAND, [lambda model, inputs, labels: theirs(inputs, labels)])) == 2


def test_models_to_score_on_are_a_list_with_what_is_said_of_each() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))  # which has a length, and parts to go through
    with pytest.raises(TypeError, match=r"models is a single one; give a list of them, as \[model\]"):
        evaluate_transfer(net, net, HAND, [FGSM(0.1)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source is None; give the model to craft on"):
        evaluate_transfer(None, [net], HAND, [FGSM(0.1)])  # type: ignore[arg-type]
    for name in ("last_iterate", "eight_bit", "worst_case"):
        with pytest.raises(TypeError, match=f"{name} is 'no'; it must be True or False"):
            evaluate(net, HAND, [FGSM(0.1)], **{name: "no"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="models is empty"):
        evaluate_transfer(net, [], HAND, [FGSM(0.1)])
    with pytest.raises(ValueError, match="about has 1 mappings for 2 models; give one for each"):
        evaluate_transfer(net, [net, net], HAND, [FGSM(0.1)], about=[{"recipe": "one"}])


def test_a_function_is_recorded_by_its_name() -> None:
    def nothing(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return inputs.clone()

    assert evaluate(Threshold(), HAND, [nothing])[1].attack == "nothing"


def test_a_field_that_no_record_has_is_refused() -> None:
    net = Threshold()
    net.register_forward_hook(lambda *_: pytest.fail("refused only after it has run"))
    for name in ("colour", "attack"):
        with pytest.raises(
            TypeError, match=f"about has '{name}'; the fields of a record that it may tell are recipe, "
        ):
            evaluate(net, HAND, [], about={name: "blue"})


# Records.


def a_record(**changes: Any) -> Record:
    (record,) = evaluate(Threshold(), HAND, [], about={"recipe": "mnist-sat-r1", "seed": 0})
    return replace(record, **changes)


def test_a_record_says_what_was_run_on_what() -> None:
    net, batches = trained_batches()
    about = {
        "recipe": "cifar10-sat-r3",
        "seed": 4,
        "dataset": "cifar10",
        "split": "validation",
        "commit": "abc",
    }
    clean, cw = evaluate(net, batches, [PGD(EPS, 2, 0.01, loss=MarginLoss(50.0))], about=about)
    for record in (clean, cw):
        assert {name: getattr(record, name) for name in about} == about
        assert record.weights_sha256 == weights_sha256(net)
        assert record.device == "cpu"
        assert record.versions["torch"] == torch.__version__
        assert record.seconds > 0
    assert clean.attack_fields == {}
    assert cw.attack_fields == {
        "eps": EPS,
        "steps": 2,
        "step_size": 0.01,
        "random_start": True,
        "restarts": 1,
        "loss": {"name": "MarginLoss", "confidence": 50.0},
        "start_radius": None,
        "stop_when_fooled": True,  # what was run, not what was asked for
    }


def test_the_fields_of_the_design_are_all_there() -> None:
    assert {field.name for field in fields(Record)} == {
        *("recipe", "seed", "weights_sha256", "dataset", "split", "num_examples"),
        *("attack", "attack_fields", "source", "clean_accuracy", "robust_accuracy", "robust_interval"),
        *("mean_l2", "seconds", "forwards", "backwards", "device", "precision", "versions", "commit"),
        *("eight_bit", "attack_seed", "parts"),
    }


@dataclass(frozen=True)
class Odd:
    """An attack with settings that JSON lacks; it does nothing."""

    dtype: torch.dtype = torch.float16
    place: Path = Path("a")
    seen: frozenset[int] = frozenset({1})
    table: Any = field(default_factory=lambda: {"a": (1, torch.tensor(2))})

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return inputs.clone()


def test_settings_that_json_lacks_are_written_all_the_same(tmp_path: Path) -> None:
    records = evaluate(nn.Linear(4, 3), [(torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))], [Odd()])
    append_records(tmp_path / "records.jsonl", records)
    written = read_records(tmp_path / "records.jsonl")[1].attack_fields
    assert (written["dtype"], written["seen"], written["table"]) == ("torch.float16", "frozenset({1})", {"a": [1, 2]})


@pytest.mark.parametrize("had", [False, True])
def test_an_attack_that_calls_backward_leaves_no_gradient_on_the_model(had: bool) -> None:
    def careless(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        inputs = inputs.requires_grad_()
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        return inputs.clamp(0, 1)

    careless.eps = 1.0  # type: ignore[attr-defined]  # how far it went is looked at, as a number

    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # right of every image, so that all are attacked
    net.weight.grad = torch.ones(3, 4) if had else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(net, [(torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))], [careless])
    assert net.bias.grad is None
    assert (net.weight.grad is None) is not had
    assert net.weight.grad is None or torch.equal(net.weight.grad, torch.ones(3, 4))


def signed_step(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """FGSM as anybody writes it: nothing about modes, and it asks for gradients."""
    inputs = inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels), inputs)
    return (inputs + 0.05 * gradient.sign()).clamp(0, 1).detach()


def in_training_mode(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """What some libraries' attacks do: choose a mode of their own, and leave the model in it."""
    labels.zero_()
    return signed_step(model.train(), inputs, labels)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attack", [signed_step, in_training_mode])
def test_an_attack_of_ones_own_meets_the_model_in_evaluation_mode_and_leaves_no_trace(
    attack: Attack, context: Callable[[], Any]
) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    net = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    inputs = torch.rand(64, 4)
    norm.running_var.fill_(0.02)  # type: ignore[union-attr]  # as little as the hidden values vary
    labels = net.eval()(inputs).argmax(dim=1)
    net.train()
    norm.training = False  # a frozen one
    kept, flags = copy.deepcopy(net.state_dict()), [part.training for part in net.modules()]
    with context():
        theirs, ours = evaluate(net, [(inputs, labels)], [attack, FGSM(0.05)])[1:]
        alone = accuracy(net, [(inputs, labels)], attack)
    assert 0 < ours.robust_accuracy < 1
    if attack is signed_step:
        assert theirs.robust_accuracy == alone == ours.robust_accuracy
    assert labels.any()
    assert [part.training for part in net.modules()] == flags
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


def test_radii_that_are_equal_but_for_rounding_or_type_have_one_worst_case() -> None:
    batches, tensor = [(torch.rand(8, 4), torch.zeros(8, dtype=torch.int64))], torch.tensor(0.1)
    attacks: list[Attack] = [FGSM(0.05), PGD(0.3, 2, 0.1), IFGSM(3 * 0.1, 2)]
    attacks += [FGSM(tensor), FGSM(np.float32(0.1))]  # type: ignore[arg-type]
    records = evaluate(nn.Linear(4, 3), batches, attacks, worst_case=True)
    assert [record.attack for record in records[6:]] == ["WorstCase"] * 2
    taken = [[part["name"] for part in record.attack_fields["attacks"]] for record in records[6:]]
    assert taken == [["PGD", "IFGSM"], ["FGSM", "FGSM"]]


def test_samples_of_images_of_two_shapes_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    batches = [(torch.rand(1, 1, *size), torch.tensor([0])) for size in ((2, 2), (3, 2))]
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    assert len(evaluate(net, batches, [FGSM(0.1)])) == 2
    with pytest.raises(ValueError, match=r"2 shapes \(\[1, 2, 2\], \[1, 3, 2\]\), and samples"):
        evaluate(net, batches, [FGSM(0.1)], samples=tmp_path / "samples")
    assert not (tmp_path / "samples").exists()


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="a CPU with bfloat16")
def test_the_callers_autocast_keeps_no_weights_for_an_evaluation_nor_takes_any_from_it() -> None:
    batches = [(torch.rand(6, 4), torch.zeros(6, dtype=torch.int64))]
    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    with torch.autocast("cpu", torch.float16):
        net(batches[0][0])
        evaluate(net, batches, [PGD(0.1, 40, 0.01)])
        assert net(batches[0][0]).dtype == torch.float16


def test_a_data_set_is_no_batches() -> None:
    with pytest.raises(TypeError, match="batches is an object of type Dataset; give pairs"):
        evaluate(nn.Linear(4, 3), data.load("digits"), [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="split is an object of type Dataset; give the images and labels"):
        data.Batches(data.load("digits"), 8)  # type: ignore[arg-type]


def test_a_logit_that_is_nan_is_right_of_no_image() -> None:
    class Nan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.linear(inputs)
            return torch.where(inputs[:, :1] > 0.5, logits, torch.full_like(logits, torch.nan))

    inputs, labels, net = torch.rand(16, 4), torch.zeros(16, dtype=torch.int64), Nan()
    nn.init.zeros_(net.linear.weight)
    with torch.no_grad():
        net.linear.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    (record,) = evaluate(net, [(inputs, labels)], [])
    assert record.clean_accuracy == float((inputs[:, 0] > 0.5).float().mean())


def test_fields_of_an_attack_are_plain_json() -> None:
    assert fields_of(FGSM(0.1)) == {"eps": 0.1, "loss": "cross_entropy"}
    assert fields_of(Rescue()) == {}

    def bare(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return inputs

    assert fields_of(bare) == {}

    @dataclass(frozen=True)
    class Several:
        attacks: tuple[Attack, ...]

        def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            return inputs

    given: Any = (np.float32(0.5), np.int64(3), torch.tensor(0.25))
    numbers = fields_of(PGD(*given))
    assert [numbers[name] for name in ("eps", "steps", "step_size")] == [0.5, 3, 0.25]
    assert json.loads(json.dumps(numbers)) == numbers
    inner = [{"name": "FGSM", "eps": 0.1, "loss": "cross_entropy"}]
    assert fields_of(Several((FGSM(0.1),))) == {"attacks": inner}


def test_a_place_may_be_given_as_text(tmp_path: Path) -> None:
    samples, unfinished, file = (str(tmp_path / name) for name in ("samples", "unfinished", "new/records.jsonl"))
    records = evaluate(Threshold(), HAND, [FGSM(0.1)], samples=samples, unfinished=unfinished)
    append_records(file, records)
    assert read_records(file) == records
    assert (tmp_path / "samples" / "1-FGSM.safetensors").exists()


def test_records_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    net, batches = trained_batches()
    path = tmp_path / "runs" / "a" / "records.jsonl"  # its folder is made
    records = evaluate(net, batches, [case.build(EPS) for case in ATTACKS], about={"recipe": "größe\u2028 ε"})
    append_records(path, records[:3])
    append_records(path, [])
    append_records(path, records[3:])
    assert read_records(path) == records
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        assert isinstance(json.loads(line)["robust_accuracy"], float)


@given(cut=st.integers(1, 10_000))
def test_a_last_line_that_was_cut_anywhere_is_left_out_and_written_over(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "records.jsonl"
    first, second = a_record(recipe="ε" * 200), a_record(recipe="zweite ε" * 50)
    append_records(path, [first, second])
    whole = path.read_bytes()
    length = len(second.to_json().encode()) + 1
    path.write_bytes(whole[: len(whole) - 2 - cut % (length - 2)])  # ε is two bytes: some cuts split it
    assert read_records(path) == [first]
    append_records(path, [second])
    assert path.read_bytes() == whole


def test_a_record_that_lacks_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first, second = a_record(recipe="first"), a_record(recipe="second")
    path.write_text(first.to_json(), encoding="utf-8")
    append_records(path, [second])
    assert read_records(path) == [first, second]


@pytest.mark.parametrize("content", ["notes", "my\nnotes", "my notes\n", "{}\n", '{"a": 1'])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(ValueError, match="left as it is; give another file"):
        append_records(path, [a_record()])
    assert path.read_text() == content


def test_records_are_appended_by_a_user_without_a_home_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under any number."""

    def unknown(number: int) -> NoReturn:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    append_records(tmp_path / "records.jsonl", [a_record()])
    assert len(read_records(tmp_path / "records.jsonl")) == 1


def test_who_appends_waits_for_another_who_does(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with ThreadPoolExecutor(1) as pool:
        with locked(lock_of(path)):
            waiting = pool.submit(append_records, path, [a_record()])
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            assert not path.exists()
        waiting.result(timeout=10)
    assert len(read_records(path)) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["records.jsonl"]


def test_records_are_appended_without_a_home_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", dict[int, Any]().__getitem__)  # a user that the system does not know
    append_records(tmp_path / "records.jsonl", [])
    assert (tmp_path / "records.jsonl").exists()


def test_a_file_of_nothing_but_a_cut_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"recipe": "\xce')
    assert read_records(path) == []
    append_records(path, [a_record()])
    assert len(read_records(path)) == 1


@pytest.mark.parametrize("line", ["{", "[]", "null", "3", '{"recipe": 1}', "", '{"robust_interval": 3}', "\udcff"])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    text = a_record().to_json() + "\n" + line + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"line 2 of .*records\.jsonl is not a record"):
        read_records(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "records.jsonl")


# The interval.


def test_the_wilson_interval_by_known_values() -> None:
    # Newcombe 1998, Table I, method 3, to its four places
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(trials=st.integers(1, 10_000), share=st.floats(0, 1))
def test_the_wilson_interval_is_scipys(trials: int, share: float) -> None:
    successes = round(share * trials)
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(successes, trials)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= successes / trials <= high <= 1


@pytest.mark.parametrize("trials", [1, 7, 1000, 10_000])
def test_the_wilson_interval_ends_exactly_at_none_and_all(trials: int) -> None:
    assert wilson_interval(0, trials)[0] == 0
    assert wilson_interval(trials, trials)[1] == 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
def test_no_share_has_no_interval(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {trials} is not a share"):
        wilson_interval(successes, trials)


# The fingerprint of the weights.


def test_the_fingerprint_follows_names_types_shapes_and_values_and_nothing_else() -> None:
    net = random_net()
    expected = weights_sha256(net)
    assert re.fullmatch("[0-9a-f]{64}", expected)
    assert weights_sha256(random_net()) == expected
    assert weights_sha256(net.eval().requires_grad_(False)) == expected
    assert weights_sha256(Fabric(accelerator="cpu", devices=1).setup(random_net())) == expected
    assert weights_sha256(random_net().to(memory_format=torch.channels_last)) == expected  # type: ignore[call-overload]
    assert weights_sha256(random_net(seed=1)) != expected
    assert weights_sha256(random_net(dtype=torch.float64)) != expected
    nudged = random_net()
    with torch.no_grad():
        bias = nudged.get_parameter("head.bias")
        bias[0] = torch.nextafter(bias[0], torch.tensor(1.0))
    assert weights_sha256(nudged) != expected
    buffer = random_net()
    buffer.get_buffer("norm.num_batches_tracked").add_(1)
    assert weights_sha256(buffer) != expected
    assert weights_sha256(nn.Sequential(random_net())) != expected


def test_the_fingerprint_tells_types_of_the_same_bytes_apart() -> None:
    def of(dtype: torch.dtype) -> str:
        net = nn.Module()
        net.register_buffer("zero", torch.zeros(2, dtype=dtype))
        return weights_sha256(net)

    assert len({of(dtype) for dtype in (torch.float32, torch.int32, torch.float16, torch.bfloat16)}) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_fingerprint_takes_every_floating_type(dtype: torch.dtype) -> None:
    assert weights_sha256(random_net(dtype=dtype)) == weights_sha256(random_net(dtype=dtype))


class Extra(nn.Linear):
    """A module with a state of its own beside its tensors."""

    def __init__(self, extra: Any) -> None:
        super().__init__(2, 2)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_the_fingerprint_follows_what_is_no_tensor() -> None:
    states: list[Any] = [None, 1, 2, "a", {"a": 1}, {"b": 1}, {"a": [torch.ones(2)]}, {"a": [torch.zeros(2)]}, (1,)]
    found = [weights_sha256(Extra(state)) for state in states]
    assert len(set(found)) == len(states)
    assert found == [weights_sha256(Extra(state)) for state in states]
    net = nn.Sequential(nn.Linear(2, 2), Extra({"a": 1}))
    assert evaluate(net, [(torch.rand(4, 2), torch.zeros(4).long())], [])[0].weights_sha256 == weights_sha256(net)
    with pytest.raises(ValueError, match="the model's state_dict holds _extra_state, an object of type function, by"):
        weights_sha256(Extra(lambda: 1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_fingerprint_takes_quantised_weights() -> None:
    def quantised(seed: int, kind: torch.dtype = torch.qint8, scale: float = 1.0) -> nn.Module:
        torch.manual_seed(seed)
        first = nn.Linear(4, 3)
        with torch.no_grad():
            first.weight.mul_(scale)
        net = nn.Sequential(first, nn.ReLU(), nn.Linear(3, 2))
        pack: Any = torch.ao.quantization.quantize_dynamic
        packed: nn.Module = pack(net, {nn.Linear}, dtype=kind)
        return packed

    with torch.random.fork_rng(devices=[]):
        same = weights_sha256(quantised(0))
        assert weights_sha256(quantised(0)) == same
        others = [quantised(1), quantised(0, scale=2.0), quantised(0, torch.float16)]
        assert len({same, *map(weights_sha256, others)}) == 4


# Progress.


def test_progress_is_told_what_runs_and_how_far_it_is() -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(Threshold(), HAND, [FGSM(0.1)], progress=lambda *step: told.append(step))
    assert told == [("clean", 4, 6), ("clean", 6, 6), ("FGSM", 4, 6), ("FGSM", 6, 6)]


def test_each_record_is_handed_on_as_soon_as_its_attack_is_done() -> None:
    events: list[str] = []
    records = evaluate(
        Threshold(),
        HAND,
        [FGSM(0.1)],
        progress=lambda name, done, total: events.append(f"{name} {done}"),
        on_record=lambda record: events.append(str(record.attack)),
    )
    assert events == ["clean 4", "clean 6", "None", "FGSM 4", "FGSM 6", "FGSM"]
    kept: list[Record] = []
    assert without_time(evaluate(Threshold(), HAND, [FGSM(0.1)], on_record=kept.append)) == without_time(kept)
    assert without_time(kept) == without_time(records)


class Noisy(nn.Module):
    """Adds noise to what it is given, in evaluation mode too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs + 0.3 * torch.randn_like(inputs)).flatten(1)[:, :3]


@pytest.mark.parametrize("model", [Noisy(), Averaged(Noisy(), 4), nn.Flatten()], ids=["noisy", "mean", "fixed"])
def test_a_model_that_answers_differently_each_time_is_told_of(model: nn.Module) -> None:
    batches = [(torch.rand(8, 3), torch.arange(8) % 3)]
    notes: list[str] = []
    evaluate(model, batches, [FGSM(0.1)], on_note=notes.append)
    assert ["answers differently each time" in note for note in notes] == [True] * isinstance(model, Noisy)
