"""Eyes inside training: does the model withstand one gradient step only because it masks its gradients?"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surefoot.attacks.gradient_sign import ascend, random_signs
from surefoot.core.devices import cosines, in_float64
from surefoot.core.geometry import check_batch, check_radius, project
from surefoot.core.gradients import autocast_dtype, crafting, input_gradient, without_gradients
from surefoot.core.limits import check_count, check_number
from surefoot.core.losses import answered, cross_entropy, squared_distance
from surefoot.core.seeding import seeded
from surefoot.core.types import Objective
from surefoot.evaluation.statistics import binomial_tail
from surefoot.training.captured import can_capture, capture

OnMasking = Literal["off", "warn", "stop", "repair"]

CHUNK = 32  # images at once on a CPU, whose cache they stay in; the curves are of the first so many
PROBE_SIZE = 128  # held-out images a look
LOOK_EVERY_IMAGES = 16_000  # training images between two looks: then they cost less than 3 %


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look measured, in means; losses are in nats, accuracies and shares in [0, 1].

    `losses_along`, `rising`, both distances and `agreement` are of the probe's first 32 images, the rest of all.
    """

    step: int
    """Training steps before it."""
    fgsm_accuracy: float
    pgd_accuracy: float
    fgsm_loss: float
    pgd_loss: float
    losses_along: list[float]
    """The mean loss at x + r sign(gradient) for r = 0, eps/3, 2 eps/3 and eps: FGSM's loss against its radius."""
    rising: float
    """Share of images whose loss never falls along those four."""
    rfgsm_distance: float
    """Mean l2 distance between the logits of FGSM and R-FGSM samples (Fig. 1 and 2, top)."""
    ifgsm_distance: float
    """The same between FGSM and I-FGSM samples."""
    agreement: float
    """Mean cosine between the loss's gradients at the image and at a random corner of the ball of half the radius."""
    lost: int
    """Images that withstand FGSM and fall to PGD."""
    share: float
    """`lost` as a share of the probe."""
    p_value: float
    """Chance of so many lost images, or more, were the true share no larger than the monitor's bound."""
    level: float
    """The p-value below which this look alarms."""
    masked: bool
    """Is this a statistically clear sign of masking?"""
    seconds: float


@dataclass(eq=False, repr=False)
class Monitor:
    """Looks at a model every `every` steps of its training and says when it masks its gradients.

    The sign is the share of images that withstand FGSM and fall to a few steps of PGD. PGD is always a little
    stronger, so that the null hypothesis is a size: the share is at most `bound`. A look tests it with the exact
    binomial tail at the level false_alarm_rate / (k (k + 1)), k = 1, 2, ... for the first look, the second, ...
    These levels sum to `false_alarm_rate`, which by the union bound is the chance of even one false alarm in a
    training of any length, however much its looks depend on each other.

    Args:
        inputs: the probe, `[n, channels, height, width]` in [0, 1]; held out: the model must not be fitted to it.
        labels: int64 `[n]`.
        eps: l-infinity radius in pixel units, in (0, 1].
        every: training steps between two looks, at least 1.
        steps: of PGD and of I-FGSM, at least 2.
        bound: the share of lost images that is still taken as sound, in (0, 1).
        false_alarm_rate: over the whole training, in (0, 1).
        seed: of the random steps of R-FGSM and PGD, the same at each look.
        history: all looks so far; give an earlier one to go on with it.
        capture: on CUDA a look is a graph from the second on; `off` is for a model that draws or branches on the host.

    Called with `(model, step)` it returns a `Look`, or None where `step` is no multiple of `every`. A look leaves
    nothing behind: not on the model, not in torch's generators. It costs 2 steps + 4 forward units an image, and
    as many again for the first 32, on which the curves are measured.

    Raises:
        ValueError: a setting out of range, an empty probe, or inputs outside [0, 1].
        TypeError: inputs that are not floating, or labels that are not int64.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> images, labels = torch.rand(64, 1, 4, 4), torch.randint(3, (64,))
        >>> monitor = Monitor(images[:32], labels[:32], eps=0.1, every=2)
        >>> for step in range(1, 5):
        ...     loss = nn.functional.cross_entropy(net(images[32:]), labels[32:])
        ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
        ...     look = monitor(net, step)
        ...     if look is not None and look.masked:
        ...         print(describe(look))
        >>> [look.step for look in monitor.history]
        [2, 4]

    Source:
        The measurements are those of Vivek and Babu, "Regularizers for Single-step Adversarial Training", 2020,
        Fig. 1, 2 and 5, and Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial
        Training", 2020 (agreement of gradients). The test is ours. PGD starts where R-FGSM's random step of
        eps / 2 ends, so that they share a gradient.
    """

    inputs: Tensor
    labels: Tensor
    eps: float
    every: int = 500
    steps: int = 4
    bound: float = 0.3
    false_alarm_rate: float = 0.01
    seed: int = 0
    history: list[Look] = field(default_factory=list)
    capture: Literal["auto", "off"] = "auto"
    _subject: tuple[Any, ...] | None = field(default=None, init=False)
    _replay: Callable[[], Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_batch(self.inputs, self.labels)
        with torch.inference_mode(False):  # made in inference_mode, they could not be differentiated by
            self.inputs, self.labels = (
                each.clone() if each.is_inference() else each for each in (self.inputs, self.labels)
            )
        if len(self.labels) == 0:
            raise ValueError("the monitor's probe has no images; give some that are held out from the training.")
        check_radius("eps", self.eps, positive=True)
        if self.capture not in ("auto", "off"):
            raise ValueError(f"capture is {self.capture!r}; it is one of auto, off.")
        check_count("every", self.every)
        check_count("steps", self.steps)
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; PGD needs at least 2 to be more than FGSM.")
        for name in ("bound", "false_alarm_rate"):
            check_number(name, getattr(self, name), example="0.01")
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")

    def __call__(self, model: nn.Module, step: int) -> Look | None:
        if step % self.every:
            return None
        started = time.perf_counter()
        with seeded(self.seed), crafting(model) as frozen:
            measured = self._measure(frozen)
        count, looks = len(self.labels), len(self.history) + 1
        p_value = binomial_tail(measured["lost"], count, self.bound)
        level = self.false_alarm_rate / (looks * (looks + 1))
        look = Look(
            step=step,
            **measured,
            share=measured["lost"] / count,
            p_value=p_value,
            level=level,
            masked=p_value <= level,
            seconds=time.perf_counter() - started,
        )
        self.history.append(look)
        return look

    def _measure(self, model: nn.Module) -> dict[str, Any]:
        device = next((each.device for each in model.parameters() if not each.is_meta), self.inputs.device)
        self.inputs, self.labels = self.inputs.to(device), self.labels.to(device)
        by_graph = self.capture == "auto" and can_capture(device)
        numbers = self._replayed(model) if by_graph else self._numbers(model)
        fgsm_loss, pgd_loss, fgsm_accuracy, pgd_accuracy, lost, *losses, rising, rfgsm, ifgsm, agreement = (
            numbers.tolist()
        )
        return {
            "fgsm_accuracy": fgsm_accuracy,
            "pgd_accuracy": pgd_accuracy,
            "fgsm_loss": fgsm_loss,
            "pgd_loss": pgd_loss,
            "lost": round(lost),
            "losses_along": losses,
            "rising": rising,
            "rfgsm_distance": rfgsm,
            "ifgsm_distance": ifgsm,
            "agreement": agreement,
        }

    def _replayed(self, model: nn.Module) -> Tensor:
        """The same by a CUDA graph from the second look at a model on: a look is some thousand small kernels."""
        read = [self.inputs, self.labels, *model.parameters(), *model.buffers()]
        settings = self.eps, autocast_dtype("cuda")
        subject = *settings, *(tensor.data_ptr() for tensor in read)  # where a graph reads
        if self._subject != subject:
            self._subject, self._replay = subject, None
            return self._numbers(model)
        if self._replay is None:
            self._replay = self._captured(model)
        return self._replay()

    def _captured(self, model: nn.Module) -> Callable[[], Tensor]:
        """`_numbers` as a graph, or as it is where the model cannot be captured."""

        def look() -> Tensor:
            with crafting(model) as frozen:  # the graph's own: what layers keep, and what is put back after
                return self._numbers(frozen)

        try:
            graph, numbers = capture(look, self.labels.device)
        except RuntimeError:
            return partial(self._numbers, model)

        def replay() -> Tensor:
            graph.replay()
            return numbers

        return replay

    def _numbers(self, model: nn.Module) -> Tensor:
        """All that a look measures, `[13]`, on the device."""
        results: list[tuple[Tensor, Tensor]] = []
        curves: list[Tensor] = []
        at_once = CHUNK if self.labels.device.type == "cpu" else len(self.labels)
        for start in range(0, len(self.labels), at_once):
            rows = slice(start, start + at_once)
            around = _Around.of(model, self.inputs[rows], self.labels[rows], self.eps)
            results.append(self._fgsm_and_pgd(around))
            curves = curves or self._curves(around.first(CHUNK))
        losses, stands = (torch.cat(parts, dim=1) for parts in zip(*results, strict=True))
        lost = (stands[0] & ~stands[1]).sum()
        parts = [*losses.mean(dim=1), *stands.float().mean(dim=1), lost, *curves]
        return torch.stack([in_float64(part) for part in parts])

    def _fgsm_and_pgd(self, around: "_Around") -> tuple[Tensor, Tensor]:
        """Losses `[2, batch]` under FGSM and PGD, and whether the model still answers rightly."""
        step_size = self.eps / 2
        start = around.beside(around.corner, around.corner_signs, step_size)
        pgd = around.climb(start, self.steps - 1, step_size)
        logits = around.logits([around.fgsm, pgd])
        losses = torch.stack([cross_entropy(each, around.labels) for each in logits])
        return losses, torch.stack([answered(each) == around.labels for each in logits])

    def _curves(self, around: "_Around") -> list[Tensor]:
        small, radii = self.eps / self.steps, [0.0, self.eps / 3, 2 * self.eps / 3]
        crafted = [
            *(around.beside(around.inputs, around.signs, radius) for radius in radii),
            around.fgsm,
            around.beside(around.corner, around.corner_signs, self.eps / 2),
            around.climb(around.beside(around.inputs, around.signs, small), self.steps - 1, small),
        ]
        *along, fgsm, rfgsm, ifgsm = around.logits(crafted)
        losses = torch.stack([cross_entropy(each, around.labels) for each in (*along, fgsm)])
        return [
            *losses.mean(dim=1),
            (losses.diff(dim=0) >= 0).all(dim=0).float().mean(),
            squared_distance(fgsm, rfgsm).sqrt().mean(),
            squared_distance(fgsm, ifgsm).sqrt().mean(),
            around.agreement.mean(),
        ]


@dataclass(eq=False, repr=False)
class _Around:
    """A batch, the corner of the ball of half the radius that a random step leads to, and the gradients at both."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    eps: float
    corner: Tensor
    gradient: Tensor
    corner_gradient: Tensor

    @staticmethod
    def of(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> "_Around":
        loss = partial(cross_entropy, labels=labels)
        gradient, _ = input_gradient(model, inputs, loss)
        corner = project(inputs + eps / 2 * random_signs(inputs), inputs, eps)
        corner_gradient, _ = input_gradient(model, corner, loss)
        return _Around(model, inputs, labels, eps, corner, gradient, corner_gradient)

    def first(self, count: int) -> "_Around":
        """The same of the first images alone."""
        parts = (self.inputs, self.labels, self.corner, self.gradient, self.corner_gradient)
        inputs, labels, corner, gradient, corner_gradient = (part[:count] for part in parts)
        return _Around(self.model, inputs, labels, self.eps, corner, gradient, corner_gradient)

    @cached_property
    def signs(self) -> Tensor:
        return self.gradient.sign()

    @cached_property
    def corner_signs(self) -> Tensor:
        return self.corner_gradient.sign()

    @cached_property
    def fgsm(self) -> Tensor:
        return self.beside(self.inputs, self.signs, self.eps)

    @property
    def agreement(self) -> Tensor:
        return cosines(self.gradient, self.corner_gradient)

    def beside(self, start: Tensor, direction: Tensor, radius: float) -> Tensor:
        return project(start + radius * direction, self.inputs, self.eps)

    def climb(self, start: Tensor, steps: int, step_size: float) -> Tensor:
        return ascend(self.model, self.inputs, self.labels, start, eps=self.eps, steps=steps, step_size=step_size)

    def logits(self, crafted: list[Tensor]) -> tuple[Tensor, ...]:
        with without_gradients():
            logits: Tensor = self.model(torch.cat(crafted))
        return logits.chunk(len(crafted))


def describe(look: Look) -> str:
    """A look's finding in one sentence.

    Example:
        >>> monitor = Monitor(torch.rand(8, 4), torch.zeros(8, dtype=torch.int64), eps=0.1, every=1)
        >>> look = monitor(nn.Linear(4, 3), step=1)
        >>> describe(look).partition(":")[0]
        'no clear sign of masking at step 1'
    """
    finding = "gradients are masked" if look.masked else "no clear sign of masking"
    return (
        f"{finding} at step {look.step}: FGSM's loss is {look.fgsm_loss:.3g}, PGD's {look.pgd_loss:.3g}, "
        f"and {100 * look.share:.0f} % of the held-out images withstand FGSM but fall to PGD (p = {look.p_value:.1g})"
    )


def monitor_curves(history: Sequence[Look]) -> dict[str, tuple[list[float], list[float]]]:
    """The history as lines to plot, `name: (steps, values)`: the upper plots of Fig. 1 and 2, and the losses.

    Example:
        >>> monitor_curves([])["FGSM - R-FGSM"]
        ([], [])
    """
    steps = [float(look.step) for look in history]
    lines = {
        "FGSM - R-FGSM": "rfgsm_distance",
        "FGSM - I-FGSM": "ifgsm_distance",
        "FGSM loss": "fgsm_loss",
        "PGD loss": "pgd_loss",
        "FGSM accuracy": "fgsm_accuracy",
        "PGD accuracy": "pgd_accuracy",
        "gradient agreement": "agreement",
        "rising loss": "rising",
    }
    return {name: (steps, [getattr(look, key) for look in history]) for name, key in lines.items()}


@dataclass(eq=False, repr=False)
class Guard:
    """What a training does about masking: it looks, keeps the state of the last healthy look, and acts once.

    Args:
        monitor: its history begins anew.
        action: `warn` says so; `stop` and `repair` put the state of the last healthy look back as well.
        repair: what is minimised from then on, under `repair`.
        state: gives every live tensor that the training goes on from.
        tell: given the sentence that says what was seen and done.
        share: makes the first process's look everybody's.

    Raises:
        ValueError: `repair` without an objective for it.
    """

    monitor: Monitor
    action: OnMasking
    repair: Objective | None
    state: Callable[[], dict[str, Tensor]]
    tell: Callable[[str], None] | None = None
    share: Callable[[Look], Look] = copy
    event: dict[str, Any] | None = None
    """What was done and when, once it is."""
    healthy: dict[str, Tensor] = field(default_factory=dict)
    """The state to go back to; empty where nothing will go back."""
    healthy_step: int = 0

    def __post_init__(self) -> None:
        if self.action == "repair" and self.repair is None:
            raise ValueError(
                "on_masking is 'repair', but there is no objective to repair with; give fit one as repair."
            )
        self.monitor.history = []
        self._keep(0)

    def resume(
        self, metrics: Sequence[Mapping[str, Any]], healthy: dict[str, Tensor], healthy_step: int, step: int
    ) -> None:
        """Go on at `step`, where the lines of `metrics.jsonl` and the healthy state kept beside them end."""
        self.monitor.history = [Look(**look) for line in metrics for look in line.get("monitor", [])]
        self.event = next((line["masking"] for line in metrics if line.get("masking")), None)
        self.healthy, self.healthy_step = healthy, healthy_step
        if not healthy and self.event is None:  # nothing was to go back until now
            self._keep(step)

    def __call__(self, model: nn.Module, step: int) -> bool:
        """Look where it is time to; True where the training was put back to its last healthy state just now."""
        if self.monitor(model, step) is None:
            return False
        look = self.monitor.history[-1] = self.share(self.monitor.history[-1])
        if self.event is not None:
            return False
        if not look.masked:
            if look.share <= self.monitor.bound:  # above it, no alarm may only mean too few images
                self._keep(step)
            return False
        back = self.action != "warn"
        self.event = {"step": step, "action": self.action, "back_to": self.healthy_step if back else None}
        if self.tell is not None:
            self.tell(f"{describe(look)}; {self._what_next()}.")
        if back:
            with torch.no_grad():
                for name, tensor in self.state().items():
                    tensor.copy_(self.healthy[name])
            self.healthy = {}
        return back

    def objective(self, planned: Objective) -> Objective:
        """What is minimised now: `planned`, or the repair."""
        return self.repair if self.repair is not None and self.did("repair") else planned

    def did(self, action: OnMasking) -> bool:
        """Has it acted so?"""
        return self.event is not None and self.event["action"] == action

    def lines(self, since: int) -> dict[str, Any]:
        """What happened after step `since`, for the epoch's line."""
        event = self.event if self.event is not None and self.event["step"] > since else None
        looks = [dataclasses.asdict(look) for look in self.monitor.history if look.step > since]
        return {"masking": event, "monitor": looks}

    def _keep(self, step: int) -> None:
        if self.action != "warn":
            self.healthy_step = step
            self.healthy = {name: tensor.detach().clone() for name, tensor in self.state().items()}

    def _what_next(self) -> str:
        if self.action == "warn":
            return (
                "the model looks more robust than it is; on_masking 'repair' (`--on-masking repair`) goes back and on "
                "with another objective"
            )
        looks = {look.step for look in self.monitor.history}
        where = f"to step {self.healthy_step}" if self.healthy_step else "before the first step"
        where += ", its last healthy look" if self.healthy_step in looks else ""
        after = "the training ends there" if self.action == "stop" else f"goes on with {type(self.repair).__name__}"
        if self.action == "stop" and not self.healthy_step:
            after += ", with the weights that it began with, for no look before was healthy"
        return f"the training is put back {where}, and {after}"
