"""Schedule and parameter groups of whole rows: the EMANet authors' and mmsegmentation's, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import emaseg
from emaseg.recipe import load_recipe
from emaseg.training.optim import build_optimizer, learning_rate, set_learning_rate


def test_authors_refresh_the_rate_every_ten_steps() -> None:
    """Protects the row's staircase: their steps count from 1, so ours 0 to 8 run at full rate, then ten at each."""
    optim = load_recipe("paper_voc_val_r101_emanet512").optim
    rates = [learning_rate(step, 30000, optim) for step in range(30000)]
    assert rates[:9] == [0.009] * 9
    assert rates[9:19] == [pytest.approx(0.009 * (1 - 10 / 30000) ** 0.9, rel=1e-12)] * 10
    assert rates[19] < rates[18]
    assert rates[-2] == pytest.approx(0.009 * (10 / 30000) ** 0.9, rel=1e-12)  # their step 29999
    assert rates[-1] == 0.0  # their step 30000
    assert sorted(rates, reverse=True) == rates
    assert len(set(rates)) == 3001


def test_mmseg_rate_falls_to_its_floor() -> None:
    """Protects min_lr = 1e-4, at every step a little lower."""
    row = load_recipe("mmseg_cityscapes_r101_d8_769x769_80k")
    rates = [learning_rate(step, row.train.iterations, row.optim) for step in (0, 1, 40000, 79999)]
    assert rates[0] == 0.01
    assert rates[2] == pytest.approx(0.0099 * 0.5**0.9 + 1e-4, rel=1e-12)
    assert rates[3] == pytest.approx(0.0099 * (1 / 80000) ** 0.9 + 1e-4, rel=1e-12)
    assert rates[0] > rates[1] > rates[2] > rates[3] > 1e-4


def test_mmseg_rows_divide_by_their_iterations() -> None:
    """Protects the header's sentence: the rates are mmcv 1.x's; mmengine's lie up to 3.8e-7 below them."""
    row = load_recipe("mmseg_cityscapes_r50_d8_512x1024_80k")
    total = row.train.iterations
    ours = [learning_rate(step, total, row.optim) for step in range(total)]
    mmengine = [learning_rate(step, total - 1, row.optim) for step in range(total)]
    apart = [a - b for a, b in zip(ours, mmengine, strict=True)]
    assert min(apart) >= 0
    assert 3.75e-7 < max(apart) <= 3.85e-7
    assert mmengine[-1] == row.optim.min_lr < ours[-1]


def test_authors_groups_of_the_whole_network() -> None:
    """Protects the three groups: convolution weights; norm weights; every bias, of convolutions and of norms."""
    recipe = load_recipe("paper_voc_val_r101_emanet512")
    with torch.device("meta"):
        model = emaseg.build_model(recipe)
    optimizer = build_optimizer(model, recipe.optim)
    set_learning_rate(optimizer, 0.009)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = {id(m.weight): (0.009, 1e-4) for m in convs} | {id(m.weight): (0.009, 0.0) for m in norms}
    expected |= {id(m.bias): (0.018, 0.0) for m in (*convs, *norms) if m.bias is not None}
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == expected
    assert {g["momentum"] for g in optimizer.param_groups} == {0.9}


def test_mmseg_has_one_group() -> None:
    """Protects weight decay on everything that is trained, and the frozen convolution from being in it."""
    recipe = load_recipe("mmseg_cityscapes_r50_d8_512x1024_80k")
    with torch.device("meta"):
        model = emaseg.build_model(recipe)
    (group,) = build_optimizer(model, recipe.optim).param_groups
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (5e-4, 0.9, False)
    names = {id(p): name for name, p in model.named_parameters()}
    left_out = set(names.values()) - {names[id(p)] for p in group["params"]}
    assert left_out == {"project.weight", "project.bias"}
