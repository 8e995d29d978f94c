"""The data set that a recipe's [data] names, opened.

Room: data/sets. It is no part of __init__.py: whoever imports one data set's module runs __init__.py, too, and
would import all the others.
"""

from __future__ import annotations

from typing import assert_never

from emaseg.data.dataset import Dataset, Phase
from emaseg.data.files.bands import Bands
from emaseg.data.sets.ade20k import ade20k
from emaseg.data.sets.banded import with_bands
from emaseg.data.sets.cityscapes import cityscapes
from emaseg.data.sets.coco_voc import coco_voc
from emaseg.data.sets.cocostuff import cocostuff
from emaseg.data.sets.folder import folder
from emaseg.data.sets.lip import lip
from emaseg.data.sets.packed import packed
from emaseg.data.sets.pascal_context import pascal_context
from emaseg.data.sets.shapes import shapes
from emaseg.data.sets.voc import voc
from emaseg.recipe.data import (
    ADE20KData,
    CityscapesData,
    CocoStuffData,
    CocoVOCData,
    Data,
    FolderData,
    LIPData,
    PackedData,
    PascalContextData,
    ShapesData,
    VOCData,
)


def build_dataset(data: Data, phase: Phase, bands: Bands | None = None) -> Dataset:
    """The samples that a recipe trains on ("train") or is scored on ("eval").

    Args:
        bands: what the recipe declares of its images (data.files.bands.bands_of); None = 8-bit RGB.

    Raises:
        RecipeError: the data set has no such split.
        DataError: files or folders are missing.
    """
    dataset = _build(data, phase)
    return dataset if bands is None else with_bands(dataset, bands)


def _build(data: Data, phase: Phase) -> Dataset:
    match data:
        case VOCData():
            return voc(data, phase)
        case ADE20KData():
            return ade20k(data, phase)
        case CityscapesData():
            return cityscapes(data, phase)
        case CocoStuffData():
            return cocostuff(data, phase)
        case LIPData():
            return lip(data, phase)
        case PascalContextData():
            return pascal_context(data, phase)
        case CocoVOCData():
            return coco_voc(data, phase)
        case FolderData():
            return folder(data, phase)
        case ShapesData():
            return shapes(data, phase)
        case PackedData():
            return packed(data, phase)
        case _:
            assert_never(data)
