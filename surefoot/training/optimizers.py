"""The optimizers of a training, and the tensors that each keeps for every weight."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.training.settings import FitConfig

KEPT = {"momentum_buffer": "momentum", "exp_avg": "momentum", "exp_avg_sq": "square", "step": "steps"}
"""The optimizers' own names, and what a training state calls them."""


def make_optimizer(module: nn.Module, config: FitConfig, device: torch.device) -> Optimizer:
    """Make the optimizer of a training, each update in one kernel where PyTorch has one.

    Args:
        module: whose weights are trained.
        config: which optimizer, and its numbers.
        device: where the module will be.

    Example:
        >>> make_optimizer(nn.Linear(2, 2), FitConfig(optimizer="adamw"), torch.device("cpu")).defaults["betas"]
        (0.9, 0.999)
    """
    floating = all(parameter.is_floating_point() for parameter in module.parameters())
    fused, rate, decay = device.type != "mps" and floating, config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        betas, on_cuda = (config.momentum, 0.999), device.type == "cuda"
        return torch.optim.AdamW(
            module.parameters(), lr=rate, betas=betas, weight_decay=decay, fused=fused, capturable=on_cuda
        )
    return torch.optim.SGD(module.parameters(), lr=rate, momentum=config.momentum, weight_decay=decay, fused=fused)


def kept_for(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer goes on from for a weight, under the names of `KEPT`; made where it is missing.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> kept_for(torch.optim.SGD(net.parameters(), momentum=0.9), net.weight)
        {'momentum': tensor([[0., 0.]])}
    """
    state = optimizer.state[parameter]
    if isinstance(optimizer, torch.optim.AdamW):
        if not state:
            on_device = any(optimizer.defaults[name] for name in ("fused", "capturable"))
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    elif state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    return {name: state[own] for own, name in KEPT.items() if own in state}
