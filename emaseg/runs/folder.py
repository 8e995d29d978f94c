"""A training run on disk.

Room: runs; never torch. Layout:

    RUN/recipe.toml   resolved, runs again as it is      RUN/checkpoints/{last,previous,best,step_XXXXXXXX}.pt
    RUN/env.json      each start: versions, command         RUN/samples.png   image, truth, prediction
    RUN/metrics.csv   one row a log interval and one an evaluation (metrics_file.py)
    RUN/metrics.jsonl the same with all digits and the scores of each class (metrics_lines.py)
    RUN/tensorboard/  the same as curves, with train.tensorboard
    RUN/log.txt       what was said while it ran         RUN/eval/         results of `emaseg eval`
    RUN/report.html   the run on one page, written anew after each evaluation (report/)
    RUN/lock          who trains it just now (runs/lock/)

previous.pt is the last.pt before, for the day when that one is damaged: a run takes the disk space of one checkpoint
more than it did, but no more than before while one is written.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.distributed.ranks import this_rank
from emaseg.errors import RecipeError, SystemFault, WeightsError
from emaseg.files import (
    append_text,
    atomic,
    fault,
    is_file,
    is_shared,
    make_folder,
    read_bytes,
    set_aside,
    write_text,
)
from emaseg.recipe import Recipe, recipe_to_toml
from emaseg.runs.lock import NAME as LOCK
from emaseg.runs.lock import RunLock, hold, is_lock
from emaseg.words import quoted, quoted_path, shown

if TYPE_CHECKING:
    import torch

_INTERRUPTED = "interrupted after step"  # in log.txt; the step follows
_KEPT = re.compile(r"step_[0-9]{8,}\.pt")
_HALF = re.compile(r"\.(.+)\.[a-z0-9_]{1,8}\.part")  # what a killed process leaves of the file whose name is inside

CHOICES = ("best", "last")  # what `--checkpoint` calls a run's checkpoints

PACKAGES = ("emaseg", "torch", "torchvision", "numpy", "pillow", "scipy", "h5py")


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
    def previous(self) -> Path:
        return self.checkpoints / "previous.pt"

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
    def metrics_lines(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def samples(self) -> Path:
        return self.root / "samples.png"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def nonfinite(self, step: int) -> Path:
        return self.root / f"nonfinite_step_{step:08d}.pt"


def run_of(recipe: Path) -> Path | None:
    """The run folder whose own recipe.toml this file is; None for any other file."""
    run = RunFolder(recipe.parent)
    own = recipe.name == run.recipe.name and run.checkpoints.is_dir()
    return run.root if own and (run.environment.is_file() or found_checkpoints(run)) else None


def found_checkpoints(run: RunFolder) -> list[Path]:
    """What lies where a resume looks for checkpoints, usable or not: last, previous, best, then kept ones, newest first.

    Raises:
        WeightsError: the folder of the checkpoints is no folder, or a link to nowhere.
        SystemFault: it cannot be looked into.
    """
    if not os.path.lexists(run.checkpoints):
        return []
    try:
        names = os.listdir(run.checkpoints)
    except (NotADirectoryError, FileNotFoundError):
        what = "a link to nowhere" if run.checkpoints.is_symlink() else "not a folder"
        hint = "bring the folder back, or move that away to start at step 0"
        raise WeightsError(f"{run.checkpoints}: is {what}", hint) from None
    except OSError as error:
        raise fault(error, run.checkpoints, "looking into it") from error
    first = [path.name for path in (run.last, run.previous, run.best) if path.name in names]
    return [run.checkpoints / name for name in (*first, *_kept(names))]


def kept_checkpoints(run: RunFolder) -> list[Path]:
    """The step_XXXXXXXX.pt of a run, newest first; [] where the folder cannot be read."""
    try:
        return [run.checkpoints / name for name in _kept(os.listdir(run.checkpoints))]
    except OSError:
        return []


def _kept(names: Iterable[str]) -> list[str]:
    return sorted((name for name in names if _KEPT.fullmatch(name)), key=lambda name: (len(name), name), reverse=True)


def can_resume(root: Path) -> bool:
    """Whether a folder holds a file that --resume can be expected to go on from; looks at names only."""
    try:
        return any(path.is_file() for path in found_checkpoints(RunFolder(root)))
    except (OSError, WeightsError, SystemFault):
        return False


def pick_checkpoint(run: Path, checkpoint: str | None = None) -> Path:
    """The checkpoint of a run folder: "best", "last" or a file; None = the best, else the last.

    Raises:
        WeightsError: it is not there.
    """
    folder = RunFolder(run)
    if checkpoint is not None and checkpoint not in CHOICES:
        file = Path(checkpoint)
        if not file.is_file():
            raise WeightsError(f"--checkpoint {checkpoint}: no such file", "use best, last or a file")
        return file
    wanted = {"best": (folder.best,), "last": (folder.last,), None: (folder.best, folder.last)}[checkpoint]
    for file in wanted:
        if file.is_file():
            return file
    names = " or ".join(str(file) for file in wanted)
    raise WeightsError(f"{run}: no checkpoint in this folder (looked for {names})", "name a run folder or a file")


def is_complete(run: Path) -> bool:
    """Whether a run has come to its end: its samples are written last."""
    folder = RunFolder(run)
    return folder.recipe.is_file() and folder.samples.is_file()


def not_complete_yet(run: RunFolder) -> None:
    """Remove the samples of a run that goes on: they tell that it has come to its end.

    Raises:
        SystemFault: no permission.
    """
    if is_file(run.samples):
        try:
            run.samples.unlink()
        except OSError as error:
            raise fault(error, run.samples, "removing it") from error


def find_run(folder: Path) -> tuple[Path, str]:
    """The run that a folder means: itself, or of a folder of runs the newest complete one.

    Returns:
        The run, and a line that says which one was chosen; "" for the folder itself.
    """
    run = RunFolder(folder)
    newest = None if run.checkpoints.is_dir() or run.recipe.is_file() else newest_run(folder)
    return (folder, "") if newest is None else (newest, f"{folder}: its newest complete run is {newest}")


def newest_run(folder: Path) -> Path | None:
    """The complete run in a folder, or in one of its folders (runs/<recipe>/<time>), that ended last; None without one."""
    runs = [run for pattern in ("*", "*/*") for run in folder.glob(pattern) if is_complete(run)]
    return max(runs, key=lambda run: (RunFolder(run).samples.stat().st_mtime, run.name), default=None)


def runs_by_time(folder: Path) -> list[Path]:
    """The runs in a folder itself, complete or not, the one that was written to last first."""
    runs = [run for run in folder.glob("*") if RunFolder(run).recipe.is_file()]
    return sorted(runs, key=lambda run: (last_written(RunFolder(run)), run.name), reverse=True)


def last_written(run: RunFolder) -> float:
    """When a run was last written to, in seconds of the clock; 0 where that cannot be found out."""
    times = [0.0]
    for path in (run.recipe, run.metrics, run.log, run.samples, run.last, run.best):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def resume_command(run: RunFolder) -> str:
    """The command that continues a run as it was started: with --nproc and --device where its last start had them."""
    return f"emaseg train {quoted_path(run.recipe)} --out {quoted_path(run.root)} --resume{_as_last_started(run)}"


def _as_last_started(run: RunFolder) -> str:
    """Options of a run's last start, each with a space before it; "" where env.json does not tell."""
    try:
        start = json.loads(read_bytes(run.environment).decode("utf-8"))["starts"][-1]
        nproc, command = start.get("nproc"), start["command"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ""
    options = f" --nproc {nproc}" if type(nproc) is int and nproc > 1 else ""
    words = [word for word in command if isinstance(word, str)] if isinstance(command, list) else []
    if "train" not in words[:2]:  # a program that calls the library has options of its own
        return options
    devices = [after for word, after in itertools.pairwise(words) if word == "--device"]
    devices += [word.removeprefix("--device=") for word in words if word.startswith("--device=")]
    return options + (f" --device {quoted(devices[-1])}" if devices else "")


@contextlib.contextmanager
def hold_target(root: Path, resume: bool) -> Iterator[RunLock]:
    """The lock of the folder that a run goes into. Nobody's files are touched before it is held.

    Raises:
        RecipeError: somebody trains there; `root` holds something and this is no resume, `root` is a file, or its
            checkpoints are another run's.
        SystemFault: `root` cannot be read or written.
    """
    if not os.path.lexists(root / LOCK):  # else who trains there is the better answer
        _check_target(root, resume)
    with hold(root) as lock:
        _check_target(root, resume)
        yield lock


def _check_target(root: Path, resume: bool) -> None:
    """Refuse to mix two runs in one folder."""
    try:
        if root.exists() and not root.is_dir():
            raise RecipeError(f"--out {root}: is a file", "name a folder")
        occupied = root.is_dir() and any(not is_lock(entry.name) for entry in root.iterdir())
        other = _another_run(RunFolder(root))
    except OSError as error:
        raise fault(error, root, "looking into it") from error
    if occupied and not resume:
        raise RecipeError(f"--out {root}: the folder is not empty", "add --resume to continue it, or choose another")
    if other is not None:
        raise RecipeError(
            f"{RunFolder(root).checkpoints}: leads into another run, {other}: its checkpoints would be written over",
            "remove the link, or let it lead to a folder of this run's own",
        )


def _another_run(run: RunFolder) -> Path | None:
    """The run whose folder the checkpoints of this one lead into. That they lie on another disk is everybody's right."""
    if not run.checkpoints.is_symlink():
        return None
    home = Path(os.path.realpath(run.checkpoints)).parent
    return home if RunFolder(home).recipe.is_file() and not home.samefile(run.root) else None


def create(run: RunFolder, recipe: Recipe, device: torch.device) -> list[str]:
    """Make the folder with recipe.toml and env.json. Called once everything else is known to work.

    A resumed run's env.json keeps the first start and adds a line for each later one. What is in the place of a file of
    the run and cannot be one (a folder, a link to nowhere, a broken env.json) is moved aside. So is a log.txt that is a
    link: lines are added to it, and they would come into a file of somebody's.

    Returns:
        Lines that say what was moved.

    Raises:
        SystemFault: disk full, no permission.
    """
    make_folder(run.checkpoints)
    files = (run.recipe, run.environment, run.log, run.samples, run.report)
    checkpoints = (run.last, run.previous, run.best)
    notes = [_cleared(path) for path in (*files, *checkpoints)]
    notes.append(_own_log(run.log))
    _remove_half(run.root, [path.name for path in (*files, run.metrics, run.metrics_lines)])
    _remove_half(run.checkpoints, [path.name for path in checkpoints])
    write_text(run.recipe, recipe_to_toml(recipe))
    starts, note = _starts(run.environment)
    content = {"schema": 1, "starts": [*starts, environment(device)]}
    write_text(run.environment, json.dumps(content, indent=2) + "\n")
    return [text for text in (*notes, note) if text]


def _cleared(path: Path) -> str:
    """Move aside what is at `path` unless a file can be; returns a line that says so, or ""."""
    if is_file(path) or not os.path.lexists(path):
        return ""
    return f"{path}: is not a file; it is kept as {set_aside(path).name}"


def _own_log(path: Path) -> str:
    """Let log.txt be a file of this run alone: a link is moved aside, a file with a second name becomes a copy; returns a
    line that says so, or ""."""
    if path.is_symlink():
        return f"{path}: is a link, and lines would be added to another file; it is kept as {set_aside(path).name}"
    if is_shared(path):
        try:
            said = read_bytes(path)
        except OSError as error:
            raise fault(error, path, "reading it") from error
        with atomic(path) as file:
            file.write(said)
    return ""


def _remove_half(folder: Path, names: Sequence[str]) -> None:
    """Remove what a killed process left half written of files of these names, and of kept checkpoints; nothing else, for
    the folder may be a link to a place where others write, too."""
    try:
        halves = [half for name in os.listdir(folder) if (half := _HALF.fullmatch(name))]
    except OSError:
        return
    for half in halves:
        if half[1] in names or _KEPT.fullmatch(half[1]):
            with contextlib.suppress(OSError):  # a folder, for one
                os.unlink(folder / half[0])


def _starts(path: Path) -> tuple[list[object], str]:
    """The starts that env.json tells of; none, and a line that says so, where it is damaged: it is then moved aside."""
    try:
        content = json.loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        return [], ""
    except (ValueError, RecursionError):
        content = None
    except OSError as error:
        raise fault(error, path, "reading it") from error
    starts = content.get("starts") if isinstance(content, dict) else None
    if isinstance(starts, list):
        return starts, ""
    return [], f"{path}: damaged; it is kept as {set_aside(path).name}"


def environment(device: torch.device) -> dict[str, object]:
    """What a result may depend on beside the recipe."""
    import torch

    rank = this_rank()
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "nproc": rank.world if rank.supervised else None,
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


def log_interruption(run: RunFolder, step: int) -> None:
    """Say in log.txt after which step a run was interrupted."""
    append_log(run, f"{_INTERRUPTED} {step}")


def interrupted_at(run: RunFolder) -> int:
    """The step after which log.txt says that a run was interrupted last; 0 where it says nothing or cannot be read."""
    try:
        lines = read_bytes(run.log).splitlines()
    except OSError:
        return 0
    words = [line.decode("utf-8", "replace").rpartition(" ") for line in lines]
    steps = [step for said, _, step in words if said.endswith(_INTERRUPTED) and step.isdecimal()]
    return int(steps[-1][:18]) if steps else 0


def append_log(run: RunFolder, text: str) -> None:
    """Add a line with the time to log.txt."""
    stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    append_text(run.log, f"{stamp} {shown(text)}\n")
