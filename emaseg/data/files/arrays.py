"""Reading a .npy file as an image: the header by NumPy, everything that it promises checked before a pixel is read.

Room: data/files. Legend: H W image height and width, C channels.

Which axis holds the channels: an array of two axes is (H, W). Of three axes, the channels are the one that has
backbone.in_channels entries, which must be the first (C, H, W) or the last (H, W, C) one; an array that has it in both
places is refused.

Files are untrusted: pickled objects are never loaded.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from emaseg.data.files.images import ARRAY_START, MAX_PIXELS, check_pixels
from emaseg.errors import DataError

MAGIC = ARRAY_START
_AGAIN = "copy it again, or write it again with numpy.save"
_MOST_BYTES = 16 * MAX_PIXELS  # of an array, as of a TIFF
_LONGEST_HEADER = 10_000  # bytes, as NumPy has it, which reads all before it counts
_KINDS = "buif"  # of numbers: true or false, unsigned, signed, floating-point

Header = tuple[tuple[int, ...], bool, np.dtype[Any]]


def read_array(file: BinaryIO, name: str, channels: int) -> npt.NDArray[Any]:
    """(H, W, C) of the file's own type.

    Raises:
        DataError: damaged, too large, no array of numbers, or without an axis of so many channels.
    """
    shape, fortran, dtype = _header(file, name)
    axis = _channel_axis(shape, name, channels)
    start, size = file.tell(), math.prod(shape) * dtype.itemsize
    if file.seek(0, io.SEEK_END) - start != size:
        raise DataError(f"{name}: the .npy file holds fewer or more values than its header says", _AGAIN)
    if size > _MOST_BYTES:
        raise DataError(f"{name}: {size:,} bytes of pixels", "cut it into tiles first")
    file.seek(start)
    content = file.read(size)
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array[..., None] if axis is None else np.moveaxis(array, axis, -1)


def array_size(file: BinaryIO, name: str, channels: int) -> tuple[int, int]:
    """(H, W) from the header; raises as read_array."""
    shape, _, _ = _header(file, name)
    axis = _channel_axis(shape, name, channels)
    sides = [side for at, side in enumerate(shape) if at != axis]
    return sides[0], sides[1]


def array_channels(file: BinaryIO, name: str) -> tuple[int, np.dtype[Any]]:
    """The channels of an array of which nothing is declared, the smaller of the two axes that may hold them; its type.

    Raises:
        DataError: as read_array; both axes have as many entries.
    """
    shape, _, dtype = _header(file, name)
    if len(shape) == 2:
        return 1, dtype
    if len(shape) != 3 or shape[0] == shape[2]:
        raise _no_axis(shape, name, "the number of channels")
    return min(shape[0], shape[2]), dtype


def _header(file: BinaryIO, name: str) -> Header:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            version = np.lib.format.read_magic(file)
            start = file.tell()
            if version[0] > 1 and int.from_bytes(file.read(4), "little") > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            file.seek(start)
            header: Header = read[version](file)
    except (ValueError, KeyError, OSError, EOFError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise DataError(f"{name}: a damaged .npy file ({str(error)[:100]})", _AGAIN) from error
    dtype = header[2]
    if dtype.hasobject or dtype.kind not in _KINDS:
        raise DataError(
            f"{name}: an array of {str(dtype)[:60]}, not of numbers", "save an array of uint8, uint16 or float32"
        )
    return header


def _channel_axis(shape: tuple[int, ...], name: str, channels: int) -> int | None:
    """The axis of the channels; None: there is none, as the image has one."""
    if len(shape) == 2:
        if channels != 1:
            raise DataError(
                f"{name}: an array (H, W) has 1 channel; backbone.in_channels is {channels}", _channels_hint(1)
            )
        axis, height, width = None, shape[0], shape[1]
    else:
        places = [at for at in (0, 2) if len(shape) == 3 and shape[at] == channels]
        if len(places) != 1:
            raise _no_axis(shape, name, str(channels))
        axis = places[0]
        height, width = (shape[1], shape[2]) if axis == 0 else (shape[0], shape[1])
    check_pixels((width, height), name)
    return axis


def _no_axis(shape: tuple[int, ...], name: str, channels: str) -> DataError:
    if len(shape) == 3 and shape[0] == shape[2]:
        what = f"its shape {shape} does not tell (H, W, C) from (C, H, W)"
        return DataError(f"{name}: {what}", "cut or pad these images to another height, or save them as TIFF")
    return DataError(
        f"{name}: an array of shape {shape} is no image of {channels} channels (backbone.in_channels)",
        "save (H, W), (H, W, C) or (C, H, W), where C is backbone.in_channels",
    )


def _channels_hint(channels: int) -> str:
    return f"set backbone.in_channels = {channels}, with as many values in mean and std"
