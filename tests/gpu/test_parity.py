"""The published numbers on CUDA: float32 without TF32, bf16 and fp16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from emaseg.models import Network, build_model
from emaseg.models.layers import Step
from emaseg.recipe import load_recipe
from emaseg.training.compute import autocast, place, switches
from emaseg.weights.convert import recognise
from tests.parity import GOLDEN, blocky_labels, fill, golden, images, keys_of, no_dropout, worst

pytestmark = pytest.mark.gpu

RECIPES = Path(__file__).parents[2] / "recipes"
FIXTURES = {"emanet_r50d8_voc": "voc_r50_d8", "memorynet_r50d8_ade20k": "memorynet_ade20k_r50_d8"}
# Largest error of the logits relative to the largest logit, and relative error of the losses. Of 16 bits: what their
# rounding makes of logits that random weights and few cells leave close to each other.
LIMITS = {"fp32": (1e-3, 1e-4), "bf16": (0.25, 0.05), "fp16": (0.05, 0.01)}
LOSSES = {
    "emanet_r50d8_voc": ("losses.train", {"loss_cls": "main", "loss_aux": "auxiliary"}),
    "memorynet_r50d8_ade20k": (
        "losses.step1.log",
        {"loss_cls_stage1": "coarse", "loss_cls_stage2": "main", "loss_aux": "auxiliary"},
    ),
}


def filled(name: str, precision: str, device: torch.device) -> tuple[Network, torch.autocast]:
    """The fixture's network on the device, and the block that computes in that precision."""
    recipe = load_recipe(str(RECIPES / f"{FIXTURES[name]}.toml"), ["train.seed=0", f'train.precision="{precision}"'])
    model = build_model(recipe)
    known = recognise({"model": {k: fill(k, s, d) for k, s, d in keys_of(f"ssseg/{name}")}})
    assert known is not None
    model.load_state_dict({**model.state_dict(), **known[1]})
    place(model, recipe.train, device)
    return model, autocast(recipe.train, device)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", FIXTURES)
def test_parity(name: str, precision: str, device: torch.device) -> None:
    """Protects the published numbers on a GPU: logits and losses, in each precision as near as that allows."""
    meta = json.loads((GOLDEN / f"ssseg/{name}.meta.json").read_text())
    reference = golden(f"ssseg/{name}.npz")
    height, width = meta["hw"]
    recipe = load_recipe(str(RECIPES / f"{FIXTURES[name]}.toml"))
    model, block = filled(name, precision, device)
    of_logits, of_losses = LIMITS[precision]
    with switches(recipe.train, device):  # TF32 off
        with torch.inference_mode(), block:
            logits = model.eval()(images((1, 3, height, width), 0).to(device))
        assert worst(logits.float(), reference["eval_logits"]) <= of_logits
        no_dropout(model.train())
        for key, value in model.named_buffers():
            if key == "memory.features":  # the fixture's first step begins with an empty one
                value.zero_()
        labels = blocky_labels((2, height, width), meta["num_classes"]).to(device)
        path, names = LOSSES[name]
        expected = meta
        for key in path.split("."):
            expected = expected[key]
        about = meta["losses"].get("step1", {"epoch": 1, "lr": 0.01})
        with block:
            x = images((2, 3, height, width), 0).to(device)
            losses = model.training_step(x, labels, Step(0, about["epoch"], about["lr"]))
    for theirs, own in names.items():
        assert losses[own].item() == pytest.approx(expected[theirs], rel=of_losses), own
    assert all(loss.dtype == torch.float32 for loss in losses.values())
