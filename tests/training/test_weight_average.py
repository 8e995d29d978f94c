"""The moving average of the weights: its rule, that it changes nothing in the training, and that it is what is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emaseg.checkpoint import load_network, read_checkpoint, save_checkpoint
from emaseg.errors import WeightsError
from emaseg.events import Evaluated
from emaseg.models import build_model
from emaseg.reference import resolve
from emaseg.training.train import train
from emaseg.training.weight_average import WeightAverage
from tests.helpers import equal, run, tiny

RECIPE = tiny("optim.average_decay=0.8", "train.iterations=6", "train.evaluate_every=3")


def _moved(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(torch.randn(value.shape) if value.is_floating_point() else 1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_follows_its_rule_step_by_step(decay: float) -> None:
    """Protects the recurrence, its start, and what it leaves out; a decay of 0 is the plain weights."""
    torch.manual_seed(0)
    model = build_model(tiny())
    average = WeightAverage(model, decay)
    expected = {key: value.numpy().astype(np.float64) for key, value in average.state.items()}
    names = {name for name, _ in model.named_parameters()}
    for step in range(1, 8):
        _moved(model)
        average.update(model, step)
        d = min(decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            kept = key in names or key.endswith(("running_mean", "running_var"))
            expected[key] = d * expected[key] + (1 - d) * value.numpy() if kept else value.numpy()
    for key, value in average.state.items():
        assert np.allclose(value.numpy(), expected[key], rtol=1e-4, atol=1e-5), key
    assert equal(average.state, dict(model.state_dict())) == (decay == 0)
    assert torch.equal(average.state["attention.bases"], model.state_dict()["attention.bases"])


def test_the_network_is_back_to_the_bit_after_the_block() -> None:
    """Protects the training from its evaluations."""
    model = build_model(tiny())
    average = WeightAverage(model, 0.5)
    kept = {key: value.clone() for key, value in average.state.items()}
    _moved(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with average.in_place_of(model):
        assert equal(dict(model.state_dict()), kept)
    assert equal(dict(model.state_dict()), before)
    assert equal(average.state, kept)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(RECIPE, out)
    return out


def test_the_training_is_the_one_without_it(whole: Path, tmp_path: Path) -> None:
    """Protects the weights that are trained: averaging looks at them and changes nothing."""
    run(tiny("train.iterations=6", "train.evaluate_every=3"), tmp_path / "plain")
    plain = torch.load(tmp_path / "plain/checkpoints/last.pt", weights_only=True)
    averaged = read_checkpoint(whole / "checkpoints/last.pt")
    assert "evaluated and saved is the moving average of the weights" in (whole / "log.txt").read_text()
    assert "average" not in plain
    assert equal(plain["model"], averaged.model)
    assert not equal(averaged.model, averaged.average)


def test_a_resumed_average_is_the_same_to_the_bit(whole: Path, tmp_path: Path) -> None:
    """Protects the average, and the scores that are measured with it, from an interruption."""
    run(RECIPE, tmp_path / "cut", stop_after=4)
    run(RECIPE, tmp_path / "cut", resume=True)
    one, two = (read_checkpoint(path / "checkpoints/last.pt") for path in (whole, tmp_path / "cut"))
    assert equal(one.average, two.average)
    assert equal(one.model, two.model)
    assert one.best == two.best


def test_everything_after_the_training_uses_the_average_and_says_so(whole: Path, tmp_path: Path) -> None:
    """Protects eval, predict, export and --init-from from the other weights in the file, and users from not knowing."""
    file = whole / "checkpoints/last.pt"
    average = read_checkpoint(file).average
    resolved = resolve(str(whole), checkpoint="last")
    assert any("moving average of its weights (optim.average_decay = 0.8)" in note for note in resolved.notes)
    assert equal(dict(load_network(resolved.recipe, file).state_dict()), average)
    assert equal(dict(resolved.state or {}), average)
    started = tiny("train.iterations=1", "train.evaluate_every=1", f"train.init_from='{file}'", "optim.lr=1e-30")
    scores = [event for event in train(started, tmp_path / "next") if isinstance(event, Evaluated)]
    own = read_checkpoint(tmp_path / "next/checkpoints/last.pt").model
    assert torch.equal(own["classifier.weight"], average["classifier.weight"])
    assert scores


def test_a_checkpoint_without_its_average_is_refused(whole: Path, tmp_path: Path) -> None:
    """Protects a resume from averaging from the wrong start without a word."""
    checkpoint = read_checkpoint(whole / "checkpoints/last.pt")
    half = dict(list(checkpoint.average.items())[:5])
    for name, average in (("none", {}), ("half", half)):
        file = tmp_path / name / "checkpoints/last.pt"
        file.parent.mkdir(parents=True)
        save_checkpoint(file, replace(checkpoint, average=average))
        with pytest.raises(WeightsError, match="average"):
            list(train(RECIPE, tmp_path / name, resume=True))
