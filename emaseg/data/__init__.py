"""Data sets: what the recipe's [data] names, as a list of samples.

Room: data. Imports errors only; each data set's module (and with it torch) is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from emaseg.data.sample import Dataset
    from emaseg.recipe.schema import (
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

Part = Literal["train", "eval"]


def _voc(data: VOCData, part: Part) -> Dataset:
    from emaseg.data.sets.voc import voc

    return voc(data, part)


def _ade20k(data: ADE20KData, part: Part) -> Dataset:
    from emaseg.data.sets.ade20k import ade20k

    return ade20k(data, part)


def _cityscapes(data: CityscapesData, part: Part) -> Dataset:
    from emaseg.data.sets.cityscapes import cityscapes

    return cityscapes(data, part)


def _cocostuff(data: CocoStuffData, part: Part) -> Dataset:
    from emaseg.data.sets.cocostuff import cocostuff

    return cocostuff(data, part)


def _lip(data: LIPData, part: Part) -> Dataset:
    from emaseg.data.sets.lip import lip

    return lip(data, part)


def _pascal_context(data: PascalContextData, part: Part) -> Dataset:
    from emaseg.data.sets.pascal_context import pascal_context

    return pascal_context(data, part)


def _coco_voc(data: CocoVOCData, part: Part) -> Dataset:
    from emaseg.data.sets.coco_voc import coco_voc

    return coco_voc(data, part)


def _folder(data: FolderData, part: Part) -> Dataset:
    from emaseg.data.sets.folder import folder

    return folder(data, part)


def _packed(data: PackedData, part: Part) -> Dataset:
    from emaseg.data.sets.packed import packed

    return packed(data, part)


def _shapes(data: ShapesData, part: Part) -> Dataset:
    from emaseg.data.sets.shapes import Shapes

    return Shapes(data, part)


DATASETS: dict[str, Callable[[Any, Part], Dataset]] = {
    "voc": _voc,
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "cocostuff10k": _cocostuff,
    "cocostuff164k": _cocostuff,
    "lip": _lip,
    "pascal_context": _pascal_context,
    "coco_voc21": _coco_voc,
    "folder": _folder,
    "shapes": _shapes,
    "packed": _packed,
}


def build_dataset(data: Data, part: Part) -> Dataset:
    """The training or the evaluation part of the data set that a recipe names.

    Raises:
        RecipeError: the data set has no such split.
        DataError: files or folders are missing.
    """
    return DATASETS[data.kind](data, part)
