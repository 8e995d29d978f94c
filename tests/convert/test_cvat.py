"""CVAT: images of videos and of projects, whose names in the XML are not those of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.convert import made
from tests.convert.made import SQUARE, TRIANGLE, expected, masks, run, write

CAT, DOG = [("cat", TRIANGLE)], [("cat", SQUARE)]


def project(root: Path, images: list[tuple[str, str, made.Objects]]) -> None:
    """The XML of (subset, name, objects)."""
    text = ""
    for subset, name, objects in images:
        one = made.cvat_xml({name: objects}).partition("<image ")[2].partition("</annotations>")[0]
        text += f'<image subset="{subset}" {one}'
    write(root / "annotations.xml", f"<annotations><meta></meta>{text}</annotations>")


def test_frames_of_a_video_have_no_ending(tmp_path: Path) -> None:
    """Protects the remedy for the export of a video: "CVAT for images" calls its frames frame_000000, the files .PNG."""
    root = tmp_path / "in"
    write(root / "annotations.xml", made.cvat_xml({"frame_000000": CAT, "x/frame.5": DOG}))
    for name in ("frame_000000.PNG", "x/frame.5.jpg", "frame_000001.PNG"):
        made.photo(root / "images" / name)
    assert run(root, tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["frame_000000"], expected(CAT, ["cat"]))
    np.testing.assert_array_equal(masks(tmp_path / "out")["x/frame.5"], expected(DOG, ["cat"]))


def test_a_name_without_an_ending_that_two_images_have(tmp_path: Path) -> None:
    """Protects from a choice between a.jpg and a.png."""
    root = tmp_path / "in"
    write(root / "annotations.xml", made.cvat_xml({"a": CAT, "b": CAT}))
    for name in ("a.jpg", "a.png", "b.jpg"):
        made.photo(root / "images" / name)
    done = run(root, tmp_path / "out")
    assert [one.reason for one in done.left] == ["several images are called a: images/a.jpg, images/a.png"]


@pytest.mark.parametrize("folders", [("Train", "Validation"), ("train", "val")])
def test_subsets_may_have_images_of_one_name(folders: tuple[str, str], tmp_path: Path) -> None:
    """Protects the export of a project, whose subsets each have a frame_000000, in folders named after them or alike."""
    root = tmp_path / "in"
    project(root, [("Train", "frame_000000", CAT), ("Validation", "frame_000000", DOG)])
    for folder in folders:
        made.photo(root / "images" / folder / "frame_000000.PNG")
    done = run(root, tmp_path / "out")
    assert (done.ok, done.splits) == (True, {"train": 1, "val": 1})
    np.testing.assert_array_equal(masks(tmp_path / "out")["train/frame_000000"], expected(CAT, ["cat"]))
    np.testing.assert_array_equal(masks(tmp_path / "out")["val/frame_000000"], expected(DOG, ["cat"]))


@pytest.mark.parametrize("missing", [0, 1])
def test_an_image_of_a_subset_that_was_not_copied(missing: int, tmp_path: Path) -> None:
    """Protects the image of one subset from the objects of another subset's, in whatever order the file has them."""
    root = tmp_path / "in"
    subsets = ["Train", "Validation"]
    project(root, [(subset, name, CAT) for subset in subsets for name in ("1.jpg", "2.jpg")])
    for subset in subsets:
        for name in ("1.jpg", "2.jpg"):
            made.photo(root / "images" / subset / name)
    (root / "images" / subsets[missing] / "1.jpg").unlink()
    done = run(root, tmp_path / "out")
    assert [one.reason for one in done.left] == [f"no image {subsets[missing]}/1.jpg"]
    assert done.images == 3


def test_subsets_without_folders_do_not_share_an_image(tmp_path: Path) -> None:
    """Protects from the objects of another image, where all images lie in one folder and one of two is there."""
    root = tmp_path / "in"
    project(root, [("Train", "1.jpg", CAT), ("Validation", "1.jpg", DOG), ("Train", "2.jpg", DOG)])
    for name in ("1.jpg", "2.jpg"):
        made.photo(root / "images" / name)
    done = run(root, tmp_path / "out")
    reason = "2 subsets (Train, Validation) have an image of this name: whose is images/1.jpg?"
    assert [one.reason for one in done.left] == [reason, reason]
    assert set(masks(tmp_path / "out")) == {"2"}


def test_one_subset_has_a_folder_and_another_has_not(tmp_path: Path) -> None:
    """Protects images of a subset whose folder is called otherwise from being looked for in one of its name."""
    root = tmp_path / "in"
    project(root, [("Train", "a.jpg", CAT), ("Validation", "b.jpg", DOG)])
    made.photo(root / "images/Train/a.jpg")
    made.photo(root / "images/held out/b.jpg")
    done = run(root, tmp_path / "out")
    assert (done.ok, done.splits) == (True, {"train": 1, "val": 1})
