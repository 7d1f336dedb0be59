"""What attacks cost, against the arithmetic that they cannot do without and against other libraries."""

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from surefoot.attacks import PGD, CarliniWagnerL2, DeepFool
from surefoot.benchmark.peers import PEERS, Craft
from surefoot.benchmark.timing import Clock, Timing, race
from surefoot.core.devices import image_format, in_image_format
from surefoot.core.geometry import l2_distance
from surefoot.core.gradients import crafting, input_gradient
from surefoot.core.limits import check_count
from surefoot.core.losses import cross_entropy, full_precision
from surefoot.evaluation import evaluate
from surefoot.evaluation.attack_settings import fields_of
from surefoot.evaluation.evaluate import device_name, versions
from surefoot.evaluation.precision import exact_float32
from surefoot.evaluation.stages import predictions

AttackName = Literal["pgd", "accuracy", "deepfool", "cw"]
PrecisionName = Literal["fp32", "bf16"]
PeerName = Literal["torchattacks", "foolbox", "art"]


@dataclass(frozen=True)
class Subject:
    """A network and images to attack it on.

    Args:
        name: what its lines call it.
        model: maps inputs to logits.
        inputs, labels: `[images, channels, height, width]` in [0, 1] and `[images]`, on the model's device.
        eps, step_size: of PGD, in pixel units.
        dataset: where the images are from; None where they are noise, labelled by the network itself.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    eps: float
    step_size: float
    dataset: str | None = None


@dataclass(frozen=True, kw_only=True)
class AttackLine:
    """What one library took for one attack on one network.

    `seconds` is the median of `all_seconds`, one a round; both of the whole of `images`, in batches of
    `batch`. `ratio_to_limit` is seconds / (steps x the limit's seconds), None where an attack is not so many
    plain steps. `robust_accuracy` is the share of images that are still classified rightly, in float32
    whatever crafted them, 1 - fooling rate; `mean_l2` is over those that the attack fooled. Where there is an
    `error` there are no numbers.
    """

    library: str
    attack: str
    model: str
    batch: int
    precision: str
    device: str
    seconds: float | None
    ratio_to_limit: float | None
    robust_accuracy: float | None
    mean_l2: float | None
    images: int
    steps: int
    attack_fields: dict[str, Any]
    rounds: int
    all_seconds: tuple[float, ...]
    cpu_seconds: bool
    dataset: str | None
    frozen_weights: bool
    threads: int
    versions: dict[str, str]
    error: str | None


class Score(NamedTuple):
    """What an attack came to; see `AttackLine`."""

    robust_accuracy: float | None
    mean_l2: float | None


class Turn(NamedTuple):
    """What a turn returns: how many images it did, and their score, or what still has to be scored."""

    images: int
    result: Score | Tensor


class Guarded(nn.Module):
    """A network as every contestant gets it: logits in float32, and no forward pass once `deadline` is over.

    NumPy has no bfloat16, and some libraries go there; some attacks take hours where others take seconds.
    """

    def __init__(self, network: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.network = network
        self.clock = clock
        self.deadline = float("inf")

    def forward(self, inputs: Tensor) -> Tensor:
        if self.clock() > self.deadline:
            raise TimeoutError("it takes too long for even one image; give it more with --max-seconds.")
        return full_precision(self.network(inputs))


@dataclass(frozen=True)
class AttackBenchmark:
    """Time our attacks, other libraries' and the limit in turns, in one process, on the same network and images.

    The limit is a forward pass and an input gradient a step, and nothing else. Called with a `Subject` it yields
    an `AttackLine` for each library as soon as an attack's rounds are over. The network is copied, to `channels_last`
    for everybody, and left as it was. No attack starts at random, so that all of them start from the same point.

    - `pgd`: the limit, and PGD of `steps` steps to the last one, on one batch.
    - `accuracy`: the accuracy of `num_examples` images under PGD of `accuracy_steps` steps. Ours is `evaluate`,
      in both of its precisions; the others craft and score batch by batch.
    - `deepfool`, `cw`: DeepFool and Carlini and Wagner's l2 attack, on one batch. The C&W of torchattacks knows
      no search over c: it has one, c = 1.

    Raises:
        ValueError: a count below 1, or nothing to measure.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> subject = Subject("linear", net, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), eps=0.1, step_size=0.05)
        >>> [line.library for line in AttackBenchmark(steps=2, rounds=1, peers=())(subject)]
        ['limit', 'surefoot']
    """

    attacks: tuple[AttackName, ...] = ("pgd",)
    """What to measure."""
    precision: tuple[PrecisionName, ...] = ("fp32",)
    """What the networks compute in; bf16 is autocast. Ours under `accuracy` is strict and fast, whatever this is."""
    peers: tuple[PeerName, ...] = ("torchattacks", "foolbox", "art")
    """Other libraries to compare with, where they are installed; without a value, none."""
    rounds: int = 5
    """Timed turns of each; the median counts."""
    batch_size: int = 100
    """Images at a time."""
    num_examples: int = 1000
    """Images under `accuracy`; the other attacks get one batch."""
    steps: int = 20
    """Steps of PGD under `pgd`."""
    accuracy_steps: int = 100
    """Steps of PGD under `accuracy`."""
    deepfool_steps: int = 50
    """Most steps of DeepFool."""
    cw_steps: int = 100
    """Steps of C&W for each c."""
    cw_search_steps: int = 9
    """Values of c that C&W tries for each image."""
    cw_learning_rate: float = 0.1
    """Of C&W's Adam; with 0.01, which is usual for thousands of steps, 100 of them hardly leave black or white."""
    max_seconds: float = 120.0
    """A library that takes longer than this for a turn gets a tenth of the images, again and again if need be."""
    cpu_seconds: bool = False
    """Measure CPU seconds of all threads, not wall-clock time: more reliable where other work is running."""
    freeze_weights: bool = False
    """Let no weight require a gradient; foolbox and ART otherwise compute those gradients too."""

    def __post_init__(self) -> None:
        for name in (
            *("rounds", "batch_size", "num_examples", "steps", "accuracy_steps"),
            *("deepfool_steps", "cw_steps", "cw_search_steps"),
        ):
            check_count(name, getattr(self, name))
        for name in ("cw_learning_rate", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("attacks", "precision"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty, so there is nothing to measure; name at least one.")

    def __call__(
        self,
        subject: Subject,
        *,
        clock: Clock | None = None,
        on_turn: Callable[[str, int, int], None] = lambda contestant, done, total: None,
    ) -> Iterator[AttackLine]:
        if clock is None:
            clock = time.process_time if self.cpu_seconds else time.perf_counter
        model = copy.deepcopy(subject.model).eval().requires_grad_(not self.freeze_weights)
        form = image_format(subject.inputs.device)
        subject = dataclasses.replace(
            subject,
            model=in_image_format(model, subject.inputs.device),
            inputs=subject.inputs.contiguous(memory_format=form),
        )
        for name, contestants in self.races():
            timings = race(
                {who: partial(self.get_ready, name, *who, subject, clock) for who in contestants},
                self.rounds,
                clock=clock,
                synchronise=(lambda: None) if subject.inputs.device.type == "cpu" else torch.accelerator.synchronize,
                on_turn=lambda who, done, total, name=name: on_turn(" ".join((name, *who)), done, total),  # type: ignore[misc]
            )
            for who in contestants:
                yield self.line(name, *who, subject, timings)
            model.zero_grad()  # some libraries leave weight gradients behind

    def races(self) -> Iterator[tuple[AttackName, list[tuple[str, str]]]]:
        """Each race, with its contestants: a library and what it computes in."""
        for name in self.attacks:
            if name == "accuracy":
                theirs = [(peer, precision) for precision in self.precision for peer in self.peers]
                yield name, [("surefoot", "strict"), ("surefoot", "fast"), *theirs]
            else:
                for precision in self.precision:
                    libraries = [*(["limit"] if name == "pgd" else []), "surefoot", *self.peers]
                    yield name, [(library, precision) for library in libraries]

    def attack(self, name: AttackName, subject: Subject) -> PGD | DeepFool | CarliniWagnerL2:
        """The attack of that name, as ours."""
        if name == "deepfool":
            return DeepFool(steps=self.deepfool_steps)
        if name == "cw":
            return CarliniWagnerL2(
                steps=self.cw_steps, search_steps=self.cw_search_steps, learning_rate=self.cw_learning_rate
            )
        steps = self.steps if name == "pgd" else self.accuracy_steps
        return PGD(subject.eps, steps, subject.step_size, random_start=False)

    def images(self, name: AttackName, subject: Subject) -> int:
        """How many images that attack gets."""
        return min(self.num_examples if name == "accuracy" else self.batch_size, len(subject.inputs))

    def get_ready(
        self, name: AttackName, library: str, precision: str, subject: Subject, clock: Clock
    ) -> Callable[[], Turn]:
        """Build a contestant, warm it up with a batch, and cut down the images of one that is slow."""
        attack, model = self.attack(name, subject), Guarded(subject.model, clock).eval()
        craft: Craft
        if library == "limit":
            craft = partial(gradients, model, attack.steps)
        elif library == "surefoot":
            craft = partial(attack, model)
        else:
            craft = PEERS[library].adapt(attack, model, subject.inputs[: self.batch_size])

        def turn(images: int) -> Turn:
            inputs, labels = subject.inputs[:images], subject.labels[:images]
            batches = list(zip(torch.split(inputs, self.batch_size), torch.split(labels, self.batch_size), strict=True))
            if precision in ("strict", "fast"):
                record = evaluate(subject.model, batches, [attack], precision=precision)[-1]  # type: ignore[arg-type]
                return Turn(images, Score(record.robust_accuracy, record.mean_l2))
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
                adv_inputs = torch.cat([craft(*batch) for batch in batches])
            return Turn(images, self.score(subject, adv_inputs) if name == "accuracy" else adv_inputs)

        images = self.images(name, subject)
        while True:
            first = min(images, self.batch_size)
            model.deadline = clock() + self.max_seconds * first / images
            try:
                turn(first)
            except TimeoutError:
                if images == 1:
                    raise
                images = max(1, images // 10)
            else:
                model.deadline = float("inf")
                return partial(turn, images)

    def score(self, subject: Subject, adv_inputs: Tensor) -> Score:
        """What adversarial versions of the first images come to, in float32."""
        fooled = survived = 0
        length = 0.0
        for number, adv_batch in enumerate(torch.split(adv_inputs, self.batch_size)):
            rows = slice(number * self.batch_size, number * self.batch_size + len(adv_batch))
            inputs, labels = subject.inputs[rows], subject.labels[rows]
            with exact_float32(inputs.device):
                right = predictions(subject.model, adv_batch) == labels
                newly_fooled = ~right & (predictions(subject.model, inputs) == labels)
            survived += int(right.sum())
            fooled += int(newly_fooled.sum())
            length += float(l2_distance(adv_batch, inputs)[newly_fooled].sum())
        return Score(survived / len(adv_inputs), length / fooled if fooled else None)

    def line(
        self,
        name: AttackName,
        library: str,
        precision: str,
        subject: Subject,
        timings: dict[tuple[str, str], Timing[Turn]],
    ) -> AttackLine:
        """A contestant's line."""
        timing, limit = timings[library, precision], timings.get(("limit", precision))
        turn, attack = timing.result, self.attack(name, subject)
        images = self.images(name, subject) if turn is None else turn.images
        ratio, score = None, Score(None, None)
        if timing.median is not None and limit is not None and limit.median is not None and limit.result is not None:
            ratio = timing.median / limit.median if images == limit.result.images else None
        if timing.error is None and turn is not None and library != "limit":
            score = turn.result if isinstance(turn.result, Score) else self.score(subject, turn.result)
        peer = PEERS.get(library)
        return AttackLine(
            library=library,
            attack=name,
            model=subject.name,
            batch=min(self.batch_size, images),
            precision=precision,
            device=device_name(subject.inputs.device),
            seconds=timing.median,
            ratio_to_limit=ratio,
            robust_accuracy=score.robust_accuracy,
            mean_l2=score.mean_l2,
            images=images,
            steps=attack.steps,
            attack_fields=fields_of(attack),
            rounds=len(timing.seconds),
            all_seconds=timing.seconds,
            cpu_seconds=self.cpu_seconds,
            dataset=subject.dataset,
            frozen_weights=self.freeze_weights,
            threads=torch.get_num_threads(),
            versions=versions() if peer is None else {**versions(), peer.package: peer.version() or "?"},
            error=timing.error,
        )


def gradients(model: nn.Module, steps: int, inputs: Tensor, labels: Tensor) -> Tensor:
    """The limit: as many forward passes and input gradients as PGD has steps, and nothing else."""
    with crafting(model) as frozen:
        for _ in range(steps):
            input_gradient(frozen, inputs, lambda logits: cross_entropy(logits, labels))
    return inputs
