"""A data set whose images are not 8-bit RGB.

Room: data/sets.
"""

from __future__ import annotations

import dataclasses

from emaseg.data.dataset import Dataset
from emaseg.data.files.bands import Bands
from emaseg.data.sets.packed import PackedFiles
from emaseg.data.sets.pairs import PairedFiles
from emaseg.errors import RecipeError


def with_bands(dataset: Dataset, bands: Bands | None) -> Dataset:
    """The same samples, their images read so; None = as 8-bit RGB.

    Raises:
        RecipeError: a kind of data set whose images are always 8-bit RGB.
    """
    if isinstance(dataset, PairedFiles | PackedFiles):
        return dataclasses.replace(dataset, bands=bands)
    if bands is None:
        return dataset
    raise RecipeError("backbone.in_channels: the images of this data set are RGB", "write backbone.in_channels = 3")
