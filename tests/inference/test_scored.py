"""What is asked of a network or a prediction that does not hold it is refused, not made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from emaseg.data.sets.build import build_dataset
from emaseg.errors import DataError, RecipeError
from emaseg.evaluation.evaluate import evaluate
from emaseg.inference.outputs import Output
from emaseg.inference.predict import Predictor
from emaseg.inference.predict_files import predict_files
from emaseg.recipe import Recipe
from emaseg.recipe.data import num_classes
from tests.exporting.made import checkpoint, recipe

IMAGE = np.zeros((24, 32, 3), np.uint8)


class Scores(nn.Module):
    """A network whose first class is everywhere the most likely, as an exported file is one.

    decides: as of a file with the arg max inside.
    """

    align_corners = False

    def __init__(self, classes: int, *, decides: bool) -> None:
        super().__init__()
        self.num_classes = classes
        self.decides = decides

    def forward(self, images: Tensor) -> Tensor:
        scores = torch.zeros(len(images), self.num_classes, *images.shape[2:])
        scores[:, 0] = 1
        return scores


@pytest.fixture(scope="module")
def made() -> Recipe:
    return recipe("emanet")


def predictor(made: Recipe, *, decides: bool) -> Predictor:
    return Predictor(Scores(num_classes(made.data), decides=decides), made)


@pytest.mark.parametrize("asked", [{"confidence": True}, {"probabilities": True}, {"min_confidence": 0.5}])
def test_a_file_of_class_ids_is_asked_for_no_probabilities(asked: dict[str, float], made: Recipe) -> None:
    """Protects masks and confidence: softmax of 1 and 0 is not a probability."""
    (name,) = asked
    own = predictor(made, decides=True)
    assert (own.predict(IMAGE).labels == 0).all()
    with pytest.raises(RecipeError, match=f"{name}: .*gives no probabilities") as caught:
        own.predict(IMAGE, **asked)  # type: ignore[call-overload]
    assert "without --include argmax" in caught.value.hint


def test_files_of_probabilities_are_refused_before_the_first_image(made: Recipe, tmp_path: Path) -> None:
    """Protects a folder of results from half of them."""
    own = predictor(made, decides=True)
    cases: tuple[tuple[tuple[Output, ...], float], ...] = (
        (("mask", "confidence"), 0.0),
        (("probabilities",), 0.0),
        (("mask",), 0.5),
    )
    for save, least in cases:
        with pytest.raises(RecipeError, match="gives no probabilities"):
            predict_files(own, [], tmp_path, save, min_confidence=least)


def test_calibration_needs_probabilities(made: Recipe) -> None:
    """Protects metrics.json: how sure a network is, of one that does not say it."""
    stats = made.backbone.pixel_stats
    model = Scores(num_classes(made.data), decides=True)
    dataset = build_dataset(made.data, "eval", None)
    with pytest.raises(RecipeError, match=r"calibration: .*gives no probabilities"):
        next(evaluate(model, dataset, made.inference, stats, torch.device("cpu"), calibration=True))


def test_names_may_come_one_by_one(made: Recipe) -> None:
    """Protects every pixel from "ignore": an iterator of names is read once."""
    own = predictor(made, decides=False)
    names = [own.classes[0]]
    assert (own.predict(IMAGE, classes=iter(names)).labels == 0).all()  # type: ignore[call-overload]
    assert (own.predict(IMAGE).limited(iter(names)).labels == 0).all()  # type: ignore[arg-type]


def test_a_limit_that_cannot_be_checked_is_refused(made: Recipe) -> None:
    """Protects from a typo that empties a mask, and from a limit that nothing is compared with."""
    prediction = predictor(made, decides=False).predict(IMAGE)
    with pytest.raises(RecipeError, match="knows no class called zebra"):
        prediction.limited(["zebra"])
    with pytest.raises(RecipeError, match="holds no confidence"):
        prediction.limited(min_confidence=0.5)
    with pytest.raises(RecipeError, match="is not a probability"):
        prediction.limited(min_confidence=2)


def test_arguments_that_mean_nothing_are_refused(made: Recipe) -> None:
    """Protects programs from errors of Python's, and from a result of something else than what was asked for."""
    own = predictor(made, decides=False)
    with pytest.raises(DataError, match="0 x 8 pixels"):
        own.predict(Image.new("RGB", (16, 16)).crop((3, 0, 3, 8)))
    for count in (0, -1):
        with pytest.raises(RecipeError, match=f"iterations: {count}"):
            own.bases(IMAGE, count)
        with pytest.raises(RecipeError, match=f"max_memory: {count}"):
            Predictor(own.model, made, max_memory=count)
    with pytest.raises(RecipeError, match="max_memory: is of type str"):
        Predictor(own.model, made, max_memory="2G")  # type: ignore[arg-type]


def test_a_home_folder_is_meant(made: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects `~` beside a recipe, as without one."""
    checkpoint(made, tmp_path / "own.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Predictor.from_weights("~/own.pt", recipe=made).classes
