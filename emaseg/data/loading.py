"""Batches of a whole run, in an order that depends on nothing but the seed.

Room: data; imports transforms, sample, errors, numpy and torch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from emaseg.data.sample import Batch, Dataset
from emaseg.data.transforms import Crop, collate, sample_rng, train_crop
from emaseg.errors import DataError, UserError
from emaseg.recipe.schema import Augment


def default_workers(device: torch.device) -> int:
    """Loading processes that pay: none beside a network that keeps the CPU busy, up to eight beside a GPU."""
    if device.type == "cpu":
        return 0
    return min(8, max(1, (os.cpu_count() or 1) - 1))


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Order of the samples in one epoch (from 0)."""
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Reads and crops one sample; travels to the workers."""

    dataset: Dataset
    augment: Augment
    seed: int

    def __getitem__(self, place: tuple[int, int]) -> Crop | UserError:
        epoch, index = place
        try:
            return train_crop(self.dataset.read(index), self.augment, sample_rng(self.seed, epoch, index))
        except UserError as error:
            return error  # raised in the main process, as it is

    def __len__(self) -> int:
        return len(self.dataset)


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
) -> Generator[Batch, None, None]:
    """Batches `start` to `total` - 1 of a run.

    Batch k holds samples of epoch k // (images // batch); a rest smaller than a batch is left out.

    Raises:
        DataError: from reading; or a worker died.
    """
    per_epoch = len(dataset) // batch

    def places() -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, np.int64)
        for k in range(start, total):
            if k // per_epoch != epoch:
                epoch = k // per_epoch
                order = epoch_order(len(dataset), seed, epoch)
            first = k % per_epoch * batch
            yield [(epoch, int(i)) for i in order[first : first + batch]]

    loader = DataLoader(
        _Maker(dataset, augment, seed),  # type: ignore[arg-type]
        batch_sampler=list(places()),
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )
    for crops in loader:
        for crop in crops:
            if isinstance(crop, UserError):
                raise crop
        yield collate(crops, augment, mean, std)
    if start < total and per_epoch == 0:
        raise DataError(f"{len(dataset)} images do not fill a batch of {batch}", "use a smaller train.batch")


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what an interrupt means
    torch.set_num_threads(1)
