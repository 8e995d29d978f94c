"""metrics.jsonl of a run: a JSON object a line, for programs; and what `--resume` makes of one that a crash left behind.

Room: runs.

The rows are those of metrics.csv, with every digit, and with what a table has no place for: the scores of each class.
A number that JSON cannot say (NaN, infinity) is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from emaseg.files import append_text
from emaseg.runs.repair import put_back, read_metrics


def append_line(path: Path, values: Mapping[str, object]) -> None:
    """Add a line; whole or not at all.

    Raises:
        SystemFault: disk full, no permission.
    """
    append_text(path, json.dumps(_sayable(values), allow_nan=False) + "\n")


def repair_lines(path: Path, step: int, evaluated: int) -> list[str]:
    """Make the file what it was at a checkpoint, as `metrics_file.repair` does for the table.

    Args:
        step: of the checkpoint. evaluated: the last step whose evaluation is in the checkpoint.

    Returns:
        Lines that say what was not as it should be; [] for a file that a plain end or a kill leaves.

    Raises:
        SystemFault: it cannot be read or written.
    """
    data, notes = read_metrics(path)
    if data is None:
        return notes
    *lines, torn = data.split(b"\n")
    rows = [(line, row) for line in lines if (row := _row(line)) is not None]
    kept, reached = [], {False: -1, True: -1}  # by whether it is a line of an evaluation
    for line, (at, scored) in rows:
        if reached[scored] < at <= (evaluated if scored else step):
            reached[scored] = at
            kept.append(line)
    return put_back(path, data, [], kept, damaged="lines" if len(rows) != len(lines) else "", torn=torn)


def _row(line: bytes) -> tuple[int, bool] | None:
    """Step of a line, and whether it is of an evaluation; None for what is no line of ours."""
    try:
        content = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return (step, "miou" in content) if type(step) is int and step >= 0 else None


def _sayable(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _sayable(item) for key, item in value.items()}
    return [_sayable(item) for item in value] if isinstance(value, list | tuple) else value
