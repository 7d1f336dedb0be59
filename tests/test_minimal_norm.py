"""DeepFool and C&W against true distances, against other libraries, and at the edges of what they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from surefoot.attacks import CarliniWagnerL2, DeepFool
from surefoot.benchmark.step_cost import count_passes
from surefoot.core.geometry import l2_distance
from surefoot.core.gradients import crafting, input_gradient
from surefoot.core.types import Attack
from tests.tables import CLASSES, FOOLBOX_IMPORT, SHAPE, PlainNet, SmallNet, random_batch, random_net, trained

Made = tuple[nn.Module, Tensor, Tensor, Tensor]

DEEPFOOL = DeepFool()
AS_PUBLISHED = DeepFool(shorten=0)
CW = CarliniWagnerL2(steps=150, search_steps=6, initial_c=0.1)
QUICK_CW = CarliniWagnerL2(steps=12, search_steps=3, learning_rate=0.1)

# The ratios to the true distance that are promised on linear models with two classes, and with more: C&W goes for
# the runner-up among the logits, whose boundary need not be the nearest.
RATIOS: list[tuple[Attack, float, float]] = [
    (DEEPFOOL, 1.0225, 1.0225),
    (AS_PUBLISHED, 1.0225, 1.0225),
    (CW, 1.02, 1.1),
]


def linear(classes: int, seed: int = 0, count: int = 6, pixels: int = 24) -> Made:
    """A linear model, images that it gets right, their labels and true l2 distances to the boundary, 0.05 to 0.2.

    Pixels are in [0.25, 0.75], so that [0, 1] is not in the way.
    """
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(pixels, classes, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.randn(classes, pixels, dtype=torch.float64, generator=generator))
        net.bias.copy_(-net.weight.sum(dim=1) / 2)  # the boundaries meet in the middle of the range
        inputs = 0.25 + 0.5 * torch.rand(40 * count, pixels, dtype=torch.float64, generator=generator)
        logits = net(inputs)
        labels = logits.argmax(dim=1)
        slopes = net.weight[labels].unsqueeze(1) - net.weight
        gaps = logits.gather(1, labels.unsqueeze(1)) - logits
        distances = (gaps / slopes.norm(dim=2)).scatter(1, labels.unsqueeze(1), float("inf")).amin(dim=1)
    kept = ((distances >= 0.05) & (distances <= 0.2)).nonzero().squeeze(1)[:count]
    assert len(kept) == count
    return net, inputs[kept], labels[kept], distances[kept]


def assert_near_the_boundary(attack: Attack, made: Made, ratio: float) -> None:
    """Every sample is fooled, at no more than `ratio` times the true distance, and no less than the distance."""
    net, inputs, labels, distances = made
    adv_inputs = attack(net, inputs, labels)
    assert bool((net(adv_inputs).argmax(dim=1) != labels).all())
    found = l2_distance(adv_inputs, inputs) / distances
    assert float(found.min()) >= 1
    assert float(found.max()) <= ratio


# Linear models, where the distance is known.


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize(("attack", "ratio", "ratio_of_many"), RATIOS)
def test_the_distance_of_a_linear_model_is_found(
    attack: Attack, ratio: float, ratio_of_many: float, classes: int
) -> None:
    assert_near_the_boundary(attack, linear(classes), ratio if classes == 2 else ratio_of_many)


class Scaled(nn.Module):
    """A model whose logits are larger or smaller, which moves no boundary."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * self.net(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2, 1e4, 1e5])
def test_c_is_found_whatever_the_scale_of_the_logits(scale: float) -> None:
    net, inputs, labels, distances = linear(2)
    attack = CarliniWagnerL2(steps=150)
    assert_near_the_boundary(attack, (Scaled(net, scale), inputs, labels, distances), 1.05)


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (0.7, [1, 0.5, 0.75, 0.625, 0.6875, 0.71875]),
        (0.2, [1, 0.5, 0.25, 0.125, 0.1875, 0.21875]),
        (30.0, [1, 10, 100, 55, 32.5, 21.25]),
        (1e-3, [1, 0.5, 0.25, 0.125, 0.0125, 0.00125]),
        (0.02, [1, 0.5, 0.25, 0.125, 0.0125, 0.06875]),
    ],
)
def test_the_c_that_are_tried(least: float, expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def descend(
        self: CarliniWagnerL2, model: nn.Module, inputs: Tensor, labels: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        tried.append(round(float(c), 9))
        return inputs, torch.where(c >= least, c, torch.inf)

    monkeypatch.setattr(CarliniWagnerL2, "_descend", descend)
    net, inputs, labels, _ = linear(2, count=1)
    CarliniWagnerL2(search_steps=6)(net, inputs, labels)
    assert tried == expected


def test_deepfool_crosses_a_linear_boundary_in_one_step() -> None:
    net, inputs, labels, distances = linear(5)
    adv_inputs = DeepFool(steps=1, overshoot=0.01, shorten=0)(net, inputs, labels)
    assert bool((net(adv_inputs).argmax(dim=1) != labels).all())
    assert torch.allclose(l2_distance(adv_inputs, inputs), 1.01 * (distances + 1e-4))


def test_deepfool_follows_few_classes_between_wide_looks() -> None:
    net = nn.Linear(5, 10)
    net.bias.data[0] = 1e6  # out of reach, so that every step is made
    inputs, labels = torch.rand(3, 5), torch.zeros(3, dtype=torch.long)
    counted = count_passes(lambda: DeepFool(steps=6)(net, inputs, labels), [net])
    assert counted.crafting_passes == 9 + 4 * 4 + 9
    counted = count_passes(lambda: DeepFool(steps=6, candidates=3)(net, inputs, labels), [net])
    assert counted.crafting_passes == 6 * 2


def test_deepfool_steps_to_the_class_that_has_become_the_nearest() -> None:
    """Class 1 is the nearest of the first linearisation; from its point on class 2 is, and 1 is out of reach."""

    class Bent(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            x, y = inputs.unbind(dim=1)
            first = torch.where(x > 0.65, 1.3 - x, -10 + 0 * x)
            return torch.stack([x, first, 0.5 * y + 0.05], dim=1)

    inputs, labels = torch.tensor([[0.7, 0.1]]), torch.tensor([0])
    adv_inputs = DeepFool(shorten=0)(Bent(), inputs, labels)
    assert int(Bent()(adv_inputs).argmax()) == 2


def test_deepfool_follows_the_classes_that_are_nearest() -> None:
    """Class k is crossed by pixel k alone, where it passes its own threshold; the first step falls short of it."""

    class Concave(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.cat([0 * inputs[:, :1], (inputs / torch.linspace(0.3, 0.8, 9)).log()], dim=1)

    inputs, labels = torch.full((1, 9), 0.15), torch.tensor([0])
    adv_inputs = DeepFool(shorten=0)(Concave(), inputs, labels)
    assert int(Concave()(adv_inputs).argmax()) == 1
    assert torch.equal(adv_inputs[:, 1:], inputs[:, 1:])


def clipped() -> Made:
    """Two classes, half the pixels at the end of their range that the shortest way would leave."""
    pixels = 16
    net = nn.Linear(pixels, 2, dtype=torch.float64)
    slope = torch.where(torch.arange(pixels) < pixels // 2, 1.0, 0.5).double()  # z_0 - z_1
    inputs = torch.where(torch.arange(pixels) < pixels // 2, 0.0, 0.6).double().repeat(3, 1)
    inputs[:, -1] += torch.tensor([0.0, 0.1, 0.2])
    with torch.no_grad():
        net.weight.copy_(torch.stack([slope, -slope]) / 2)
        net.bias.zero_()
        net.bias[0] = 0.5 - inputs[1] @ slope  # the middle one has a gap of 0.5
    gaps = inputs @ slope + net.bias[0].detach()
    # Only the free pixels can move: the distance in their subspace.
    return net, inputs, torch.zeros(3).long(), gaps / slope[pixels // 2 :].norm()


@pytest.mark.parametrize(("attack", "ratio"), [row[:2] for row in RATIOS])
def test_the_distance_is_found_where_clipping_binds(attack: Attack, ratio: float) -> None:
    assert_near_the_boundary(attack, clipped(), ratio)


@given(seed=st.integers(0, 2**16), classes=st.integers(2, 6))
def test_the_distance_is_found_for_any_linear_model(seed: int, classes: int) -> None:
    made = linear(classes, seed, count=3)
    assert_near_the_boundary(DEEPFOOL, made, 1.0225)
    assert_near_the_boundary(AS_PUBLISHED, made, 1.0225)


# Planted faults, which the ratio must find.


@dataclass(frozen=True)
class Farthest:
    """DeepFool's step to the farthest class."""

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with crafting(model) as frozen:
            steps = []
            for shift in range(1, int(frozen(inputs).shape[1])):
                gap: Callable[[Tensor], Tensor] = lambda z, s=shift: (  # type: ignore[misc] # noqa: E731
                    z.gather(1, labels[:, None]) - z.gather(1, (labels[:, None] + s) % z.shape[1])
                )[:, 0]
                slope, logits = input_gradient(frozen, inputs, gap)
                steps.append(-1.02 * gap(logits)[:, None] * slope / slope.square().sum(1, keepdim=True))
            lengths = torch.stack([move.norm(dim=1) for move in steps], dim=1)
            moves = torch.stack(steps, dim=1)
            return (inputs + moves[torch.arange(len(inputs)), lengths.argmax(dim=1)]).clamp(0, 1)


PLANTED: list[tuple[str, Attack, float]] = [
    ("the farthest class", Farthest(), 1.0225),
    ("a large overshoot", DeepFool(overshoot=0.1, shorten=0), 1.0225),
    ("only the runner-up", DeepFool(candidates=2), 1.0225),
    ("no search for c, too small", replace(CW, search_steps=1, initial_c=1e-4), 1.1),
    ("no search for c, too large", replace(CW, search_steps=1, initial_c=1e3), 1.1),
    ("a confidence", replace(CW, confidence=1.0), 1.1),
]


@pytest.mark.parametrize(("attack", "ratio"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_planted_fault_misses_the_ratio(attack: Attack, ratio: float) -> None:
    with pytest.raises(AssertionError):
        assert_near_the_boundary(attack, linear(12), ratio)


# Other libraries.


def peers(net: nn.Module, kind: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The same attack of the libraries that are installed, each as `(inputs, labels) -> adversarial inputs`."""
    foolbox: Any = pytest.importorskip("foolbox")
    torchattacks: Any = pytest.importorskip("torchattacks")
    evasion: Any = pytest.importorskip("art.attacks.evasion")
    estimators: Any = pytest.importorskip("art.estimators.classification")
    box = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    classifier = estimators.PyTorchClassifier(
        model=net,
        loss=nn.CrossEntropyLoss(),
        input_shape=SHAPE,
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    if kind == "DeepFool":
        of_foolbox = foolbox.attacks.L2DeepFoolAttack(steps=50, overshoot=0.02)
        of_torchattacks = torchattacks.DeepFool(net, steps=50, overshoot=0.02)
        of_art = evasion.DeepFool(classifier, max_iter=50, epsilon=0.02, batch_size=64, verbose=False)
    else:
        of_foolbox = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=4, steps=40, stepsize=0.05, initial_const=1.0
        )
        of_torchattacks = torchattacks.CW(net, c=10, steps=160, lr=0.05)
        of_art = evasion.CarliniL2Method(
            classifier,
            learning_rate=0.05,
            binary_search_steps=3,
            max_iter=8,
            initial_const=1.0,
            batch_size=64,
            verbose=False,
        )
    one_hot = torch.eye(CLASSES)
    return {
        "foolbox": lambda inputs, labels: of_foolbox.run(box, inputs, labels),
        "torchattacks": lambda inputs, labels: of_torchattacks(inputs, labels),
        "art": lambda inputs, labels: torch.from_numpy(of_art.generate(inputs.numpy(), one_hot[labels].numpy())),
    }


def assert_no_weaker(net: nn.Module, inputs: Tensor, labels: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Ours fools as many of the samples that were right, and those that both fool at no larger mean l2."""
    with torch.no_grad():
        right = net(inputs).argmax(dim=1) == labels
        fooled, peer_fooled = (right & (net(images).argmax(dim=1) != labels) for images in (ours, theirs))
    both = fooled & peer_fooled
    assert int(fooled.sum()) >= int(peer_fooled.sum()) > 10
    assert float(l2_distance(ours, inputs)[both].mean()) <= float(l2_distance(theirs, inputs)[both].mean())


@pytest.mark.filterwarnings(FOOLBOX_IMPORT)
@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        ("DeepFool", DEEPFOOL),
        ("C&W", CarliniWagnerL2(steps=40, search_steps=4, learning_rate=0.05)),
    ],
)
def test_no_library_needs_less(kind: str, ours: Attack) -> None:
    net, inputs, labels = trained()
    inputs, labels = inputs[:24], labels[:24]
    adv_inputs = ours(net, inputs, labels)
    for attack in peers(net, kind).values():
        theirs = attack(inputs.clone(), labels.clone())
        assert_no_weaker(net, inputs, labels, adv_inputs, theirs)
        longer = (theirs + 0.05 * (theirs - inputs)).clamp(0, 1)
        with pytest.raises(AssertionError):  # a twentieth longer is found out
            assert_no_weaker(net, inputs, labels, longer, theirs)


# What they promise beside the distance.


def leaves_alone(attack: Attack, inputs: Tensor, labels: Tensor, net: nn.Module) -> None:
    with torch.no_grad():
        wrong = net(inputs).argmax(dim=1) != labels
    assert 0 < int(wrong.sum()) < len(wrong)
    adv_inputs = attack(net, inputs, labels)
    assert torch.equal(adv_inputs[wrong], inputs[wrong])
    assert bool((l2_distance(adv_inputs, inputs)[~wrong] > 0).any())


@pytest.mark.parametrize("attack", [DEEPFOOL, AS_PUBLISHED, QUICK_CW])
def test_what_is_misclassified_already_comes_back_unchanged(attack: Attack) -> None:
    net, inputs, labels = trained()
    leaves_alone(attack, inputs[:9], (labels[:9] + (torch.arange(9) % 2)) % CLASSES, net)


@pytest.mark.parametrize("attack", [DEEPFOOL, CarliniWagnerL2(steps=40, search_steps=2, learning_rate=0.1)])
def test_leaving_the_batch_early_changes_nothing(attack: Attack) -> None:
    net, inputs, labels = trained()
    net, inputs, labels = net.double(), inputs[:8].double(), labels[:8]
    sizes: list[int] = []
    handle = net.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    together = attack(net, inputs, labels)
    handle.remove()
    alone = torch.cat([attack(net, inputs[i : i + 1], labels[i : i + 1]) for i in range(len(inputs))])
    assert min(sizes) < len(inputs)  # some did leave
    assert float((together - alone).abs().max()) <= 1e-12
    assert bool((net(together).argmax(dim=1) != labels).all())


def test_aborting_early_saves_passes_and_costs_little() -> None:
    net, inputs, labels = trained()
    inputs, labels = inputs[:4], labels[:4]
    seen: list[int] = []
    net.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    lengths, passes = [], []
    for abort_early in (True, False):
        seen.clear()
        attack = CarliniWagnerL2(steps=100, search_steps=3, learning_rate=0.1, abort_early=abort_early)
        lengths.append(float(l2_distance(attack(net, inputs, labels), inputs).mean()))
        passes.append(sum(seen))
    assert passes[1] == 4 + 4 * 3 * 100
    assert passes[0] < 0.8 * passes[1]
    assert lengths[1] <= lengths[0] <= 1.02 * lengths[1]


def test_a_targeted_attack_reaches_its_class() -> None:
    net, inputs, labels = trained()
    inputs, labels = inputs[:9], labels[:9]
    attack = CarliniWagnerL2(steps=60, search_steps=5, learning_rate=0.1, targeted=True)
    with torch.no_grad():
        predicted = net(inputs).argmax(dim=1)
    targets = (predicted + 1) % CLASSES
    targets[0] = predicted[0]
    adv_inputs = attack(net, inputs, targets)
    with torch.no_grad():
        assert torch.equal(net(adv_inputs).argmax(dim=1), targets)
    assert torch.equal(adv_inputs[0], inputs[0])  # it is there already
    assert bool((l2_distance(adv_inputs, inputs)[1:] > 0).all())


def test_a_confidence_is_reached() -> None:
    net, inputs, labels = trained()
    inputs, labels = inputs[:6], labels[:6]
    attack = CarliniWagnerL2(confidence=1.0, steps=60, search_steps=5, learning_rate=0.1)
    with torch.no_grad():
        logits = net(attack(net, inputs, labels))
    true = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf")).amax(dim=1)
    assert float((others - true).min()) >= 1 - 1e-4


def unreachable() -> nn.Module:
    """Its gradient leads nowhere: class 0 wins by a constant that no image can make up for."""
    net = nn.Linear(8, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0] * 8, [0.0] * 8]) / 8)
        net.bias.copy_(torch.tensor([5.0, 0.0]))
    return net


def test_what_never_succeeds_comes_back_as_documented() -> None:
    net, inputs, labels = unreachable(), torch.full((2, 8), 0.5), torch.zeros(2).long()
    adv_inputs = DEEPFOOL(net, inputs, labels)
    assert float(adv_inputs.max()) < 0.5  # the last iterate: it went down all the way
    assert torch.equal(QUICK_CW(net, inputs, labels), inputs)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images_are_fooled(value: float) -> None:
    net, _, _ = trained()
    inputs = torch.full((2, *SHAPE), value)
    with torch.no_grad():
        labels = net(inputs).argmax(dim=1)
    for attack in (DEEPFOOL, CarliniWagnerL2(steps=100, search_steps=5, learning_rate=0.1)):
        adv_inputs = attack(net, inputs, labels)
        with torch.no_grad():
            assert bool((net(adv_inputs).argmax(dim=1) != labels).all())


class Dead(SmallNet):
    """Constant logits with a gradient of exactly zero."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 0 * super().forward(inputs) + torch.tensor([1.0, 0.0, 0.5])


@given(
    count=st.integers(1, 4),
    channels=st.integers(1, 3),
    size=st.integers(2, 7),
    classes=st.integers(2, 5),
    candidates=st.integers(2, 12),
    label=st.integers(0, 1),
    value=st.sampled_from([None, 0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_every_shape_is_taken(
    count: int, channels: int, size: int, classes: int, candidates: int, label: int, value: float | None, seed: int
) -> None:
    inputs, _ = random_batch(count, (channels, size, size), seed)
    inputs = inputs if value is None else torch.full_like(inputs, value)
    labels = torch.full((count,), label)
    net = random_net(lambda: PlainNet(channels, classes), seed)
    for attack in (DeepFool(steps=20, candidates=candidates), QUICK_CW):
        adv_inputs = attack(net, inputs, labels)
        assert adv_inputs.shape == inputs.shape
        assert bool(((adv_inputs >= 0) & (adv_inputs <= 1)).all())  # nan is neither


@pytest.mark.parametrize("attack", [DEEPFOOL, QUICK_CW])
def test_a_model_of_zero_gradient_changes_nothing(attack: Attack) -> None:
    inputs, _ = random_batch()
    adv_inputs = attack(random_net(Dead), inputs, torch.zeros(len(inputs)).long())
    assert float((adv_inputs - inputs).abs().max()) <= 1e-6


# Refusals.

BAD_FIELDS: list[tuple[Callable[[], object], str]] = [
    (lambda: DeepFool(steps=0), "steps is 0; it must be a whole number of at least 1"),
    (lambda: DeepFool(overshoot=-0.1), "overshoot is -0.1; it must be in"),
    (lambda: DeepFool(overshoot=float("nan")), "overshoot is nan"),
    (lambda: DeepFool(candidates=1), "candidates is 1; it counts the true class too"),
    (lambda: DeepFool(candidates=2.5), "candidates is 2.5"),  # type: ignore[arg-type]
    (lambda: DeepFool(shorten=-1), "shorten is -1"),
    (lambda: CarliniWagnerL2(confidence=-1.0), "confidence is -1.0; it must be a finite number of at least 0"),
    (lambda: CarliniWagnerL2(confidence=float("inf")), "confidence is inf"),
    (lambda: CarliniWagnerL2(learning_rate=0.0), "learning_rate is 0.0; it must be a finite number above 0"),
    (lambda: CarliniWagnerL2(learning_rate=float("nan")), "learning_rate is nan"),
    (lambda: CarliniWagnerL2(steps=0), "steps is 0"),
    (lambda: CarliniWagnerL2(search_steps=0), "search_steps is 0"),
    (lambda: CarliniWagnerL2(initial_c=0.0), "initial_c is 0.0; it must be above 0"),
    (lambda: CarliniWagnerL2(initial_c=1e11), "at most 1e+10"),
]


def test_a_slope_too_small_to_divide_by_leaves_finite_images() -> None:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2e-38, 0.0], [0.0, 0.0]]))  # 10 / 2e-38 is infinite in float32
        net.bias.copy_(torch.tensor([10.0, 0.0]))
    assert DeepFool(steps=2)(net, torch.full((1, 2), 0.5), torch.tensor([0])).isfinite().all()


@pytest.mark.parametrize(("build", "message"), BAD_FIELDS)
def test_a_bad_field_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        build()


@pytest.mark.parametrize("attack", [DEEPFOOL, QUICK_CW])
def test_a_model_without_gradient_or_with_one_logit_is_refused(attack: Attack) -> None:
    inputs, labels = random_batch(2)
    detached = random_net(PlainNet)
    detached.register_forward_pre_hook(lambda _, args: (args[0].detach(),))
    with torch.no_grad():
        predicted = random_net(PlainNet)(inputs).argmax(dim=1)
    with pytest.raises(ValueError, match="no gradient"):
        attack(detached, inputs, predicted)
    with pytest.raises(ValueError, match="one logit"):
        attack(random_net(lambda: PlainNet(classes=1)), inputs, torch.zeros_like(labels))


def test_deepfool_on_a_network_in_bfloat16_gets_as_far_as_in_float32() -> None:
    """Steps smaller than a unit of bfloat16 were lost, and many more did not help."""
    net, inputs, labels = trained()
    half, images = net.to(torch.bfloat16), inputs.to(torch.bfloat16)
    adv_inputs = DEEPFOOL(half, images, labels)
    assert adv_inputs.dtype == torch.bfloat16
    with torch.no_grad():
        assert (half.eval()(adv_inputs).argmax(dim=1) != labels).all()
