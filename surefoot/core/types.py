"""The few shapes that the rest of surefoot is made of."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
    def attacks(self) -> Sequence[Attack]: ...

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor: ...


def check_attacks(attacks: object) -> tuple[Attack, ...]:
    """The attacks of a list; what is none, or one without its settings, is refused.

    Raises:
        TypeError: with what to give.
    """
    if not isinstance(attacks, Iterable):
        raise TypeError(f"attacks is {attacks!r}; give a list of attacks, for example [FGSM(eps=0.1)].")
    found = tuple(attacks)
    for attack in found:
        if isinstance(attack, type) or not callable(attack):
            raise TypeError(f"attacks has {attack!r}; give attacks with their settings, for example FGSM(eps=0.1).")
        if hasattr(attack, "model") and hasattr(attack, "attack_mode"):  # as each of torchattacks has them
            name = type(attack).__name__
            raise TypeError(
                f"attacks has {name}, which holds its own model, as attacks of torchattacks do; give a function around "
                f"it: lambda model, inputs, labels: torchattacks.{name}(model)(inputs, labels)."
            )
    return found


def check_loss(loss: object) -> None:
    """Refuse a loss that cannot be called, or one without its settings.

    Raises:
        ValueError: with what to give.
    """
    if isinstance(loss, type) or not callable(loss):
        raise ValueError(f"loss is {loss!r}; give a function (logits, labels) -> [batch], as cross_entropy is.")


def check_objective(name: str, objective: object) -> None:
    """Refuse what is no objective, or one without its settings.

    Raises:
        TypeError: with what to give.
    """
    if isinstance(objective, type) or not callable(objective):
        raise TypeError(f"{name} is {objective!r}; give one with its settings, for example FgsmAT(eps=8 / 255).")


class LossTerms(NamedTuple):
    """What an objective returns: the scalar to minimise and its two parts.

    - `loss`: scalar, differentiable.
    - `classification`: scalar, detached.
    - `regularizer`: scalar, detached, before its weight; 0 where an objective has none.
    """

    loss: Tensor
    classification: Tensor
    regularizer: Tensor


def check_terms(objective: object, terms: Any) -> None:
    """Refuse what an objective may not return.

    Raises:
        TypeError: with what to return.
    """
    if not all(hasattr(terms, name) for name in LossTerms._fields):
        found = f"an object of type {type(terms).__name__}"
    elif bad := [name for name in LossTerms._fields if not is_scalar(getattr(terms, name))]:
        found = f"a {bad[0]} that is no scalar tensor"
    elif not terms.loss.requires_grad:
        found = "a loss without a gradient"
    else:
        return
    raise TypeError(
        f"{getattr(objective, '__name__', type(objective).__name__)} returned {found}; an objective returns "
        "LossTerms(loss, classification, regularizer), three scalar tensors, and the loss with its gradient."
    )


def is_scalar(value: object) -> bool:
    """Is it a tensor of one number and no dimension?"""
    return isinstance(value, Tensor) and value.dim() == 0


@runtime_checkable
class Objective(Protocol):
    """Anything that turns a mini-batch into the loss that training minimises.

    One whose steps are all alike, with nothing drawn or decided on the host, may say so with a class attribute
    `capturable = True`; on a GPU it is then replayed as a CUDA graph. One that draws on the host may have a method
    `drawn` that does so and gives such an objective for one step.
    """

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms: ...
