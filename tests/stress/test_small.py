"""The stress scripts with small numbers; the full ones: `python -m tests.stress.kills`, `.full_disk`, `.two_trainers`.

They run in a process of their own, as the scripts do: forks of this one would have autograd's threads without the threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

# argv: a folder, and calls of the scripts in it; prints a line for each, True where nothing was lost.
SCRIPT = """
import contextlib, sys
from pathlib import Path
from tests.stress.common import warm
from tests.stress.full_disk import full_disk
from tests.stress.kills import kills
from tests.stress.two_trainers import two_trainers

top = Path(sys.argv[1])
warm(top)
folder = top / "runs"  # of all: they compare with the same uninterrupted run
folder.mkdir()
for call in sys.argv[2:]:
    with contextlib.redirect_stdout(sys.stderr):
        kept = eval(call)
    print(kept, flush=True)
"""
KILLS, TWO_RANKS = "kills(1, 1, True, 0, folder)", "kills(4, 2, True, 0, folder, 2)"
FULL_DISK, TWO_TRAINERS = "full_disk(2, True, folder)", "two_trainers(1, True, folder)"


def outcomes(folder: Path, *calls: str) -> tuple[dict[str, str], str]:
    """What each call returned, by call, and what was said; one process for all, since its imports take the most time."""
    command = [sys.executable, "-c", SCRIPT, str(folder), *calls]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return dict(zip(calls, done.stdout.splitlines(), strict=False)), done.stderr


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    return outcomes(tmp_path_factory.mktemp("stress"), KILLS, FULL_DISK, TWO_TRAINERS)


def test_kills_lose_nothing(small: tuple[dict[str, str], str]) -> None:
    """Protects weights, scores and metrics.csv: killed once and stopped once at random moments, and resumed, the end is the uninterrupted one's."""
    assert small[0].get(KILLS) == "True", small[1]


@pytest.mark.slow
def test_kills_of_two_ranks_lose_nothing(tmp_path: Path) -> None:
    """Protects the same of two ranks: all of them killed, or one, or all asked to stop."""
    found, said = outcomes(tmp_path, TWO_RANKS)
    assert found.get(TWO_RANKS) == "True", said


def test_full_disks_lose_nothing(small: tuple[dict[str, str], str]) -> None:
    """Protects the run on a disk that gets full: exit 4, then --resume ends as if nothing had been."""
    assert small[0].get(FULL_DISK) == "True", small[1]


def test_of_two_trainers_one_trains(small: tuple[dict[str, str], str]) -> None:
    """Protects a folder from a second trainer."""
    assert small[0].get(TWO_TRAINERS) == "True", small[1]
