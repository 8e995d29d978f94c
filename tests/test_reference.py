"""REF: what eval and predict are pointed at."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emaseg.checkpoint import read_checkpoint
from emaseg.errors import RecipeError, WeightsError
from emaseg.recipe import load_recipe, recipe_to_toml
from emaseg.reference import device_for, hash_of_weights, open_model, resolve
from emaseg.resources import cache_folder, shipped_recipes
from emaseg.weights.backbone import backbone_file
from emaseg.weights.init_from import init_from_file
from tests.helpers import TINY, run, tiny
from tests.training.test_resume import own_data

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


def test_an_onnx_file_runs_where_its_runtime_can(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects machines with a GPU and ONNX Runtime for CPUs, the usual one: a file is run, unless CUDA was asked for."""
    cuda, resolved = torch.device("cuda"), resolve(str(trained))
    exported = dataclasses.replace(resolved, weights=Path("model.onnx"))
    for can, asked, expected in ((False, "auto", "cpu"), (False, "cuda", "cuda"), (True, "auto", "cuda")):
        monkeypatch.setattr("emaseg.exported.run_onnx.can_use", lambda _, can=can: can)
        device, notes = device_for(exported, cuda, asked)
        assert device.type == expected
        assert bool(notes) == (expected == "cpu")
        assert device_for(resolved, cuda, asked) == (cuda, [])


def test_checkpoint_file_carries_its_recipe(trained: Path) -> None:
    resolved = resolve(str(trained / "checkpoints/last.pt"))
    assert resolved.recipe == tiny("train.iterations=2")
    assert resolved.run == trained.resolve()


def test_a_checkpoint_is_read_once(trained: Path, tmp_path: Path) -> None:
    """Protects recipe and weights from being of two files: what was read with the recipe fills the network, even if
    the file has been replaced since. Whoever hashes the file for a report says so when it is gone."""
    file = tmp_path / "a.pt"
    shutil.copy(trained / "checkpoints/best.pt", file)
    resolved = resolve(str(file))
    file.unlink()
    own = open_model(resolved, CPU).state_dict()
    expected = read_checkpoint(trained / "checkpoints/best.pt").model
    assert all(torch.equal(own[key], expected[key]) for key in expected)
    with pytest.raises(WeightsError, match="No such file"):
        hash_of_weights(file)
    assert (
        hash_of_weights(trained / "recipe.toml") == hashlib.sha256((trained / "recipe.toml").read_bytes()).hexdigest()
    )


def test_a_hash_is_of_the_file_that_was_read(trained: Path, tmp_path: Path) -> None:
    """Protects metrics.json of a run that is still trained: its best checkpoint may be replaced after it was read, and the
    hash of the new one beside the score of the old one would be wrong."""
    file = tmp_path / "a.pt"
    shutil.copy(trained / "checkpoints/best.pt", file)
    resolved = resolve(str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert hash_of_weights(file, resolved.stamp) == digest
    shutil.copy(trained / "checkpoints/last.pt", tmp_path / "new.pt")
    (tmp_path / "new.pt").replace(file)
    with pytest.raises(WeightsError, match="was replaced or changed") as caught:
        hash_of_weights(file, resolved.stamp)
    assert "copy the checkpoint" in caught.value.hint
    assert hash_of_weights(file, resolve(str(file)).stamp) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_recipe_with_weights(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    resolved = resolve(str(tmp_path / "tiny.toml"), weights=str(trained))
    assert open_model(resolved, CPU).num_classes == 5


def test_recipe_alone_means_released_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from random weights: without the released file the error says where to get and put it."""
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # a checkout may hold a run of the demo, which would be taken
    with pytest.raises(WeightsError) as caught:
        resolve("voc_r50_d8")
    assert "emanet_resnet50os8_voc_train.pth" in caught.value.hint
    (tmp_path / "emanet_resnet50os8_voc.pth").write_bytes(b"newer name")
    assert resolve("voc_r50_d8").weights == tmp_path / "emanet_resnet50os8_voc.pth"
    with pytest.raises(WeightsError, match="no released weights"):
        resolve("demo")


def test_a_recipe_may_not_read_something_else_in_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Protects from the scores of another network than the one that was trained, where names and shapes cannot tell; a
    recipe may have another stride, for networks are trained at 16 and evaluated at 8."""
    path = tmp_path / "other.toml"
    for keys, words in (
        (["model.align_corners=true"], "model.align_corners = false there, true here"),
        (["backbone.std=[0.1, 0.2, 0.3]"], r"backbone.std = .* here"),
    ):
        path.write_text(recipe_to_toml(tiny(*keys)))
        with pytest.raises(WeightsError, match=words) as caught:
            open_model(resolve(str(path), weights=str(trained)), CPU)
        assert caught.value.hint.endswith(str(trained / "checkpoints/best.pt"))
    path.write_text(recipe_to_toml(tiny("backbone.output_stride=16", "model.dropout=0.3")))
    open_model(resolve(str(path), weights=str(trained)), CPU)


def test_a_recipe_may_not_give_the_classes_another_order(tmp_path: Path) -> None:
    """Protects cats from being called dogs: names that were sorted after the training. Other names are the user's choice."""
    recipe = own_data(tmp_path / "data", 8, "train.iterations=1")
    run(recipe, tmp_path / "run")
    path = tmp_path / "other.toml"
    for names, fits in ((["b", "a"], False), (["a", "dog"], True)):
        path.write_text(recipe_to_toml(replace(recipe, data=replace(recipe.data, classes=tuple(names)))))  # type: ignore[call-arg]
        if fits:
            open_model(resolve(str(path), weights=str(tmp_path / "run")), CPU)
            continue
        with pytest.raises(WeightsError, match="class 0 is a there, b here"):
            open_model(resolve(str(path), weights=str(tmp_path / "run")), CPU)


def test_a_recipe_whose_run_is_taken_says_what_it_is_not_asked_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects who edits a recipe after the training and evaluates it by name: the run's own is used, and that is said."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs/tiny/first")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    assert len(resolve(str(path)).notes) == 1
    path.write_text(recipe_to_toml(tiny("inference.flip=true", "data.eval_images=3")))
    note = resolve(str(path)).notes[-1]
    assert "has another data.eval_images, inference.flip: for that," in note
    assert note.endswith(f"{path} --weights runs/tiny/first")


def test_a_copied_row_that_leads_to_released_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a published network that is scored as one's own: its address came along with the copied recipe."""
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emanet_resnet50os8_voc.pth").write_bytes(b"")
    path = tmp_path / "mine.toml"
    path.write_text(recipe_to_toml(replace(load_recipe("voc_r50_d8"), name="mine")))
    assert resolve("voc_r50_d8").notes == ()
    (note,) = resolve(str(path)).notes
    assert note == "mine: the released weights that its [published] names, emanet_resnet50os8_voc.pth"


def test_overrides_may_not_change_the_network(trained: Path) -> None:
    """Protects from measuring another network than the one that was trained."""
    resolved = resolve(str(trained), overrides=["data.eval_images=2", "inference.flip=true"])
    assert resolved.recipe.inference.flip
    with pytest.raises(RecipeError, match=r"model\.bases"):
        resolve(str(trained), overrides=["model.bases=8"])


def test_a_folder_of_runs_means_its_newest_complete_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects one meaning of REF in every command, and that the choice is said: the run that ended last counts, at
    both depths of ./runs; one without its samples has not ended. A recipe without released weights means the same."""
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("tiny/2026-01-01", 300), ("tiny/mine", 100), ("other/2026-01-02", 200), ("tiny/begun", 900)):
        shutil.copytree(trained, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "samples.png", (seconds, seconds))
    (tmp_path / "runs/tiny/begun/samples.png").unlink()
    (tmp_path / "tiny.toml").write_text(TINY)
    newest = Path("runs/tiny/2026-01-01")
    for ref in ("runs", "runs/tiny", "./runs", "tiny.toml"):
        resolved = resolve(ref)
        assert resolved.weights == newest / "checkpoints/best.pt"
        assert resolved.run == newest
        assert str(newest) in "\n".join(resolved.notes)
        assert "newest complete run" in "\n".join(resolved.notes)
    assert resolve("runs", checkpoint="last").weights == newest / "checkpoints/last.pt"
    assert resolve("tiny.toml", weights="runs").weights == newest / "checkpoints/best.pt"
    assert init_from_file("runs/tiny") == newest / "checkpoints/best.pt"
    assert resolve("runs/tiny/mine").notes == ()
    with pytest.raises(WeightsError, match="no checkpoint in this folder"):
        resolve(str(tmp_path))


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


def test_a_missing_file_is_told_as_a_file(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from recipe talk about a weight file with a slip in its name, or one that was never made."""
    monkeypatch.chdir(tmp_path)
    for ref in ("best.pt", "weights.pth", "model.onnx", "some/dir/run", "./run"):
        with pytest.raises(WeightsError) as caught:
            resolve(ref)
        assert caught.value.message == f"{ref}: no such run folder or file"
        assert caught.value.hint
        assert "voc_r50_d8" not in caught.value.hint
    Path("runs").mkdir()
    Path("runs/first").symlink_to(trained)
    Path("best.pt").write_bytes(b"")
    for ref, meant in (("bset.pt", "best.pt"), ("runs/frist", "runs/first"), ("./best.pth", "best.pt")):
        for find in (resolve, init_from_file):
            with pytest.raises(WeightsError) as caught:
                find(ref)
            assert caught.value.hint == f'did you mean "{meant}"?', ref
    with pytest.raises(WeightsError) as caught:
        resolve("demo", weights="runs/first/checkpoints/lst.pt")
    assert 'did you mean "runs/first/checkpoints/last.pt"' in caught.value.hint


def test_a_missing_path_of_a_shipped_name_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the contract on names: ./demo is a path, demo the recipe, and the error says which is there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        resolve("./demo")
    assert caught.value.hint == "the shipped recipe is called `demo`"


def test_an_unknown_name_lists_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the terminal from a wall of every recipe: the nearest few, and the command that shows all."""
    monkeypatch.chdir(tmp_path)
    for ref, weights in (("dmeo", None), ("voc_r50", None), ("nothing_like_it", None), ("dmeo", "best.pt")):
        with pytest.raises(RecipeError, match=f"no shipped recipe is called `{ref}`") as caught:
            resolve(ref, weights=weights)
        assert caught.value.hint.endswith("`emaseg recipes` lists all")
        assert sum(f'"{name}"' in caught.value.hint for name in shipped_recipes()) <= 3
        assert ('did you mean "demo"?' in caught.value.hint) == (ref == "dmeo")
    Path("demos.toml").write_text(TINY)
    with pytest.raises(RecipeError) as caught:
        resolve("demos")
    assert caught.value.hint == "the file here is ./demos.toml; write it so"


def test_names_that_no_file_can_have_are_not_there(trained: Path, tmp_path: Path) -> None:
    """Protects long names and signed addresses: systems refuse to look for them, which is no fault of the program."""
    long = "x" * 300
    with pytest.raises(RecipeError, match="no shipped recipe"):
        resolve(long)
    with pytest.raises(WeightsError, match="no such file"):
        resolve("demo", weights=str(tmp_path / long))
    with pytest.raises(WeightsError, match="no such"):
        init_from_file(str(tmp_path / long))
    address = f"https://bucket/r50.pth?signature={long}"
    with pytest.raises(WeightsError, match="is not here"):
        backbone_file(tiny(f'backbone.weights="{address}"'))
    cache_folder().mkdir(parents=True)
    (tmp_path / "theirs.toml").write_text(f'{TINY}[published]\ntable = "x"\ncheckpoint = "https://x.org/{long}.pth"\n')
    with pytest.raises(WeightsError, match="its released weights are not on this machine"):
        resolve(str(tmp_path / "theirs.toml"))


def test_empty_names_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from an unset shell variable: as a path, an empty name is the current folder, which may be a run."""
    monkeypatch.chdir(trained)
    with pytest.raises(RecipeError, match="REF: an empty name"):
        resolve("")
    with pytest.raises(RecipeError, match="--weights: an empty name"):
        resolve("demo", weights="")
