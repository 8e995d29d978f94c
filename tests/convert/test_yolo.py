"""YOLO: where the images of text files lie, and the file that names the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.convert import made
from tests.convert.made import CLASSES, SCENE, SIZE, SQUARE, TRIANGLE, Polygon, expected, masks, names, run, write


def line(polygon: Polygon, number: int = 0) -> str:
    return " ".join([str(number), *(f"{x / SIZE[1]:.9f} {y / SIZE[0]:.9f}" for x, y in made.pairs(polygon))])


def scene(root: Path, images: str, labels: str) -> None:
    """The scene with its images and texts in folders of these names."""
    for image, objects in SCENE.items():
        made.photo(root / images / image)
        lines = [line(polygon, CLASSES.index(name)) for name, polygon in objects]
        write(root / labels / f"{Path(image).stem}.txt", "\n".join(lines))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (".", "labels"),
        ("JPEGImages", "labels"),
        ("photos", "Labels"),
        ("Images", "labels"),
        ("images", "LABELS"),
        ("x/frames/day1", "x/labels/day1"),
        ("photos", "labels/all"),
        ("photos", "export/labels"),
    ],
)
def test_images_in_folders_of_any_name(images: str, labels: str, tmp_path: Path) -> None:
    """Protects from a circle: init says that convert draws such texts, and convert must find their images."""
    scene(tmp_path / "in", images, labels)
    write(tmp_path / "in/data.yaml", "names: ['cat', 'road sign']\n")
    assert run(tmp_path / "in", tmp_path / "out").ok
    for image, objects in SCENE.items():
        np.testing.assert_array_equal(masks(tmp_path / "out")[image[0]], expected(objects))


def test_masks_are_not_the_images_of_texts(tmp_path: Path) -> None:
    """Protects the photographs, where masks of their names are there, too."""
    scene(tmp_path / "in", "photos", "labels")
    for image in SCENE:
        made.photo(tmp_path / "in/masks" / f"{Path(image).stem}.png")
    run(tmp_path / "in", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out/images").rglob("*.*")} == set(SCENE)


def test_a_text_is_never_of_another_folders_image(tmp_path: Path) -> None:
    """Protects day2's image, which shows nothing, from the objects of day1's, which was not copied."""
    for folder, image, polygon in (("day1", "1", SQUARE), ("day1", "2", TRIANGLE), ("day2", "3", SQUARE)):
        made.photo(tmp_path / "in" / folder / "photos" / f"{image}.jpg")
        write(tmp_path / "in" / folder / "labels" / f"{image}.txt", line(polygon))
    (tmp_path / "in/day1/photos/1.jpg").rename(tmp_path / "in/day2/photos/1.jpg")
    run(tmp_path / "in", tmp_path / "out")
    found = masks(tmp_path / "out")
    assert not found["day2/photos/1"].any()
    np.testing.assert_array_equal(found["day1/photos/2"], expected([("cat", TRIANGLE)], ["cat"]))


@pytest.mark.parametrize("place", ["export/data.yaml", "export/labels/classes.txt", "data.yaml"])
def test_names_may_lie_beside_the_texts_or_above(place: str, tmp_path: Path) -> None:
    """Protects the names of the classes, where the export was unpacked into a folder of its own."""
    scene(tmp_path / "in", "export/images", "export/labels")
    write(tmp_path / "in" / place, "cat\nroad sign\n" if place.endswith(".txt") else "names: ['cat', 'road sign']\n")
    done = run(tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["background", *CLASSES]
    assert f"The names are those of {place}." in done.notes


def test_boxes_elsewhere_leave_other_formats_alone(tmp_path: Path) -> None:
    """Protects masks in colours beside which a detector's boxes lie in labels/: these draw nothing."""
    made.colours(tmp_path / "in", SCENE)
    (tmp_path / "in/images").rename(tmp_path / "in/rgb")
    for image in SCENE:
        write(tmp_path / f"in/labels/{Path(image).stem}.txt", "0 0.5 0.5 0.2 0.2\n")
    assert run(tmp_path / "in", tmp_path / "out").format.startswith("masks in the colours of the classes")
