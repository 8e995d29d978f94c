"""What the stress scripts share: training in a forked process, and comparing two runs bit for bit."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from emaseg.runs.metrics_file import TIMED
from tests.forked import run_to_the_end
from tests.helpers import TINY, equal, run, tiny

DEMO = (
    "demo", "--device", "cpu", "-q",
    "--set", "train.iterations=24", "--set", "train.batch=4", "--set", "data.train_images=200",
    "--set", "data.eval_images=6", "--set", "train.evaluate_every=8", "--set", "train.log_every=5",
    "--set", "train.save_seconds=0.05", "--set", "train.save_every=7",
)  # fmt: skip
SMALL = (
    "--device", "cpu", "-q", "--set", "train.iterations=12", "--set", "train.save_seconds=0.02",
    "--set", "train.keep_every=4", "--set", "train.threads=1", "--set", "train.log_every=5",
)  # fmt: skip


def warm(folder: Path) -> None:
    """Train something here, so that everything is imported before the forks: a start then takes a moment."""
    torch.set_num_threads(1)  # a forked process has only this one
    run(tiny("train.iterations=1"), folder / "warm")
    gc.freeze()  # a fork that looks for garbage among all modules copies their pages


def small_recipe(folder: Path) -> tuple[str, ...]:
    """Arguments that train the tests' tiny recipe."""
    path = folder / "tiny.toml"
    path.write_text(TINY)
    return (str(path), *SMALL)


def spawn(arguments: Sequence[object], log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Start `emaseg train ...` in a forked process; returns its id. What it says goes to `log`."""

    def prepare() -> None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        before()

    sys.stdout.flush()
    child = os.fork()
    if not child:
        run_to_the_end(["train", *map(str, arguments)], prepare)
    return child


def ended(child: int, within: float | None = None) -> int | None:
    """Exit code (negative: the signal that ended it), or None if it still runs after `within` seconds."""
    deadline = None if within is None else time.monotonic() + within
    while True:
        done, status = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def train(arguments: Sequence[object], log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Train to the end; returns the exit code."""
    code = ended(spawn(arguments, log, before))
    assert code is not None
    return code


def uninterrupted(arguments: Sequence[object], out: Path, log: Path) -> int:
    """The exit code of a training that nothing disturbs; of one that is in `out` already, 0."""
    return 0 if (out / "samples.png").is_file() else train((*arguments, "--out", out), log)


def differences(whole: Path, out: Path) -> list[str]:
    """What of a run is not, bit for bit, as in the uninterrupted one; and what should not lie there any more."""
    found = []
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (whole, out))
        found += [f"{name}: {key}" for key in a if key != "digest" and not equal(a[key], b.get(key))]
    if untimed(whole) != untimed(out):
        found.append("metrics.csv")
    if untimed_lines(whole) != untimed_lines(out):
        found.append("metrics.jsonl")
    if (whole / "samples.png").read_bytes() != (out / "samples.png").read_bytes():
        found.append("samples.png")
    left = [str(path.relative_to(out)) for path in out.rglob("*") if path.name.endswith((".part", ".damaged"))]
    return [*found, *left, *(path.name for path in out.glob("*lock*"))]


def untimed(run: Path) -> list[list[str]]:
    """metrics.csv but for the columns of measured time."""
    rows = [line.split(",") for line in (run / "metrics.csv").read_bytes().decode().split("\n")]
    timed = [rows[0].index(name) for name in TIMED if name in rows[0]]
    return [[cell for i, cell in enumerate(row) if i not in timed] for row in rows]


def untimed_lines(run: Path) -> list[dict[str, object]]:
    """The same of metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("ascii").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def table(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """The one table that a script prints."""
    width = max(len(name) for name, _ in rows)
    print(title, *(f"  {name:<{width}}  {value}" for name, value in rows), sep="\n")
