"""The built-in data set: repeatable, well labelled, and impossible to solve by colour."""

from __future__ import annotations

import numpy as np
import pytest

from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.shapes import Shapes
from emaseg.metrics import Confusion
from emaseg.recipe import load_recipe
from emaseg.recipe.data import ShapesData

BITS = 4  # colours are told apart in steps of 16


def colour_index(image: np.ndarray) -> np.ndarray:
    levels = (image >> (8 - BITS)).astype(np.int64)
    return (levels[..., 0] << 2 * BITS) | (levels[..., 1] << BITS) | levels[..., 2]


def colour_classifier_miou(train: Shapes, test: Shapes, images: int) -> float:
    """mIoU of the best guess from one pixel's colour: the most frequent class of its colour in the training images."""
    counts = np.zeros((1 << 3 * BITS, len(train.classes)), np.int64)
    for i in range(images):
        sample = train.open(i)
        np.add.at(counts, (colour_index(sample.image()).ravel(), sample.label().ravel()), 1)
    table = counts.argmax(axis=1).astype(np.uint8)
    confusion = Confusion.empty(len(train.classes))
    for i in range(len(test)):
        sample = test.open(i)
        confusion.add(sample.label(), table[colour_index(sample.image())])
    miou = confusion.scores(train.classes, len(test)).miou
    assert miou is not None
    return miou


def test_colour_does_not_tell_the_class() -> None:
    """Protects the demo's claim (mIoU of at least 0.70): the best per-pixel colour classifier stays far below 0.45."""
    data = load_recipe("demo").data
    assert isinstance(data, ShapesData)
    assert colour_classifier_miou(Shapes(data, "train"), Shapes(data, "eval"), 1000) < 0.40


def test_a_sample_depends_on_seed_part_and_index_alone() -> None:
    """Protects repeatability, and that training and evaluation never share an image."""
    data = ShapesData(kind="shapes", size=(32, 48), train_images=5, eval_images=5)
    train, test = build_dataset(data, "train"), build_dataset(data, "eval")
    first = train.open(3)
    assert first.image().shape == (32, 48, 3)
    assert first.label().shape == (32, 48)
    assert np.array_equal(first.image(), build_dataset(data, "train").open(3).image())
    others = [
        train.open(2),
        test.open(3),
        build_dataset(ShapesData(kind="shapes", size=(32, 48), seed=1), "train").open(3),
    ]
    assert not any(np.array_equal(first.image(), other.image) for other in others)


@pytest.mark.parametrize("phase", ["train", "eval"])
def test_every_class_is_common(phase: str) -> None:
    """Protects learning and scoring: each class covers at least 2 % of the pixels."""
    data = ShapesData(kind="shapes", size=(64, 64), train_images=100, eval_images=100)
    dataset = build_dataset(data, "train" if phase == "train" else "eval")
    counts = sum(np.bincount(dataset.open(i).label().ravel(), minlength=5) for i in range(100))
    assert (counts / counts.sum() > 0.02).all()
