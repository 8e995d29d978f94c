"""SIGKILL at random moments, a resume each time, until done; the end must be the uninterrupted run's, bit for bit.

python -m tests.stress.kills [KILLS] [--small] [--seed N]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.stress.common import DEMO, differences, ended, small_recipe, spawn, table, train, warm


def kills(count: int, small: bool, seed: int, top: Path) -> bool:
    """Whether nothing was lost in `count` kills, of as many runs as they need."""
    base = small_recipe(top) if small else DEMO
    chance, log = random.Random(seed), top / "log"
    began = time.monotonic()
    codes = [train((*base, "--out", top / "whole"), log)]
    took = time.monotonic() - began
    done, runs, wrong, stages = 0, 0, [], {"before its first checkpoint": 0, "later": 0}
    while done < count:
        out = top / f"run{runs}"
        runs += 1
        while done < count:
            child = spawn((*base, "--out", out, "--resume"), log)
            code = ended(child, chance.uniform(0.0, 0.6 * took))
            if code is not None:
                codes.append(code)
                break
            os.kill(child, signal.SIGKILL)
            ended(child)
            done += 1
            stages["later" if (out / "checkpoints/last.pt").exists() else "before its first checkpoint"] += 1
        codes.append(train((*base, "--out", out, "--resume"), log))
        wrong += [f"{out.name}: {what}" for what in differences(top / "whole", out)]
    odd = [code for code in codes if code]
    rows = [("kills", done), *stages.items(), ("runs they fell on", runs), ("exit codes other than 0", odd or "none")]
    table(f"kills of {base[0]}, seed {seed}", [*rows, ("different at the end", wrong or "nothing")])
    if odd:
        print(log.read_text())
    return not wrong and not odd


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=40)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder))
        sys.exit(not kills(given.count, given.small, given.seed, Path(folder)))
