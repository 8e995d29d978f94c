"""Checkpoints written beside the training: of the step they were copied at, in order, and nothing lost when it fails."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from emaseg.checkpoint import Checkpoint, read_checkpoint
from emaseg.errors import RecipeError, SystemFault
from emaseg.events import Finished, Saved, Stepped
from emaseg.runs.folder import RunFolder
from emaseg.training.saving import Saver, remove_old
from emaseg.training.train import train
from tests.helpers import equal, run, tiny
from tests.stress.common import ended, small_recipe, spawn
from tests.stress.common import train as train_command
from tests.training.test_train import last, untimed

saving = importlib.import_module("emaseg.training.saving")

pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(step: int) -> Checkpoint:
    """A checkpoint whose every number is its step."""
    value = torch.full((64, 64), float(step))
    rng = {"cpu": torch.get_rng_state(), "cuda": []}
    return Checkpoint({"w": value}, {"state": {0: {"m": value.clone()}}}, step, 0, {}, rng, {}, tiny())


def no_check() -> None:
    """The lock is ours."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "checkpoints").mkdir()
    return RunFolder(tmp_path)


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits until the event is set."""
    go, write = threading.Event(), saving.save_checkpoint

    def slow(path: Path, content: Checkpoint) -> None:
        go.wait(60)
        write(path, content)

    monkeypatch.setattr(saving, "save_checkpoint", slow)
    try:
        yield go
    finally:
        go.set()


def test_what_is_written_is_what_was_copied(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the checkpoint from the steps that are taken while it is written, and the files' order."""
    content, saver = checkpoint(3), Saver(folder, no_check)
    with held(monkeypatch) as go:
        saver.begin(content, [folder.best, folder.last])
        content.model["w"].zero_()
        content.optimizer["state"][0]["m"].zero_()
        assert saver.busy
        assert list(saver.written()) == []
        go.set()
    assert list(saver.finish()) == [Saved(folder.best, "best"), Saved(folder.last, "checkpoint")]
    saved = torch.load(folder.last, weights_only=True)
    assert equal(saved["model"], checkpoint(3).model)
    assert equal(saved["optimizer"], checkpoint(3).optimizer)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the pace and the bits: steps are taken while the file is written, one that only time asks for waits, and
    the end is that of a run without."""
    run(tiny(), tmp_path / "whole")
    taken, saved = [], []
    with held(monkeypatch) as go:
        for event in train(tiny("train.save_seconds=0.001"), tmp_path / "run"):
            if isinstance(event, Stepped):
                taken.append(event.step)
                if event.step == 4:  # since step 1 the first checkpoint waits to be written
                    assert not saved
                    go.set()
            saved += [event] if isinstance(event, Saved) else []
    assert taken == list(range(1, 13))
    keys = [key for key in last(tmp_path / "whole") if key != "recipe"]
    assert all(equal(last(tmp_path / "whole")[key], last(tmp_path / "run")[key]) for key in keys)
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "run")


def test_a_full_disk_keeps_the_checkpoint_before(folder: RunFolder) -> None:
    """Protects the previous checkpoint: the failure of the thread is a SystemFault in the training, once, the file before
    is whole, nothing half-written stays, and the next one is written when there is room again."""
    saver = Saver(folder, no_check)
    saver.begin(checkpoint(1), [folder.last])
    list(saver.finish())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        saver.begin(checkpoint(2), [folder.last])
        with pytest.raises(SystemFault):
            list(saver.finish())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert torch.load(folder.last, weights_only=True)["step"] == 1
    assert torch.load(folder.previous, weights_only=True)["step"] == 1
    assert not list(folder.checkpoints.glob(".*"))
    saver.begin(checkpoint(3), [folder.last])
    list(saver.finish())
    assert torch.load(folder.last, weights_only=True)["step"] == 3


def test_a_lost_lock_stops_the_thread(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects another process's run: what is begun while the run is ours is not written once it is not."""
    ours = [True]

    def check() -> None:
        if not ours[0]:
            raise SystemFault("taken over")

    saver = Saver(folder, check)
    with held(monkeypatch) as go:
        saver.begin(checkpoint(1), [folder.best, folder.last])
        ours[0] = False
        go.set()
        with pytest.raises(SystemFault, match="taken over"):
            list(saver.finish())
    assert not folder.last.exists()


def test_close_waits_and_says_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the file when the training ends by another error: its own error is the one that is told."""
    saver = Saver(folder, no_check)
    saver.begin(checkpoint(1), [folder.last])
    saver.close()
    assert read_step(folder.last) == 1
    saver.begin(checkpoint(2), [folder.root / "checkpoints" / "last.pt" / "x.pt"])
    saver.close()
    saver.close()


def read_step(path: Path) -> int:
    step: int = torch.load(path, weights_only=True)["step"]
    return step


def test_checkpoints_by_steps(tmp_path: Path) -> None:
    """Protects train.save_every, and keep_last: of the kept ones the newest stay, with last, previous and best."""
    options = ("train.evaluate_every=0", "train.save_every=3", "train.keep_every=2", "train.keep_last=2")
    events = run(tiny(*options), tmp_path / "run", stop_after=10)
    assert isinstance(events[-1], Finished)
    folder = RunFolder(tmp_path / "run")
    assert read_checkpoint(folder.previous).step == 9
    assert {path.name for path in folder.checkpoints.iterdir()} == {
        *("last.pt", "previous.pt", "step_00000008.pt", "step_00000010.pt")
    }
    more = tiny(*options[:2], "train.keep_every=2", "train.keep_last=1")  # may be changed when a run goes on
    run(more, tmp_path / "run", resume=True)
    assert [path.name for path in folder.checkpoints.glob("step_*")] == ["step_00000012.pt"]


def test_files_of_later_steps_do_not_count(folder: RunFolder) -> None:
    """Protects the kept checkpoints of a run that goes on from an earlier step."""
    for step in (2, 4, 6, 8, 100_000_000):
        folder.kept(step).write_bytes(b"")
    (folder.checkpoints / "step_mine.pt").write_bytes(b"")
    remove_old(folder, 2, 6)
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["step_00000004.pt", "step_00000006.pt", "step_00000008.pt", "step_100000000.pt", "step_mine.pt"]


@pytest.mark.parametrize("key", ["train.save_every", "train.keep_last"])
def test_negative_counts_are_refused(key: str) -> None:
    """Protects from a count that means nothing."""
    with pytest.raises(RecipeError, match=key):
        tiny(f"{key}=-1")


def killed_while_writing(number: int) -> Callable[[], None]:
    """What to do in a process so that SIGKILL comes in the middle of its checkpoint `number`."""

    def before() -> None:
        writer = importlib.import_module("emaseg.checkpoint")._Writer
        begin, write, begun = writer.__init__, writer.write, []

        def count(self: object, file: object) -> None:
            begun.append(self)
            begin(self, file)

        def last_words(self: object, data: object) -> object:
            done = write(self, data)
            if len(begun) == number and self._written > 30_000:  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        writer.__init__, writer.write = count, last_words

    return before


def test_a_kill_in_mid_write_leaves_the_one_before(tmp_path: Path) -> None:
    """Protects the promise where it is hardest: killed with half a checkpoint on the disk, the run goes on from the one
    before, the half one is removed, and the end is the uninterrupted one's."""
    arguments = (*small_recipe(tmp_path), "--set", "train.save_every=1", "--set", "train.save_seconds=1e9")
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_command((*arguments, "--out", tmp_path / "whole"), log) == 0
    assert ended(spawn((*arguments, "--out", out), log, killed_while_writing(4))) == -signal.SIGKILL
    assert len(list((out / "checkpoints").glob(".*.part"))) == 1
    assert read_checkpoint(out / "checkpoints/last.pt").step == 3
    assert train_command((*arguments, "--out", out, "--resume"), log) == 0
    assert not list(out.rglob("*.part"))
    assert equal(last(tmp_path / "whole"), last(out))
    assert untimed(tmp_path / "whole") == untimed(out)
