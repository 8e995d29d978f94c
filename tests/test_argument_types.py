"""The Python API: what is of the wrong type is our error with a remedy, and a REF means the same as in the commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import emaseg
from emaseg.errors import EmasegError, RecipeError, WeightsError
from tests.exporting.made import checkpoint, network, recipe
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

WRONG: dict[str, Callable[[Any], object]] = {
    "load_recipe(3)": lambda _: emaseg.load_recipe(3),  # type: ignore[arg-type]
    "load_recipe(None)": lambda _: emaseg.load_recipe(None),  # type: ignore[arg-type]
    "one text of overrides": lambda _: emaseg.load_recipe("demo", overrides="train.batch=4"),
    "a number in overrides": lambda _: emaseg.load_recipe("demo", overrides=[3]),  # type: ignore[list-item]
    "build_model(name)": lambda _: emaseg.build_model("demo"),  # type: ignore[arg-type]
    "load_weights(model, None)": lambda model: emaseg.load_weights(model, None),  # type: ignore[arg-type]
    "load_weights(name, path)": lambda _: emaseg.load_weights("demo", "x.pt"),  # type: ignore[arg-type]
    "Predictor(path, recipe)": lambda _: emaseg.Predictor("run", tiny()),  # type: ignore[arg-type]
    "Predictor(model, name)": lambda model: emaseg.Predictor(model, "demo"),  # type: ignore[arg-type]
    "Predictor on a device of no such name": lambda model: emaseg.Predictor(model, tiny(), "gpu"),
    "from_weights(None)": lambda _: emaseg.Predictor.from_weights(None),  # type: ignore[arg-type]
    "from_weights(path, recipe=3)": lambda _: emaseg.Predictor.from_weights("x", recipe=3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_our_error(what: str) -> None:
    """Protects notebooks: no AttributeError from the depths, and `str()` of the error says what to give."""
    model = torch.nn.Linear(1, 1)
    with pytest.raises(EmasegError) as caught:
        WRONG[what](model)
    assert isinstance(caught.value, RecipeError)
    assert re.search(r"\n  try: \S", str(caught.value))


def test_a_ref_means_the_same_as_in_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from two meanings: run folder, folder of runs and checkpoint lead to the same weights."""
    monkeypatch.chdir(tmp_path)
    made = recipe("emanet")
    run = tmp_path / "runs" / "tiny" / "first"
    (run / "checkpoints").mkdir(parents=True)
    path = checkpoint(made, run / "checkpoints" / "best.pt")
    (run / "recipe.toml").write_text("")
    (run / "samples.png").touch()  # of a complete run
    wanted = network(made).state_dict()
    for ref in (run, run.parent, path, "runs/tiny/first"):
        model = network(made, seed=1)
        emaseg.load_weights(model, ref)
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items()), ref
        predictor = emaseg.Predictor.from_weights(ref)
        assert predictor.recipe == made
        assert emaseg.Predictor.from_weights(ref, recipe=made).recipe == made
    (tmp_path / "demo").mkdir()
    for ref in ("demo", "./demo", "nowhere/best.pt"):
        with pytest.raises(WeightsError) as caught:
            emaseg.Predictor.from_weights(ref)
        assert ("./demo" in str(caught.value)) is (ref == "demo")
