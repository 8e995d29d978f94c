"""One label map from the objects of an image, with a stated rule for where they overlap.

Room: convert. Legend: H W image height and width.

    later      the object that was drawn later lies on top, as annotation tools show them
    earlier    the one that was drawn first
    smaller    the one with fewer pixels
    ignore     255 where objects of different classes overlap
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from emaseg.convert.export import Codes, Object, Objects
from emaseg.convert.numbers import Malformed
from emaseg.convert.shapes import check_within, patch
from emaseg.data.dataset import UInt8
from emaseg.data.files.mask_values import mask_values, unpacked
from emaseg.data.sets.masks import Bool
from emaseg.recipe.data import IGNORE
from emaseg.words import excerpt

__all__ = ["OVERLAPS", "Overlap", "Painted", "check_places", "label_map"]

Overlap = Literal["later", "earlier", "smaller", "ignore"]
OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)


@dataclass(frozen=True, slots=True, eq=False)
class Painted:
    """label: (H, W) mask values. objects: how many by mask value. contested: pixels of objects of different classes.
    empty: objects that cover no pixel."""

    label: UInt8
    objects: Counter[int]
    contested: int
    empty: int


def label_map(
    objects: Objects, size: tuple[int, int], values: Mapping[str, int], base: int, overlap: Overlap
) -> Painted:
    """Paint the objects of an image of `size` (H, W). values: mask value of each label. base: where nothing is.

    Raises:
        ValueError: an object is malformed, or has a label that is not known; the text says which one and how.
        DataError: a mask file cannot be read.
    """
    label, taken = np.full(size, base, np.uint8), np.zeros(size, np.bool_)
    clash, contested, empty, counts = np.zeros((0, 0), np.bool_), 0, 0, Counter[int]()
    if overlap == "ignore":
        clash = np.zeros(size, np.bool_)
    for place, one in _ordered(objects.objects, size, overlap):
        if isinstance(one.shape, Codes):
            counts.update(_paint_codes(label, one.shape, values))
            continue
        value = _value(values, one.label, place)
        top, left, mask = _patch(place, one, size)
        part = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        both = mask & taken[part] & (label[part] != value)
        contested += int(np.count_nonzero(both))
        if overlap == "ignore":
            clash[part] |= both
        label[part][mask & ~taken[part] if overlap == "earlier" else mask] = value
        taken[part] |= mask
        counts[value] += 1
        empty += not mask.any()
    if overlap == "ignore":
        label[clash] = IGNORE
    return Painted(label, counts, contested, empty)


def check_places(objects: Objects, size: tuple[int, int]) -> None:
    """Stop at objects that were drawn on an image of another size (H, W), where the annotations do not say of which.

    Raises:
        ValueError: one lies outside; the text says which one.
    """
    for place, one in enumerate(objects.objects, 1):
        try:
            check_within(one.shape, *size)
        except ValueError as error:
            raise Malformed(f"object {place} ({one.label}): {error}") from None


def _value(values: Mapping[str, int], label: str, place: int | str) -> int:
    if label not in values:
        raise Malformed(f"object {place}: a label that the export does not list: {excerpt(label)!r}")
    return values[label]


def _patch(place: int, one: Object, size: tuple[int, int]) -> tuple[int, int, Bool]:
    try:
        return patch(one.shape, *size)
    except ValueError as error:
        raise Malformed(f"object {place} ({one.label}): {error}") from None


def _ordered(objects: Sequence[Object], size: tuple[int, int], overlap: Overlap) -> list[tuple[int, Object]]:
    """The objects with their numbers from 1, in the order in which they are painted."""
    numbered = list(enumerate(objects, 1))
    if overlap != "smaller" or len(numbered) < 2:
        return numbered
    areas = {
        place: 0 if isinstance(one.shape, Codes) else int(np.count_nonzero(_patch(place, one, size)[2]))
        for place, one in numbered
    }
    return sorted(numbered, key=lambda pair: -areas[pair[0]])  # of equal ones the later stays on top


def _paint_codes(label: UInt8, shape: Codes, values: Mapping[str, int]) -> list[int]:
    """Replace all of `label` by what a mask of all classes says; returns the mask values that occur."""
    stored = mask_values(shape.path, shape.path)
    if stored.values.shape != label.shape:
        found = " x ".join(map(str, stored.values.shape))
        raise Malformed(
            f"the mask {shape.path.name} of {found} pixels; the image has {label.shape[0]} x {label.shape[1]}"
        )
    codes = stored.by_colour() if shape.colours else stored.values
    present = np.unique(codes)
    strange = [int(code) for code in present if int(code) not in shape.labels]
    if strange:
        what = list(unpacked(strange[0])) if stored.coloured or shape.colours else strange[0]
        count = int(np.count_nonzero(codes == strange[0]))
        raise Malformed(f"the mask {shape.path.name} with {count:,} pixels of {what}, which is not a class")
    table = np.array([_value(values, shape.labels[int(code)], "one of the mask's") for code in present], np.uint8)
    label[:] = table[np.searchsorted(present, codes)]
    return [int(value) for value in table]
