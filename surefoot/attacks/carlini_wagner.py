"""The l2 attack of Carlini and Wagner."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.core.geometry import check_batch, per_sample
from surefoot.core.gradients import crafting, input_gradient, without_gradients, without_nan
from surefoot.core.limits import check_above_zero, check_count, check_flag, check_not_negative, check_number
from surefoot.core.losses import check_logits, check_logits_shape, full_precision, margin

EDGE = 1e-3
"""Black and white start this far inside tanh's range of (-1, 1), where its slope still lets them move."""

STALLED = 0.999
"""Abort where the lowest loss so far is still more than this share of what it was at the check before."""

LARGEST_C = 1e10

NEAR = 8
"""A first c that succeeds is halved down to this part of it, enough for ordinary logits, and then divided by 10."""


@dataclass(frozen=True)
class CarliniWagnerL2:
    """The smallest l2 perturbation that Adam finds for the best weight c of the attack's two terms.

    For x' = (tanh(w) + 1) / 2 minimise ||x' - x||_2^2 + c max(g(x') + confidence, 0) over w, where g is
    z_y - max_{i != y} z_i, or max_{i != t} z_i - z_t towards a class t. Success lowers c, failure raises it.

    Args:
        confidence: kappa, the margin to reach in logits, at least 0.
        learning_rate: Adam's, in units of w, above 0.
        steps: at most so many gradients for each c, at least 1.
        search_steps: how many c are tried, at least 1: tenfold until the first success, then halving; where an eighth
            of the first c still succeeds, as with large logits, a tenth until the first failure.
        initial_c: the first c, above 0.
        abort_early: drop a sample from the try of one c when a tenth of the steps (10 at least) lowered its lowest
            loss by less than 0.1 %; the others go on without it.
        targeted: the labels are the classes to reach.

    Called with `(model, inputs [batch, channels, height, width] in [0, 1], labels [batch] int64)` it returns, for
    each sample, the nearest image seen that succeeds, in [0, 1]; the model is left as it was. Samples that
    succeed already, and samples that never do, come back unchanged: the latter count as not fooled.

    Raises:
        ValueError: a field out of its range, inputs outside [0, 1], a model with one logit or without gradient.
        TypeError: inputs that are not floating or of another type than the weights, labels that are not int64, or a
            field that is no number.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> adv_inputs = CarliniWagnerL2(steps=200)(net, torch.tensor([[0.7, 0.3]]), torch.tensor([0]))
        >>> [round(value, 2) for value in adv_inputs[0].tolist()]  # the boundary is x_0 = x_1
        [0.5, 0.5]

    Source:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017, section V-A with f_6.
        Deviations: distances are to the image itself, while w starts from the image drawn 0.1 % towards grey (at
        exactly 0 and 1 tanh has no slope); aborting is each sample's own, at 0.1 % where the authors' code says
        0.01 % of the whole batch; c starts at 1 instead of 0.001; up to 1,000 steps instead of 10,000.
    """

    float32_only: ClassVar[bool] = True  # it ends just beyond a boundary, which bfloat16 has elsewhere

    confidence: float = 0.0
    learning_rate: float = 0.01
    steps: int = 1000
    search_steps: int = 9
    initial_c: float = 1.0
    abort_early: bool = True
    targeted: bool = False

    def __post_init__(self) -> None:
        check_not_negative("confidence", self.confidence, example=f"{type(self).confidence}")
        check_number("initial_c", self.initial_c, example=f"{type(self).initial_c}")
        check_above_zero("learning_rate", self.learning_rate, example=f"{type(self).learning_rate}")
        check_count("steps", self.steps)
        check_count("search_steps", self.search_steps)
        for name in ("abort_early", "targeted"):
            check_flag(name, getattr(self, name))
        if not 0 < self.initial_c <= LARGEST_C:
            raise ValueError(f"initial_c is {self.initial_c}; it must be above 0 and at most {LARGEST_C:g}.")

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        with crafting(model, inputs) as frozen:
            result = inputs.detach().clone()
            with without_gradients():
                rows = (~self._succeeds(self._gap(frozen(result), labels))).nonzero().squeeze(1)
            inputs, labels = result[rows], labels[rows]
            c = full_precision(inputs).new_full((len(rows),), self.initial_c)
            low, high, best = torch.zeros_like(c), torch.full_like(c, math.inf), torch.full_like(c, math.inf)
            for _ in range(self.search_steps if len(rows) else 0):
                adv_inputs, distances = self._descend(frozen, inputs, labels, c)
                closer, found = distances < best, distances < math.inf
                result[rows[closer]] = adv_inputs[closer]
                best = torch.minimum(best, distances)
                low, high = torch.where(found, low, c), torch.where(found, c, high)
                between = torch.where((low > 0) | (c > self.initial_c / NEAR), (low + high) / 2, c / 10)
                c = torch.where(high < math.inf, between, 10 * c).clamp(max=LARGEST_C)
            return result

    def _gap(self, logits: Tensor, labels: Tensor) -> Tensor:
        """g of each sample, below 0 where the attack has what it wants."""
        check_logits_shape(check_logits(logits))
        if logits.shape[1] < 2:
            raise ValueError("CarliniWagnerL2 compares two classes, but the model has one logit a sample.")
        return margin(logits, labels) if self.targeted else -margin(logits, labels)

    def _succeeds(self, gap: Tensor) -> Tensor:
        return (gap < 0) & (gap <= -self.confidence)

    def _descend(self, model: nn.Module, inputs: Tensor, labels: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Adam for one c a sample: the nearest success of each and its squared distance, infinite where none."""
        clean = full_precision(inputs)
        result, distances = inputs.clone(), torch.full_like(c, math.inf)
        points = ((2 * clean - 1) * (1 - EDGE)).atanh()  # w
        mean, square = torch.zeros_like(points), torch.zeros_like(points)
        closest, shortest, lowest, before = result, distances, distances, distances
        rows = torch.arange(len(inputs), device=inputs.device)
        check_every = max(10, math.ceil(self.steps / 10))

        def hinge(logits: Tensor) -> Tensor:
            return c * (self._gap(logits, labels) + self.confidence).clamp(min=0)

        for step in range(1, self.steps + 1):
            images = (points.tanh() + 1) / 2
            adv_inputs = images.to(inputs.dtype)
            gradient, logits = input_gradient(model, adv_inputs, hinge)
            away = full_precision(adv_inputs) - clean
            distance = away.flatten(1).square().sum(dim=1)
            closer = self._succeeds(self._gap(logits, labels)) & (distance < shortest)
            shortest = torch.where(closer, distance, shortest)
            closest = torch.where(per_sample(closer, inputs), adv_inputs, closest)

            # dx'/dw = (1 - tanh^2) / 2
            gradient = (full_precision(without_nan(gradient)) + 2 * away) * 2 * images * (1 - images)
            mean = mean.lerp(gradient, 0.1)
            square = square.lerp(gradient.square(), 0.001)
            spread = (square / (1 - 0.999**step)).sqrt() + 1e-8
            points = points - self.learning_rate / (1 - 0.9**step) * mean / spread

            lowest = torch.minimum(lowest, distance + hinge(logits))
            if self.abort_early and step % check_every == 0:
                alive = lowest < STALLED * before
                result[rows], distances[rows] = closest, shortest
                if not alive.any():
                    return result, distances
                rows, clean, labels, c = rows[alive], clean[alive], labels[alive], c[alive]
                points, mean, square = points[alive], mean[alive], square[alive]
                closest, shortest, lowest = closest[alive], shortest[alive], lowest[alive]
                before = lowest
        result[rows], distances[rows] = closest, shortest
        return result, distances
