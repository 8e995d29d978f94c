"""Drawing COCO's annotations: polygons and run lengths, pixel for pixel as COCO's own tools draw them.

Room: data/sets. Legend: H W image height and width, N corners of a polygon, R runs.

A segmentation is a list of polygons, each a flat list [x0, y0, x1, y1, ...], whose union is meant; or a mapping with
"size" [H, W] and "counts": lengths of runs of zeros and ones in turn, column by column, as a list or packed as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

_GRID = 5  # a polygon's edges are followed on a grid this many times finer than the pixels
_LONGEST = 1_600_000  # pixels along an outline: beyond it memory is for something else


def paint(label: npt.NDArray[Any], segmentation: object, value: int) -> None:
    """Set the pixels of a segmentation in `label` (H, W) to `value`.

    Raises:
        ValueError: the segmentation is malformed, or of another size; the text says how.
    """
    height, width = label.shape
    match segmentation:
        case Mapping():
            label[_run_mask(segmentation, height, width)] = value
        case list():
            for polygon in segmentation:
                left, mask = polygon_mask(polygon, height, width)
                label[:, left : left + mask.shape[1]][mask] = value
        case _:
            raise ValueError("a segmentation that is neither polygons nor run lengths")


# ---------------------------------------------------------------------------------------------------- polygons
def polygon_mask(polygon: Sequence[float], height: int, width: int) -> tuple[int, Bool]:
    """The pixels inside a polygon: the first column of a strip, and the strip's mask (H, columns).

    COCO's rule: corners are rounded to a grid of a fifth of a pixel and joined by digital lines, whose steps from one
    grid column to the next are seen at the middle of each pixel column; the first pixel at or below a step changes
    from outside to inside or back. Corners beyond the image are allowed; less than three enclose nothing.

    Raises:
        ValueError: not a list of numbers in pairs, or an outline that is endless.
    """
    try:
        corners = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon that is not a list of numbers") from None
    if corners.ndim != 1 or len(corners) % 2 or not (np.abs(corners) < 1e8).all():
        raise ValueError("a polygon that is not a flat list of numbers in pairs")
    if len(corners) < 6:
        return 0, np.zeros((height, 0), np.bool_)
    points = corners.reshape(-1, 2)
    length = float(np.abs(points - np.roll(points, -1, axis=0)).max(axis=1).sum())
    if max(length, len(points)) > _LONGEST:
        raise ValueError(f"an outline {length:,.0f} pixels long, far more than an image of {height} x {width} needs")
    u, v = _outline(np.trunc(corners.reshape(-1, 2) * _GRID + 0.5).astype(np.int64))
    step = np.flatnonzero(u[1:] != u[:-1])
    column = np.minimum(u[step], u[step + 1])  # steps from this grid column to the next
    row = np.minimum(v[step], v[step + 1])
    middle = _GRID // 2
    seen = (column % _GRID == middle) & (column >= 0) & (column < width * _GRID)
    x = (column[seen] - middle) // _GRID
    y = np.clip(-((middle - row[seen]) // _GRID), 0, height)  # rounded up
    if not len(x):
        return 0, np.zeros((height, 0), np.bool_)
    left, columns = int(x.min()), int(x.max() - x.min()) + 1
    changes = np.bincount((x - left) * height + y, minlength=columns * height + 1)[: columns * height]
    inside = np.cumsum(changes) % 2 == 1  # down each column in turn; every column is left on the outside
    return left, inside.reshape(columns, height).T


def _outline(corners: Int64) -> tuple[Int64, Int64]:
    """The grid points of a closed polygon (N, 2) in order, both ends of every edge included: u across, v down."""
    start, end = corners, np.roll(corners, -1, axis=0)
    across, down = np.abs(end - start).T
    steep = down > across
    backwards = np.where(steep, start[:, 1] > end[:, 1], start[:, 0] > end[:, 0])
    low = np.where(backwards[:, None], end, start)
    high = np.where(backwards[:, None], start, end)
    length = np.maximum(across, down)
    rise = np.where(steep, high[:, 0] - low[:, 0], high[:, 1] - low[:, 1])
    slope = rise / np.maximum(length, 1)
    edge = np.repeat(np.arange(len(corners)), length + 1)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    along = np.where(backwards[edge], length[edge] - along, along)
    first = np.where(steep, low[:, 1], low[:, 0])[edge] + along
    base = np.where(steep, low[:, 0], low[:, 1])[edge]
    second = np.trunc(base + slope[edge] * along + 0.5).astype(np.int64)
    return np.where(steep[edge], second, first), np.where(steep[edge], first, second)


# ------------------------------------------------------------------------------------------------- run lengths
def _run_mask(segmentation: Mapping[Any, Any], height: int, width: int) -> Bool:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise ValueError(f"run lengths for an image of size {size}, but it is {height} x {width} (height x width)")
    if isinstance(counts, str | bytes):
        runs = unpacked_counts(counts)
    else:
        try:
            runs = np.asarray(counts, dtype=np.int64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("run lengths that are not numbers") from None
    if runs.ndim != 1 or (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths that do not add up to the {height * width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def unpacked_counts(text: str | bytes) -> Int64:
    """(R,) run lengths from their packed form.

    Each character less 48 carries five bits of a number, the lowest first; bit 5 says that more follow, and bit 4 of
    the last character is the sign. From the fourth number on, what is stored is the difference to the number two
    places before.

    Raises:
        ValueError: characters outside the alphabet, a number without end, or one that is too long.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise ValueError("packed run lengths with strange characters") from None
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("packed run lengths with strange characters, or cut off")
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    length = last - first + 1
    if length.max() > 10:
        raise ValueError("packed run lengths with an endless number")
    place = np.arange(len(codes)) - np.repeat(first, length)
    numbers = np.add.reduceat((codes & 31) << (5 * place), first)
    numbers -= np.where(codes[last] & 16, np.int64(1) << (5 * length), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
