"""The ONNX file in OpenVINO, which people run next: all eight networks, and what its default precision does.

`uv run --group openvino pytest -m slow tests/exporting/test_openvino.py`. ViT-L needs 8 GB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emaseg.exporting.export import Exported, export
from emaseg.exporting.request import make_request
from emaseg.exporting.verify import TOLERANCES, compare, inputs, logits_of, probes
from emaseg.recipe import load_recipe
from emaseg.reference import Resolved, open_network
from tests.benchmarks.bench_export import MODELS
from tests.exporting.made import exported, network, recipe
from tests.parity import filled_file

openvino = pytest.importorskip("openvino")

F32 = {"INFERENCE_PRECISION_HINT": "f32"}  # its default on processors with AMX or AVX-512 is bfloat16


class InOpenVINO(torch.nn.Module):
    """A file of `emaseg export` in the place of a network, run by OpenVINO."""

    def __init__(self, path: Path, *, align_corners: bool) -> None:
        super().__init__()
        self._model: Any = openvino.Core().compile_model(str(path), "CPU", F32)
        self.align_corners = align_corners

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.array(self._model(images.numpy())[0]))


@pytest.mark.parametrize("include", ["", "normalize,argmax"])
def test_a_small_network(include: str, tmp_path: Path) -> None:
    """Protects the file's operators and axes: OpenVINO takes any size, and its axes have their names."""
    made = recipe("emanet")
    done = exported(made, tmp_path / "small.onnx", "onnx", include=include)
    model = openvino.Core().read_model(str(done.path))
    assert model.input(0).get_any_name() == "image"
    trials = probes(make_request("onnx", include=include))
    if not include:
        references = logits_of(network(made), trials, made)
        own = InOpenVINO(done.path, align_corners=False)
        checks = list(compare(own, trials, references, made, labels=False))
        assert all(check.within(TOLERANCES["fp32"]) for check in checks), checks
        return
    compiled: Any = openvino.Core().compile_model(model, "CPU", F32)
    for trial in trials:
        labels = np.array(compiled(np.stack(trial).transpose(0, 3, 1, 2))[0])
        scores = logits_of(network(made), [trial], made)[0]
        scores = torch.nn.functional.interpolate(scores, size=trial[0].shape[:2], mode="bilinear")
        assert (scores.argmax(1).numpy() == labels).mean() >= 0.9999
        assert inputs(trial, made).shape[2:] == labels.shape[1:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MODELS)
def test_every_network(name: str, tmp_path: Path) -> None:
    """Protects the promise of the README: each published network gives the same logits in OpenVINO, at four sizes."""
    row, overrides, fixture = MODELS[name]
    made = load_recipe(row, overrides)
    resolved = Resolved(made, filled_file(fixture, tmp_path / "weights.pth"), None, made)
    request = make_request("onnx")
    *_, done = export(open_network(resolved), made, request, tmp_path / "model.onnx")
    assert isinstance(done, Exported)
    assert done.passed
    assert done.info is not None
    trials = probes(request)
    references = logits_of(open_network(resolved), trials, made)
    own = InOpenVINO(done.path, align_corners=done.info.align_corners)
    checks = list(compare(own, trials, references, made, labels=False))
    assert all(check.within(TOLERANCES["fp32"]) for check in checks), checks
