"""Drawing what the engine reports while it works.

Room: cli. Imports rich and the engine's events: only a command at work imports this file. Never imports torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from emaseg.events import Downloading, Evaluated, Evaluating, Finished, Note, Stepped, TrainEvent, TrainingStarted
from emaseg.words import duration, printable, rate, shown, size

from .render import console, fitted, percent, print_note

if TYPE_CHECKING:
    from emaseg.threads import Reading

Result = TypeVar("Result")

_EVERY_SECONDS = 10.0  # between plain lines where there is no terminal
_WIDE = 120  # columns of a terminal that has room for a long bar
_NARROW = 100  # columns below which there is none at all
_LONGEST_JOB = 8  # letters: "evaluate"; the names of jobs are in one column


class Meter:
    """How far a long job is, on stderr: bars on a terminal; else a plain line at the first and the last step and
    at most every ten seconds between; nothing when quiet. A context manager: bars vanish at its end."""

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = console()
        self._quiet = quiet
        self._clock = clock
        self._next_line: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        self._bar = 0  # columns of a bar
        if self.out.draws and not quiet:
            self._bar = 0 if self.out.width < _NARROW else 6 if self.out.width < _WIDE else 20
            columns = (
                TextColumn("{task.description}", markup=False),
                *([BarColumn(bar_width=self._bar)] if self._bar else []),
                MofNCompleteColumn(),
                TextColumn(
                    "{task.fields[text]}", markup=False, table_column=Column(no_wrap=False)
                ),  # a second line, if it must
            )
            self._bars = Progress(*columns, console=self.out, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str, style: str = "") -> None:
        """A line that stays, above the bars."""
        if not self._quiet:
            self.out.print(Text(fitted(shown(line), self.out), style=style))

    def note(self, note: Note) -> None:
        """A line of the engine's; warnings are shown also when quiet."""
        if note.warning or not self._quiet:
            print_note(note, self.out)

    def update(self, job: str, done: int, total: int, text: str) -> None:
        """`done` of `total` steps of `job` are done; `text` says the rest."""
        job, text = printable(job), printable(text)
        if self._bars is not None:
            if job not in self._tasks:
                self._tasks[job] = self._bars.add_task(job, total=total, text=text)
            self._bars.update(self._tasks[job], completed=done, total=total, text=text)
            return
        now = self._clock()
        if done == total or now >= self._next_line.get(job, now):
            self.say(f"{job} {done}/{total}  {text}".rstrip())
            self._next_line[job] = now + _EVERY_SECONDS

    def room(self, total: int) -> int | None:
        """Columns for the text of a job of `total` steps, so that it stays on its line; None = no limit."""
        if self._bars is None:
            return None
        counts = 2 * len(str(total)) + 1
        return self.out.width - (_LONGEST_JOB + 1) - (self._bar + 1 if self._bar else 0) - (counts + 1)

    def transfer(self, event: Downloading) -> None:
        """Some more of a file is here; counted in MB."""
        job, done = f"download {event.name}", event.done // 1_000_000
        left = "" if event.seconds_left is None else f"  {duration(event.seconds_left)} left"
        text = f"MB  {size(event.bytes_per_second)}/s{left}"
        if event.done == event.total:
            whole = max(1, round(event.done / 1e6))
            self.update(job, whole, whole, text)
            self.close(job)
        else:
            self.update(job, done, max(done + 1, (event.total or 0) // 1_000_000), text)

    def close(self, job: str) -> None:
        """`job` is over: its bar goes, and its next first step is shown again."""
        job = printable(job)
        self._next_line.pop(job, None)
        if self._bars is not None and job in self._tasks:
            self._bars.remove_task(self._tasks.pop(job))


def show_training(events: Iterator[TrainEvent], quiet: bool) -> Finished:
    """Draw a training run to its end; returns its last word.

    Raises:
        RuntimeError: the events ended without one.
    """
    miou: float | None = None
    with Meter(quiet) as meter:
        for event in events:
            if isinstance(event, Stepped):
                text = _step_text(event, miou, meter.room(event.total_steps))
                meter.update("train", event.step, event.total_steps, text)
            elif isinstance(event, Evaluating):
                meter.update("evaluate", event.done, event.total, _pace(event.images_per_second, event.seconds_left))
            elif isinstance(event, Evaluated):
                miou = event.scores.miou
                meter.close("evaluate")
                meter.say(_evaluation_line(event), style="bold green" if event.best else "")
            elif isinstance(event, TrainingStarted):
                meter.say(_start_line(event))
            elif isinstance(event, Note):
                meter.note(event)
            elif isinstance(event, Downloading):
                meter.transfer(event)
            elif isinstance(event, Finished):
                return event  # Saved is not shown: checkpoints are routine
    raise RuntimeError("the training ended without a last word")


def show_download(events: Generator[Downloading | Note, None, Result], meter: Meter) -> Result:
    """Draw a download to its end; returns what it returns."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result: Result = end.value
            return result
        if isinstance(event, Downloading):
            meter.transfer(event)
        else:
            meter.note(event)


def show_reading(events: Generator[Reading, None, Result], meter: Meter) -> Result:
    """Draw the reading of many files to its end; returns what it returns."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result: Result = end.value
            return result
        meter.update(event.what, event.done, event.total, _pace(event.images_per_second, event.seconds_left))


def show_evaluation(events: Iterator[Evaluating | Evaluated], quiet: bool) -> Evaluated:
    """Draw an evaluation to its end; returns its scores and counts.

    Raises:
        RuntimeError: the events ended without any.
    """
    with Meter(quiet) as meter:
        for event in events:
            if isinstance(event, Evaluated):
                return event
            meter.update("evaluate", event.done, event.total, _pace(event.images_per_second, event.seconds_left))
    raise RuntimeError("the evaluation ended without scores")


def show_submission(events: Generator[Evaluating | Evaluated, None, None], quiet: bool) -> Evaluated | None:
    """Draw the writing of a submission to its end; returns its scores, None where the labels are not published."""
    evaluated = None
    with Meter(quiet) as meter, contextlib.closing(events):  # closed at once, whatever happens: no half file stays
        for event in events:
            if isinstance(event, Evaluated):
                evaluated = event
            else:
                meter.update("label maps", event.done, event.total, _pace(event.images_per_second, event.seconds_left))
    return evaluated


def _start_line(start: TrainingStarted) -> str:
    images = f"{start.train_images} images, {start.eval_images} to evaluate"
    steps = f"{start.total_steps} steps of {start.batch} ({start.epochs:.4g} epochs)"
    begin = f", from step {start.step}" if start.step else ""
    size = f"{start.parameters / 1e6:.2f} M parameters on {start.device}"
    return f"{start.run}: {images}; {steps}{begin}; {size}"


def _step_text(step: Stepped, miou: float | None, room: int | None) -> str:
    """What is said of a step beside its number: all of it where there is room, else the same in fewer letters.

    miou: of the last evaluation. room: columns; None = no limit.
    """
    scored = [] if miou is None else [f"mIoU {percent(miou)}"]
    held = [] if step.peak_memory is None else [f"{size(step.peak_memory)} at most"]
    pace, wait = _pace(step.images_per_second, step.seconds_left), f"data wait {100 * step.data_wait:.0f}%"
    parts = [
        f"epoch {step.epoch}{f' of {step.epochs}' if step.epochs else ''}",
        f"loss {step.loss:.4f}",
        *scored,
        f"lr {step.lr:.3g}",
        pace,
        wait,
        *held,
    ]
    text = "  ".join(parts)
    return text if room is None or len(text) <= room else _short_text(step, miou, room)


def _short_text(step: Stepped, miou: float | None, room: int) -> str:
    """The same for a narrow terminal; what has no room at all is left out, the least important first."""
    parts = [
        f"loss {step.loss:.3g}",
        *([] if step.seconds_left is None else [f"{_brief(step.seconds_left)} left"]),
        *([] if miou is None else [f"mIoU {100 * miou:.1f}"]),
        f"{rate(step.images_per_second)} img/s",
        f"wait {100 * step.data_wait:.0f}%",
        *([] if step.peak_memory is None else [size(step.peak_memory)]),
        f"lr {step.lr:.3g}",
        f"epoch {step.epoch}",
    ]
    while len(parts) > 1 and len(" ".join(parts)) > room:
        parts.pop()
    wide = "  ".join(parts)
    return wide if len(wide) <= room else " ".join(parts)


def _brief(seconds: float) -> str:
    """42s, 12m, 2h05, 3d04h."""
    compact = duration(seconds).replace(" min", "m").replace(" ", "")
    return compact.removesuffix("m") if "h" in compact else compact


def _pace(images_per_second: float, seconds_left: float | None) -> str:
    left = "" if seconds_left is None else f"  {duration(seconds_left)} left"
    return f"{rate(images_per_second)} images/s{left}"


def _evaluation_line(event: Evaluated) -> str:
    place = "evaluated" if event.step is None else f"step {event.step}"
    return f"{place}: mIoU {percent(event.scores.miou)}{'  best so far' if event.best else ''}"
