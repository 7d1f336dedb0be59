"""One training step, and its losses read back without waiting for the device."""

from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.core.geometry import checked
from surefoot.core.gradients import plain_module
from surefoot.core.types import Objective, check_terms

Step = Callable[[Objective, Tensor, Tensor, float], Tensor]
"""`(objective, inputs, labels, learning rate) -> [3]`: the loss and its two terms, on the device."""


class EagerStep:
    """Craft, forward, backward, update: one mini-batch under one objective.

    Args:
        fabric: runs the precision and the backward pass.
        model: trained in place, as `fabric.setup` wrapped it.
        optimizer: steps the model, as `fabric.setup` wrapped it.
        max_grad_norm: gradients whose l2 norm over all weights is larger are shortened to it; None leaves them.

    Called with an objective, inputs `[batch, channels, height, width]` whose range is known to be [0, 1], labels
    `[batch]` and the learning rate, it gives the loss and its terms as `[3]`, still on the device.
    """

    def __init__(
        self, fabric: Fabric, model: nn.Module, optimizer: Optimizer, max_grad_norm: float | None = None
    ) -> None:
        self.fabric = fabric
        self.model = model
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm

    def __call__(self, objective: Objective, inputs: Tensor, labels: Tensor, rate: float) -> Tensor:
        self.set_rate(rate)
        return self.run(objective, inputs, labels)

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step; a rate that lives on the device is filled, not replaced."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def run(self, objective: Objective, inputs: Tensor, labels: Tensor) -> Tensor:
        plain_module(self.model).train()
        with self.fabric.autocast(), checked():
            terms = objective(self.model, inputs, labels)
        check_terms(objective, terms)
        self.optimizer.zero_grad()
        self.fabric.backward(terms.loss)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return torch.stack([terms.loss, terms.classification, terms.regularizer]).detach()


class LossHistory:
    """The losses of an epoch's steps: kept on the device, read on the host without waiting for it.

    Args:
        steps: of the epoch.
        device: where the losses are made.

    Example:
        >>> history = LossHistory(2, torch.device("cpu"))
        >>> history.add(torch.tensor([3.0, 2.0, 1.0]))
        >>> history.arrived()
        tensor([[3., 2., 1.]])
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.values = torch.zeros(steps, 3, device=device)
        self.added = 0
        self._host = torch.zeros(steps, 3, device="cpu", pin_memory=device.type == "cuda")
        self._on_the_way: tuple[int, torch.cuda.Event] | None = None
        self._arrived = 0

    def add(self, losses: Tensor) -> None:
        """Keep the next step's `[3]`."""
        self.values[self.added] = losses
        self.added += 1

    def arrived(self, *, wait: bool = False) -> Tensor:
        """The steps, from the first, whose losses have reached the host, `[steps, 3]`; all with `wait`.

        On CUDA a call sends what is new and gives what earlier calls sent, as far as it has come.
        """
        if self.values.device.type != "cuda" or wait:
            self._host[: self.added] = self.values[: self.added].cpu()
            self._arrived, self._on_the_way = self.added, None
        else:
            if self._on_the_way is not None and self._on_the_way[1].query():  # type: ignore[no-untyped-call]
                self._arrived, self._on_the_way = self._on_the_way[0], None
            if self._on_the_way is None and self._arrived < self.added:
                self._host[: self.added].copy_(self.values[: self.added], non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
                self._on_the_way = self.added, event
        return self._host[: self._arrived]
