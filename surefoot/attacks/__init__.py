"""Attacks: frozen dataclasses called with (model, inputs, labels) that return adversarial inputs."""

from collections.abc import Callable

from surefoot.attacks.apgd import APGD, APGDT
from surefoot.attacks.auto_attack import AutoAttack
from surefoot.attacks.carlini_wagner import CarliniWagnerL2
from surefoot.attacks.deepfool import DeepFool
from surefoot.attacks.fab import FABT
from surefoot.attacks.gradient_sign import FGSM, IFGSM, MIFGSM, PGD, RFGSM
from surefoot.attacks.square import Square
from surefoot.attacks.worst_case import WorstCase
from surefoot.core.losses import MarginLoss, cross_entropy
from surefoot.core.types import Attack

ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": FGSM,
    "r-fgsm": RFGSM,
    "i-fgsm": IFGSM,
    "mi-fgsm": MIFGSM,
    "pgd": PGD,
    "deepfool": DeepFool,
    "cw": CarliniWagnerL2,
    "apgd": APGD,
    "apgd-t": APGDT,
    "fab-t": FABT,
    "square": Square,
    "auto-attack": AutoAttack,
    "worst-case": WorstCase,
}
"""Every attack, by its key."""

__all__ = [
    "APGD",
    "APGDT",
    "ATTACKS",
    "FABT",
    "FGSM",
    "IFGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "Attack",
    "AutoAttack",
    "CarliniWagnerL2",
    "DeepFool",
    "MarginLoss",
    "Square",
    "WorstCase",
    "cross_entropy",
]
