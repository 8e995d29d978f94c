"""What a TIFF file holds by its first directory, for messages about those that have no defined RGB values.

Room: data/files.
"""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO, Literal

from PIL import TiffImagePlugin

from emaseg.errors import DataError

__all__ = [
    "STARTS",
    "BandsError",
    "check_bands",
    "check_fourth",
    "has_more_pages",
    "is_inverted",
    "is_plain",
    "nodata_of",
    "odd_samples",
    "promises_much",
]

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two have 64-bit places

_BITS, _PHOTOMETRIC, _BANDS, _EXTRA, _FORMAT, _NODATA = 258, 262, 277, 338, 339, 42113  # tags, the last one GDAL's
_PLANES = 284
_USED = (_BITS, _PHOTOMETRIC, _BANDS, _EXTRA, _FORMAT, _NODATA, _PLANES)  # of which values are decoded
_KINDS = {2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex"}
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # bands that a photometric interpretation has; others have one
_RGB = 2  # a photometric interpretation
_BIG = STARTS[2:]
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_FURTHER = {34665, 34853, 40965}  # tags that lead to a directory of EXIF's, which Pillow reads too
_MOST_ENTRIES, _MOST_TAGS = 1 << 16, 512 << 20  # of a directory; bytes of the values of all tags
_DEEP = ((16, 1), (32, 3))  # bits of a sample and its format, of one band
_ONE_BAND = "write the band to use into a file of its own, for example with `gdal_translate -b 1 in.tif out.tif`"
_THREE_BANDS = (
    "write three bands as red, green and blue into a file of their own, for example with "
    "`gdal_translate -b 1 -b 2 -b 3 in.tif out.tif`"
)
_SCALE = (
    "declare them: data.range = [[LOW, HIGH]], with backbone.in_channels for other bands than red, green and blue; or "
    "scale the values to 0..255 and save the image with 8 bits, all images alike, for example with "
    "`gdal_translate -ot Byte -scale LOW HIGH 0 255 in.tif out.tif`"
)


class BandsError(DataError):
    """A TIFF of bands or samples that are not read. The remedy is about images: masks have one of their own."""


def odd_samples(file: BinaryIO) -> tuple[str, str] | None:
    """(what it is, what to do) of a TIFF whose number or kind of samples is not read; None: these are not at fault."""
    tags = _tags(file)
    bands, bits, kind = _numbers(tags)
    if bands is None:
        return None
    if kind in _KINDS and (kind != 3 or bands > 1):
        what = f"a TIFF of {_of(bands)} with {bits}-bit {_KINDS[kind]} samples"
        remedy = f"{_SCALE}; {_THREE_BANDS}" if bands > 3 else _SCALE
        return f"{what}, and nothing says which values are black and white", remedy
    if bands > 4 or bands == 2 or (bands == 4 and _COLOURS.get(_first(tags, _PHOTOMETRIC, 1), 1) == 1):
        what = f"a TIFF of {_of(bands)} of {bits} bits"
        what = f"{what}; one band, or red, green and blue with or without transparency, can be read"
        return what, _declare_or_cut(bands)
    if bits not in (1, 2, 4, 8, 16):
        return f"a TIFF with samples of {bits} bits", _SCALE
    if bits == 16 and bands > 1 and _first(tags, _PLANES, 1) == 2:
        return f"a TIFF of {_of(bands)} of 16 bits, each stored in a plane of its own", _SCALE
    return None


def is_plain(file: BinaryIO) -> bool:
    """Whether Pillow gives a file's values as they are: one or three bands of 8 bits, or one of 16 bits or of floats.

    True, too, where its directory cannot be read: Pillow then says what is wrong with it. Of those with 64-bit places
    (BigTIFF) it knows one half.
    """
    bands, bits, kind = _numbers(_tags(file))
    file.seek(0)
    if bands is None:
        return file.read(4) not in _BIG
    return (bands in (1, 3) and bits in (1, 8) and kind == 1) or (bands == 1 and (bits, kind) in _DEEP)


def has_more_pages(file: BinaryIO) -> bool:
    """Whether another directory follows the first."""
    directory = _directory(file)
    file.seek(0)
    return directory is not None and bool(directory.next)


def promises_much(file: BinaryIO) -> bool:
    """Whether the tags of the first directory hold more than any picture needs: readers take all into memory."""
    file.seek(0)
    head, total, further = file.read(16), 0, set(_FURTHER)
    order: Literal["little", "big"] = "little" if head.startswith(b"II") else "big"
    big = head.startswith(_BIG)
    width, size = (8, 20) if big else (4, 12)  # of a place, of an entry
    places = [int.from_bytes(head[width : 2 * width], order)]
    for place in places:  # EXIF's are added
        if place >= 1 << 62:
            continue
        file.seek(place)
        count = int.from_bytes(file.read(8 if big else 2), order)
        if count > _MOST_ENTRIES:
            return True
        table = file.read(size * count)
        for at in range(0, len(table), size):
            tag, kind = (int.from_bytes(table[at + part : at + part + 2], order) for part in (0, 2))
            total += _SIZES.get(kind, 0) * int.from_bytes(table[at + 4 : at + 4 + width], order)
            if tag in further:
                further.remove(tag)
                places.append(int.from_bytes(table[at + 4 + width : at + size], order))
    return total > _MOST_TAGS


def nodata_of(file: BinaryIO) -> float | None:
    """The number that marks pixels without data, where GDAL's tag says so; None of any other file."""
    tags = _tags(file)
    try:
        return None if tags is None else float(str(tags[_NODATA]).strip("\0 "))
    except (KeyError, ValueError):
        return None


def is_inverted(picture: Any) -> bool:
    """Whether Pillow gives 255 less what an opened TIFF stores: grey of 2 to 8 bits whose 0 is white."""
    return picture.mode == "L" and _first(picture.tag_v2, _PHOTOMETRIC, 1) == 0


def check_bands(picture: Any, name: str) -> None:
    """Stop at an opened TIFF of more bands than Pillow reads: one that nothing explains must not vanish without a word.

    Raises:
        BandsError: it has more.
    """
    bands, bits, _ = _numbers(picture.tag_v2)
    read = len(picture.getbands())
    if bands is not None and bands > read:
        raise _unexplained(name, bands, bits, read + 1)


def check_fourth(picture: Any, name: str) -> None:
    """Stop at a decoded TIFF whose fourth band, which no tag explains, does not look like transparency.

    Pillow takes it for that, and near infrared, say, would whiten the colours. OpenCV writes transparency so: it is
    opaque or clear. Of 16 bits the upper bytes are seen; where these are all 0, the band may hold any small numbers.

    Raises:
        BandsError: it does not.
    """
    tags = picture.tag_v2
    bands, bits, _ = _numbers(tags)
    if bands != 4 or picture.mode != "RGBA" or _EXTRA in tags or _first(tags, _PHOTOMETRIC, 1) != _RGB:
        return
    counts = picture.getchannel("A").histogram()
    if any(counts[1:255]) or (bits > 8 and not counts[255]):
        raise _unexplained(name, bands, bits, bands)


def _unexplained(name: str, bands: int, bits: int, band: int) -> BandsError:
    what = f"{name}: a TIFF of {_of(bands)} of {bits} bits, and nothing says what band {band} is"
    return BandsError(what, _declare_or_cut(bands))


def _declare_or_cut(bands: int) -> str:
    cut = _ONE_BAND if bands == 2 else _THREE_BANDS
    return f"declare them: backbone.in_channels = {bands}, with as many values in mean and std; or {cut}"


def _of(bands: int) -> str:
    return "one band" if bands == 1 else f"{bands} bands"


def _numbers(tags: Any) -> tuple[int | None, int, int]:
    """(bands, bits of a sample, sample format); bands None where the directory cannot be read."""
    try:
        return _first(tags, _BANDS, 1), _first(tags, _BITS, 1), _first(tags, _FORMAT, 1)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        return None, 0, 0


def _first(tags: Any, tag: int, default: int) -> int:
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _tags(file: BinaryIO) -> Any:
    """The tags of the first directory that are used here; None where it is damaged."""
    directory = _directory(file)
    return None if directory is None else {tag: directory[tag] for tag in _USED if tag in directory}


def _directory(file: BinaryIO) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.seek(0)
            header = file.read(8)
            if header[2:3] == b"\x2b" or header[3:4] == b"\x2b":  # BigTIFF
                header += file.read(8)
            directory = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(directory.next)
            directory.load(file)
            for tag in _USED:  # values are read from the file's bytes only now; others may be millions of numbers
                directory.get(tag)
            return directory
    except Exception:  # noqa: BLE001 (a damaged directory may raise anything, and then says nothing)
        return None
