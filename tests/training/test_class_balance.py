"""Computed class weights follow their rules, are counted once, and are counted again when a label changes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emaseg.checkpoint import read_checkpoint
from emaseg.data.sets.build import build_dataset
from emaseg.events import Note
from emaseg.recipe import FolderData, Recipe, parse_recipe, recipe_to_toml
from emaseg.resources import cache_folder
from emaseg.training import class_balance
from emaseg.training.class_balance import ClassCounts, count_classes, inverse_log, median_frequency, with_class_weights
from emaseg.training.dry_run import dry_run
from tests.helpers import equal, run, tiny


def test_the_rules_on_counts_done_by_hand() -> None:
    """Protects both formulas: class 1 is a tenth of one of two labels, class 2 is in none."""
    counts = ClassCounts(2, (190, 10, 0), (200, 100, 0))
    median = (0.95 + 0.1) / 2
    assert median_frequency(counts) == pytest.approx((median / 0.95, median / 0.1, median / 0.1), rel=1e-3)
    expected = (1 / math.log(1.02 + 0.95), 1 / math.log(1.02 + 0.05), 1 / math.log(1.02 + 0.05))
    assert inverse_log(counts) == pytest.approx(expected, rel=1e-3)


def test_weights_stay_within_what_a_recipe_may_state() -> None:
    """Protects the recipe in every checkpoint from a weight that its own reader refuses: two pixels of a huge image."""
    weights = median_frequency(ClassCounts(2, (10**9, 2), (10**9 + 2, 10**9 + 2)))
    recipe = tiny(f"loss.class_weights={[*weights, 1.0, 1.0, 1.0]}")
    assert max(weights) == 1e6
    assert parse_recipe(recipe_to_toml(recipe), "x").recipe == recipe


def test_classes_of_one_size_weigh_the_same() -> None:
    """Protects the law: nothing to balance, nothing changes the ratio of the losses."""
    counts = ClassCounts(3, (50, 50), (100, 100))
    assert median_frequency(counts) == (1.0, 1.0)
    assert len(set(inverse_log(counts))) == 1


@pytest.fixture
def data(tmp_path: Path) -> FolderData:
    """Four 10 x 10 masks, three with one row of class 1, one of them ignored in part."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        label = np.zeros((10, 10), np.uint8)
        label[0] = min(number, 1)
        label[9] = 255 if number == 3 else 0
        Image.new("RGB", (10, 10)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(label).save(tmp_path / "masks" / f"{number}.png")
    return FolderData(
        kind="folder",
        root=str(tmp_path),
        classes=("ground", "crack"),
        train_images="images",
        train_masks="masks",
        eval_images="images",
        eval_masks="masks",
    )


def test_counts_are_those_of_the_labels_and_read_once(data: FolderData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the cache: it answers while nothing changed, and never after a mask was written again."""
    dataset = build_dataset(data, "train")
    counts = count_classes(dataset, data)
    assert counts == ClassCounts(4, (360, 30), (390, 290))
    with monkeypatch.context() as patch:
        patch.setattr(class_balance, "read_all", lambda *_: pytest.fail("the labels were read again"))
        assert count_classes(dataset, data) == counts
    mask = Path(data.root) / "masks" / "0.png"
    before = mask.stat()
    Image.fromarray(np.ones((10, 10), np.uint8)).save(mask)
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert count_classes(dataset, data).pixels == (260, 130)


@pytest.mark.parametrize(
    "content", ["", "[1]", "[1, 4, [1], [2]]", '[1, 4, [1, "2"], [2, 3]]', "[1, 4, [1, -2], [2, 3]]"]
)
def test_a_damaged_cache_is_counted_again(data: FolderData, content: str) -> None:
    """Protects the weights from a file that is not what was written there."""
    dataset = build_dataset(data, "train")
    counts = count_classes(dataset, data)
    (file,) = (cache_folder() / "class_counts").iterdir()
    file.write_text(content)
    assert count_classes(dataset, data) == counts


def test_a_cache_that_cannot_be_written_stops_nobody(data: FolderData) -> None:
    """Protects a run on a machine whose cache folder is a file."""
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("")
    assert count_classes(build_dataset(data, "train"), data).read == 4


def _recipe(*overrides: str) -> Recipe:
    return tiny("loss.class_balance='inverse_log'", "train.iterations=4", "train.evaluate_every=0", *overrides)


def test_a_run_says_keeps_and_repeats_its_weights(tmp_path: Path) -> None:
    """Protects the record: the log names the weights, the checkpoint has them, and a resume goes on with the same ones,
    from the recipe that asks for them and from the run's own."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    events = run(_recipe(), whole)
    assert any(isinstance(event, Note) and "class weights (inverse_log" in event.text for event in events)
    assert "class weights (inverse_log" in (whole / "log.txt").read_text()
    one = read_checkpoint(whole / "checkpoints/last.pt")
    weights = one.recipe.loss.class_weights
    assert weights == with_class_weights(_recipe(), build_dataset(_recipe().data, "train"))[0].loss.class_weights
    run(_recipe(), cut, stop_after=2)
    run(_recipe(), cut, resume=True)
    two = read_checkpoint(cut / "checkpoints/last.pt")
    assert equal(one.model, two.model)
    assert two.recipe.loss == one.recipe.loss
    plain = read_checkpoint(_trained(tmp_path / "plain"))
    assert not equal(one.model, plain.model)


RUN = "loss.class_balance='inverse_log'", "loss.class_weights=[1.0, 2.0, 3.0, 4.0, 5.0]"  # of a run's own recipe


def _of_a_run(*overrides: str) -> Recipe:
    """A finished run's own recipe, which holds the rule and the weights that were computed, with `--set` values."""
    return parse_recipe(recipe_to_toml(tiny(*RUN)), "recipe.toml", overrides).recipe


@pytest.mark.parametrize("rule", ["none", "median_frequency"])
def test_another_rule_leaves_the_weights_of_the_one_before_out(rule: str) -> None:
    """Protects a run that starts from another run's recipe.toml: it has the weights of the rule that was asked for."""
    assert _of_a_run(f"loss.class_balance={rule}").loss.class_weights == ()
    given = _of_a_run(f"loss.class_balance={rule}", "loss.class_weights=[1, 1, 1, 1, 2]")
    assert given.loss.class_weights == (1.0, 1.0, 1.0, 1.0, 2.0)
    assert _of_a_run("loss.class_balance=inverse_log").loss == tiny(*RUN).loss  # a resume with the --set of the start
    assert _of_a_run("loss.focal_gamma=2").loss.class_weights == tiny(*RUN).loss.class_weights
    origins = parse_recipe(recipe_to_toml(tiny(*RUN)), "recipe.toml", [f"loss.class_balance={rule}"]).origins
    assert origins["loss.class_weights"] == "--set"


def test_weights_that_win_over_a_rule_are_told() -> None:
    """Protects from the weights of another data set: the rule counts nothing where weights are given, and says so."""
    data = build_dataset(_of_a_run().data, "train")
    recipe, (note,) = with_class_weights(_of_a_run(), data)
    assert recipe == _of_a_run()
    assert "--set 'loss.class_weights=[]'" in note.text
    assert note in list(dry_run(_of_a_run(), device=torch.device("cpu")))
    weights = _of_a_run("loss.class_balance=none", "loss.class_weights=[1, 1, 1, 1, 2]")
    assert with_class_weights(weights, data) == (weights, [])


def _trained(out: Path) -> Path:
    run(tiny("train.iterations=4", "train.evaluate_every=0"), out)
    return out / "checkpoints/last.pt"
