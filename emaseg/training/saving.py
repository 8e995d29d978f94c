"""Checkpoints of a run, written beside the training.

Room: training.

A checkpoint is copied in memory between two steps, and a thread writes the copy while the training goes on: a step that
is written is the step that was copied, whatever the next ones change. One checkpoint is written at a time. Its files
appear whole or not at all, best.pt before the last.pt that counts on it, and the rows of metrics.csv that it counts on
are on the disk before it is. What the thread meets (a full disk, a lost lock) is raised at the next step.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from emaseg.background import Background
from emaseg.checkpoint import Checkpoint, save_checkpoint
from emaseg.events import Saved
from emaseg.files import fault
from emaseg.runs.folder import RunFolder, kept_checkpoints
from emaseg.runs.records import sync_records


class Saver:
    """Writes the checkpoints of one run.

    Args:
        run: the folder. check: raises where the run is another process's by now; nothing is written then.
        keep_last: how many step_XXXXXXXX.pt stay; 0 = all.
    """

    def __init__(self, run: RunFolder, check: Callable[[], None], keep_last: int = 0) -> None:
        self._run, self._check, self._keep_last = run, check, keep_last
        self._job: Background | None = None
        self._complete: list[Path] = []  # by the thread; one list.append is atomic

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written just now."""
        return self._job is not None and not self._job.done

    def begin(self, checkpoint: Checkpoint, paths: Sequence[Path]) -> None:
        """Copy `checkpoint` and start to write it to `paths`, in that order, once the one before is written.

        Raises:
            SystemFault: the one before could not be written; the run is another process's by now.
        """
        self._wait()
        self._check()
        copy = Checkpoint(**{field.name: copied(getattr(checkpoint, field.name)) for field in fields(checkpoint)})
        self._job = Background(lambda: self._write(copy, paths))

    def written(self) -> Iterator[Saved]:
        """The files that became complete since the last time.

        Raises:
            SystemFault: one could not be written.
        """
        if not self.busy:
            self._wait()
        while self._complete:
            path = self._complete.pop(0)
            yield Saved(path, "best" if path == self._run.best else "checkpoint")

    def finish(self) -> Iterator[Saved]:
        """As `written`, but waits for what is being written."""
        self._wait()
        yield from self.written()

    def close(self) -> None:
        """Let what is being written come to its end; where that fails, another error is on its way already."""
        job, self._job = self._job, None
        if job is not None:
            with contextlib.suppress(Exception):
                job.wait()

    def _wait(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.wait()

    def _write(self, checkpoint: Checkpoint, paths: Sequence[Path]) -> None:
        run = self._run
        sync_records(run)
        for path in paths:
            self._check()
            if path == run.last:
                keep_previous(run)
            save_checkpoint(path, checkpoint)
            self._complete.append(path)
        if self._keep_last and any(path not in (run.last, run.best) for path in paths):
            remove_old(run, self._keep_last, checkpoint.step)


def copied(value: Any) -> Any:
    """`value` with copies of its tensors, on the CPU, so that nothing changes them and any machine reads the file."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def remove_old(run: RunFolder, most: int, step: int) -> None:
    """Remove the oldest kept checkpoints, so that `most` remain of those up to `step`.

    Files of later steps belong to a training that this one repeats: they are written again.
    """
    old = [path for path in kept_checkpoints(run) if int(path.stem.removeprefix("step_")) <= step][most:]
    for path in old:
        with contextlib.suppress(OSError):  # the next time
            path.unlink()


def keep_previous(run: RunFolder) -> None:
    """Let previous.pt be the last.pt of now, before a new one is written: then the space of the one before is free.

    At every instant there is a last.pt, but on a disk without links, where previous.pt is there in its place.

    Raises:
        SystemFault: disk full, no permission; last.pt is there.
    """
    if not run.last.is_file():
        return
    second = run.checkpoints / f".{run.previous.name}.link.part"
    try:
        second.unlink(missing_ok=True)
        try:
            os.link(run.last, second)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.replace(run.last, run.previous)  # no links on this disk
            return
        os.replace(second, run.previous)
        second.unlink(missing_ok=True)  # to rename one name of a file to another name of the same file does nothing
    except OSError as error:
        raise fault(error, run.previous, "writing it") from error
