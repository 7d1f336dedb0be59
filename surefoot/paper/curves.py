"""What the figures show of one model: losses and accuracies over a radius, logit distances, the loss surface."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from surefoot.attacks import FGSM, IFGSM, PGD, RFGSM
from surefoot.audit.landscape import gradients, loss_surface
from surefoot.core.seeding import seeded
from surefoot.evaluation.probes import logit_distances, losses_along, sample_losses

PGD_STEPS = 20
IFGSM_STEPS = 10


def spaced(low: float, high: float, points: int) -> list[float]:
    """`points` numbers from low to high, ends included.

    >>> spaced(0, 1, 3)
    [0.0, 0.5, 1.0]
    """
    return [low + (high - low) * index / (points - 1) for index in range(points)]


def loss_curves(model: nn.Module, inputs: Tensor, labels: Tensor, radii: Sequence[float]) -> dict[str, list[float]]:
    """The mean loss on FGSM and on PGD samples over their radius: Fig. 1, 2, 5 and 9.

    Args:
        model: returns logits `[batch, classes]`; left without a trace.
        inputs: `[batch, ...]` in [0, 1].
        labels: int64 `[batch]`.
        radii: in pixel units; PGD takes 20 steps of an eighth of the radius, from random starts in the whole ball that
            depend on the radius's place in the list alone.

    Returns:
        `radii`, and the mean losses `fgsm` and `pgd` at them, in nats.

    Example:
        >>> import torch
        >>> curves = loss_curves(nn.Identity(), torch.tensor([[0.5, 0.2]]), torch.tensor([0]), [0.0, 0.1])
        >>> curves["fgsm"][0] == curves["pgd"][0] < curves["fgsm"][1]
        True
    """
    signs = gradients(model, inputs, labels).sign()
    pgd = []
    with seeded(0):
        for radius in radii:
            attack = PGD(radius, PGD_STEPS, radius / 8) if radius else None
            adv_inputs = attack(model, inputs, labels) if attack else inputs
            pgd.append(float(sample_losses(model, adv_inputs, labels).mean()))
    fgsm = losses_along(model, inputs, labels, signs, radii).mean(dim=1).tolist()
    return {"radii": list(radii), "fgsm": fgsm, "pgd": pgd}


def logit_gaps(model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, random_step: float) -> dict[str, float]:
    """Mean l2 distance of the logits of FGSM samples to those of I-FGSM and R-FGSM samples: Fig. 1 and 2, top.

    I-FGSM takes 10 steps; R-FGSM a random step of `random_step` first. Shapes are those of `loss_curves`.

    Example:
        >>> import torch
        >>> gaps = logit_gaps(nn.Identity(), torch.full((1, 2), 0.5), torch.tensor([0]), eps=0.1, random_step=0.0)
        >>> round(gaps["ifgsm"], 3), gaps["rfgsm"]
        (0.0, 0.0)
    """
    with seeded(0):
        fgsm = FGSM(eps)(model, inputs, labels)
        ifgsm = IFGSM(eps, IFGSM_STEPS)(model, inputs, labels)
        rfgsm = RFGSM(eps, random_step)(model, inputs, labels)
        return {
            "ifgsm": float(logit_distances(model, fgsm, ifgsm).mean()),
            "rfgsm": float(logit_distances(model, fgsm, rfgsm).mean()),
        }


def surface_line(model: nn.Module, image: Tensor, label: Tensor, eps: float, *, points: int) -> dict[str, Any]:
    """The loss surface around an image `[channels, height, width]` of class `label` `[]` as JSON values: Eq. 12."""
    e1, e2, loss = loss_surface(model, image, int(label), eps, points=points)
    return {"e1": e1, "e2": e2, "loss": loss}


def is_curve(value: Any) -> bool:
    """Is it what `loss_curves` gave, as a file has it?"""
    return has_lists(value, "radii", "fgsm", "pgd")


def is_surface(value: Any) -> bool:
    """Is it what `surface_line` gave, as a file has it?"""
    return has_lists(value, "e1", "e2", "loss")


def has_lists(value: Any, *names: str) -> bool:
    """Is it an object that has these lists?"""
    return isinstance(value, dict) and all(isinstance(value.get(name), list) for name in names)
