"""Starting from another model: train.init_from takes a whole network over, strictly, and says what it could not take."""

from __future__ import annotations

import importlib
from datetime import datetime
from pathlib import Path

import pytest
import torch

import emaseg
from emaseg.checkpoint import load_start, read_checkpoint
from emaseg.errors import WeightsError
from emaseg.events import Finished, Note
from emaseg.models import build_model
from emaseg.recipe import Recipe, load_recipe, parse_recipe
from emaseg.resources import default_run_folder
from emaseg.training.dry_run import dry_run
from emaseg.training.start_weights import load_start_weights
from emaseg.weights.convert import FORMATS, rename
from emaseg.weights.init_from import init_from_file
from emaseg.weights.released import by_name
from tests.helpers import TINY, equal, run, tiny

main = importlib.import_module("emaseg.cli").main

SHORT = ("train.iterations=3", "train.evaluate_every=2")
THREE = (
    'data={kind="folder", root=".", classes=["a","b","c"], train_images="i", train_masks="m", '
    'eval_images="i", eval_masks="m"}'
)
CLASSIFIERS = {f"{head}classifier.{part}" for head in ("", "auxiliary.") for part in ("weight", "bias")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny(*SHORT), out)
    return out


def state_of(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return state


def init(path: Path | str, *overrides: str) -> Recipe:
    return tiny(*SHORT, *overrides, f"train.init_from='{path}'")


def texts(events: list[object]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


# ------------------------------------------------------------------------------------------------ what is taken over
def test_weights_and_buffers_are_taken_over_and_momentum_is_not(trained: Path) -> None:
    """Protects a true start: parameters, bases and statistics of the best checkpoint, nothing of the backbone's file."""
    recipe = init(trained, 'backbone.weights="https://example.org/not_here.pth"')  # would be an error if it were read
    model = build_model(recipe)
    notes = load_start_weights(model, recipe)
    best = trained / "checkpoints/best.pt"
    assert equal(dict(model.state_dict()), state_of(best))
    assert not torch.equal(model.state_dict()["attention.bases"], build_model(recipe).state_dict()["attention.bases"])
    assert [note.text for note in notes] == [f"start: the network of {best} (train.init_from)"]


def test_a_run_starts_at_step_0_with_a_fresh_optimiser(trained: Path, tmp_path: Path) -> None:
    """Protects the schedule: all steps are done again, at their own rates, and the run's recipe records the origin."""
    events = run(init(trained), tmp_path / "next")
    assert "start: the network of" in texts(list(events))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.step, finished.interrupted) == (3, False)
    assert load_recipe(tmp_path / "next/recipe.toml").train.init_from == str(trained)
    assert read_checkpoint(tmp_path / "next/checkpoints/last.pt").recipe.train.init_from == str(trained)
    plain = tmp_path / "plain"
    run(tiny(*SHORT), plain)
    assert not equal(state_of(plain / "checkpoints/last.pt"), state_of(tmp_path / "next/checkpoints/last.pt"))


def test_resume_after_init_from_is_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    """Protects the promise of resuming: it ignores init_from, whatever it says now, and keeps it on record."""
    origin = tmp_path / "origin.pt"
    origin.write_bytes((trained / "checkpoints/last.pt").read_bytes())
    run(init(origin), tmp_path / "whole")
    for cut in (1, 2):
        run(init(origin), tmp_path / f"{cut}", stop_after=cut)
    origin.unlink()
    for cut, now in ((1, tiny(*SHORT)), (2, init("elsewhere"))):
        events = run(now, tmp_path / f"{cut}", resume=True)
        assert "train.init_from" not in texts(list(events))
        whole, resumed = (tmp_path / "whole", tmp_path / f"{cut}")
        a, b = (torch.load(out / "checkpoints/last.pt", weights_only=True) for out in (whole, resumed))
        assert equal(a, b), cut
        assert (whole / "recipe.toml").read_text() == (resumed / "recipe.toml").read_text()


def test_another_class_count_renews_the_classifiers_only(trained: Path) -> None:
    """Protects fine-tuning on one's own classes: five classes there, three here."""
    recipe = init(trained, THREE)
    torch.manual_seed(7)
    fresh = build_model(recipe)
    torch.manual_seed(7)
    model = build_model(recipe)
    notes = load_start_weights(model, recipe)
    before, after, given = fresh.state_dict(), model.state_dict(), state_of(trained / "checkpoints/best.pt")
    for key, value in after.items():
        assert torch.equal(value, before[key] if key in CLASSIFIERS else given[key]), key
    assert notes[1].text == ("start: it has 5 classes, this recipe 3; new here: classifier, auxiliary.classifier")


def test_memorynet_renews_classifiers_and_memory(tmp_path: Path) -> None:
    """Protects the class memory: rows of other classes would be read as one's own."""
    small = ("model.channels=8", "model.attention_channels=4", "model.auxiliary_channels=8", "backbone.width=8")
    row = load_recipe("memorynet_ade20k_r50_d8", small)
    five = load_recipe(
        "memorynet_ade20k_r50_d8",
        [*small, 'data={kind="shapes"}', f"train.init_from='{tmp_path / 'ade.pth'}'"],
    )
    source = build_model(row)
    source.state_dict()["memory.features"].fill_(2.0)
    torch.save({"format": "emaseg/1", "model": source.state_dict()}, tmp_path / "ade.pth")
    model = build_model(five)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_start_weights(model, five)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, source.state_dict()[key])}
    heads = ("coarse.", "final.", "auxiliaries.0.")
    own = {f"{head}classifier.{part}" for head in heads for part in ("weight", "bias")}
    assert changed == own | {"memory.features", "memory.age"}
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in changed)


def test_foreign_weights(trained: Path, tmp_path: Path) -> None:
    """Protects starting from another system's file, here sssegmentation's: its classes are others, too."""
    given = state_of(trained / "checkpoints/last.pt")
    names = {ours: theirs for theirs, ours in FORMATS["ssseg"][2].items()}
    torch.save({"epoch": 1, "model": {rename(key, names): value for key, value in given.items()}}, tmp_path / "a.pth")
    model = build_model(init(tmp_path / "a.pth", THREE))
    assert load_start(model, tmp_path / "a.pth") == 5
    differing = {key for key, value in model.state_dict().items() if not torch.equal(value, given[key])}
    assert differing == CLASSIFIERS


# --------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("override", ["model.bases=8", "model.auxiliary_channels=0", "model.decoder_channels=8"])
def test_anything_else_that_differs_is_refused(trained: Path, override: str) -> None:
    """Protects from a partial start, also where the classes differ too, and where only a classifier's width does."""
    for classes in ((), (THREE,)):
        recipe = init(trained, override, *classes)
        model = build_model(recipe)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(WeightsError, match="another network"):
            load_start_weights(model, recipe)
        assert equal(dict(model.state_dict()), before)


def test_unknown_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for ref in ("nothing_here", "runs/none", "none.pt", "no.such/folder"):
        with pytest.raises(WeightsError, match="no such recipe, run folder or file"):
            init_from_file(ref)
    with pytest.raises(WeightsError) as caught:
        init_from_file("voc_r50_d9")
    assert 'did you mean "voc_r50_d8"' in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no checkpoint in this folder"):
        init_from_file("./empty")


def test_a_recipe_without_a_complete_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the user's next step: the error names the command that makes the run, or finishes it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="no complete run") as caught:
        init_from_file("demo")
    assert "emaseg train demo" in caught.value.hint
    run(tiny(*SHORT), tmp_path / "runs/demo/2026-01-01_00-00-00", stop_after=1)
    with pytest.raises(WeightsError, match="1 incomplete") as caught:
        init_from_file("demo")
    begun = Path("runs/demo/2026-01-01_00-00-00")
    assert f"emaseg train {begun / 'recipe.toml'} --out {begun} --resume" in caught.value.hint
    assert init_from_file(str(begun)) == begun / "checkpoints/last.pt"  # named itself, an incomplete run will do


def test_a_rows_name_means_its_released_weights(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects fine-tuning from a published row: its name means what it means to eval, also where it was trained here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError) as caught:
        init_from_file("voc_r50_d8")
    assert "emaseg download-weights voc_r50_d8" in caught.value.hint
    (tmp_path / "cache").mkdir()
    file = tmp_path / "cache" / by_name("voc_r50_d8").files[0]
    (tmp_path / "runs/voc_r50_d8").mkdir(parents=True)
    own = tmp_path / "runs/voc_r50_d8/2026"
    own.symlink_to(trained)
    with pytest.raises(WeightsError, match="released weights are not on this machine"):
        init_from_file("voc_r50_d8")  # a run of the row is not the row: it must be named as a folder
    assert init_from_file("runs/voc_r50_d8") == Path("runs/voc_r50_d8/2026/checkpoints/best.pt")
    torch.save({"model": {}}, file)
    assert init_from_file("voc_r50_d8") == file
    (tmp_path / "mine.toml").write_text(TINY.replace('name = "tiny"', 'name = "voc_r50_d8"'))  # no [published]: no row
    assert init_from_file("mine.toml") == Path("runs/voc_r50_d8/2026/checkpoints/best.pt")
    own.unlink()
    own.mkdir()
    (own / "recipe.toml").write_text("")  # a run that was begun stands in nobody's way
    assert init_from_file("voc_r50_d8") == file


# ------------------------------------------------------------------------------------------------------ by names
def test_three_rounds_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the paper's chain: each round starts from the newest complete run of the round before."""
    monkeypatch.chdir(tmp_path)

    def stage(name: str, origin: str, iterations: int = 2) -> Recipe:
        overrides = [f'name="{name}"', f'train.init_from="{origin}"', f"train.iterations={iterations}"]
        return parse_recipe(TINY, "stage.toml", overrides).recipe

    def place(name: str, hour: int) -> Path:
        return default_run_folder(name, datetime(2026, 1, 1, hour))

    with pytest.raises(WeightsError, match=r'"stage_a": no such recipe'):
        run(stage("stage_b", "stage_a"), place("stage_b", 1))
    assert not place("stage_b", 1).exists()
    run(stage("stage_a", "", 3), place("stage_a", 1))
    run(stage("stage_a", ""), place("stage_a", 2))
    run(stage("stage_a", ""), place("stage_a", 3), stop_after=1)  # newer, but not complete
    run(stage("stage_b", "stage_a"), place("stage_b", 4))
    run(stage("stage_c", "stage_b"), place("stage_c", 5))
    for name, hour, origin in (("stage_b", 4, place("stage_a", 2)), ("stage_c", 5, place("stage_b", 4))):
        log = (place(name, hour) / "log.txt").read_text()
        assert f"start: the network of {origin / 'checkpoints/best.pt'}" in log


def test_best_before_last_and_names_of_recipe_files(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the rule of every REF, and that a recipe file means the runs of the name in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(TINY)
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/2026").symlink_to(trained)
    assert init_from_file("mine.toml") == init_from_file("tiny") == Path("runs/tiny/2026/checkpoints/best.pt")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/checkpoints").mkdir()
    (tmp_path / "copy/checkpoints/last.pt").write_bytes(b"")
    assert init_from_file("copy") == Path("copy/checkpoints/last.pt")
    assert init_from_file("copy/checkpoints/last.pt") == Path("copy/checkpoints/last.pt")


# --------------------------------------------------------------------------------------------------- command line
def test_command_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects --init-from: the same as the key, told by --dry-run and by the run, recorded in its recipe."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY.replace("iterations = 12", "iterations = 2"))
    start = ["train", str(recipe), "--device", "cpu", "--init-from", str(trained)]
    assert main([*start, "--dry-run"]) == 0
    assert f"start: the network of {trained / 'checkpoints/best.pt'}" in capsys.readouterr().err
    assert main([*start, "--out", str(tmp_path / "run")]) == 0
    assert f"start: the network of {trained / 'checkpoints/best.pt'}" in capsys.readouterr().err
    assert load_recipe(tmp_path / "run/recipe.toml").train.init_from == str(trained)
    assert main([*start, "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert "was complete already" in capsys.readouterr().err
    assert main(["train", str(recipe), "--init-from", str(tmp_path / "no.pt"), "--out", str(tmp_path / "x")]) == 3
    error = capsys.readouterr().err
    assert "no.pt" in error
    assert "train.init_from" in error
    assert not (tmp_path / "x").exists()


def test_dry_run_needs_no_backbone_file(trained: Path) -> None:
    """Protects the plan: it reads what the run would read."""
    told = texts(list(dry_run(init(trained, 'backbone.weights="not_here.pth"'), device=torch.device("cpu"))))
    assert "train.init_from" in told
    assert "backbone" not in told


def test_it_is_part_of_the_interface() -> None:
    """Protects what a network tells about itself: exactly the tensors whose first dimension counts classes."""
    for name in ("voc_r50_d8", "paper_voc_val_r101_emanet512", "memorynet_ade20k_vit_large"):
        shapes = {}
        for classes in ('{kind="shapes"}', '{kind="lip", root="x"}'):
            with torch.device("meta"):
                model = emaseg.build_model(load_recipe(name, [f"data={classes}"]))
            shapes[classes] = {key: value.shape for key, value in model.state_dict().items()}
            listed = {key for key in shapes[classes] for top in model.per_class if f"{key}.".startswith(f"{top}.")}
        five, twenty = shapes.values()
        assert {key for key in five if five[key] != twenty[key]} == listed
