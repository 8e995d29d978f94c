"""A training run on disk.

Room: run_folder; imports recipe, files, errors. Layout:

    RUN/recipe.toml   resolved, runs again as it is      RUN/checkpoints/{last,best,step_XXXXXXXX}.pt
    RUN/env.json      each start: versions, command         RUN/samples.png   image, truth, prediction
    RUN/metrics.csv   one row a log interval and one an evaluation
    RUN/log.txt       what was said while it ran         RUN/eval/         results of `emaseg eval`
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.errors import RecipeError
from emaseg.files import fault, make_folder, write_text
from emaseg.recipe import Recipe, recipe_to_toml
from emaseg.words import quoted_path, shown

if TYPE_CHECKING:
    import torch

PACKAGES = ("emaseg", "torch", "torchvision", "numpy", "pillow", "scipy", "h5py")

# Columns of metrics.csv after the fixed first ones are the model's loss terms; the last ones belong to evaluations.
FIRST = ("step", "epoch", "lr", "loss")
LAST = ("images_per_second", "miou", "pixel_accuracy", "mean_accuracy")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.pt"

    def kept(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:08d}.pt"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.toml"

    @property
    def environment(self) -> Path:
        return self.root / "env.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.csv"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def samples(self) -> Path:
        return self.root / "samples.png"

    def nonfinite(self, step: int) -> Path:
        return self.root / f"nonfinite_step_{step:08d}.pt"


def run_of(recipe: Path) -> Path | None:
    """The run folder whose own recipe.toml this file is; None for any other file."""
    run = RunFolder(recipe.parent)
    own = recipe.name == run.recipe.name and run.checkpoints.is_dir() and run.environment.is_file()
    return run.root if own else None


def resume_command(run: RunFolder) -> str:
    """What to type to go on with a run as it was started."""
    return f"emaseg train {quoted_path(run.recipe)} --out {quoted_path(run.root)} --resume"


def check_target(root: Path, resume: bool) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        RecipeError: `root` holds something and this is not a resume, or `root` is a file.
        SystemFault: `root` cannot be read.
    """
    try:
        if root.exists() and not root.is_dir():
            raise RecipeError(f"--out {root}: is a file", "name a folder")
        occupied = root.is_dir() and any(root.iterdir())
    except OSError as error:
        raise fault(error, root, "looking into it") from error
    if occupied and not resume:
        raise RecipeError(f"--out {root}: the folder is not empty", "add --resume to continue it, or choose another")


def create(run: RunFolder, recipe: Recipe, device: torch.device) -> None:
    """Make the folder with recipe.toml and env.json. Called once everything else is known to work.

    A resumed run's env.json keeps the first start and adds a line for each later one.
    """
    make_folder(run.checkpoints)
    for leftover in run.checkpoints.glob(".*.part"):  # of a process that was killed while writing
        leftover.unlink(missing_ok=True)
    write_text(run.recipe, recipe_to_toml(recipe))
    file = run.environment
    starts = json.loads(file.read_text())["starts"] if file.exists() else []
    write_text(file, json.dumps({"schema": 1, "starts": [*starts, environment(device)]}, indent=2) + "\n")


def environment(device: torch.device) -> dict[str, object]:
    """What a result may depend on beside the recipe."""
    import torch

    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def append_log(run: RunFolder, text: str) -> None:
    """Add a line with the time to log.txt."""
    stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    _append(run.log, f"{stamp} {shown(text)}\n")


def append_metrics(run: RunFolder, row: Mapping[str, float], terms: tuple[str, ...]) -> None:
    """Add a row to metrics.csv, with the header before the first. Columns without a value stay empty.

    Args:
        row: values by column.
        terms: the model's loss terms, in a fixed order; their columns are called loss_<term>.
    """
    columns = (*FIRST, *(f"loss_{term}" for term in terms), *LAST)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    if not run.metrics.exists():
        writer.writeheader()
    writer.writerow({key: _number(value) for key, value in row.items()})
    _append(run.metrics, buffer.getvalue())


def cut_metrics(run: RunFolder, step: int, evaluated: int) -> None:
    """Drop rows of steps after `step`, and of evaluations after `evaluated`: a resumed run writes them again."""
    if not run.metrics.exists():
        return
    with run.metrics.open(newline="") as file:
        header, *rows = csv.reader(file)
    miou = header.index("miou")
    kept = [row for row in rows if int(row[0]) <= (evaluated if row[miou] else step)]
    if len(kept) != len(rows):
        write_text(run.metrics, "".join(",".join(row) + "\n" for row in (header, *kept)))


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _append(path: Path, text: str) -> None:
    """One write call, so that a line is never torn by another process's."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(handle, text.encode("utf-8"))
        finally:
            os.close(handle)
    except OSError as error:
        raise fault(error, path, "adding a line") from error
