"""Predicting one picture: what counts as one, and which weights; with a real, tiny EMANet."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import emaseg
from emaseg.errors import DataError, RecipeError, WeightsError
from emaseg.inference.predict import Predictor
from emaseg.inference.prediction import class_shares
from tests.inference.made import SMALL, picture


def test_predictor_reads_files_arrays_and_pictures_alike(predictor: Predictor, tmp_path: Path) -> None:
    """The same pixels give the same labels, however they arrive."""
    path = picture(tmp_path / "a.png")
    with Image.open(path) as opened:
        pixels = np.array(opened)
        results = [predictor.predict(source) for source in (path, str(path), pixels, opened)]
    for result in results:
        assert np.array_equal(result.labels, results[0].labels)
    first = results[0]
    assert (first.width, first.height, first.labels.shape, first.labels.dtype) == (56, 40, (40, 56), np.uint8)
    assert first.shares == class_shares(first.labels, predictor.classes)
    assert len(predictor.classes) == len(predictor.palette) == 5


def test_pillow_pictures_are_read_like_their_files(predictor: Predictor, tmp_path: Path) -> None:
    """Orientation, transparency and 16 bits: a picture opened with Pillow means what its file means."""
    grey = np.random.default_rng(1).integers(0, 65536, (24, 24), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    rgba = np.random.default_rng(2).integers(0, 256, (24, 24, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba[:16, :, :3].copy()).save(tmp_path / "turned.jpg", exif=exif)
    for name in ("deep.png", "clear.png", "turned.jpg"):
        with Image.open(tmp_path / name) as opened:
            assert np.array_equal(predictor.predict(opened).labels, predictor.predict(tmp_path / name).labels), name


def test_a_picture_that_cannot_be_read_is_a_data_error(predictor: Predictor, tmp_path: Path) -> None:
    """Pillow reads an opened file only when its pixels are wanted."""
    content = picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(DataError, match="picture: "):
        predictor.predict(opened)


def test_a_prediction_keeps_its_own_picture(predictor: Predictor) -> None:
    """A camera's next frame may come in the same array."""
    frame = np.full((40, 56, 3), 7, np.uint8)
    prediction = predictor.predict(frame)
    shown = np.array(prediction.overlay())
    frame[:] = 200
    np.testing.assert_array_equal(np.array(prediction.overlay()), shown)


def test_a_predictions_colours_are_its_own(predictor: Predictor) -> None:
    """Protects later predictions from a caller who recolours one."""
    prediction = predictor.predict(np.zeros((8, 8, 3), np.uint8))
    colours = predictor.palette.copy()
    prediction.palette[:] = 99
    np.testing.assert_array_equal(predictor.palette, colours)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": "disc"}, "classes: .* is a text"),
        ({"top_k": 2.0, "probabilities": True}, "top_k: is of type float"),
        ({"top_k": 2}, "top_k: .*not asked for"),
        ({"min_confidence": "0.5"}, "min_confidence: is of type str"),
    ],
)
def test_arguments_of_another_type_are_refused(predictor: Predictor, wrong: dict[str, Any], message: str) -> None:
    """Protects from a message about a class called "d", from a TypeError deep inside, and from an option without effect."""
    with pytest.raises(RecipeError, match=message):
        predictor.predict(np.zeros((8, 8, 3), np.uint8), **wrong)
    with pytest.raises(RecipeError, match=r"classes: .* is a text"):
        predictor.predict(np.zeros((8, 8, 3), np.uint8)).limited("disc")


def test_a_predictor_that_was_used_can_be_copied_and_sent(predictor: Predictor) -> None:
    """Protects worker processes: weights in oneDNN's own layouts can be neither copied nor pickled."""
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    expected = predictor.predict(image, confidence=True)
    for other in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        own = other.predict(image, confidence=True)
        np.testing.assert_array_equal(own.labels, expected.labels)
        np.testing.assert_allclose(own.confidence, expected.confidence, atol=1e-5)


def test_arrays_that_are_no_images_are_refused(predictor: Predictor) -> None:
    """Channels first in an array, floats beyond 1 and 16 bits would give a silent wrong answer."""
    floats = np.full((8, 8, 3), 200, np.float32)
    for wrong in (np.zeros((3, 8, 8), np.uint8), floats, np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8), np.uint16)):
        with pytest.raises(DataError, match="is not an image"):
            predictor.predict(wrong)  # type: ignore[arg-type]


def test_shares_are_sorted_and_add_up() -> None:
    """Largest first, in the class order where equal; absent classes are not listed."""
    labels = np.array([[2, 2, 2, 0], [1, 0, 1, 2]], np.uint8)
    assert class_shares(labels, ("a", "b", "c", "d")) == (("c", 0.5), ("a", 0.25), ("b", 0.25))


def test_foreign_weights_need_a_recipe(tmp_path: Path) -> None:
    """A weight file does not say what network it belongs to unless it is ours."""
    torch.save({"model": {}}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match="not an emaseg checkpoint"):
        Predictor.from_weights(tmp_path / "foreign.pth")


def test_a_recipe_may_replace_the_one_inside(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol of one's own on the same network, in a file of any name: `~` is home, and `~old.pt` nobody's."""
    recipe = emaseg.load_recipe("demo", [*SMALL, "inference.flip=true"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(weights, "~old.pt")
    for name in (weights, "~old.pt", "~/~old.pt"):
        assert Predictor.from_weights(name, recipe=recipe).recipe.inference.flip
