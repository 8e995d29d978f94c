"""The batches of a whole run, in an order that depends on the seed alone, read by any number of processes.

Room: data. Imports data.transforms, data.sample, errors, the recipe schema, numpy and torch. Legend: B batch.

Batch k is a pure function of (seed, k): the order of an epoch follows from (seed, epoch), a crop from (seed, epoch,
sample). Nothing about the loader therefore belongs into a checkpoint, a resumed run starts at any k at once, and 0,
1 or 8 processes give the same bits. One set of processes serves the whole run and ends with it. Batches travel as
8-bit pixels, in shared memory and to the device, and are normalised there; with 64-bit labels they would fill five
times as much.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, get_worker_info

from emaseg.data.pipeline.transforms import Batch, Crop, Parcel, finish, lay, sample_rng, train_crop
from emaseg.data.sample import Dataset
from emaseg.errors import DataError, RecipeError, SystemFault, UserError
from emaseg.recipe.schema import Augment

Place = tuple[int, int]  # epoch (from 0), sample

_ORDER = 0  # keeps the orders' generators apart from the samples' (transforms.py) under one seed
_AHEAD = 2  # batches that each process prepares before they are asked for
_MOST_WORKERS = 8
_PATIENCE = 3.0  # seconds that a loading process gets to finish what it is at, or to die of what befell it
_BURIAL = 30.0  # seconds in which the system should have removed a killed process, also on a machine with much to do
CPU = torch.device("cpu")


def default_workers(device: torch.device) -> int:
    """Loading processes that pay: none beside a network that computes on the CPU, else one for each core but one."""
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, max(1, cores - 1))


def steps_per_epoch(count: int, batch: int, world: int = 1) -> int:
    """Steps of one pass over `count` samples; a rest smaller than a batch is dropped.

    Samples are first filled up to a multiple of `world` processes, as DistributedSampler does.
    """
    return -(-count // world) // (batch // world)


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Permutation of 0..count-1: the order of the samples in epoch `epoch` (from 0)."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)


def batches(
    dataset: Dataset,
    augment: Augment,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch: int,
    start: int,
    total: int,
    seed: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device = CPU,
) -> Generator[Batch, None, None]:
    """Batches `start` to `total` - 1 of a run. Close the generator to stop the loading processes early.

    Args:
        dataset: the samples.
        augment: training pipeline.
        mean, std: of the three channels, on 0..255.
        batch: images of one step, all training processes together.
        start, total: steps, from 0.
        seed: decides the order and every crop.
        workers: loading processes; 0 reads in this one.
        rank, world: this training process and their number; each gets its share of a batch.
        device: where the batches are normalised and left.

    Raises:
        DataError: from reading, as the data set raised it, at the batch that needs the sample; fewer samples than a
            batch; a loading process died.
        RecipeError: the batch cannot be divided among the processes.
        SystemFault: the loading processes cannot be started.
    """
    if batch % world:
        raise RecipeError(f"train.batch = {batch} cannot be shared by {world} processes", "use a multiple of them")
    plan = _Plan(len(dataset), batch, start, total, seed, rank, world)
    if steps_per_epoch(len(dataset), batch, world) == 0:
        raise DataError(
            f"{len(dataset)} training images do not fill one batch of {batch}",
            f"use a smaller batch (--set train.batch={max(1, len(dataset))}) or more images",
        )
    workers = min(workers, len(plan))
    pin = device.type == "cuda"
    parcels = _from_workers(dataset, augment, plan, workers, pin) if workers else _parcels(dataset, augment, plan)
    return _finished(parcels, mean, std, device)


def shared_memory_bytes(augment: Augment, batch: int, workers: int) -> int:
    """Shared memory that the crops on their way from `workers` processes can take at once."""
    pixel = 3 + 1 if augment.interpolation == "pixel" else 3 * 4 + 1
    return augment.crop[0] * augment.crop[1] * pixel * batch * (workers * _AHEAD + 1)


def shared_memory_problem(needed: int, folder: Path = Path("/dev/shm")) -> str | None:
    """What to tell the user when `folder`, through which processes share memory on Linux, holds less than `needed`
    bytes; None when it is large enough, or when this system has no such folder."""
    if not folder.is_dir():
        return None
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return (
        f"{folder} has {free / 2**20:.0f} MiB free and loading may need {needed / 2**20:.0f} MiB: use fewer processes "
        "(--set train.workers=...) or enlarge it (docker run --shm-size=...)"
    )


# ------------------------------------------------------------------------------------------- which samples
@dataclass(frozen=True, slots=True)
class _Plan:
    """The samples of each remaining batch, in order; made up as they are asked for."""

    count: int
    batch: int
    start: int
    total: int
    seed: int
    rank: int
    world: int

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    def __iter__(self) -> Iterator[list[Place]]:
        each = self.batch // self.world
        steps = steps_per_epoch(self.count, self.batch, self.world)
        epoch, share = -1, np.empty(0, np.int64)
        for step in range(self.start, self.total):
            if epoch != step // steps:
                epoch = step // steps
                order = epoch_order(self.count, self.seed, epoch)
                share = np.resize(order, -(-self.count // self.world) * self.world)[self.rank :: self.world]
            first = step % steps * each
            yield [(epoch, int(index)) for index in share[first : first + each]]


def _crop(dataset: Dataset, augment: Augment, seed: int, place: Place) -> Crop:
    epoch, index = place
    return train_crop(dataset.open(index), augment, sample_rng(seed, epoch, index))


def _parcels(dataset: Dataset, augment: Augment, plan: _Plan) -> Generator[Parcel, None, None]:
    for places in plan:
        yield lay([_crop(dataset, augment, plan.seed, place) for place in places], augment)


def _finished(
    parcels: Generator[Parcel, None, None], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Generator[Batch, None, None]:
    with contextlib.closing(parcels):
        for parcel in parcels:
            yield finish(parcel, mean, std, device)


# -------------------------------------------------------------------------------------- loading processes
def _pack(crops: list[Crop | UserError], augment: Augment) -> Parcel | UserError:
    """Runs in a loading process. An error instead of one crop is the error of the batch."""
    good = []
    for crop in crops:
        if isinstance(crop, UserError):
            return crop
        good.append(crop)
    return lay(good, augment)


@dataclass(frozen=True, slots=True)
class _Reader:
    """What a loading process runs.

    desk: (workers, 2) int64 in shared memory: each process keeps its id there and the sample that it is reading
    (-1 = none), so that one can tell what a process was at when it died.
    """

    dataset: Dataset
    augment: Augment
    seed: int
    desk: torch.Tensor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> Crop | UserError:
        info = get_worker_info()
        mine = self.desk[info.id if info else 0]
        mine[0], mine[1] = os.getpid(), place[1]
        try:
            return _crop(self.dataset, self.augment, self.seed, place)
        except UserError as error:
            return error  # the loader would turn it into a traceback; it is raised on the other side instead
        finally:
            mine[1] = -1


def _start_worker(_: int) -> None:
    # A terminal or a batch system signals the whole group: the training process alone decides what that means.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


def _from_workers(
    dataset: Dataset, augment: Augment, plan: _Plan, workers: int, pin: bool
) -> Generator[Parcel, None, None]:
    """As _parcels, read ahead by other processes; they end with this generator, whatever ends it, and with the
    program. pin: into page-locked memory."""
    desk = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    crew: list[BaseProcess] = []
    stream: Iterator[Parcel | UserError] | None = None
    kill = functools.partial(_kill, crew)
    atexit.register(kill)  # the program may end before this generator, and would wait for its processes forever
    try:
        with _deaths_explained(dataset, desk, crew):
            stream = _start(_Reader(dataset, augment, plan.seed, desk), plan, workers, pin, crew)
        while True:
            with _deaths_explained(dataset, desk, crew):
                parcel = next(stream, None)
            if parcel is None:
                return
            if isinstance(parcel, UserError):
                raise parcel
            yield parcel
    finally:
        _end(stream, crew)
        atexit.unregister(kill)


def _start(
    reader: _Reader, plan: _Plan, workers: int, pin: bool, crew: list[BaseProcess]
) -> Iterator[Parcel | UserError]:
    """Start the processes and put them into `crew`, those that did start before an error, too.

    Left alone, the loader handles SIGCHLD by raising wherever the training process happens to be when a loading
    process dies; with the handler put back it raises where the next batch is asked for.

    Raises:
        SystemFault: the system gives no more processes, memory or pipes.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main and hasattr(signal, "SIGCHLD") else None
    others = multiprocessing.active_children()
    try:
        with warnings.catch_warnings():
            # More processes than cores are the user's choice; so is forking with threads.
            warnings.simplefilter("ignore")
            return iter(
                DataLoader(
                    reader,  # type: ignore[arg-type]  # a torch Dataset by its methods
                    batch_sampler=plan,
                    num_workers=workers,
                    prefetch_factor=_AHEAD,
                    collate_fn=functools.partial(_pack, augment=reader.augment),
                    pin_memory=pin,
                    worker_init_fn=_start_worker,
                    generator=torch.Generator(),  # without one the loader draws from the global generator, dropout's
                )
            )
    except OSError as error:
        raise SystemFault(
            f"{workers} loading processes cannot be started: {error.strerror}",
            "use fewer (--set train.workers=...; 0 reads the images without such processes)",
        ) from error
    finally:
        crew += (process for process in multiprocessing.active_children() if process not in others)
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _end(stream: Iterator[Parcel | UserError] | None, crew: Sequence[BaseProcess]) -> None:
    """End the processes.

    The loader asks them to end when it is collected: too late where a traceback refers to it. Its last resort is
    SIGTERM, which they ignore. So it is told here, by the method that its collection calls, and not waited for long.
    """
    if not any(process.is_alive() for process in crew):
        return
    impatient = threading.Timer(_PATIENCE, _kill, [crew])
    impatient.daemon = True
    impatient.start()
    try:
        getattr(stream, "_shutdown_workers", lambda: None)()
    finally:
        impatient.cancel()
        impatient.join(_BURIAL)  # of two threads that wait for one process, one is told too early that it is gone
        _kill(crew)


def _kill(crew: Sequence[BaseProcess]) -> None:
    """End the processes at once; reading leaves nothing half done."""
    for process in crew:
        process.kill()
    deadline = time.monotonic() + _BURIAL  # a process that waits for a disk that is gone dies when that comes back
    for process in crew:
        process.join(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def _deaths_explained(dataset: Dataset, desk: torch.Tensor, crew: Sequence[BaseProcess]) -> Iterator[None]:
    """Within the block, what the loader raises because a process died is a DataError that says what it was reading."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        gone = _gone(desk, crew)
        if not gone:
            raise
        reading = [dataset.name(index) for process, index in desk.tolist() if process in gone and index >= 0]
        place = f" while reading {', '.join(reading)}" if reading else " between two images"
        raise DataError(
            f"a loading process ended{place}",
            "a damaged file, too little memory or too little shared memory can do that; --set train.workers=0 reads "
            "the images without such processes",
        ) from error


def _gone(desk: torch.Tensor, crew: Sequence[BaseProcess]) -> set[int | None]:
    """The ids of the processes that are no more. One that is dying closes its connections, its sentinel among them,
    before it is dead."""

    def gone() -> set[int | None]:
        return known - {process.pid for process in multiprocessing.active_children()}

    known = {*(process.pid for process in crew), *(process for process in desk[:, 0].tolist() if process >= 0)}
    if not gone():
        closed = wait([process.sentinel for process in crew], _PATIENCE)
        for process in crew:
            if process.sentinel in closed:
                process.join(_BURIAL)
    return gone()
