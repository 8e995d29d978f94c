"""How long the launcher waits for the other ranks once one has failed."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from emaseg.distributed import launch


def watched(
    monkeypatch: pytest.MonkeyPatch, saving: float, *ranks: tuple[float, int]
) -> tuple[dict[int, int], set[int]]:
    """What is made of ranks that live so many seconds and end with such a code."""
    monkeypatch.setattr(launch, "_GRACE", 0.5)
    program = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))"
    processes = [subprocess.Popen([sys.executable, "-c", program, *map(str, rank)]) for rank in ranks]
    context: Any = SimpleNamespace(subprocess_handlers={i: SimpleNamespace(proc=p) for i, p in enumerate(processes)})
    try:
        return launch._watch(context, saving)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_rank_0_has_the_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the steps since the last checkpoint: rank 0 writes one when another rank has failed, on a slow disk for
    longer than it takes to notice."""
    codes, killed = watched(monkeypatch, 60.0, (2.0, 5), (0.0, 3), (60.0, 0))
    assert codes == {0: 5, 1: 3}
    assert list(codes) == [1, 0]  # the first one's is the program's
    assert killed == {2}


def test_a_rank_0_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a command that never ends."""
    assert watched(monkeypatch, 0.5, (60.0, 0), (0.0, 3)) == ({1: 3}, {0})
