"""Loading: the same batches from any number of processes, at any start, on any rank; and errors that arrive whole."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emaseg.data.dataset import MemorySample, Sample, UInt8
from emaseg.data.pipeline import loading
from emaseg.data.pipeline import workers as processes
from emaseg.data.pipeline.loading import (
    Stream,
    Waiting,
    batches,
    default_workers,
    epoch_order,
    prefetch_one,
    raw_batch_bytes,
)
from emaseg.data.pipeline.transforms import Batch, RawBatch
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.training import Augment
from emaseg.schedule import steps_per_epoch
from tests.data.pipeline_golden import STATS, sample_image, sample_label

AUGMENT = Augment(resize_long_short=(64, 24), scale=(0.5, 2.0), crop=(24, 24), photometric="bgr_as_rgb")
FLOATS = Augment(crop=(24, 24), scale=(0.5, 2.0), interpolation="align_corners", photometric="none")
TURNED = replace(AUGMENT, rotation=1.0)

ROOT = Path(__file__).parents[3]
TOO_LONG = 250.0  # seconds; nothing here takes so long on any machine, unless it would take forever


@dataclass(frozen=True)
class Pictures:
    """`count` images of different sizes; reading number `at` does `what`."""

    count: int = 10
    what: str = ""
    at: int = -1
    token: Path | None = None  # appears when the trouble has begun

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"class {i}" for i in range(21))

    @property
    def palette(self) -> UInt8:
        return np.zeros((21, 3), np.uint8)

    @property
    def withheld_by(self) -> str:
        return ""

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"image_{index}.png"

    def open(self, index: int) -> Sample:
        if index == self.at:
            trouble(self.what, self.name(index), self.token)
        return MemorySample(self.name(index), sample_image(30 + index, 40), sample_label(30 + index, 40))


def trouble(what: str, name: str, token: Path | None) -> None:
    if what == "damaged":
        raise DataError(f"{name}: damaged", "fetch it again")
    if what == "bug":
        raise ZeroDivisionError("a bug")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "interrupt" and multiprocessing.parent_process() is not None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), signum)
    if what in ("fade", "hang") and token is not None:
        token.touch()
        if what == "fade":
            os.closerange(3, 256)  # as a dying process does
        time.sleep(0.3 if what == "fade" else 2 * TOO_LONG)
        os.kill(os.getpid(), signal.SIGKILL)


def appears(path: Path) -> bool:
    """Wait for the file."""
    end = time.monotonic() + TOO_LONG
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return path.exists()


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
    ranks: int = 0,
) -> Stream:
    return batches(
        dataset,
        augment,
        STATS,
        batch=batch,
        start=start,
        total=total,
        seed=seed,
        workers=workers,
        rank=rank,
        world=world,
        ranks=ranks,
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
    """Two processes read together what one would, in every epoch, also of images that they cannot share evenly."""
    one = [set(batch.names) for batch in stream(Pictures(7), batch=2, total=7)]
    ranks = [
        [set(batch.names) for batch in stream(Pictures(7), batch=2, total=7, rank=rank, world=2)] for rank in (0, 1)
    ]
    assert [a | b for a, b in zip(*ranks, strict=True)] == one
    assert [len(names) for rank in ranks for names in rank] == [1] * 14


def test_published_ranks_get_the_batches_that_they_had() -> None:
    """Protects train.ranks: the order is filled up to a multiple of them and dealt out in turn, as torch's
    DistributedSampler does, whether two processes train or one stands for both."""
    padded = [list(stream(Pictures(7), batch=2, total=4, rank=rank, world=2, ranks=2)) for rank in (0, 1)]
    order = [f"{index}" for index in np.resize(epoch_order(7, 0, 0), 8)]
    dealt = [[name for batch in rank for name in batch.names] for rank in padded]
    assert dealt == [[Pictures(7).name(int(index)) for index in order[rank::2]] for rank in (0, 1)]
    alone = [batch.names for batch in stream(Pictures(7), batch=2, total=4, ranks=2)]
    assert alone == [a.names + b.names for a, b in zip(*padded, strict=True)]
    names = [name for rank in padded for batch in rank for name in batch.names]
    assert len(names) == 8
    assert len(set(names)) == 7


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_damaged_image_is_reported_as_the_data_set_did(workers: int) -> None:
    """The very message and hint, no traceback of a worker, and only when its batch is due."""
    dataset = Pictures(what="damaged", at=int(epoch_order(10, 0, 0)[5]))
    loaded = stream(dataset, workers)
    next(loaded)
    with pytest.raises(DataError) as caught:
        next(loaded)
    assert caught.value.message == f"{dataset.name(dataset.at)}: damaged"
    assert caught.value.hint == "fetch it again"
    assert "Traceback" not in str(caught.value)


def test_a_bug_is_not_disguised_as_an_error_of_the_user() -> None:
    """And its traceback, which refers to the loader, keeps no process alive."""
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        list(stream(Pictures(what="bug", at=3), 2))
    assert caught.tb is not None
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_names_what_it_was_reading() -> None:
    """At the batch that is missing, not wherever the training happens to be; and the signal handler is left alone."""
    before = signal.getsignal(signal.SIGCHLD)
    loaded = stream(Pictures(what="kill", at=3), 2)
    with pytest.raises(DataError, match=r"while reading image_3\.png") as caught:
        list(loaded)
    assert "train.workers" in caught.value.hint
    assert signal.getsignal(signal.SIGCHLD) is before
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_at_once_is_an_error_like_any_other() -> None:
    """Before the other one has got its first batch, too."""
    before = signal.getsignal(signal.SIGCHLD)
    first = int(epoch_order(8, 0, 0)[0])
    with pytest.raises(DataError, match=rf"ended by SIGKILL while reading image_{first}\.png"):
        list(stream(Pictures(8, what="kill", at=first), 2))
    assert signal.getsignal(signal.SIGCHLD) is before
    assert multiprocessing.active_children() == []


def test_a_process_that_is_about_to_die_has_died(tmp_path: Path) -> None:
    """A dying process closes its connections first: how it ends is known a little later."""
    dataset = Pictures(20, what="fade", at=int(epoch_order(20, 0, 0)[9]), token=tmp_path / "fading")
    loaded = stream(dataset, 1)
    next(loaded)  # the second batch is prepared then, the third will not be
    assert appears(tmp_path / "fading")
    with pytest.raises(DataError, match="by SIGKILL while reading " + re.escape(dataset.name(dataset.at))):
        list(loaded)
    assert multiprocessing.active_children() == []


def test_an_interrupt_is_left_to_the_training_process() -> None:
    assert len(list(stream(Pictures(what="interrupt", at=3), 2))) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_can_be_closed_early(workers: int) -> None:
    """No process stays behind."""
    loaded = stream(Pictures(), workers, total=1000)
    next(loaded)
    assert len(multiprocessing.active_children()) == workers
    loaded.close()
    assert multiprocessing.active_children() == []


def test_a_process_that_never_returns_is_ended(tmp_path: Path) -> None:
    """A network disk that went away, say."""
    dataset = Pictures(what="hang", at=int(epoch_order(10, 0, 0)[5]), token=tmp_path / "hanging")
    hanging = stream(dataset, 2, total=1000)
    next(hanging)
    assert appears(tmp_path / "hanging")
    hanging.close()
    assert multiprocessing.active_children() == []


def test_a_program_may_end_before_its_stream() -> None:
    """It does not wait for processes that wait for work."""
    program = (
        "from tests.data.pipeline.test_loading import *\nleft_open = stream(Pictures(), 2, total=1000)\nnext(left_open)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=TOO_LONG)


def test_too_few_images_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="3 training images do not fill one batch of 4") as caught:
        stream(Pictures(3))
    assert "--set train.batch=3" in caught.value.hint
    with pytest.raises(RecipeError, match=r"train\.batch = 4 cannot be shared by 3 processes"):
        stream(Pictures(), world=3)


def test_the_memory_of_a_batch_is_counted() -> None:
    """Protects the slots in shared memory: a batch must fit in one."""
    for augment in (AUGMENT, FLOATS):
        plan = loading._BatchSampler(10, 4, 0, 1, 0, 0, 1, 0)
        raw = loading._Fetcher(Pictures(), augment, plan)(0, lambda _: None, np.empty)
        assert raw.pixels.nbytes + raw.labels.nbytes == raw_batch_bytes(augment, 4)


def test_page_locked_copies_are_made_ahead_by_a_thread() -> None:
    """What a GPU's batches pass through: every item once and in order, errors as themselves, no thread left."""

    def items(fail: bool) -> Generator[RawBatch | Waiting, None, None]:
        yield Waiting("first")
        for step in range(3):
            yield RawBatch(torch.full((1,), step), torch.zeros(1), (), ())
        if fail:
            raise DataError("damaged")

    def twice(raw: RawBatch) -> RawBatch:
        return replace(raw, pixels=2 * raw.pixels)

    seen = [item for item in prefetch_one(items(False), twice) if not (isinstance(item, Waiting) and not item.text)]
    assert [item.text if isinstance(item, Waiting) else int(item.pixels) for item in seen] == ["first", 0, 2, 4]
    with pytest.raises(DataError, match="damaged"):
        list(prefetch_one(items(True), twice))
    early = prefetch_one(items(False), twice)
    next(early)
    early.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_workers_pay_only_beside_an_accelerator() -> None:
    assert default_workers(torch.device("cpu")) == 0
    assert 1 <= default_workers(torch.device("cuda")) <= 8


def test_ranks_share_the_cores_and_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a machine of eight GPUs from 64 loading processes on its 16 cores, and from eight times the memory."""
    monkeypatch.setattr(loading, "core_count", lambda: 16)
    monkeypatch.setattr(processes, "free_memory", lambda: 80 << 20)
    monkeypatch.setattr(processes, "AHEAD", 1)
    alone, noted = list[str](), list[str]()
    assert default_workers(torch.device("cuda")) == 8
    assert processes._affordable_workers(8, 1 << 20, alone) == 8
    for name, value in {"RANK": "0", "WORLD_SIZE": "16", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers(torch.device("cuda")) == 1
    assert processes._affordable_workers(8, 1 << 20, noted) == 4
    assert (alone, len(noted)) == ([], 1)
    assert "10 MiB are free for each of the processes that train: 4 are used" in noted[0]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert default_workers(torch.device("cuda")) == 8
