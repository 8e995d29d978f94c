"""Arrangements of folders: what is passed over, what is not used, and names that only the images add something to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.sets.build import build_dataset
from emaseg.errors import DataError
from tests.starter.made import SIZE, data_of, dry_run, grey, made, refused, start


# ------------------------------------------------------------------------------------------------ folders of no use
def test_what_labelme2voc_writes(tmp_path: Path) -> None:
    """Protects the PNG masks of labelme's own program, whose first folder of masks holds arrays."""
    made(tmp_path, grey(0, 1, 2), "JPEGImages/img_{}.jpg", "SegmentationClassPNG/img_{}.png")
    made(tmp_path, grey(0, 1), "JPEGImages/img_{}.jpg", "SegmentationObjectPNG/img_{}.png")
    made(tmp_path, grey(0, 1), "JPEGImages/img_{}.jpg", "SegmentationClassVisualization/img_{}.jpg")
    (tmp_path / "SegmentationClass").mkdir()
    for number in range(6):
        np.save(tmp_path / f"SegmentationClass/img_{number}.npy", np.zeros(SIZE, np.int32))
    (tmp_path / "class_names.txt").write_text("_background_\ncat\ndog")
    started = start(tmp_path)
    assert data_of(started).train_masks == "SegmentationClassPNG"
    assert data_of(started).classes == ("_background_", "cat", "dog")
    assert any(
        note.startswith("Not used:") and "SegmentationClass: the masks end in .npy" in note for note in started.notes
    )
    assert any(note.startswith("SegmentationObjectPNG holds masks of the same images, too") for note in started.notes)


def test_jpeg_overlays_do_not_hide_the_masks(tmp_path: Path) -> None:
    """Protects masks in gt/ from the pictures in label/, which is looked into first."""
    made(tmp_path, grey(0, 1), mask="gt/img_{}.png")
    made(tmp_path, grey(0, 1), mask="label/img_{}.jpg")
    started = start(tmp_path)
    assert data_of(started).train_masks == "gt"
    assert any(note.startswith("Not used:") and "label: the masks are JPEG files" in note for note in started.notes)


@pytest.mark.parametrize("other", ["shown", "masks/val"])
def test_masks_of_no_use_are_not_replaced_by_a_guess(other: str, tmp_path: Path) -> None:
    """Protects from training on pictures of masks, or on a part of them: only a folder that is called masks stands in."""
    made(tmp_path, grey(0, 1), "images/train/img_{}.jpg", "masks/train/img_{}.jpg")
    made(tmp_path, grey(0, 1), "images/train/img_{}.jpg", f"{other}/train/img_{{}}.png")
    refused(tmp_path, "JPEG files")


def test_a_refused_split_is_not_left_out(tmp_path: Path) -> None:
    """Protects the evaluation images, whose masks are named in two ways, from being left out without a word."""
    made(tmp_path, grey(0, 1), "images/train/img_{}.jpg", "masks/train/img_{}.png")
    for name, end in (("a", ".jpg"), ("b", ".JPG")):
        made(tmp_path, grey(0, 1), f"images/val/{name}{{}}{end}", f"masks/val/{name}{{}}{end}.png")
    refused(tmp_path, "named after the whole files")


# --------------------------------------------------------------------------------------------------- images of no split
@pytest.mark.parametrize(
    ("image", "mask", "extra"),
    [
        ("images/{}/p{{}}.jpg", "masks/{}/p{{}}.png", "images/extra"),
        ("{}/images/p{{}}.jpg", "{}/masks/p{{}}.png", "extra/images"),
        ("{}/p{{}}.jpg", "{}annot/p{{}}.png", "extra"),
        ("{}/p{{}}.jpg", "{}/p{{}}_mask.png", "extra"),
    ],
)
def test_images_in_further_folders_are_named(image: str, mask: str, extra: str, tmp_path: Path) -> None:
    """Protects a third part of a data set, which is neither a training nor an evaluation split by its name."""
    for split in ("train", "val"):
        made(tmp_path, grey(0, 1), image.format(split), mask.format(split), count=4)
    before = start(tmp_path)
    assert not any("not used" in note for note in before.notes)
    made(tmp_path, grey(0, 1), image.format("extra"), mask.format("extra"), count=3)
    started = start(tmp_path)
    assert any(note.startswith(f"Images in folders that are not used: {extra} (3).") for note in started.notes)
    assert data_of(started) == data_of(before)


def test_negatives_beside_the_splits_are_used(tmp_path: Path) -> None:
    """Protects from a note that images are not used which are."""
    made(tmp_path, grey(0, 1), "images/train/a{}.jpg", "masks/train/a{}.png")
    made(tmp_path, grey(0, 1), "images/negatives/n{}.jpg", "gone/{}.jpg")
    assert not any("not used: images/negatives" in note for note in start(tmp_path).notes)


# ------------------------------------------------------------------------------------------------- names of the images
@pytest.mark.parametrize("folders", [("images", "masks"), ("raw", "truth")])
@pytest.mark.parametrize(
    ("image", "mask", "prefix", "suffix"),
    [
        ("img_{:03}.jpg", "{:03}.png", "img_", ""),
        ("{:03}_sat.jpg", "{:03}.png", None, "_sat"),
        ("case_{}_0000.png", "case_{}.png", None, "_0000"),
        ("case_{}00_0000.png", "case_{}00.png", None, "_0000"),
    ],
)
def test_images_with_a_beginning_or_ending_of_their_own(
    image: str, mask: str, prefix: str | None, suffix: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    """Protects masks that have nothing but the rest of the images' names: found, written down, each with its image."""
    images, masks = folders

    def draw(number: int) -> Image.Image:
        return Image.fromarray(
            np.where(np.arange(SIZE[1]) < 2 + number, 1, 0)[None].repeat(SIZE[0], 0).astype(np.uint8)
        )

    made(tmp_path, draw, f"{images}/{image}", f"{masks}/{mask}")
    started = start(tmp_path, images=images, masks=masks) if images == "raw" else start(tmp_path)
    data = data_of(started)
    assert (data.image_prefix, data.image_suffix, data.mask_prefix, data.mask_suffix) == (prefix, suffix, None, "")
    train = build_dataset(dry_run(started.text).data, "train")
    for place in range(len(train)):
        number = Path(train.name(place)).stem.replace("case_", "").replace("_0000", "").strip("imgsat_")
        assert train.open(place).label()[0].sum() == 2 + int(number.removesuffix("00") if "00_" in image else number)


def test_folders_that_do_not_fit_name_the_keys(tmp_path: Path) -> None:
    """Protects people whose names fit in no way that is found: all keys that could say how are named."""
    made(tmp_path, grey(0, 1), "raw/a{}x.jpg", "truth/{}b.png")
    for path in (tmp_path / "truth").iterdir():
        path.rename(path.with_name(f"{sum(map(ord, path.name))}z{path.name}"))
    with pytest.raises(DataError, match="hardly any image") as caught:
        start(tmp_path, images="raw", masks="truth")
    keys = ("mask_prefix", "mask_suffix", "image_prefix", "image_suffix")
    assert all(f"data.{key}" in caught.value.hint for key in keys)


@pytest.mark.parametrize("folder", ["", "train/", "all/of/it/"])
def test_images_and_masks_of_one_name_in_one_folder(folder: str, tmp_path: Path) -> None:
    """Protects from a refusal without its reason: a.jpg and a.png lie in one folder."""
    made(tmp_path, grey(0, 1), f"{folder}img_{{}}.jpg", f"{folder}img_{{}}.png")
    refused(tmp_path, f"nothing tells them apart: {folder}img_0.jpg and {folder}img_0.png", "a folder of their own")
    with pytest.raises(DataError, match="nothing tells them apart"):
        start(tmp_path, images=folder or ".", masks=folder or ".")


def test_a_refusal_names_the_options_that_help(tmp_path: Path) -> None:
    """Protects people from moving files: init reads any two folders once it is told which they are."""
    made(tmp_path / "pets", grey(0, 1), "images/a{}.jpg", "annotations/trimaps/a{}.png")
    refused(tmp_path / "pets", f"emaseg init {tmp_path / 'pets'} --images images --masks annotations/trimaps")
    assert data_of(start(tmp_path / "pets", images="images", masks="annotations/trimaps")).train_images == "images"
    made(tmp_path / "other", grey(0, 1), "2_ortho/a{}_RGB.png", "5_truth/a{}_label.png")
    refused(tmp_path / "other", "emaseg init FOLDER --images DIR --masks DIR")


def test_a_refusal_of_splits_names_no_option_that_leaves_one_out(tmp_path: Path) -> None:
    """Protects the evaluation images: --images and --masks name one folder each, which was that of the training alone."""
    for split in ("train", "val"):
        made(tmp_path, grey(0, 1), f"{split}/images/{split[0]}{{}}.jpg", f"{split}/masks/cls/{split[0]}{{}}.png")
    error = refused(tmp_path, "move the masks out of cls, or the images into a folder cls")
    assert "--images" not in error.hint


def test_the_heading_of_a_split_list_is_no_image(tmp_path: Path) -> None:
    """Protects lists that a table program wrote: init passed over them, though training reads them."""
    made(tmp_path, grey(0, 1))
    for name, numbers in (("train", range(4)), ("val", range(4, 6))):
        (tmp_path / f"{name}.txt").write_text("\n".join(["image", *(f"img_{number}" for number in numbers)]))
    started = start(tmp_path)
    assert (data_of(started).train_list, data_of(started).eval_list) == ("train.txt", "val.txt")
    assert not any("is not used" in note for note in started.notes)
    assert len(build_dataset(dry_run(started.text).data, "train")) == 4
