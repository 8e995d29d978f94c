"""The masks that a conversion writes: indexed PNGs that say from what they were made, and are signed.

Room: convert.

Threat: a mask may be hours of somebody's corrections, and lies where the next run writes. Only one that is as `convert`
wrote it is ever replaced or removed; see data/files/signed.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from emaseg.convert.numbers import Malformed
from emaseg.data.dataset import UInt8
from emaseg.data.files.images import translated
from emaseg.data.files.mask_values import Colour, mask_values
from emaseg.data.files.signed import is_signed, signed
from emaseg.errors import DataError, UserError
from emaseg.files import open_file, read_bytes
from emaseg.recipe.data import IGNORE

__all__ = ["Made", "as_written", "mask_file", "own_pixels", "pixels_of", "read_made", "was_edited"]

_COMMENT = "Comment"  # a keyword of PNG texts that readers of masks expect
_VOID_COLOUR = (224, 224, 192)


@dataclass(frozen=True, slots=True)
class Made:
    """What a mask says of itself. key: all it was made from. objects, pixels: by mask value.

    item: the image as the export calls it, file: the size and time of what was put into images/, names: the classes; all
    of them empty in masks of older versions.
    """

    key: str
    objects: Mapping[int, int]
    pixels: Mapping[int, int]
    contested: int
    empty: int
    without_area: Mapping[str, int]
    item: str = ""
    file: tuple[int, int] = (0, 0)
    names: tuple[str, ...] = ()

    def text(self) -> str:
        said = {
            "key": self.key,
            "objects": dict(self.objects),
            "pixels": dict(self.pixels),
            "contested": self.contested,
            "empty": self.empty,
            "without_area": dict(self.without_area),
        }
        return json.dumps(said | {"item": self.item, "file": self.file, "names": self.names})


def mask_file(label: UInt8, colours: Sequence[Colour], made: Made) -> bytes:
    """A signed PNG."""
    return signed(_png(label, _palette(colours), made.text()), "convert")


def _png(label: UInt8, palette: Sequence[int], text: str) -> bytes:
    comment = PngImagePlugin.PngInfo()
    comment.add_text(_COMMENT, text)
    picture = Image.fromarray(label)
    picture.putpalette(palette)
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=comment)
    return file.getvalue()


def _palette(colours: Sequence[Colour]) -> list[int]:
    """256 colours; the ignored pixels' is VOC's for outlines."""
    every = [*colours, *[(0, 0, 0)] * (IGNORE - len(colours)), _VOID_COLOUR]
    return [part for colour in every for part in colour]


def pixels_of(label: UInt8) -> dict[int, int]:
    """By value."""
    histogram = np.bincount(label.ravel(), minlength=256)
    return {int(value): int(histogram[value]) for value in np.flatnonzero(histogram)}


# -------------------------------------------------------------------------------------------------- of an earlier run
def read_made(path: Path) -> Made | None:
    """What a mask says of itself; None: it is not there, or says nothing, or says what no run writes."""
    try:
        with translated(str(path)), open_file(path) as file, Image.open(file, formats=("PNG",)) as picture:
            said = json.loads(picture.info.get(_COMMENT, ""))
        objects, pixels = ({int(k): int(v) for k, v in said[name].items()} for name in ("objects", "pixels"))
        without = {str(k): int(v) for k, v in said["without_area"].items()}
        size, time = map(int, said.get("file", (0, 0)))
        names = tuple(map(str, said.get("names", ())))
        counts = int(said["contested"]), int(said["empty"])
        return Made(str(said["key"]), objects, pixels, *counts, without, str(said.get("item", "")), (size, time), names)
    except (DataError, OSError, ValueError, OverflowError, TypeError, KeyError, AttributeError):
        return None


def as_written(path: Path) -> bool:
    """Whether nobody has changed a mask since `convert` wrote it; one of an older version is signed by being the same
    bytes when it is written again."""
    try:
        if is_signed(path, "convert"):
            return True
        content = read_bytes(path)
        with translated(str(path)), Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            said: Any = picture.info.get(_COMMENT)
            if path.is_symlink() or picture.mode != "P" or not isinstance(said, str):
                return False
            return content == _png(np.asarray(picture), picture.getpalette() or [], said)
    except (UserError, OSError, MemoryError):  # UserError: of anything that Pillow raises
        return False


def was_edited(path: Path, made: Made | None) -> bool:
    """Whether the pixels of a mask that is not as it was written are other than it says; without a word they are."""
    stored = mask_values(path, path)
    return made is None or stored.coloured or pixels_of(stored.values.astype(np.uint8)) != made.pixels


def own_pixels(path: Path, size: tuple[int, int], classes: int) -> dict[int, int]:
    """The pixels of a mask that somebody has changed, by value.

    Raises:
        ValueError: it is no mask of class numbers of this size.
        DataError: it cannot be read.
    """
    stored = mask_values(path, path)
    values = stored.values
    problem = ""
    if values.shape != size:
        problem = f"{values.shape[0]} x {values.shape[1]} pixels; the image has {size[0]} x {size[1]}"
    elif stored.coloured:
        problem = "colours in place of class numbers"
    elif strange := sorted(set(np.unique(values).tolist()) - {*range(classes), IGNORE}):
        problem = f"the value {strange[0]}, which is not a class"
    if problem:
        raise Malformed(
            f"its mask was changed since it was written, and is kept, but it has {problem}: correct or remove it"
        )
    return pixels_of(values.astype(np.uint8))
