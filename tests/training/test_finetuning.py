"""All options of a fine-tuning together: a dry run measures them, a resume repeats them to the bit, damage is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emaseg.checkpoint import read_checkpoint
from emaseg.errors import RecipeError, WeightsError
from emaseg.events import Forecast
from emaseg.recipe import load_recipe
from emaseg.training.dry_run import dry_run
from emaseg.training.train import train
from tests.helpers import equal, run, tiny

OPTIONS = (
    "optim.kind='adamw'",
    "optim.lr=1e-3",
    "optim.weight_decay=0.05",
    "optim.groups=[{match='bias', weight_decay_scale=0}, {match='backbone', lr_scale=0.1}]",
    "optim.warmup=4",
    "optim.clip_norm=0.5",
    "optim.average_decay=0.9",
    "loss.class_balance='inverse_log'",
    "loss.dice_weight=0.5",
    "loss.label_smoothing=0.1",
    "loss.ohem_threshold=0.9",
    "loss.ohem_min_kept=200",
    "augment.vertical_flip=0.5",
    "augment.quarter_turns=0.5",
    "augment.blur=0.5",
    "augment.noise=0.5",
    "augment.jpeg=0.5",
    "train.freeze='backbone_norms'",
    "train.patience=3",
    "train.hours=100",
    "train.iterations=8",
    "train.evaluate_every=3",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(tiny(*OPTIONS), out)
    return out


@pytest.mark.parametrize("stop", [2, 6])
def test_a_resumed_run_equals_the_whole_one(whole: Path, tmp_path: Path, stop: int) -> None:
    """Protects every state that these options add: moments and their counts, the average, weights, draws, the schedule."""
    run(tiny(*OPTIONS), tmp_path / "cut", stop_after=stop)
    run(tiny(*OPTIONS), tmp_path / "cut", resume=True)
    one, two = (torch.load(path / "checkpoints/last.pt", weights_only=True) for path in (whole, tmp_path / "cut"))
    for key in ("model", "average", "optimizer", "best", "rng", "recipe"):
        assert equal(one[key], two[key]), key


def test_the_run_folder_holds_a_recipe_that_runs_again(whole: Path, tmp_path: Path) -> None:
    """Protects recipe.toml: what was used stands in it, the computed weights too, and it gives the same weights again."""
    recipe = load_recipe(whole / "recipe.toml")
    assert recipe.loss.class_weights
    run(recipe, tmp_path / "again")
    one, two = (read_checkpoint(path / "checkpoints/last.pt") for path in (whole, tmp_path / "again"))
    assert equal(one.average, two.average)


def test_a_dry_run_measures_them(tmp_path: Path) -> None:
    """Protects the forecast from options that it does not know: it takes their steps, and writes nothing."""
    forecast = list(dry_run(tiny(*OPTIONS), device=torch.device("cpu")))[-1]
    assert isinstance(forecast, Forecast)
    assert forecast.fits
    assert ("time limit", "100 h: all 8 steps; decided 20 steps after the start") in forecast.lines


def test_another_option_is_another_training(whole: Path) -> None:
    """Protects a resume from going on with what it was not started with."""
    for change in (
        "loss.dice_weight=0.1",
        "optim.average_decay=0",
        "loss.class_weights=[1,1,1,1,1]",
    ):
        with pytest.raises(RecipeError, match=change.split("=")[0]):
            list(train(tiny(*OPTIONS, change), whole, resume=True))


def _moments(content: dict[str, Any]) -> dict[str, Any]:
    """AdamW's state of the first parameter."""
    state: dict[str, Any] = content["optimizer"]["state"][0]
    return state


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no moments": (lambda c: c["optimizer"].update(state={}), "no momentum"),
    "half of the moments": (lambda c: _moments(c).pop("exp_avg_sq"), "incomplete"),
    "moments of another shape": (lambda c: _moments(c).update(exp_avg=torch.zeros(3)), "momentum of parameter 0"),
    "a square that is no number": (lambda c: _moments(c)["exp_avg_sq"].fill_(math.nan), "mean square of parameter 0"),
    "no count": (lambda c: _moments(c).pop("step"), "steps of parameter 0"),
    "a count that is text": (lambda c: _moments(c).update(step="8"), "steps of parameter 0"),
    "a count from the future": (lambda c: _moments(c).update(step=torch.tensor(1e9)), "steps of parameter 0"),
    "a count that is no number": (lambda c: _moments(c).update(step=torch.tensor(math.nan)), "steps of parameter 0"),
    "another beta": (lambda c: c["optimizer"]["param_groups"][0].update(betas=(0.5, 0.5)), "betas of parameter group 0"),
    "SGD's state": (lambda c: c["optimizer"].update(state={0: {"momentum_buffer": torch.zeros(3)}}), "no momentum"),
    "an average of one number": (lambda c: c.update(average={"x": torch.zeros(1)}), "average"),
    "an average that is text": (lambda c: c.update(average="x"), "average must be a table of tensors"),
    "an average that is no number": (lambda c: c["average"]["classifier.bias"].fill_(math.inf), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_state_is_named(whole: Path, tmp_path: Path, name: str) -> None:
    """Protects a resume from AdamW's state, or an average, that is not what it must be."""
    change, message = WRONG[name]
    content = torch.load(whole / "checkpoints/last.pt", weights_only=True)
    change(content)
    file = tmp_path / "run/checkpoints/last.pt"
    file.parent.mkdir(parents=True)
    torch.save(content, file)
    with pytest.raises(WeightsError) as caught:
        list(train(tiny(*OPTIONS), tmp_path / "run", resume=True))
    assert message in caught.value.message
