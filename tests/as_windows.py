"""A file system as Windows has it: what is mapped or open is neither moved, replaced nor removed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CAN_TELL = Path("/proc/self/maps").exists() and Path("/proc/self/fd").exists()


def in_use(path: str | os.PathLike[str]) -> bool:
    """Does this process have the file, or one below the folder, mapped or open?"""
    whole = os.path.realpath(path)
    used = [
        line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ]
    for handle in Path("/proc/self/fd").iterdir():
        if os.path.lexists(handle):  # that of the folder itself is gone by now
            used.append(os.readlink(handle))
    return any(each == whole or each.startswith(whole + os.sep) for each in used)


def as_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse what Windows would, in `os.rename`, `os.replace` and `shutil.rmtree`, until the test ends."""

    def guarded(work: Callable[..., Any], count: int) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            for path in args[:count]:
                if in_use(path):
                    if kwargs.get("ignore_errors"):
                        return None
                    raise PermissionError(13, "used by another process", str(path))
            return work(*args, **kwargs)

        return instead

    for module, name, count in ((os, "rename", 2), (os, "replace", 2), (shutil, "rmtree", 1)):
        monkeypatch.setattr(module, name, guarded(getattr(module, name), count))
