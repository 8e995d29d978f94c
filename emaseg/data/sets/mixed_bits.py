"""Masks of 1 bit among masks of 8 whose white is 255: the same object in two numbers.

Room: data/sets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

__all__ = ["mixed_bits"]

_WHITE = {255, 65535}
_REMEDY = (
    "save all masks with 8 bits: the white of those with 1 bit as 255 if it is what 255 is in the others, as 1 if it is "
    "class 1"
)


def mixed_bits(masks: Iterable[tuple[Path, bool, Collection[int]]]) -> tuple[str, str] | None:
    """What is mixed up in masks, and the remedy; None: nothing.

    Programs that make PNG files smaller write 0 and 255 as 1 bit, in the files that hold nothing else.

    Args:
        masks: each with whether it has 1 bit, and the values that it holds.
    """
    few = many = None
    for path, one_bit, values in masks:
        if one_bit and 1 in values:
            few = few or path
        elif not one_bit and not _WHITE.isdisjoint(values):
            many = many or path
        if few and many:
            text = (
                f"{few} is a mask of 1 bit, whose white is read as 1, but {many} has more bits and holds 255 (or 65535): "
                "is white the same in both?"
            )
            return text, _REMEDY
    return None
