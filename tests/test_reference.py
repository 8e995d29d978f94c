"""REF: what eval and predict are pointed at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from emaseg.errors import RecipeError, WeightsError
from emaseg.reference import open_model, resolve
from tests.helpers import TINY, run, tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny("train.iterations=2"), out)
    return out


def test_run_folder_means_its_best_checkpoint(trained: Path) -> None:
    resolved = resolve(str(trained))
    assert resolved.weights == trained / "checkpoints/best.pt"
    assert resolved.run == trained
    assert not open_model(resolved, CPU).training
    assert resolve(str(trained), checkpoint="last").weights == trained / "checkpoints/last.pt"


def test_checkpoint_file_carries_its_recipe(trained: Path) -> None:
    resolved = resolve(str(trained / "checkpoints/last.pt"))
    assert resolved.recipe == tiny("train.iterations=2")
    assert resolved.run == trained.resolve()


def test_recipe_with_weights(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    resolved = resolve(str(tmp_path / "tiny.toml"), weights=str(trained))
    assert open_model(resolved, CPU).num_classes == 5


def test_recipe_alone_means_released_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from random weights: without the released file the error says where to get and put it."""
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        resolve("voc_r50_d8")
    assert "emanet_resnet50os8_voc_train.pth" in caught.value.hint
    (tmp_path / "emanet_resnet50os8_voc.pth").write_bytes(b"newer name")
    assert resolve("voc_r50_d8").weights == tmp_path / "emanet_resnet50os8_voc.pth"
    with pytest.raises(WeightsError, match="no released weights"):
        resolve("demo")


def test_overrides_may_not_change_the_network(trained: Path) -> None:
    """Protects from measuring another network than the one that was trained."""
    resolved = resolve(str(trained), overrides=["data.eval_images=2", "inference.flip=true"])
    assert resolved.recipe.inference.flip
    with pytest.raises(RecipeError, match=r"model\.bases"):
        resolve(str(trained), overrides=["model.bases=8"])


TTA = '[inference_tta]\nmode = "slide"\nwindow = [16, 16]\nstride = [8, 8]\nscales = [0.5, 1.0]\nflip = true\n'


@pytest.fixture
def with_tta(tmp_path: Path) -> str:
    path = tmp_path / "with_tta.toml"
    path.write_text(f"{TINY}\n{TTA}")
    return str(path)


def test_tta_takes_the_place_of_inference(trained: Path, with_tta: str) -> None:
    """Protects the order of --tta and --set: what is asked for wins over the section, and is checked in it."""
    weights = str(trained)
    resolved = resolve(with_tta, weights=weights, tta=True)
    assert resolved.recipe.inference == resolved.written.inference_tta
    assert resolved.written.inference.scales == (1.0,)
    asked = resolve(with_tta, weights=weights, overrides=["inference.stride=[4, 4]"], tta=True)  # no key of "whole"
    assert asked.recipe.inference == dataclasses.replace(resolved.recipe.inference, stride=(4, 4))
    with pytest.raises(RecipeError, match=r"with_tta\.toml:\d+: inference_tta\.window: is for mode"):
        resolve(with_tta, weights=weights, overrides=['inference.mode="whole"'], tta=True)


def test_tta_is_refused_where_none_is_written(trained: Path) -> None:
    """Protects from a protocol made of nothing but a --set."""
    for sets in ([], ["inference.flip=true"], ["inference_tta.flip=true"]):
        with pytest.raises(RecipeError, match=r"--tta: tiny has no \[inference_tta\]") as caught:
            resolve(str(trained), overrides=sets, tta=True)
        assert "--set inference.flip=true" in caught.value.hint


def test_a_recipe_may_rely_on_set(trained: Path, tmp_path: Path) -> None:
    """Protects `--set data.root=...` for a recipe that leaves the key out."""
    (tmp_path / "open.toml").write_text(TINY.replace("lr = 0.05\n", ""))
    resolved = resolve(str(tmp_path / "open.toml"), weights=str(trained), overrides=["optim.lr=0.1"])
    assert resolved.written.optim.lr == 0.1
    with pytest.raises(RecipeError, match=r"optim\.lr"):
        resolve(str(tmp_path / "open.toml"), weights=str(trained))


def test_contradictions(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="weights of its own"):
        resolve(str(trained), weights="x.pt")
    with pytest.raises(RecipeError, match="not a run folder"):
        resolve("voc_r50_d8", checkpoint="best")
    with pytest.raises(WeightsError, match="no checkpoint"):
        resolve(str(tmp_path))
    with pytest.raises(WeightsError, match="no such file"):
        resolve("voc_r50_d8", weights=str(tmp_path / "none.pth"))
    torch.save({"model": {}}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match="holds no recipe"):
        resolve(str(tmp_path / "foreign.pth"))


def test_shipped_name_wins_over_a_folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects `cd runs`: a folder called like a recipe is meant only when written with a separator."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(trained)
    assert resolve("demo", weights=str(trained)).run is None
    assert resolve("./demo").run is not None
