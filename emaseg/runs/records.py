"""What a run writes down as it goes: each row in metrics.csv and in metrics.jsonl, and as the event that loggers get.

Room: runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emaseg.events import Evaluated, Logged
from emaseg.files import sync
from emaseg.runs.folder import RunFolder
from emaseg.runs.metrics_file import append_row, columns, repair
from emaseg.runs.metrics_lines import append_line, repair_lines


def record(
    run: RunFolder, values: Mapping[str, float], terms: Sequence[str], scored: Evaluated | None = None
) -> Logged:
    """Add a row to both files.

    Args:
        values: by column; also `step`. What metrics.csv has no column for is in metrics.jsonl alone.
        terms: the model's loss terms.
        scored: the evaluation that it is a row of, if it is one.

    Raises:
        SystemFault: disk full, no permission.
    """
    known = set(columns(terms))
    append_row(run.metrics, {name: value for name, value in values.items() if name in known}, terms)
    classes = [] if scored is None else scored.scores.per_class
    per_class = [{"name": c.name, "iou": c.iou, "accuracy": c.accuracy} for c in classes]
    append_line(run.metrics_lines, {**values, **({"per_class": per_class} if per_class else {})})
    step = int(values["step"])
    return Logged(step, {name: float(value) for name, value in values.items() if name != "step"})


def repair_records(run: RunFolder, terms: Sequence[str], step: int, evaluated: int) -> list[str]:
    """Make both files what they were at a checkpoint, as `metrics_file.repair`."""
    return repair(run.metrics, terms, step, evaluated) + repair_lines(run.metrics_lines, step, evaluated)


def sync_records(run: RunFolder) -> None:
    """Bring what was added to both files onto the disk.

    Raises:
        SystemFault: the disk does not take it.
    """
    sync(run.metrics)
    sync(run.metrics_lines)
