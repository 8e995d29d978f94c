"""Reading TIFF files that Pillow does not: of two, four or more bands, or of several bands with more than 8 bits.

Room: data/files; tifffile, of the optional extra emaseg[tiff], is imported when such a file is opened. Legend: H W image
height and width, C channels.

Bands may be stored pixel by pixel, in planes, or as pages of one band each. The values are the file's: alpha is a band
like others, nothing is composited or inverted. Orientation is applied.

Files are untrusted: sizes and the place of every piece of pixels are checked before anything is decoded. Of a file that
is cut short tifffile would give zeros.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from emaseg.data.files import jpeg
from emaseg.data.files.images import MAX_PIXELS, check_pixels
from emaseg.errors import DataError, SystemFault
from emaseg.extras import install

_AGAIN = "copy or download it again"
_AXES = ("YX", "YXS", "SYX")
_PALETTE = 3  # a photometric interpretation
_PLAIN = 1  # of compressions: none
_MOST_BYTES = 16 * MAX_PIXELS  # of all bands of an image, and of one piece of it


def read_tiff(file: BinaryIO, name: str, channels: int) -> npt.NDArray[Any]:
    """(H, W, C) of the file's own type; as many channels as it has, or as wanted where each page holds one.

    Raises:
        DataError: damaged, too large, or of a kind that has no bands. SystemFault: tifffile is not installed.
    """
    file.seek(0)
    with _opened(file, name) as tif:
        pages = [tif.pages.first]
        if channels > 1 and pages[0].samplesperpixel == 1:
            pages += _further_pages(tif, channels)
        bands = [_decoded(page, name, file) for page in pages]
    if len(bands) > 1 and {(b.shape, b.dtype) for b in bands} != {(bands[0].shape, bands[0].dtype)}:
        raise DataError(f"{name}: its pages differ in size or type", "write all bands into one page")
    return _upright(bands[0] if len(bands) == 1 else np.concatenate(bands, axis=2), _orientation(pages[0]))


def tiff_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """(H, W) of what read_tiff gives, from the header; raises as it does."""
    file.seek(0)
    with _opened(file, name) as tif:
        page = tif.pages.first
        size = page.imagelength, page.imagewidth
        check_pixels(size[::-1], name)
        return size[::-1] if _orientation(page) >= 5 else size


def _further_pages(tif: Any, channels: int) -> list[Any]:
    """Pages 2 to `channels`; none where the file has fewer or more."""
    try:
        further = [tif.pages[number] for number in range(1, channels)]
    except IndexError:
        return []
    try:
        tif.pages[channels]
    except IndexError:
        return [page.aspage() for page in further]
    return []


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[Any]:
    if importlib.util.find_spec("tifffile") is None:
        raise SystemFault(f"{name}: TIFF images of such bands need tifffile, not installed here", install("tiff"))
    import tifffile

    logger = logging.getLogger("tifffile")  # it logs what it works around; what matters here is checked
    before, logger.disabled = logger.disabled, True
    try:
        with tifffile.TiffFile(file, name=name) as tif:
            yield tif
    finally:
        logger.disabled = before


def _decoded(page: Any, name: str, file: BinaryIO) -> npt.NDArray[Any]:
    """(H, W, C) of one page, not yet turned."""
    height, width, bands = page.imagelength, page.imagewidth, page.samplesperpixel
    check_pixels((width, height), name)
    if page.dtype is None or page.dtype.kind not in "buif" or page.axes not in _AXES or page.photometric == _PALETTE:
        kind = "a palette" if page.photometric == _PALETTE else f"samples of {page.bitspersample} bits"
        raise DataError(
            f"{name}: a TIFF with {kind} (axes {page.axes}), which has no bands", "save it as uint8, uint16 or float32"
        )
    largest = max(height * width * bands, math.prod(page.chunks)) * page.dtype.itemsize
    if largest > _MOST_BYTES:
        raise DataError(f"{name}: {largest:,} bytes of pixels", "cut it into tiles first")
    end = file.seek(0, 2)
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(pieces) < math.prod(page.chunked) or any(at <= 0 or size <= 0 or at + size > end for at, size in pieces):
        raise DataError(f"{name}: a damaged image: some of its pixels are missing", _AGAIN)
    if sum(size for _, size in pieces) > 2 * _MOST_BYTES:
        raise DataError(f"{name}: a damaged image: its pixels are stored in more bytes than they have", _AGAIN)
    if page.compression != _PLAIN:
        _check_jpegs(file, pieces, name)
    array: npt.NDArray[Any] = page.asarray(maxworkers=1, squeeze=False)  # (separate planes, depth, H, W, samples)
    planes, depth, rows, columns, samples = array.shape
    if depth != 1 or (rows, columns) != (height, width) or 1 not in (planes, samples):
        raise DataError(f"{name}: a TIFF of shape {array.shape}, which has no bands", "save it as (H, W, C)")
    return np.moveaxis(array[:, 0], 0, -1)[..., 0, :] if planes > 1 else array[0, 0]


def _check_jpegs(file: BinaryIO, pieces: Iterable[tuple[int, int]], name: str) -> None:
    """Stop at a piece that would hold its decoder for hours. libtiff, which Pillow has, knows such a limit itself."""
    for at, size in pieces:
        file.seek(at)
        if file.read(len(jpeg.START)) == jpeg.START:
            file.seek(at)
            jpeg.check_scans(file.read(size), name)


def _orientation(page: Any) -> int:
    value = page.tags.valueof(274, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(array: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """What a viewer shows of (H, W, C) that lies as TIFF's tag Orientation says."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array
