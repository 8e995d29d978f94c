"""Folders as people have them, and the first steps of a training with what `init` wrote for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.checks import check_dataset
from emaseg.data.dataset import Dataset
from emaseg.data.pipeline.transforms import sample_rng, train_crop
from emaseg.errors import DataError
from emaseg.open_datasets import open_datasets
from emaseg.recipe import FolderData, Recipe, parse_recipe
from emaseg.starter import Machine, Started, start_recipe

SIZE = (24, 32)
Draw = Callable[[int], Image.Image]


def start(folder: Path, **options: str) -> Started:
    events = start_recipe(folder, Machine, **options)
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def made(
    root: Path, draw: Draw, image: str = "images/img_{}.jpg", mask: str = "masks/img_{}.png", count: int = 6
) -> Path:
    """Photographs that differ, and masks as `draw` makes them, saved under the names given."""
    rng = np.random.default_rng(0)
    for number in range(count):
        for pattern, picture in ((image, None), (mask, draw(number))):
            path = root / pattern.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            (picture or Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8))).save(path)
    return root


def blob(*values: int, dtype: type = np.uint8) -> np.ndarray:
    """(H, W) of the first value with an area of each of the others."""
    array = np.full(SIZE, values[0], dtype)
    for place, value in enumerate(values[1:]):
        array[4:20, 3 + 9 * place : 11 + 9 * place] = value
    return array


def grey(*values: int) -> Draw:
    return lambda _: Image.fromarray(blob(*values))


def data_of(started: Started) -> FolderData:
    assert isinstance(started.recipe.data, FolderData)
    return started.recipe.data


def dry_run(text: str) -> Recipe:
    """What training does first with a recipe's text: read it, check both parts, cut one crop."""
    recipe = parse_recipe(text, "written by init").recipe
    train, evaluation, _ = open_datasets(recipe)
    for dataset in (train, evaluation):
        check_dataset(dataset)
    crop = train_crop(train.open(0), recipe.augment, sample_rng(0, 0, 0))
    assert crop.label.max() < 256
    return recipe


def labels(dataset: Dataset) -> set[int]:
    return {int(value) for place in range(len(dataset)) for value in np.unique(dataset.open(place).label())}


def refused(root: Path, *words: str) -> DataError:
    with pytest.raises(DataError) as caught:
        start(root)
    assert caught.value.hint
    for word in words:
        assert word in f"{caught.value.message}\n{caught.value.hint}"
    return caught.value


def indexed(values: np.ndarray, palette: list[int]) -> Image.Image:
    picture = Image.fromarray(values)
    picture.putpalette(palette)
    return picture
