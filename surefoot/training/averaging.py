"""A moving average of the weights, evaluated and saved in their place."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surefoot.core.failures import in_one_line
from surefoot.core.gradients import crafting


class MovingAverage(nn.Module):
    """An exponential moving average of a model's weights.

    average <- decay average + (1 - decay) weights, from the weights at the start. An update never waits for the device,
    as `torch.optim.swa_utils.AveragedModel` does, which sends its count there each time.

    Args:
        model: what is averaged; `module` is its copy.
        decay: in [0, 1).

    Raises:
        ValueError: the model cannot be copied.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(net, decay=0.75)
        >>> before = net.weight.item()
        >>> _ = net.weight.data.add_(1.0)
        >>> average.update(net)
        >>> round(average.module.weight.item() - before, 4)
        0.25
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        try:
            self.module = copy.deepcopy(model)
        except RuntimeError as error:  # as of pruned layers, whose weight is computed from another
            raise ValueError(
                f"the average of the weights needs a copy of the model, which cannot be copied ({in_one_line(error)}); "
                "train without ema_decay, or make pruning permanent with torch.nn.utils.prune.remove."
            ) from error
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's weights in."""
        both = list(zip(self.module.parameters(), model.parameters(), strict=True))
        moving = [pair for pair in both if pair[1].is_floating_point() or pair[1].is_complex()]
        torch._foreach_lerp_([ours for ours, _ in moving], [theirs for _, theirs in moving], 1 - self.decay)

    @torch.no_grad()
    def refresh(self, model: nn.Module, batches: Iterable[Tensor]) -> None:
        """Take the model's buffers, but measure the batch-norms' statistics anew, under the averaged weights.

        The model's own belong to other weights: at a large learning rate the average with them is at chance. A
        batch-norm that the model keeps in evaluation mode while it trains stays as it is.

        Args:
            model: what is averaged.
            batches: of training inputs; the statistics are the means of theirs. None are read without a batch-norm.
        """
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        pairs = zip(self.module.modules(), model.modules(), strict=True)
        norms = [ours for ours, theirs in pairs if isinstance(ours, _BatchNorm) and measures(theirs)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        measured: list[tuple[Tensor, Tensor]] = []
        with crafting(self.module) as frozen:  # dropout off
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True  # None: the mean of all batches
            with torch.no_grad():
                for inputs in batches:
                    frozen(inputs)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum, norm.training = momentum, False
                measured += [(buffer, buffer.clone()) for buffer in norm.buffers(recurse=False)]
        for buffer, value in measured:  # `crafting` puts back those of norms that are not PyTorch's own
            buffer.copy_(value)


def measures(norm: nn.Module) -> bool:
    """Does a batch-norm of a model that trains measure its statistics?"""
    return norm.training and bool(getattr(norm, "track_running_stats", False))
