"""Networks: a registry of names, and any importable factory."""

from surefoot.models.layers import Normalize
from surefoot.models.registry import MODELS, ModelSpec, build_model, load_factory
from surefoot.models.wrappers import Averaged, FromProbabilities, LogitsOnly, TwoLogits, inner_model

__all__ = [
    "MODELS",
    "Averaged",
    "FromProbabilities",
    "LogitsOnly",
    "ModelSpec",
    "Normalize",
    "TwoLogits",
    "build_model",
    "inner_model",
    "load_factory",
]
