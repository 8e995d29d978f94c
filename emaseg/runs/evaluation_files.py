"""What lies beside metrics.json: the scores of each image, which class is taken for which, and what was used.

Room: runs. Legend: K classes.

    images.csv     a row an image: image, pixels, miou, pixel_accuracy, then the IoU of each class; a cell is empty where
                   the class is neither labelled nor predicted. The worst image is the first of `sort -t, -k3 -g`.
    confusion.csv  a row a class as labelled, a column a class as predicted: pixels
    environment.json  what the scores may depend on beside recipe and weights: versions, device, threads, command
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from emaseg.files import write_text
from emaseg.metrics import Tally

IMAGES, CONFUSION, ENVIRONMENT = "images.csv", "confusion.csv", "environment.json"


def write_tables(folder: Path, tally: Tally, classes: Sequence[str]) -> None:
    """Write both tables into a folder. classes: K names.

    Raises:
        SystemFault: disk full, no permission.
    """
    images = (
        (image.name, image.pixels, *map(_cell, (image.miou, image.pixel_accuracy, *image.iou)))
        for image in tally.images
    )
    _write(folder / IMAGES, ("image", "pixels", "miou", "pixel_accuracy", *classes), images)
    rows = zip(classes, tally.confusion.counts.tolist(), strict=True)
    _write(folder / CONFUSION, ("labelled", *classes), ((name, *counts) for name, counts in rows))


def write_environment(folder: Path, content: Mapping[str, object]) -> None:
    """Write what `runs.folder.environment` says of the evaluation.

    Raises:
        SystemFault: disk full, no permission.
    """
    write_text(folder / ENVIRONMENT, json.dumps({"schema": 1, **content}, indent=2) + "\n")


def _write(path: Path, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heading, *rows])
    write_text(path, text.getvalue().encode("utf-8", "backslashreplace").decode())


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)
