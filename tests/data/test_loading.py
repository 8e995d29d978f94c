"""Loading: the same batches from any number of processes, at any start, on any rank; and errors that arrive whole."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from emaseg.data.loading import (
    batches,
    default_workers,
    epoch_order,
    shared_memory_bytes,
    shared_memory_problem,
    steps_per_epoch,
)
from emaseg.data.sample import Batch, Sample, UInt8
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.schema import Augment
from tests.data.pipeline import MEAN, STD, sample_image, sample_label

AUGMENT = Augment(resize_long_short=(64, 24), scale=(0.5, 2.0), crop=(24, 24), photometric="bgr_as_rgb")
FLOATS = Augment(crop=(24, 24), scale=(0.5, 2.0), interpolation="align_corners", photometric="none")
TURNED = replace(AUGMENT, rotation=1.0)


@dataclass(frozen=True)
class Pictures:
    """`count` images of different sizes; reading number `at` does `what`."""

    count: int = 10
    what: str = ""
    at: int = -1

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"class {i}" for i in range(21))

    @property
    def palette(self) -> UInt8:
        return np.zeros((21, 3), np.uint8)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"image_{index}.png"

    def read(self, index: int) -> Sample:
        if index == self.at:
            trouble(self.what, self.name(index))
        return Sample(sample_image(30 + index, 40), sample_label(30 + index, 40), self.name(index))


def trouble(what: str, name: str) -> None:
    if what == "damaged":
        raise DataError(f"{name}: damaged", "fetch it again")
    if what == "bug":
        raise ZeroDivisionError("a bug")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "interrupt" and get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGINT)


def stream(
    dataset: Pictures,
    workers: int = 0,
    *,
    batch: int = 4,
    start: int = 0,
    total: int = 5,
    seed: int = 0,
    augment: Augment = AUGMENT,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    return batches(
        dataset,
        augment,
        MEAN,
        STD,
        batch=batch,
        start=start,
        total=total,
        seed=seed,
        workers=workers,
        rank=rank,
        world=world,
    )


def equal(a: Batch, b: Batch) -> bool:
    return a.names == b.names and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("augment", [AUGMENT, FLOATS, TURNED], ids=["bytes", "floats", "turned"])
def test_any_number_of_processes_gives_the_same_batches(augment: Augment) -> None:
    """Over an epoch's end, bit for bit, and without a look at the global generator: dropout draws from it."""
    before = torch.get_rng_state()
    expected = list(stream(Pictures(), augment=augment))
    assert len(expected) == 5
    for workers in (1, 3):
        loaded = list(stream(Pictures(), workers, augment=augment))
        assert all(equal(a, b) for a, b in zip(expected, loaded, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_gets_the_rest_of_the_batches(workers: int) -> None:
    whole = list(stream(Pictures(), total=7))
    rest = list(stream(Pictures(), workers, start=3, total=7))
    assert all(equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
    assert list(stream(Pictures(), workers, start=7, total=7)) == []


def test_each_epoch_shows_each_image_at_most_once_in_a_new_order() -> None:
    """10 images in batches of 4: two steps an epoch, two images left out of it."""
    names = [batch.names for batch in stream(Pictures(), total=6)]
    epochs = [names[i] + names[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len(set(epochs)) == 3


def test_the_order_is_a_permutation_that_the_seed_and_the_epoch_decide() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 3
    assert tuple(epoch_order(50, 0, 1)) == orders[1]


@pytest.mark.parametrize(
    ("count", "batch", "steps"),  # of 1, 4 and 8 processes; the published systems' table
    [
        (10582, 16, (661, 661, 661)),
        (20210, 16, (1263, 1263, 1263)),
        (2975, 8, (371, 372, 372)),
        (3475, 16, (217, 217, 217)),
        (9000, 32, (281, 281, 281)),
        (30462, 32, (951, 952, 952)),
        (30462, 40, (761, 761, 761)),
    ],
)
def test_steps_of_an_epoch_are_the_published_ones(count: int, batch: int, steps: tuple[int, ...]) -> None:
    assert tuple(steps_per_epoch(count, batch, world) for world in (1, 4, 8)) == steps


def test_ranks_share_the_batches_of_one_process() -> None:
    """Two processes read together what one would: the order is filled up, then dealt out in turn."""
    one = [set(batch.names) for batch in stream(Pictures(), total=2)]
    ranks = [[set(batch.names) for batch in stream(Pictures(), total=2, rank=rank, world=2)] for rank in (0, 1)]
    assert [a | b for a, b in zip(*ranks, strict=True)] == one
    assert [len(names) for rank in ranks for names in rank] == [2, 2, 2, 2]
    padded = [list(stream(Pictures(7), batch=2, total=4, rank=rank, world=2)) for rank in (0, 1)]
    names = [name for rank in padded for batch in rank for name in batch.names]
    assert len(names) == 8
    assert len(set(names)) == 7


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_damaged_image_is_reported_as_the_data_set_did(workers: int) -> None:
    """The very message and hint, no traceback of a worker, and only when its batch is due."""
    dataset = Pictures(what="damaged", at=int(epoch_order(10, 0, 0)[5]))
    loading = stream(dataset, workers)
    next(loading)
    with pytest.raises(DataError) as caught:
        next(loading)
    assert caught.value.message == f"{dataset.name(dataset.at)}: damaged"
    assert caught.value.hint == "fetch it again"
    assert "Traceback" not in str(caught.value)


def test_a_bug_is_not_disguised_as_an_error_of_the_user() -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(stream(Pictures(what="bug", at=3), 1))


def test_a_process_that_dies_names_what_it_was_reading() -> None:
    """At the batch that is missing, not wherever the training happens to be; and the signal handler is left alone."""
    before = signal.getsignal(signal.SIGCHLD)
    loading = stream(Pictures(what="kill", at=3), 2)
    with pytest.raises(DataError, match=r"while reading image_3\.png") as caught:
        list(loading)
    assert "train.workers" in caught.value.hint
    assert signal.getsignal(signal.SIGCHLD) is before
    assert multiprocessing.active_children() == []


def test_an_interrupt_is_left_to_the_training_process() -> None:
    assert len(list(stream(Pictures(what="interrupt", at=3), 2))) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_can_be_closed_early(workers: int) -> None:
    """No process stays behind."""
    loading = stream(Pictures(), workers, total=1000)
    next(loading)
    assert len(multiprocessing.active_children()) == workers
    loading.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_too_few_images_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="3 training images do not fill one batch of 4") as caught:
        stream(Pictures(3))
    assert "--set train.batch=3" in caught.value.hint
    with pytest.raises(RecipeError, match=r"train\.batch = 4 cannot be shared by 3 processes"):
        stream(Pictures(), world=3)


def test_shared_memory_is_counted_and_checked(tmp_path: Path) -> None:
    needed = shared_memory_bytes(AUGMENT, 4, 2)
    assert needed == 24 * 24 * 4 * 4 * 5
    assert shared_memory_bytes(FLOATS, 4, 2) == needed * 13 // 4
    assert shared_memory_problem(needed, tmp_path) is None
    assert shared_memory_problem(needed, tmp_path / "absent") is None
    problem = shared_memory_problem(2**60, tmp_path)
    assert problem is not None
    assert str(tmp_path) in problem
    assert "--set train.workers" in problem


def test_workers_pay_only_beside_an_accelerator() -> None:
    assert default_workers(torch.device("cpu")) == 0
    assert 1 <= default_workers(torch.device("cuda")) <= 8
