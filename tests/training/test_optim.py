"""The learning-rate schedule and the parameter groups of the published systems."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import emaseg
from emaseg.data.pipeline.transforms import Batch
from emaseg.recipe.training import Group, Optim
from emaseg.schedule import Schedule
from emaseg.training.optim import build_optimizer, learning_rate, scheduled_rate, set_learning_rate, short_warmup
from emaseg.training.step import training_step
from tests.helpers import run, tiny
from tests.parity import GOLDEN

POLY = json.loads((GOLDEN / "poly.json").read_text())


@pytest.mark.parametrize("row", POLY, ids=lambda r: f"{r['schedule']}-{r.get('iter_0based', r.get('step_1based'))}")
def test_published_schedules(row: dict[str, float]) -> None:
    """Protects every golden learning rate of the three systems."""
    if "iter_0based" in row:
        optim = Optim(lr=row["base_lr"], min_lr=row["min_lr"], power=row["power"])
        own = learning_rate(int(row["iter_0based"]), int(row["max_iters"]), optim)
    else:
        optim = Optim(lr=row["base_lr"], min_lr=0.0, power=row["power"], lr_every=10)
        own = learning_rate(int(row["step_1based"]) - 1, int(row["max_iters"]), optim)
    assert own == pytest.approx(row["lr"], rel=1e-12)


def test_one_group_without_rules() -> None:
    """Protects sssegmentation's rule: one group, weight decay on norms and biases too."""
    recipe = emaseg.load_recipe("demo")
    optimizer = build_optimizer(emaseg.build_model(recipe), recipe.optim)
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["weight_decay"] == recipe.optim.weight_decay


def test_authors_groups() -> None:
    """Protects the authors' rule: norm weights without decay, every bias at twice the rate without decay."""
    recipe = emaseg.load_recipe("demo")
    rules = (
        Group(match="norm_weight", weight_decay_scale=0.0),
        Group(match="bias", lr_scale=2.0, weight_decay_scale=0.0),
    )
    model = emaseg.build_model(recipe)
    optimizer = build_optimizer(model, dataclasses.replace(recipe.optim, weight_decay=1e-4, groups=rules))
    set_learning_rate(optimizer, 0.5)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert settings[id(model.reduce.conv.weight)] == (0.5, 1e-4)
    assert settings[id(model.reduce.norm.weight)] == (0.5, 0.0)
    assert settings[id(model.reduce.norm.bias)] == (1.0, 0.0)
    assert settings[id(model.classifier.bias)] == (1.0, 0.0)
    assert len(settings) == sum(p.requires_grad for p in model.parameters())


def test_backbone_factor() -> None:
    """Protects the backbone's own learning rate (ViT rows)."""
    recipe = emaseg.load_recipe("demo")
    model = emaseg.build_model(recipe)
    optimizer = build_optimizer(
        model, dataclasses.replace(recipe.optim, groups=(Group(match="backbone", lr_scale=0.1),))
    )
    set_learning_rate(optimizer, 1.0)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert all(rates[id(p)] == pytest.approx(0.1) for p in model.backbone.parameters())
    assert rates[id(model.classifier.weight)] == 1.0


def test_constant_schedule() -> None:
    """Protects power 0: the rate does not fall."""
    assert learning_rate(999, 1000, Optim(lr=0.1, power=0.0)) == 0.1
    assert torch.isfinite(torch.tensor(learning_rate(1000, 1000, Optim(lr=0.1))))


def test_adamw_has_the_same_groups() -> None:
    """Protects factors and options under the other optimiser."""
    recipe = emaseg.load_recipe("demo")
    rules = (Group(match="bias", lr_scale=2.0, weight_decay_scale=0.0),)
    optim = Optim(kind="adamw", lr=1e-3, weight_decay=0.05, betas=(0.8, 0.95), eps=1e-6, groups=rules)
    plain, other = (build_optimizer(emaseg.build_model(recipe), o) for o in (optim, replace(optim, kind="sgd")))
    assert isinstance(plain, torch.optim.AdamW)
    for one, two in zip(plain.param_groups, other.param_groups, strict=True):
        assert (one["lr_scale"], one["weight_decay"]) == (two["lr_scale"], two["weight_decay"])
        assert [p.shape for p in one["params"]] == [p.shape for p in two["params"]]
        assert (one["betas"], one["eps"]) == ((0.8, 0.95), 1e-6)


def test_warm_up_rises_in_a_line_to_the_schedule() -> None:
    """Protects mmsegmentation's rule: rate * (1 - (1 - step / warmup) * (1 - ratio)) in the warm-up, untouched after it."""
    plain = Optim(lr=0.1, min_lr=1e-3)
    warm = replace(plain, warmup=10, warmup_ratio=0.2)
    for step in range(30):
        schedule = learning_rate(step, 30, plain)
        factor = 1 - max(0.0, 1 - step / 10) * (1 - 0.2)
        assert learning_rate(step, 30, warm) == pytest.approx(schedule * factor, rel=1e-12)
        assert scheduled_rate(step, 30, warm) == schedule
    assert learning_rate(0, 30, warm) == pytest.approx(0.2 * 0.1)


def test_a_warm_up_that_outlasts_its_run_is_told(tmp_path: Path) -> None:
    """Protects from a weak training that nobody can explain: the rate that was set is never reached."""
    recipe = tiny("train.iterations=0", "train.epochs=2", "optim.warmup=10")
    assert short_warmup(11, recipe.optim) == []
    assert short_warmup(1, tiny().optim) == []
    (note,) = short_warmup(10, recipe.optim)
    assert note.warning
    assert "the learning rate never comes to optim.lr = 0.05" in note.text
    assert note in run(recipe, tmp_path / "run", stop_after=1)


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e6])
def test_a_clipped_gradient_keeps_its_direction(limit: float) -> None:
    """Protects clipping: what the optimiser sees is the gradient, scaled to the limit where its norm is larger."""
    recipe = tiny()
    batch = Batch(torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32)), ("a", "b"))
    gradients = []
    for clip in (0.0, limit):
        torch.manual_seed(0)
        model = emaseg.build_model(recipe)
        clipped = replace(recipe, optim=replace(recipe.optim, clip_norm=clip))
        training_step(model, build_optimizer(model, clipped.optim), batch, 0, Schedule(10, 10, 0), clipped)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    factor = min(1.0, limit / gradients[0].norm().item()) if limit else 1.0
    assert torch.allclose(gradients[1], factor * gradients[0], rtol=1e-5, atol=0)


def test_the_groups_of_an_attention_layer_stay_as_they_are() -> None:
    """Protects run folders that exist: a resume compares the groups, so an in_proj_bias stays with the weights."""
    optim = Optim(lr=1.0, weight_decay=1.0, groups=(Group(match="bias", lr_scale=2.0, weight_decay_scale=0.0),))
    layer = nn.MultiheadAttention(4, 2)
    plain, biases = build_optimizer(layer, optim).param_groups
    assert [id(p) for p in biases["params"]] == [id(layer.out_proj.bias)]
    assert [id(p) for p in plain["params"]] == [
        id(p) for p in (layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight)
    ]
