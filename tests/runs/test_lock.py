"""One owner for a run folder: who gets it, who is told, and what becomes of the lock of an owner that is gone."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import pytest

from emaseg.errors import RecipeError, SystemFault
from emaseg.events import Stepped
from emaseg.runs.lock import hold, reserve
from emaseg.runs.lock.owner import STALE_SECONDS, Owner, _began, _flock, _lock_is_free, this_process
from emaseg.training.train import train
from tests.helpers import run, tiny

HERE = this_process()
MANY = 12
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def left_by(root: Path, owner: Owner, age: float = 0.0) -> Path:
    """A lock file as `owner` would have left it, with its last sign of life `age` seconds ago."""
    root.mkdir(exist_ok=True)
    path = root / "lock"
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def elsewhere(**changes: object) -> Owner:
    """An owner on another machine."""
    return replace(HERE, host="other", boot="another", pid=77, began="1", **changes)  # type: ignore[arg-type]


def refused(root: Path) -> RecipeError:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError) as caught, hold(root):
        pass
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    return caught.value


def taken(root: Path) -> str:
    """Take the lock; returns whom it was taken over from. Nothing of any lock is left."""
    with hold(root) as lock:
        content = json.loads((root / "lock").read_text())
        assert (content["pid"], content["host"]) == (os.getpid(), socket.gethostname())
        assert [path.name for path in root.iterdir()] == ["lock"]
    assert list(root.parent.glob(f"{root.name}/*")) == []
    return lock.took_over


def test_the_second_is_refused_and_told_who(tmp_path: Path) -> None:
    """Protects the first: the second names host, process and time, is exit 2, and changes no file; afterwards the lock
    and the folder made for it are gone."""
    with hold(tmp_path / "a" / "run"):
        error = refused(tmp_path / "a" / "run")
        assert error.exit_code == 2
        assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in error.message
        assert f"kill {os.getpid()}" in error.hint
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_holds_its_folder(tmp_path: Path) -> None:
    """Protects a live run from a start and from a --resume: both are exit 2, its files stay, it ends as it would have."""
    out = tmp_path / "run"
    events = train(tiny("train.iterations=3"), out)
    while not (out / "metrics.csv").exists():
        next(events)
    part = out / "checkpoints" / ".last.pt.x.part"
    part.write_bytes(b"half")
    before = (out / "metrics.csv").read_bytes()
    for resume in (False, True):
        with pytest.raises(RecipeError, match=r"is being trained by process \d+ on"):
            run(tiny("train.iterations=3"), out, resume=resume)
    assert part.read_bytes() == b"half"
    assert (out / "metrics.csv").read_bytes() == before
    list(events)
    assert not (out / "lock").exists()
    run(tiny("train.iterations=3"), out, resume=True)


def test_the_lock_goes_with_errors_and_closed_runs(tmp_path: Path) -> None:
    """Protects the next start: a run that raises or is dropped half way leaves no lock, a start refused no folder."""
    with pytest.raises(RuntimeError), hold(tmp_path / "a"):
        raise RuntimeError
    events = train(tiny("train.iterations=3"), tmp_path / "b")
    next(events)
    assert (tmp_path / "b" / "lock").is_file()
    events.close()
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_dead_owner_is_inherited_from(tmp_path: Path) -> None:
    """Protects --resume after a kill: process gone, its number another one's now, ended but not yet collected, or gone
    with the machine's last start: taken over at once, and said."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while _began(ended.pid) != "gone":  # not collected: a zombie
        time.sleep(0.01)
    dead = replace(HERE, pid=ended.pid)
    left_by(tmp_path / "zombie", dead)
    assert f"process {ended.pid}" in taken(tmp_path / "zombie")
    ended.wait()
    left_by(tmp_path / "gone", dead)
    assert f"process {ended.pid}" in taken(tmp_path / "gone")
    left_by(tmp_path / "reused", replace(HERE, began="1"))
    assert taken(tmp_path / "reused")
    left_by(tmp_path / "rebooted", replace(HERE, boot="before"), age=time.time() - 1)
    assert taken(tmp_path / "rebooted")


@linux
def test_an_owner_elsewhere_lives_as_long_as_it_shows(tmp_path: Path) -> None:
    """Protects a run on another machine or in another container: renewed lately means alive; after five minutes without
    a sign it is taken over, and until then the message says so. A machine of the same name is no other start of this."""
    for name, owner in (("a", elsewhere()), ("b", replace(elsewhere(), host=HERE.host))):
        left_by(tmp_path / name, owner, age=STALE_SECONDS - 60)
        error = refused(tmp_path / name)
        assert "last sign of life 24" in error.message
        assert "5 minutes after the last sign of life" in error.hint
        left_by(tmp_path / name, owner, age=STALE_SECONDS + 1)
        assert "process 77" in taken(tmp_path / name)
    left_by(tmp_path / "ahead", elsewhere(), age=-STALE_SECONDS - 60)  # a clock that was wrong
    assert taken(tmp_path / "ahead")


@linux
def test_the_system_lock_tells_of_another_container(tmp_path: Path) -> None:
    """Protects both ways: with process numbers that mean nothing here, a lock that somebody holds open is alive however
    old it is, one that nobody does is dead however young; on another mount of the same disk only the time counts."""
    path = left_by(tmp_path / "run", HERE)
    disk = str(path.stat().st_dev)
    other = replace(HERE, host="box", space="pid:[1]", pid=1, disk=disk, flocked=True)
    left_by(tmp_path / "run", other, age=9 * STALE_SECONDS)
    handle = os.open(path, os.O_RDWR)
    assert _flock(handle, exclusive=True)
    assert "process 1 on box" in refused(tmp_path / "run").message
    os.close(handle)
    left_by(tmp_path / "run", replace(other, disk="77"))
    assert "process 1 on box" in refused(tmp_path / "run").message
    left_by(tmp_path / "run", other)
    assert taken(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"{", b"[1]", b'{"pid": 1}', b"\xff\xfe", b"[" * 4000])
def test_a_lock_that_says_nothing_counts_for_a_while(tmp_path: Path, content: bytes) -> None:
    """Protects from guessing: a lock torn by a crash, or being written, is respected while young and named; then taken."""
    path = tmp_path / "lock"
    path.write_bytes(content)
    error = refused(tmp_path)
    assert "not readable" in error.message
    assert str(path) in error.message
    assert "delete that file" in error.hint
    os.utime(path, (1, 1))
    assert "not readable" in taken(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "dangling", "cyclic", "fifo"])
def test_what_is_no_file_in_the_locks_place_is_named(tmp_path: Path, kind: str) -> None:
    """Protects from hanging, and from a lock written elsewhere through a link."""
    path = tmp_path / "lock"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("nowhere" if kind == "dangling" else "lock"))
    assert "not readable" in refused(tmp_path).message
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


@linux
@pytest.mark.parametrize(
    ("links", "left"),
    [(True, "nothing"), (True, "dead"), (True, "dead heir"), (False, "nothing"), (False, "dead heir")],
)
def test_of_many_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, left: str) -> None:
    """Protects the take-over: of many that start together exactly one gets the lock, where none was, where a dead owner's
    is, where an heir died while it took over; with links and on a disk without them."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    root = tmp_path / "run"
    root.mkdir()
    if left != "nothing":
        left_by(root, replace(HERE, pid=2**30, token="aa"))
    if left == "dead heir":
        (root / ".lock.aa.next").write_text(json.dumps(asdict(replace(HERE, pid=2**30, token="bb"))))
    context = multiprocessing.get_context("fork")
    go, tell = context.Barrier(MANY), context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to fork with threads: they do nothing here
        starts = [context.Process(target=start, args=(root, go, tell)) for _ in range(MANY)]
        for process in starts:
            process.start()
    for process in starts:
        process.join()
    assert sorted(tell.get() for _ in starts) == [*["refused"] * (MANY - 1), "won"]
    assert list(root.iterdir()) == []


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "no links here")


def start(root: Path, go: object, tell: object) -> None:
    """One of the many: the winner keeps the lock until all have asked."""
    go.wait()  # type: ignore[attr-defined]
    try:
        with hold(root):
            tell.put("won")  # type: ignore[attr-defined]
            go.wait()  # type: ignore[attr-defined]
    except RecipeError:
        tell.put("refused")  # type: ignore[attr-defined]
        go.wait()  # type: ignore[attr-defined]


@linux
def test_a_forked_process_neither_keeps_nor_releases_it(tmp_path: Path) -> None:
    """Protects from loading processes: one that ends leaves the lock, and one that outlives its killed parent does not
    hold it."""
    context = multiprocessing.get_context("fork")
    with hold(tmp_path / "run") as lock:
        child = context.Process(target=lock.release)
        child.start()
        child.join()
        assert refused(tmp_path / "run")
        waiting = context.Event()
        orphan = context.Process(target=waiting.wait)
        orphan.start()
        while not _began(orphan.pid or 0):
            time.sleep(0.01)
        time.sleep(0.2)  # it has closed what it inherited
        os.close(lock._handle)  # as its death would
        assert _lock_is_free(tmp_path / "run" / "lock")
        lock._handle = os.open(tmp_path / "run" / "lock", os.O_RDWR)
        waiting.set()
        orphan.join()


def test_the_owner_notices_when_it_is_not_any_more(tmp_path: Path) -> None:
    """Protects from two writers after a long sleep: the run stops before it writes; a lock that was only deleted is put
    back."""
    with hold(tmp_path / "run") as lock:
        (tmp_path / "run" / "lock").unlink()
        lock.check()
        assert refused(tmp_path / "run")
        left_by(tmp_path / "other", elsewhere())
        os.replace(tmp_path / "other" / "lock", tmp_path / "run" / "lock")
        with pytest.raises(SystemFault, match="taken over by process 77 on other"):
            lock.check()
    assert (tmp_path / "run" / "lock").is_file()  # the other's


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    """Protects the new owner's files from the old one."""
    out = tmp_path / "run"
    events = train(
        tiny("train.iterations=4", "train.save_seconds=1000", "train.save_every=2", "train.log_every=1"), out
    )
    while not (isinstance(event := next(events), Stepped) and event.step == 3):
        pass
    # The checkpoint of step 2 is written beside the training, which waits here; nothing else begins.
    while not (out / "checkpoints/last.pt").exists() or list((out / "checkpoints").glob(".*.part")):
        time.sleep(0.01)
    (out / "lock").unlink()
    left_by(out, elsewhere())
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(SystemFault, match="taken over"):
        list(events)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a live run on another machine: its lock is renewed without any step being done."""
    monkeypatch.setattr("emaseg.runs.lock.lock.BEAT_SECONDS", 0.01)
    with hold(tmp_path / "run"):
        path = tmp_path / "run" / "lock"
        os.utime(path, (1, 1))
        for _ in range(500):
            if path.stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_leftovers_of_killed_starts_go(tmp_path: Path) -> None:
    """Protects the folder from filling up; a young one may be of a start that goes on."""
    for name, age in ((".lock.old", 1), (".lock.young", time.time())):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (age, age))
    (tmp_path / ".lock.dead").write_text(json.dumps(asdict(replace(HERE, pid=2**30))))
    with hold(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock.young", "lock"]


def test_two_default_folders_of_one_second(tmp_path: Path) -> None:
    """Protects two runs that are started together without --out: two folders; none stays that nothing was written into."""
    name = tmp_path / "runs" / "demo" / datetime(2026, 1, 1).strftime("%Y-%m-%d_%H-%M-%S")
    with reserve(name) as first, reserve(name) as second, reserve(name) as third:
        assert (first, second.name, third.name) == (name, f"{name.name}-2", f"{name.name}-3")
        (second / "x").write_text("x")
    assert [path.name for path in name.parent.iterdir()] == [second.name]


def test_many_default_folders_at_once(tmp_path: Path) -> None:
    """Protects the same from the race: folders above come and go while others are made below them."""
    seen: list[Path] = []

    def work() -> None:
        for _ in range(20):
            with reserve(tmp_path / "runs" / "demo" / "now") as path:
                (path / str(threading.get_ident())).write_text("x")
                seen.append(path)
                assert len(list(path.iterdir())) == 1
                (path / str(threading.get_ident())).unlink()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigkill_leaves_a_lock_that_hinders_nobody(tmp_path: Path) -> None:
    """Protects the whole: a killed owner in another process, then a start here."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=keep, args=(tmp_path / "run", ready))
    owner.start()
    assert ready.wait(30)
    assert f"process {owner.pid}" in refused(tmp_path / "run").message
    os.kill(owner.pid or 0, signal.SIGKILL)
    owner.join()
    assert f"process {owner.pid}" in taken(tmp_path / "run")


def keep(root: Path, ready: object) -> None:
    with hold(root):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)
