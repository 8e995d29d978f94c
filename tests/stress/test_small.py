"""The stress scripts with small numbers; the full ones: `python -m tests.stress.kills`, `.full_disk`, `.two_trainers`.

Each runs in a process of its own, as the scripts do: forks of this one would have autograd's threads without the threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

SCRIPT = """
import sys
from pathlib import Path
from tests.stress.common import warm
from tests.stress.full_disk import full_disk
from tests.stress.kills import kills
from tests.stress.two_trainers import two_trainers

folder = Path(sys.argv[1])
warm(folder)
sys.exit(0 if {call} else 1)
"""


def passes(call: str, folder: Path) -> None:
    command = [sys.executable, "-c", SCRIPT.format(call=call), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kills_lose_nothing(tmp_path: Path) -> None:
    """Protects weights, scores and metrics.csv: killed and stopped at random moments and resumed, the end is the uninterrupted one's."""
    passes("kills(2, 1, True, 0, folder)", tmp_path)


@pytest.mark.slow
def test_kills_of_two_ranks_lose_nothing(tmp_path: Path) -> None:
    """Protects the same of two ranks: all of them killed, or one, or all asked to stop."""
    passes("kills(4, 2, True, 0, folder, 2)", tmp_path)


def test_full_disks_lose_nothing(tmp_path: Path) -> None:
    """Protects the run on a disk that gets full: exit 4, then --resume ends as if nothing had been."""
    passes("full_disk(2, True, folder)", tmp_path)


def test_of_two_trainers_one_trains(tmp_path: Path) -> None:
    """Protects a folder from a second trainer."""
    passes("two_trainers(1, True, folder)", tmp_path)
