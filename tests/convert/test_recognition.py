"""Which format a folder holds, and which of its files, where few of many say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from emaseg.errors import DataError
from tests.convert import made
from tests.convert.made import SCENE, SQUARE, masks, run, write

_MANY = 120  # more than are looked into


def test_few_texts_of_a_yolo_set_may_hold_objects(tmp_path: Path) -> None:
    """Protects sets of background images with a few objects from not being recognised, by the luck of the draw."""
    made.yolo(tmp_path / "in", {f"i{place:03d}.jpg": [("cat", SQUARE)] * (place == 1) for place in range(_MANY)})
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.images == _MANY
    assert sum(mask.any() for mask in masks(tmp_path / "out").values()) == 1


def sidecars(root: Path, size: int) -> None:
    """JSON files of single images that are no annotations."""
    for place in range(100):
        write(root / f"a{place:03d}.json", {"camera": "x" * size})


def test_one_file_of_all_annotations_among_many_others(tmp_path: Path) -> None:
    """Protects a COCO JSON among what cameras and viewers write for each image: it is the largest."""
    made.coco(tmp_path / "in", SCENE, file="a001b.json")
    sidecars(tmp_path / "in", 9)
    assert run(tmp_path / "in", tmp_path / "out").images == 3


def test_a_format_that_is_named_is_looked_for_in_all_files(tmp_path: Path) -> None:
    """Protects the remedy that messages name: with --format no file is left unseen."""
    made.coco(tmp_path / "in", SCENE, file="a001b.json")
    sidecars(tmp_path / "in", 9_000)
    with pytest.raises(DataError, match="no annotations were recognised"):
        run(tmp_path / "in", tmp_path / "out")
    assert run(tmp_path / "in", tmp_path / "out", format="coco").images == 3
