"""How an objective is minimised: `fit`, its phases and settings, checkpoints that are never unpickled."""

from surefoot.core.files import CheckpointError
from surefoot.training.checkpoint import load_weights, save_weights
from surefoot.training.fit import FitConfig, FitResult, Phase, TrainingDiverged, fit

__all__ = [
    "CheckpointError",
    "FitConfig",
    "FitResult",
    "Phase",
    "TrainingDiverged",
    "fit",
    "load_weights",
    "save_weights",
]
