"""Data sets: what the recipe's [data] names, as a list of samples.

Room: data/sets. A data set's module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emaseg.data.dataset import Dataset, Phase
    from emaseg.data.files.bands import Bands
    from emaseg.recipe.data import Data

# data.kind: the module of this folder whose function of the same name opens one phase of it
READERS = {
    "voc": "voc",
    "ade20k": "ade20k",
    "cityscapes": "cityscapes",
    "cocostuff10k": "cocostuff",
    "cocostuff164k": "cocostuff",
    "lip": "lip",
    "pascal_context": "pascal_context",
    "coco_voc21": "coco_voc",
    "folder": "folder",
    "shapes": "shapes",
    "packed": "packed",
}


def build_dataset(data: Data, phase: Phase, bands: Bands | None = None) -> Dataset:
    """The samples that a recipe trains on ("train") or is scored on ("eval").

    Args:
        bands: what the recipe declares of its images (data.files.bands.bands_of); None = 8-bit RGB.

    Raises:
        RecipeError: the data set has no such split.
        DataError: files or folders are missing.
    """
    name = READERS[data.kind]
    module = importlib.import_module(f"emaseg.data.sets.{name}")
    dataset: Dataset = getattr(module, name)(data, phase)
    if bands is None:
        return dataset
    banded: Dataset = importlib.import_module("emaseg.data.sets.banded").with_bands(dataset, bands)
    return banded
