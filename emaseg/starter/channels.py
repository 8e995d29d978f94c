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
from emaseg.data.files.images import ARRAY, read_image
from emaseg.errors import DataError
from emaseg.recipe.data import Range

_READ = 24  # images that are measured
_PIXELS = 20_000  # of each of them


@dataclass(frozen=True, slots=True)
class Measured:
    """bands: how the images are read. mean, std: of each channel, on 0..255. images: that were read."""

    bands: Bands
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int

    @property
    def words(self) -> str:
        """For people: what was found."""
        count = self.bands.channels
        pairs = ", ".join(f"{low:g} to {high:g}" for low, high in self.bands.ranges)
        scale = f"; values from {pairs} become 0 to 255 (data.range)" if pairs else ""
        return f"images have {count} channel{'' if count == 1 else 's'}{scale}; measured on {self.images} images"


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
    values = [_some_pixels(stored_pixels(path, kind.channels)) for path in some]
    bands = Bands(kind.channels, () if kind.dtype == "uint8" else _ranges(np.concatenate(values)))
    pixels = np.concatenate([_some_pixels(read_pixels(path, bands=bands)) for path in some]).astype(np.float64)
    mean, std = pixels.mean(axis=0).round(2), pixels.std(axis=0).clip(min=1).round(2)
    return Measured(bands, tuple(mean.tolist()), tuple(std.tolist()), len(some))


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
    return f"{kind.channels} channel{'' if kind.channels == 1 else 's'} of {kind.dtype}"


def _some_pixels(image: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(N, C): some pixels of an image, evenly spread."""
    flat = image.reshape(-1, image.shape[2])
    return flat[:: max(1, len(flat) // _PIXELS)]


def _ranges(values: npt.NDArray[np.generic]) -> tuple[Range, ...]:
    """One pair for whole numbers, from 0 where none is negative; of floats outside of 0..1 one for each channel.

    values: (N, C). What sensors give has a few very large values: the 99.9th percentile is white.
    """
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DataError("the images hold NaN or infinite values", "give pixels without data a number first")
    if values.dtype.kind == "f" and numbers.min() >= 0 and numbers.max() <= 1:
        return ((0.0, 1.0),)
    columns = [numbers] if values.dtype.kind != "f" else [numbers[:, c] for c in range(numbers.shape[1])]
    return tuple(_pair(column) for column in columns)


def _pair(values: npt.NDArray[np.float64]) -> Range:
    """Two digits, downwards and upwards."""
    low, high = float(values.min()), float(np.percentile(values, 99.9))
    low = 0.0 if low >= 0 else _rounded(low, math.floor)
    high = _rounded(high, math.ceil)
    return (low, high) if high > low else (low, low + 1)


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{towards(value / unit) * unit:.6g}")
