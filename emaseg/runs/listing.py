"""The runs in a folder: what each trains, how far it is, how well, and what to do next.

Room: runs; never torch: it reads recipes, metrics and locks, and never a checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from emaseg.errors import UserError, WeightsError
from emaseg.files import open_file
from emaseg.recipe import Recipe, load_recipe
from emaseg.runs.folder import RunFolder, can_resume, interrupted_at, is_complete, last_written, resume_command
from emaseg.runs.lock import alive_owner
from emaseg.runs.metrics_file import last_step
from emaseg.words import quoted_path

State = Literal["complete", "training", "interrupted", "not started", "damaged"]

_LATEST = 32_503_680_000.0  # the year 3000, in seconds; some disks keep times that no calendar has
_DEPTH = 3  # folders below the one that is asked for: runs/<recipe>/<time> lies two below, a folder of those three


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run.

    recipe: its name; "" where recipe.toml cannot be read. step, epoch: the last that metrics.csv tells of, or log.txt
    of an interruption. total: steps, or epochs where the recipe counts those; unit says which. best_miou: 0..1, None before the first evaluation.
    changed: when it was last written to. owner: who trains it now. next: a command.
    """

    path: Path
    recipe: str
    state: State
    step: int
    epoch: int
    total: int | None
    unit: Literal["steps", "epochs"]
    best_miou: float | None
    changed: datetime
    owner: str
    next: str


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs in a folder and the folders below it, the one that was written to last first.

    Raises:
        WeightsError: no such folder, or no run in it.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise WeightsError(f"{folder}: {what}", "name a folder of runs; emaseg train puts them into ./runs")
    found = sorted((summary(run) for run in _runs_below(folder, _DEPTH)), key=lambda run: run.changed, reverse=True)
    if not found:
        raise WeightsError(f"{folder}: no run in this folder", "train one: emaseg train demo")
    return found


def summary(root: Path) -> RunSummary:
    """What a run folder tells of itself."""
    run = RunFolder(root)
    recipe = None
    with contextlib.suppress(UserError):
        recipe = load_recipe(run.recipe)
    epoch, best = _metrics(run.metrics)
    step = max(last_step(run.metrics), interrupted_at(run))
    owner = alive_owner(root)
    state = _state(run, recipe, owner)
    train = recipe.train if recipe else None
    total = (train.iterations or train.epochs) if train else None
    return RunSummary(
        path=root,
        recipe=recipe.name if recipe else "",
        state=state,
        step=step,
        epoch=epoch,
        total=total,
        unit="steps" if train and train.iterations else "epochs",
        best_miou=best,
        changed=datetime.fromtimestamp(_changed(run)),
        owner=owner,
        next=_next(run, state),
    )


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """Run folders; nothing is looked for inside of one."""
    run = RunFolder(folder)
    if run.recipe.is_file() and (run.checkpoints.is_dir() or run.environment.is_file()):
        yield folder
        return
    if depth == 0:
        return
    try:
        below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:  # another user's
        return
    for path in below:
        yield from _runs_below(Path(path), depth - 1)


def _state(run: RunFolder, recipe: Recipe | None, owner: str) -> State:
    if owner:
        return "training"
    if recipe is None:
        return "damaged"
    if is_complete(run.root):  # also with fewer steps than the recipe's: train.hours or train.patience ended it
        return "complete"
    return "interrupted" if can_resume(run.root) else "not started"


def _next(run: RunFolder, state: State) -> str:
    root = quoted_path(run.root)
    match state:
        case "complete":
            scored = any(run.root.glob("eval/*/metrics.json"))
            return f"emaseg predict IMAGE --weights {root}" if scored else f"emaseg eval {root}"
        case "training":
            return f"tail -f {quoted_path(run.log)}"
        case "damaged":
            return f"emaseg train {quoted_path(run.recipe)} --dry-run"
        case _:
            return resume_command(run)


def _metrics(path: Path) -> tuple[int, float | None]:
    """The last epoch and the best mIoU in metrics.csv; 0 and None where it has none or cannot be read."""
    epoch, best = 0, None
    try:
        with open_file(path) as file, io.TextIOWrapper(file, "ascii", "replace", newline="") as text:
            for row in csv.DictReader(text):
                epoch = max(epoch, int(_number(row.get("epoch")) or 0))
                score = _number(row.get("miou"))
                if score is not None and (best is None or score > best):
                    best = score
    except (OSError, csv.Error):
        pass
    return epoch, best


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _changed(run: RunFolder) -> float:
    """When a run was last written to, in seconds of the clock."""
    return min(last_written(run), _LATEST) or time.time()
