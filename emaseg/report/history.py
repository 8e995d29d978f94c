"""What a run folder tells of itself: its curves, its start, its versions.

Room: report. Whatever is missing or damaged is left out: a page is for looking, and nothing depends on it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emaseg.runs.folder import RunFolder

Point = tuple[float, float]


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
    try:
        rows = list(csv.DictReader(run.metrics.read_text("utf-8", "replace").splitlines()))
    except OSError:
        return history
    for row in rows:
        step = _number(row.get("step"))
        for key, cell in row.items():
            value = _number(cell)
            if step is None or value is None or not isinstance(key, str):
                continue
            if key == "miou":
                history.mious.append((step, value))
            elif key == "loss" or key.startswith("loss_"):
                history.losses.setdefault(key.removeprefix("loss_"), []).append((step, value))
    return history


def _starts(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()
    starts = content.get("starts") if isinstance(content, dict) else None
    return tuple(start for start in starts if isinstance(start, dict)) if isinstance(starts, list) else ()


def _number(cell: object) -> float | None:
    try:
        return float(cell) if isinstance(cell, str) and cell else None
    except ValueError:
        return None
