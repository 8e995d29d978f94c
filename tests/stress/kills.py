"""SIGKILL and SIGTERM at random moments, a resume each time; the end must be the uninterrupted run's, bit for bit.

    python -m tests.stress.kills [--kills 50] [--terms 20] [--ranks 1] [--small] [--seed N]

Checkpoints are written all the time, so that many of the kills fall into one that is being written: those leave a
`.part` file, and are counted. SIGTERM must end with exit 75 and a checkpoint of the step it came in. Of several ranks by
turns all are killed, as when a machine loses power, or one, and then the others must end by themselves.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from tests.stress.common import DEMO, differences, ended, small_recipe, spawn, table, warm

SAVED = 75  # exit code: interrupted, and --resume goes on
_PATIENCE = 120.0  # seconds for a start
_GRACE = 20.0  # seconds that the other ranks have once one has failed
TOO_EARLY = -signal.SIGTERM  # before the command could know of the signal; nothing had begun


@dataclass(slots=True)
class Outcome:
    """What came of the signals. moments: how often each fell into which. codes: of SIGTERM. odd: codes that must not be.
    waits: seconds from the death of a rank to the end of the last."""

    runs: int = 0
    kills: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    odd: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


def kills(count: int, terms: int, small: bool, seed: int, top: Path, world: int = 1) -> bool:
    """Whether nothing was lost in `count` kills and `terms` requests to stop, of as many runs as they need."""
    base = small_recipe(top) if small else DEMO
    chance, log = random.Random(seed), top / "log"
    began = time.monotonic()
    whole = Ranks((*base, "--out", top / "whole"), log, world)
    whole.begun()
    locked = time.monotonic()
    codes = whole.ended()
    took = locked - began, time.monotonic() - locked
    outcome = Outcome(odd=[code for code in codes if code])
    signals = [signal.SIGKILL] * count + [signal.SIGTERM] * terms
    chance.shuffle(signals)
    while signals:
        out = top / f"run{outcome.runs}"
        outcome.runs += 1
        arguments = (*base, "--out", out, "--resume")
        while signals and _interrupted(Ranks(arguments, log, world), out, chance, took, signals, outcome):
            pass
        outcome.odd += [code for code in Ranks(arguments, log, world).ended() if code]
        outcome.wrong += [f"{out.name}: {what}" for what in differences(top / "whole", out)]
    return _told(f"{base[0]} on {world} ranks", seed, took, outcome, log)


class Ranks:
    """The processes of a training, started at once; also what a launcher does: when one fails, the others have some time
    to end, and are killed."""

    def __init__(self, arguments: tuple[object, ...], log: Path, world: int) -> None:
        self.killed = False  # by this launcher
        self.waited = 0.0  # seconds from the first failure to the end of all
        self.out = Path(str(arguments[arguments.index("--out") + 1]))
        self.parts, self._before = _parts(self.out), _owner(self.out)  # half-written files and lock from before
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environments = [{**common, "RANK": str(rank)} if world > 1 else {} for rank in range(world)]
        self.pids = [spawn(arguments, log, partial(os.environ.update, own)) for own in environments]
        self._codes: dict[int, int] = {}

    def begun(self) -> bool:
        """Wait until the run has its owner; whether some still run then."""
        return self.running(_PATIENCE, until=lambda: _owner(self.out) not in (None, self._before))

    def running(self, within: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Whether some still run after `within` seconds, or once `until` is true."""
        deadline = time.monotonic() + within
        while True:
            self._codes |= {pid: code for pid in self._left() if (code := ended(pid, 0)) is not None}
            if not self._left():
                return False
            if time.monotonic() >= deadline or until():
                return True
            time.sleep(0.002)

    def send(self, signum: int, rank: int | None = None) -> None:
        """To one, or to all."""
        for pid in self.pids if rank is None else [self.pids[rank]]:
            if pid in self._left():
                os.kill(pid, signum)

    def ended(self) -> list[int]:
        """Their exit codes, by rank."""
        while self.running(0.05, until=lambda: any(self._codes.values())):
            if any(self._codes.values()):
                since = time.monotonic()
                self.killed = self.running(_GRACE)
                self.waited = time.monotonic() - since
                self.send(signal.SIGKILL)
        return [self._codes[pid] for pid in self.pids]

    def _left(self) -> list[int]:
        return [pid for pid in self.pids if pid not in self._codes]


def _interrupted(
    ranks: Ranks,
    out: Path,
    chance: random.Random,
    took: tuple[float, float],
    signals: list[signal.Signals],
    outcome: Outcome,
) -> bool:
    """Wait, and send the next signal; False where the training was done before.

    One in five falls anywhere in the start, the others from the moment on in which the run has its owner.

    Args:
        took: seconds of an uninterrupted start, and of its training.
    """
    start, training = took
    if chance.random() < 0.2:
        runs = ranks.running(chance.uniform(0, start))
    else:
        runs = ranks.begun() and ranks.running(chance.uniform(0, 0.7 * training))
    if not runs:
        outcome.odd += [code for code in ranks.ended() if code]
        return False
    signum = signals.pop()
    if signum == signal.SIGKILL:
        one = chance.randrange(len(ranks.pids)) if len(ranks.pids) > 1 and chance.random() < 0.5 else None
        ranks.send(signum, one)
        ranks.ended()
        outcome.kills += 1
        outcome.waits += [ranks.waited] if one is not None else []
        outcome.moments[_moment(out, ranks.parts)] += 1
        outcome.moments["(ranks that had to be killed, too)"] += ranks.killed
        return True
    ranks.send(signum)
    codes = ranks.ended()
    outcome.codes[codes[0]] += 1
    if TOO_EARLY not in codes:
        outcome.odd += [code for code in codes if code not in (0, SAVED)]
    if SAVED in codes and not (out / "checkpoints/last.pt").exists():
        outcome.wrong.append(f"{out.name}: exit {SAVED} without a checkpoint")
    return True


def _owner(out: Path) -> tuple[int, int] | None:
    """What tells one lock of a run from another."""
    try:
        state = (out / "lock").stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns


def _parts(out: Path) -> set[Path]:
    return set((out / "checkpoints").glob(".*.part"))


def _moment(out: Path, before: set[Path]) -> str:
    """What a kill fell into, from what it left; before: half-written files of kills before it."""
    if _parts(out) - before:
        return "while a checkpoint was written"
    return "at other times" if (out / "checkpoints/last.pt").exists() else "before the first checkpoint"


def _told(name: str, seed: int, took: tuple[float, float], outcome: Outcome, log: Path) -> bool:
    """Print the table; whether all is well."""
    rows: list[tuple[str, object]] = [
        ("uninterrupted", f"{took[0]:.1f} s to start, {took[1]:.1f} s"),
        ("SIGKILL", outcome.kills),
    ]
    rows += [(f"  {moment}", count) for moment, count in sorted(outcome.moments.items()) if count]
    if outcome.waits:
        rows.append(("  the others ended after", f"{median(outcome.waits):.1f} s, {max(outcome.waits):.1f} s at most"))
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
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder))
        sys.exit(not kills(given.kills, given.terms, given.small, given.seed, Path(folder), given.ranks))
