"""Unusual models: recognised, said, wrapped where a wrapper can, refused where not; ordinary ones untouched."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _global_forward_hooks

from surefoot.attacks import FGSM, PGD
from surefoot.core.gradients import input_gradient
from surefoot.core.losses import cross_entropy
from surefoot.core.types import Attack
from surefoot.data import load
from surefoot.evaluation import accuracy, evaluate, recognise
from surefoot.evaluation.identity import weights_sha256
from surefoot.evaluation.recognise import ANY_RANGE, CHANNEL_RANGES, check_repeats, clearly_better, differ
from surefoot.models import Averaged, FromProbabilities, LogitsOnly, Normalize, TwoLogits, build_model, inner_model
from tests.tables import random_net

EPS = 0.1
COUNT = 300
ATTACKS: list[Attack] = [FGSM(EPS), PGD(EPS, 3, EPS / 2, random_start=False)]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All training digits, in float64."""
    split = load("digits").train
    return split.images.double() / 255, split.labels.clone()


def batch(count: int = COUNT) -> tuple[Tensor, Tensor]:
    inputs, labels = digits()
    return inputs[:count], labels[:count]


def train(net: nn.Module, inputs: Tensor, labels: Tensor, steps: int, eps: float = 0.0) -> nn.Module:
    """Gradient descent on all images, by hand; adversarial with an eps."""
    parameters = list(net.parameters())
    for _ in range(steps):
        shown = FGSM(eps)(net, inputs, labels) if eps else inputs
        gradients = torch.autograd.grad(F.cross_entropy(net(shown), labels), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(0.5 * gradient)
    return net.eval()


def hidden_layer(seed: int = 0, classes: int = 10, pixels: int = 64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 48), nn.Tanh(), nn.Linear(48, classes)).double()


@cache
def good_net() -> nn.Module:
    """Right on nearly all digits; not to be changed."""
    return train(hidden_layer(), *digits(), steps=150)


@cache
def binary_net() -> nn.Module:
    """One logit: is the digit 5 or above?"""
    inputs, labels = digits()
    two = train(hidden_layer(classes=2), inputs, (labels >= 5).long(), steps=150)
    one = hidden_layer(classes=1)
    with torch.no_grad():
        for index in (1, 3):
            weight, bias = two[index].weight, two[index].bias  # type: ignore[index]
            one[index].weight.copy_(weight if index == 1 else weight[1:] - weight[:1])  # type: ignore[index]
            one[index].bias.copy_(bias if index == 1 else bias[1:] - bias[:1])  # type: ignore[index]
    return one.eval()


class After(nn.Module):
    """A model whose answer is a function of another's, and of the inputs."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any], net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = good_net() if net is None else net
        self.function = function

    def forward(self, inputs: Tensor) -> Any:
        return self.function(self.net(inputs), inputs)


class Before(nn.Module):
    """A model that first does something to its inputs."""

    def __init__(self, function: Callable[[Tensor], Tensor], net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = good_net() if net is None else net
        self.function = function

    def forward(self, inputs: Tensor) -> Any:
        return self.net(self.function(inputs))


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


def inside(model: nn.Module) -> list[str]:
    """The wrappers around a model, from the outside in."""
    names = []
    while isinstance(model, LogitsOnly | FromProbabilities | TwoLogits | Averaged):
        names.append(type(model).__name__)
        model = model.model
    return names


# Outputs that hold the logits somewhere.

HOLDERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda z, x: {"features": x.flatten(1), "logits": z},
    "dict, output": lambda z, x: {"features": x.flatten(1), "output": z},
    "dict, out": lambda z, x: OrderedDict(out=z, aux=z + 1),
    "dict, any name": lambda z, x: {"scores": z, "images": x, "loss": z.sum(), "ids": z.argmax(1)},
    "tuple": lambda z, x: (z, x.flatten(1)),
    "list": lambda z, x: [z],
    "loss first": lambda z, x: (z.logsumexp(1), x, z),
    "namedtuple": lambda z, x: Named(x.flatten(1), z),
    "object": lambda z, x: SimpleNamespace(features=x, logits=z),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_logits_are_taken_out_of_what_holds_them(holder: Callable[[Tensor, Tensor], Any]) -> None:
    inputs, labels = batch()
    found, said = recognise(After(holder), inputs, labels)
    assert inside(found) == ["LogitsOnly"]
    assert len(said) == 1
    assert said[0].startswith("The model returns a")
    for model in (found, LogitsOnly(After(holder))):
        assert torch.equal(model(inputs), good_net()(inputs))
        assert torch.equal(model(inputs[:1]), good_net()(inputs[:1]))
        for attack in ATTACKS:
            assert torch.equal(attack(model, inputs, labels), attack(good_net(), inputs, labels))


UNFIT: list[tuple[str, Callable[[Tensor, Tensor], Any], str]] = [
    ("two to choose from", lambda z, x: {"a": z, "b": -z}, "'a' and 'b' may each be the logits; say which"),
    ("nothing that fits", lambda z, x: {"loss": z.sum(), "images": x}, "nothing in it is floating logits [300,"),
    ("an empty tuple", lambda z, x: (), "returns a tuple of nothing"),
    ("predicted classes in a tuple", lambda z, x: (z.argmax(1),), "nothing in it is floating logits"),
    ("predicted classes", lambda z, x: z.argmax(1), "returns a tensor [300] of int64"),
    ("None", lambda z, x: None, "an object of type NoneType"),
    ("maps", lambda z, x: z[:, :, None, None], "returns a tensor [300, 10, 1, 1] of float64"),
    ("a named entry that does not fit", lambda z, x: {"logits": z.t(), "other": z}, "in 'logits' a tensor [10, 300]"),
    ("no batch", lambda z, x: z.sum(0), "returns a tensor [10] of float64"),
    ("features first", lambda z, x: (x.flatten(1), z), "LogitsOnly(model, entry=1)"),
    ("nan", lambda z, x: torch.where(x.sum((1, 2, 3)).argsort().argsort()[:, None] < 7, torch.nan, z), "7 of 300"),
    ("infinite", lambda z, x: z / (x[:, :1, 2, 3] > 0.5), "NaN or infinite for"),
]


@pytest.mark.parametrize(("function", "message"), [row[1:] for row in UNFIT], ids=[row[0] for row in UNFIT])
def test_an_output_that_cannot_be_used_is_refused(function: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        recognise(After(function), *batch())


def test_an_entry_can_be_named() -> None:
    inputs, labels = batch()
    both = After(lambda z, x: {"a": -z, "b": z})
    assert torch.equal(LogitsOnly(both, "b")(inputs), good_net()(inputs))
    model = LogitsOnly(both, "b").eval()
    found, said = recognise(model, inputs, labels)
    assert found is model
    assert said == []
    for entry in ("c", 0):
        with pytest.raises(ValueError, match=f"has no entry {entry!r}"):
            LogitsOnly(both, entry)(inputs)
    with pytest.raises(ValueError, match="has no entry 'logits'"):
        LogitsOnly(After(lambda z, x: (z,)), "logits")(inputs)


# Probabilities.


def test_probabilities_are_recognised_and_their_logits_attacked() -> None:
    inputs, labels = batch()
    softmax = After(lambda z, x: z.softmax(1))
    found, said = recognise(softmax, inputs, labels)
    assert inside(found) == ["FromProbabilities"]
    assert "answers with probabilities" in said[0]
    assert torch.allclose(found(inputs), good_net()(inputs).log_softmax(1))
    for attack in ATTACKS:
        assert torch.equal(attack(found, inputs, labels), attack(good_net(), inputs, labels))
    improbable = (labels + 1) % 10  # as near the end of an attack: there the gradient of p itself vanishes
    right, wrong = (
        input_gradient(model, inputs, lambda z: cross_entropy(z, improbable))[0].abs().median()
        for model in (found, softmax)
    )
    assert float(right / wrong) > 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_in_half_precision_and_in_a_dict_are_recognised(dtype: torch.dtype) -> None:
    rounded = After(lambda z, x: {"logits": z.softmax(1).to(dtype).double()})
    assert inside(recognise(rounded, *batch())[0]) == ["FromProbabilities", "LogitsOnly"]


def test_sigmoids_are_recognised() -> None:
    inputs, labels = batch()
    found, said = recognise(After(lambda z, x: z.sigmoid()), inputs, labels)
    assert inside(found) == ["FromProbabilities"]
    assert "probability of its own" in said[0]
    assert torch.allclose(found(inputs), good_net()(inputs))
    assert torch.equal(FGSM(EPS)(found, inputs, labels), FGSM(EPS)(good_net(), inputs, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_saturated_probabilities_have_finite_logits_and_gradients(
    dtype: torch.dtype, per_class: bool, label: int
) -> None:
    scores = torch.tensor([[0.0, 1, 1e4], [-1e4, 0, 20], [0, 0, 100], [0, -95, -100]], dtype=dtype)
    model = FromProbabilities(nn.Sigmoid() if per_class else nn.Softmax(dim=1), per_class=per_class)
    labels = torch.full((len(scores),), label)
    gradient, logits = input_gradient(model, scores, lambda z: cross_entropy(z, labels))
    assert bool(logits.isfinite().all())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("shape", ["[batch, 1]", "[batch]", "squeezed"])
@pytest.mark.parametrize("probability", [False, True])
def test_one_output_serves_two_classes(shape: str, probability: bool) -> None:
    inputs, labels = batch()
    labels = (labels >= 5).long()

    def function(z: Tensor, x: Tensor) -> Tensor:
        z = z.sigmoid() if probability else z
        return z if shape == "[batch, 1]" else z.squeeze(1) if shape == "[batch]" else z.squeeze()

    found, said = recognise(After(function, binary_net()), inputs, labels)
    assert inside(found) == ["TwoLogits", "FromProbabilities"][: 1 + probability]
    assert len(said) == 1 + probability
    assert "[0, z]" in said[-1]
    logit = binary_net()(inputs)
    assert torch.allclose(found(inputs), torch.cat([torch.zeros_like(logit), logit], 1))
    assert float((found(inputs).argmax(1) == labels).double().mean()) > 0.8
    assert found(inputs[:1]).shape == (1, 2)

    def from_zero(z: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z[:, 0], labels.double(), reduction="none")

    gradient, _ = input_gradient(binary_net(), inputs, from_zero)
    assert torch.equal(FGSM(EPS)(found, inputs, labels), (inputs + EPS * gradient.sign()).clamp(0, 1))


def test_one_output_in_a_tiny_batch_is_not_guessed_at() -> None:
    inputs, labels = batch(8)
    with pytest.raises(ValueError, match="whether it is a probability or a logit; recognise it by 16 images"):
        recognise(After(lambda z, x: z.sigmoid(), binary_net()), inputs, labels * 0)


@pytest.mark.parametrize(
    ("function", "classes"), [(lambda z, x: z[:, :5], 5), (lambda z, x: z[:, 0], 2), (lambda z, x: z[:, :1], 2)]
)
def test_a_label_without_an_output_is_refused(function: Callable[[Tensor, Tensor], Tensor], classes: int) -> None:
    with pytest.raises(ValueError, match=f"a label is 9, but the model has {classes} classes"):
        recognise(After(function), *batch())


# Answers that change.


def noisy(inputs: Tensor) -> Tensor:
    return inputs + 0.3 * torch.randn_like(inputs)


def resized(inputs: Tensor) -> Tensor:
    """One size for the whole batch."""
    size = int(torch.randint(4, 8, ()))
    return F.interpolate(F.interpolate(inputs, size=(size, size)), size=(8, 8))


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "noise": lambda: Before(noisy),
    "dropout that stays on": lambda: Before(lambda x: F.dropout(x, 0.3, training=True)),
    "a size for the batch": lambda: Before(resized),
    "in a tuple, as probabilities": lambda: After(lambda z, x: (z.softmax(1),), Before(noisy)),
}


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_a_model_that_answers_randomly_is_refused_or_averaged(make: Callable[[], nn.Module]) -> None:
    inputs, labels = batch()
    with pytest.raises(ValueError, match=r"\d\.\d% of its 300 predictions change; pass --draws 16") as refusal:
        recognise(make(), inputs, labels)
    assert float(str(re.findall(r"([\d.]+)%", str(refusal.value))[0])) > 1
    found, said = recognise(make(), inputs, labels, draws=16)
    assert inside(found)[0] == "Averaged"
    assert "mean of 16 answers" in said[-1]
    torch.manual_seed(0)
    assert bool((FGSM(EPS)(found, inputs, labels) != inputs).any())


def test_a_model_is_looked_at_in_float32_proper() -> None:
    """As on a GPU whose TF32, which PyTorch lets convolutions use, rounds one image and a batch differently."""

    def rounded(logits: Tensor, inputs: Tensor) -> Tensor:
        coarse = torch.backends.cudnn.allow_tf32 or torch.is_autocast_enabled("cpu")
        return logits + (10 if coarse and len(inputs) == 1 else 0)

    model, (inputs, labels) = After(rounded), batch()
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        assert recognise(model, inputs, labels) == (model, [])
    assert torch.backends.cudnn.allow_tf32 == before


def test_draws_come_in_the_order_of_the_calls_and_are_averaged() -> None:
    inputs, labels = batch(20)
    model = Before(noisy)
    torch.manual_seed(0)
    one_by_one = torch.stack([model(inputs) for _ in range(5)])
    torch.manual_seed(0)
    assert torch.allclose(Averaged(model, 5)(inputs), one_by_one.mean(0))
    assert torch.equal(FGSM(EPS)(Averaged(good_net(), 4), inputs, labels), FGSM(EPS)(good_net(), inputs, labels))


def test_more_draws_point_nearer_to_the_expected_gradient() -> None:
    inputs, labels = batch(50)

    def gradient(draws: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = Averaged(Before(noisy), draws)
        return input_gradient(model, inputs, lambda z: cross_entropy(z, labels))[0].flatten(1)

    expected = gradient(200, seed=1)
    near = [float(F.cosine_similarity(gradient(draws, seed=0), expected).mean()) for draws in (1, 4, 16)]
    assert near == sorted(near)
    assert near[2] > near[0] + 0.1


def test_a_generator_that_the_seed_does_not_reach_is_told_of() -> None:
    inputs, labels = batch()
    own = torch.Generator().manual_seed(0)
    model = Before(lambda x: x + 0.3 * torch.randn(x.shape, generator=own, dtype=x.dtype))
    with pytest.raises(ValueError, match="under the same seed too"):
        recognise(model, inputs, labels)
    assert inside(recognise(model, inputs, labels, draws=2)[0]) == ["Averaged"]


def test_draws_for_a_steady_model_cost_nothing() -> None:
    found, said = recognise(good_net(), *batch(), draws=8)
    assert found is good_net()
    assert len(said) == 1
    assert "draws, 8, is not needed" in said[0]


@pytest.mark.parametrize("draws", [0, -1, 2.5, True])
def test_bad_draws_are_refused(draws: Any) -> None:
    message = f"draws is {draws!r}; it must be a whole number of at least 1"
    with pytest.raises(ValueError, match=re.escape(message)):
        Averaged(good_net(), draws)
    with pytest.raises(ValueError, match=re.escape(message)):
        recognise(good_net(), *batch(), draws=draws)


# Neighbours.


def seeded_noise(inputs: Tensor) -> Tensor:
    """Steady from call to call, but another noise at each place of the batch."""
    torch.manual_seed(0)
    return noisy(inputs)


def without_batch_of_one(logits: Tensor, inputs: Tensor) -> Tensor:
    if len(inputs) == 1:
        raise RuntimeError("cannot squeeze")
    return logits


NEIGHBOURS: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("batch-norm in training mode", lambda: After(lambda z, x: F.batch_norm(z, None, None, training=True)), "replaced"),
    ("the batch's mean", lambda: Before(lambda x: x - 0.1 * x.mean(0)), "other images of its batch are replaced"),
    ("random too", lambda: Before(lambda x: noisy(x) - 0.5 * x.mean(0)), "other images of its batch are replaced"),
    ("noise by place", lambda: Before(seeded_noise), "when it is alone in its batch"),
    (
        "a squeezed batch of one",
        lambda: After(lambda z, x: z.squeeze()),
        "returns a tensor [10] of float64 for a batch",
    ),
    ("no batch of one", lambda: After(without_batch_of_one), "fails on a batch of one image (RuntimeError: cannot"),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in NEIGHBOURS], ids=[row[0] for row in NEIGHBOURS])
def test_a_model_that_looks_at_the_neighbours_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        recognise(make(), *batch(), draws=2)


def with_masked(value: float, count: int, net: nn.Module) -> nn.Module:
    """A model with classes that it never gives, all of one logit."""
    return After(lambda z, x: torch.cat([z, torch.full_like(z[:, :1], value).expand(-1, count)], dim=1), net)


HUGE = [-1e4, -1e5, -1e9, -3e38, 1e9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 90])
@pytest.mark.parametrize("value", HUGE)
def test_a_huge_logit_hides_no_noise_and_no_neighbours(value: float, count: int, dtype: torch.dtype) -> None:
    inputs, labels = batch()
    net = deepcopy(good_net()).to(dtype)
    with pytest.raises(ValueError, match="answers differently each time"):
        recognise(with_masked(value, count, Before(noisy, net)), inputs.to(dtype), labels)
    batch_norm = nn.BatchNorm2d(1, track_running_stats=False, dtype=dtype)
    with pytest.raises(ValueError, match="when the other images of its batch are replaced"):
        recognise(with_masked(value, count, Before(batch_norm, net)), inputs.to(dtype), labels)
    by_place = with_masked(value, count, Before(seeded_noise, net))
    with pytest.raises(ValueError, match="when it is alone in its batch"):
        recognise(by_place, inputs.to(dtype), labels)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_what_differs(classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(50, classes, generator=generator)
    masked = torch.cat([logits, torch.full((50, 1), -1e9)], dim=1)
    for first in (logits, logits + 1000 * scale, masked):
        free = torch.zeros_like(first)
        free[:, :classes] = 1
        assert not differ(first, first.clone())
        moved = scale * torch.randn(first.shape, generator=generator) * free
        assert not differ(first, first + moved * 1e-5)
        assert not differ(first, first * (1 + 3e-7))
        assert differ(first, first + moved * 0.03)
        assert not differ(first, first + moved * 0.003, rounding=0.05)
        one = torch.zeros_like(first)
        one[7, 0] = 0.1 * scale
        assert differ(first, first + one)
    assert differ(logits, torch.full_like(logits, torch.nan))
    large = logits * torch.where(torch.arange(classes) == 1, 1e6, 1.0)  # a logit is judged by its own size too
    assert not differ(large, large * (1 + 1e-4))


def test_an_infinite_logit_differs_from_all_but_itself() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0, -torch.inf], [3.0, 1.0, 2.0, -torch.inf]])
    assert not differ(logits, logits.clone())
    assert differ(logits, logits + torch.tensor([0.1, 0, 0, 0]))
    assert differ(logits, logits.clamp(min=-9))
    assert differ(logits, logits.abs())


def test_rows_without_a_spread_do_not_make_rounding_a_difference() -> None:
    logits = torch.cat([torch.zeros(5, 3), torch.tensor([[1.0, 2.0, 6.0]])])
    assert not differ(logits, logits + 5e-4)
    assert differ(logits, logits + 0.1)


# Writing to the images.


def in_place(inputs: Tensor) -> Tensor:
    inputs -= 0.5
    return inputs


def in_place_of_a_view(inputs: Tensor) -> Tensor:
    return inputs.view(-1).mul_(0.5).view_as(inputs)


@pytest.mark.parametrize("function", [in_place, in_place_of_a_view])
@pytest.mark.parametrize("draws", [None, 4])
def test_a_model_that_writes_to_the_images_is_refused_and_they_stay(
    function: Callable[[Tensor], Tensor], draws: int | None
) -> None:
    inputs, labels = batch()
    before = inputs.clone()
    model = Before(function)
    for call in (
        lambda: recognise(model, inputs, labels, draws=draws),
        lambda: evaluate(model, [(inputs, labels)], [FGSM(EPS)]),
    ):
        with pytest.raises(
            ValueError, match=re.escape("changes the images that it is given (for example by x -= mean")
        ):
            call()
        assert torch.equal(inputs, before)
    if draws is None:
        with pytest.raises(ValueError, match="changes the images"):
            check_repeats(model, inputs, None, [])
        accuracy(model, [(inputs, labels)])
        assert torch.equal(inputs, before)


# Another range.


@cache
def sharp_net() -> nn.Module:
    """Right on nearly all digits, but tells dark from bright at 0.35 first: another range is lost on it."""
    inputs, labels = digits()
    return Before(sharpened, train(hidden_layer(), sharpened(inputs), labels, steps=150))


def sharpened(inputs: Tensor) -> Tensor:
    return (40 * (inputs - 0.35)).sigmoid()


def made_for(name: str) -> nn.Module:
    """The sharp net, but for pixels from which a mean has been subtracted and which have been divided by a std."""
    mean, std = (ANY_RANGE | CHANNEL_RANGES[1] | CHANNEL_RANGES[3])[name]
    undo = Normalize([-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std]).double()
    return Before(lambda x: undo(x).mean(1, keepdim=True), sharp_net())


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("[0, 255]", "--mean 0 --std 0.00392157 "),
        ("[-1, 1]", "--mean 0.5 --std 0.5 "),
        ("ImageNet's mean and std", "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 "),
    ],
)
def test_a_model_for_another_range_is_refused_with_what_to_pass(name: str, asked: str) -> None:
    inputs, labels = batch()
    inputs = inputs.expand(-1, 3, -1, -1)
    with pytest.raises(ValueError, match="made for pixels in another range: of 300 clean images it has") as refusal:
        recognise(made_for(name), inputs, labels)
    assert asked in str(refusal.value)
    assert len(re.findall(r"[\d.]+% right in", str(refusal.value))) == 5
    wanted = [float(value) for value in re.findall(r"[\d.]+(?=[ ,])", asked)]
    half = len(wanted) // 2
    mended = nn.Sequential(Normalize(wanted[:half], wanted[half:]), made_for(name)).double()
    assert recognise(mended, inputs, labels) == (mended, [])
    assert float((mended(inputs).argmax(1) == labels).double().mean()) > 0.9
    model = made_for(name)
    assert recognise(model, inputs, labels, check_range=False) == (model, [])
    assert recognise(model, inputs[:15], labels[:15]) == (model, [])  # too few to tell


def test_another_range_is_found_through_wrappers() -> None:
    inputs, labels = batch()
    model = After(lambda z, x: {"logits": z.softmax(1)}, made_for("[0, 255]"))
    with pytest.raises(ValueError, match="another range"):
        recognise(model, inputs, labels)


def test_a_random_model_is_not_asked_for_its_range() -> None:
    """Brighter pixels drown its noise, and would seem to be what it was made for."""
    inputs, labels = batch()
    model = Before(noisy)
    torch.manual_seed(0)
    shares = [float((model(inputs * scale).argmax(1) == labels).double().mean()) for scale in (1, 255)]
    assert 1 - shares[1] < (1 - shares[0]) / 2
    assert inside(recognise(model, inputs, labels, draws=2)[0]) == ["Averaged"]


def test_a_model_that_checks_its_inputs_is_not_broken_by_other_ranges() -> None:
    def check(inputs: Tensor) -> Tensor:
        if inputs.min() < 0 or inputs.max() > 1:
            raise RuntimeError("pixels!")
        return inputs

    model = Before(check)
    assert recognise(model, *batch()) == (model, [])


def test_what_is_clearly_better() -> None:
    def right(count: int, of: int) -> Tensor:
        return torch.arange(of) < count

    assert clearly_better(right(95, 100), right(50, 100), tried=3)
    assert not clearly_better(right(74, 100), right(50, 100), tried=3)  # errors not halved
    assert not clearly_better(right(50, 100), right(95, 100), tried=3)
    assert not clearly_better(right(16, 16), right(0, 16), tried=1)  # too few images
    assert not clearly_better(right(300, 300), right(300, 300), tried=3)
    assert not clearly_better(right(99, 100), right(97, 100), tried=3)  # two more may be chance
    generator = torch.Generator().manual_seed(0)
    coins = torch.rand(2, 2000, 40, generator=generator) < 0.5
    assert sum(clearly_better(a, b, tried=1) for a, b in zip(*coins, strict=True)) == 0


# Ordinary models.


class SmallGrey(nn.Module):
    """A network with running statistics, of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(), nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.norm(self.conv(inputs)).relu().flatten(1)))
        return logits


def with_normalisation() -> nn.Module:
    return build_model("mnist-d", num_classes=10, in_channels=1, image_size=8, mean=[0.3], std=[0.4]).double()


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "right": good_net,
    "log-probabilities": lambda: After(lambda z, x: z.log_softmax(1)),
    "far from zero": lambda: After(lambda z, x: z + 1000),
    "always the same": lambda: After(lambda z, x: z * 0),
    "always one class": lambda: After(lambda z, x: z * 0 + 5 * F.one_hot(torch.tensor(3), 10)),
    "positive and small": lambda: After(lambda z, x: z.relu() / 100),
    "one class masked": lambda: with_masked(-1e9, 1, good_net()),
    "most classes masked": lambda: with_masked(-1e5, 90, good_net()),
    "masked by the type's least number": lambda: with_masked(-3e38, 3, good_net()),
    "one logit always the largest": lambda: with_masked(1e9, 1, good_net()),
    "one logit larger than the others": lambda: After(lambda z, x: z * torch.where(torch.arange(10) == 3, 1e6, 1.0)),
    "without gradient": lambda: After(lambda z, x: z.detach()),
    "more classes than labels": lambda: hidden_layer(classes=12),
    "weak": lambda: train(hidden_layer(seed=2), *batch(), steps=8),
    "dropout in training only": lambda: nn.Sequential(nn.Dropout(0.5), good_net()).train(),
    "batch-norm and dropout": lambda: nn.Sequential(nn.Upsample(6), random_net(SmallGrey, dtype=torch.float64)),
    "surefoot's": with_normalisation,
}


@pytest.mark.parametrize("make", ORDINARY.values(), ids=ORDINARY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5, COUNT])
def test_an_ordinary_model_comes_back_as_it_is(make: Callable[[], nn.Module], dtype: torch.dtype, count: int) -> None:
    inputs, labels = batch(count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    model = model if dtype == torch.float64 else deepcopy(model).to(dtype)
    found, said = recognise(model, inputs.to(dtype), labels)
    assert found is model
    assert said == []


SCRIPTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "scripted": lambda net: torch.jit.script(net),
    "traced": lambda net: torch.jit.trace(net, batch(2)[0]),  # type: ignore[no-untyped-call]
    "frozen": lambda net: torch.jit.freeze(torch.jit.script(net)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("script", SCRIPTED.values(), ids=SCRIPTED)
def test_torch_script_is_taken_and_measured_as_the_module_that_it_was(script: Callable[[nn.Module], nn.Module]) -> None:
    inputs, labels = batch(60)
    net = nn.Sequential(nn.Upsample(6), random_net(SmallGrey, dtype=torch.float64)).eval()
    with torch.no_grad():
        labels = net(inputs).argmax(dim=1)
    scripted = script(net)
    assert recognise(scripted, inputs, labels) == (scripted, [])
    attacks: list[Attack] = [FGSM(0.02), PGD(0.02, 3, 0.01)]
    for one, other in zip(
        evaluate(scripted, [(inputs, labels)], attacks), evaluate(net, [(inputs, labels)], attacks), strict=True
    ):
        assert one.robust_accuracy == other.robust_accuracy
        assert (one.forwards, one.backwards) == (other.forwards, other.backwards)
    assert other.robust_accuracy < 1
    assert evaluate(Averaged(scripted, 3), [(inputs, labels)], [])[0].forwards == 3 * len(inputs)
    assert len(_global_forward_hooks) == 0
    second = script(nn.Sequential(nn.Upsample(6), random_net(SmallGrey, seed=1, dtype=torch.float64)).eval())
    assert weights_sha256(script(net)) == weights_sha256(scripted) != weights_sha256(second)
    softmax = script(nn.Sequential(net, nn.Softmax(dim=1)).eval())
    found, _ = recognise(softmax, inputs, labels)
    assert inside(found) == ["FromProbabilities"]
    assert inner_model(found) is softmax


class CountingScript(nn.Module):
    """Changes its buffers at each call, one in place and one by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10, dtype=torch.float64)
        self.calls: Tensor
        self.count: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.add_(1)
        self.count = self.count + 1
        logits: Tensor = self.head(inputs.flatten(1))
        return logits


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_no_trace_is_left_on_torch_script() -> None:
    inputs, labels = batch()
    model = torch.jit.script(CountingScript()).train()
    assert recognise(model, inputs, labels)[0] is model
    FGSM(0.1)(model, inputs, labels)
    assert (float(model.calls), float(model.count)) == (0, 0)
    assert model.training
    assert all(part.training for part in model.modules())


def test_networks_at_chance_are_never_refused() -> None:
    inputs, labels = batch()
    for seed in range(30):
        model = hidden_layer(seed)
        assert recognise(model, inputs, labels)[0] is model


def test_networks_in_adversarial_training_are_never_refused() -> None:
    inputs, labels = batch()
    for eps in (0.2, 0.3):
        model = hidden_layer(seed=1)
        accuracies = []
        for _ in range(6):
            train(model, *digits(), steps=8, eps=eps)
            assert recognise(model, inputs, labels) == (model, [])
            accuracies.append(float((model(inputs).argmax(1) == labels).double().mean()))
        assert 0.15 < accuracies[-1] < 0.95  # weak enough to be a test


def test_a_wrapped_module_comes_back_as_it_is_or_unwrapped() -> None:
    parallel = nn.DataParallel(good_net())
    assert recognise(parallel, *batch())[0] is parallel
    softmax = nn.DataParallel(After(lambda z, x: z.softmax(1)))
    found, _ = recognise(softmax, *batch())
    assert isinstance(found, FromProbabilities)
    assert found.model is softmax.module
    assert inner_model(nn.DataParallel(Averaged(found, 2))) is softmax.module
    assert inner_model(good_net()) is good_net()


# Types, and what is left behind.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_weights_of_another_type_are_refused_with_what_to_do(dtype: torch.dtype, kind: str) -> None:
    inputs, labels = batch()
    net = SmallGrey() if kind == "convolution" else hidden_layer()
    net = nn.Sequential(nn.Upsample(6), net) if kind == "convolution" else net
    with pytest.raises(ValueError, match=re.escape("the images float32, and it does not take them")) as refusal:
        recognise(net.to(dtype), inputs.float(), labels)
    assert f"weights are {str(dtype).removeprefix('torch.')}," in str(refusal.value)
    assert "model.float()" in str(refusal.value)
    model = Before(lambda x: x.to(dtype), net.to(dtype))  # converts its inputs
    assert recognise(model, inputs.float(), labels) == (model, [])


def test_other_errors_of_the_model_are_its_own() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        recognise(hidden_layer(pixels=7), *batch())


def test_a_bad_batch_is_refused() -> None:
    inputs, labels = batch()
    with pytest.raises(ValueError, match="no images to recognise"):
        recognise(good_net(), inputs[:0], labels[:0])
    with pytest.raises(ValueError, match=re.escape("pixels in [0, 1]")):
        recognise(good_net(), inputs * 255, labels)


class Counting(nn.Module):
    """Changes its buffers at each call, one in place and one by assignment, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(), hidden_layer()).train()
        self.norm = nn.BatchNorm1d(10).double()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("empty", None)
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        self.count = self.count + 1
        logits: Tensor = self.net(noisy(inputs))
        if len(logits) > 1:
            F.batch_norm(logits, self.norm.running_mean, self.norm.running_var, training=True)
        return logits


@pytest.mark.parametrize("draws", [None, 2])
def test_no_trace_is_left(draws: int | None) -> None:
    inputs, labels = batch()
    model = Counting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    modes = [part.training for part in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    if draws is None:
        with pytest.raises(ValueError, match="differently each time"):
            recognise(model, inputs, labels)
    else:
        found, _ = recognise(model, inputs, labels, draws=draws)
        assert inner_model(found) is model
        assert found.training  # as the model inside
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not inputs.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(mode: Callable[[], Any]) -> None:
    model, images = After(lambda z, x: z.softmax(1)), batch()
    with mode():
        found, _ = recognise(model, *images)
    assert inside(found) == ["FromProbabilities"]
    assert not torch.equal(FGSM(EPS)(found, *batch()), batch()[0])


def test_wrappers_take_the_mode_of_their_model_and_pass_it_on() -> None:
    net = hidden_layer().eval()
    stacked = Averaged(TwoLogits(FromProbabilities(LogitsOnly(net))), 2)
    assert not stacked.training
    assert net.training is False
    stacked.train()
    assert net.training


def test_a_model_that_is_another_under_autograd_is_told_of() -> None:
    """Its clean pixels are 0 or 1, which it does not round."""
    images = (torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()

    class Rounding(nn.Module):
        def __init__(self, *, always: bool) -> None:
            super().__init__()
            self.always = always

        def forward(self, inputs: Tensor) -> Tensor:
            flat = inputs.flatten(1)
            gap = (flat if torch.is_grad_enabled() and not self.always else (0.9 * flat).round()).mean(dim=1) - 0.5
            return torch.stack([gap, -gap], dim=1)

    labels = torch.zeros(64, dtype=torch.int64)
    _, said = recognise(Rounding(always=False), images, labels, check_range=False)
    assert len(said) == 1
    assert said[0].startswith("The model answers otherwise where a gradient is taken: ")
    assert recognise(Rounding(always=True), images, labels, check_range=False)[1] == []


def test_a_gradient_that_is_nan_is_told() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            flat = inputs.flatten(1)
            return self.linear(flat + 0 * (0 * flat).sqrt())  # type: ignore[no-any-return]

    model = Root()
    found, said = recognise(model, torch.rand(20, 1, 4, 4), torch.arange(20) % 3)
    assert found is model
    assert len(said) == 1
    assert said[0].startswith("The gradient by the pixels is NaN on 16 of 16 images, as that of a square root at 0 is;")
