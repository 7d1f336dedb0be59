"""Small measurements around samples, for the audit and for the monitor of a training. All leave no trace."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from surefoot.core.gradients import crafting
from surefoot.core.losses import cross_entropy, squared_distance


def sample_losses(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Each sample's cross-entropy in evaluation mode.

    Args:
        model: returns logits `[batch, classes]`.
        inputs: `[batch, ...]` in [0, 1].
        labels: int64 `[batch]`.

    Returns:
        `[batch]`, in nats.

    Example:
        >>> sample_losses(nn.Identity(), torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """
    with crafting(model) as frozen, torch.no_grad():
        return cross_entropy(frozen(inputs), labels)


def logit_distances(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """The l2 distance ||g(a) - g(b)||_2 between the logits of paired samples: Fig. 1 and 2's upper plots.

    Args:
        model: returns logits `[batch, classes]`.
        first, second: `[batch, ...]` each, in [0, 1].

    Returns:
        `[batch]`.

    Example:
        >>> logit_distances(nn.Identity(), torch.zeros(1, 2), torch.tensor([[0.6, 0.8]]))
        tensor([1.])
    """
    with crafting(model) as frozen, torch.no_grad():
        return squared_distance(frozen(first), frozen(second)).sqrt()


def losses_along(model: nn.Module, inputs: Tensor, labels: Tensor, direction: Tensor, radii: Sequence[float]) -> Tensor:
    """Each sample's loss at clip(x + radius * direction, 0, 1): Fig. 5 where `direction` is FGSM's sign.

    Args:
        model: returns logits `[batch, classes]`.
        inputs: `[batch, ...]` in [0, 1].
        labels: int64 `[batch]`.
        direction: shaped as `inputs`.
        radii: steps along it, in pixel units.

    Returns:
        `[radii, batch]`, in nats.

    Example:
        >>> losses_along(nn.Identity(), torch.ones(1, 2), torch.tensor([0]), torch.tensor([[-1.0, 0.0]]), [0.0, 1.0])
        tensor([[0.6931],
                [1.3133]])
    """
    return torch.stack([sample_losses(model, (inputs + radius * direction).clamp(0, 1), labels) for radius in radii])
