"""The built-in demo keeps its promise: a real network learns shapes on a CPU within 150 processor seconds."""

from __future__ import annotations

import csv
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from emaseg.data.sets.build import build_dataset
from emaseg.evaluation.evaluate import evaluate
from emaseg.events import Evaluated
from emaseg.inference.predict import Predictor
from emaseg.models.em_attention import EMAttention
from emaseg.recipe import load_recipe
from tests.helpers import run


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    """Protects the first command of the README: score, processor time, picture, checkpoints while it runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "emaseg.cli", "train", "demo", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        scores = [float(row["miou"]) for row in csv.DictReader(file) if row["miou"]]
    assert (
        scores[-1] >= 0.70
    )  # the best per-pixel colour classifier is held below 0.40 in tests/data/sets/test_shapes.py
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 150
    assert (tmp_path / "run/samples.png").is_file()
    assert load_recipe("demo").train.save_seconds <= 10
    assert "emaseg predict" in done.stderr


@pytest.mark.slow
def test_the_bases_of_the_second_demo_differ_and_need_their_iterations(tmp_path: Path) -> None:
    """Protects the picture of `predict --bases`: bases that differ, maps that change from iteration to iteration, and a
    score that needs them. A training's rounding differs from processor to processor: with three instruction sets one
    iteration gave 0.8 to 1.0 points less than three, which scored 0.87 and more."""
    for _ in run(load_recipe("demo_bases"), tmp_path / "run"):
        pass
    predictor = Predictor.from_weights(tmp_path / "run", device="cpu")
    recipe, dataset = predictor.recipe, build_dataset(predictor.recipe.data, "eval")
    (attention,) = (part for part in predictor.model.modules() if isinstance(part, EMAttention))
    unit = torch.nn.functional.normalize(attention.bases[0], dim=0)  # (C, M)
    assert float((unit.T @ unit).fill_diagonal_(-1).max()) < 0.9
    maps = predictor.bases(dataset.open(0).image()).values
    assert len(set(maps[-1].argmax(axis=0).ravel().tolist())) >= 4  # bases that lead somewhere
    assert np.abs(maps[2] - maps[0]).mean() > 0.04
    scores = {}
    for iterations in (1, 3):
        attention.iterations_eval = iterations
        *_, last = evaluate(predictor.model, dataset, recipe.inference, recipe.backbone.pixel_stats, "cpu")
        assert isinstance(last, Evaluated)
        scores[iterations] = last.scores.miou or 0.0
    assert scores[3] >= 0.80
    assert scores[3] - scores[1] >= 0.005


# What the other published networks change, at the demo's size. The authors' norm momentum of 0.0003 needs thousands of
# steps to see the data at all, and the demo has 500: it keeps its own.
VARIANTS = {
    "mmsegmentation": [
        "model.bottleneck_channels=24",
        "model.decoder_channels=24",
        "model.auxiliary_channels=24",
        'model.init="mmseg"',
        "train.iterations=1000",  # at half of them the score depends on a processor's rounding: 0.63 to 0.77
        'loss.reduction="all_pixels"',
        'augment.pad="bottom_right"',
        'inference.logits_path="via_input"',
    ],
    "authors": [
        "model.bottleneck_channels=24",
        "model.concat_input=false",
        "model.auxiliary_channels=0",
        'model.bases_average="plain"',
        'model.attention_epsilon="add"',
        "model.align_corners=true",
        'model.init="authors"',
        "backbone.multi_grid=[1, 2, 4]",
        "train.iterations=1200",  # no auxiliary head speeds it up
        'augment.interpolation="align_corners"',
        "augment.crop=[65, 65]",
        'augment.pad="bottom_right"',
        "augment.pad_before_crop=true",
        'loss.reduction="all_pixels"',
        "optim.lr_every=10",
        "optim.min_lr=0.0",
        (
            'optim.groups=[{match="norm_weight", weight_decay_scale=0.0}, '
            '{match="bias", lr_scale=2.0, weight_decay_scale=0.0}]'
        ),
        'inference.pad="8k+1"',
        'inference.logits_path="via_input"',
    ],
    "memorynet": [
        "train.iterations=1000",
        (
            'model={kind="memorynet", channels=48, attention_channels=24, aspp_dilations=[1, 2, 4, 6], '
            "auxiliary_channels=32, memory_base_lr=0.1, memory_loss_weight=1.0}"
        ),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_other_networks_learn_the_demo_too(variant: str, tmp_path: Path) -> None:
    """Protects training of every published network: each reaches the score that the demo promises."""
    events = run(load_recipe("demo", VARIANTS[variant]), tmp_path / "run")
    scores = [event.scores.miou for event in events if isinstance(event, Evaluated)]
    assert scores[-1] is not None
    assert scores[-1] >= 0.70
