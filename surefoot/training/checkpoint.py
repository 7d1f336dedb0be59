"""Weights and training state as safetensors, written atomically and never unpickled."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why, in one sentence."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to beside `path`, which it replaces, whole and synced, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={key: json.dumps(value) for key, value in metadata.items()})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        CheckpointError: no such file, pickled code instead of safetensors, or a truncated or damaged file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise CheckpointError(
            f"{path} holds pickled code (torch.save), which surefoot never loads; "
            "save it again with safetensors.torch.save_file(model.state_dict(), path)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items() if key != "format"}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); use another checkpoint.") from error


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
