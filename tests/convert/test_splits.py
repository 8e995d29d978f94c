"""Splits that lists beside the annotations say: they are those of the conversion, or a note says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from emaseg.cli.app import main

from emaseg.convert import Conversion
from emaseg.data.sets.build import build_dataset
from tests.convert import made
from tests.convert.made import SQUARE, Scene, masks, run, write
from tests.starter.made import dry_run, start

SCENE: Scene = {f"{letter}.jpg": [("cat", SQUARE)] for letter in "abcd"}
SPLIT = {"train/a", "train/b", "train/c", "val/d"}


def flat_yolo(root: Path) -> None:
    """images/ and labels/ without folders of splits."""
    made.yolo(root, SCENE)
    for name in ("images", "labels"):
        (root / "train" / name).rename(root / name)
    (root / "train").rmdir()


def lists(root: Path, line: str, folder: str = ".") -> None:
    for split, letters in (("train", "abc"), ("val", "d")):
        write(root / folder / f"{split}.txt", "".join(f"{line.format(letter)}\n" for letter in letters))


def note_of(done: Conversion, words: str) -> str:
    return next((note for note in done.notes if words in note), "")


@pytest.mark.parametrize("line", ["images/{}.jpg", "./images/{}.jpg", "/home/me/set/images/{}.jpg", "{}.jpg", "{}"])
@pytest.mark.parametrize(
    "yaml", ["train: train.txt\nval: val.txt\n", "train: [train.txt]\nval:\n  - ./val.txt # all\n", ""]
)
def test_lists_of_a_yolo_set(yaml: str, line: str, tmp_path: Path) -> None:
    """Protects from training on the images of the official evaluation: without folders only the lists say which."""
    root = tmp_path / "in"
    flat_yolo(root)
    lists(root, line)
    write(root / "data.yaml", f"path: /datasets/x\n{yaml}names: ['cat', 'road sign']\n")
    done = run(root, tmp_path / "out")
    assert (done.ok, set(masks(tmp_path / "out"))) == (True, SPLIT)
    assert (
        note_of(done, "The splits are those of ")
        == f"The splits are those of {'data.yaml' if yaml else 'train.txt and val.txt'}."
    )


def test_folders_that_data_yaml_names(tmp_path: Path) -> None:
    """Protects a split of which the folders' names do not tell: data.yaml does."""
    root = tmp_path / "in"
    flat_yolo(root)
    for part in ("images", "labels"):
        for path in list((root / part).iterdir()):
            folder = root / part / ("day2" if path.stem == "d" else "day1")
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)
    write(root / "data.yaml", "train: ../images/day1\nval: ../images/day2\nnames: ['cat', 'road sign']\n")
    assert run(root, tmp_path / "out").ok
    assert set(masks(tmp_path / "out")) == SPLIT


@pytest.mark.parametrize("kind", [made.labelme, made.coco, made.via, made.cvat])
@pytest.mark.parametrize("folder", [".", "ImageSets/Segmentation", "splits"])
def test_lists_beside_annotations_of_any_format(
    kind: Callable[[Path, Scene], None], folder: str, tmp_path: Path
) -> None:
    """Protects the split of VOC and others, whatever tool drew the outlines; masks of the same names are no images."""
    root = tmp_path / "in"
    root.mkdir()
    kind(root, SCENE)
    lists(root, "{}", folder)
    made.photo(root / "SegmentationClass/a.png")
    done = run(root, tmp_path / "out")
    assert (done.ok, set(masks(tmp_path / "out"))) == (True, SPLIT)
    assert main(["init", str(tmp_path / "out"), "--out", str(tmp_path / "r.toml"), "--device", "cpu", "-q"]) == 0
    assert 'eval_images = "images/val"' in (tmp_path / "r.toml").read_text()


def test_images_in_no_list_are_left_out(tmp_path: Path) -> None:
    """Protects a test part that has no list from being trained on; it is told, and is no error."""
    root = tmp_path / "in"
    made.labelme(root, {**SCENE, "e.jpg": [("cat", SQUARE)]})
    lists(root, "{}.jpg")
    done = run(root, tmp_path / "out")
    assert set(masks(tmp_path / "out")) == SPLIT
    assert [(one.name, one.fault) for one in done.left] == [("e.jpg", False)]
    assert done.left[0].reason == "it is in none of the splits of train.txt and val.txt"


def test_an_image_in_both_lists_is_trained_on(tmp_path: Path) -> None:
    """Protects the evaluation from an image that is trained on."""
    made.labelme(tmp_path / "in", SCENE)
    lists(tmp_path / "in", "{}.jpg")
    write(tmp_path / "in/val.txt", "c.jpg\nd.jpg\n")
    done = run(tmp_path / "in", tmp_path / "out")
    assert set(masks(tmp_path / "out")) == SPLIT
    assert "Images in two of these splits: 1, taken for training." in done.notes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x.jpg\ny.jpg\nd.jpg\n", "2 of 3 lines of val.txt name no image here, such as x.jpg"),
        ("", "they have no annotated image for evaluation that is not for training, too"),
        ("a.jpg\n", "they have no annotated image for evaluation that is not for training, too"),
        (None, "there is no list of images for evaluation"),
    ],
)
def test_lists_that_cannot_be_used_are_told(content: str | None, words: str, tmp_path: Path) -> None:
    """Protects from a split that vanishes without a word."""
    made.labelme(tmp_path / "in", SCENE)
    lists(tmp_path / "in", "{}.jpg")
    (tmp_path / "in/val.txt").unlink()
    if content is not None:
        write(tmp_path / "in/val.txt", content)
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.ok
    assert done.images == 4
    assert words in note_of(done, "are not used: ")


def test_the_images_of_a_test_list_are_often_not_there(tmp_path: Path) -> None:
    """Protects the lists of train and val, where the test part was not published with the others; that is told."""
    made.labelme(tmp_path / "in", SCENE)
    lists(tmp_path / "in", "{}.jpg")
    write(tmp_path / "in/test.txt", "x.jpg\ny.jpg\n")
    done = run(tmp_path / "in", tmp_path / "out")
    assert set(masks(tmp_path / "out")) == SPLIT
    assert "2 of 2 lines of test.txt name no image here" in note_of(done, "The test part of these splits is not used")


def test_lists_of_a_few_images_are_not_used(tmp_path: Path) -> None:
    """Protects most images from being left out for the lists of an experiment with a few."""
    made.labelme(tmp_path / "in", {f"{letter}.jpg": [("cat", SQUARE)] for letter in "abcdefghi"})
    lists(tmp_path / "in", "{}.jpg")
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.images == 9
    assert "they have 4 of 9 annotated images" in note_of(done, "are not used: ")


def test_the_exports_own_splits_come_first(tmp_path: Path) -> None:
    """Protects the splits of an export from old lists; that these differ is told."""
    for split, letters in (("train", "ab"), ("val", "cd")):
        made.labelme(tmp_path / "in" / split, {f"{letter}.jpg": [("cat", SQUARE)] for letter in letters})
    lists(tmp_path / "in", "{}.jpg")
    done = run(tmp_path / "in", tmp_path / "out")
    assert set(masks(tmp_path / "out")) == {"train/a", "train/b", "val/c", "val/d"}
    assert "not those of train.txt and val.txt, which differ: val/c.jpg." in note_of(done, "own splits")
    report = json.loads((tmp_path / "out/convert.json").read_text())
    assert report["splits"] == {"train": 2, "val": 2}


def test_settings_are_no_lists(tmp_path: Path) -> None:
    """Protects from talk of splits where a YAML file has the settings of a training."""
    made.labelme(tmp_path / "in", SCENE)
    write(tmp_path / "in/settings.yaml", "train:\n  batch: 4\nval:\n  batch: 2\n")
    assert not note_of(run(tmp_path / "in", tmp_path / "out"), "split")


def test_an_annotation_file_is_no_list(tmp_path: Path) -> None:
    """Protects the text file of an image that is called train.jpg."""
    made.yolo(tmp_path / "in", {"train.jpg": [("cat", SQUARE)], "val.jpg": [("cat", SQUARE)]})
    for path in sorted((tmp_path / "in/train").rglob("*.*")):
        path.rename(tmp_path / "in" / path.name)
    done = run(tmp_path / "in", tmp_path / "out")
    assert (done.ok, done.images, note_of(done, "split")) == (True, 2, "")


@pytest.mark.parametrize(
    "folders", [("train", "val", "extra"), ("train", "extra"), ("val", "Test"), ("train", "train_part")]
)
def test_no_image_is_lost_where_folders_are_no_split(folders: tuple[str, ...], tmp_path: Path) -> None:
    """Protects the images of `extra`: where not all belong to a split, none may lie in a folder that init takes for one,
    for it would read only these."""
    for place, folder in enumerate(folders):
        made.labelme(tmp_path / "in" / folder, {f"{place}{letter}.jpg": [("cat", SQUARE)] for letter in "abc"})
    done = run(tmp_path / "in", tmp_path / "out")
    assert (done.ok, done.splits) == (True, {"": 3 * len(folders)})
    recipe = dry_run(start(tmp_path / "out").text)
    assert sum(len(build_dataset(recipe.data, phase)) for phase in ("train", "eval")) == done.images  # type: ignore[arg-type]
