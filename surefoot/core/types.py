"""The few shapes that the rest of surefoot is made of."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]
"""`(logits [batch, classes], labels [batch]) -> losses [batch]`; what an attack drives up."""


@runtime_checkable
class Attack(Protocol):
    """Anything that turns inputs into adversarial inputs of the same shape."""

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor: ...


@runtime_checkable
class LastingAttack(Protocol):
    """An attack that can go on where it ended: what it made in bfloat16 it can finish in float32."""

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor: ...

    def go_on(self, model: nn.Module, inputs: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        """A few more steps from `start`, in the same set around `inputs`."""


@runtime_checkable
class CompoundAttack(Protocol):
    """An attack made of several, each for the samples that those before it did not fool."""

    @property
    def attacks(self) -> tuple[Attack, ...]: ...

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor: ...


class LossTerms(NamedTuple):
    """What an objective returns: the scalar to minimise and its two parts.

    - `loss`: scalar, differentiable.
    - `classification`: scalar, detached.
    - `regularizer`: scalar, detached, before its weight; 0 where an objective has none.
    """

    loss: Tensor
    classification: Tensor
    regularizer: Tensor


@runtime_checkable
class Objective(Protocol):
    """Anything that turns a mini-batch into the loss that training minimises.

    One whose steps are all alike, with nothing drawn or decided on the host, may say so with a class attribute
    `capturable = True`; on a GPU it is then replayed as a CUDA graph. One that draws on the host may have a method
    `drawn` that does so and gives such an objective for one step.
    """

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms: ...
