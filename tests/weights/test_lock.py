"""The download lock, by the system's own means and by the portable one."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from emaseg.weights.lock import STALE_SECONDS, Lock

WAYS = pytest.mark.parametrize("portable", [False, True])


@WAYS
def test_one_at_a_time_and_gone_afterwards(tmp_path: Path, portable: bool) -> None:
    path = tmp_path / "lock"
    first, second = Lock(path, portable=portable), Lock(path, portable=portable)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert not path.exists()
    assert second.acquire()
    second.release()
    second.release()  # once more does no harm
    assert not path.exists()


@WAYS
def test_many_threads_never_hold_it_together(tmp_path: Path, portable: bool) -> None:
    """Protects the hand-over: the file is removed and made anew all the time, and no two are inside."""
    inside, most, turns = [0], [0], [0]

    def work() -> None:
        for _ in range(15):
            lock = Lock(tmp_path / "lock", portable=portable)
            while not lock.acquire():
                time.sleep(0.0002)
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.0005)
            turns[0] += 1
            inside[0] -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == ([1], [60])


def test_a_portable_lock_without_a_sign_of_life_is_taken_over(tmp_path: Path) -> None:
    """Protects from a killed owner where the system has no locks: old means free; a sign of life means taken."""
    path = tmp_path / "lock"
    dead, heir = Lock(path, portable=True), Lock(path, portable=True)
    assert dead.acquire()
    old = time.time() - STALE_SECONDS - 1
    os.utime(path, (old, old))
    dead.renew()
    assert not heir.acquire()
    os.utime(path, (old, old))
    assert not heir.acquire()  # moves it away
    assert heir.acquire()
    heir.release()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_owners_system_lock_is_free(tmp_path: Path) -> None:
    """Protects from SIGKILL: a lock file that nobody holds is no obstacle."""
    (tmp_path / "lock").write_text("")
    lock = Lock(tmp_path / "lock")
    assert lock.acquire()
    lock.release()
