"""ADE20K: every published layout is read, 0 is ignored and k becomes k - 1, and a wrong tree is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emaseg.data.checks import check_dataset
from emaseg.data.dataset import published_label
from emaseg.data.sets.ade20k import ade20k, ade20k_rule
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.trees import UnlabelledFiles
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.data import ADE20KData
from tests.data.made import fails, image, label, real

FOLDERS = {"training": ("ADE_train_00000001", "ADE_train_00000002"), "validation": ("ADE_val_00000001",)}


def tree(top: Path) -> Path:
    """The owners' archive with two training and one validation pair."""
    for folder, ids in FOLDERS.items():
        for name in ids:
            image(top / "images" / folder / f"{name}.jpg")
            label(top / "annotations" / folder / f"{name}.png", [0, 1, 150])
    return top


def data(root: Path, **keys: str) -> ADE20KData:
    return ADE20KData(kind="ade20k", root=str(root), **keys)


def ids(dataset: PairedFiles | UnlabelledFiles) -> list[str]:
    return [Path(dataset.name(i)).stem for i in range(len(dataset))]


def test_values_become_train_ids() -> None:
    """0 = other is ignored, 1..150 are classes 0..149, all else is an error (254 is the reader's mark of one)."""
    rule = ade20k_rule(tuple(map(str, range(150))))
    assert list(rule.lut) == [255, *range(150), *[254] * 105]


@pytest.mark.parametrize(
    ("below", "root"),
    [
        ("ADEChallengeData2016", "ADEChallengeData2016"),  # the owners'
        ("ADEChallengeData2016", "."),
        ("ADE20k/ADEChallengeData2016", "ADE20k"),  # sssegmentation
        ("ADE20k/ADEChallengeData2016", "."),
        ("ade/ADEChallengeData2016", "ade"),  # mmsegmentation
        ("ade/ADEChallengeData2016", "."),
    ],
)
def test_the_layouts(tmp_path: Path, below: str, root: str) -> None:
    """Each published place of the folder is found and reported."""
    top = tree(tmp_path / below)
    train, held = (build_dataset(data(tmp_path / root), part) for part in ("train", "eval"))
    assert isinstance(train, PairedFiles)
    assert isinstance(held, PairedFiles)
    assert (ids(train), ids(held)) == (list(FOLDERS["training"]), list(FOLDERS["validation"]))
    assert held.open(0).label().tolist() == [[255, 0, 149], [255, 0, 149]]
    assert str(top) in train.layout
    assert len(train.classes) == len(train.palette) == 150


def test_lists_choose_and_order(tmp_path: Path) -> None:
    """sssegmentation's id lists count where they are; the note says so, and what a list leaves out may lack a mask."""
    top = tree(tmp_path)
    (top / "train.txt").write_text("ADE_train_00000002\n")
    (top / "annotations/training/ADE_train_00000001.png").unlink()
    found = ade20k(data(top), "train")
    assert ids(found) == ["ADE_train_00000002"]
    assert "train.txt" in found.layout
    (top / "train.txt").write_text("ADE_train_00000002\nADE_train_00000009\n")
    fails(lambda: ade20k(data(top), "train"), DataError, "train.txt", "1 of its 2 images", "ADE_train_00000009")


def test_trainval_is_both_parts(tmp_path: Path) -> None:
    """Two folders become one set, without copies of files."""
    found = ade20k(data(tree(tmp_path), train_split="trainval"), "train")
    assert ids(found) == [*FOLDERS["training"], *FOLDERS["validation"]]


def test_the_test_images_have_no_labels(tmp_path: Path) -> None:
    """They can be counted and read for a submission; asking for labels is an error that says why."""
    tree(tmp_path)
    recipe = data(tmp_path, eval_split="test")
    fails(lambda: ade20k(recipe, "eval"), DataError, "images/testing", "release_test.zip")
    image(tmp_path / "release_test/testing/ADE_test_00000001.jpg")
    found = ade20k(recipe, "eval")
    assert isinstance(found, UnlabelledFiles)
    assert ids(found) == ["ADE_test_00000001"]
    assert found.open(0).image().shape == (2, 3, 3)
    fails(lambda: published_label(found.open(0)), DataError, "ADE_test_00000001.jpg", "not published", "val")
    fails(lambda: check_dataset(found), DataError, "not published")


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    """macOS leaves ._ files beside those of an archive; they are no images."""
    top = tree(tmp_path)
    (top / "images/training/._ADE_train_00000001.jpg").write_bytes(b"\0\5\x16\7")
    assert len(ade20k(data(top), "train")) == 2


def test_wrong_trees_are_named(tmp_path: Path) -> None:
    """Whatever is missing is named, with what is there instead."""
    (tmp_path / "Pictures").mkdir()
    recipe = data(tmp_path)
    fails(lambda: ade20k(recipe, "train"), DataError, "images, annotations", "found Pictures", "ADEChallengeData2016")
    tree(tmp_path)
    (tmp_path / "images/training").rename(tmp_path / "images/trainning")
    fails(
        lambda: ade20k(recipe, "train"), DataError, "images/training", "trainning, validation", 'did you mean "trainn'
    )
    (tmp_path / "images/trainning").rename(tmp_path / "images/training")
    (tmp_path / "annotations").rename(tmp_path / "labels")
    fails(lambda: ade20k(recipe, "train"), DataError, "annotations/training", "holds Pictures, images, labels")


def test_lone_images_and_masks_are_named(tmp_path: Path) -> None:
    """A half-copied set does not train."""
    top = tree(tmp_path)
    (top / "annotations/training/ADE_train_00000001.png").unlink()
    fails(lambda: ade20k(data(top), "train"), DataError, "1 of 2 images", "no label", "ADE_train_00000001")
    (top / "images/training/ADE_train_00000001.jpg").unlink()
    (top / "images/training/ADE_train_00000002.jpg").unlink()
    fails(lambda: ade20k(data(top), "train"), DataError, "no images", "images/training/<id>.jpg")
    image(top / "images/training/ADE_train_00000003.jpg")
    fails(lambda: ade20k(data(top), "train"), DataError, "1 of 1 labels", "no image", "ADE_train_00000002")


def test_values_out_of_range_are_named(tmp_path: Path) -> None:
    """A mask of the full ADE20K, or one that was reduced already, must not pass as this one."""
    top = tree(tmp_path)
    label(top / "annotations/validation/ADE_val_00000001.png", [3, 255])
    found = ade20k(data(top), "eval")
    fails(
        lambda: published_label(found.open(0)),
        DataError,
        "ADE_val_00000001.png",
        "255 (3 pixels)",
        "1..150 are classes, 0 is ignored",
    )


def test_unknown_split(tmp_path: Path) -> None:
    """The splits have fixed names; a misspelt one is a mistake in the recipe, and the nearest is named."""
    top = tree(tmp_path)
    fails(lambda: ade20k(data(top, train_split="training"), "train"), RecipeError, "train, val, trainval", '"train"')


@pytest.mark.realdata
def test_samples() -> None:
    """The owners' own files: the airport's ceiling is a ceiling, the house stands under the sky."""
    root = real("ade20k")
    held = ade20k(data(root), "eval")
    assert (len(ade20k(data(root), "train")), len(held)) == (1, 3)
    wanted = [
        {"ceiling", "column, pillar", "fountain"},
        {"sky", "building, edifice", "grass"},
        {"sky", "building, edifice", "tree"},
        {"road, route", "sky", "sidewalk, pavement"},
    ]
    found = [ade20k(data(root), "train").open(0), *(held.open(i) for i in range(3))]
    for sample, names in zip(found, wanted, strict=True):
        counts = np.bincount(sample.label().ravel(), minlength=256)[:150]
        assert names <= {held.classes[i] for i in np.argsort(-counts)[:5]}
