"""Loading processes: they prepare numbered batches ahead, and every wait for one has an end, a reason, and obeys signals.

Room: data. Imports data.transforms and errors, numpy and torch. Legend: B batch.

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

from emaseg.data.pipeline.transforms import Parcel
from emaseg.errors import DataError

Look = Callable[[int], None]  # called with the number of each sample before it is read
Work = Callable[[int, Look], Parcel]  # prepares a batch by its number

AHEAD = 2  # batches that each process prepares before they are asked for
METHOD = "fork" if sys.platform == "linux" else None  # None = the system's usual way to start a process

_TICK = 0.5  # seconds after which a wait comes up for air
_SLOW = 30.0  # seconds of reading one sample that are worth a line; then twice as many, and so on
_SILENT = 60.0  # seconds without a sign of life in which a process that reads nothing is taken for stuck
_STARTING = 300.0  # the same for one that has not begun: importing everything from a slow disk takes long
_BURIAL = 2.0  # seconds in which the system should have removed a killed process
_REQUEST = struct.Struct("<qq")  # number of the batch, slot
_LENGTH = struct.Struct("<Q")  # of the answer that follows
_ALIGNED = 64  # bytes; where slots begin
_BEGINNING, _IDLE = -2, -1  # on the desk instead of a sample
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
    gone: bool = False
    stage: tuple[int, ...] = ()  # its desk as last seen
    quiet: float = 0.0  # seconds since it last gave a sign of life
    told: float = _SLOW  # quiet seconds at which the next line is due


@dataclass(slots=True)
class _Crew:
    """The processes and what they share.

    desk: (workers, 2) int64, a row for each: the sample it is reading (or _IDLE, _BEGINNING) and how many it has begun.
    memory: slots of `slot` bytes, or None where batches travel as bytes.
    """

    desk: npt.NDArray[np.int64]
    memory: mmap.mmap | None = None
    slot: int = 0
    workers: list[_Worker] = field(default_factory=list)


def from_workers(
    work: Work, steps: range, count: int, parcel_bytes: int, name: Callable[[int], str], method: str | None = METHOD
) -> Generator[Parcel | Waiting, None, None]:
    """The batches of `steps`, in order, prepared by `count` processes, which end with this generator.

    Whatever cannot be had is done without: fewer processes, bytes instead of shared memory, at last this process alone;
    a line says so. The batches are the same. A parcel's memory is used again once the next one is asked for.

    Args:
        work: prepares a batch; is inherited or pickled.
        parcel_bytes: that a batch takes at most.
        name: what messages call a sample.
        method: how processes start, as multiprocessing calls it.

    Raises:
        What `work` raises, when that batch is due.
        DataError: a process ended by itself; says how, and what it was reading.
    """
    slot = -(-parcel_bytes // _ALIGNED) * _ALIGNED
    crew, notes = _Crew(_desk(bytearray(16 * count))), list[str]()
    kill = functools.partial(_end, crew)
    atexit.register(kill)  # the program may end before this generator, and would wait for its processes forever
    try:
        _start(crew, work, slot, method, notes)
        yield from map(Waiting, notes)
        done = yield from _deliver(crew, steps, name)
    finally:
        _end(crew)
        atexit.unregister(kill)
    yield from parcels_alone(work, steps[done:])


def parcels_alone(work: Work, steps: range) -> Generator[Parcel | Waiting, None, None]:
    """The same without any process."""
    for step in steps:
        yield work(step, _nothing)


def _nothing(index: int) -> None:
    """Nobody looks at the desk of the training process."""


# --------------------------------------------------------------------------------------- in the training process
def _affordable(count: int, slot: int, notes: list[str]) -> int:
    """As many of `count` processes as have their batches in half of the memory that is left; a line if fewer."""
    free = _free_memory()
    most = count if free is None else max(1, min(count, (free // 2 // max(slot, 1) - 1) // AHEAD))
    if most < count:
        needed = slot * (count * AHEAD + 1)
        notes.append(
            f"{count} loading processes would prepare {needed / 2**20:.0f} MiB ahead and {(free or 0) / 2**20:.0f} MiB "
            f"are free: {most} are used"
        )
    return most


def _free_memory() -> int | None:
    """Bytes that are left to this process on Linux, a container's limit included; None where nobody says."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        with contextlib.suppress(OSError, ValueError):  # no limit reads "max"
            group = Path("/sys/fs/cgroup")
            limit, used = (int((group / file).read_text("utf-8")) for file in ("memory.max", "memory.current"))
            free = min(free, max(0, limit - used))
        return free
    return None


def _desk(shared: Any) -> npt.NDArray[np.int64]:
    return np.frombuffer(shared, np.int64).reshape(-1, 2)


def _start(crew: _Crew, work: Work, slot: int, method: str | None, notes: list[str]) -> None:
    """Start a process for each row of the desk, or as many as the system allows; `notes` says so if those are fewer."""
    wanted = len(crew.desk)
    count, forks = _affordable(wanted, slot, notes), method == "fork"
    context: Any = multiprocessing.get_context(method)
    try:
        # What is inherited needs no name; what is handed to a program that starts anew lies in a file.
        shared = mmap.mmap(-1, 16 * count) if forks else context.RawArray("q", 2 * count)
        crew.desk, crew.slot = _desk(shared), slot
        crew.desk[:, 0] = _BEGINNING
        crew.memory = _memory(slot * (count * AHEAD + 1), notes) if forks else None
        for _ in range(count):
            _start_one(crew, context, work, shared, forks)
    except OSError as error:
        number = len(crew.workers)
        rest = f"{number} are used" if number else "the training process reads the images itself"
        notes.append(f"{wanted} loading processes cannot be started ({error.strerror or error}): {rest}")


def _memory(size: int, notes: list[str]) -> mmap.mmap | None:
    """Memory that forked processes share; None, and a line in `notes`, where it cannot be had."""
    try:
        return mmap.mmap(-1, size)
    except (OSError, ValueError, OverflowError) as error:
        notes.append(f"no memory to share with loading processes ({error}): batches are sent as bytes, which is slower")
    return None


def _start_one(crew: _Crew, context: Any, work: Work, shared: Any, forks: bool) -> None:
    """Start the next process; signals that come meanwhile reach it only when it ignores them."""
    number = len(crew.workers)
    dies_with = os.getpid() if forks and threading.current_thread() is threading.main_thread() else 0
    with _signals_held(), warnings.catch_warnings(), contextlib.ExitStack() as undo:
        warnings.simplefilter("ignore")  # from Python 3.12 on about threads; the child touches nothing of theirs
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        with contextlib.closing(theirs):
            others = [ours, *(worker.pipe for worker in crew.workers)] if forks else []
            arguments = (work, theirs, others, shared, crew.memory, crew.slot, number, dies_with)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
        ours.setblocking(False)
        crew.workers.append(_Worker(number, process, ours))
        undo.pop_all()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _deliver(crew: _Crew, steps: range, name: Callable[[int], str]) -> Generator[Parcel | Waiting, None, int]:
    """Batches in order; returns how many of `steps` are done when it ends, all or, where processes are stuck, fewer."""
    count = len(crew.workers)
    if not count:
        return 0
    ready: dict[int, Parcel | Exception] = {}
    asked = 0
    for done, step in enumerate(steps):
        while asked < min(len(steps), done + count * AHEAD):
            asked = _ask(crew, steps, asked)
        worker = crew.workers[done % count]
        while step not in ready:
            if worker.gone:
                raise _death(crew, worker, name)
            arrived, seconds = _receive(crew, ready)
            if not arrived:
                text, stuck = _watch(crew, worker, seconds, name)
                yield Waiting(text)
                if stuck:
                    return done
        parcel = ready.pop(step)
        if isinstance(parcel, Exception):
            raise parcel
        if asked < len(steps):
            asked = _ask(crew, steps, asked)
        yield parcel
    return len(steps)


def _ask(crew: _Crew, steps: range, number: int) -> int:
    """Have batch steps[number] prepared; the next number."""
    count = len(crew.workers)
    worker = crew.workers[number % count]
    slot = number % (count * AHEAD + 1)
    with contextlib.suppress(OSError):  # it is dead; that shows where its answer is read
        worker.pipe.sendall(_REQUEST.pack(steps[number], slot))
    return number + 1


def _receive(crew: _Crew, ready: dict[int, Parcel | Exception]) -> tuple[bool, float]:
    """Take what has come, waiting at most a tick; whether anything came or ended, and the seconds that it took.

    A pause of the whole program (Ctrl-Z, a lid that was closed) counts as a second.
    """
    began = time.monotonic()
    pipes = {worker.pipe: worker for worker in crew.workers if not worker.gone}
    some = wait(list(pipes), _TICK)
    for pipe in some:
        _take(crew, pipes[pipe], ready)  # type: ignore[index]
    return bool(some), min(1.0, time.monotonic() - began)


def _take(crew: _Crew, worker: _Worker, ready: dict[int, Parcel | Exception]) -> None:
    try:
        while not worker.gone:
            chunk = worker.pipe.recv(2**20)
            worker.received += chunk
            worker.gone = not chunk
    except BlockingIOError:
        pass
    except OSError:
        worker.gone = True
    worker.quiet, worker.told = 0.0, _SLOW
    buffer, start = worker.received, 0
    while len(buffer) >= start + _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer, start)
        if len(buffer) < start + _LENGTH.size + length:
            break
        start += _LENGTH.size
        with memoryview(buffer) as view, view[start : start + length] as answer:
            step, content = pickle.loads(answer)  # from our own child
        ready[step] = content if isinstance(content, Exception) else _unpack(content, crew.memory)
        start += length
    del buffer[:start]


def _watch(crew: _Crew, worker: _Worker, seconds: float, name: Callable[[int], str]) -> tuple[str, bool]:
    """What to tell about a process that has been waited for `seconds` more, and whether to go on without it.

    One that reads is never given up, as a disk may be slow; one that is stopped or does nothing is.
    """
    sample, begun = crew.desk[worker.number].tolist()
    if (sample, begun) != worker.stage:
        worker.stage, worker.quiet, worker.told = (sample, begun), 0.0, _SLOW
        return "", False
    worker.quiet += seconds
    stopped = _is_stopped(worker.process.pid)
    what = f"reading {name(sample)}" if sample >= 0 else "starting" if sample == _BEGINNING else "between two images"
    if stopped:
        what = f"stopped by a signal (kill -CONT {worker.process.pid} lets it go on) while {what}"
    limit = _STARTING if sample == _BEGINNING and not stopped else _SILENT
    if worker.quiet >= limit and (stopped or sample < 0):
        return f"{_since(worker, what)}: the training process reads the images itself from here on", True
    if worker.quiet < worker.told:
        return "", False
    worker.told *= 2
    return f"no batch yet: {_since(worker, what)}{'; is its disk there?' if sample >= 0 and not stopped else ''}", False


def _since(worker: _Worker, what: str) -> str:
    return f"loading process {worker.process.pid} has been {what} for {worker.quiet:.0f} s"


def _is_stopped(pid: int | None) -> bool:
    """Whether a signal or a debugger keeps it from running; False where the system does not tell."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    return False


def _death(crew: _Crew, worker: _Worker, name: Callable[[int], str]) -> DataError:
    """Why a process is no more, as far as one can tell."""
    worker.process.join(_BURIAL)
    code = worker.process.exitcode
    how, why = "", "a damaged file or too little memory can do that"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            how = f" by {signal.Signals(-code).name}"
        if how.endswith("SIGKILL"):
            why = "the system does that when memory is short, mostly: --set train.workers=1 needs less"
    sample = int(crew.desk[worker.number, 0])
    place = f" while reading {name(sample)}" if sample >= 0 else " between two images"
    return DataError(
        f"a loading process ended{how}{place}", f"{why}; --set train.workers=0 reads the images without such processes"
    )


def _end(crew: _Crew) -> None:
    """End the processes at once: reading leaves nothing half done."""
    workers, crew.workers = crew.workers, []
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.pipe.close()
    deadline = time.monotonic() + _BURIAL
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.exitcode is None:
            # It waits for a disk that is gone, and dies when that comes back. The interpreter would wait for it at exit.
            getattr(multiprocessing.process, "_children", set()).discard(worker.process)


# ---------------------------------------------------------------------------------------- in a loading process
def _serve(
    work: Work,
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
    _leave_signals_to_the_parent()
    torch.set_num_threads(1)
    mine = _desk(shared)[number]
    with contextlib.suppress(OSError):  # the training process is gone
        if parent and not _dies_with(parent):
            return
        mine[0] = _IDLE
        while (request := _exactly(pipe, _REQUEST.size)) is not None:
            step, place = _REQUEST.unpack(request)
            room = None if memory is None else memoryview(memory)[place * slot : (place + 1) * slot]
            answer = _answer(work, step, mine, place * slot, room)
            pipe.sendall(_LENGTH.pack(len(answer)) + answer)


def _leave_signals_to_the_parent() -> None:
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


def _exactly(pipe: socket.socket, size: int) -> bytes | None:
    """So many bytes; None at the end of the stream."""
    data = b""
    while len(data) < size:
        chunk = pipe.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def _answer(work: Work, step: int, desk: npt.NDArray[np.int64], offset: int, room: memoryview | None) -> bytes:
    """The batch, or the error that came instead of it, as the training process will read it."""

    def look(index: int) -> None:
        desk[0] = index
        desk[1] += 1

    try:
        content: object = _pack(work(step, look), offset, room)
    except Exception as error:  # noqa: BLE001  (it is raised on the other side)
        content = _portable(error)
    finally:
        desk[0] = _IDLE
    return pickle.dumps((step, content))


def _portable(error: Exception) -> Exception:
    """An exception that survives the journey, with its traceback as a note."""
    error.add_note("in a loading process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (whatever a library's exception does when it is copied)
        return RuntimeError(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()))
    return error


# ---------------------------------------------------------------------------------------------------- transport
@dataclass(frozen=True, slots=True)
class _Sent:
    """A parcel on its way. pixels, labels: arrays, or data type and shape of those that lie in memory at `offset`."""

    pixels: Any
    labels: Any
    about: tuple[Any, ...]  # the rest of a Parcel
    offset: int | None


def _pack(parcel: Parcel, offset: int, room: memoryview | None) -> _Sent:
    """Leave the parcel in `room`, which begins at `offset` of the memory, if it is there and large enough."""
    arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in (parcel.pixels, parcel.labels)]
    about = (parcel.windows, parcel.names)
    if room is None or sum(array.nbytes for array in arrays) > len(room):
        return _Sent(arrays[0], arrays[1], about, None)
    begin = 0
    for array in arrays:
        np.frombuffer(room, array.dtype, array.size, begin).reshape(array.shape)[...] = array
        begin += array.nbytes
    pixels, labels = ((array.dtype.str, array.shape) for array in arrays)
    return _Sent(pixels, labels, about, offset)


def _unpack(sent: _Sent, memory: mmap.mmap | None) -> Parcel:
    """The other side of _pack; in shared memory the tensors lie where they were left."""
    tensors, offset = [], sent.offset or 0
    for one in (sent.pixels, sent.labels):
        array = one
        if sent.offset is not None and memory is not None:
            dtype, shape = one
            array = np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
            offset += array.nbytes
        tensors.append(torch.from_numpy(array))
    return Parcel(tensors[0], tensors[1], *sent.about)
