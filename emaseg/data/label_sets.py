"""Class names and colours (palettes) of every data set; those of the published ones are in label_sets.toml.

Room: data. Legend: K classes.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from emaseg.recipe.data import CocoStuffData, Data, FolderData, PackedData, PascalContextData

__all__ = [
    "LabelSet",
    "cityscapes_label_ids",
    "coco_voc_categories",
    "cocostuff_ids",
    "label_set",
    "pascal_context_owners_order",
    "pascal_context_raw_ids",
    "voc_colours",
]

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class LabelSet:
    """The classes of a data set in train-id order, and an RGB colour for each: palette (K, 3) uint8."""

    classes: tuple[str, ...]
    palette: UInt8


def label_set(data: Data) -> LabelSet:
    """Names and colours of a data section; K equals num_classes(data). The palette is the caller's to keep."""
    match data:
        case FolderData() | PackedData():
            colours = np.array(data.palette, np.uint8) if data.palette else voc_colours(len(data.classes))
            return LabelSet(data.classes, colours)
        case CocoStuffData():
            return _only(_shipped("cocostuff"), cocostuff_ids(data.num_classes))
        case PascalContextData():
            return _only(_shipped("pascal_context"), range(60 - data.num_classes, 60))  # the background comes first
        case _:
            return _shipped(data.kind)


def cityscapes_label_ids() -> tuple[int, ...]:
    """The id of each of the 19 classes in Cityscapes' labelIds files; the others of 0..33 are not scored."""
    return tuple(_tables()["cityscapes"]["label_ids"])


def cocostuff_ids(count: int) -> tuple[int, ...]:
    """Which of COCO-Stuff's ids 0..181 each train id stands for: all 182, or the 171 that were annotated."""
    never = _tables()["cocostuff"]["never_annotated"] if count == 171 else []
    return tuple(index for index in range(182) if index not in never)


def coco_voc_categories() -> tuple[int, ...]:
    """The COCO category id of each of VOC's 21 classes; the background's 0 is none."""
    return tuple(_tables()["coco_voc21"]["category_ids"])


def pascal_context_raw_ids() -> tuple[int, ...]:
    """Which of PASCAL Context's 459 raw ids each of the 60 classes is; the background's 0 stands for all others."""
    return tuple(_tables()["pascal_context"]["raw_ids"])


def pascal_context_owners_order() -> tuple[int, ...]:
    """The class, 0..59, that each value of the owners' 59-class files stands for."""
    return tuple(_tables()["pascal_context"]["owners_order"])


def voc_colours(count: int) -> UInt8:
    """The colours of PASCAL VOC's class maps for indices 0..count-1, count <= 256: (count, 3) uint8.

    The bits of the index go to red, green, blue, red, ... in turn, each channel filling from its top bit down.
    """
    index = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        value = (index >> bit & 1) << (7 - bit // 3)
        colours[:, bit % 3] |= value.astype(np.uint8)
    return colours


@cache
def _tables() -> dict[str, dict[str, Any]]:
    text = importlib.resources.files("emaseg.data").joinpath("label_sets.toml").read_text("utf-8")
    return tomllib.loads(text)


def _shipped(name: str) -> LabelSet:
    table = _tables()[name]
    classes = tuple(table["classes"])
    if "palette" not in table:
        return LabelSet(classes, voc_colours(len(classes)))
    rgb = np.frombuffer(bytes.fromhex(table["palette"]), np.uint8)
    return LabelSet(classes, rgb.reshape(-1, 3).copy())


def _only(labels: LabelSet, kept: Sequence[int]) -> LabelSet:
    """Some of the classes, in the order of `kept`, with their colours."""
    return LabelSet(tuple(labels.classes[index] for index in kept), labels.palette[list(kept)])
