"""What a mask file stores: class numbers or colours. The one reader of masks, for training, checks and `emaseg init`.

Room: data/files. Legend: H W image height and width.

    grey, 1-bit, 16-bit, palette   the stored number (of a palette mask the index, never its colour)
    grey TIFF whose 0 is white     the stored number too, however it looks; of 1 bit, as fax machines write, 1 is white
    32-bit integer or float TIFF   the number, where all of them are whole
    RGB                            the colour; three equal channels are also a number
    16-bit colours                 their upper bytes; where these are all 0 and the lower ones not, it holds numbers, and is refused
    transparent pixels             0 or black, where nothing opaque is; half transparent ones are refused
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.data.dataset import LabelError
from emaseg.data.files import png, tiff
from emaseg.data.files.images import INVERTED, decode, image_header, opened, translated
from emaseg.data.files.tiff_bands import read_tiff
from emaseg.errors import SystemFault

__all__ = ["MASK_VALUES", "Colour", "MaskValues", "mask_values", "packed", "palette_of", "unpacked"]

Colour = tuple[int, int, int]

MASK_VALUES = 65536  # numbers that a mask may hold: 0..65535
_SIXTEEN = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_REMEDY = "save it as an 8-bit grey or palette PNG whose values are the classes"


@dataclass(frozen=True, slots=True, eq=False)
class MaskValues:
    """values: (H, W) class numbers of an integer type, or with `coloured` uint32 colours 0xRRGGBB.

    palette: the colours of a palette mask, () of others. clear: whether there were transparent pixels, read as 0.
    one_bit: a file that holds 0 and 1 only, whatever its white stands for.
    """

    values: npt.NDArray[Any]
    coloured: bool = False
    palette: tuple[Colour, ...] = ()
    clear: bool = False
    one_bit: bool = False

    @property
    def equal(self) -> bool:
        """Whether all colours have three equal channels: class numbers saved as RGB, perhaps."""
        low = self.values & 255
        return self.coloured and bool((self.values == low * 0x010101).all())

    def by_colour(self) -> npt.NDArray[np.uint32]:
        """(H, W) colours 0xRRGGBB, of a palette mask those of its palette; of a grey one three equal channels.

        An index beyond the palette has no colour and becomes black.
        """
        if self.coloured:
            return self.values.astype(np.uint32, copy=False)
        table = np.zeros(MASK_VALUES, np.uint32)
        colours = self.palette or tuple((value, value, value) for value in range(256))
        table[: len(colours)] = [packed(colour) for colour in colours]
        return np.asarray(table[self.values])


def mask_values(source: Path | bytes, path: Path) -> MaskValues:
    """What a mask picture stores. path: what messages call it.

    Raises:
        DataError: missing, damaged, or of a kind that cannot hold classes.
    """
    try:
        picture = decode(source, str(path))
    except tiff.BandsError as error:
        raise LabelError(error.message, _REMEDY, "mask") from error
    if picture.format in ("JPEG", "MPO"):
        raise LabelError(
            f"{path}: a JPEG mask: its compression has changed the class values",
            "export the masks again as PNG",
            "mask",
        )
    if INVERTED in picture.info:
        return MaskValues(255 - np.asarray(picture))
    if picture.mode in ("L", "P"):
        return MaskValues(np.asarray(picture), palette=palette_of(picture))
    if picture.mode == "1":
        return MaskValues(np.asarray(picture).astype(np.uint8), one_bit=True)
    if picture.mode in _SIXTEEN:
        return MaskValues(np.asarray(picture))
    if picture.mode == "F":
        return MaskValues(_whole_numbers(np.asarray(picture), path))
    if picture.mode in ("RGB", "RGBA", "LA"):
        _check_deep(source, picture, path)
    if picture.mode in ("RGB", "RGBA"):
        return _coloured(picture, path)
    if picture.mode in ("LA", "PA"):
        values, clear = _opaque(np.asarray(picture.getchannel(0)), picture, path)
        return MaskValues(values, clear=clear)
    raise _no_numbers(picture.mode, path)


def palette_of(picture: Image.Image) -> tuple[Colour, ...]:
    """The colours of a palette picture, which need not be decoded; () of another."""
    flat = picture.getpalette() if picture.mode == "P" else None
    return tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True)) if flat else ()


def packed(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def unpacked(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _no_numbers(mode: str, path: Path) -> LabelError:
    return LabelError(f"{path}: a mask of mode {mode}; its pixels are not class numbers", _REMEDY, "mask")


def _check_deep(source: Path | bytes, picture: Image.Image, path: Path) -> None:
    """Stop at colours of 16 bits whose upper bytes, which are the ones that Pillow reads, are all 0, but not the lower.

    Raises:
        LabelError: so it is, and every pixel would be of the first class.
    """
    colours = picture.getbands()[: 3 if picture.mode != "LA" else 1]
    if any(picture.getchannel(band).getextrema()[1] for band in colours) or image_header(source, str(path)).bits != 16:
        return
    if _is_black(source, picture, path, len(colours)):
        return
    raise LabelError(
        f"{path}: a mask of several channels of 16 bits, all of whose values are below 256, so that their upper bytes, the "
        "ones that are read, say nothing",
        _REMEDY,
        "mask",
    )


def _is_black(source: Path | bytes, picture: Image.Image, path: Path, colours: int) -> bool:
    """Whether the lower bytes of a file of 16 bits are 0 too: an empty mask. False where that cannot be seen."""
    with opened(source, str(path)) as file, translated(str(path)):
        if picture.format == "PNG":
            content = file.read()
            parts = png.read_parts(content)
            return not isinstance(parts, str) and png.is_black(content, parts)
        try:
            return not read_tiff(file, str(path), colours)[..., :colours].any()
        except SystemFault:  # an optional package is missing
            return False


def _whole_numbers(raw: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int64]:
    """Floating-point samples that are all whole numbers of 16 bits, as integers."""
    wrong = ~(np.isfinite(raw) & (raw == np.round(raw)) & (raw >= 0) & (raw < MASK_VALUES))
    if wrong.any():
        raise LabelError(
            f"{path}: a mask of mode F (floating-point samples), and {int(wrong.sum()):,} of its pixels are not whole "
            f"numbers from 0 to {MASK_VALUES - 1}, such as {float(raw[wrong][0]):g}",
            _REMEDY,
            "mask",
        )
    return raw.astype(np.int64)


def _coloured(picture: Image.Image, path: Path) -> MaskValues:
    rgb = np.asarray(picture)[..., :3].astype(np.uint32)
    codes = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    if picture.mode == "RGB":
        return MaskValues(codes, coloured=True)
    codes, clear = _opaque(codes, picture, path)
    return MaskValues(codes, coloured=True, clear=clear)


def _opaque(values: npt.NDArray[Any], picture: Image.Image, path: Path) -> tuple[npt.NDArray[Any], bool]:
    """The values with 0 (black) where a pixel is transparent, whatever colour hides there, and whether one is.

    Raises:
        LabelError: pixels are half transparent, or opaque ones are black too, so that two things would be one.
    """
    alpha = np.asarray(picture.getchannel("A"))
    clear = alpha == 0
    half = int(((alpha > 0) & (alpha < 255)).sum())
    if half and picture.mode != "RGBA":
        raise _no_numbers(picture.mode, path)
    if half:
        raise LabelError(
            f"{path}: an RGB mask with {half:,} half transparent pixels, as smooth edges are; their class is unclear",
            "save the mask without transparency and without smoothing (anti-aliasing)",
            "colours",
        )
    if not clear.any():
        return values, False
    if (values[~clear] == 0).any():
        raise LabelError(
            f"{path}: a mask with transparent pixels and with opaque black ones (0): which is the background is unclear",
            "save the mask without transparency",
            "colours",
        )
    return np.where(clear, values.dtype.type(0), values), True
