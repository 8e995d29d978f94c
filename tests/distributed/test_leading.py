"""Rank 0 of a training when something ends an evaluation: in one process, which is told that it is one of two."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from torch.optim import Optimizer

from emaseg.checkpoint import read_checkpoint
from emaseg.data.pipeline.transforms import Batch
from emaseg.distributed import lockstep
from emaseg.distributed.lockstep import Action
from emaseg.errors import DataError, ImageTooLarge, PeerFailed
from emaseg.evaluation import evaluate
from emaseg.events import Evaluated, Finished
from emaseg.models import Network
from emaseg.open_datasets import open_datasets
from emaseg.runs.folder import RunFolder, is_complete
from emaseg.training import follow
from emaseg.training.image_state import image_lists
from emaseg.training.resuming import with_remedy
from emaseg.training.step import StepResult, training_step
from tests.helpers import equal, run, tiny
from tests.training.test_resume import own_data

LENGTH = ("train.iterations=6", "train.evaluate_every=4", "train.save_every=3", "train.save_seconds=1000")


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 tells another one what it does, which agrees to everything."""
    monkeypatch.setattr(lockstep, "world_size", lambda: 2)
    monkeypatch.setattr(lockstep, "largest_over_ranks", lambda values: values)


@pytest.mark.usefixtures("of_two")
def test_what_others_go_on_from_is_a_copy_without_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the memory of rank 0's GPU: what is sent of a resume lies on no device, so it is restored on none."""
    recipe = tiny(*LENGTH)
    sent: list[Any] = []
    run(recipe, tmp_path / "run", stop_after=2)
    there = read_checkpoint(RunFolder(tmp_path / "run").last).optimizer
    with monkeypatch.context() as patch:
        patch.setattr("emaseg.training.train.world_size", lambda: 2)
        patch.setattr("emaseg.training.train.from_rank_0", sent.append)
        run(recipe, tmp_path / "run", resume=True)
    (beginning,) = sent
    assert beginning.step == 2
    assert equal(beginning.optimizer["state"], there["state"])  # and not what the steps since then made of it


@pytest.mark.parametrize("every", [0, 2])
def test_a_stop_of_another_rank_in_an_evaluation_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Protects scores: an evaluation that all abandon is made by the resume, and a run without its last is not complete."""
    recipe = tiny("train.iterations=3", f"train.evaluate_every={every}")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "largest_over_ranks", lambda _: [1])
        events = run(recipe, tmp_path / "run")
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.step, finished.interrupted) == (every or 3, True)
    assert not is_complete(tmp_path / "run")
    events = run(recipe, tmp_path / "run", resume=True)
    assert sum(isinstance(event, Evaluated) for event in events) == (2 if every else 1)
    assert is_complete(tmp_path / "run")


@pytest.mark.usefixtures("of_two")
def test_a_damaged_image_in_an_evaluation_costs_no_step(tmp_path: Path) -> None:
    """Protects the steps since the last checkpoint, and the message from naming a step that is not saved."""
    recipe = own_data(tmp_path / "data", 23, *LENGTH)
    file = open_datasets(recipe)[1].files(0)[0]
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=file.name) as caught:
        run(recipe, tmp_path / "run")
    last = RunFolder(tmp_path / "run").last
    assert read_checkpoint(last).step == 4
    assert f"stopped after step 4, which is saved in {last}" in caught.value.message


@pytest.mark.usefixtures("of_two")
def test_a_rank_that_fails_in_an_evaluation_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the steps since the last checkpoint from another rank's damaged image, or its end."""

    def fails(*_: object, **__: object) -> Iterator[NoReturn]:
        raise PeerFailed

    monkeypatch.setattr("emaseg.training.train.evaluate", fails)
    with pytest.raises(PeerFailed):
        run(tiny(*LENGTH), tmp_path / "run")
    assert read_checkpoint(RunFolder(tmp_path / "run").last).step == 4


def test_an_image_too_large_in_an_evaluation_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the steps since the last checkpoint, and names the command that goes on with them."""

    def fails(*_: object, **__: object) -> Iterator[NoReturn]:
        raise ImageTooLarge("a.png: out of memory", "evaluate in windows")

    monkeypatch.setattr("emaseg.training.train.evaluate", fails)
    with pytest.raises(ImageTooLarge) as caught:
        run(tiny(*LENGTH), tmp_path / "run")
    last = RunFolder(tmp_path / "run").last
    assert read_checkpoint(last).step == 4
    assert f"stopped after step 4, which is saved in {last}" in caught.value.message
    assert "--resume" in caught.value.hint
    assert "check-data" not in caught.value.hint


@pytest.mark.usefixtures("of_two")
def test_a_rank_that_fails_in_a_step_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the checkpoint from a network in the middle of a step."""

    def fails(model: Network, optimizer: Optimizer, batch: Batch, step: int, *rest: Any, **named: Any) -> StepResult:
        if step == 4:
            raise PeerFailed
        return training_step(model, optimizer, batch, step, *rest, **named)

    monkeypatch.setattr("emaseg.training.train.training_step", fails)
    with pytest.raises(PeerFailed):
        run(tiny(*LENGTH, "train.evaluate_every=0"), tmp_path / "run")
    assert read_checkpoint(RunFolder(tmp_path / "run").last).step == 3


def test_the_step_that_is_saved_is_named(tmp_path: Path) -> None:
    """Protects people from trust in a checkpoint that is older than the message says."""
    folder, error = RunFolder(tmp_path), DataError("a.png: is damaged")
    assert f"stopped after step 5; {folder.last} holds step 3" in with_remedy(error, folder, 5, 3).message
    assert f"stopped after step 5, which is saved in {folder.last}" in with_remedy(error, folder, 5, 5).message
    assert "stopped before the first step" in with_remedy(error, folder, 0, None).message


def test_a_rank_that_is_told_to_end_ends_its_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from loading processes that go on when rank 0 ends a run before its last batch."""
    recipe, closed, actions = tiny(), list[str](), iter((Action.START, Action.END))

    class Told:
        total = 12

        def __init__(self, stop: threading.Event) -> None:
            self.next = lambda: next(actions)
            self.preparing = contextlib.nullcontext

    lists = image_lists(*open_datasets(recipe)[:2])
    threads = torch.get_num_threads()
    monkeypatch.setattr(follow, "Followed", Told)
    monkeypatch.setattr(follow, "from_rank_0", lambda _: follow.Beginning(tiny("train.threads=1"), 0, 12, lists))
    monkeypatch.setattr(follow, "batches", lambda *_, **__: SimpleNamespace(close=lambda: closed.append("stream")))
    follow.follow(torch.device("cpu"), threading.Event())
    assert closed == ["stream"]
    assert torch.get_num_threads() == threads
