"""SIGKILL and SIGTERM at random moments, a resume each time; the end must be the uninterrupted run's, bit for bit.

    python -m tests.stress.kills [--kills 50] [--terms 20] [--small] [--seed N]

Checkpoints are written all the time, so that many of the kills fall into one that is being written: those leave a
`.part` file, and are counted. SIGTERM must end with exit 75 and a checkpoint of the step it came in.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.stress.common import DEMO, differences, ended, small_recipe, spawn, table, train, warm

SAVED = 75  # exit code: interrupted, and --resume goes on
TOO_EARLY = -signal.SIGTERM  # before the command could know of the signal; nothing had begun


@dataclass(slots=True)
class Outcome:
    """What came of the signals. moments: how often each fell into which. codes: of SIGTERM. odd: codes that must not be."""

    runs: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    odd: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def kills(count: int, terms: int, small: bool, seed: int, top: Path) -> bool:
    """Whether nothing was lost in `count` kills and `terms` requests to stop, of as many runs as they need."""
    base = small_recipe(top) if small else DEMO
    chance, log = random.Random(seed), top / "log"
    began = time.monotonic()
    code = train((*base, "--out", top / "whole"), log)
    took = time.monotonic() - began
    outcome = Outcome(odd=[code] if code else [])
    signals = [signal.SIGKILL] * count + [signal.SIGTERM] * terms
    chance.shuffle(signals)
    while signals:
        out = top / f"run{outcome.runs}"
        outcome.runs += 1
        while signals and _interrupted(
            (*base, "--out", out, "--resume"), out, log, chance.uniform(0, 0.6 * took), signals, outcome
        ):
            pass
        code = train((*base, "--out", out, "--resume"), log)
        outcome.odd += [code] if code else []
        outcome.wrong += [f"{out.name}: {what}" for what in differences(top / "whole", out)]
    return _told(base[0], seed, took, outcome, log)


def _interrupted(
    arguments: tuple[object, ...], out: Path, log: Path, wait: float, signals: list[signal.Signals], outcome: Outcome
) -> bool:
    """Start, wait, and send the next signal; False where the training was done before."""
    before = _parts(out)
    child = spawn(arguments, log)
    code = ended(child, wait)
    if code is not None:
        outcome.odd += [code] if code else []
        return False
    signum = signals.pop()
    os.kill(child, signum)
    code = ended(child)
    if signum == signal.SIGKILL:
        outcome.moments[_moment(out, before)] += 1
        return True
    assert code is not None
    outcome.codes[code] += 1
    outcome.odd += [] if code in (0, SAVED, TOO_EARLY) else [code]
    if code == SAVED and not (out / "checkpoints/last.pt").exists():
        outcome.wrong.append(f"{out.name}: exit {SAVED} without a checkpoint")
    return True


def _parts(out: Path) -> set[Path]:
    return set((out / "checkpoints").glob(".*.part"))


def _moment(out: Path, before: set[Path]) -> str:
    """What a kill fell into, from what it left; before: half-written files of kills before it."""
    if _parts(out) - before:
        return "while a checkpoint was written"
    return "at other times" if (out / "checkpoints/last.pt").exists() else "before the first checkpoint"


def _told(name: str, seed: int, took: float, outcome: Outcome, log: Path) -> bool:
    """Print the table; whether all is well."""
    rows: list[tuple[str, object]] = [("uninterrupted", f"{took:.1f} s"), ("SIGKILL", outcome.moments.total())]
    rows += [(f"  {moment}", count) for moment, count in sorted(outcome.moments.items())]
    rows += [("SIGTERM", outcome.codes.total()), *((f"  exit {code}", n) for code, n in sorted(outcome.codes.items()))]
    rows += [("runs they fell on", outcome.runs), ("exit codes that must not be", outcome.odd or "none")]
    table(f"signals to {name}, seed {seed}", [*rows, ("different at the end", outcome.wrong or "nothing")])
    if outcome.odd or outcome.wrong:
        print(log.read_text())
    return not outcome.wrong and not outcome.odd


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder))
        sys.exit(not kills(given.kills, given.terms, given.small, given.seed, Path(folder)))
