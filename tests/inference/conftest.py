"""An untrained, tiny EMANet: its checkpoint and its predictor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import emaseg
from emaseg.checkpoint import Checkpoint, save_checkpoint
from emaseg.inference.predict import Predictor
from tests.inference.made import SMALL


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained EMANet on a 14-layer ResNet."""
    recipe = emaseg.load_recipe("demo", SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = emaseg.build_model(recipe)
    path = tmp_path_factory.mktemp("run") / "tiny.pt"
    save_checkpoint(
        path,
        Checkpoint(model=model.state_dict(), optimizer={}, step=0, epoch=0, best={}, rng={}, sampler={}, recipe=recipe),
    )
    return path


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor.from_weights(weights)
