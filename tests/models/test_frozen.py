"""A frozen part keeps its values and its norm statistics; the rest learns as ever."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emaseg.data.pipeline.transforms import Batch
from emaseg.models import build_model
from emaseg.schedule import Schedule
from emaseg.training.optim import build_optimizer
from emaseg.training.step import training_step
from tests.helpers import tiny


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("part", ["none", "backbone", "backbone_norms"])
def test_what_is_frozen_does_not_move(part: str, optimizer: str) -> None:
    """Protects weights and statistics from a step, weight decay included, and the head from being frozen with them."""
    torch.manual_seed(0)
    recipe = tiny(f"train.freeze='{part}'", f"optim.kind='{optimizer}'", "optim.weight_decay=0.1")
    model = build_model(recipe).eval().train()
    norms = {
        f"{path}.{name}"
        for path, module in model.backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in module.state_dict()
    }
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = Batch(torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32)), ("a", "b"))
    training_step(model, build_optimizer(model, recipe.optim), batch, 0, Schedule(10, 10, 0), recipe)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    inside = {key.removeprefix("backbone.") for key in moved if key.startswith("backbone.")}
    assert {"reduce.conv.weight", "reduce.norm.running_mean", "classifier.weight"} <= moved
    if part == "backbone":
        assert not inside
    elif part == "backbone_norms":
        assert not inside & norms
        assert inside
    else:
        assert inside & norms


def test_frozen_layers_stay_in_eval_mode() -> None:
    """Protects the statistics after an evaluation, when the trainer calls train() again."""
    model = build_model(tiny("train.freeze='backbone'"))
    assert not model.eval().train().backbone.training
    assert model.reduce.training
