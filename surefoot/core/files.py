"""Files that are either complete or absent: text and tensors, written atomically and never unpickled."""

import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from surefoot.core.limits import as_number, plain_number

CHECKSUM = "crc32"
"""Where the metadata of a file of ours have its checksum: safetensors itself reads a changed number as it is."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why, in one sentence."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to beside `path`, which it replaces, whole and synced, when the block ends well.

    Raises:
        OSError: it cannot be written, and why.
    """
    # a process's number alone is no name: its threads share it, and machines that share a folder may both have it
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors lets nobody else read what it writes, whatever the umask
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise cannot_be_written(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def cannot_be_written(path: Path, error: Exception) -> OSError:
    """What to say where a file could not be written."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return OSError(f"{path} cannot be written ({why}); make room, or give another place.")


def remove_unfinished(path: Path) -> None:
    """Remove what an `atomic_path` left that was killed; only where nobody else writes to `path` now."""
    for temporary in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        with suppress(OSError):
            temporary.unlink()


def remove_abandoned(root: Path, pattern: str, seconds: float, *, only: Collection[str] | None = None) -> None:
    """Remove the folders of `root` that a killed process left: nothing in them was written to for so many seconds.

    Args:
        root: where they are.
        pattern: of their names.
        seconds: an age at which nobody is at work on one.
        only: the suffixes that all of their files must have; None removes them whatever they hold.
    """
    for folder in root.glob(pattern):
        try:
            files = list(folder.rglob("*"))
            newest = max(path.stat().st_mtime for path in (folder, *files))
        except OSError:  # another process removes it
            continue
        ours = only is None or all(file.suffix in only for file in files)
        if ours and time.time() - newest > seconds:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file, made where missing, while the block runs; False where another holds it, or wait for that.

    Who holds it already, in the same thread, holds it twice. A file system without locks, as some network ones are,
    lets everybody in.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, is_singleton=True)
    try:
        held.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except NotImplementedError:
        pass
    try:
        yield True
    finally:
        held.release()


def lock_of(path: Path) -> Path:
    """The lock of whoever appends to a file; in the temporary folder, so that nothing is left beside the file."""
    about = json.dumps([os.path.expanduser("~"), str(path.resolve())])  # a user without a home has one lock too
    return Path(tempfile.gettempdir()) / f"surefoot-{hashlib.sha256(about.encode()).hexdigest()[:16]}.lock"


def check_can_write(path: Path, what: str) -> None:
    """Refuse a place that a file cannot be written to, before the work whose result goes there.

    Raises:
        ValueError: naming `what` asked for it.
    """
    if path.is_dir():
        raise ValueError(f"{what} is {path}, a folder; give the name of a file, in it or elsewhere.")
    check_can_fill(path.parent, what)
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{what} is {path}, which may not be written to; give another file.")


def check_can_fill(folder: Path, what: str) -> None:
    """Make a folder, and refuse one that cannot be made or written in.

    Raises:
        ValueError: naming `what` asked for it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{what} needs the folder {folder}, which cannot be made ({error.strerror}); give another place."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{what} needs the folder {folder}, which may not be written in; give another place.")


def as_json(value: Any) -> str:
    """One line of JSON, which has no NaN and no infinity: they are null, and NumPy's numbers are numbers.

    >>> as_json({"loss": float("nan"), "steps": [1, 2.5]})
    '{"loss": null, "steps": [1, 2.5]}'
    """
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    value = plain_number(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        # A name that the system could not read as UTF-8 must not cost a result; in JSON this is its own escape.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def checked_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is not a JSON object, with its number.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not JSON ({error}); remove it.") from error
        if not isinstance(line, dict):
            raise ValueError(f"line {number} of {path} is not a JSON object; remove it.")
        lines.append(line)
    return lines


def read_lines(file: Path | None) -> list[dict[str, Any]]:
    """The JSON lines of a file; none where there is none, or a damaged one, so that it is made anew."""
    if file is None or not file.exists():
        return []
    try:
        return checked_lines(file)
    except ValueError:
        return []


def append_lines(path: Path, lines: Iterable[str], is_ours: Callable[[bytes], bool], what: str, begins: bytes) -> None:
    """Append lines to a file of JSON lines, whole ones only, synced before this returns; several processes may.

    Args:
        path: the file, made where missing, and its folder too.
        lines: without their newlines.
        is_ours: is this a line of such a file?
        what: one of its lines, `a record`.
        begins: how each begins. A last line that an interruption left unfinished is cut off first, where it does.

    Raises:
        ValueError: the file holds something else, and is left as it is.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(path), wait=True):
        try:
            with open(path, "ab+") as file:
                _append(file, path, lines, is_ours, what, begins)
        except OSError as error:  # also of closing it, which tries once more what could not be written
            raise cannot_be_written(path, error) from error


def _append(
    file: BinaryIO, path: Path, lines: Iterable[str], is_ours: Callable[[bytes], bool], what: str, begins: bytes
) -> None:
    file.seek(0)
    content = file.read()
    end = content.rfind(b"\n") + 1
    first, tail = content[:end].partition(b"\n")[0], content[end:]
    if end and not is_ours(first):
        raise ValueError(f"{path} begins with a line that is not {what}, and is left as it is; give another file.")
    whole = is_ours(tail)
    if tail and not whole:
        if not (tail.startswith(begins) or begins.startswith(tail)):
            raise ValueError(
                f"{path} ends with something other than {what}, which is left as it is; give another file."
            )
        file.truncate(end)
    text = "".join(f"{line}\n" for line in lines)
    file.write((b"\n" if whole else b"") + text.encode(errors="backslashreplace"))
    file.flush()
    os.fsync(file.fileno())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to one safetensors file, atomically; tied ones each for itself.

    Raises:
        OSError: it cannot be written.
    """
    apart: dict[str, Tensor] = {}
    memories: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous().cpu()
        if whole.untyped_storage().data_ptr() in memories:  # which safetensors refuses
            whole = whole.clone()
        memories.add(whole.untyped_storage().data_ptr())
        apart[name] = whole
    about = {key: json.dumps(value, default=as_number) for key, value in metadata.items()}
    about[CHECKSUM] = checksum(apart, about)
    with atomic_path(path) as temporary:
        save_file(apart, temporary, metadata=about)


def checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """The CRC-32 of tensors on the CPU and of the metadata beside them, as a file has them."""
    crc = zlib.crc32(json.dumps(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().flatten().view(uint8).numpy().data, crc)
    return f"{crc:08x}"


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
        # Copied: what safetensors gives maps the file, and Windows replaces or removes no file that is mapped.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        about = dict(file.metadata() or {})
        written = about.pop(CHECKSUM, None)  # not in other programs' files
        if written is not None and written != checksum(tensors, about):
            raise ValueError("its checksum differs")
        return tensors, metadata_of(file)


def load_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone, which is quick and checks nothing; raises as `load_tensors` does."""
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
    """What `save_tensors` was given beside the tensors; another program's, which is no JSON, is left out."""
    about: dict[str, Any] = {}
    for key, value in (file.metadata() or {}).items():
        with suppress(ValueError):
            if key != CHECKSUM:
                about[key] = json.loads(value)
    return about
