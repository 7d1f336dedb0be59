"""Our attacks in other libraries: the same settings, each library called the way that is fastest for it.

The libraries are imported when an adapter is first used; none of them is needed otherwise.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surefoot.attacks import PGD, CarliniWagnerL2, DeepFool
from surefoot.core.geometry import per_sample
from surefoot.core.types import Attack

Craft = Callable[[Tensor, Tensor], Tensor]
"""`(inputs, labels) -> adversarial inputs`, all of them float32 and on one device."""


@dataclass(frozen=True)
class PeerSpec:
    """A library: its package, and what turns one of our attacks on a model into its own.

    `adapt` takes the attack, the model in evaluation mode and a sample batch, whose shape and device count.
    """

    package: str
    adapt: Callable[[Attack, nn.Module, Tensor], Craft]

    def version(self) -> str | None:
        """The version that is installed; None where none is."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


def imported(module: str) -> Any:
    """A library's module, without what its import warns its own developers of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(module)


def no_equal(library: str, attack: Attack) -> ValueError:
    """The error for an attack that has no equal there."""
    return ValueError(f"{library} has nothing that equals {attack}.")


def torchattacks(attack: Attack, model: nn.Module, inputs: Tensor) -> Craft:
    """Torchattacks' PGD, DeepFool or CW; its CW has one c = 1 and searches none."""
    library = imported("torchattacks")
    theirs: Craft
    match attack:
        case PGD(random_start=False):
            theirs = library.PGD(model, eps=attack.eps, alpha=attack.step_size, steps=attack.steps, random_start=False)
        case DeepFool():
            theirs = library.DeepFool(model, steps=attack.steps, overshoot=attack.overshoot)
        case CarliniWagnerL2():
            theirs = library.CW(model, c=1, kappa=attack.confidence, steps=attack.steps, lr=attack.learning_rate)
        case _:
            raise no_equal("torchattacks", attack)
    return theirs


def foolbox(attack: Attack, model: nn.Module, inputs: Tensor) -> Craft:
    """Foolbox's LinfPGD, L2DeepFoolAttack or L2CarliniWagnerAttack; an image that it gives up on stays as it was."""
    library = imported("foolbox")
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device=inputs.device)
    settings: dict[str, Any] = {}
    match attack:
        case PGD(random_start=False):
            theirs = library.attacks.LinfPGD(abs_stepsize=attack.step_size, steps=attack.steps, random_start=False)
            settings = {"epsilon": attack.eps}
        case DeepFool():
            theirs = library.attacks.L2DeepFoolAttack(
                steps=attack.steps, overshoot=attack.overshoot, candidates=attack.candidates
            )
        case CarliniWagnerL2():
            theirs = library.attacks.L2CarliniWagnerAttack(
                binary_search_steps=attack.search_steps,
                steps=attack.steps,
                stepsize=attack.learning_rate,
                confidence=attack.confidence,
                initial_const=attack.initial_c,
            )
        case _:
            raise no_equal("foolbox", attack)

    def craft(inputs: Tensor, labels: Tensor) -> Tensor:
        adv_inputs: Tensor = theirs.run(wrapped, inputs, labels, **settings)
        # C&W answers with a black image where it finds nothing, which would count as a far-off success.
        found = adv_inputs.flatten(1).any(dim=1)
        return torch.where(per_sample(found, inputs), adv_inputs, inputs)

    return craft


def art(attack: Attack, model: nn.Module, inputs: Tensor) -> Craft:
    """ART's ProjectedGradientDescentPyTorch, DeepFool or CarliniL2Method, from and to NumPy as it wants it."""
    evasion = imported("art.attacks.evasion")
    pgd = imported("art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch")
    with torch.no_grad():
        num_classes = model(inputs[:1]).shape[1]
    classifier = imported("art.estimators.classification").PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(inputs.shape[1:]),
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if inputs.device.type == "cpu" else "gpu",
    )
    shared: dict[str, Any] = {"batch_size": len(inputs), "verbose": False}
    match attack:
        case PGD(random_start=False):
            theirs = pgd.ProjectedGradientDescentPyTorch(
                classifier,
                norm=np.inf,
                eps=attack.eps,
                eps_step=attack.step_size,
                max_iter=attack.steps,
                num_random_init=0,
                **shared,
            )
        case DeepFool():
            theirs = evasion.DeepFool(
                classifier, max_iter=attack.steps, epsilon=attack.overshoot, nb_grads=attack.candidates, **shared
            )
        case CarliniWagnerL2():
            theirs = evasion.CarliniL2Method(
                classifier,
                confidence=attack.confidence,
                learning_rate=attack.learning_rate,
                binary_search_steps=attack.search_steps,
                max_iter=attack.steps,
                initial_const=attack.initial_c,
                **shared,
            )
        case _:
            raise no_equal("art", attack)

    def craft(inputs: Tensor, labels: Tensor) -> Tensor:
        adv_inputs = theirs.generate(inputs.cpu().numpy(), labels.cpu().numpy())
        return torch.from_numpy(adv_inputs).to(inputs)

    return craft


PEERS: dict[str, PeerSpec] = {
    "torchattacks": PeerSpec("torchattacks", torchattacks),
    "foolbox": PeerSpec("foolbox", foolbox),
    "art": PeerSpec("adversarial-robustness-toolbox", art),
}
"""Every library that ours is compared with."""
