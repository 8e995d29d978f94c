"""The batches of a whole run, in an order that depends on the seed alone, read by any number of processes.

Room: data. Imports data.transforms, data.sample, data.workers, errors, the recipe schema, numpy and torch. Legend: B
batch.

Batch k is a pure function of (seed, k): the order of an epoch follows from (seed, epoch), a crop from (seed, epoch,
sample). Nothing about the loader therefore belongs into a checkpoint, a resumed run starts at any k at once, and 0,
1 or 8 processes give the same bits. One set of processes (workers.py) serves the whole run and ends with it. Batches
travel as 8-bit pixels, in shared memory and to the device, and are normalised there; with 64-bit labels they would fill
five times as much.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from emaseg.data.pipeline.transforms import Batch, Crop, Parcel, finish, lay, sample_rng, train_crop
from emaseg.data.pipeline.workers import Look, Waiting, from_workers, parcels_alone
from emaseg.data.sample import Dataset
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.schema import Augment

__all__ = [
    "Stream",
    "Waiting",
    "batches",
    "default_workers",
    "epoch_order",
    "one_ahead",
    "parcel_bytes",
    "steps_per_epoch",
]

Place = tuple[int, int]  # epoch (from 0), sample

_ORDER = 0  # keeps the orders' generators apart from the samples' (transforms.py) under one seed
_MOST_WORKERS = 8
_BREATH = 0.5  # seconds after which a wait comes up for air
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
) -> Stream:
    """Batches `start` to `total` - 1 of a run. Close the stream to stop the loading processes early.

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
    """
    if batch % world:
        raise RecipeError(f"train.batch = {batch} cannot be shared by {world} processes", "use a multiple of them")
    plan = _Plan(len(dataset), batch, start, total, seed, rank, world)
    if steps_per_epoch(len(dataset), batch, world) == 0:
        raise DataError(
            f"{len(dataset)} training images do not fill one batch of {batch}",
            f"use a smaller batch (--set train.batch={max(1, len(dataset))}) or more images",
        )
    work, steps, workers = _Work(dataset, augment, plan), range(start, max(start, total)), min(workers, len(plan))
    parcels: Generator[Parcel | Waiting, None, None] = parcels_alone(work, steps)
    if workers:
        parcels = from_workers(work, steps, workers, parcel_bytes(augment, batch // world), dataset.name)
        if device.type == "cuda":
            parcels = one_ahead(parcels, Parcel.pin_memory)
    return Stream(_finished(parcels, mean, std, device))


@dataclass(frozen=True, slots=True)
class Stream(Iterator[Batch]):
    """Batches. `items` are the same batches, and between them word that the next one is not there yet."""

    items: Generator[Batch | Waiting, None, None]

    def __next__(self) -> Batch:
        for item in self.items:
            if isinstance(item, Batch):
                return item
        raise StopIteration

    def close(self) -> None:
        """End the loading processes."""
        self.items.close()


def parcel_bytes(augment: Augment, batch: int) -> int:
    """What the crops of a batch take before normalisation."""
    pixel = 3 + 1 if augment.interpolation == "pixel" else 3 * 4 + 1
    return augment.crop[0] * augment.crop[1] * pixel * batch


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

    def places(self, step: int) -> list[Place]:
        """The samples of batch `step`."""
        each = self.batch // self.world
        epoch, within = divmod(step, steps_per_epoch(self.count, self.batch, self.world))
        share = _share(self.count, self.seed, epoch, self.rank, self.world)
        return [(epoch, int(index)) for index in share[within * each : (within + 1) * each]]


@functools.lru_cache(maxsize=2)
def _share(count: int, seed: int, epoch: int, rank: int, world: int) -> npt.NDArray[np.int64]:
    """The samples that training process `rank` gets in an epoch, in order."""
    return np.resize(epoch_order(count, seed, epoch), -(-count // world) * world)[rank::world]


@dataclass(frozen=True, slots=True)
class _Work:
    """Prepares batches by their numbers, here or in a loading process."""

    dataset: Dataset
    augment: Augment
    plan: _Plan

    def __call__(self, step: int, look: Look) -> Parcel:
        crops = []
        for place in self.plan.places(step):
            look(place[1])
            crops.append(_crop(self.dataset, self.augment, self.plan.seed, place))
        return lay(crops, self.augment)


def _crop(dataset: Dataset, augment: Augment, seed: int, place: Place) -> Crop:
    epoch, index = place
    return train_crop(dataset.open(index), augment, sample_rng(seed, epoch, index))


# ------------------------------------------------------------------------------------------- to the device
def _finished(
    parcels: Generator[Parcel | Waiting, None, None], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Generator[Batch | Waiting, None, None]:
    with contextlib.closing(parcels):
        for parcel in parcels:
            yield parcel if isinstance(parcel, Waiting) else finish(parcel, mean, std, device)


def one_ahead(
    parcels: Generator[Parcel | Waiting, None, None], change: Callable[[Parcel], Parcel]
) -> Generator[Parcel | Waiting, None, None]:
    """The same, each changed by a thread while the one before is in use: copying into page-locked memory takes time.

    The first item is asked for here, so that whatever starts with it belongs to this thread.
    """
    done = threading.Event()
    items: queue.Queue[Parcel | Waiting | BaseException | None] = queue.Queue(1)

    def put(item: Parcel | Waiting | BaseException | None) -> None:
        while not done.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=_BREATH)
                return

    def work(item: Parcel | Waiting | None) -> None:
        try:
            while item is not None and not done.is_set():
                put(item if isinstance(item, Waiting) else change(item))
                item = next(parcels, None)
            put(None)
        except BaseException as error:  # noqa: BLE001  (it is raised on the other side)
            put(error)

    thread = threading.Thread(target=work, args=[next(parcels, None)], name="one-ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = items.get(timeout=_BREATH)
            except queue.Empty:
                item = Waiting()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        done.set()
        thread.join(2 * _BREATH)
        if not thread.is_alive():
            parcels.close()
