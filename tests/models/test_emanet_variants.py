"""The options that make mmsegmentation's and the authors' EMANet out of the same network, against their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import emaseg
from emaseg.losses.cross_entropy import resize
from emaseg.models.emanet import EMANet
from emaseg.models.layers import Step
from emaseg.training.optim import build_optimizer
from emaseg.weights.convert import FORMATS, rename
from tests.parity import blocky_labels, golden, images, worst
from tests.shared import published_file

MMSEG = (
    "loss.ranks=by_count",
    "model.bottleneck_channels=256",
    "model.decoder_channels=256",
    "model.auxiliary_channels=256",
    'model.init="mmseg"',
    'loss.reduction="all_pixels"',
)
GROUPS = (
    'optim.groups=[{match="norm_weight", weight_decay_scale=0.0}, {match="bias", lr_scale=2.0, weight_decay_scale=0.0}]'
)
AUTHORS = (
    "loss.ranks=by_count",
    "backbone.stem_channels=[64, 64, 128]",
    "backbone.multi_grid=[1, 2, 4]",
    "model.bottleneck_channels=256",
    "model.concat_input=false",
    "model.auxiliary_channels=0",
    'model.bases_average="plain"',
    'model.attention_epsilon="add"',
    "model.align_corners=true",
    "model.norm_momentum=3e-4",
    'model.init="authors"',
    'loss.reduction="all_pixels"',
    "optim.lr=0.009",
    "optim.weight_decay=1e-4",
    GROUPS,
)
VARIANTS = {
    "mmseg": ("mmseg/mmseg_r50_512x1024", "cityscapes_r50_d8", MMSEG),
    "authors": ("mmseg/official_r50", "voc_r50_d8", AUTHORS),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity(variant: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Protects the options: logits, losses, gradients, one optimiser step, bases and statistics of both systems."""
    name, row, overrides = VARIANTS[variant]
    recipe = emaseg.load_recipe(row, overrides)
    model = emaseg.build_model(recipe)
    assert emaseg.load_weights(model, published_file(tmp_path_factory, name, tmp_path)) == variant
    reference = golden(f"{name}.npz")

    model.eval()
    with torch.inference_mode():
        logits = model(images((1, 3, 129, 161), 0))
        full = resize(logits, (129, 161), model.align_corners)[:, :, ::4, ::4]
    assert worst(logits, reference["logits_low"]) <= 1e-5
    assert worst(full, reference["logits_full_s4"]) <= 1e-5

    train_once(model, recipe.optim.lr, recipe, reference, variant)


def train_once(
    model: EMANet, lr: float, recipe: emaseg.recipe.Recipe, reference: dict[str, np.ndarray], variant: str
) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, recipe.optim)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    labels = blocky_pixels((2, 129, 161), model.num_classes)
    losses = model.training_step(images((2, 3, 129, 161), 2, spread=False), labels, Step(0, 1, lr))
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(float(reference["train_loss_total"]), rel=1e-5)
    total.backward()
    assert np.abs(model.attention.bases.numpy() - reference["bases_after"]).max() <= 1e-6

    names = FORMATS[variant][2]
    parameters = dict(model.named_parameters())
    keys = [rename(str(key), names) for key in reference["grad_names"]]
    norms = np.array([grad_norm(parameters[key]) for key in keys])
    assert {k for k, p in parameters.items() if p.grad is None} == {
        rename(str(k), names) for k in reference["nograd_names"]
    }
    assert np.abs(norms / reference["grad_norms"] - 1).max() <= 1e-2
    optimizer.step()
    moved = np.array([(parameters[key].detach() - before[key]).norm().item() for key in keys])
    assert np.abs(moved / reference["delta_norms"] - 1).max() <= 2e-2
    state = model.state_dict()
    for key in (k for k in reference if k.startswith("after:")):
        assert worst(state[rename(key.removeprefix("after:"), names)], reference[key]) <= 1e-5, key


def grad_norm(parameter: torch.nn.Parameter) -> float:
    return float("nan") if parameter.grad is None else parameter.grad.norm().item()


def blocky_pixels(shape: tuple[int, int, int], classes: int) -> torch.Tensor:
    """These fixtures' labels: every pixel drawn on its own, then 10 % ignored."""
    return blocky_labels(shape, classes, seed=1, block=1)
