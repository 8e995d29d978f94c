"""What the images of a folder are where they are not 8-bit RGB: channels, range, mean and standard deviation.

Room: starter. Legend: C channels, N pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emaseg.data.checks import spread
from emaseg.data.files.bands import Bands, Stored, read_pixels, stored_kind, stored_pixels
from emaseg.data.files.images import ARRAY, opened, read_image
from emaseg.data.files.tiff import nodata_of
from emaseg.errors import DataError
from emaseg.recipe.data import Range
from emaseg.words import counted

Values = npt.NDArray[np.generic]  # (N, C), as they are stored

_READ = 24  # images that are measured
_PIXELS = 20_000  # of each of them
_SHARE = 0.001  # of the pixels: fewer are no matter to a range
_FEW = 16  # different values of a channel: all of them mean something


@dataclass(frozen=True, slots=True)
class Measured:
    """bands: how the images are read. mean, std: of each channel, on 0..255. images: that were read.

    nodata: values that mark pixels without data, which neither the range nor mean and std take in.
    """

    bands: Bands
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    nodata: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """For people: what was found."""
        count = self.bands.channels
        pairs = ", ".join(f"{low:g} to {high:g}" for low, high in self.bands.ranges)
        scale = f"; values from {pairs} become 0 to 255 (data.range)" if pairs else ""
        left = ", ".join(f"{value:g}" for value in self.nodata)
        left = f", without pixels of {left}, taken to mark those without data" if left else ""
        return f"images have {counted(count, 'channel')}{scale}; measured on {self.images} images{left}"


def measured(images: Sequence[Path]) -> Measured | None:
    """What the images are; None where the first of them is read as 8-bit RGB, or not at all, which its reader explains.

    Raises:
        DataError: they differ in channels or type, or one cannot be read. SystemFault: an optional package is missing.
    """
    if not images or (kind := _needs_bands(images[0])) is None:
        return None
    some = [images[index] for index in spread(len(images), _READ)]
    kinds = {path: stored_kind(path) for path in some}
    odd = next((path for path in some if kinds[path] != kind), None)
    if odd is not None:
        raise DataError(
            f"{odd}: {_said(kinds[odd])}, but {images[0]}: {_said(kind)}",
            "a network reads images of one kind: put them into folders of their own, or convert them",
        )
    bands, nodata = Bands(kind.channels), tuple[float, ...]()
    kept = np.ones((1, 1), np.bool_)
    if kind.dtype != "uint8":
        values = np.concatenate([_some_pixels(stored_pixels(path, kind.channels)) for path in some])
        kept, nodata = _with_data(values, frozenset(mark for path in some if (mark := _tagged(path)) is not None))
        bands = Bands(kind.channels, _ranges(values, kept))
    pixels = np.concatenate([_some_pixels(read_pixels(path, bands=bands)) for path in some]).astype(np.float64)
    pixels = pixels[kept.all(axis=1)] if kept.all(axis=1).any() and len(kept) == len(pixels) else pixels
    mean, std = pixels.mean(axis=0).round(2), pixels.std(axis=0).clip(min=1).round(2)
    return Measured(bands, tuple(mean.tolist()), tuple(std.tolist()), len(some), nodata)


def _tagged(path: Path) -> float | None:
    """The mark of pixels without data that a file states."""
    with opened(path, str(path)) as file:
        return nodata_of(file)


def _needs_bands(path: Path) -> Stored | None:
    if not path.name.lower().endswith(ARRAY):
        try:
            read_image(path)
            return None
        except DataError:
            pass
    try:
        return stored_kind(path)
    except DataError:
        return None


def _said(kind: Stored) -> str:
    return f"{counted(kind.channels, 'channel')} of {kind.dtype}"


def _some_pixels(image: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(N, C): some pixels of an image, evenly spread."""
    flat = image.reshape(-1, image.shape[2])
    return flat[:: max(1, len(flat) // _PIXELS)]


def _with_data(values: Values, tagged: frozenset[float]) -> tuple[npt.NDArray[np.bool_], tuple[float, ...]]:
    """(N, C): whether a value is one, and not the mark of a pixel without data; and these marks.

    A mark is what a file states, or the highest or lowest value where it is farther from the next one than all others
    are from each other, as -9999 is from 0 to 0.5. Of whole numbers all channels are looked at together.
    """
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DataError("the images hold NaN or infinite values", "give pixels without data a number first")
    kept = np.ones(numbers.shape, np.bool_)
    marks = set[float]()
    for mark in tagged:
        there = np.isclose(numbers, mark, rtol=1e-6, atol=0)
        kept &= ~there
        marks |= {mark} if there.any() else set()
    columns = range(numbers.shape[1]) if values.dtype.kind == "f" else (slice(None),)
    for column in columns:
        for end in (-1, 0):
            found = np.unique(numbers[:, column][kept[:, column]])
            rest = np.delete(found, end)
            if len(rest) > _FEW and np.abs(found[end] - rest[end]) > rest[-1] - rest[0]:
                there = numbers[:, column] == found[end]
                left = kept[:, column] & ~there
                # A few pixels are hot, or dead; a channel that holds nothing else is none without data.
                if there.mean() > _SHARE and left.reshape(len(left), -1).any(axis=0).all():
                    kept[:, column] = left
                    marks.add(float(found[end]))
    return kept, tuple(sorted(marks))


def _ranges(values: Values, kept: npt.NDArray[np.bool_]) -> tuple[Range, ...]:
    """One pair for whole numbers, from 0 where none is negative; of floats outside of 0..1 one for each channel.

    values: (N, C). kept: (N, C), those to look at. What sensors give has a few values far off: the 99.9th percentile is
    white, and below 0 the 0.1st is black.
    """
    numbers = values.astype(np.float64)
    if not kept.any(axis=0).all():
        kept = np.ones_like(kept)
    inside = numbers[kept]
    if values.dtype.kind != "f":
        return (_pair(inside),)
    if inside.min() >= 0 and inside.max() <= 1:
        return ((0.0, 1.0),)
    return tuple(_pair(numbers[kept[:, c], c]) for c in range(numbers.shape[1]))


def _pair(values: npt.NDArray[np.float64]) -> Range:
    """Two digits, downwards and upwards."""
    low, high = (float(value) for value in np.percentile(values, (0.1, 99.9)))
    low = 0.0 if low >= 0 else _rounded(low, math.floor)
    high = _rounded(high, math.ceil)
    return (low, high) if high > low else (low, low + 1)


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{towards(value / unit) * unit:.6g}")
