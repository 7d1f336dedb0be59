"""Fast Adaptive Boundary attack: steps to the linearised boundary, drawn back to the clean input."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.attacks.apgd import likeliest_others, random_start
from surefoot.attacks.worst_case import Logits, Run, fool_in_turn
from surefoot.core.geometry import check_radius, linf_distance, per_sample
from surefoot.core.gradients import input_gradient, without_nan
from surefoot.core.limits import check_count
from surefoot.core.losses import answered

OVERSHOOT = 1.05  # eta: how far a step goes beyond the linearised boundary
LARGEST_BIAS = 0.1  # alpha_max: the largest share of the step that starts at the clean input
BACKWARD = 0.9  # beta: what is left of the perturbation after the boundary was crossed


def move_to_plane(points: Tensor, weights: Tensor, change: Tensor) -> Tensor:
    """The step d with the least largest entry that keeps points + d in [0, 1] and has <weights, d> = change.

    Every entry goes the same length in its helpful direction, or to the end of the pixel range:
    d_i = sign_i min(length, room_i), where sum_i |w_i| min(length, room_i) = |change|. The left side is concave
    and piecewise linear in the length, so Newton's steps from 0 climb to the root without passing it, in
    about five rounds; sorting the rooms would give it at once, but is slower.

    Args:
        points, weights: `[batch, features]`, points in [0, 1].
        change: `[batch]`.

    Returns:
        `[batch, features]`; all entries to their ends where no step is long enough, and 0 where all weights are.

    Example:
        >>> move_to_plane(torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 2.0]]), torch.tensor([0.6]))
        tensor([[0.4000, 0.1000]])
    """
    signs = weights.sign() * change.sign().unsqueeze(1)
    room = torch.where(signs > 0, 1 - points, points)
    pull, wanted = weights.abs(), change.abs()
    length = torch.zeros_like(wanted)
    tiny = torch.finfo(wanted.dtype).tiny
    for _ in range(50):
        short = wanted - (pull * torch.minimum(room, length.unsqueeze(1))).sum(dim=1)
        moving = (short > 1e-6 * wanted) & (length < 1)
        if not moving.any():
            break
        slope = (pull * (room > length.unsqueeze(1))).sum(dim=1)
        length = torch.where(moving, length + short / slope.clamp(min=tiny), length).clamp(max=1)
    return signs * torch.minimum(room, length.unsqueeze(1))


def nearest_adversarial(
    model: Logits, inputs: Tensor, labels: Tensor, targets: Tensor, start: Tensor, *, radius: float, steps: int
) -> tuple[Tensor, Tensor]:
    """FAB towards `targets`; a sample leaves once it has an adversarial input within `radius`.

    Args:
        start: the first iterate.
        radius: l-infinity; 0 looks for the nearest to the last step.

    Returns:
        The nearest misclassified input found, the clean one where there is none, and its l-infinity distance,
        `[batch]`, infinite where there is none.
    """
    result, distances = inputs.clone(), inputs.new_full([len(inputs)], float("inf"))
    rows = torch.arange(len(inputs), device=inputs.device)  # where in `result` the samples still in play belong
    pairs = torch.stack([labels, targets], dim=1)
    adv_inputs, nearest, distance = start, result, distances

    def lead(logits: Tensor, pairs: Tensor) -> Tensor:
        true, target = logits.gather(1, pairs).unbind(1)
        return target - true

    for _ in range(steps):
        gradient, logits = input_gradient(model, adv_inputs, lambda z, p=pairs: lead(z, p))  # type: ignore[misc]
        gap = lead(logits, pairs)
        here, origin, weights = adv_inputs.flatten(1), inputs.flatten(1), without_nan(gradient).flatten(1)
        clean_gap = gap + (weights * (origin - here)).sum(dim=1)  # of the linearisation, at the clean input
        moves = move_to_plane(torch.cat([here, origin]), torch.cat([weights] * 2), -torch.cat([gap, clean_gap]))
        from_here, from_origin = moves.abs().amax(dim=1, keepdim=True).clamp(min=1e-8).chunk(2)
        bias = (from_here / (from_here + from_origin)).clamp(max=LARGEST_BIAS)
        move, clean_move = moves.chunk(2)
        moved = (1 - bias) * (here + OVERSHOOT * move) + bias * (origin + OVERSHOOT * clean_move)
        adv_inputs = moved.clamp(0, 1).view_as(inputs)
        with torch.no_grad():
            wrong = answered(model(adv_inputs)) != labels
        reached = linf_distance(adv_inputs, inputs)
        closer = wrong & (reached < distance)
        column = per_sample(closer, inputs)
        nearest, distance = torch.where(column, adv_inputs, nearest), torch.where(closer, reached, distance)
        near = distance <= radius
        if near.any():
            result[rows[near]], distances[rows[near]] = nearest[near], distance[near]
            if near.all():
                return result, distances
            far = ~near
            rows, inputs, labels, pairs = (part[far] for part in (rows, inputs, labels, pairs))
            adv_inputs, nearest, distance, wrong = (part[far] for part in (adv_inputs, nearest, distance, wrong))
        wrong = per_sample(wrong, inputs)
        adv_inputs = torch.where(wrong, inputs + BACKWARD * (adv_inputs - inputs), adv_inputs)
    result[rows], distances[rows] = nearest, distance
    return result, distances


@dataclass(frozen=True)
class FABT:
    """The targeted Fast Adaptive Boundary attack: finds near adversarial inputs, and takes those within eps.

    With f = z_t - z_y linearised at x_k, d and d_0 move x_k and the clean x to the plane f = 0 (`move_to_plane`);
    x_{k+1} = (1 - a)(x_k + 1.05 d) + a (x + 1.05 d_0), a = min(|d| / (|d| + |d_0|), 0.1), in [0, 1]; where that is
    misclassified it is noted, and x_{k+1} drawn back to x + 0.9 (x_{k+1} - x). The targets t are the classes that
    the clean input makes likeliest beside its label y, all of them where there are fewer than `targets`.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1]. The search itself knows no radius.
        steps: number of gradients towards each target, at least 1.
        targets: number of target classes at most, at least 1.
        restarts: runs a target, at least 1: the first from the clean input, the others from a random point
            eps / 2 away.

    Shapes, ranges, types and errors are those of `APGD`. A sample that survives comes back as its clean
    input. It draws from torch's global generator only where restarts > 1. A gradient of zero moves nothing.

    Cost of a sample that survives, with t = min(targets, classes - 1): 1 + 2 t restarts steps forwards and
    t restarts steps backwards.

    Example:
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> bool((FABT(eps=0.1, steps=5)(nn.Linear(2, 3), x, y) - x).abs().max() <= 0.1 + 1e-6)
        True

    Source:
        Croce and Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack", 2020,
        Alg. 1, towards one class at a time and without the final search, as in the authors' AutoAttack. A sample
        leaves at its first adversarial input within eps.
    """

    float32_only: ClassVar[bool] = True  # a faster precision than asked for would be another attack

    eps: float
    steps: int = 100
    targets: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        check_radius("eps", self.eps)
        check_count("steps", self.steps)
        check_count("targets", self.targets)
        check_count("restarts", self.restarts)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        def run(
            rank: int, restart: int, model: Logits, inputs: Tensor, labels: Tensor, logits: Tensor
        ) -> tuple[Tensor, Tensor]:
            targets = likeliest_others(logits, labels)[:, rank]
            start = random_start(inputs, self.eps / 2) if restart else inputs
            found, distance = nearest_adversarial(
                model, inputs, labels, targets, start, radius=self.eps, steps=self.steps
            )
            fooled = distance <= self.eps
            return torch.where(per_sample(fooled, inputs), found, inputs), fooled

        def runs(classes: int) -> list[Run]:
            ranks = range(min(self.targets, classes - 1))
            return [partial(run, rank, restart) for rank in ranks for restart in range(self.restarts)]

        return fool_in_turn(model, inputs, labels, runs)
