"""Auto-PGD: signed steps with momentum whose size follows the loss; untargeted and towards other classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.attacks.gradient_sign import printed
from surefoot.attacks.worst_case import Logits, Run, fool_in_turn
from surefoot.core.geometry import check_radius, per_sample, project
from surefoot.core.gradients import input_gradient
from surefoot.core.limits import check_count, check_flag
from surefoot.core.losses import answered, cross_entropy, full_precision, margin
from surefoot.core.types import PerSampleLoss, check_loss

RISING = 0.75  # a step size stays where the loss rose in more than this share of the steps
TINY = 1e-12


def dlr_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The difference of logits ratio of each sample, -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)).

    It changes with neither the scale nor the offset of the logits. z_(k) is the k-th largest.

    Args:
        logits: `[batch, classes]`; with two classes there is no z_(3), and the margin is not divided.
        labels: `[batch]` int64.

    Returns:
        `[batch]`, above 0 where misclassified; not divided where z_(3) is -inf, of a class that is masked.

    Example:
        >>> dlr_loss(torch.tensor([[4.0, 3.0, 2.0]]), torch.tensor([0]))
        tensor([-0.5000])

    Source:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-Free
        Attacks", 2020, Eq. 6.
    """
    logits = full_precision(logits)
    loss = margin(logits, labels)
    if logits.shape[1] < 3:
        return loss
    top = logits.topk(3, dim=1).values
    return loss / spread(top[:, 0], top[:, 2])


def targeted_dlr_loss(logits: Tensor, pairs: Tensor) -> Tensor:
    """The targeted ratio of each sample, -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2).

    Args:
        logits: `[batch, classes]`; below four classes there is no z_(4), and z_t - z_y is not divided.
        pairs: `[batch, 2]` int64, the label y and the target t.

    Returns:
        `[batch]`, above 0 where the target is more likely than the label; not divided where z_(3) or z_(4) is -inf.

    Example:
        >>> targeted_dlr_loss(torch.tensor([[4.0, 3.0, 2.0, 2.0]]), torch.tensor([[0, 1]]))
        tensor([-0.5000])

    Source:
        As `dlr_loss`, Eq. 7.
    """
    logits = full_precision(logits)
    true, target = logits.gather(1, pairs).unbind(1)
    if logits.shape[1] < 4:
        return target - true
    top = logits.topk(4, dim=1).values
    return (target - true) / spread(top[:, 0], (top[:, 2] + top[:, 3]) / 2)


def spread(highest: Tensor, lower: Tensor) -> Tensor:
    """Their difference; 1 where the lower is -inf, by which nothing could be divided.

    >>> spread(torch.tensor([2.0, 2.0]), torch.tensor([0.5, -torch.inf]))
    tensor([1.5000, 1.0000])
    """
    masked = lower == -torch.inf
    return torch.where(masked, 1, highest - lower.masked_fill(masked, 0) + TINY)


def likeliest_others(logits: Tensor, labels: Tensor) -> Tensor:
    """The classes beside the label from the largest logit down, `[batch, classes - 1]`."""
    return logits.scatter(1, labels.unsqueeze(1), float("-inf")).argsort(dim=1, descending=True, stable=True)[:, :-1]


def random_start(inputs: Tensor, eps: float) -> Tensor:
    """A uniformly random direction, stretched until its largest change is `eps`; in [0, 1]."""
    noise = torch.empty_like(inputs).uniform_(-1, 1)
    largest = noise.abs().flatten(1).amax(dim=1).clamp(min=TINY)
    return project(inputs + eps * noise / per_sample(largest, inputs), inputs, eps)


def checkpoints(steps: int) -> Iterator[tuple[int, int]]:
    """After how many steps the step size is looked at, and how many steps that is since the last time.

    0.22 of the steps at first, then 0.03 of them fewer each time, 0.06 of them at least.

    Example:
        >>> list(checkpoints(100))
        [(22, 22), (41, 19), (57, 16), (70, 13), (80, 10), (87, 7), (93, 6), (99, 6)]
    """
    width, position = max(int(0.22 * steps), 1), 0
    while position + width <= steps:
        position += width
        yield position, width
        width = max(width - max(int(0.03 * steps), 1), int(0.06 * steps), 1)


def auto_pgd(
    model: Logits,
    inputs: Tensor,
    labels: Tensor,
    goals: Tensor,
    loss: PerSampleLoss,
    *,
    eps: float,
    steps: int,
    stop_when_fooled: bool,
) -> tuple[Tensor, Tensor]:
    """Auto-PGD from a random start.

    Args:
        goals: what `loss` takes beside the logits, a row a sample.
        stop_when_fooled: a sample leaves at its first iterate that is misclassified; else none does.

    Returns:
        The last misclassified iterate, or that with the highest loss; and which of the two it is, `[batch]` bool.
    """
    adv_inputs = previous = best = random_start(inputs, eps)
    gradient = best_gradient = torch.zeros_like(inputs)
    size = per_sample(inputs.new_full([len(inputs)], 2 * eps), inputs)
    highest = checked = inputs.new_full([len(inputs)], float("-inf"))
    value = -highest
    rises = torch.zeros_like(value)
    halved = torch.zeros_like(labels, dtype=torch.bool)
    result, fooled = adv_inputs.clone(), halved.clone()
    rows = torch.arange(len(inputs), device=inputs.device)  # where in `result` the samples still in play belong
    widths = dict(checkpoints(steps))
    for step in range(steps + 1):
        if step < steps:
            gradient, logits = input_gradient(model, adv_inputs, lambda z, g=goals: loss(z, g))  # type: ignore[misc]
        else:
            with torch.no_grad():  # nothing follows that a gradient could serve
                logits = model(adv_inputs)
        wrong = answered(logits) != labels
        hit = bool(wrong.any())  # asked once, for a GPU is waited for
        if hit:
            result[rows[wrong]], fooled[rows[wrong]] = adv_inputs[wrong], True
        if hit and stop_when_fooled:
            if wrong.all():
                return result, fooled
            right = ~wrong
            rows, inputs, labels, goals, logits = (part[right] for part in (rows, inputs, labels, goals, logits))
            adv_inputs, previous, gradient = (part[right] for part in (adv_inputs, previous, gradient))
            best, best_gradient, highest = (part[right] for part in (best, best_gradient, highest))
            size, value, checked, rises, halved = (part[right] for part in (size, value, checked, rises, halved))
        value, before = loss(logits, goals), value
        rises = rises + (value > before)
        better = value > highest
        highest = torch.where(better, value, highest)
        better = better.view_as(size)
        best, best_gradient = torch.where(better, adv_inputs, best), torch.where(better, gradient, best_gradient)
        if step == steps:
            break
        if step in widths:
            # Too few rises, or no new height since the last look although the size was not halved there.
            halved = (rises <= RISING * widths[step]) | (~halved & (checked >= highest))
            back = halved.view_as(size)
            size = torch.where(back, size / 2, size)
            adv_inputs, gradient = torch.where(back, best, adv_inputs), torch.where(back, best_gradient, gradient)
            checked, rises = highest, torch.zeros_like(rises)
        moved = project(adv_inputs + size * gradient.sign(), inputs, eps)
        if step > 0:
            moved = project(adv_inputs + 0.75 * (moved - adv_inputs) + 0.25 * (adv_inputs - previous), inputs, eps)
        previous, adv_inputs = adv_inputs, moved
    standing = ~fooled[rows]
    result[rows[standing]] = best[standing]
    return result, fooled


@dataclass(frozen=True)
class APGD:
    """Auto-PGD, the untargeted PGD that chooses its step size by itself; on cross-entropy it is APGD-CE.

    z = project(x_k + s sign(grad J(x_k))),  x_{k+1} = project(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})), from a
    random point of the ball and with s = 2 eps. At checkpoints (see `checkpoints`) s is halved, and the sample
    goes back to its highest point, where the loss rose in at most three quarters of the steps or has found
    no new height.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        steps: number of gradients, at least 1.
        restarts: independent runs on what is not fooled yet, at least 1.
        loss: what is driven up, `(logits, labels) -> [batch]`; `surefoot.attacks.apgd.dlr_loss` gives APGD-DLR.
        stop_when_fooled: let go of a sample once it is misclassified, clean or at an iterate. False attacks every
            sample to the last step, for samples that are to fool another model, or one that answers at random.

    Called with `(model, inputs [batch, ...] in [0, 1], labels [batch] int64)` it returns inputs of the same shape
    in the ball and [0, 1]: the clean one where it is misclassified, else the first iterate that is, else that
    of the first run with the highest loss. Unless `stop_when_fooled` it is a run's last misclassified iterate,
    else that with the highest loss, of the run with the largest max_{i != y} z_i - z_y. The arithmetic is float32
    (float64 for float64 inputs) and autocast is off; the model is given the inputs' type, so that half-precision
    weights need half-precision inputs, whose result is rounded to that type. Random starts come from torch's global
    generator.

    Cost of a sample that survives: 1 + restarts (steps + 1) forwards and restarts steps backwards; without
    `stop_when_fooled` that of every sample, and a forward a run more.

    Raises:
        ValueError: a radius outside [0, 1], inputs outside [0, 1], one class, or logits without a gradient.
        TypeError: inputs that are not floating or of another type than the weights, or labels that are not int64.

    Example:
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> bool((APGD(eps=0.1, steps=5)(nn.Linear(2, 2), x, y) - x).abs().max() <= 0.1 + 1e-6)
        True

    Source:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-Free
        Attacks", 2020, Alg. 1. As in the authors' code the start lies on the ball's surface and a share of rises
        of exactly 0.75 halves too; as in the paper, and not there, the first step is compared with the start.
    """

    float32_only: ClassVar[bool] = True  # a faster precision than asked for would be another attack

    eps: float
    steps: int = 100
    restarts: int = 1
    loss: PerSampleLoss = cross_entropy
    stop_when_fooled: bool = True

    __repr__ = printed

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_flag("stop_when_fooled", self.stop_when_fooled)
        check_radius("eps", self.eps)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        def run(model: Logits, inputs: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
            return auto_pgd(
                model,
                inputs,
                labels,
                labels,
                self.loss,
                eps=self.eps,
                steps=self.steps,
                stop_when_fooled=self.stop_when_fooled,
            )

        return fool_in_turn(
            model, inputs, labels, lambda _: [run] * self.restarts, stop_when_fooled=self.stop_when_fooled
        )


@dataclass(frozen=True)
class APGDT:
    """Auto-PGD on the targeted difference of logits ratio, towards one other class after the other (APGD-T).

    The steps are those of `APGD`, up the loss -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) (`targeted_dlr_loss`), for
    each of the `targets` classes t that the clean input makes likeliest beside its label. With fewer classes all the
    others are targets; below four classes there is no z_(4), and the loss is z_t - z_y, whose sign steps need no scale.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        steps: number of gradients towards each target, at least 1.
        targets: number of target classes at most, at least 1.
        restarts: independent runs a target, at least 1.
        stop_when_fooled: as in `APGD`; misclassified is a sample whatever the class.

    Shapes, ranges, types and errors are those of `APGD`, and so is what comes back.

    Cost of a sample that survives, with t = min(targets, classes - 1): 1 + t restarts (steps + 1) forwards and
    t restarts steps backwards; without `stop_when_fooled` that of every sample, and a forward a run more.

    Example:
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> bool((APGDT(eps=0.1, steps=5)(nn.Linear(2, 3), x, y) - x).abs().max() <= 0.1 + 1e-6)
        True

    Source:
        As `APGD`. That fewer than ten classes work is our addition.
    """

    float32_only: ClassVar[bool] = True  # a faster precision than asked for would be another attack

    eps: float
    steps: int = 100
    targets: int = 9
    restarts: int = 1
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        check_flag("stop_when_fooled", self.stop_when_fooled)
        check_radius("eps", self.eps)
        check_count("steps", self.steps)
        check_count("targets", self.targets)
        check_count("restarts", self.restarts)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        def run(rank: int, model: Logits, inputs: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
            pairs = torch.stack([labels, likeliest_others(logits, labels)[:, rank]], dim=1)
            return auto_pgd(
                model,
                inputs,
                labels,
                pairs,
                targeted_dlr_loss,
                eps=self.eps,
                steps=self.steps,
                stop_when_fooled=self.stop_when_fooled,
            )

        def runs(classes: int) -> list[Run]:
            ranks = range(min(self.targets, classes - 1))
            return [partial(run, rank) for rank in ranks for _ in range(self.restarts)]

        return fool_in_turn(model, inputs, labels, runs, stop_when_fooled=self.stop_when_fooled)
