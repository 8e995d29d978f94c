"""What a run folder tells of itself: its curves, its start, its versions.

Room: report. Whatever is missing or damaged is left out: a page is for looking, and nothing depends on it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emaseg.files import read_bytes
from emaseg.runs.folder import RunFolder

Point = tuple[float, float]
_MOST = 1e30  # of a loss; what is larger is no number of ours, and no chart has room for it
_MOST_STEPS = 2**53


@dataclass(frozen=True, slots=True)
class History:
    """losses: by the name of the term, "loss" for their sum. mious: of the evaluations. Points are (step, value).

    starts: env.json's, one for each time the run was started.
    """

    losses: dict[str, list[Point]] = field(default_factory=dict)
    mious: list[Point] = field(default_factory=list)
    starts: Sequence[dict[str, Any]] = ()

    @property
    def best(self) -> Point | None:
        """Step and value of the highest mIoU."""
        return max(self.mious, key=lambda point: point[1], default=None)


def read_history(root: Path) -> History:
    """The history of a run folder, as far as it can be read."""
    run = RunFolder(root)
    history = History(starts=_starts(run.environment))
    for row in _rows(run.metrics):
        step = number(row.get("step"), most=_MOST_STEPS)
        for key, cell in row.items():
            value = number(cell, least=-_MOST, most=_MOST)
            if step is None or value is None or not isinstance(key, str):
                continue
            if key == "miou":
                history.mious.extend([(step, value)] if 0 <= value <= 1 else [])
            elif key == "loss" or key.startswith("loss_"):
                history.losses.setdefault(key.removeprefix("loss_"), []).append((step, value))
    return history


def _rows(path: Path) -> Iterator[dict[Any, Any]]:
    """The rows of a table, up to the first that is none."""
    try:
        yield from csv.DictReader(read_bytes(path).decode("utf-8", "replace").splitlines())
    except (OSError, csv.Error):
        return


def _starts(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        content = json.loads(read_bytes(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()
    starts = content.get("starts") if isinstance(content, dict) else None
    return tuple(start for start in starts if isinstance(start, dict)) if isinstance(starts, list) else ()


def number(value: object, *, least: float = 0.0, most: float = 1.0) -> float | None:
    """A cell or a JSON value as a number from `least` to `most`; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if least <= found <= most else None  # never inf nor nan
