"""Label Studio: which image a task is of, by addresses with signatures and by the names of uploads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.convert import made
from tests.convert.made import SCENE, SQUARE, TRIANGLE, expected, masks, run, write

UPLOAD = "/data/upload/1/1234abcd-"


def rename(root: Path, address: Callable[[str], str], key: str = "image") -> None:
    """Let the tasks of an export name their images otherwise."""
    tasks = json.loads((root / "export.json").read_text())
    for task in tasks:
        task["data"] = {"text": "of the night shift", key: address(task["data"]["image"].removeprefix(UPLOAD))}
    write(root / "export.json", tasks)


@pytest.mark.parametrize("key", ["image", "photo"])
@pytest.mark.parametrize(
    "address",
    [
        "https://host/x/{}?sig=ab/cd%3D",
        "https://host/x/{}?sv=2021-08-06&se=2030-01-01&sig=a/b",
        "https://host/{}?X-Amz-Algorithm=AWS4&X-Amz-Credential=a/b/c",
        "https://host/{}?d=1",
        "https://host/o/photos%2F{}?alt=media",
        "s3://bucket/x/{}",
        "gs://bucket/{}",
        "azure-blob://container/{}",
        "https://host/get?path=x/{}",
    ],
)
def test_addresses(address: str, key: str, tmp_path: Path) -> None:
    """Protects images in a store, whose addresses end in a signature, not in the name: whatever the task calls them."""
    made.labelstudio(tmp_path / "in", {"my photo.jpg": SCENE["a.jpg"], "c.jpg": SCENE["c.jpg"]})
    rename(tmp_path / "in", lambda name: address.format(name.replace(" ", "%20")), key)
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["my photo"], expected(SCENE["a.jpg"]))
    np.testing.assert_array_equal(masks(tmp_path / "out")["c"], expected(SCENE["c.jpg"]))


def test_names_in_a_store_may_hold_what_looks_like_an_escape(tmp_path: Path) -> None:
    """Protects a file whose own name has a % in it from being looked for under another name only."""
    made.labelstudio(tmp_path / "in", {"50%20.jpg": SCENE["a.jpg"], "c.jpg": SCENE["c.jpg"]})
    rename(tmp_path / "in", "s3://bucket/{}".format)
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["50%20"], expected(SCENE["a.jpg"]))


def test_one_image_under_two_signatures_is_one_image(tmp_path: Path) -> None:
    """Protects the first of two tasks of one image: their addresses differ in the signature only."""
    made.labelstudio(tmp_path / "in", {"a.jpg": [("cat", TRIANGLE)], "b.jpg": [("cat", SQUARE)]})
    rename(tmp_path / "in", lambda name: f"https://host/a.jpg?sig={name}/x")
    done = run(tmp_path / "in", tmp_path / "out")
    assert [one.reason for one in done.left] == ["export.json describes it a second time"]
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", TRIANGLE)], ["cat"]))


def test_uploads_are_stored_under_other_names(tmp_path: Path) -> None:
    """Protects "IMG (1).jpg", which is called 1234abcd-IMG_1.jpg in the export, and the own file of its user is not."""
    made.labelstudio(tmp_path / "in", {"IMG_1.jpg": SCENE["a.jpg"], "c.jpg": SCENE["c.jpg"]})
    (tmp_path / "in/IMG_1.jpg").rename(tmp_path / "in/IMG (1).jpg")
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["IMG (1)"], expected(SCENE["a.jpg"]))


def test_an_upload_that_may_be_two_images_is_none(tmp_path: Path) -> None:
    """Protects from the drawing of another image, where two would have been stored under one name."""
    made.labelstudio(tmp_path / "in", {"IMG_1.jpg": SCENE["a.jpg"], "c.jpg": SCENE["c.jpg"]})
    (tmp_path / "in/IMG_1.jpg").rename(tmp_path / "in/IMG (1).jpg")
    made.photo(tmp_path / "in/IMG 1.jpg")
    done = run(tmp_path / "in", tmp_path / "out")
    assert [one.reason for one in done.left] == ["no image IMG_1.jpg"]
    assert set(masks(tmp_path / "out")) == {"c"}
