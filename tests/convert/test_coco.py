"""COCO: outlines as other programs write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emaseg.errors import DataError
from tests.convert import made
from tests.convert.made import SCENE, Polygon, expected, masks, run, write


def points(polygon: Polygon) -> Any:
    """[[x, y], [x, y], ...]"""
    return made.pairs(polygon)


def rings_of_points(polygon: Polygon) -> Any:
    return [made.pairs(polygon)]


@pytest.mark.parametrize("form", [points, rings_of_points, list])
def test_outlines_may_be_points(form: Callable[[Polygon], Any], tmp_path: Path) -> None:
    """Protects from masks of nothing but background: each point would be a ring too short to have an area."""
    made.coco(tmp_path / "in", SCENE, form)
    assert run(tmp_path / "in", tmp_path / "out").ok
    for image, objects in SCENE.items():
        np.testing.assert_array_equal(masks(tmp_path / "out")[image[0]], expected(objects))


def change(root: Path, segmentation: Any) -> None:
    """Give the first object of a.jpg another outline."""
    content = json.loads((root / "coco.json").read_text())
    content["annotations"][0]["segmentation"] = segmentation
    write(root / "coco.json", content)


@pytest.mark.parametrize("rings", [[[1, 2], [9, 9]], [[1, 2, 9, 9]], [1, 2, 9, 9], [[], [1, 2]]])
def test_too_few_corners_are_told(rings: Any, tmp_path: Path) -> None:
    """Protects from a mask that lacks, without a word, an object whose outline encloses nothing."""
    made.coco(tmp_path / "in", SCENE)
    change(tmp_path / "in", rings)
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.ok
    assert "Not drawn, for they have no area: 1 outline of less than three corners." in done.notes


def test_nothing_but_lines_is_refused(tmp_path: Path) -> None:
    """Protects from masks that are all background."""
    made.coco(tmp_path / "in", SCENE)
    content = json.loads((tmp_path / "in/coco.json").read_text())
    for one in content["annotations"]:
        one["segmentation"] = [[1, 2, 9, 9]]
    write(tmp_path / "in/coco.json", content)
    with pytest.raises(DataError, match="outline of less than three corners"):
        run(tmp_path / "in", tmp_path / "out")


def test_an_empty_ring_is_a_box(tmp_path: Path) -> None:
    """Protects an image of which one object has a box only, written as one ring without corners."""
    made.coco(tmp_path / "in", SCENE)
    change(tmp_path / "in", [[]])
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.ok
    assert "Not drawn, for they have no area: 1 box without an outline." in done.notes
