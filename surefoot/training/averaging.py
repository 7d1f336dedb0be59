"""The moving average of the weights that is judged and saved instead of them."""

import copy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """An exponential moving average of a model's weights and of its batch-norm statistics.

    average <- decay average + (1 - decay) weights, from the weights at the start; integers are copied. An update never
    waits for the device, as `torch.optim.swa_utils.AveragedModel` does, which sends its count there each time.

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
        pairs = list(zip(tensors_of(self.module), tensors_of(model), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        torch._foreach_lerp_([ours for ours, _ in moving], [theirs for _, theirs in moving], 1 - self.decay)
        if counts:
            torch._foreach_copy_([ours for ours, _ in counts], [theirs for _, theirs in counts])


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]
