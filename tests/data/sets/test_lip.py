"""LIP: the owners' tree and sssegmentation's are read, left and right swap when mirrored, and a wrong tree is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emaseg.data.dataset import UInt8, published_label
from emaseg.data.pipeline.transforms import sample_rng, train_crop
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.lip import lip
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.trees import UnlabelledFiles
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.data import LIPData
from emaseg.recipe.training import Augment
from tests.data.made import fails, image, label, real
from tests.data.test_data_scripts import script

PAIRS = ((14, 15), (16, 17), (18, 19))
OWNERS = ("TrainVal_images", "TrainVal_parsing_annotations", "TrainVal_images")
TWICE = (
    "TrainVal_images/TrainVal_images",
    "TrainVal_parsing_annotations/TrainVal_parsing_annotations",
    "TrainVal_images/TrainVal_images",
)
FLAT = (".", ".", ".")


def tree(top: Path, places: tuple[str, str, str] = OWNERS) -> Path:
    """Images 2_b, 1_a and 3_c of train, of which the list names two, and 4_d of val."""
    images, labels, lists = (top / place for place in places)
    for split, names in {"train": ("2_b", "1_a", "3_c"), "val": ("4_d",)}.items():
        for name in names:
            image(images / f"{split}_images" / f"{name}.jpg")
            label(labels / f"{split}_segmentations" / f"{name}.png", [0, 14, 19])
    (lists / "train_id.txt").write_text("2_b\r\n1_a\r\n")
    (lists / "val_id.txt").write_text("4_d\n")
    return top


def data(root: Path, **keys: str) -> LIPData:
    return LIPData(kind="lip", root=str(root), **keys)


def ids(dataset: PairedFiles | UnlabelledFiles) -> list[str]:
    return [Path(dataset.name(i)).stem for i in range(len(dataset))]


@pytest.mark.parametrize(
    ("places", "whose"), [(OWNERS, "its owners' layout"), (TWICE, "its owners' layout"), (FLAT, "sssegmentation's")]
)
@pytest.mark.parametrize(("below", "root"), [(".", "."), ("LIP", ".")])
def test_the_layouts(tmp_path: Path, places: tuple[str, str, str], whose: str, below: str, root: str) -> None:
    """Also with data.root one level too high, and with archives that hold a folder of their own name."""
    tree(tmp_path / below, places)
    train, held = (build_dataset(data(tmp_path / root), part) for part in ("train", "eval"))
    assert isinstance(train, PairedFiles)
    assert isinstance(held, PairedFiles)
    assert ids(train) == ["2_b", "1_a"]
    assert ids(held) == ["4_d"]
    assert whose in train.layout
    assert train.open(0).label().tolist() == [[0, 14, 19], [0, 14, 19]]
    assert len(train.classes) == len(train.palette) == 20
    assert train.classes[14:] == ("leftArm", "rightArm", "leftLeg", "rightLeg", "leftShoe", "rightShoe")


def test_without_a_list_every_image_is_taken_and_that_is_said(tmp_path: Path) -> None:
    (tree(tmp_path) / "TrainVal_images/train_id.txt").unlink()
    found = lip(data(tmp_path), "train")
    assert ids(found) == ["1_a", "2_b", "3_c"]
    assert "no train_id.txt" in found.layout


def test_a_value_beyond_the_classes_is_an_error(tmp_path: Path) -> None:
    """20 and 255 both: LIP ignores nothing."""
    tree(tmp_path)
    for value in (20, 255):
        label(tmp_path / "TrainVal_parsing_annotations/val_segmentations/4_d.png", [0, value])
        found = lip(data(tmp_path), "eval")
        fails(lambda found=found: found.open(0).label(), DataError, "4_d.png", f"holds {value} (3 pixels)", "LIP")


def test_wrong_trees_name_what_is_missing(tmp_path: Path) -> None:
    fails(lambda: lip(data(tmp_path), "train"), DataError, "LIP is not here", "found no folders", "TrainVal_images.zip")
    (tmp_path / "TrainVal_image").mkdir()
    fails(lambda: lip(data(tmp_path), "train"), DataError, 'did you mean "TrainVal_image"?')
    tree(tmp_path)
    (tmp_path / "TrainVal_parsing_annotations/val_segmentations/4_d.png").unlink()
    fails(lambda: lip(data(tmp_path), "eval"), DataError, "1 of 1 images", "4_d")
    (tmp_path / "TrainVal_images/train_images/2_b.jpg").unlink()
    fails(lambda: lip(data(tmp_path), "train"), DataError, "train_id.txt", "1 of its 2 images are missing", "2_b")
    (tmp_path / "TrainVal_parsing_annotations/val_segmentations").rename(tmp_path / "elsewhere")
    fails(lambda: lip(data(tmp_path), "eval"), DataError, "val_segmentations: the masks of val is missing")
    fails(lambda: lip(data(tmp_path, eval_split="vall"), "eval"), RecipeError, "data.eval_split", 'did you mean "val"?')


@pytest.mark.parametrize("folder", ["Testing_images/testing_images", "testing_images"])
def test_the_test_split_has_images_only(tmp_path: Path, folder: str) -> None:
    """Its labels are not published; the images can be predicted."""
    for name in ("8_b", "7_a"):
        image(tmp_path / folder / f"{name}.jpg")
    found = build_dataset(data(tmp_path, eval_split="test"), "eval")
    assert isinstance(found, UnlabelledFiles)
    assert ids(found) == ["7_a", "8_b"]
    fails(lambda: published_label(found.open(0)), DataError, "not published")
    (tmp_path / "test_id.txt").write_text("8_b\n")
    assert ids(lip(data(tmp_path, eval_split="test"), "eval")) == ["8_b"]


def mirrored(values: UInt8) -> UInt8:
    """The label of a mirrored picture, written out class by class."""
    partner = {14: 15, 15: 14, 16: 17, 17: 16, 18: 19, 19: 18}
    return np.array([[partner.get(int(value), int(value)) for value in row[::-1]] for row in values], np.uint8)


def test_training_swaps_left_and_right_when_it_mirrors(tmp_path: Path) -> None:
    """The whole path from file to crop, with the flip always on: the left arm of the mirror image is a left arm."""
    tree(tmp_path)
    image(tmp_path / "TrainVal_images/val_images/4_d.jpg", (4, 5))
    label(tmp_path / "TrainVal_parsing_annotations/val_segmentations/4_d.png", list(range(20)), (4, 5))
    sample = lip(data(tmp_path), "eval").open(0)
    augment = Augment(crop=(4, 5), flip=1.0, flip_pairs=PAIRS, photometric="none", max_class_share=1.0)
    crop = train_crop(sample, augment, sample_rng(0, 0, 0))
    np.testing.assert_array_equal(crop.label, mirrored(sample.label()))


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Test images are optional; other numbers than the published end with 1."""
    scripts = script(monkeypatch, "lip")
    tree(tmp_path)
    assert scripts.main([str(tmp_path), "--sample", "0"]) == 1
    assert "train: 2 images, published are 30,462" in capsys.readouterr().out
    monkeypatch.setitem(scripts.IMAGES, "lip", {"train": 2, "val": 1, "test": 10_000})
    assert scripts.main([str(tmp_path), "--sample", "0"]) == 0
    assert "33.333 %        3  leftArm" in capsys.readouterr().out


@pytest.mark.realdata
def test_the_real_sample_reads() -> None:
    """One pair of each split; the evaluation image is a grey JPEG."""
    classes = {"train": {0, 2, 5, 13, 14, 15}, "eval": {0, 1, 5, 9, 13, 15}}
    for part, size in (("train", (220, 154)), ("eval", (377, 130))):
        dataset = build_dataset(data(real("lip")), part)  # type: ignore[arg-type]
        assert len(dataset) == 1
        sample = dataset.open(0)
        assert sample.image().shape == (*size, 3)
        assert sample.label().shape == size
        assert set(np.unique(sample.label()).tolist()) == classes[part]
