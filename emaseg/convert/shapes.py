"""The pixels of an object's shape. Polygons are those of data/sets/masks.py, pixel for pixel as COCO's tools draw them.

Room: convert. Legend: H W image height and width, h w those of a part of it.

Threat: coordinates of 1e300, run lengths that promise gigabytes, pictures that unfold to them. Each is measured before
memory is taken, and refused as a ValueError that says what is wrong.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emaseg.convert.export import BrushRuns, ColumnRuns, MaskFile, Outline, Picture, RowRuns, Shape
from emaseg.convert.numbers import Malformed
from emaseg.data.files.images import MAX_PIXELS, decode
from emaseg.data.files.mask_values import mask_values
from emaseg.data.sets.masks import Bool, paint, polygon_mask
from emaseg.words import excerpt

__all__ = ["Patch", "check_within", "ellipse", "patch", "rectangle"]

Patch = tuple[int, int, Bool]  # top, left, (h, w) pixels; inside the image

_CORNERS = 90  # of the polygon that stands for an ellipse
_BEYOND = 4, 0.02  # pixels, and share of a side: as far as outlines of the image's own size may reach out of it


def patch(shape: Shape, height: int, width: int) -> Patch:
    """The pixels of a shape in an image of this size.

    Raises:
        ValueError: the shape is malformed, or of another size; the text says how.
        DataError: a mask file cannot be read.
    """
    match shape:
        case Outline():
            return _outline(shape, height, width)
        case ColumnRuns():
            mask = np.zeros((height, width), np.bool_)
            paint(mask, shape.segmentation, 1)
            return 0, 0, mask
        case RowRuns():
            return _placed(_row_runs(shape), shape.top, shape.left, height, width)
        case BrushRuns():
            return 0, 0, _brush(shape, height, width)
        case Picture():
            return _placed(_picture(shape), shape.top, shape.left, height, width)
        case MaskFile():
            return 0, 0, _mask_file(shape.path, height, width)
    raise Malformed("a shape that is drawn for all classes at once")


def check_within(shape: Shape, height: int, width: int) -> None:
    """Stop at an outline in pixels that reaches far out of the image: it was drawn on one of another size.

    Raises:
        ValueError: it does; or as `patch`.
    """
    if not isinstance(shape, Outline) or shape.shares:
        return
    for ring in shape.rings:
        points = np.array(_checked(ring, False, height, width)).reshape(-1, 2)
        points = points.mean(axis=0, keepdims=True) if shape.curved and len(points) else points
        for name, values, side in (("x", points[:, 0], width), ("y", points[:, 1], height)):
            most = max(_BEYOND[0], _BEYOND[1] * side)
            if wrong := [value for value in values.tolist() if not -most <= value <= side + most]:
                raise Malformed(
                    f"a point at {name} = {max(wrong, key=abs):g}, outside of the image of {height} x {width} (height x width):"
                    " was it annotated at another size?"
                )


# ---------------------------------------------------------------------------------------------------- outlines
def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    """As a flat list of corners."""
    return [left, top, right, top, right, bottom, left, bottom]


def ellipse(x: float, y: float, across: float, down: float, turn: float = 0.0) -> list[float]:
    """An ellipse around (x, y) with half axes `across` and `down`, turned by `turn` radians, as a flat list of corners."""
    if not all(map(math.isfinite, (x, y, across, down, turn))):
        raise Malformed("an ellipse without numbers")
    corners = []
    for step in range(_CORNERS):
        angle = 2 * math.pi * step / _CORNERS
        u, v = across * math.cos(angle), down * math.sin(angle)
        corners += [x + u * math.cos(turn) - v * math.sin(turn), y + u * math.sin(turn) + v * math.cos(turn)]
    return corners


def _outline(shape: Outline, height: int, width: int) -> Patch:
    left, mask = _union(shape.rings, shape.shares, height, width)
    if shape.holes:
        start, hole = _union(shape.holes, shape.shares, height, width)
        low, high = max(left, start), min(left + mask.shape[1], start + hole.shape[1])
        if low < high:
            mask[:, low - left : high - left] &= ~hole[:, low - start : high - start]
    return 0, left, mask


def _union(rings: Sequence[Sequence[float]], shares: bool, height: int, width: int) -> tuple[int, Bool]:
    """The first column of a strip, and the strip's mask (H, columns). Of many rings one is in memory at a time."""
    if len(rings) == 1:
        return polygon_mask(_checked(rings[0], shares, height, width), height, width)
    whole = np.zeros((height, width), np.bool_)
    for ring in rings:
        left, mask = polygon_mask(_checked(ring, shares, height, width), height, width)
        whole[:, left : left + mask.shape[1]] |= mask
    return 0, whole


def _checked(ring: Sequence[float], shares: bool, height: int, width: int) -> list[float]:
    """A ring in pixels."""
    if not isinstance(ring, Sequence) or isinstance(ring, str | bytes):
        raise Malformed("a polygon that is not a list of numbers")
    if not all(type(value) in (int, float) and abs(value) < 1e8 for value in ring):
        raise Malformed("a polygon with something else than numbers that can be places in an image")
    if len(ring) % 2:
        raise Malformed("a polygon with an odd number of coordinates")
    points = np.array(ring, np.float64).reshape(-1, 2)
    if shares:
        points = points * (width, height)
    flat: list[float] = points.ravel().tolist()
    return flat


# ------------------------------------------------------------------------------------------------------ windows
def _placed(mask: Bool, top: int, left: int, height: int, width: int) -> Patch:
    """The part of a window that lies in the image."""
    if not -MAX_PIXELS < top < MAX_PIXELS or not -MAX_PIXELS < left < MAX_PIXELS:
        raise Malformed(f"a picture at {left}, {top}, far out of the image")
    y, x = max(0, top), max(0, left)
    return y, x, mask[y - top : max(y, height) - top, x - left : max(x, width) - left]


def _row_runs(shape: RowRuns) -> Bool:
    size = shape.height * shape.width
    if shape.height < 1 or shape.width < 1 or size > MAX_PIXELS:
        raise Malformed(f"run lengths for {shape.height} x {shape.width} pixels")
    try:
        runs = np.array([int(part) for part in shape.counts.split(",")], np.int64)
    except (ValueError, OverflowError):
        raise Malformed("run lengths that are not numbers") from None
    if (runs < 0).any() or (runs > size).any() or runs.sum() != size:
        raise Malformed(f"run lengths that do not add up to the {shape.height} x {shape.width} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape.height, shape.width)


def _picture(shape: Picture) -> Bool:
    try:
        content = base64.b64decode(shape.content, validate=False)
        if shape.folded:
            unfold = zlib.decompressobj()
            content = unfold.decompress(content, MAX_PIXELS)
            if unfold.unconsumed_tail:
                raise Malformed("a picture that unfolds without end")
    except (binascii.Error, zlib.error, ValueError) as error:
        raise Malformed(f"a picture that cannot be unpacked ({excerpt(error)})") from None
    if not content:
        raise Malformed("a picture that cannot be unpacked (it is empty)")
    picture = decode(content, "a picture in the annotations")
    if shape.size not in (None, picture.size[::-1]):
        raise Malformed(
            f"a picture of {picture.size[1]} x {picture.size[0]}; its image has {shape.size[0]} x {shape.size[1]}"
        )
    return np.asarray(picture.getchannel("A") if "A" in picture.getbands() else picture.convert("L")) > 0


def _mask_file(path: Path, height: int, width: int) -> Bool:
    stored = mask_values(path, path)
    if stored.values.shape != (height, width):
        found = " x ".join(map(str, stored.values.shape))
        raise Malformed(f"the mask {path.name} of {found} pixels; the image has {height} x {width}")
    values = np.unique(stored.values)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        few = ", ".join(map(str, values[:4].tolist()))
        raise Malformed(
            f"the mask {path.name} with values {few}{' ...' if len(values) > 4 else ''}; 0 and one other are one class"
        )
    return np.asarray(stored.values != 0)


# ----------------------------------------------------------------------------------------- Label Studio's brush
def _brush(shape: BrushRuns, height: int, width: int) -> Bool:
    """The alpha channel of a packed RGBA picture.

    A stream of bits: 32 for the number of values; 5 for the bits of a value less one; four times 4 for the bits of a
    length less one. Then parts: a bit that says run or not, 2 bits for one of the four sizes, the length less one in
    that many bits; of a run its value, else all values.
    """
    if (shape.height, shape.width) != (height, width):
        raise Malformed(f"a brush drawing of {shape.height} x {shape.width}; the image has {height} x {width}")
    try:
        bits = np.unpackbits(np.array(shape.codes, np.uint8)) if _are_bytes(shape.codes) else None
    except (ValueError, TypeError, OverflowError):
        bits = None
    if bits is None:
        raise Malformed("a brush drawing that is not a list of bytes")
    reader = _Bits(bits)
    count, word = reader.number(32), reader.number(5) + 1
    if count != height * width * 4 or word > 16:
        raise Malformed(f"a brush drawing of {count:,} values; the image needs {height * width * 4:,}")
    sizes = [reader.number(4) + 1 for _ in range(4)]
    values, done = np.zeros(count, np.uint16), 0
    while done < count:
        run = reader.number(1)
        end = done + 1 + reader.number(sizes[reader.number(2)])
        if end > count:
            raise Malformed("a brush drawing that does not add up")
        values[done:end] = reader.number(word) if run else reader.numbers(word, end - done)
        done = end
    return values.reshape(height, width, 4)[..., 3] > 0


def _are_bytes(codes: object) -> bool:
    return isinstance(codes, list) and all(type(code) is int and 0 <= code < 256 for code in codes)


class _Bits:
    """Numbers from a stream of bits, the highest first."""

    def __init__(self, bits: npt.NDArray[np.uint8]) -> None:
        self._bits, self._at = bits, 0

    def number(self, length: int) -> int:
        return int(self.numbers(length, 1)[0])

    def numbers(self, length: int, count: int) -> npt.NDArray[np.int64]:
        end = self._at + length * count
        if end > len(self._bits):
            raise Malformed("a brush drawing that is cut off")
        table = self._bits[self._at : end].reshape(count, length).astype(np.int64)
        self._at = end
        return table @ (np.int64(1) << np.arange(length - 1, -1, -1, dtype=np.int64))
