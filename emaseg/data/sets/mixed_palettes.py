"""Indexed masks whose palettes differ from file to file: the same index in another colour.

Room: data/sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emaseg.data.files.mask_values import Colour
from emaseg.data.sets.pairs import first_few

__all__ = ["MixedPalettes", "mixed_palettes"]


@dataclass(frozen=True, slots=True)
class MixedPalettes:
    """text: which index means which colour where. swapped: whether one colour stands for several indices, too, so that
    it is the colours that agree, and not the indices."""

    text: str
    hint: str
    swapped: bool


def mixed_palettes(masks: Iterable[tuple[Path, tuple[Colour, ...], Sequence[int]]]) -> MixedPalettes | None:
    """What is mixed up in masks, each with its palette (() = none) and the indices that it uses; None: nothing."""
    first: dict[int, tuple[Colour, Path]] = {}
    index_of: dict[Colour, int] = {}
    differing: dict[int, str] = {}  # by index, its first difference
    others = 0
    swapped = False
    for path, palette, used in masks:
        own = [(index, palette[index]) for index in used if index < len(palette)]
        for index, colour in own:
            before, where = first.setdefault(index, (colour, path))
            if before != colour:
                text = f"index {index} is {list(before)} in {where.name} and {list(colour)} in {path.name}"
                differing.setdefault(index, text)
            swapped |= index_of.setdefault(colour, index) != index
        others += any(first[index][0] != colour for index, colour in own)
    if not differing:
        return None
    text = (
        f"the palettes of the masks differ ({others:,} from those before): {first_few(differing.values())}; a mask is read "
        "by its indices, not by its colours"
    )
    hint = (
        "if the colours are the classes, `emaseg convert FOLDER --out DIR` numbers them alike in all masks; else give all "
        "masks one palette"
    )
    return MixedPalettes(text, hint, swapped)
