"""Numbers and texts of annotations, which may be anything, as what they must be.

Room: convert. Legend: H W image height and width.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from emaseg.data.files.images import MAX_PIXELS
from emaseg.words import excerpt

__all__ = ["Malformed", "check_bare", "number", "pair", "pairs", "size_of", "text_of", "whole"]


class Malformed(ValueError):
    """What an annotation holds that it must not, in words that follow the name of the image or object."""


_FAR = 1e8  # pixels; beyond it a coordinate is no place


def check_bare(kind: str, bare: Collection[str]) -> None:
    """Stop at a kind of shape that is none of those without an area: it may have one that would be missing.

    Raises:
        ValueError: it is none of `bare`.
    """
    if kind not in bare:
        raise Malformed(
            f"a shape of a kind that cannot be drawn: {excerpt(kind, 40)}; make a polygon of it, or remove it"
        )


def number(value: Any, what: str = "a coordinate") -> float:
    """A finite number, also from text.

    Raises:
        ValueError: it is none.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Malformed(f"{what} that is not a number: {excerpt(value, 40)}") from None
    if not math.isfinite(found) or abs(found) >= _FAR:
        raise Malformed(f"{what} of {found:g}")
    return found


def whole(value: Any, what: str) -> int:
    """A whole number, also from text.

    Raises:
        ValueError: it is none.
    """
    found = number(value, what)
    if found != int(found):
        raise Malformed(f"{what} that is not a whole number: {found:g}")
    return int(found)


def pair(value: Any) -> tuple[float, float]:
    """An (x, y).

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise Malformed(f"a point that is not a pair of numbers: {excerpt(value, 40)}")
    return number(value[0]), number(value[1])


def pairs(value: Any) -> list[tuple[float, float]]:
    """A list of (x, y).

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list):
        raise Malformed("points that are not a list")
    return [pair(point) for point in value]


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """(H, W); None where one is missing.

    Raises:
        ValueError: they can be no size of an image.
    """
    if height is None or width is None:
        return None
    size = whole(height, "a height"), whole(width, "a width")
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise Malformed(f"a size of {size[0]} x {size[1]}")
    return size


def text_of(value: Any, what: str) -> str:
    """A text that is not empty; a number is one too.

    Raises:
        ValueError: it is none.
    """
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text:
        raise Malformed(f"{what} is missing")
    return text
