"""Counts the passes that go through a model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


class PassCounter:
    """Counts the samples that go forward and backward through a module while it is entered.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with PassCounter(net) as counter:
        ...     net(torch.rand(3, 2)).sum().backward()
        >>> counter.forwards, counter.backwards
        (3, 3)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forwards = 0
        self.backwards = 0

    def __enter__(self) -> "PassCounter":
        if isinstance(self.module, torch.jit.ScriptModule):  # refuses hooks of its own
            self._handle = register_module_forward_hook(self._count, with_kwargs=True)
        else:
            self._handle = self.module.register_forward_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if module is not self.module:
            return
        samples = next((len(each) for each in (*inputs, *named.values()) if isinstance(each, Tensor)), 0)
        self.forwards += samples
        if isinstance(output, Tensor) and output.requires_grad:

            def count_backward(gradient: Tensor) -> None:
                self.backwards += samples

            output.register_hook(count_backward)  # type: ignore[no-untyped-call]
