"""Own data in two folders: images find their masks by name, and what does not fit is named and counted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.checks import check_dataset
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.folder import folder
from emaseg.errors import DataError
from emaseg.recipe.data import FolderData


def draw(root: Path, *names: str) -> Path:
    """Small pictures: RGB under image/, masks of class 1 elsewhere."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("image/"):
            Image.new("RGB", (3, 2)).save(path)
        else:
            Image.new("L", (3, 2), 1).save(path)
    return root


def data(root: Path, **keys: object) -> FolderData:
    values: dict[str, object] = {
        "kind": "folder",
        "root": str(root),
        "classes": ("ground", "crack"),
        "train_images": "image",
        "train_masks": "mask",
        "eval_images": "image",
        "eval_masks": "mask",
    }
    return FolderData(**(values | keys))  # type: ignore[arg-type]


def names(root: Path, **keys: object) -> list[str]:
    dataset = folder(data(root, **keys), "train")
    return [Path(dataset.name(i)).relative_to(root).as_posix() for i in range(len(dataset))]


def fails(root: Path, *words: str, **keys: object) -> None:
    with pytest.raises(DataError) as caught:
        folder(data(root, **keys), "train")
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message + "\n" + caught.value.hint


# ------------------------------------------------------------------------------------------------- what is found
def test_images_are_sorted_paired_by_name_and_read(tmp_path: Path) -> None:
    """Any image format, extensions in capitals, masks in other lossless formats, other files passed over."""
    root = draw(tmp_path, "image/b.JPG", "image/a.png", "image/c.WebP", "mask/a.png", "mask/b.PNG", "mask/c.tif")
    (root / "image" / "notes.txt").write_text("no image")
    (root / "image" / "._a.png").write_bytes(b"what macOS leaves behind")
    assert names(root) == ["image/a.png", "image/b.JPG", "image/c.WebP"]
    dataset = build_dataset(data(root), "eval")
    assert [dataset.open(i).label().max() for i in range(3)] == [1, 1, 1]
    assert dataset.classes == ("ground", "crack")
    assert dataset.palette.shape == (2, 3)


def test_sub_folders_are_kept(tmp_path: Path) -> None:
    """Equal names in different sub-folders are different images."""
    root = draw(tmp_path, "image/x/1.jpg", "image/y/1.jpg", "mask/x/1.png", "mask/y/1.png")
    dataset = folder(data(root), "train")
    assert [tuple(p.relative_to(root).as_posix() for p in pair) for pair in dataset.items] == [
        ("image/x/1.jpg", "mask/x/1.png"),
        ("image/y/1.jpg", "mask/y/1.png"),
    ]


def test_mask_suffix(tmp_path: Path) -> None:
    """Masks without the suffix are of another kind and stay out."""
    root = draw(tmp_path, "image/a.jpg", "mask/a_labels.png", "mask/a_colour.png")
    assert names(root, mask_suffix="_labels") == ["image/a.jpg"]


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/a.png", "image/a_m.png")
    Image.new("L", (3, 2), 1).save(root / "image" / "a_m.png")
    assert names(root, train_masks="image", mask_suffix="_m") == ["image/a.png"]
    fails(root, "in one folder", "data.mask_suffix", train_masks="image")


def test_a_mask_of_two_images_is_refused(tmp_path: Path) -> None:
    """Protects from a picture that is no image of the set, such as a preview, and would be trained on with its mask."""
    root = draw(tmp_path, "image/1.jpg", "image/1_sat.jpg", "image/2_sat.jpg", "mask/1_mask.png", "mask/2_mask.png")
    keys = {"image_suffix": "_sat", "mask_suffix": "_mask"}
    fails(root, "1.jpg and 1_sat.jpg would both have the mask 1_mask.png", **keys)
    (root / "image/1.jpg").unlink()
    assert names(root, **keys) == ["image/1_sat.jpg", "image/2_sat.jpg"]


def test_mask_folder_below_the_image_folder(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/a.jpg")
    (root / "image" / "masks").mkdir()
    Image.new("L", (3, 2), 1).save(root / "image" / "masks" / "a.png")
    assert names(root, train_masks="image/masks") == ["image/a.jpg"]


def test_links_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    root = draw(tmp_path / "set", "image/a.jpg", "mask/a.png", "mask/far/b.png")
    draw(tmp_path / "disk", "image/b.jpg")
    (root / "image" / "far").symlink_to(tmp_path / "disk" / "image")
    (root / "image" / "loop").symlink_to(root / "image")
    assert names(root) == ["image/a.jpg", "image/far/b.jpg"]


def test_list_file_names_images_with_or_without_extension(tmp_path: Path) -> None:
    """In the list's order; unlisted images and masks do not matter, and one of two equal stems can be picked."""
    root = draw(tmp_path, "image/a.jpg", "image/b.jpg", "image/b.png", "image/x/c.jpg", "mask/b.png", "mask/x/c.png")
    (root / "list.txt").write_bytes(b"x\\c\r\n\r\n./b.png\r\n")
    assert names(root, train_list="list.txt") == ["image/x/c.jpg", "image/b.png"]


def test_the_heading_of_a_list_of_one_column_is_no_image(tmp_path: Path) -> None:
    """Protects lists that a table program wrote: their first line names the column, unless an image is called so."""
    root = draw(tmp_path, "image/a.png", "mask/a.png")
    (root / "list.csv").write_text("image\na.png\n")
    assert names(root, train_list="list.csv") == ["image/a.png"]
    (root / "list.csv").write_text("image\n")
    fails(root, "1 of the names", train_list="list.csv")
    draw(root, "image/image.png", "mask/image.png")
    assert names(root, train_list="list.csv") == ["image/image.png"]


def test_training_and_evaluation_read_their_own_folders(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/a.jpg", "mask/a.png")
    draw(tmp_path / "held", "image/b.jpg", "mask/b.png")
    held = folder(data(root, eval_images="held/image", eval_masks="held/mask"), "eval")
    assert [Path(held.name(i)).name for i in range(len(held))] == ["b.jpg"]


# --------------------------------------------------------------------------------------------- what is refused
def test_missing_folders_are_named_with_their_key_and_the_nearest(tmp_path: Path) -> None:
    root = draw(tmp_path / "set", "image/a.jpg", "mask/a.png")
    fails(tmp_path / "sett", "sett", "no such folder", "data.root=")
    fails(root, "data.train_images is missing", "holds image, mask", 'did you mean "image"?', train_images="images")
    fails(root, "data.train_masks should be a folder", train_masks="mask/a.png")


def test_no_images(tmp_path: Path) -> None:
    root = draw(tmp_path, "mask/a.png")
    (root / "image").mkdir()
    fails(root, "no images (.jpg,", "data.train_images")


def test_images_without_a_mask_are_counted(tmp_path: Path) -> None:
    root = draw(tmp_path, *(f"image/{i}.jpg" for i in range(6)), "mask/0.png")
    fails(root, "5 of 6 images", "1.jpg, 2.jpg, 3.jpg and 2 more", "1.png", "data.mask_suffix")


def test_a_near_miss_among_the_masks_is_suggested(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/photo_001.jpg", "mask/photo-001.png")
    fails(root, "1 of 1 images", 'did you mean "photo-001.png"?')


def test_masks_without_an_image_are_counted(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/0.jpg", *(f"mask/{i}.png" for i in range(6)))
    fails(root, "5 of 6 masks", "1.png, 2.png, 3.png and 2 more", "list file")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/a.jpg", "image/a.png", "mask/a.png")
    fails(root, "a.jpg and a.png share the name a", "rename")
    (root / "list.txt").write_text("a")
    fails(root, "a.jpg and a.png share the name a", train_list="list.txt")
    (root / "image" / "a.png").unlink()
    draw(root, "mask/a.tif")
    fails(root, "a.png and a.tif share the name a")


def test_list_file_that_is_missing_or_names_unknown_images(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/photo1.jpg", "mask/photo1.png")
    fails(root, "train.txt: the list file cannot be read", train_list="train.txt")
    (root / "train.txt").write_text("photo1\nphoto2\nphoto3\n")
    fails(root, "train.txt: 2 of the names", "photo2, photo3", 'did you mean "photo1.jpg"?', train_list="train.txt")


# --------------------------------------------------------------------------------------------------- real data
CAMVID = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)


def real(part: str) -> Path:
    top = os.environ.get("EMASEG_TEST_DATA")
    if not top:
        pytest.skip("EMASEG_TEST_DATA is not set")
    return Path(top, part)


@pytest.mark.realdata
@pytest.mark.parametrize(("split", "column", "images"), [("train", 0, 367), ("val", 1, 101), ("test", 2, 233)])
def test_camvid_pixel_counts(split: str, column: int, images: int) -> None:
    """The whole split, class by class, against the table that came with the images."""
    root = real("camvid")
    keys = {"train_images": split, "train_masks": f"{split}annot", "classes": CAMVID, "ignore": (11,)}
    dataset = folder(data(root, **keys), "train")
    report = check_dataset(dataset, limit=len(dataset))
    assert report.images == report.checked == images
    rows = [line.split() for line in (root / "CAMVID.txt").read_text().splitlines() if " / " in line and line[0] == " "]
    stated = [int(row[-5:][2 * column]) for row in rows]  # "train / val / test" end each row
    assert list(report.class_pixels) == stated[:11]
    assert report.ignored_share == pytest.approx(stated[11] / sum(stated))
    assert report.never_seen == ()


@pytest.mark.realdata
def test_crackforest_by_its_list_files() -> None:
    keys = {"train_images": "images", "train_masks": "labels", "eval_images": "images", "eval_masks": "labels"}
    recipe = data(real("crackforest"), **keys, train_list="train.txt", eval_list="val.txt")
    train, held = folder(recipe, "train"), folder(recipe, "eval")
    assert (len(train), len(held)) == (72, 46)
    assert not {train.name(i) for i in range(72)} & {held.name(i) for i in range(46)}
    pixels = np.add(check_dataset(train, 72).class_pixels, check_dataset(held, 46).class_pixels)
    assert 0.010 < pixels[1] / pixels.sum() < 0.020


@pytest.mark.realdata
def test_labelme_export_is_read() -> None:
    """Palette masks with __ignore__ = 255; the classes as in its class_names.txt."""
    root = real("labelme_voc")
    classes = tuple((root / "class_names.txt").read_text().split("\n"))
    keys = {"train_images": "JPEGImages", "train_masks": "SegmentationClass", "classes": classes}
    dataset = folder(data(root, **keys), "train")
    report = check_dataset(dataset)
    seen = {name for name, count in zip(classes, report.class_pixels, strict=True) if count}
    assert (report.images, len(classes)) == (3, 21)
    assert {"_background_", "person", "bus", "car"} <= seen
    assert report.ignored_share > 0
    for i, (_, mask) in enumerate(dataset.items):
        with Image.open(mask) as stored:
            np.testing.assert_array_equal(dataset.open(i).label(), np.asarray(stored))
