"""Style, types and the direction of imports: one command passes or fails everything."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The floors of the house, the lowest first. A room may import rooms of the floors below its own, and nothing else.
FLOORS = (
    (
        "background",
        "errors",
        "extras",
        "free_memory",
        "lettering",
        "metrics",
        "signatures",
        "threads",
        "words",
        "zip_archive",
    ),
    ("distributed", "events", "files", "resources", "visual"),
    ("device", "duplicates", "recipe"),
    ("data", "losses", "runs", "schedule"),
    ("data/files", "models"),
    ("data/pipeline", "data/sets", "doctor", "engine", "exported", "weights"),
    ("check_data", "checkpoint", "open_datasets", "starter"),
    ("convert", "reference"),
    ("inference",),
    ("evaluation",),
    ("exporting", "report"),
    ("training",),
    ("api", "bench"),
    ("__init__",),
)
APART = {("models", "data"), ("metrics", "data"), ("losses", "data")}  # never, whatever the floors


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_tools_are_clean(command: list[str]) -> None:
    """Protects lint, format and strict types. PyTorch before 2.15 annotates fewer of its functions, and others otherwise."""
    if command == ["mypy"] and tuple(map(int, version("torch").split(".")[:2])) < (2, 15):
        pytest.skip("types are checked with PyTorch 2.15 or newer")
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def engine_files() -> dict[str, Path]:
    """Every engine module by its name below emaseg, e.g. data/sets/voc; a folder's own file has the folder's name."""
    files = {}
    for path in sorted((ROOT / "emaseg").rglob("*.py")):
        name = path.relative_to(ROOT / "emaseg").with_suffix("").as_posix()
        files[name.removesuffix("/__init__")] = path
    return files


def imports_of(path: Path, files: Mapping[str, Path]) -> set[str]:
    """The engine modules that a file imports, those for type checking and inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "emaseg":
                module = "/".join(name.split(".")[1:]) or "__init__"
                if module in files:
                    found.add(module)
    return found


def room_of(module: str) -> str:
    """The room of a module: a folder or a file of emaseg; each of data's folders is a room."""
    first, _, rest = module.partition("/")
    second = rest.partition("/")[0]
    return f"data/{second}" if first == "data" and (ROOT / "emaseg/data" / second).is_dir() and second else first


def test_imports_point_one_way() -> None:
    """Protects the architecture: no room imports one of its own floor or of a floor above it."""
    level = {room: i for i, row in enumerate(FLOORS) for room in row}
    files = engine_files()
    wrong = []
    for module, path in files.items():
        room = room_of(module)
        assert room in level, f"{room}: give the new room a floor"
        for other in imports_of(path, files):
            if room_of(other) != room and level[room_of(other)] >= level[room]:
                wrong.append(f"{module} imports {other}")
            if (room.partition("/")[0], room_of(other).partition("/")[0]) in APART:
                wrong.append(f"{module} imports {other}: these rooms stay apart")
    assert not wrong, "\n".join(wrong)


def test_no_files_import_in_a_circle() -> None:
    """Protects readers inside a room, too: the files of a room have an order."""
    files = engine_files()
    graph = {module: imports_of(path, files) - {module} for module, path in files.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_files_stay_readable() -> None:
    """Protects readers: no file above 500 lines."""
    long = {str(p.relative_to(ROOT)): n for p in python_files() if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def python_files() -> list[Path]:
    return [p for folder in ("emaseg", "cli", "tests", "data_scripts") for p in (ROOT / folder).rglob("*.py")]
