"""What the long-running verbs report while they work: the engine yields these, cli/progress.py draws them.

Room: events; never imports torch. Times are seconds, shares are in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emaseg.metrics import Scores, Tally


@dataclass(frozen=True, slots=True)
class Note:
    """A line for people: something recognised, chosen or worth knowing."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Downloading:
    """Some more of a file has arrived. Sizes are bytes; total and seconds_left are None where the server is silent."""

    name: str
    done: int
    total: int | None
    bytes_per_second: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """Training is about to take its first step."""

    run: Path
    step: int  # steps already done; above 0 after a resume
    total_steps: int
    epochs: float
    train_images: int
    eval_images: int
    batch: int
    parameters: int
    device: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimiser step is done."""

    step: int
    total_steps: int
    epoch: int  # from 1
    loss: float
    losses: Mapping[str, float]  # named, weighted terms; they sum to loss
    lr: float
    images_per_second: float  # smoothed
    data_wait: float  # share of the time spent waiting for data, smoothed
    seconds_left: float | None  # None in the first steps of a start, which are slower than the rest
    peak_memory: int | None = None  # bytes that were held at most: by the device, on a CPU by the process
    epochs: int = 0  # of the whole run, the last perhaps cut short; 0 = unknown


@dataclass(frozen=True, slots=True)
class Logged:
    """A row of metrics.csv is written: what loggers draw. values: by column, without the step."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluating:
    """One image of an evaluation is done."""

    done: int
    total: int
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation is complete. `step` is None outside training; `best` = highest mIoU of the run so far.

    tally: everything that was counted, for those who want more than the scores.
    """

    scores: Scores
    step: int | None = None
    best: bool = False
    tally: Tally | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Saved:
    """A file is complete on disk."""

    path: Path
    what: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Training is over."""

    run: Path
    step: int
    best_miou: float | None
    interrupted: bool = False  # stopped by a signal after saving a checkpoint; --resume continues
    already: bool = False  # a resume of a run that was complete
    scored: bool = True  # whether the images to evaluate on have labels


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run will be, before anything is measured, as label and value pairs."""

    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Measuring:
    """A step with so many crops (height, width) is about to be measured. seconds: that it may take; None = unknown.
    recomputed: with train.recompute, which the recipe has not set."""

    crops: int
    crop: tuple[int, int]
    seconds: float | None = None
    recomputed: bool = False


@dataclass(frozen=True, slots=True)
class LessMemory:
    """Another way to the same batch. name: in a word; options: `--set` options; needed: bytes, estimated from smaller
    batches; fits: None = nobody knows what is free."""

    name: str
    options: str
    needed: int
    fits: bool | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a dry run ends.

    lines: label and value pairs. steps_left: of the run. seconds_per_step: None = not measured. needed, available:
    bytes of the device's memory for a step, and what there is for this process; None = unknown. measured: a step with
    the whole batch was run; else its figures follow from smaller batches. fits: None = the free memory is unknown.
    remedy: `--set` options that would fit. less_memory: ways that need less, what changes least first.
    """

    lines: tuple[tuple[str, str], ...]
    steps_left: int
    seconds_per_step: float | None = None
    needed: int | None = None
    available: int | None = None
    measured: bool = False
    fits: bool | None = True
    remedy: str = ""
    less_memory: tuple[LessMemory, ...] = ()


DryRunEvent = Note | Planned | Measuring | Forecast
TrainEvent = Note | Downloading | TrainingStarted | Stepped | Logged | Evaluating | Evaluated | Saved | Finished
