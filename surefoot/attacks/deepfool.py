"""DeepFool: the nearest decision boundary, one linearisation after another."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.core.geometry import check_batch, check_labels, per_sample
from surefoot.core.gradients import NO_GRADIENT, crafting, without_gradients, without_nan
from surefoot.core.limits import check_count, check_number
from surefoot.core.losses import answered, check_logits_shape, full_precision

PAST_BOUNDARY = 1e-4  # l2 added to every step: a boundary that is merely reached is not crossed

WIDE = 5
"""The first of so many linearisations in a row considers all candidate classes,"""
FOLLOWED = 4
"""the others so many: those whose boundaries were the nearest."""


@dataclass(frozen=True)
class DeepFool:
    """A small l2 perturbation that crosses the nearest decision boundary of the linearised model.

    With f_k = z_y - z_k and w_k = grad_x f_k of the candidate classes k, the nearest boundary is that of
    l = argmin_k |f_k| / ||w_k||_2, and x <- clip(x - (1 + overshoot) f_l w_l / ||w_l||_2^2), until f(x) != y.

    Args:
        steps: at most so many linearisations, at least 1; a sample leaves the batch when it crosses.
        overshoot: eta, how much further than the linear boundary, in [0, 1].
        candidates: the classes considered, y and those with the highest logits on the clean image, at least 2.
            A linearisation costs a forward and a backward per class other than y; of five in a row the last four
            take four classes, those whose boundaries were the nearest.
        shorten: halvings, each a forward, of the last half of the way from the clean image to the crossing, after
            which the nearest misclassified point that they saw is kept; 0 keeps the crossing, as published.

    Called with `(model, inputs [batch, channels, height, width] in [0, 1], labels [batch] int64)` it returns
    images of the same shape in [0, 1]; the model is left as it was. Samples that are misclassified already come
    back unchanged. One that has not crossed after `steps` comes back as its last iterate, its perturbation
    lengthened by `overshoot`. There is no radius: ||x* - x||_2 is what was needed, `mean_l2` of a `Record`.

    Raises:
        ValueError: a field out of its range, inputs outside [0, 1], a model with one logit or without gradient.
        TypeError: inputs that are not floating or of another type than the weights, labels that are not int64, or a
            field that is no number.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> DeepFool()(net, torch.tensor([[0.7, 0.3]]), torch.tensor([0]))  # the boundary is x_0 = x_1
        tensor([[0.4991, 0.5009]])

    Source:
        Moosavi-Dezfooli et al., "DeepFool: a Simple and Accurate Method to Fool Deep Neural Networks", 2016,
        Algorithm 2. Deviations: every iterate is clipped to [0, 1]; the overshoot is applied to each step, so that
        what is tested for crossing is the iterate itself; 1e-4 is added to each step's length; four of five
        linearisations take four classes; `shorten`. f is measured from the label, not from the prediction: they
        are the same where there is something to do.
    """

    float32_only: ClassVar[bool] = True  # it ends just beyond a boundary, which bfloat16 has elsewhere

    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    shorten: int = 6

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_number("overshoot", self.overshoot, example="0.02")
        if not 0 <= self.overshoot <= 1:
            raise ValueError(f"overshoot is {self.overshoot}; it must be in [0, 1].")
        check_count("candidates", self.candidates)
        if self.candidates < 2:
            raise ValueError(f"candidates is {self.candidates}; it counts the true class too, so give at least 2.")
        check_count("shorten", self.shorten, least=0)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        with crafting(model, inputs) as frozen:
            inputs, labels = inputs.detach().clone(), labels.clone()  # autograd refuses tensors of inference_mode
            return self._shorten(frozen, inputs, self._cross(frozen, inputs, labels), labels)

    def _cross(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        result = full_precision(inputs).clone()  # narrower types would lose steps smaller than their own
        rows = torch.arange(len(inputs), device=inputs.device)  # where in `result` the samples still in play belong
        points, others = result.clone(), None
        for step in range(self.steps + 1):
            points = points.detach().requires_grad_()
            logits = full_precision(model(points.to(inputs.dtype)))
            if not logits.requires_grad:
                raise ValueError(NO_GRADIENT)
            if step == 0:
                check_logits_shape(logits)
                check_labels(labels, logits.shape[1])
            alive = answered(logits) == labels
            result[rows] = points.detach()
            if step == self.steps or not alive.any():
                break
            if others is None:
                others = self._others(logits.detach(), labels)
            if step % WIDE == 0:
                near = others
            if not alive.all():  # one more forward of the rest takes less than backwards of what has crossed
                rows, points, labels, others, near = (each[alive] for each in (rows, points, labels, others, near))
                points = points.detach().requires_grad_()
                logits = full_precision(model(points.to(inputs.dtype)))
            gaps, slopes = self._linearise(points, logits, labels, near)
            order = self._by_distance(gaps, slopes)
            points = self._step(points.detach(), gaps, slopes, order[:, :1])
            near = near.gather(1, order[:, :FOLLOWED])
        rows = rows[alive]
        lengthened = inputs[rows] + (1 + self.overshoot) * (result[rows] - inputs[rows])
        result[rows] = lengthened.clamp(0, 1)
        return result

    def _others(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The candidates beside the label, `[batch, classes]`."""
        count = min(self.candidates, logits.shape[1]) - 1
        if count < 1:
            raise ValueError("DeepFool compares two classes, but the model has one logit a sample.")
        return logits.scatter(1, labels.unsqueeze(1), float("-inf")).topk(count, dim=1).indices

    def _linearise(self, points: Tensor, logits: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """f_k `[batch, classes]` and w_k `[batch, classes, pixels]`: one forward, a backward over the batch a class."""
        gaps = logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, others)
        slopes = []
        for k in range(gaps.shape[1]):
            last = k + 1 == gaps.shape[1]
            (slope,) = torch.autograd.grad(gaps[:, k].sum(), points, retain_graph=not last, allow_unused=True)
            if slope is None:  # only the weights are in the graph: the inputs were detached on the way
                raise ValueError(NO_GRADIENT)
            slopes.append(full_precision(without_nan(slope)).flatten(1))
        return gaps.detach(), torch.stack(slopes, dim=1)

    def _by_distance(self, gaps: Tensor, slopes: Tensor) -> Tensor:
        """The order of the classes, `[batch, classes]`, the one with the nearest boundary first."""
        norms = slopes.norm(dim=2)
        # A flat class is out of reach, not near.
        distances = (gaps / norms).masked_fill(norms == 0, float("inf"))
        return torch.argsort(distances, dim=1, stable=True)

    def _step(self, points: Tensor, gaps: Tensor, slopes: Tensor, nearest: Tensor) -> Tensor:
        slope = slopes.gather(1, nearest.unsqueeze(2).expand(-1, -1, slopes.shape[2])).squeeze(1)
        norm = slope.norm(dim=1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
        # No image is further away than the cube's diagonal: this keeps tiny slopes finite.
        length = (gaps.gather(1, nearest) / norm).clamp(max=math.sqrt(slopes.shape[2])) + PAST_BOUNDARY
        moved: Tensor = points.flatten(1) - (1 + self.overshoot) * length * (slope / norm)
        return moved.clamp(0, 1).view_as(points)

    @without_gradients()
    def _shorten(self, model: nn.Module, inputs: Tensor, adv_inputs: Tensor, labels: Tensor) -> Tensor:
        dtype, inputs = inputs.dtype, full_precision(inputs)
        high = torch.ones(len(inputs), dtype=inputs.dtype, device=inputs.device)
        low = high / 2
        for _ in range(self.shorten):
            middle = (low + high) / 2
            fooled = answered(model(inputs.lerp(adv_inputs, per_sample(middle, inputs)).to(dtype))) != labels
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        return inputs.lerp(adv_inputs, per_sample(high, inputs)).to(dtype)
