"""The l-infinity family: FGSM, R-FGSM, I-FGSM, MI-FGSM and PGD (Eq. 1-11 of the paper).

They share one loop, `ascend`. Gradients are of the sum of per-sample losses, so that a sample's result
does not depend on its batch, and every iterate is projected to the ball and to [0, 1].
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.core.geometry import check_batch, check_radius, per_sample, project
from surefoot.core.gradients import crafting, input_gradient, without_gradients, without_nan
from surefoot.core.limits import check_count, check_flag, check_not_negative
from surefoot.core.losses import answered, cross_entropy, full_precision
from surefoot.core.types import PerSampleLoss, check_loss


def random_signs(inputs: Tensor) -> Tensor:
    """sign(N(0, I)) shaped as `inputs`, from torch's global generator (Eq. 2)."""
    return torch.randn_like(inputs).sign()


def ascend(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    start: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    loss: PerSampleLoss = cross_entropy,
    decay: float | None = None,
    stop_when_fooled: bool = False,
) -> Tensor:
    """`steps` signed gradient steps from `start`, each projected to the ball around `inputs` and [0, 1].

    The loop inside every attack of this file, for callers that hold the plain module already.

    Args:
        model: a module from `core.gradients.crafting`.
        inputs: `[batch, ...]`, the centre of the ball.
        targets: what `loss` takes beside the logits; labels where `stop_when_fooled`.
        start: `[batch, ...]`, the first iterate.
        eps, step_size: radii in pixel units of [0, 1].
        decay: the momentum mu of Eq. 10; None follows the gradient itself.
        stop_when_fooled: a sample leaves the batch at its first iterate that is misclassified.

    Returns:
        The last iterate of each sample, or its first misclassified one where `stop_when_fooled`.
    """
    dtype = inputs.dtype  # what the model is given; in half precision itself an iterate would round small steps away
    inputs, adv_inputs = full_precision(inputs.detach()), full_precision(start.detach())
    if targets.is_inference():  # autograd saves them, which it refuses for tensors made under inference_mode
        targets = targets.clone()
    momentum: Tensor | None = None
    result = adv_inputs.clone() if stop_when_fooled else None
    rows = torch.arange(len(inputs), device=inputs.device)  # where in `result` the samples still in play belong
    for _ in range(steps):
        gradient, logits = input_gradient(
            lambda images: model(images.to(dtype)),
            adv_inputs,
            lambda z, t=targets: loss(z, t),  # type: ignore[misc]
        )
        if decay is not None:
            gradient = without_nan(gradient)
            length = gradient.abs().flatten(1).sum(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
            gradient = gradient / per_sample(length, gradient)
            gradient = momentum = gradient if momentum is None else decay * momentum + gradient
        if result is not None:
            alive = answered(logits) == targets
            if not alive.all():
                result[rows[~alive]] = adv_inputs[~alive]
                if not alive.any():
                    return result.to(dtype)
                rows, inputs, targets = rows[alive], inputs[alive], targets[alive]
                adv_inputs, gradient = adv_inputs[alive], gradient[alive]
                momentum = momentum[alive] if momentum is not None else None
        adv_inputs = project(adv_inputs + step_size * gradient.sign(), inputs, eps)
    if result is None:
        return adv_inputs.to(dtype)
    result[rows] = adv_inputs
    return result.to(dtype)


def printed(attack: Any) -> str:
    """An attack with its fields, a function among them by its name instead of its address.

    >>> FGSM(eps=0.1)
    FGSM(eps=0.1, loss=cross_entropy)
    """
    values = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}
    shown = (f"{name}={getattr(value, '__name__', None) or repr(value)}" for name, value in values.items())
    return f"{type(attack).__name__}({', '.join(shown)})"


def go_on(attack: "IFGSM | MIFGSM | PGD", model: nn.Module, inputs: Tensor, labels: Tensor, start: Tensor) -> Tensor:
    """A tenth of the attack's steps, three times as long, from `start` up to the first misclassified iterate.

    What an attack in bfloat16 just missed is found by a few steps of float32; `core.types.LastingAttack`.
    """
    check_batch(inputs, labels)
    step_size = attack.step_size if isinstance(attack, PGD) else attack.eps / attack.steps
    with crafting(model, inputs) as frozen:
        return ascend(
            frozen,
            inputs,
            labels,
            start,
            eps=attack.eps,
            steps=-(-attack.steps // 10),
            step_size=min(1.0, 3 * step_size),
            loss=attack.loss,
            stop_when_fooled=True,
        )


@dataclass(frozen=True)
class FGSM:
    """The fast gradient sign method, x* = x + eps sign(grad_x J(f(x), y)) (Eq. 1).

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        loss: what is driven up, `(logits, labels) -> [batch]`.

    Called with `(model, inputs [batch, channels, height, width] in [0, 1], labels [batch] int64)` it returns
    adversarial inputs of the same shape and type, in [0, 1] and, up to that type's rounding (float16, bfloat16), within
    eps; the model is left as it was.

    Raises:
        ValueError: a radius outside [0, 1], or inputs outside [0, 1].
        TypeError: inputs that are not floating or of another type than the weights, or labels that are not int64.

    Example:
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> FGSM(eps=0.1)(nn.Linear(2, 2, bias=False).requires_grad_(False), x, y).sub(x).abs()
        tensor([[0.1000, 0.1000]])

    Source:
        Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015. The result is clipped to
        [0, 1], which Eq. 1 leaves unsaid.
    """

    eps: float
    loss: PerSampleLoss = cross_entropy

    __repr__ = printed

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_radius("eps", self.eps)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        with crafting(model, inputs) as frozen:
            return ascend(frozen, inputs, labels, inputs, eps=self.eps, steps=1, step_size=self.eps, loss=self.loss)


@dataclass(frozen=True)
class RFGSM:
    """A random signed step, then FGSM with what is left of the radius (Eq. 2-3).

    x' = x + random_step sign(N(0, I)),  x* = x' + (eps - random_step) sign(grad_x' J(f(x'), y)).

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        random_step: alpha, the length of the random step, in [0, eps].
        loss: what is driven up.

    Shapes, ranges and errors are those of `FGSM`; the random step comes from torch's global generator.

    Example:
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> bool((RFGSM(eps=0.3, random_step=0.1)(nn.Linear(2, 2), x, y) - x).abs().max() <= 0.3 + 1e-6)
        True

    Source:
        Tramèr et al., "Ensemble Adversarial Training", 2018. x' is clipped to [0, 1] as well, so that the
        gradient is taken at an image.
    """

    eps: float
    random_step: float
    loss: PerSampleLoss = cross_entropy

    __repr__ = printed

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_radius("eps", self.eps)
        check_radius("random_step", self.random_step)
        if self.random_step > self.eps:
            raise ValueError(f"random_step is {self.random_step:.4g}; it must not exceed eps, {self.eps:.4g}.")

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        start = project(inputs + self.random_step * random_signs(inputs), inputs, self.eps)
        left = self.eps - self.random_step
        with crafting(model, inputs) as frozen:
            return ascend(frozen, inputs, labels, start, eps=self.eps, steps=1, step_size=left, loss=self.loss)


@dataclass(frozen=True)
class IFGSM:
    """FGSM in `steps` equal steps of eps / steps (Eq. 4-5).

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        steps: number of gradients, at least 1.
        loss: what is driven up.
        stop_when_fooled: stop each sample at its first misclassified iterate; False is the paper's last iterate.

    Shapes, ranges, rounding and errors are those of `FGSM`.

    Example:
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> IFGSM(eps=0.1, steps=4)(nn.Linear(2, 2), x, y).sub(x).abs()
        tensor([[0.1000, 0.1000]])

    Source:
        Kurakin et al., "Adversarial Examples in the Physical World", 2016. Every iterate is clipped to [0, 1].
    """

    eps: float
    steps: int
    loss: PerSampleLoss = cross_entropy
    stop_when_fooled: bool = False

    __repr__ = printed

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_radius("eps", self.eps)
        check_count("steps", self.steps)
        check_flag("stop_when_fooled", self.stop_when_fooled)

    go_on = go_on

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        with crafting(model, inputs) as frozen:
            return ascend(
                frozen,
                inputs,
                labels,
                inputs,
                eps=self.eps,
                steps=self.steps,
                step_size=self.eps / self.steps,
                loss=self.loss,
                stop_when_fooled=self.stop_when_fooled,
            )


@dataclass(frozen=True)
class MIFGSM:
    """I-FGSM along a momentum of l1-normalised gradients (Eq. 9-11).

    p <- decay p + g / ||g||_1,  x <- x + (eps / steps) sign(p), with p = 0 at the start.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        steps: number of gradients, at least 1.
        decay: mu, at least 0; 0 is I-FGSM.
        loss: what is driven up.
        stop_when_fooled: stop each sample at its first misclassified iterate; False is the paper's last iterate.

    Shapes, ranges and errors are those of `FGSM`.

    Example:
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> MIFGSM(eps=0.1, steps=4)(nn.Linear(2, 2), x, y).sub(x).abs()
        tensor([[0.1000, 0.1000]])

    Source:
        Dong et al., "Boosting Adversarial Attacks with Momentum", 2018. The l1 norm is each sample's own. A
        gradient of exactly zero adds nothing to the momentum.
    """

    eps: float
    steps: int
    decay: float = 1.0
    loss: PerSampleLoss = cross_entropy
    stop_when_fooled: bool = False

    __repr__ = printed

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_radius("eps", self.eps)
        check_count("steps", self.steps)
        check_flag("stop_when_fooled", self.stop_when_fooled)
        check_not_negative("decay", self.decay)

    go_on = go_on

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        with crafting(model, inputs) as frozen:
            return ascend(
                frozen,
                inputs,
                labels,
                inputs,
                eps=self.eps,
                steps=self.steps,
                step_size=self.eps / self.steps,
                loss=self.loss,
                decay=self.decay,
                stop_when_fooled=self.stop_when_fooled,
            )


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent in the l-infinity ball (Eq. 6-8); PGD-CW with `loss=MarginLoss(50)`.

    x <- project(x + step_size sign(grad_x J(f(x), y))), from a uniformly random start.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        steps: number of gradients, at least 1.
        step_size: length of a step in pixel units, in (0, 1].
        random_start: start at x + U(-start_radius, start_radius) instead of x.
        restarts: independent runs, at least 1; each sample keeps one that fools the model, and among those,
            or where none does, the one with the largest loss.
        loss: what is driven up.
        start_radius: None is eps, the whole ball; the paper's Eq. 6 is `start_radius=step_size`.
        stop_when_fooled: stop each sample at its first misclassified iterate; False is the paper's last iterate.

    Shapes, ranges, rounding and errors are those of `FGSM`; random starts come from torch's global generator.

    Example:
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> PGD(eps=0.1, steps=9, step_size=0.03)(nn.Linear(2, 2), x, y).sub(x).abs()
        tensor([[0.1000, 0.1000]])

    Source:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, whose start is the
        whole ball; the paper's is one step wide. Every iterate is clipped to [0, 1].
    """

    eps: float
    steps: int
    step_size: float
    random_start: bool = True
    restarts: int = 1
    loss: PerSampleLoss = cross_entropy
    start_radius: float | None = None
    stop_when_fooled: bool = False

    __repr__ = printed

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_radius("eps", self.eps)
        check_count("steps", self.steps)
        check_flag("stop_when_fooled", self.stop_when_fooled)
        check_radius("step_size", self.step_size, positive=True)
        check_count("restarts", self.restarts)
        check_flag("random_start", self.random_start)
        if self.start_radius is not None:
            check_radius("start_radius", self.start_radius)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts is {self.restarts} without a random start, so every run would be the same; "
                "give random_start=True or restarts=1."
            )

    go_on = go_on

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        with crafting(model, inputs) as frozen:
            best = self._run(frozen, inputs, labels)
            if self.restarts == 1:
                return best
            fooled, losses = self._score(frozen, best, labels)
            for _ in range(self.restarts - 1):
                rows = (
                    (~fooled).nonzero().squeeze(1)
                    if self.stop_when_fooled
                    else torch.arange(len(inputs), device=inputs.device)
                )
                if len(rows) == 0:
                    break
                adv_inputs = self._run(frozen, inputs[rows], labels[rows])
                now_fooled, now_losses = self._score(frozen, adv_inputs, labels[rows])
                better = torch.where(now_fooled == fooled[rows], now_losses > losses[rows], now_fooled)
                rows = rows[better]
                best[rows], fooled[rows], losses[rows] = (
                    adv_inputs[better],
                    now_fooled[better],
                    now_losses[better],
                )
            return best

    def _run(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        start = inputs
        if self.random_start:
            radius = self.eps if self.start_radius is None else self.start_radius
            start = project(inputs + torch.empty_like(inputs).uniform_(-radius, radius), inputs, self.eps)
        return ascend(
            model,
            inputs,
            labels,
            start,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            loss=self.loss,
            stop_when_fooled=self.stop_when_fooled,
        )

    def _score(self, model: nn.Module, adv_inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with without_gradients():
            logits = model(adv_inputs)
            return answered(logits) != labels, self.loss(logits, labels)
