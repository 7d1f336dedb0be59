"""A search by predicted classes alone: it sees through whatever a model does to its gradients and its scores."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surefoot.core.geometry import check_batch, check_radius
from surefoot.core.gradients import crafting, without_gradients
from surefoot.core.limits import check_count
from surefoot.core.losses import answered, check_logits, check_logits_shape

HALVINGS = 8  # of the interval that a radius is searched in


@dataclass(frozen=True)
class LabelSearch:
    """The corner of a ball, as small as can be, that the model misclassifies; found from its answers alone.

    A sample's direction is a sign for each pixel, all +1 at first, and its radius the smallest found at which
    x + radius signs, clipped to [0, 1], is misclassified. Blocks of signs are flipped in turn, halves of the image
    first, then quarters, and so on; a flip stays where the sample is misclassified at a smaller radius, which is then
    found by halving. It ends where the radius is within `eps`.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        queries: flips tried, at least 1.

    Called with `(model, inputs [batch, ...] in [0, 1], labels [batch] int64)` it returns inputs of the same shape in
    the ball and [0, 1].

    Raises:
        ValueError: a radius outside [0, 1], inputs outside [0, 1].
        TypeError: inputs that are not floating or of another type than the weights, labels that are not int64, a model
            that answers with no tensor.

    Example:
        >>> x, y = torch.full((1, 4), 0.5), torch.tensor([0])
        >>> bool((LabelSearch(eps=0.1, queries=8)(nn.Linear(4, 2), x, y) - x).abs().max() <= 0.1 + 1e-6)
        True

    Source:
        Chen and Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", 2020; all samples here flip the
        same block at the same time.
    """

    eps: float
    queries: int = 300

    def __post_init__(self) -> None:
        check_radius("eps", self.eps)
        check_count("queries", self.queries)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        check_batch(inputs, labels)
        with crafting(model, inputs) as frozen, without_gradients():
            flat = inputs.flatten(1)
            size = flat.shape[1]

            def wrong(rows: Tensor, radii: Tensor, signs: Tensor) -> Tensor:
                images = (flat[rows] + radii[:, None] * signs).clamp(0, 1)
                logits = check_logits(frozen(images.view(len(rows), *inputs.shape[1:]).to(inputs.dtype)))
                check_logits_shape(logits)
                return answered(logits) != labels[rows]

            def shrink(rows: Tensor, high: Tensor, signs: Tensor) -> Tensor:
                """The smallest radius found below `high`, at which each row is wrong."""
                low = torch.zeros_like(high)
                for _ in range(HALVINGS):
                    middle = (low + high) / 2
                    hit = wrong(rows, middle, signs)
                    low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
                return high

            signs = torch.ones_like(flat)
            radii = torch.ones(len(flat), device=flat.device)
            found = wrong(torch.arange(len(flat), device=flat.device), radii, signs)
            radii = torch.where(found, radii, torch.inf)
            block, start = size, 0
            for _ in range(self.queries):
                rows = (radii > self.eps).nonzero().squeeze(1)
                if len(rows) == 0:
                    break
                flipped = signs[rows]
                flipped[:, start : start + block] *= -1
                at = torch.where(radii[rows].isfinite(), radii[rows] * 0.999, 1.0)
                better = wrong(rows, at, flipped)
                if better.any():
                    kept = rows[better]
                    signs[kept] = flipped[better]
                    radii[kept] = shrink(kept, at[better], flipped[better])
                start += block
                if start >= size:
                    block, start = max((block + 1) // 2, 1), 0
            within = (radii <= self.eps)[:, None]
            changed = (flat + torch.where(within, radii[:, None], self.eps) * signs).clamp(0, 1)
            return changed.view_as(inputs).to(inputs.dtype)
