"""The batches of a whole run, in an order that depends on the seed alone, read by any number of processes.

Room: data/pipeline. Legend: B batch.

Batch k is a pure function of (seed, k): the order of an epoch follows from (seed, epoch), a crop from (seed, epoch,
sample). Nothing about the loader therefore belongs in a checkpoint, a resumed run starts at any k at once, and 0,
1 or 8 processes give the same bits. One set of processes (workers.py) serves the whole run and ends with it. Batches
travel as 8-bit pixels, in shared memory and to the device, and are normalised there; with 64-bit labels they would fill
five times as much.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from emaseg.data.dataset import Dataset
from emaseg.data.pipeline.transforms import (
    Batch,
    Crop,
    Empty,
    RawBatch,
    collate,
    normalise_batch,
    sample_rng,
    train_crop,
)
from emaseg.data.pipeline.workers import OnSample, Waiting, from_workers, without_workers
from emaseg.distributed.ranks import check_division, ranks_on_these_cores
from emaseg.recipe.backbones import PixelStats
from emaseg.recipe.channels import RGB
from emaseg.recipe.training import Augment, Train
from emaseg.schedule import steps_per_epoch
from emaseg.threads import core_count

__all__ = [
    "Stream",
    "Waiting",
    "batches",
    "default_workers",
    "epoch_order",
    "prefetch_one",
    "raw_batch_bytes",
    "worker_count",
]

EpochSample = tuple[int, int]  # epoch (from 0), sample
RawBatches = Generator[RawBatch | Waiting, None, None]

_ORDER = 0  # keeps the orders' generators apart from the samples' (transforms.py) under one seed
_MOST_WORKERS = 8
_POLL = 0.5  # seconds after which a wait looks whether it is still wanted
CPU = torch.device("cpu")


def default_workers(device: torch.device) -> int:
    """Loading processes that pay: none beside a network that computes on the CPU, else one for each core but one. Several
    processes that train on this machine share its cores."""
    return 0 if device.type == "cpu" else min(_MOST_WORKERS, max(1, core_count() // ranks_on_these_cores() - 1))


def worker_count(train: Train, device: torch.device) -> int:
    """Loading processes of each process that trains: the recipe's number, or what pays on this machine."""
    return default_workers(device) if train.workers < 0 else train.workers


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Permutation of 0..count-1: the order of the samples in epoch `epoch` (from 0)."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)


def batches(
    dataset: Dataset,
    augment: Augment,
    stats: PixelStats,
    *,
    batch: int,
    start: int,
    total: int,
    seed: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    ranks: int = 0,
    device: torch.device = CPU,
    floats: bool = False,
) -> Stream:
    """Batches `start` to `total` - 1 of a run. Close the stream to stop the loading processes early.

    Args:
        dataset: the samples.
        augment: training pipeline.
        stats: mean and standard deviation of the channels.
        batch: images of one step, all training processes together.
        start, total: steps, from 0.
        seed: decides the order and every crop.
        workers: loading processes; 0 reads in this one.
        rank, world: this training process and their number; each gets its share of a batch.
        ranks: train.ranks: images are dealt out in turn to so many processes, of which this one may stand for several,
            and first filled up to a multiple of them, as DistributedSampler does. 0: to `world`, without filling up, so
            that the batches are the same for any number.
        device: where the batches are normalised and left.
        floats: the data set's images are float32 (data.range).

    Raises:
        DataError: from reading, as the data set raised it, at the batch that needs the sample; fewer samples than a
            batch; a loading process died.
        RecipeError: the batch cannot be divided among the processes.
    """
    check_division(batch, ranks or world)
    sampler = _BatchSampler(len(dataset), batch, start, total, seed, rank, world, ranks)
    steps_per_epoch(len(dataset), batch, ranks or 1)  # refuses too few images here, not at the first batch
    fetch = _Fetcher(dataset, augment, sampler)
    steps = range(start, max(start, total))
    workers = min(workers, len(sampler))
    raw_batches: RawBatches = without_workers(fetch, steps)
    if workers:
        size = raw_batch_bytes(augment, batch // world, len(stats.mean), floats=floats)
        raw_batches = from_workers(fetch, steps, workers, size, dataset.name)
        if device.type == "cuda":
            raw_batches = prefetch_one(raw_batches, RawBatch.pin_memory)
    return Stream(_to_device(raw_batches, stats, device))


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


def raw_batch_bytes(augment: Augment, batch: int, channels: int = RGB, *, floats: bool = False) -> int:
    """What the crops of a batch take before normalisation. floats: the images are float32 (data.range)."""
    pixel = channels * (4 if floats or augment.interpolation != "pixel" else 1) + 1
    return augment.crop[0] * augment.crop[1] * pixel * batch


# ------------------------------------------------------------------------------------------- which samples
@dataclass(frozen=True, slots=True)
class _BatchSampler:
    """Which samples each remaining batch holds, in order; worked out when they are asked for."""

    count: int
    batch: int
    start: int
    total: int
    seed: int
    rank: int
    world: int
    ranks: int

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    def samples(self, step: int) -> list[EpochSample]:
        """The samples of batch `step`, those of each process that this one stands for together."""
        dealt = self.ranks or self.world
        epoch, within = divmod(step, steps_per_epoch(self.count, self.batch, self.ranks or 1))
        order = _filled_order(self.count, self.seed, epoch, self.ranks or 1)
        together = order[within * self.batch : (within + 1) * self.batch]
        each = dealt // self.world
        shares = [together[number::dealt] for number in range(self.rank * each, (self.rank + 1) * each)]
        return [(epoch, int(index)) for share in shares for index in share]


@functools.lru_cache(maxsize=2)
def _filled_order(count: int, seed: int, epoch: int, ranks: int) -> npt.NDArray[np.int64]:
    """The samples of an epoch in order, filled up from its beginning to a multiple of `ranks`."""
    return np.resize(epoch_order(count, seed, epoch), -(-count // ranks) * ranks)


@dataclass(frozen=True, slots=True)
class _Fetcher:
    """Prepares batches by their numbers, here or in a loading process."""

    dataset: Dataset
    augment: Augment
    sampler: _BatchSampler

    def __call__(self, step: int, on_sample: OnSample, empty: Empty) -> RawBatch:
        samples = self.sampler.samples(step)
        return collate(self._crops(samples, on_sample), len(samples), self.augment, empty)

    def _crops(self, samples: list[EpochSample], on_sample: OnSample) -> Iterator[Crop]:
        for epoch, index in samples:
            on_sample(index)
            yield train_crop(self.dataset.open(index), self.augment, sample_rng(self.sampler.seed, epoch, index))


# ------------------------------------------------------------------------------------------- to the device
def _to_device(
    raw_batches: RawBatches, stats: PixelStats, device: torch.device
) -> Generator[Batch | Waiting, None, None]:
    with contextlib.closing(raw_batches):
        for raw in raw_batches:
            yield raw if isinstance(raw, Waiting) else normalise_batch(raw, stats, device)


def prefetch_one(raw_batches: RawBatches, change: Callable[[RawBatch], RawBatch]) -> RawBatches:
    """The same, each changed by a thread while the one before is in use: copying into page-locked memory takes time.

    The first item is asked for here, so that whatever starts with it belongs to this thread.
    """
    done = threading.Event()
    items: queue.Queue[RawBatch | Waiting | BaseException | None] = queue.Queue(1)

    def put(item: RawBatch | Waiting | BaseException | None) -> None:
        while not done.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=_POLL)
                return

    def work(item: RawBatch | Waiting | None) -> None:
        try:
            while item is not None and not done.is_set():
                put(item if isinstance(item, Waiting) else change(item))
                item = next(raw_batches, None)
            put(None)
        except BaseException as error:  # noqa: BLE001  (it is raised on the other side)
            put(error)

    thread = threading.Thread(target=work, args=[next(raw_batches, None)], name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = items.get(timeout=_POLL)
            except queue.Empty:
                item = Waiting()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        done.set()
        thread.join(2 * _POLL)
        if not thread.is_alive():
            raw_batches.close()
