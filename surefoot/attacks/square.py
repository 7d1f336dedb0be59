"""The Square attack: random search with square windows, from scores alone."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from surefoot.attacks.worst_case import Logits, fool_in_turn
from surefoot.core.geometry import check_radius
from surefoot.core.limits import check_count, check_flag, check_number
from surefoot.core.losses import answered, margin

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # the window's area is halved after so many queries
SCHEDULED = 10_000  # queries that they are meant for


def square_search(
    model: Logits,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int,
    p_init: float,
    rescale: bool,
    stop_when_fooled: bool,
) -> tuple[Tensor, Tensor]:
    """Random search at the corners of the ball.

    Args:
        inputs: `[batch, channels, height, width]`.
        stop_when_fooled: a sample leaves once it is misclassified; else none does.

    Returns:
        The input with the least lead of the label, that is a misclassified one where there was any; and where that
        is, `[batch]`.
    """
    channels, height, width = inputs.shape[1:]
    low, high = (inputs - eps).clamp(min=0), (inputs + eps).clamp(max=1)
    stripes = torch.rand(len(inputs), channels, 1, width, device=inputs.device) < 0.5
    candidate = best = torch.where(stripes, low, high)
    highest = inputs.new_full([len(inputs)], float("-inf"))
    result, fooled = candidate.clone(), torch.zeros_like(labels, dtype=torch.bool)
    rows = torch.arange(len(inputs), device=inputs.device)  # where in `result` the samples still in play belong
    down, across = (torch.arange(count, device=inputs.device) for count in (height, width))
    for query in range(queries + 1):
        with torch.no_grad():
            logits = model(candidate)
        wrong = answered(logits) != labels
        hit = bool(wrong.any())  # asked once, for a GPU is waited for
        if hit:
            result[rows[wrong]], fooled[rows[wrong]] = candidate[wrong], True
        if hit and stop_when_fooled:
            if wrong.all():
                return result, fooled
            right = ~wrong
            rows, low, high, labels, logits = (part[right] for part in (rows, low, high, labels, logits))
            candidate, best, highest = (part[right] for part in (candidate, best, highest))
        value = margin(logits, labels)
        better = value > highest
        highest = torch.where(better, value, highest)
        best = torch.where(better.view(-1, 1, 1, 1), candidate, best)
        if query == queries:
            break
        position = query * SCHEDULED / queries if rescale else query
        area = p_init / 2 ** bisect_left(HALVINGS, position) * height * width
        side = max(round(math.sqrt(area)), 1)
        tall, wide = min(side, height), min(side, width)
        draws = torch.rand(len(rows), 2 + channels, device=inputs.device)
        from_top = down - (draws[:, :1] * (height - tall + 1)).long()
        from_left = across - (draws[:, 1:2] * (width - wide + 1)).long()
        in_rows, in_columns = (from_top >= 0) & (from_top < tall), (from_left >= 0) & (from_left < wide)
        window = (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)
        candidate = torch.where(window, torch.where(draws[:, 2:, None, None] < 0.5, low, high), best)
    result[rows] = best
    return result, fooled


@dataclass(frozen=True)
class Square:
    """The Square attack: keeps a random change of a square window where the label's lead shrinks.

    Starts from vertical stripes of +-eps. Each query sets a window, anywhere in the image, to x + eps or x - eps
    channel by channel, in [0, 1], and keeps it where max_{i != y} z_i - z_y rises. The window covers p of the image,
    p_init at first and half of it after each of 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries. It
    needs no gradient, so it sees through models that mask theirs.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        queries: number of windows tried, at least 1.
        p_init: the first windows' share of the image, in (0, 1].
        restarts: independent runs on what is not fooled yet, at least 1.
        rescale: halve the windows as early as `queries` is less than 10,000, so that few queries reach small windows
            too; query 50 of 500 then has query 1000's. False is AutoAttack's way.
        stop_when_fooled: let go of a sample once it is misclassified, clean or at a query. False goes on to the last
            query, for samples that are to fool another model, or one that answers at random.

    Called with `(model, inputs [batch, channels, height, width] in [0, 1], labels [batch] int64)` it returns inputs of
    the same shape in the ball and [0, 1]: the clean one where it is misclassified, else the first query that
    is, else the first run's best; unless `stop_when_fooled` the best of all runs. Inputs that are no images are
    searched as an image of one row. Types are those of `APGD`. Every sample has its own windows, from torch's global
    generator.

    Cost of a sample that survives: 1 + restarts (queries + 1) forwards, and no backward; without
    `stop_when_fooled` that of every sample, and a forward a run more.

    Raises:
        ValueError: a radius outside [0, 1], inputs outside [0, 1], p_init outside (0, 1], or one class.
        TypeError: inputs that are not floating or of another type than the weights, labels that are not int64, or a
            field that is no number.

    Example:
        >>> x, y = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        >>> bool((Square(eps=0.1, queries=20)(net, x, y) - x).abs().max() <= 0.1 + 1e-6)
        True

    Source:
        Andriushchenko et al., "Square Attack: a Query-Efficient Black-Box Adversarial Attack via Random Search",
        2020, Alg. 1 and 2. The schedule of p is as in the authors' AutoAttack, not rescaled to `queries` unless
        `rescale`, which the attack's own code always does; a window there is the same for the whole batch and
        never touches the last row or column, here it is each sample's own and anywhere.
    """

    float32_only: ClassVar[bool] = True  # a faster precision than asked for would be another attack

    eps: float
    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescale: bool = False
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        check_radius("eps", self.eps)
        check_count("queries", self.queries)
        check_count("restarts", self.restarts)
        check_flag("rescale", self.rescale)
        check_flag("stop_when_fooled", self.stop_when_fooled)
        check_number("p_init", self.p_init, example="0.8")
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init is {self.p_init}; it is a share of the image, above 0 and at most 1.")

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        def run(model: Logits, inputs: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
            shape = inputs.shape[1:]
            images = inputs if inputs.dim() == 4 else inputs.flatten(1)[:, None, None]
            adv_inputs, fooled = square_search(
                lambda images: model(images.reshape(-1, *shape)),
                images,
                labels,
                eps=self.eps,
                queries=self.queries,
                p_init=self.p_init,
                rescale=self.rescale,
                stop_when_fooled=self.stop_when_fooled,
            )
            return adv_inputs.reshape_as(inputs), fooled

        return fool_in_turn(
            model, inputs, labels, lambda _: [run] * self.restarts, stop_when_fooled=self.stop_when_fooled
        )
