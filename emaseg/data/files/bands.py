"""Reading an image as a recipe declares its channels: (H, W, C) on 0..255, uint8 or float32.

Room: data/files. Legend: H W image height and width, C channels.

`Bands` says what backbone.in_channels and data.range declare; None stands for 8-bit RGB, which is read_image's.
What a file becomes with Bands:
  * Its channels are taken as they are: alpha is the last of two or four, and nothing is composited on white.
  * The file must have as many as declared. Where three are, a grey file gives three equal ones, as on the RGB road.
  * With data.range the values are mapped, low to 0 and high to 255, cut off there and kept as float32. mean and std are
    on 0..255 in any case, so that numbers for RGB keep their meaning.
  * The values of a PGM of 16 bits, with a largest value over 255, are those in the file; one of 8 bits is 0..255.
  * Without it only 8-bit files are read: of others nothing says which values are black and white.
  * Orientation is applied, and of several frames the first is read; .npy files: arrays.py; many bands: tiff_bands.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.data.dataset import Pixels
from emaseg.data.files import arrays, png, tiff
from emaseg.data.files.images import ARRAY, check_pixels, decode, image_size, name_of, opened, read_image, translated
from emaseg.data.files.opencv import opencv
from emaseg.data.files.tiff_bands import read_tiff, tiff_size
from emaseg.errors import DataError, SystemFault
from emaseg.extras import install
from emaseg.recipe.channels import RGB, is_rgb8, ranges
from emaseg.recipe.schema import Recipe
from emaseg.words import counted

Array = npt.NDArray[Any]

WHITE = 255.0
_PNG_COLOUR, _PNG_ALPHA = 2, 6  # what a pixel is
_PGM_HEADER = 1 << 12  # bytes in which its numbers are looked for
_PGM = re.compile(rb"P[25]" + rb"\s+(?:#[^\n]*\n\s*)*\d+" * 2 + rb"\s+(?:#[^\n]*\n\s*)*(\d+)\s")  # its largest value
_AGAIN = "copy or download it again"


@dataclass(frozen=True, slots=True)
class Bands:
    """What a recipe declares of its images. channels: C. ranges: data.range, one pair or C; () = 8-bit files."""

    channels: int
    ranges: tuple[tuple[float, float], ...] = ()

    @property
    def floats(self) -> bool:
        """Whether its images are float32."""
        return bool(self.ranges)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file holds. channels: C. dtype: of its values, such as uint16."""

    channels: int
    dtype: str


def bands_of(recipe: Recipe) -> Bands | None:
    """How the images of a recipe are read; None = as 8-bit RGB."""
    return None if is_rgb8(recipe) else Bands(recipe.backbone.in_channels, ranges(recipe.data))


def read_pixels(source: Path | bytes | BinaryIO, name: str | None = None, bands: Bands | None = None) -> Pixels:
    """An image as the recipe declares it, (H, W, C) on 0..255: writable and contiguous.

    Args:
        source, name: as read_image has them.
        bands: None = 8-bit RGB.

    Raises:
        DataError: as read_image; other channels than declared; values that no range is declared for, or not finite.
        SystemFault: an optional package is missing.
    """
    name = name or name_of(source)
    if bands is None and not _is_array(source):
        return read_image(source, name)
    bands = bands or Bands(RGB)
    return scaled(_fitting(_stored(source, name, bands.channels), name, bands.channels), bands, name)


def pixels_size(source: Path | bytes, name: str | None = None, bands: Bands | None = None) -> tuple[int, int]:
    """(H, W) of what read_pixels gives, from the header wherever the format allows.

    Raises:
        DataError: missing, no image, or its header is damaged.
    """
    name = name or name_of(source)
    if bands is None and not _is_array(source):
        return image_size(source, name)
    with opened(source, name) as file, translated(name, file):
        start = file.read(8)
        file.seek(0)
        if start.startswith(arrays.MAGIC):
            return arrays.array_size(file, name, RGB if bands is None else bands.channels)
        if start.startswith(tiff.STARTS) and not tiff.is_plain(file):
            return tiff_size(file, name)
    return image_size(source, name)


def stored_kind(path: Path) -> Stored:
    """What an image file holds, read whole: its channels as they are in the file, and the type of its values.

    Raises:
        DataError, SystemFault: as read_pixels.
    """
    with opened(path, str(path)) as file, translated(str(path), file):
        if file.read(8).startswith(arrays.MAGIC):
            file.seek(0)
            channels, dtype = arrays.array_channels(file, str(path))
            return Stored(channels, dtype.name)
    array = _stored(path, str(path), 1)
    return Stored(array.shape[2], array.dtype.name)


def stored_pixels(path: Path, channels: int) -> Array:
    """(H, W, C) of an image file as it is stored, in its own values; raises as read_pixels.

    channels: that it is known to have.
    """
    return _fitting(_stored(path, str(path), channels), str(path), channels)


def from_array(array: Array, bands: Bands, what: str) -> Pixels:
    """(H, W, C) on 0..255 of an array in memory, (H, W, C) or for one channel (H, W), in the values of the files.

    Raises:
        DataError: other channels or values than declared.
    """
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "buif":
        raise DataError(f"{what} and type {array.dtype} is no image", f"give (H, W, {bands.channels})")
    return scaled(_fitting(array, what, bands.channels), bands, what)


def scaled(array: Array, bands: Bands, name: str) -> Pixels:
    """(H, W, C) of a file's values on 0..255, in memory of its own.

    Raises:
        DataError: more than 8 bits and no range, or values that are not finite.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(WHITE)
    if not bands.ranges:
        if array.dtype == np.uint8:
            return np.array(array, order="C")
        low, high = array.min(), array.max()
        raise DataError(
            f"{name}: values of type {array.dtype} (here {low:g} to {high:g}), and nothing says which are black and white",
            "declare them for all images alike: data.range = [[LOW, HIGH]], such as "
            f"{'[[0, 1]]' if low >= 0 and high <= 1 else '[[0, 10000]] or [[0, 65535]]'}",
        )
    low, high = (np.array(side, np.float32) for side in zip(*bands.ranges, strict=True))
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(
            f"{name}: {int((~np.isfinite(values)).sum()):,} values are NaN or infinite",
            "give pixels without data a number, for example with numpy.nan_to_num",
        )
    values -= low
    values *= np.float32(WHITE) / (high - low)
    return np.ascontiguousarray(np.clip(values, 0, np.float32(WHITE), out=values))


def _fitting(array: Array, name: str, channels: int) -> Array:
    """(H, W, C) with the declared channels.

    Raises:
        DataError: the file has others.
    """
    count = array.shape[2]
    if count == channels:
        return array
    if count == 1 and channels == RGB:
        return np.repeat(array, RGB, axis=2)
    raise DataError(
        f"{name}: {counted(count, 'channel')}, but backbone.in_channels is {channels}",
        f"declare what the images have: backbone.in_channels = {count}, with as many values in mean and std; or write "
        "the channels to use into files of their own",
    )


# ------------------------------------------------------------------------------------------------------- the files
def _is_array(source: Path | bytes | BinaryIO) -> bool:
    """Whether a file is .npy: by its ending, or of bytes by how they begin."""
    if isinstance(source, bytes):
        return source.startswith(arrays.MAGIC)
    return isinstance(source, str | Path) and str(source).lower().endswith(ARRAY)


def _stored(source: Path | bytes | BinaryIO, name: str, channels: int) -> Array:
    """(H, W, C) of a file as it is stored; channels: those declared, where the file leaves a choice."""
    with opened(source, name) as file, translated(name, file):
        start = file.read(26)
        file.seek(0)
        if start.startswith(arrays.MAGIC):
            return arrays.read_array(file, name, channels)
        if start.startswith(tiff.STARTS):  # which may be larger than what is read whole
            if not tiff.is_plain(file) or (channels > 1 and tiff.has_more_pages(file)):
                return read_tiff(file, name, channels)
            if isinstance(source, str | Path):
                return stored_values(decode(source, name))
            file.seek(0)
        content = file.read()
        if start.startswith(png.START) and start[24:25] == b"\x10" and start[25:26] != b"\0":
            return _png16(content, name)
        return _pgm_values(stored_values(decode(content, name)), content)


def _pgm_values(array: Array, content: bytes) -> Array:
    """What a PGM of 16 bits holds: Pillow stretches its values to 0..65535. array: of any file."""
    header = _PGM.match(content[:_PGM_HEADER])
    if header is None or array.dtype != np.uint16:
        return array
    return np.round(array * (int(header[1]) / 65535)).astype(np.uint16)


def pgm_top(path: Path) -> int:
    """The largest value that a PGM of 16 bits says it can hold; 0 = it is another file, or cannot be read."""
    try:
        with path.open("rb") as file:
            header = _PGM.match(file.read(_PGM_HEADER))
    except OSError:  # told where it is read
        return 0
    top = 0 if header is None else int(header[1])
    return top if top > WHITE else 0


def stored_values(picture: Image.Image) -> Array:
    """(H, W, C) of a decoded picture: the colours of a palette, everything else as it is stored."""
    if picture.mode == "P":
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    elif picture.mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB")
    array = np.asarray(picture)
    if picture.mode == "I" and picture.format != "TIFF":
        array = array.astype(np.uint16)  # Pillow scales what a PGM holds to 0..65535
    return array if array.ndim == 3 else array[..., None]


def _png16(content: bytes, name: str) -> Array:
    """(H, W, C) uint16 of a PNG in colours; Pillow would keep the high bytes alone.

    Raises:
        DataError: damaged. SystemFault: OpenCV is not installed.
    """
    cv2 = opencv()
    if cv2 is None:
        raise SystemFault(f"{name}: PNG colours of 16 bits need OpenCV, not installed here", install("opencv"))
    parts = png.read_parts(content)
    if isinstance(parts, str) or not png.holds_rows(content, parts, more=False):
        raise DataError(
            f"{name}: a damaged image ({parts if isinstance(parts, str) else 'its pixels end early'})", _AGAIN
        )
    check_pixels(parts.size[::-1], name)
    if parts.kind not in (_PNG_COLOUR, _PNG_ALPHA):
        raise DataError(f"{name}: a PNG of 16-bit grey with alpha", "save it as grey, or as TIFF")
    array: Array | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.ndim != 3:
        raise DataError(f"{name}: a damaged image", _AGAIN)
    return array[..., [2, 1, 0, 3][: array.shape[2]]]  # OpenCV has blue first
