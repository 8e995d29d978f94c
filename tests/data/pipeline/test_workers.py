"""Loading processes: nothing that a system withholds stops a run, and no wait for one is without end or reason."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import multiprocessing
import multiprocessing.popen_fork  # else imported when files of the system cannot be read any more
import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emaseg.data.pipeline import loading, workers
from emaseg.data.pipeline.loading import Stream, Waiting, epoch_order
from emaseg.data.pipeline.transforms import Batch, RawBatch
from emaseg.events import Finished, Note, Stepped
from emaseg.training.train import train
from tests.data.pipeline.test_loading import AUGMENT, TOO_LONG, Pictures, appears, equal, stream
from tests.helpers import tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def waited(path: Stream) -> tuple[list[Batch], list[str]]:
    """All batches, and all that was said between them."""
    batches, texts = [], []
    for item in path.items:
        if isinstance(item, Waiting):
            texts += [item.text] if item.text else []
        else:
            batches.append(item)
    return batches, texts


def same(batches: list[Batch], expected: list[Batch]) -> bool:
    return len(batches) == len(expected) and all(map(equal, batches, expected))


def in_child(body: Callable[[], object]) -> int:
    """The wait status of a forked copy of this process that runs `body`; an exception is 1."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001
            print(f"{type(error).__name__}: {error}")
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def mounted(kind: str) -> None:
    """A /dev/shm of its own: full of others' files, of 64 kB, or read-only."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, read_only = 1 << 18 | 1 << 14, 1
    options = b"size=4k" if kind == "full" else b"size=64k"
    failed = (
        libc.unshare(0x00020000)
        or libc.mount(b"none", b"/", None, private, None)
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", read_only if kind == "read-only" else 0, options)
    )
    if failed:
        os._exit(77)
    if kind == "full":
        Path("/dev/shm/others").write_bytes(b"x" * 4096)


def withheld(kind: str, tmp_path: Path) -> None:
    """Take something away from this process, for good."""
    if kind.startswith("shm "):
        mounted(kind.removeprefix("shm "))
    elif kind == "files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        with contextlib.suppress(OSError):
            while os.dup(0) < 251:  # four are left: two processes' sockets
                pass
    elif kind == "processes":
        if os.getuid() == 0:
            codecs.lookup("ascii")  # the other user may not be able to read Python's own files
            os.setuid(54321)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    else:
        folder = tmp_path / ("x" * 150 if kind == "tmpdir long" else "absent")
        if kind == "tmpdir long":
            folder.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("shm full", ""),
        ("shm small", ""),
        ("shm read-only", ""),
        ("tmpdir long", ""),
        ("tmpdir absent", ""),
        ("files", "cannot be started (Too many open files)"),
        ("processes", "cannot be started (Resource temporarily unavailable)"),
    ],
)
def test_what_the_system_withholds_changes_no_batch(kind: str, said: str, tmp_path: Path) -> None:
    """Docker's /dev/shm, a TMPDIR too long for sockets, limits: the same bits, and a line where it costs something."""
    expected = list(stream(Pictures(), total=4))

    def body() -> None:
        withheld(kind, tmp_path)
        began = time.monotonic()
        batches, texts = waited(stream(Pictures(), 3, total=4))
        assert same(batches, expected)
        assert time.monotonic() - began < TOO_LONG
        assert len(texts) == bool(said), texts
        assert said in "".join(texts), texts

    status = in_child(body)
    if status == 77 << 8:
        pytest.skip("mounting needs root")
    assert status == 0


def fetcher(count: int = 10, **trouble: object) -> loading._Fetcher:
    plan = loading._BatchSampler(count, 4, 0, 5, 0, 0, 1, 0)
    return loading._Fetcher(Pictures(count, **trouble), AUGMENT, plan)  # type: ignore[arg-type]


def raw_batches(path: object) -> list[RawBatch]:
    """Copies, as their memory is used again."""
    return [
        RawBatch(item.pixels.clone(), item.labels.clone(), item.windows, item.names)
        for item in path  # type: ignore[attr-defined]
        if isinstance(item, RawBatch)
    ]


def alike(a: list[RawBatch], b: list[RawBatch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.pixels, y.pixels) and torch.equal(x.labels, y.labels) and x.windows == y.windows
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(("method", "size"), [("fork", 1), ("spawn", 10**6)])
def test_batches_travel_as_bytes_where_they_cannot_be_shared(method: str, size: int) -> None:
    """Slots that are too small, and processes that inherit nothing (the only way on some systems)."""
    expected = raw_batches(workers.without_workers(fetcher(), range(5)))
    path = workers.from_workers(fetcher(), range(5), 1 if method == "spawn" else 2, size, str, method)
    assert alike(raw_batches(path), expected)
    assert multiprocessing.active_children() == []


def test_memory_that_cannot_be_had_is_done_without() -> None:
    """Slots beyond the address space: the batches come as bytes, and a line says so."""
    notes: list[str] = []
    assert workers._shared_memory(2**62, notes) is None
    assert workers._shared_memory(2**70, notes) is None
    assert all("batches are sent as bytes" in note for note in notes)
    assert len(notes) == 2


def test_no_more_processes_than_memory_for_their_batches() -> None:
    """A batch of a terabyte in 8 processes would end in the system's killing one."""
    notes: list[str] = []
    assert workers._affordable_workers(8, 2**20, notes) == 8
    assert not notes
    assert workers._affordable_workers(8, 2**40, notes) == 1
    assert "1 are used" in notes[0]


def test_a_fork_that_fails_in_the_middle_leaves_fewer_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that did start do the work."""
    fork, forked = os.fork, []

    def twice() -> int:
        if len(forked) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", twice)
    batches, texts = waited(stream(Pictures(), 4))
    assert same(batches, list(stream(Pictures())))
    assert texts == ["4 loading processes cannot be started (Resource temporarily unavailable): 2 are used"]
    assert multiprocessing.active_children() == []


def test_a_process_that_is_stopped_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP, a debugger, a freezer: after a while, said aloud, the training process reads on by itself."""
    monkeypatch.setattr(workers, "_POLL", 0.05)
    monkeypatch.setattr(workers, "_STALLED", 0.5)
    path = stream(Pictures(), 2, total=9)
    first = next(path)
    for process in multiprocessing.active_children():
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
    batches, texts = waited(path)
    assert same([first, *batches], list(stream(Pictures(), total=9)))
    assert len(texts) == 1
    assert "stopped by a signal" in texts[0]
    assert multiprocessing.active_children() == []


def test_a_slow_disk_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a network disk learns for which file; a slow one is never given up."""
    for name, value in (("_POLL", 0.02), ("_SLOW", 0.1), ("_STALLED", 0.2)):
        monkeypatch.setattr(workers, name, value)
    slow = Pictures(what="hang", at=int(epoch_order(10, 0, 0)[0]), token=tmp_path / "hanging")
    texts = []
    for item in (path := stream(slow, 1)).items:
        assert isinstance(item, Waiting)
        texts += [item.text] if item.text else []
        if len(texts) == 3:
            break
    path.close()
    assert all(f"reading image_{slow.at}.png for " in text for text in texts)
    assert multiprocessing.active_children() == []


def test_an_interrupt_ends_the_wait_for_a_disk_that_is_gone(tmp_path: Path) -> None:
    """Ctrl-C while nothing comes: within three seconds, with all processes."""
    token = tmp_path / "hanging"

    def body() -> None:
        parent = os.getpid()
        threading.Thread(target=lambda: appears(token) and os.kill(parent, signal.SIGINT), daemon=True).start()
        hanging = stream(Pictures(what="hang", at=int(epoch_order(10, 0, 0)[0]), token=token), 2)
        with pytest.raises(KeyboardInterrupt):
            next(hanging)
        assert multiprocessing.active_children() == []

    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    assert in_child(body) == 0
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("starts_in", ["main thread", "other thread"])
def test_no_process_outlives_the_training_process(starts_in: str, tmp_path: Path) -> None:
    """SIGKILL gives it no time to end them: the system does it, or they find their socket closed."""
    pids = tmp_path / "pids"

    def run() -> None:
        path = stream(Pictures(), 2, total=1000)
        next(path)
        new = tmp_path / "new"
        new.write_text(" ".join(str(process.pid) for process in multiprocessing.active_children()))
        new.rename(pids)
        time.sleep(TOO_LONG)

    parent = os.fork()
    if parent == 0:
        if starts_in == "other thread":
            threading.Thread(target=run).start()
            time.sleep(TOO_LONG)
        run()
        os._exit(0)
    assert appears(pids)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 2
    end = time.monotonic() + 10
    while time.monotonic() < end and any(map(runs, left)):
        time.sleep(0.02)
    assert not any(map(runs, left))


def runs(pid: int) -> bool:
    """Whether it exists and is more than an entry that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_run_that_waits_for_a_batch_can_be_stopped_and_saved(tmp_path: Path) -> None:
    """SIGTERM sets the flag: a batch that never comes must not keep the checkpoint from being written."""
    stop = threading.Event()
    recipe = tiny("train.workers=1", "train.log_every=1")
    for event in train(recipe, tmp_path / "run", stop=stop):
        if isinstance(event, Stepped) and event.step == 1:
            for process in multiprocessing.active_children():
                assert process.pid
                os.kill(process.pid, signal.SIGSTOP)
            threading.Timer(0.1, stop.set).start()
    assert isinstance(event, Finished)
    assert event.interrupted
    assert event.step < 12
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
    assert multiprocessing.active_children() == []


def test_what_is_done_without_is_told_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user of a run learns why it is slower than it might be."""

    def none() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", none)
    events = list(train(tiny("train.workers=2", "train.iterations=2"), tmp_path / "run"))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("the training process reads the images itself" in note for note in notes)
    assert "reads the images itself" in (tmp_path / "run" / "log.txt").read_text()
