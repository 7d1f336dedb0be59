"""The one table of all attacks, the one of all objectives, and the small problem that they are tried on.

A new attack or objective is one row here; every property test then runs over it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.attacks import (
    APGD,
    APGDT,
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
from surefoot.attacks.apgd import dlr_loss
from surefoot.audit.label_search import LabelSearch
from surefoot.core.types import Attack, Objective
from surefoot.evaluation import Record
from surefoot.objectives import (
    EnsembleAT,
    FgsmAT,
    NFgsmAT,
    NormalTraining,
    PgdAT,
    RFgsmAT,
    SatR1,
    SatR2,
    SatR3,
    Trades,
)
from surefoot.training.state import only_training

CLASSES = 3
SHAPE = (2, 6, 6)
BATCH = 8
EPS = 0.1
TOLERANCE = 1e-6
FOOLBOX_IMPORT = "ignore:Please import `gaussian_filter`:DeprecationWarning"
Batches = list[tuple[Tensor, Tensor]]


class SmallNet(nn.Module):
    """Everything that a mode, a trace or a batch could go wrong with: batch-norm, dropout, pooling."""

    def __init__(self, channels: int = SHAPE[0], classes: int = CLASSES, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width * 4, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        features = F.adaptive_avg_pool2d(F.silu(self.norm(self.conv(inputs))), 2)
        logits: Tensor = self.head(self.drop(features.flatten(1)))
        return logits


class PlainNet(nn.Module):
    """No batch-norm, no dropout: its value does not depend on its mode or on the batch."""

    def __init__(self, channels: int = SHAPE[0], classes: int = CLASSES, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.head = nn.Linear(width * 4, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        features = F.adaptive_avg_pool2d(torch.tanh(3 * self.conv(inputs)), 2)
        logits: Tensor = self.head(features.flatten(1))
        return logits


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above a half: an image at m is fooled by |m - 0.5| and no less."""

    def forward(self, inputs: Tensor) -> Tensor:
        gap = 10 * (inputs.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([-gap, gap], dim=1)


def grey(*levels: float) -> Tensor:
    return torch.stack([torch.full((1, 2, 2), level) for level in levels])


def random_net(
    kind: Callable[[], nn.Module] = SmallNet, seed: int = 0, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A network with random weights and running statistics, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kind().to(dtype)
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
                part.running_mean.normal_(0, 0.3)
                assert part.running_var is not None
                part.running_var.uniform_(0.5, 1.5)
        return net


def forwards_that_spoil_autocast(net: nn.Module) -> list[bool]:
    """For each forward: does autocast of an older PyTorch keep what it casts there, without its gradient?"""
    found: list[bool] = []

    def look(*_: object) -> None:
        kept = torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()
        found.append(kept and not torch.is_grad_enabled())

    net.register_forward_hook(look)
    return found


def random_batch(
    count: int = BATCH, shape: tuple[int, ...] = SHAPE, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Images that touch both ends of the pixel range, and labels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = (torch.rand(count, *shape, generator=generator, dtype=dtype) * 1.4 - 0.2).clamp(0, 1)
    return inputs, torch.randint(CLASSES, (count,), generator=generator)


@cache
def _trained() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        templates = 0.5 + 0.12 * torch.randn(CLASSES, *SHAPE).sign()
        labels = torch.arange(120) % CLASSES
        inputs = (templates[labels] + 0.15 * torch.randn(120, *SHAPE)).clamp(0, 1)
        net = SmallNet()
        parameters = list(net.parameters())
        for _ in range(100):  # by hand: torch.optim takes seconds to import
            gradients = torch.autograd.grad(F.cross_entropy(net(inputs), labels), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(0.3 * gradient)
        return net.eval(), inputs[:48], labels[:48]


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network in evaluation mode, and images that it gets right but not under attack; a fresh copy."""
    return deepcopy(_trained())


def trained_batches(size: int = 20) -> tuple[nn.Module, Batches]:
    net, inputs, labels = trained()
    return net, list(zip(torch.split(inputs, size), torch.split(labels, size), strict=True))


def without_time(records: list[Record]) -> list[Record]:
    return [replace(record, seconds=0.0) for record in records]


def craft(attack: Attack, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return attack(model, inputs, labels)


def assert_valid(adv_inputs: Tensor, inputs: Tensor, eps: float) -> None:
    assert adv_inputs.shape == inputs.shape
    assert adv_inputs.dtype == inputs.dtype
    assert bool((adv_inputs >= 0).all())
    assert bool((adv_inputs <= 1).all())
    assert float((adv_inputs - inputs).abs().max()) <= eps + TOLERANCE


@dataclass(frozen=True)
class AttackCase:
    """A row of the table: `build(eps)` makes the attack.

    - `random`: draws from torch's global generator.
    - `bounded`: holds an l-infinity ball of radius eps.
    - `needs_gradient`: refuses a model whose logits carry none to its inputs.
    """

    name: str
    build: Callable[[float], Attack]
    random: bool = False
    bounded: bool = True
    needs_gradient: bool = True


def step(eps: float) -> float:
    """A step size for any eps, 0 included."""
    return max(eps / 3, 1e-4)


ATTACKS = [
    AttackCase("FGSM", lambda eps: FGSM(eps)),
    AttackCase("FGSM-margin", lambda eps: FGSM(eps, loss=MarginLoss())),
    AttackCase("RFGSM", lambda eps: RFGSM(eps, random_step=eps / 4), random=True),
    AttackCase("RFGSM-half", lambda eps: RFGSM(eps, eps / 2, loss=MarginLoss()), random=True),
    AttackCase("IFGSM", lambda eps: IFGSM(eps, steps=4)),
    AttackCase("IFGSM-one-step", lambda eps: IFGSM(eps, steps=1)),
    AttackCase("IFGSM-stop", lambda eps: IFGSM(eps, steps=5, stop_when_fooled=True)),
    AttackCase("MIFGSM", lambda eps: MIFGSM(eps, steps=4)),
    AttackCase("MIFGSM-decay", lambda eps: MIFGSM(eps, steps=4, decay=0.5, loss=MarginLoss())),
    AttackCase("MIFGSM-stop", lambda eps: MIFGSM(eps, steps=4, stop_when_fooled=True)),
    AttackCase("PGD", lambda eps: PGD(eps, 5, step(eps)), random=True),
    AttackCase("PGD-clean-start", lambda eps: PGD(eps, 5, step(eps), random_start=False)),
    AttackCase("PGD-long-step", lambda eps: PGD(eps, 3, 1.0, random_start=False)),
    AttackCase("PGD-start-radius", lambda eps: PGD(eps, 5, step(eps), start_radius=step(eps)), random=True),
    AttackCase("PGD-wide-start", lambda eps: PGD(eps, 5, step(eps), start_radius=1.0), random=True),
    AttackCase("PGD-restarts", lambda eps: PGD(eps, 3, step(eps), restarts=2), random=True),
    AttackCase(
        "PGD-restarts-stop",
        lambda eps: PGD(eps, 3, step(eps), restarts=3, stop_when_fooled=True),
        random=True,
    ),
    AttackCase("PGD-stop", lambda eps: PGD(eps, 5, step(eps), stop_when_fooled=True), random=True),
    AttackCase("PGD-CW", lambda eps: PGD(eps, 5, step(eps), loss=MarginLoss(50.0)), random=True),
    AttackCase("PGD-CW-clean-start", lambda eps: PGD(eps, 5, step(eps), random_start=False, loss=MarginLoss())),
    AttackCase("APGD", lambda eps: APGD(eps, steps=5), random=True),
    AttackCase("APGD-DLR", lambda eps: APGD(eps, steps=4, restarts=2, loss=dlr_loss), random=True),
    AttackCase("APGD-to-the-end", lambda eps: APGD(eps, steps=4, restarts=2, stop_when_fooled=False), random=True),
    AttackCase("APGDT", lambda eps: APGDT(eps, steps=4), random=True),
    AttackCase("APGDT-to-the-end", lambda eps: APGDT(eps, steps=3, stop_when_fooled=False), random=True),
    AttackCase("FABT", lambda eps: FABT(eps, steps=4)),
    AttackCase("Square", lambda eps: Square(eps, queries=20), random=True, needs_gradient=False),
    AttackCase(
        "Square-to-the-end",
        lambda eps: Square(eps, queries=20, stop_when_fooled=False),
        random=True,
        needs_gradient=False,
    ),
    AttackCase("AutoAttack", lambda eps: AutoAttack(eps, steps=2, queries=4), random=True),
    AttackCase("WorstCase", lambda eps: WorstCase((FGSM(eps), IFGSM(eps, steps=4)))),
    AttackCase("LabelSearch", lambda eps: LabelSearch(eps, queries=20), needs_gradient=False),
    AttackCase("DeepFool", lambda _: DeepFool(steps=8), bounded=False),
    AttackCase("DeepFool-as-published", lambda _: DeepFool(steps=8, shorten=0), bounded=False),
    AttackCase(
        "CarliniWagnerL2",
        lambda _: CarliniWagnerL2(steps=12, search_steps=3, learning_rate=0.1),
        bounded=False,
    ),
]


@dataclass(frozen=True)
class ObjectiveCase:
    """A row of the table.

    - `build(sources)`: makes the objective; `sources` are fixed networks for those that need some.
    - `units(m)`: documented cost of a step on m samples, in forwards a sample.
    - `random`: draws from torch's global generator.
    - `crafts`: needs input gradients.
    """

    name: str
    build: Callable[[tuple[nn.Module, ...]], Objective]
    units: Callable[[int], float]
    random: bool = False
    crafts: bool = True


def mixed_cost(share: float) -> Callable[[int], float]:
    return lambda m: 3 + 2 * share


OBJECTIVE_CASES = [
    ObjectiveCase("normal", lambda _: NormalTraining(), lambda m: 3, crafts=False),
    ObjectiveCase("normal-smooth", lambda _: NormalTraining(label_smoothing=0.2), lambda m: 3, crafts=False),
    ObjectiveCase("fgsm-at", lambda _: FgsmAT(EPS), mixed_cost(0.5)),
    ObjectiveCase("fgsm-at-all", lambda _: FgsmAT(EPS, share=1.0, label_smoothing=0.1), mixed_cost(1.0)),
    ObjectiveCase("rfgsm-at", lambda _: RFgsmAT(EPS, random_step=EPS / 4), mixed_cost(1.0), random=True),
    ObjectiveCase("rfgsm-at-half", lambda _: RFgsmAT(EPS, EPS / 4, share=0.5), mixed_cost(0.5), random=True),
    ObjectiveCase("nfgsm-at", lambda _: NFgsmAT(EPS, noise=EPS / 4), lambda m: 5, random=True),
    ObjectiveCase("ensemble-at", lambda sources: EnsembleAT(EPS, sources), mixed_cost(0.5), random=True),
    ObjectiveCase("pgd-at", lambda _: PgdAT(EPS, steps=3, step_size=EPS / 2), lambda m: 3 + 2 * 3, random=True),
    ObjectiveCase(
        "trades",
        lambda _: Trades(EPS, steps=3, step_size=EPS / 2, beta=2.0),
        lambda m: 7 + 2 * 3,
        random=True,
    ),
    ObjectiveCase("sat-r1", lambda _: SatR1(EPS, lam=0.2, steps=4), lambda m: 5 + 1 * (2 * 4 + 1) / m),
    ObjectiveCase(
        "sat-r1-last-3",
        lambda _: SatR1(EPS, lam=0.2, steps=3, k=3, pair="last", label_smoothing=0.1),
        lambda m: 5 + 3 * (2 * 3 + 1) / m,
    ),
    ObjectiveCase("sat-r1-one-step", lambda _: SatR1(EPS, lam=0.2, steps=1, k=2), lambda m: 5 + 2 * (2 + 1) / m),
    ObjectiveCase("sat-r2", lambda _: SatR2(EPS, random_step=EPS / 4, lam=5.0), lambda m: 10, random=True),
    ObjectiveCase("sat-r2-full", lambda _: SatR2(EPS, EPS / 4, lam=5.0, rfgsm_step="full"), lambda m: 10, random=True),
    ObjectiveCase("sat-r3", lambda _: SatR3(EPS, eps_low=EPS / 4, lam=1.0, tau=0.6), lambda m: 8),
    ObjectiveCase(
        "sat-r3-random",
        lambda _: SatR3(EPS, EPS / 4, lam=1.0, tau=0.6, random_step=EPS / 4),
        lambda m: 8,
        random=True,
    ),
    # both kinds of samples classified, as in the paper's ablations
    ObjectiveCase(
        "sat-r1-both",
        lambda _: SatR1(EPS, lam=0.2, steps=3, k=3, label_smoothing=0.1, classified="both"),
        lambda m: 5 + 3 * (2 * 3 + 1) / m,
    ),
    ObjectiveCase(
        "sat-r2-both",
        lambda _: SatR2(EPS, random_step=EPS / 4, lam=5.0, classified="both"),
        lambda m: 10,
        random=True,
    ),
    ObjectiveCase("sat-r3-both", lambda _: SatR3(EPS, EPS / 4, lam=1.0, tau=0.6, classified="both"), lambda m: 8),
]


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Another training is at work in the folder: a thread's, whose locks keep this one out as a process's would."""
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        with only_training(folder):
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        over.set()
        thread.join()
