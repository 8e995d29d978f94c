"""Recognising masks whose edges were smoothed: values or colours between those of two classes, along their border.

Room: data/files. Legend: H W mask height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Blend", "find_blend"]

_RANGE = 32  # between two neighbouring values, in one channel: class numbers are closer together ...
_CLOSE = 3  # ... but 0, 10 and 20 smoothed are 0 to 20: then there are
_MOSTLY = 2  # times as many values of edges as of areas
_KINDS = 3  # of values in between; a single one may be a class of its own, such as a contour
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
    wide = values.astype(np.int64)
    channels = [wide >> 16, wide >> 8 & 255, wide & 255] if coloured else [wide]
    kinds, inverse, counts = np.unique(wide, return_inverse=True, return_counts=True)
    if len(kinds) < _KINDS + 2:
        return None
    alone, outside, most = np.zeros(wide.shape, bool), np.zeros(wide.shape, bool), np.zeros(wide.shape, np.int64)
    for channel in channels:
        low, high = _around(channel, np.minimum), _around(channel, np.maximum)
        alone |= low != high
        np.maximum(most, np.where((low < channel) & (channel < high), high - low, 0), out=most)
        outside |= (channel < low) | (channel > high)
    inverse = inverse.ravel()
    core = np.bincount(inverse, weights=~alone.ravel(), minlength=len(kinds))
    for reach, times in ((_RANGE, 0), (_CLOSE, _MOSTLY)):
        between = ((most >= reach) & ~outside).ravel()
        amid = np.bincount(inverse, weights=between, minlength=len(kinds))
        smooth = (core < _CORE * counts) & (2 * amid >= counts)
        if smooth.sum() >= max(_KINDS, times * (~smooth).sum()):
            return Blend(int(counts[smooth].sum()), wide.size, tuple(kinds[smooth].tolist()))
    return None


def _around(values: npt.NDArray[Any], pick: np.ufunc) -> npt.NDArray[Any]:
    """The lowest or highest value of each 3 x 3 neighbourhood."""
    rows = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    tall = pick(pick(rows[:-2], rows[1:-1]), rows[2:])
    columns = np.pad(tall, ((0, 0), (1, 1)), mode="edge")
    wide: npt.NDArray[Any] = pick(pick(columns[:, :-2], columns[:, 1:-1]), columns[:, 2:])
    return wide
