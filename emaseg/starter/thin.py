"""How thin the things in the masks are: what is two pixels wide is gone when the image is halved.

Room: starter. Legend: H W mask size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from emaseg.data.checks import spread
from emaseg.data.files.mask_values import mask_values, packed
from emaseg.starter.values import Classes

LEAST = 2.0  # pixels that the thinnest class keeps where images are shrunk
_READ = 24  # masks that are measured
_FEWEST = 20  # pixels that must be there before a class is judged


def thinnest(masks: Sequence[Path], classes: Classes, coloured: bool) -> tuple[str, float] | None:
    """The thinnest class but the largest one, and its mean width in pixels; None where nothing can be measured.

    A line of width w has 2 pixel borders for every w pixels. So the width is twice the pixels by the borders (in rows
    and in columns) to other classes: exact for straight lines, up to 1.4 times too small for oblique ones, and a third
    of the diameter for round things, which shrinking harms as much.
    """
    keys = [packed(colour) for colour in classes.palette] if coloured else classes.values or range(len(classes.names))
    names = dict(zip(keys, classes.names, strict=True))
    pixels, borders = Counter[int](), Counter[int]()
    for place in spread(len(masks), _READ):
        _measure(masks[place], pixels, borders)
    known = {value: count for value, count in pixels.items() if value in names and count >= _FEWEST}
    widths = {value: 2 * count / borders[value] for value, count in known.items() if borders[value]}
    widths.pop(max(known, key=lambda value: known[value], default=-1), None)
    if not widths:
        return None
    value = min(widths, key=lambda one: widths[one])
    return names[value], widths[value]


def _measure(path: Path, pixels: Counter[int], borders: Counter[int]) -> None:
    """Add the pixels of each value in a mask, and its borders to other values."""
    values = mask_values(path, path).values
    pixels.update(_counts(values))
    for one, other in ((values[:, 1:], values[:, :-1]), (values[1:], values[:-1])):
        differ = one != other
        borders.update(_counts(one[differ]))
        borders.update(_counts(other[differ]))


def _counts(values: np.ndarray) -> Mapping[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
