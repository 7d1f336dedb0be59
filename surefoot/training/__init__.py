"""How an objective is minimised: `fit`, its phases and settings, checkpoints that are never unpickled."""

from surefoot.core.files import CheckpointError
from surefoot.training.checkpoint import load_weights, save_weights
from surefoot.training.fit import FitResult, StepReport, TrainingDiverged, fit
from surefoot.training.monitor import Look, Monitor, describe, monitor_curves
from surefoot.training.settings import FitConfig, Phase

__all__ = [
    "CheckpointError",
    "FitConfig",
    "FitResult",
    "Look",
    "Monitor",
    "Phase",
    "StepReport",
    "TrainingDiverged",
    "describe",
    "fit",
    "load_weights",
    "monitor_curves",
    "save_weights",
]
