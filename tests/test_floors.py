"""The house: a file imports from lower floors, never sideways, never upwards."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import surefoot

FLOORS = {
    "core": 1,
    "data": 2,
    "models": 2,
    "attacks": 3,
    "evaluation": 3,
    "objectives": 4,
    "training": 4,
    "audit": 4,
    "benchmark": 5,
    "recipes": 5,
    "report": 5,
    "paper": 6,
    "cli": 7,
    "__main__": 8,  # `python -m surefoot`, which calls the cli
}


def imported(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """The rooms that a file imports from, with the line; also inside functions and under TYPE_CHECKING."""
    name = package.name
    here = [name, *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        modules: list[str] = []
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from ..x import y`: as many parts of the file's own name less as there are dots
            base = here[: len(here) - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from surefoot import data` imports a room by its name
            modules = [f"{stem}.{alias.name}" for alias in node.names] if stem == name else [stem]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            modules = [str(node.args[0].value)]
        for module in modules:
            first, *rest = module.split(".")
            if first == name and rest and not (rest[0].startswith("__") and len(rest) == 1):
                yield line, rest[0]


def faults(package: Path) -> list[str]:
    """Every import that leaves the house rules, and every room without a floor."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        room = relative.parts[0].removesuffix(".py")
        at_the_door = room == "__init__"
        if not at_the_door and room not in FLOORS:
            found.append(f"{relative}: {room} has no floor")
            continue
        for line, other in imported(path, package):
            where = f"{relative}:{line}: imports {other}"
            if at_the_door:
                found.append(f"{where} into the package's own __init__")
            elif other not in FLOORS:
                found.append(f"{where}, which has no floor")
            elif other != room and FLOORS[other] > FLOORS[room]:
                found.append(f"{where}, upwards")
            elif other != room and FLOORS[other] == FLOORS[room]:
                found.append(f"{where}, sideways")
    return found


def circles(package: Path) -> list[str]:
    """Files of one room that import each other, at the top of the file, in a circle."""
    files = {path: [package.name, *path.relative_to(package).with_suffix("").parts] for path in package.rglob("*.py")}
    names = {path: ".".join(parts).removesuffix(".__init__") for path, parts in files.items()}
    edges: dict[str, set[str]] = {name: set() for name in names.values()}
    for path, parts in files.items():
        modules: set[str] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                base = parts[: len(parts) - node.level] if node.level else []
                stem = ".".join([*base, *([node.module] if node.module else [])])
                # `from room import file` needs the file, `from room import name` what the room's __init__ has
                modules |= {name if (name := f"{stem}.{alias.name}") in edges else stem for alias in node.names}
            elif isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
        edges[names[path]] |= modules & edges.keys()

    def reaches(start: str) -> bool:
        seen, waiting = set(), list(edges[start])
        while waiting:
            module = waiting.pop()
            if module == start:
                return True
            if module not in seen:
                seen.add(module)
                waiting.extend(edges[module])
        return False

    return [module for module in sorted(edges) if reaches(module)]


PACKAGE = Path(surefoot.__file__).parent


def test_every_import_goes_down() -> None:
    assert faults(PACKAGE) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(PACKAGE) == []


def test_the_check_reads_the_whole_package() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 10
    seen = {room for path in files for _, room in imported(path, PACKAGE)}
    assert {"core", "attacks"} <= seen


def house(root: Path, files: dict[str, str]) -> Path:
    package = root / "surefoot"
    for name, source in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("core/a.py", "from surefoot.attacks import FGSM", "upwards"),
        ("core/a.py", "import surefoot.attacks.gradient_sign as g", "upwards"),
        ("core/a.py", "from surefoot import attacks", "upwards"),
        ("core/a.py", "from ..attacks import FGSM", "upwards"),
        ("core/a.py", "from .. import attacks", "upwards"),
        ("core/deep/a.py", "from ...attacks import FGSM", "upwards"),
        ("core/a.py", "def f():\n    from surefoot.cli import main", "upwards"),
        ("core/a.py", "if TYPE_CHECKING:\n    from surefoot.training import fit", "upwards"),
        ("core/a.py", "import importlib\nimportlib.import_module('surefoot.recipes')", "upwards"),
        ("attacks/a.py", "from surefoot.evaluation import evaluate", "sideways"),
        ("objectives/sat.py", "from surefoot.training.fit import fit", "sideways"),
        ("training/fit.py", "from surefoot.objectives import SatR1", "sideways"),
        ("data/a.py", "from ..models import build_model", "sideways"),
        ("recipes/a.py", "from surefoot.report import html", "sideways"),
        ("paper/a.py", "from surefoot.cli import main", "upwards"),
        ("utils/a.py", "", "utils has no floor"),
        ("helpers.py", "", "helpers has no floor"),
        ("core/a.py", "from surefoot.utils import x", "which has no floor"),
        ("core/a.py", "from surefoot import utils", "which has no floor"),
        ("__init__.py", "from surefoot.attacks import FGSM", "into the package's own __init__"),
        ("__init__.py", "from .attacks import FGSM", "into the package's own __init__"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, source: str, expected: str) -> None:
    (found,) = faults(house(tmp_path, {file: source}))
    assert expected in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cli.py", "from surefoot.paper import tables\nfrom surefoot.core import types"),
        ("cli/main.py", "from surefoot.recipes import RECIPES\nfrom .verbs import train"),
        (
            "objectives/sat.py",
            "from surefoot.attacks import FGSM\nfrom surefoot.objectives.standard import x",
        ),
        ("objectives/sat.py", "from .standard import x\nfrom ..core.losses import y"),
        ("evaluation/evaluate.py", "import surefoot\nfrom surefoot import __version__"),
        ("core/a.py", "import torch\nfrom torch.nn import attacks\nimport surefootling.attacks"),
        ("core/a.py", "# from surefoot.attacks import FGSM\n'from surefoot.attacks import FGSM'"),
    ],
)
def test_an_allowed_import_passes(tmp_path: Path, file: str, source: str) -> None:
    assert faults(house(tmp_path, {file: source})) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    package = house(
        tmp_path,
        {
            "core/a.py": "from surefoot.core.b import x",
            "core/b.py": "from .c import y",
            "core/c.py": "import surefoot.core.a",
            "core/d.py": "from surefoot.core import a",
            "data/__init__.py": "from .load import load",
            "data/load.py": "from surefoot.data import cache, DATASETS",
            "data/cache.py": "",
            "models/__init__.py": "from .resnet import resnet",
            "models/resnet.py": "from surefoot.models import layers",
            "models/layers.py": "",
        },
    )
    assert circles(package) == [
        "surefoot.core.a",
        "surefoot.core.b",
        "surefoot.core.c",
        "surefoot.data",
        "surefoot.data.load",  # wants a name of the room whose __init__ waits for it
    ]
