"""Loading processes: they prepare numbered batches ahead, and every wait for one has an end, a reason, and obeys signals.

Room: data/pipeline. Legend: B batch.

A process is told a batch's number and a slot through a socket of its own. It leaves the pixels in that slot of a memory
that is shared since before the fork, and answers through the socket. That memory has no name and no file, the sockets
have no path: neither the size of /dev/shm, nor TMPDIR, nor the number of open files can break the transport. Where
there is no such memory (another start method than fork, or too little), batches travel through the sockets as bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from emaseg.data.pipeline.transforms import Empty, RawBatch
from emaseg.data.pipeline.transport import Slot, pack, unpack
from emaseg.distributed.ranks import ranks_here
from emaseg.errors import DataError
from emaseg.free_memory import free_memory

OnSample = Callable[[int], None]  # called with the number of each sample before it is read
Fetch = Callable[[int, OnSample, Empty], RawBatch]  # prepares a batch by its number, where there is room for its arrays

AHEAD = 2  # batches that each process prepares before they are asked for
METHOD = (
    "fork" if sys.platform == "linux" and hasattr(os, "fork") else None
)  # None = the system's usual way to start a process

_POLL = 0.5  # seconds after which a wait looks for signals and at the workers
_SLOW = 30.0  # seconds of reading one sample that are worth a line; then twice as many, and so on
_STALLED = 60.0  # seconds without a sign of life in which a process that reads nothing is taken for stuck
_STARTUP_TIMEOUT = 300.0  # the same for one that has not begun: importing everything from a slow disk takes long
_JOIN_TIMEOUT = 2.0  # seconds in which the system should have removed a killed process
_REQUEST = struct.Struct("<qq")  # number of the batch, slot
_LENGTH = struct.Struct("<Q")  # of the answer that follows
_ALIGNED = 64  # bytes; where slots begin
_STARTING_UP, _IDLE = -2, -1  # in the worker table instead of a sample
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is no batch yet; comes every half second. text: a line for people; "" = nothing new."""

    text: str = ""


@dataclass(slots=True)
class _Worker:
    """One process as its parent sees it."""

    number: int
    process: BaseProcess
    pipe: socket.socket  # does not block
    received: bytearray = field(default_factory=bytearray)
    dead: bool = False
    last_row: tuple[int, ...] = ()  # of the worker table, as last seen
    silent: float = 0.0  # seconds since it last gave a sign of life
    warn_at: float = _SLOW  # silent seconds at which the next line is due


@dataclass(slots=True)
class _Pool:
    """The processes and what they share.

    table: (workers, 2) int64, a row for each: the sample it is reading (or _IDLE, _STARTING_UP), and how many it has
        begun.
    memory: slots of `slot` bytes, or None where batches travel as bytes.
    """

    table: npt.NDArray[np.int64]
    memory: mmap.mmap | None = None
    slot: int = 0
    workers: list[_Worker] = field(default_factory=list)


def from_workers(
    fetch: Fetch,
    steps: range,
    count: int,
    raw_batch_bytes: int,
    name: Callable[[int], str],
    method: str | None = METHOD,
) -> Generator[RawBatch | Waiting, None, None]:
    """The batches of `steps`, in order, prepared by `count` processes, which end with this generator.

    Whatever cannot be had is done without: fewer processes, bytes instead of shared memory, at last this process alone;
    a line says so. The batches are the same. A raw batch's memory is used again once the next one is asked for.

    Args:
        fetch: prepares a batch; is inherited or pickled.
        raw_batch_bytes: that a batch takes at most.
        name: what messages call a sample.
        method: how processes start, as multiprocessing calls it.

    Raises:
        What `fetch` raises, when that batch is due.
        DataError: a process ended by itself; says how, and what it was reading.
    """
    slot = -(-raw_batch_bytes // _ALIGNED) * _ALIGNED
    pool, notes = _Pool(_worker_table(bytearray(16 * count))), list[str]()
    kill = functools.partial(_terminate, pool)
    atexit.register(kill)  # the program may end before this generator, and would wait for its processes forever
    try:
        _start(pool, fetch, slot, method, notes)
        yield from map(Waiting, notes)
        done = yield from _in_order(pool, steps, name)
    finally:
        _terminate(pool)
        atexit.unregister(kill)
    yield from without_workers(fetch, steps[done:])


def without_workers(fetch: Fetch, steps: range) -> Generator[RawBatch | Waiting, None, None]:
    """The same without any process."""
    for step in steps:
        yield fetch(step, _ignore, np.empty)


def _ignore(index: int) -> None:
    """Without workers there is no table to keep."""


# --------------------------------------------------------------------------------------- in the training process
def _affordable_workers(count: int, slot: int, notes: list[str]) -> int:
    """As many of `count` processes as have their batches in half of the memory that is left, of which each process that
    trains on this machine has its part; a line if fewer."""
    left = free_memory()
    free = None if left is None else left // ranks_here()
    most = count if free is None else max(1, min(count, (free // 2 // max(slot, 1) - 1) // AHEAD))
    if most < count:
        needed = slot * (count * AHEAD + 1)
        notes.append(
            f"{count} loading processes would prepare {needed / 2**20:.0f} MiB ahead and {(free or 0) / 2**20:.0f} MiB "
            f"are free{' for each of the processes that train' if ranks_here() > 1 else ''}: {most} are used"
        )
    return most


def _worker_table(shared: Any) -> npt.NDArray[np.int64]:
    return np.frombuffer(shared, np.int64).reshape(-1, 2)


def _start(pool: _Pool, fetch: Fetch, slot: int, method: str | None, notes: list[str]) -> None:
    """Start a process for each row of the table, or as many as the system allows; `notes` says so if those are fewer."""
    wanted = len(pool.table)
    count, forks = _affordable_workers(wanted, slot, notes), method == "fork"
    context: Any = multiprocessing.get_context(method)
    try:
        # What is inherited needs no name; what is handed to a program that starts anew lies in a file.
        shared = mmap.mmap(-1, 16 * count) if forks else context.RawArray("q", 2 * count)
        pool.table, pool.slot = _worker_table(shared), slot
        pool.table[:, 0] = _STARTING_UP
        pool.memory = _shared_memory(slot * (count * AHEAD + 1), notes) if forks else None
        for _ in range(count):
            _start_one(pool, context, fetch, shared, forks)
    except OSError as error:
        number = len(pool.workers)
        rest = f"{number} are used" if number else "the training process reads the images itself"
        notes.append(f"{wanted} loading processes cannot be started ({error.strerror or error}): {rest}")


def _shared_memory(size: int, notes: list[str]) -> mmap.mmap | None:
    """Memory that forked processes share; None, and a line in `notes`, where it cannot be had."""
    try:
        return mmap.mmap(-1, size)
    except (OSError, ValueError, OverflowError) as error:
        notes.append(f"no memory to share with loading processes ({error}): batches are sent as bytes, which is slower")
    return None


def _start_one(pool: _Pool, context: Any, fetch: Fetch, shared: Any, forks: bool) -> None:
    """Start the next process; signals that come meanwhile reach it only when it ignores them."""
    number = len(pool.workers)
    dies_with = os.getpid() if forks and threading.current_thread() is threading.main_thread() else 0
    with _signals_blocked(), warnings.catch_warnings(), contextlib.ExitStack() as undo:
        warnings.simplefilter("ignore")  # from Python 3.12 on about threads; the child touches nothing of theirs
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        with contextlib.closing(theirs):
            others = [ours, *(worker.pipe for worker in pool.workers)] if forks else []
            arguments = (fetch, theirs, others, shared, pool.memory, pool.slot, number, dies_with)
            process = context.Process(target=_worker_main, args=arguments, daemon=True)
            process.start()
        ours.setblocking(False)
        pool.workers.append(_Worker(number, process, ours))
        undo.pop_all()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_order(pool: _Pool, steps: range, name: Callable[[int], str]) -> Generator[RawBatch | Waiting, None, int]:
    """Batches in order; returns how many of `steps` are done when it ends, all or, where processes are stuck, fewer."""
    count = len(pool.workers)
    if not count:
        return 0
    ready: dict[int, RawBatch | Exception] = {}
    asked = 0
    for done, step in enumerate(steps):
        while asked < min(len(steps), done + count * AHEAD):
            asked = _request(pool, steps, asked)
        worker = pool.workers[done % count]
        while step not in ready:
            if worker.dead:
                raise _dead_worker(pool, worker, name)
            arrived, seconds = _poll(pool, ready)
            if not arrived:
                text, stuck = _check_progress(pool, worker, seconds, name)
                yield Waiting(text)
                if stuck:
                    return done
        raw = ready.pop(step)
        if isinstance(raw, Exception):
            raise raw
        if asked < len(steps):
            asked = _request(pool, steps, asked)
        yield raw
    return len(steps)


def _request(pool: _Pool, steps: range, number: int) -> int:
    """Have batch steps[number] prepared; the next number."""
    count = len(pool.workers)
    worker = pool.workers[number % count]
    slot = number % (count * AHEAD + 1)
    with contextlib.suppress(OSError):  # it is dead; that shows where its answer is read
        worker.pipe.sendall(_REQUEST.pack(steps[number], slot))
    return number + 1


def _poll(pool: _Pool, ready: dict[int, RawBatch | Exception]) -> tuple[bool, float]:
    """Take what has come, waiting at most a tick; whether anything came or ended, and the seconds that it took.

    A pause of the whole program (Ctrl-Z, a lid that was closed) counts as a second.
    """
    began = time.monotonic()
    pipes = {worker.pipe: worker for worker in pool.workers if not worker.dead}
    some = wait(list(pipes), _POLL)
    for pipe in some:
        _read_answers(pool, pipes[pipe], ready)  # type: ignore[index]
    return bool(some), min(1.0, time.monotonic() - began)


def _read_answers(pool: _Pool, worker: _Worker, ready: dict[int, RawBatch | Exception]) -> None:
    try:
        while not worker.dead:
            chunk = worker.pipe.recv(2**20)
            worker.received += chunk
            worker.dead = not chunk
    except BlockingIOError:
        pass
    except OSError:
        worker.dead = True
    worker.silent, worker.warn_at = 0.0, _SLOW
    buffer, start = worker.received, 0
    while len(buffer) >= start + _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer, start)
        if len(buffer) < start + _LENGTH.size + length:
            break
        start += _LENGTH.size
        with memoryview(buffer) as view, view[start : start + length] as answer:
            step, content = pickle.loads(answer)  # from our own child
        ready[step] = content if isinstance(content, Exception) else unpack(content, pool.memory)
        start += length
    del buffer[:start]


def _check_progress(pool: _Pool, worker: _Worker, seconds: float, name: Callable[[int], str]) -> tuple[str, bool]:
    """What to tell about a process that has been waited for `seconds` more, and whether to go on without it.

    One that reads is never given up, as a disk may be slow; one that is stopped or does nothing is.
    """
    sample, begun = pool.table[worker.number].tolist()
    if (sample, begun) != worker.last_row:
        worker.last_row, worker.silent, worker.warn_at = (sample, begun), 0.0, _SLOW
        return "", False
    worker.silent += seconds
    stopped = _is_stopped(worker.process.pid)
    what = f"reading {name(sample)}" if sample >= 0 else "starting" if sample == _STARTING_UP else "between two images"
    if stopped:
        what = f"stopped by a signal (kill -CONT {worker.process.pid} lets it go on) while {what}"
    limit = _STARTUP_TIMEOUT if sample == _STARTING_UP and not stopped else _STALLED
    if worker.silent >= limit and (stopped or sample < 0):
        return f"{_since(worker, what)}: the training process reads the images itself from here on", True
    if worker.silent < worker.warn_at:
        return "", False
    worker.warn_at *= 2
    return f"no batch yet: {_since(worker, what)}{'; is its disk there?' if sample >= 0 and not stopped else ''}", False


def _since(worker: _Worker, what: str) -> str:
    return f"loading process {worker.process.pid} has been {what} for {worker.silent:.0f} s"


def _is_stopped(pid: int | None) -> bool:
    """Whether a signal or a debugger keeps it from running; False where the system does not tell."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    return False


def _dead_worker(pool: _Pool, worker: _Worker, name: Callable[[int], str]) -> DataError:
    """Why a process is no more, as far as one can tell."""
    worker.process.join(_JOIN_TIMEOUT)
    code = worker.process.exitcode
    how, why = "", "a damaged file or too little memory can do that"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            how = f" by {signal.Signals(-code).name}"
        if how.endswith("SIGKILL"):
            why = "the system does that when memory is short, mostly: --set train.workers=1 needs less"
    sample = int(pool.table[worker.number, 0])
    place = f" while reading {name(sample)}" if sample >= 0 else " between two images"
    return DataError(
        f"a loading process ended{how}{place}", f"{why}; --set train.workers=0 reads the images without such processes"
    )


def _terminate(pool: _Pool) -> None:
    """End the processes at once: reading leaves nothing half done."""
    workers, pool.workers = pool.workers, []
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.pipe.close()
    deadline = time.monotonic() + _JOIN_TIMEOUT
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.exitcode is None:
            # It waits for a disk that is gone, and dies when that comes back. The interpreter would wait for it at exit.
            getattr(multiprocessing.process, "_children", set()).discard(worker.process)


# ---------------------------------------------------------------------------------------- in a loading process
def _worker_main(
    fetch: Fetch,
    pipe: socket.socket,
    others: Sequence[socket.socket],
    shared: Any,
    memory: mmap.mmap | None,
    slot: int,
    number: int,
    parent: int,
) -> None:
    """Prepare the batches that are asked for, until the training process closes the socket or is gone.

    others: the training process's ends of sockets, inherited: while one is open here, nobody sees that process die.
    parent: the process to die with, or 0: the system ties that to the thread that forked, so it must be the main one.
    """
    for other in others:
        other.close()
    _leave_signals_to_parent()
    torch.set_num_threads(1)
    row = _worker_table(shared)[number]
    with contextlib.suppress(OSError):  # the training process is gone
        if parent and not _dies_with(parent):
            return
        row[0] = _IDLE
        while (request := _receive_exactly(pipe, _REQUEST.size)) is not None:
            step, place = _REQUEST.unpack(request)
            space = None if memory is None else memoryview(memory)[place * slot : (place + 1) * slot]
            answer = _answer(fetch, step, row, place * slot, space)
            pipe.sendall(_LENGTH.pack(len(answer)) + answer)


def _leave_signals_to_parent() -> None:
    """A terminal or a batch system signals the whole group: the training process alone decides what that means."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _dies_with(parent: int) -> bool:
    """On Linux, have the system end this process with `parent`, whatever it is at; False when that is gone already."""
    if sys.platform != "linux":
        return True
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    return os.getppid() == parent


def _receive_exactly(pipe: socket.socket, size: int) -> bytes | None:
    """So many bytes; None at the end of the stream."""
    data = b""
    while len(data) < size:
        chunk = pipe.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def _answer(fetch: Fetch, step: int, row: npt.NDArray[np.int64], offset: int, space: memoryview | None) -> bytes:
    """The batch, or the error that came instead of it, as the training process will read it."""

    def on_sample(index: int) -> None:
        row[0] = index
        row[1] += 1

    try:
        slot = Slot(space, offset)
        content: object = pack(fetch(step, on_sample, slot.empty), slot)
    except Exception as error:  # noqa: BLE001  (it is raised on the other side)
        content = _picklable(error)
    finally:
        row[0] = _IDLE
    return pickle.dumps((step, content))


def _picklable(error: Exception) -> Exception:
    """An exception that survives the journey, with its traceback as a note."""
    error.add_note("in a loading process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (whatever a library's exception does when it is copied)
        return RuntimeError(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()))
    return error
