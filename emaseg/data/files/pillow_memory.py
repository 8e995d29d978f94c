"""The pixels of a decoded RGB picture where Pillow holds them, without a copy.

Room: data/files; never torch or torchvision. Legend: H W image height and width.

Pillow lends its memory through Arrow's C data interface, from version 11.3 on; NumPy has no reader of it. The few fields
that are needed are read here: https://arrow.apache.org/docs/format/CDataInterface.html.
"""

from __future__ import annotations

import ctypes

import numpy as np
from PIL import Image

from emaseg.data.dataset import WORD, Box, Words


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
    try:
        _, capsule = picture.__arrow_c_array__()
    except (AttributeError, ValueError):  # an older version; or a large picture, which lies in several pieces
        part = picture.crop((left, top, left + width, top + height))
        return np.frombuffer(part.tobytes("raw", "RGBX"), WORD).reshape(height, width), top, left
    pixels = _Array.from_address(_address(capsule, b"arrow_array")).children[0][0]
    return np.asarray(_Lent(capsule, pixels.buffers[1], picture.size[::-1]))[: top + height], 0, 0
