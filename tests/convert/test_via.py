"""VIA: two files of one name, and several attributes of which one is the class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.convert import made
from tests.convert.made import SQUARE, TRIANGLE, Polygon, expected, masks, names, run, write


def region(polygon: Polygon, **attributes: object) -> dict[str, Any]:
    shape = {"name": "polygon", "all_points_x": polygon[::2], "all_points_y": polygon[1::2]}
    return {"shape_attributes": shape, "region_attributes": attributes}


def two_of_one_name(root: Path, kind: str, sizes: tuple[int, int]) -> None:
    """x/1.jpg with a triangle, y/1.jpg with a square; the export says these sizes."""
    rows = list(zip(sizes, (TRIANGLE, SQUARE), strict=True))
    if kind == "json":
        content = {
            f"1.jpg{size}": {"filename": "1.jpg", "size": size, "regions": [region(polygon, **{"class": "cat"})]}
            for size, polygon in rows
        }
        write(root / "via.json", content)
    elif kind == "csv":
        made.via_csv(root, {f"{size}.jpg": [("cat", polygon)] for size, polygon in rows})
        heading, *lines = (root / "via.csv").read_text().splitlines()
        assert "file_size" in heading
        for size, _ in rows:
            (root / f"{size}.jpg").unlink()
            lines = [
                ",".join(["1.jpg", str(size), *line.split(",")[2:]]) if line.startswith(f"{size}.jpg") else line
                for line in lines
            ]
        write(root / "via.csv", "\n".join([heading, *lines]) + "\n")


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_two_files_of_one_name_are_told_apart(kind: str, tmp_path: Path) -> None:
    """Protects an image from the regions of another of its name: VIA knows them by their sizes in bytes."""
    root = tmp_path / "in"
    sizes = []
    for place, folder in enumerate(("x", "y"), 1):
        image = made.photo(root / folder / "1.jpg")
        with image.open("ab") as file:
            file.write(b"\0" * place)
        sizes.append(image.stat().st_size)
    two_of_one_name(root, kind, (sizes[0], sizes[1]))
    assert run(root, tmp_path / "out").ok
    found = masks(tmp_path / "out")
    np.testing.assert_array_equal(found["x/1"], expected([("cat", TRIANGLE)], ["cat"]))
    np.testing.assert_array_equal(found["y/1"], expected([("cat", SQUARE)], ["cat"]))


def test_two_files_of_one_name_and_one_image(tmp_path: Path) -> None:
    """Protects from painting the regions of two images onto the one that is there: both are named, and no third one is
    lost."""
    root = tmp_path / "in"
    made.photo(root / "1.jpg")
    made.photo(root / "2.jpg")
    content = {
        f"{name}{size}": {"filename": name, "size": size, "regions": [region(polygon, **{"class": "cat"})]}
        for name, size, polygon in (("1.jpg", 100, TRIANGLE), ("1.jpg", 200, SQUARE), ("2.jpg", 300, SQUARE))
    }
    write(root / "via.json", content)
    done = run(root, tmp_path / "out")
    assert [one.name for one in done.left if "several files of this name" in one.reason] == ["1.jpg", "1.jpg"]
    assert set(masks(tmp_path / "out")) == {"2"}


def test_two_files_of_one_name_in_via_three(tmp_path: Path) -> None:
    """Protects the images of VIA 3, whose files have numbers and no sizes."""
    root = tmp_path / "in"
    made.photo(root / "1.jpg")
    made.via_three(root, {"2.jpg": [("cat", TRIANGLE)], "3.jpg": [("cat", SQUARE)], "4.jpg": [("cat", SQUARE)]})
    file = next(root.glob("*.json"))
    content = json.loads(file.read_text())
    for key in ("1", "2"):
        content["file"][key] |= {"fname": "1.jpg", "src": ""}
    write(file, content)
    done = run(root, tmp_path / "out")
    assert [one.name for one in done.left if "several files of this name" in one.reason] == ["1.jpg", "1.jpg"]
    assert set(masks(tmp_path / "out")) == {"4"}


@pytest.mark.parametrize(
    ("types", "classes", "words"),
    [
        (("unknown", "unknown"), ["apple", "pear"], "the class is the attribute name; not used: type."),
        (("ripe", "rotten"), ["ripe", "rotten"], "the class is the attribute type; not used: name."),
    ],
)
def test_of_several_attributes_the_used_one_is_told(
    types: tuple[str, str], classes: list[str], words: str, tmp_path: Path
) -> None:
    """Protects from training on the wrong attribute without a word, and on one that says `unknown` everywhere."""
    root = tmp_path / "in"
    made.photo(root / "1.jpg")
    regions = [region(TRIANGLE, name="apple", type=types[0]), region(SQUARE, name="pear", type=types[1])]
    write(root / "via.json", {"1.jpg1": {"filename": "1.jpg", "size": 1, "regions": regions}})
    done = run(root, tmp_path / "out")
    assert names(tmp_path / "out") == ["background", *classes]
    assert any(words in note for note in done.notes)


def test_a_region_without_a_shape_is_counted(tmp_path: Path) -> None:
    """Protects an image from being lost for a region that was begun and never drawn."""
    made.photo(tmp_path / "in/a.jpg")
    empty = {"shape_attributes": {}, "region_attributes": {"class": "cat"}}
    content = {"a.jpg1": {"filename": "a.jpg", "size": 1, "regions": [region(SQUARE, **{"class": "cat"}), empty]}}
    write(tmp_path / "in/via.json", content)
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", SQUARE)], ["cat"]))
