"""EM iterations at test time: the paper's ablation of T without touching what was trained."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emaseg.errors import RecipeError
from emaseg.inference.predict import Predictor
from emaseg.models.emanet import EMANet
from emaseg.reference import Resolved, open_model, resolve, with_em_iterations
from tests.helpers import run, tiny

main = importlib.import_module("emaseg.cli").main
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny("train.iterations=4", "model.em_iterations=2"), out)
    return out


def logits(resolved: Resolved) -> torch.Tensor:
    model = open_model(resolved, CPU)
    assert isinstance(model, EMANet)
    assert model.attention.iterations == 2
    with torch.inference_mode():
        result: torch.Tensor = model(torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)))
    return result


def test_only_the_iterations_at_test_time_change(trained: Path) -> None:
    """Protects the ablation: same weights, another T; the option and the recipe key are the same thing."""
    plain = resolve(str(trained))
    scores = [logits(with_em_iterations(plain, count)) for count in (1, 2, 3, 9)]
    assert torch.equal(scores[2], logits(plain))
    assert all(not torch.equal(a, b) for i, a in enumerate(scores) for b in scores[:i])
    assert torch.equal(scores[0], logits(resolve(str(trained), overrides=["model.em_iterations_eval=1"])))
    with pytest.raises(RecipeError, match=r"model\.em_iterations"):  # T of the training is history
        resolve(str(trained), overrides=["model.em_iterations=1"])


def test_eval(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the record: metrics.json says with how many iterations its scores were made."""
    content: dict[tuple[str, ...], dict[str, Any]] = {}
    for options in ((), ("--em-iterations", "2"), ("--em-iterations", "7"), ("--set", "model.em_iterations_eval=7")):
        assert main(["eval", str(trained), "--out", str(tmp_path), "--device", "cpu", "--json", "-q", *options]) == 0
        content[options] = json.loads(capsys.readouterr().out)
        assert json.loads((tmp_path / "metrics.json").read_text()) == content[options]
    three, two, seven, seven_by_key = content.values()
    assert three["protocol"] == "own size; whole; scales 1; logits; 3 EM iterations, 2 in training"
    assert two["protocol"] == "own size; whole; scales 1; logits"
    assert seven["protocol"].endswith("; 7 EM iterations, 2 in training")
    assert seven == seven_by_key


def test_predict(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the option of predict: the mask is that of a model with so many iterations."""
    content = torch.load(trained / "checkpoints/last.pt", weights_only=True)
    for key in ("project.weight", "expand.norm.weight"):  # a short training leaves the attention too faint to see
        content["model"][key] *= 100
    weights = tmp_path / "loud.pt"
    torch.save(content, weights)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    masks = []
    for count in (1, 9):
        command = ["predict", str(tmp_path / "a.png"), "--weights", str(weights), "--out", str(tmp_path / str(count))]
        assert main([*command, "--em-iterations", str(count), "--device", "cpu", "-q"]) == 0
        masks.append(np.array(Image.open(tmp_path / str(count) / "a_mask.png")))
        resolved = with_em_iterations(resolve(str(weights)), count)
        expected = Predictor(open_model(resolved, CPU), resolved.recipe).predict(pixels).labels
        assert np.array_equal(masks[-1], expected)
    capsys.readouterr()
    assert not np.array_equal(*masks)


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5"])
@pytest.mark.parametrize("command", ["eval", "predict"])
def test_not_a_number_of_iterations(command: str, count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "x", f"--em-iterations={count}"]) == 2
    assert "--em-iterations" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_network_without_em_iterations(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from an option that does nothing: exit 2 with the reason, before any weight is read."""
    (tmp_path / "w.pth").write_bytes(b"never read")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    name = "memorynet_ade20k_r50_d8"
    arguments = {"eval": [name], "predict": [str(tmp_path / "a.png"), "--recipe", name]}[command]
    assert main([command, *arguments, "--weights", str(tmp_path / "w.pth"), "--em-iterations", "2"]) == 2
    assert "is a memorynet, which has no EM iterations" in capsys.readouterr().err


def test_a_published_score_is_not_of_other_iterations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects --check from comparing an ablation with the row it is an ablation of."""
    (tmp_path / "w.pth").write_bytes(b"never read")
    row = ["eval", "voc_r50_d8", "--weights", str(tmp_path / "w.pth"), "--check"]
    assert main([*row, "--em-iterations", "1"]) == 2
    error = capsys.readouterr().err
    assert "no published mIoU for this protocol" in error
    assert "1 EM iterations, 3 in training" in error
