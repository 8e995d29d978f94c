"""What the reader of a format gives: images with objects to be painted, labels, and what was left out and why.

Room: convert. Legend: H W image height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emaseg.data.files.mask_values import Colour

__all__ = [
    "BrushRuns",
    "Codes",
    "ColumnRuns",
    "Export",
    "Item",
    "Label",
    "Left",
    "MaskFile",
    "Object",
    "Objects",
    "Outline",
    "Picture",
    "RowRuns",
    "Shape",
]


# ------------------------------------------------------------------------------------------------------- shapes
@dataclass(frozen=True, slots=True)
class Outline:
    """Polygons as flat lists [x0, y0, x1, y1, ...]: the union of `rings` without that of `holes`.

    shares: the coordinates are shares of the image's width and height, 0..1; else pixels. curved: a circle or an ellipse,
    which tools let reach beyond the image.
    """

    rings: Sequence[Sequence[float]]
    holes: Sequence[Sequence[float]] = ()
    shares: bool = False
    curved: bool = False


@dataclass(frozen=True, slots=True)
class ColumnRuns:
    """COCO's run lengths of a whole image, column by column: {"size": [H, W], "counts": a list or packed text}."""

    segmentation: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RowRuns:
    """Lengths of runs of zeros and ones in turn, row by row, of a window of the image (CVAT): `counts` "3, 2, 7"."""

    top: int
    left: int
    height: int
    width: int
    counts: str


@dataclass(frozen=True, slots=True)
class BrushRuns:
    """Label Studio's packed RGBA picture of (height, width), whose fourth channel is the object."""

    height: int
    width: int
    codes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Picture:
    """A binary picture in base64 with its place in the image.

    folded: compressed by zlib once more (Supervisely). size: (h, w) that it must have, None = any.
    """

    top: int
    left: int
    content: str
    folded: bool = False
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A mask file of one class: 0 is not the object, its one other value is."""

    path: Path


@dataclass(frozen=True, slots=True)
class Codes:
    """A mask file of all classes: the key of the label that each number or colour (0xRRGGBB) stands for.

    colours: of an indexed file the colours count, not the indices.
    """

    path: Path
    labels: Mapping[int, str]
    colours: bool = False


Shape = Outline | ColumnRuns | RowRuns | BrushRuns | Picture | MaskFile | Codes


# ------------------------------------------------------------------------------------------------------- results
@dataclass(frozen=True, slots=True)
class Label:
    """A class as the export knows it. key: what objects call it. colour: RGB, None = none is stated."""

    key: str
    name: str
    colour: Colour | None = None


@dataclass(frozen=True, slots=True)
class Object:
    """label: a Label's key; "" with Codes."""

    label: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one image, the first drawn first. without_area: what has none, by kind, such as {"point": 2}."""

    objects: Sequence[Object]
    without_area: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Item:
    """An image and what was drawn on it.

    image: relative path below the source's folder. split: "train", "val", "test" or "". size: (H, W) that the
    annotations are for; None = they do not say. read: its objects, read when they are painted; raises ValueError or
    DataError where they are malformed. state: changes when the annotations do.
    """

    image: str
    split: str
    size: tuple[int, int] | None
    read: Callable[[], Objects]
    state: str


@dataclass(frozen=True, slots=True)
class Left:
    """What is not converted: its name and the reason. fault: something is wrong with it."""

    name: str
    reason: str
    fault: bool = True


@dataclass(frozen=True, slots=True)
class Export:
    """All that a folder of annotations says. labels: in their order. notes: for people, one sentence each.

    complete: every pixel has a label, so that there is no background beside them. masks: the pictures that were read
    as masks, as relative paths: they are no images without annotation.
    """

    labels: tuple[Label, ...]
    items: tuple[Item, ...]
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()
    complete: bool = False
    masks: frozenset[str] = frozenset()
