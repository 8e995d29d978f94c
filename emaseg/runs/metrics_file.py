"""metrics.csv of a run: its columns, adding a row, and what `--resume` makes of one that a crash left behind.

Room: runs.

A resumed run's file equals the uninterrupted one byte for byte in every column but `images_per_second`, which is a
measured time: step, epoch, lr, the losses (means over all steps since the row before, whose sums travel in the
checkpoint) and the scores. The same machine, versions and threads are taken for granted, as for the weights.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from emaseg.files import append_text, is_file, read_bytes
from emaseg.runs.repair import put_back, read_metrics

# Columns after the fixed first ones are the model's loss terms; the last ones belong to evaluations.
FIRST = ("step", "epoch", "lr", "loss")
LAST = ("images_per_second", "miou", "pixel_accuracy", "mean_accuracy")
TIMED = ("images_per_second", "data_wait", "peak_memory")  # measured: two equal runs do not share them

_STEP = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|-?inf|nan|")
_HEADER = re.compile(r"[a-z][a-z0-9_]*(,[a-z][a-z0-9_]*)+")


def columns(terms: Sequence[str]) -> tuple[str, ...]:
    """Every column, in order. terms: the model's loss terms, in a fixed order; their columns are called loss_<term>."""
    return (*FIRST, *(f"loss_{term}" for term in terms), *LAST)


def append_row(path: Path, row: Mapping[str, float], terms: Sequence[str]) -> None:
    """Add a row, with the header before the first; whole or not at all. Columns without a value stay empty.

    Raises:
        SystemFault: disk full, no permission.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns(terms), restval="", lineterminator="\n")
    if not is_file(path) or path.stat().st_size == 0:
        writer.writeheader()
    writer.writerow({key: _number(value) for key, value in row.items()})
    append_text(path, buffer.getvalue())


def repair(path: Path, terms: Sequence[str], step: int, evaluated: int) -> list[str]:
    """Make the file what it was at a checkpoint; a resumed run writes the rows after it again.

    Complete rows up to the checkpoint stay as they are, byte for byte. Whatever else is in the file than rows (half a
    line, bytes that are no text, another file's lines) is kept beside it under another name, the whole file as it was.

    Args:
        terms: the model's loss terms.
        step: of the checkpoint; rows of training after it go.
        evaluated: the last step whose evaluation is in the checkpoint; rows of evaluations after it go.

    Returns:
        Lines that say what was not as it should be; [] for a file that a plain end or a kill leaves.

    Raises:
        SystemFault: it cannot be read or written.
    """
    data, notes = read_metrics(path)
    if data is None:
        return notes
    names = columns(terms)
    # Spreadsheets save with another line end, and a mark at the start.
    header, *lines = (line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    torn = lines.pop() if lines else b""
    expected = ",".join(names)
    damaged = _text(header) != expected
    foreign = damaged and _HEADER.fullmatch(_text(header)) is not None
    rows = [row for row in ((header, *lines) if damaged else lines) if not foreign and _is_row(row, names)]
    damaged = damaged or len(rows) != len(lines)
    kept = _rows_up_to(rows, names, step, evaluated)
    # A line that was being written when the process died is a row after the checkpoint: nothing is lost with it.
    return put_back(path, data, [expected.encode()], kept, damaged="rows" if damaged and data else "", torn=torn)


def last_step(path: Path) -> int:
    """The last step that a file tells of; 0 where it tells of none or cannot be read."""
    try:
        lines = read_bytes(path).split(b"\n")[1:-1]
    except OSError:
        return 0
    steps = [_text(line).partition(",")[0] for line in lines]
    return max((int(step) for step in steps if _STEP.fullmatch(step)), default=0)


def _text(line: bytes) -> str:
    return line.decode("ascii", "replace")


def _is_row(line: bytes, names: Sequence[str]) -> bool:
    """Whether a line has a step and as many numbers or blanks as there are columns."""
    cells = line.decode("ascii", "replace").split(",")
    numbers = all(_NUMBER.fullmatch(cell) for cell in cells)
    return len(cells) == len(names) and numbers and _STEP.fullmatch(cells[0]) is not None


def _rows_up_to(rows: Sequence[bytes], names: Sequence[str], step: int, evaluated: int) -> list[bytes]:
    """Rows of the steps and evaluations done; each once, in their order."""
    miou = names.index("miou")
    kept: list[bytes] = []
    reached = {False: -1, True: -1}  # by whether it is a row of an evaluation
    for row in rows:
        cells = row.decode("ascii").split(",")
        scored, at = cells[miou] != "", int(cells[0])
        if reached[scored] < at <= (evaluated if scored else step):
            reached[scored] = at
            kept.append(row)
    return kept


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
