"""The engine keeps the published systems' numbers: every golden network, and every golden protocol, at 1e-4."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import emaseg
from emaseg.engine import Engine, prepare, winograd
from tests.benchmarks.bench_export import MODELS
from tests.inference.test_protocols import META, hold, published
from tests.parity import GOLDEN, golden, images, worst
from tests.shared import published_file


def engine(name: str, factory: pytest.TempPathFactory, folder: Path) -> Engine:
    recipe, overrides, fixture = MODELS[name]
    with torch.device("meta"):
        model = emaseg.build_model(emaseg.load_recipe(recipe, overrides))
    emaseg.load_weights(model, published_file(factory, fixture, folder))
    return prepare(model.eval())


@pytest.fixture(scope="module", params=["as it is", "by winograd's way"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The golden images are too small for Winograd's way to pay: once they take it all the same."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "as it is":
            always = replace(winograd._FOUR, products=0, factor=0.0)
            patch.setattr(winograd, "_known", lambda dtype: (always,) if dtype == torch.float32 else ())
        yield request.param


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_golden_logits(name: str, way: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Protects every kind of network and backbone at its published size."""
    fixture = MODELS[name][2]
    system, array = ("mmseg", "logits_low") if fixture.startswith("mmseg/") else ("ssseg", "eval_logits")
    height, width = (129, 161) if system == "mmseg" else json.loads((GOLDEN / f"{fixture}.meta.json").read_text())["hw"]
    with torch.inference_mode():
        logits = engine(name, tmp_path_factory, tmp_path)(images((1, 3, height, width), 0))
    reference = golden(f"{fixture}.npz")[array]
    assert worst(logits[: len(reference)], reference) <= 1e-4


@pytest.fixture(scope="module")
def emanet(way: str, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return engine("EMANet R-50-D8", tmp_path_factory, tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize(
    "case",
    [
        case if case == "slide_probs" else pytest.param(case, marks=pytest.mark.slow)
        for case in META["cases"]
        if case != "slide_small"
    ],
)
def test_golden_protocols(emanet: Engine, case: str) -> None:
    """Protects eval and predict: sssegmentation's terms, scores and label maps through the engine."""
    reference = {k.split("/")[1]: v for k, v in golden("inference.npz").items() if k.startswith(f"{case}/")}
    inference = published(case)
    hold(emanet, inference, reference, classes=(4 if inference.mode == "slide" else 2, 4))
