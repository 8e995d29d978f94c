"""Recognising masks whose edges were smoothed: values or colours between those of two classes, along their border.

Room: data/files. Legend: H W mask height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Blend", "find_blend"]

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

_RANGE = 32  # between two neighbouring values, in one channel: class numbers are closer together ...
_CLOSE = 3  # ... but 0, 10 and 20 smoothed are 0 to 20: then there are
_MOSTLY = 2  # times as many values of edges as of areas
_KINDS = 3  # of values in between; a single one may be a class of its own, such as a contour
_REACHES = ((_RANGE, 0), (_CLOSE, _MOSTLY))
_PIXELS = 1 << 18  # that are looked at together: 30 MB, whatever the mask's size
_CORE = 0.1  # of a value's pixels that lie inside an area of it, at most


@dataclass(frozen=True, slots=True)
class Blend:
    """pixels: how many lie in between, of `total`; values: what they hold."""

    pixels: int
    total: int
    values: tuple[int, ...]

    @property
    def share(self) -> float:
        return self.pixels / self.total


def find_blend(values: npt.NDArray[Any], *, coloured: bool = False) -> Blend | None:
    """The smooth edges of a mask, (H, W) numbers or colours 0xRRGGBB; None where it has none.

    A value belongs to smooth edges when hardly a pixel of it is surrounded by its own kind and most lie strictly
    between the lowest and the highest of their neighbours. Thin classes do not: they have no such pair of neighbours.
    """
    kinds, counts = _counted(values)
    if len(kinds) < _KINDS + 2:
        return None
    core, amid = np.zeros(len(kinds)), {reach: np.zeros(len(kinds)) for reach, _ in _REACHES}
    for window, inner in _bands(values):
        found, inverse = np.unique(window[inner], return_inverse=True)
        place, inverse = np.searchsorted(kinds, found), inverse.ravel()
        channels = [window >> 16, window >> 8 & 255, window & 255] if coloured else [window]
        alone, most, outside = (part[inner].ravel() for part in _compared(channels))
        core[place] += np.bincount(inverse, weights=~alone, minlength=len(found))
        for reach, sums in amid.items():
            sums[place] += np.bincount(inverse, weights=(most >= reach) & ~outside, minlength=len(found))
    for reach, times in _REACHES:
        smooth = (core < _CORE * counts) & (2 * amid[reach] >= counts)
        if smooth.sum() >= max(_KINDS, times * (~smooth).sum()):
            return Blend(int(counts[smooth].sum()), values.size, tuple(kinds[smooth].tolist()))
    return None


def _bands(values: npt.NDArray[Any]) -> Iterator[tuple[Int64, slice]]:
    """Bands of rows, each with the rows above and below it, and which of its rows are the band's own."""
    height, width = values.shape
    rows = max(1, _PIXELS // max(1, width))
    for top in range(0, height, rows):
        start, end = max(0, top - 1), min(height, top + rows)
        yield values[start : end + 1].astype(np.int64), slice(top - start, end - start)


def _counted(values: npt.NDArray[Any]) -> tuple[Int64, Int64]:
    """The values that there are, sorted, and how many pixels hold each."""
    kinds, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    waiting: list[tuple[Int64, Int64]] = []
    for window, inner in _bands(values):
        waiting.append(np.unique(window[inner], return_counts=True))
        if sum(len(found) for found, _ in waiting) > len(kinds) + _PIXELS:  # of a photograph nearly all differ
            kinds, counts = _merged([(kinds, counts), *waiting])
            waiting = []
    return _merged([(kinds, counts), *waiting])


def _merged(parts: Sequence[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    """Several sorted lists of values with their counts as one."""
    kinds, inverse = np.unique(np.concatenate([found for found, _ in parts]), return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=np.concatenate([number for _, number in parts]), minlength=len(kinds))
    return kinds, sums.astype(np.int64)


def _compared(channels: Sequence[Int64]) -> tuple[Bool, Int64, Bool]:
    """Of each pixel: whether a neighbour differs, how far its neighbours reach around it, whether it lies outside them."""
    shape = channels[0].shape
    alone, most, outside = np.zeros(shape, bool), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for channel in channels:
        low, high = _around(channel, np.minimum), _around(channel, np.maximum)
        alone |= low != high
        np.maximum(most, np.where((low < channel) & (channel < high), high - low, 0), out=most)
        outside |= (channel < low) | (channel > high)
    return alone, most, outside


def _around(values: npt.NDArray[Any], pick: np.ufunc) -> npt.NDArray[Any]:
    """The lowest or highest value of each 3 x 3 neighbourhood."""
    rows = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    tall = pick(pick(rows[:-2], rows[1:-1]), rows[2:])
    columns = np.pad(tall, ((0, 0), (1, 1)), mode="edge")
    wide: npt.NDArray[Any] = pick(pick(columns[:, :-2], columns[:, 1:-1]), columns[:, 2:])
    return wide
