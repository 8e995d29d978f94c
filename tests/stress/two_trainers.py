"""Two trainers that start together on one folder: exactly one trains, the other is exit 2 and says who does.

    python -m tests.stress.two_trainers [ROUNDS] [--small]

By turns on a new folder, and with --resume on one whose trainer was killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.stress.common import DEMO, differences, ended, small_recipe, spawn, table, uninterrupted, warm


def two_trainers(rounds: int, small: bool, top: Path) -> bool:
    """Whether in every round one trained and the other was told."""
    base, log = small_recipe(top) if small else DEMO, top / "log"
    codes = Counter([uninterrupted(base, top / "whole", log)])
    pairs, told, wrong = Counter[tuple[int | None, ...]](), 0, []
    for i in range(rounds):
        out, resume = top / f"pair{i}", ("--resume",) if i % 2 else ()
        if resume:
            killed = spawn((*base, "--out", out), log)
            while not (out / "lock").exists():
                time.sleep(0.001)
            os.kill(killed, signal.SIGKILL)
            ended(killed)
        gate, opened = os.pipe()
        logs = [top / f"log{i}{side}" for side in "ab"]

        def wait(gate: int = gate, opened: int = opened) -> None:
            os.close(opened)
            os.read(gate, 1)  # until the other end is closed

        children = [spawn((*base, "--out", out, *resume), path, wait) for path in logs]
        os.close(opened)
        both = sorted(ended(child) or 0 for child in children)
        os.close(gate)
        pairs[tuple(both)] += 1
        words = "".join(path.read_text() for path in logs)
        told += any(f"is being trained by process {child} on" in words for child in children)
        wrong += [f"round {i}: {what}" for what in differences(top / "whole", out)]
        shutil.rmtree(out)
    rows = [("rounds", rounds), ("pairs of exit codes", dict(pairs)), ("the other was named", told)]
    table(f"two trainers of {base[0]}", [*rows, ("different at the end", wrong or "nothing")])
    return set(pairs) == {(0, 2)} and told == rounds and not wrong and set(codes) == {0}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        warm(Path(top))
        sys.exit(not two_trainers(given.count, given.small, Path(top)))
