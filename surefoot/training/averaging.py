"""The moving average of the weights that is judged and saved instead of them."""

import copy

import torch
from torch import nn


class MovingAverage(nn.Module):
    """An exponential moving average of a model's weights; its buffers follow the model's.

    average <- decay average + (1 - decay) weights, from the weights at the start. An update never waits for the
    device, as `torch.optim.swa_utils.AveragedModel` does, which copies its count of updates there each time.

    Args:
        model: what is averaged; `module` is its copy.
        decay: in [0, 1).

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
        self.module = copy.deepcopy(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's weights in."""
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - self.decay)
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
