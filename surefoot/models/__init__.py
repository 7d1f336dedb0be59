"""Networks: a registry of names, and any importable factory."""

from surefoot.models.layers import Normalize
from surefoot.models.registry import MODELS, ModelSpec, build_model, load_factory

__all__ = ["MODELS", "ModelSpec", "Normalize", "build_model", "load_factory"]
