"""Attacks: frozen dataclasses called with (model, inputs, labels) that return adversarial inputs."""

from surefoot.attacks.gradient_sign import FGSM, IFGSM, MIFGSM, PGD, RFGSM
from surefoot.core.losses import MarginLoss, cross_entropy

__all__ = ["FGSM", "IFGSM", "MIFGSM", "PGD", "RFGSM", "MarginLoss", "cross_entropy"]
