"""Data sets: what the recipe's [data] names, as a list of samples.

Room: data. Imports errors only; each data set's module (and with it torch) is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from emaseg.data.sample import Dataset
    from emaseg.recipe.schema import Data, FolderData, ShapesData, VOCData

Part = Literal["train", "eval"]


def _voc(data: VOCData, part: Part) -> Dataset:
    from emaseg.data.voc import voc

    return voc(data, part)


def _folder(data: FolderData, part: Part) -> Dataset:
    from emaseg.data.folder import folder

    return folder(data, part)


def _shapes(data: ShapesData, part: Part) -> Dataset:
    from emaseg.data.shapes import Shapes

    return Shapes(data, part)


DATASETS: dict[str, Callable[[Any, Part], Dataset]] = {
    "voc": _voc,
    "folder": _folder,
    "shapes": _shapes,
}


def build_dataset(data: Data, part: Part) -> Dataset:
    """The training or the evaluation part of the data set that a recipe names.

    Raises:
        RecipeError: this version has no reader for data.kind.
        DataError: files or folders are missing.
    """
    if data.kind not in DATASETS:
        from emaseg.recipe import not_available

        raise not_available("data.kind", data.kind, DATASETS)
    return DATASETS[data.kind](data, part)
