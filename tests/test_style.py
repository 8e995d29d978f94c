"""Style, types and the direction of imports: one command passes or fails everything."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room may import rooms of its own row or of the rows above it.
ROWS = (
    ("errors", "words"),
    ("files", "device", "distributed", "recipe", "resources"),
    ("data", "events", "losses", "metrics", "optim", "models", "weights"),
    ("inference", "visual", "checkpoint", "image_state", "metrics_file", "run_lock"),
    ("run_folder",),
    ("evaluate", "export", "predict", "reference", "plan", "resuming", "submit"),
    ("meter",),
    ("train", "check_data", "starter"),
)
FORBIDDEN = {("models", "data"), ("data", "models"), ("losses", "data"), ("metrics", "data")}


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_tools_are_clean(command: list[str]) -> None:
    """Protects lint, format and strict types."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def imports_of(path: Path) -> set[str]:
    """First-level emaseg rooms that a module imports, type-checking imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "emaseg":
                names = [f"emaseg.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("emaseg.")}
    return found


def test_imports_point_one_way() -> None:
    """Protects the architecture: no room imports one that is above it, models and data never meet."""
    level = {room: i for i, row in enumerate(ROWS) for room in row}
    wrong = []
    for path in sorted((ROOT / "emaseg").rglob("*.py")):
        room = path.relative_to(ROOT / "emaseg").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in level, f"{room}: give the new room a row"
        for other in imports_of(path) - {room}:
            if level.get(other, 99) > level[room] or (room, other) in FORBIDDEN:
                wrong.append(f"{path.relative_to(ROOT)} imports emaseg.{other}")
    assert not wrong, "\n".join(wrong)


def test_files_stay_readable() -> None:
    """Protects readers: no file above 500 lines."""
    long = {str(p.relative_to(ROOT)): n for p in python_files() if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def python_files() -> list[Path]:
    return [p for folder in ("emaseg", "cli", "tests", "data_scripts") for p in (ROOT / folder).rglob("*.py")]
