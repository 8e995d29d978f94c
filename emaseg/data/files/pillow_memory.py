"""The pixels of a decoded RGB picture where Pillow holds them, without a copy.

Room: data/files; never torch or torchvision. Legend: H W image height and width.

Pillow lends its memory through Arrow's C data interface, which NumPy does not read. The few fields that are needed are
read here: https://arrow.apache.org/docs/format/CDataInterface.html. Versions before 13 lend rows that do not lie one
after the other (PILLOW_ALIGNMENT) as if they did: theirs are copied.
"""

from __future__ import annotations

import ctypes

import numpy as np
from PIL import Image, __version__

from emaseg.data.dataset import WORD, Box, Words

_LENDS = int(__version__.partition(".")[0]) >= 13


class _Array(ctypes.Structure):
    """Arrow's `struct ArrowArray`. Pillow's holds one child, whose second buffer is the bytes of the pixels."""


_Array._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
]

_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.argtypes, _address.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p


class _Lent:
    """What NumPy keeps as the owner of the pixels: with the capsule Pillow keeps its memory."""

    def __init__(self, capsule: object, address: int, shape: tuple[int, int]) -> None:
        self.capsule = capsule
        self.__array_interface__ = {"version": 3, "data": (address, True), "shape": shape, "typestr": WORD.str}


def words_of(picture: Image.Image, box: Box) -> tuple[Words, int, int]:
    """At least a box of an RGB picture, not to be written to, and the row and column where it begins.

    It is Pillow's memory from the first row on, or a copy of the box where Pillow does not lend it.
    """
    top, left, height, width = box
    capsule = _lent(picture)
    if capsule is None:
        return np.frombuffer(part_of(picture, box).tobytes("raw", "RGBX"), WORD).reshape(height, width), top, left
    pixels = _Array.from_address(_address(capsule, b"arrow_array")).children[0][0]
    return np.asarray(_Lent(capsule, pixels.buffers[1], picture.size[::-1]))[: top + height], 0, 0


def part_of(picture: Image.Image, box: Box) -> Image.Image:
    """A box of a picture, which is not copied where it is the whole."""
    top, left, height, width = box
    whole = box == (0, 0, picture.height, picture.width)
    return picture if whole else picture.crop((left, top, left + width, top + height))


def _lent(picture: Image.Image) -> object | None:
    """The capsule; None from an older Pillow, and for a picture whose rows do not lie one after the other: a large one, in
    several pieces, or one of aligned rows."""
    if not _LENDS:
        return None
    try:
        return picture.__arrow_c_array__()[1]
    except ValueError:
        return None
