"""Annotations that do not say their image's size: what shows that they are of another one, and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.convert import made
from tests.convert.made import SCENE, SIZE, SQUARE, Scene, expected, masks, run, write


def coco_without_sizes(root: Path, scene: Scene) -> None:
    made.coco(root, scene)
    content = json.loads((root / "coco.json").read_text())
    for image in content["images"]:
        image["height"] = image["width"] = None
    write(root / "coco.json", content)


def labelme_without_sizes(root: Path, scene: Scene) -> None:
    made.labelme(root, scene)
    for path in root.glob("*.json"):
        write(path, {**json.loads(path.read_text()), "imageHeight": None, "imageWidth": None})


UNSIZED = [made.via, made.via_csv, coco_without_sizes, labelme_without_sizes]


@pytest.mark.parametrize("export", UNSIZED)
def test_outlines_of_a_larger_image(export: Callable[[Path, Scene], None], tmp_path: Path) -> None:
    """Protects from clipped masks, where the images were made smaller after they were annotated."""
    root = tmp_path / "in"
    export(root, {**SCENE, "large.jpg": [("cat", [4 * value for value in SQUARE])]})
    done = run(root, tmp_path / "out")
    assert set(masks(tmp_path / "out")) == {"a", "b", "c"}
    assert [Path(one.name).name for one in done.left] == ["large.jpg"]
    reason = f"object 1 (cat): a point at x = 112, outside of the image of {SIZE[0]} x {SIZE[1]} (height x width): "
    assert done.left[0].reason.replace("(7)", "(cat)") == f"{reason}was it annotated at another size?"


@pytest.mark.parametrize("export", UNSIZED)
def test_outlines_that_pass_the_edge_a_little(export: Callable[[Path, Scene], None], tmp_path: Path) -> None:
    """Protects objects at the edge: tools keep outlines in the image to within some pixels only."""
    objects = [("cat", made.box(-2, -1.5, SIZE[1] + 3, SIZE[0] + 0.5))]
    export(tmp_path / "in", {**SCENE, "edge.jpg": objects})
    assert run(tmp_path / "in", tmp_path / "out").ok
    assert (masks(tmp_path / "out")["edge"] == 1).all()


@pytest.mark.parametrize(
    "shape", [{"name": "circle", "cx": 30, "cy": 20, "r": 15}, {"name": "ellipse", "cx": 2, "cy": 2, "rx": 9, "ry": 20}]
)
def test_circles_may_reach_beyond_the_image(shape: dict[str, Any], tmp_path: Path) -> None:
    """Protects circles around a point near the edge, whose other half is outside."""
    made.via(tmp_path / "in", SCENE)
    content = json.loads((tmp_path / "in/via_project.json").read_text())
    next(iter(content["_via_img_metadata"].values()))["regions"][0]["shape_attributes"] = shape
    write(tmp_path / "in/via_project.json", content)
    assert run(tmp_path / "in", tmp_path / "out").ok


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize(
    ("export", "told"), [(made.via, True), (made.yolo, True), (made.labelme, False), (made.by_folder, False)]
)
def test_turned_images_are_told(
    export: Callable[[Path, Scene], None], told: bool, orientation: int, tmp_path: Path
) -> None:
    """Protects photographs that their tool showed unturned: where no size is stated, nothing else would say so."""
    export(tmp_path / "in", SCENE)
    path = next((tmp_path / "in").rglob("a.jpg"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = SIZE if orientation == 3 else SIZE[::-1]
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path, exif=exif)
    done = run(tmp_path / "in", tmp_path / "out")
    notes = [note for note in done.notes if note.startswith("Images that are turned when they are read")]
    assert len(notes) == told
    assert all("a.jpg" in note for note in notes)
    if told:
        np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected(SCENE["a.jpg"]))
