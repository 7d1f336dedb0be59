"""Files that are whole or not there: text and tensors, written atomically and never unpickled."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


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


def read_lines(file: Path | None) -> list[dict[str, Any]]:
    """The JSON lines of a file; none where there is none, or a damaged one, so that it is made anew."""
    if file is None or not file.exists():
        return []
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        return []


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to one safetensors file, atomically."""
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={key: json.dumps(value) for key, value in metadata.items()})


def is_pickled(path: Path) -> bool:
    """Does the file begin as those of torch.save do?

    Raises:
        CheckpointError: no such file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    # A safetensors file begins with its header's length in 8 bytes, which may look like a pickle, and then "{".
    return start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80")


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        CheckpointError: no such file, pickled code instead of safetensors, or a truncated or damaged file.
    """
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata_of(file)  # noqa: SIM118


def load_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone, which is quick; raises as `load_tensors` does."""
    with opened(path) as file:
        return metadata_of(file)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file to read from; what is wrong with it is said in one sentence."""
    if is_pickled(path):
        raise CheckpointError(
            f"{path} holds pickled code (torch.save), which surefoot never loads; "
            "save it again with safetensors.torch.save_file(model.state_dict(), path)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); use another checkpoint.") from error


def metadata_of(file: Any) -> dict[str, Any]:
    """What `save_tensors` was given beside the tensors."""
    return {key: json.loads(value) for key, value in (file.metadata() or {}).items() if key != "format"}
