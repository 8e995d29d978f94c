"""Masks of several kinds, rare ones among them: each is told by `init` and drawn by `convert`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.errors import DataError
from tests.convert.made import masks, names, run
from tests.starter.made import blob, data_of, dry_run, grey, made, refused, start

CAR, ROAD, RUST = blob(0, 1), blob(0, 0, 1), blob(0, 0, 0, 1)


def put(root: Path, pattern: str, numbers: range, label: np.ndarray) -> None:
    """Binary masks of some images."""
    for number in numbers:
        path = root / pattern.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label * 255).save(path)


def photos(root: Path, count: int, image: str = "images/img_{}.jpg") -> Path:
    made(root, grey(0, 1), image=image, mask="gone/{}.png", count=count)
    shutil.rmtree(root / "gone")
    return root


# ----------------------------------------------------------------------------------------------------------- few images
@pytest.mark.parametrize("cars", [10, 6])
def test_sparse_folders_of_classes_beside_the_images(cars: int, tmp_path: Path) -> None:
    """Protects road, of which only some images have a mask: half of them is not asked of a folder that may be a class."""
    root, out = photos(tmp_path / "in", 10), tmp_path / "out"
    put(root, "car/img_{}.png", range(cars), CAR)
    put(root, "road/img_{}.png", range(3, 7), ROAD)
    error = refused(root, "told apart by the folders they are in: car, road", "emaseg convert", "1 car, 2 road")
    assert "each image has" not in error.message
    run(root, out)
    assert names(out) == ["background", "car", "road"]
    assert len(masks(out)) == max(cars, 7)
    np.testing.assert_array_equal(masks(out)["img_4"], CAR + 2 * ROAD)
    np.testing.assert_array_equal(masks(out)["img_1"], CAR)


def test_a_class_whose_name_begins_as_a_split_does(tmp_path: Path) -> None:
    """Protects valve and testis from being taken for masks of the evaluation."""
    root = photos(tmp_path / "in", 6)
    put(root, "pipe/img_{}.png", range(6), CAR)
    put(root, "valve/img_{}.png", range(2), ROAD)
    refused(root, "pipe, valve")
    run(root, tmp_path / "out")
    assert names(tmp_path / "out") == ["background", "pipe", "valve"]


def test_a_chosen_mask_folder_is_the_one(tmp_path: Path) -> None:
    """Protects a choice: --masks says which of several folders is meant."""
    root = photos(tmp_path / "in", 6)
    for name in ("truth", "older"):
        put(root, f"{name}/img_{{}}.png", range(6), CAR)
    refused(root, "older, truth")
    assert data_of(start(root, images="images", masks="truth")).train_masks == "truth"


RARE = {
    "folders": "masks/{kind}/img_{{}}.png",
    "endings": "masks/img_{{}}_{kind}.png",
    "beginnings": "masks/{kind}_img_{{}}.png",
    "endings beside the images": "images/img_{{}}_{kind}.png",
}


@pytest.mark.parametrize("pattern", RARE.values(), ids=RARE)
def test_a_rare_kind_among_several(pattern: str, tmp_path: Path) -> None:
    """Protects rust, which may be what a data set is about: in 1 of 24 images it is a class as in all of them."""
    root, out = photos(tmp_path / "in", 24), tmp_path / "out"
    for kind, numbers, label in (("car", range(24), CAR), ("road", range(24), ROAD), ("rust", range(5, 6), RUST)):
        put(root, pattern.format(kind=kind), numbers, label)
    refused(root, "images have up to 3 masks each", "car", "road", "rust", "3 rust")
    done = run(root, out)
    assert not any("Images without annotations" in note or "no image" in note for note in done.notes)
    assert names(out) == ["background", "car", "road", "rust"]
    np.testing.assert_array_equal(masks(out)["img_5"], CAR + 2 * ROAD + 3 * RUST)


@pytest.mark.parametrize("pattern", ["masks/{kind}/img_{{}}.png", "images/img_{{}}_{kind}.png"])
def test_a_rare_kind_beside_one_frequent(pattern: str, tmp_path: Path) -> None:
    """Protects the defects of parts: they are no reason to move the masks out of `part`, and no images without a mask."""
    root, out = photos(tmp_path / "in", 24), tmp_path / "out"
    put(root, pattern.format(kind="part"), range(24), CAR)
    put(root, pattern.format(kind="defect"), range(1), ROAD)
    assert "move the masks" not in refused(root, "defect", "part", "emaseg convert").hint
    run(root, out)
    assert names(out) == ["background", "defect", "part"]
    np.testing.assert_array_equal(masks(out)["img_0"] > 0, CAR + ROAD > 0)


def test_many_objects_of_an_image(tmp_path: Path) -> None:
    """Protects the objects of the fullest image, which are numbered as in no other one."""
    root, out = photos(tmp_path / "in", 12), tmp_path / "out"
    for number in range(12):
        put(root, f"masks/img_{{}}_{number}.png", range(12 if number < 2 else 1), CAR if number else ROAD)
    put(root, "masks/img_0_11.png", range(1), RUST)
    done = run(root, out)
    np.testing.assert_array_equal(masks(out)["img_0"] > 0, CAR + ROAD + RUST > 0)
    assert not any("no image" in note for note in done.notes)


@pytest.mark.parametrize("pattern", [RARE["folders"], RARE["endings"], RARE["beginnings"]])
@pytest.mark.parametrize("places", ["images/{}/ masks/{}/", "{}/images/ {}/masks/"])
@pytest.mark.parametrize("only", ["car", "tram"])
def test_a_split_with_one_kind(only: str, places: str, pattern: str, tmp_path: Path) -> None:
    """Protects the evaluation images, on none of which there happens to be a road: they are converted with the others,
    whether or not the one kind of theirs is in the training images."""
    root, out = tmp_path / "in", tmp_path / "out"
    for split in ("train", "test"):
        image, mask = places.format(split, split).split()
        photos(root, 4, image + "img_{}.jpg")
        put(root, pattern.format(kind="car" if split == "train" else only).replace("masks/", mask), range(4), CAR)
        if split == "train":
            put(root, pattern.format(kind="road").replace("masks/", mask), range(4), ROAD)
    refused(root, "each image has 2 masks", "emaseg convert")
    assert run(root, out).splits == {"train": 4, "test": 4}
    assert names(out) == ["background", *sorted({"car", "road", only})]
    np.testing.assert_array_equal(masks(out)["test/img_1"] > 0, CAR > 0)


def test_masks_of_an_image_that_is_missing(tmp_path: Path) -> None:
    """Protects img_1 from the masks of img_13, which is not there: they are named and drawn on nothing."""
    root, out = photos(tmp_path / "in", 6), tmp_path / "out"
    for kind, label in (("car", CAR), ("road", ROAD)):
        put(root, f"masks/img_{{}}_{kind}.png", range(6), label)
    put(root, "masks/img_{}_car.png", range(13, 14), RUST)
    done = run(root, out)
    assert names(out) == ["background", "car", "road"]
    assert "Masks that belong to no image, not read: 1 (masks/img_13_car.png)." in done.notes
    assert not any("Images without annotations" in note for note in done.notes)


# ------------------------------------------------------------------------------------------------- one kind, named twice
@pytest.mark.parametrize("folder", ["masks", "images"])
@pytest.mark.parametrize("ends", [(".jpg", ".JPG"), (".jpg", ".jpeg", ".png")])
def test_masks_named_after_whole_files(folder: str, ends: tuple[str, ...], tmp_path: Path) -> None:
    """Protects from classes called jpg and JPG: an image's own ending is no kind of mask."""
    root = tmp_path / "in"
    for place, end in enumerate(ends):
        made(root, grey(0, 255), image=f"images/{place}_{{}}{end}", mask=f"{folder}/{place}_{{}}{end}.png", count=4)
    error = refused(root, "named after the whole files of their images", "pairs.csv")
    assert "each image has" not in error.message
    with pytest.raises(DataError, match="whole files"):
        run(root, tmp_path / "out")
    pairs = [f"images/{p}_{n}{end},{folder}/{p}_{n}{end}.png" for p, end in enumerate(ends) for n in range(4)]
    (root / "pairs.csv").write_text("\n".join(pairs))
    dry_run(start(root).text)


def test_masks_named_after_whole_files_of_one_ending(tmp_path: Path) -> None:
    """Protects what a recipe can state: where all images end alike, .jpg is the suffix of the masks."""
    started = start(made(tmp_path, grey(0, 1), mask="masks/img_{}.jpg.png"))
    assert data_of(started).mask_suffix == ".jpg"
    dry_run(started.text)


@pytest.mark.parametrize("words", [("_mask", "_label"), ("-seg", "_gt", "_annotation")])
@pytest.mark.parametrize("folder", ["masks", "images"])
def test_two_words_for_a_mask_are_one_kind(folder: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """Protects the work of several annotators from becoming classes that are called mask and label."""
    for place, word in enumerate(words):
        made(tmp_path, grey(0, 255), image=f"images/{place}_{{}}.jpg", mask=f"{folder}/{place}_{{}}{word}.png")
    error = refused(tmp_path, f"the masks end in {', '.join(sorted(words))}", "rename the masks")
    assert "each image has" not in error.message


def test_two_words_for_masks_of_one_image(tmp_path: Path) -> None:
    """Protects from one object that is two classes: what both words name is united, and told."""
    root, out = photos(tmp_path / "in", 4), tmp_path / "out"
    put(root, "masks/img_{}_mask.png", range(4), CAR)
    put(root, "masks/img_{}_label.png", range(2), ROAD)
    refused(root, "images have up to 2 masks each", "the same labels drawn in several ways")
    done = run(root, out)
    assert names(out) == ["background", "label"]
    assert any(note.startswith("One class, label: the masks _label, _mask.") for note in done.notes)


def test_kinds_of_different_images_are_not_said_to_be_of_each(tmp_path: Path) -> None:
    """Protects the word of a refusal: no image has two masks where each shows one of two classes."""
    root = photos(tmp_path / "in", 6)
    put(root, "masks/cat/img_{}.png", range(3), CAR)
    put(root, "masks/dog/img_{}.png", range(3, 6), ROAD)
    assert "the masks are of 2 kinds" in refused(root, "cat, dog", "emaseg convert").message


def test_folders_of_splits_by_any_words_are_no_classes(tmp_path: Path) -> None:
    """Protects train_lab and val_lab, whose files have the same names, from being one image's masks of two classes."""
    made(tmp_path / "in", grey(0, 1), image="train_img/{}.jpg", mask="train_lab/{}.png", count=6)
    made(tmp_path / "in", grey(0, 1), image="val_img/{}.jpg", mask="val_lab/{}.png", count=6)
    assert data_of(start(tmp_path / "in")).train_masks == "train_lab"
