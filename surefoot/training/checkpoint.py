"""Weights as safetensors, which fit their model or are refused."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from surefoot.core.files import CheckpointError, load_tensors, save_tensors


def check_fits(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors whose names or shapes are not those of `wanted`.

    Raises:
        CheckpointError: naming the first difference.
    """
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    wrong = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if not (missing or extra or wrong):
        return
    if wrong:
        what = f"{wrong[0]} has shape {list(tensors[wrong[0]].shape)}, not {list(wanted[wrong[0]].shape)}"
    else:
        what = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}, which the model lacks"
    raise CheckpointError(f"{path} is of another model: {what}; give the weights of this model.")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights and buffers as safetensors, atomically."""
    save_tensors(path, model.state_dict(), {})


def load_weights(model: nn.Module, path: Path) -> None:
    """Load safetensors weights into a model of the same shape, in place.

    Raises:
        CheckpointError: a missing, truncated or pickled file, or weights of another model.
    """
    tensors, _ = load_tensors(Path(path))
    wanted = model.state_dict()
    check_fits(Path(path), tensors, wanted)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
