"""The whole EMANet against the published systems: names, logits, losses, gradients, buffers after one step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import emaseg
from emaseg.models.emanet import EMANet
from emaseg.models.layers import Step
from emaseg.weights.convert import FORMATS, rename
from tests.parity import (
    GOLDEN,
    blocky_labels,
    golden,
    gradient_norms,
    images,
    keys_of,
    no_dropout,
    worst,
)
from tests.shared import published_file

R50 = "emanet_r50d8_voc"
SSSEG = {
    R50: "voc_r50_d8",
    "emanet_r50d16_voc": "voc_r50_d16",
    "emanet_r101d16_ade20k": "ade20k_r101_d16",
}


def filled(name: str, recipe: str, factory: pytest.TempPathFactory, folder: Path) -> EMANet:
    model = emaseg.build_model(emaseg.load_recipe(recipe, ["train.seed=0"]))
    emaseg.load_weights(model, published_file(factory, name, folder))
    return model


@pytest.mark.parametrize("name", [R50, *(pytest.param(name, marks=pytest.mark.slow) for name in SSSEG if name != R50)])
def test_parity_with_sssegmentation(name: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Protects the published numbers: loading by their names, features, logits, losses, gradients, statistics."""
    model = filled(f"ssseg/{name}", SSSEG[name], tmp_path_factory, tmp_path)
    reference = golden(f"ssseg/{name}.npz")
    meta = json.loads((GOLDEN / f"ssseg/{name}.meta.json").read_text())
    height, width = meta["hw"]
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == meta["num_trainable"]

    model.eval()
    x = images((2, 3, height, width), 0)
    with torch.inference_mode():
        single = images((1, 3, height, width), 0)
        for i, stage in enumerate(model.backbone(single)):
            part = stage[0, :: max(1, stage.shape[1] // 16)]
            assert (
                np.abs(part.numpy() - reference[f"eval_feat{i}_sub"]).max()
                <= 1e-5 * reference[f"eval_feat{i}_stats"][2]
            )
        logits = model(single)
    assert logits.shape == reference["eval_logits"].shape
    assert worst(logits, reference["eval_logits"]) <= 1e-4

    no_dropout(model.train())
    losses = model.training_step(x, blocky_labels((2, height, width), meta["num_classes"]), Step(0, 1, 0.01))
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(float(reference["train_loss"]), rel=1e-5)
    assert losses["main"].item() == pytest.approx(meta["losses"]["train"]["loss_cls"], rel=1e-5)
    assert losses["auxiliary"].item() == pytest.approx(meta["losses"]["train"]["loss_aux"], rel=1e-5)
    total.backward()
    assert np.abs(model.attention.bases.numpy() - reference["train_bases"]).max() <= 1e-6

    expected = reference["train_grad_norm"]
    own = gradient_norms(model, FORMATS["ssseg"][2], [k for k, _, _ in keys_of(f"ssseg/{name}")])
    assert np.array_equal(np.isnan(own), np.isnan(expected)), "another set of parameters gets gradients"
    large = expected > 1e-4 * np.nanmax(expected)
    assert np.abs(own[large] / expected[large] - 1).max() <= 2e-2

    state = model.state_dict()
    for key in (k for k in reference if k.startswith("train_bn/")):
        value = state[rename(key.removeprefix("train_bn/"), FORMATS["ssseg"][2])][:64]
        assert worst(value, reference[key]) <= 1e-5, key


@pytest.mark.slow
def test_gradients_in_float64(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Protects the gradient exactly: in double precision every norm agrees to a millionth."""
    model = filled("ssseg/emanet_r50d8_voc", "voc_r50_d8", tmp_path_factory, tmp_path).double().train()
    no_dropout(model)
    reference = golden("ssseg/emanet_r50d8_voc.f64.npz")
    labels = blocky_labels((2, 129, 161), 21)
    losses = model.training_step(images((2, 3, 129, 161), 0).double(), labels, Step(0, 1, 0.01))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.item() == pytest.approx(float(reference["train_loss"]), rel=1e-9)
    expected = reference["train_grad_norm"]
    own = gradient_norms(model, FORMATS["ssseg"][2], [k for k, _, _ in keys_of("ssseg/emanet_r50d8_voc")])
    large = expected > 1e-4 * np.nanmax(expected)
    assert np.abs(own[large] / expected[large] - 1).max() <= 1e-6


@pytest.mark.parametrize("name", SSSEG)
def test_key_lists_map_one_to_one(name: str) -> None:
    """Protects strict loading: every published name has exactly one place of the same shape here."""
    with torch.device("meta"):
        own = emaseg.build_model(emaseg.load_recipe(SSSEG[name])).state_dict()
    mapped = {rename(k, FORMATS["ssseg"][2]): s for k, s, _ in keys_of(f"ssseg/{name}")}
    assert len(mapped) == len(keys_of(f"ssseg/{name}"))
    assert mapped == {k: tuple(v.shape) for k, v in own.items()}


def test_frozen_projection_never_moves() -> None:
    """Protects the published frozen 1x1: it is not trainable and no optimiser holds it."""
    from emaseg.training.optim import build_optimizer

    recipe = emaseg.load_recipe("demo")
    model = emaseg.build_model(recipe)
    assert not any(p.requires_grad for p in model.project.parameters())
    held = {id(p) for group in build_optimizer(model, recipe.optim).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


# From the published networks themselves: R-50 with VOC's 21 classes, R-101 with ADE20K's 150. Each class adds a row of
# 512 weights and a bias to two classifiers; the output stride adds nothing.
PARAMETERS = {"resnet50": (52_390_282, 21), "resnet101": (71_514_764, 150)}
ROWS = [
    f"{data}_{depth}_{stride}"
    for data in ("voc", "ade20k", "cityscapes")
    for depth in ("r50", "r101")
    for stride in ("d8", "d16")
]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_builds(row: str) -> None:
    """Protects all twelve rows: parameter count, and logits of the right shape for an odd-sized image."""
    recipe = emaseg.load_recipe(row)
    with torch.device("meta"):
        model = emaseg.build_model(recipe).eval()
        logits = model(torch.empty(1, 3, 129, 161))
    classes = {"voc": 21, "ade20k": 150, "cityscapes": 19}[row.split("_")[0]]
    known, known_classes = PARAMETERS[recipe.backbone.kind]
    assert sum(p.numel() for p in model.parameters()) == known + 2 * 513 * (classes - known_classes)
    stride = recipe.backbone.output_stride
    assert logits.shape == (1, classes, -(-129 // stride), -(-161 // stride))
