"""Kinds of shapes beside the polygon: those with an area are drawn, and one that is not known costs its image."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.convert import made
from tests.convert.made import SIZE, SQUARE, TRIANGLE, expected, mask_of, masks, run, write

SCENE = {"a.jpg": [("cat", TRIANGLE)], "b.jpg": [("cat", SQUARE)]}


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)


def alpha(mask: np.ndarray) -> bytes:
    """Black pixels on a transparent ground."""
    picture = np.zeros((*mask.shape, 4), np.uint8)
    picture[..., 3] = mask * 255
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def bitmask(content: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    about = {"original_width": SIZE[1], "original_height": SIZE[0], "type": "bitmasklabels"}
    return {**about, "value": {"format": "bitmask", "imageDataURL": url, "bitmasklabels": ["cat"]}}


def test_bitmasks_of_label_studio(tmp_path: Path) -> None:
    """Protects objects drawn as bitmasks from being dropped as if they had no area; one of another size is named."""
    made.labelstudio(tmp_path / "in", {**SCENE, "c.jpg": [("cat", SQUARE)]})
    results = [bitmask(alpha(mask_of(TRIANGLE))), bitmask(alpha(mask_of(TRIANGLE)[:9, :9]))]

    def edit(content: Any) -> None:
        for place, result in zip((0, 2), results, strict=True):
            content[place]["annotations"][0]["result"] = [result]

    change(tmp_path / "in/export.json", edit)
    done = run(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", TRIANGLE)], ["cat"]))
    assert [one.name for one in done.left if "a picture of 9 x 9" in one.reason] == ["c.jpg"]


def test_alpha_masks_of_supervisely(tmp_path: Path) -> None:
    """Protects objects drawn as alpha masks, which are bitmaps by another name."""
    made.supervisely(tmp_path / "in", SCENE)
    data = base64.b64encode(zlib.compress(alpha(mask_of(TRIANGLE)[2:22, 3:30]))).decode()
    one = {"classTitle": "cat", "geometryType": "alpha_mask", "bitmap": {"data": data, "origin": [3, 2]}}
    change(tmp_path / "in/ds/ann/a.jpg.json", lambda content: content.update(objects=[one]))
    run(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", TRIANGLE)], ["cat"]))


@pytest.mark.parametrize("kind", ["rotation", "quadrilateral", "oriented_rectangle"])
def test_turned_rectangles_of_labelme(kind: str, tmp_path: Path) -> None:
    """Protects the turned rectangles of X-AnyLabeling and others, which have four corners."""
    made.labelme(tmp_path / "in", SCENE)
    turned = [12.0, 4.0, 22.0, 10.0, 16.0, 18.0, 6.0, 12.0]
    for name, points in (("a", turned), ("b", turned[:6])):
        shape = {"label": "cat", "points": made.pairs(points), "shape_type": kind}
        change(tmp_path / f"in/{name}.json", lambda content, shape=shape: content.update(shapes=[shape]))
    done = run(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], mask_of(turned))
    assert [one.name for one in done.left if "four corners" in one.reason] == ["b.json"]


def unknown(name: str, root: Path) -> None:
    """Give the first object of a.jpg a kind that nobody knows, or of CVAT one that cannot be drawn."""
    if name == "labelme":
        change(root / "a.json", lambda content: content["shapes"][0].update(shape_type="blob"))
    elif name == "supervisely":
        change(root / "ds/ann/a.jpg.json", lambda content: content["objects"][0].update(geometryType="blob"))
    elif name == "cvat":
        file = next(root.glob("*.xml"))
        write(file, file.read_text().replace("<polygon", "<blob", 1).replace("</polygon", "</blob", 1))
    elif name == "via":
        change(
            next(root.glob("*.json")),
            lambda content: _first(content)["regions"][0]["shape_attributes"].update(name="blob"),
        )
    else:
        change(root / "export.json", lambda content: _as_blob(content[0]["annotations"][0]["result"][0]))


def _first(content: dict[str, Any]) -> Any:
    return next(iter(content.get("_via_img_metadata", content).values()))


def _as_blob(result: dict[str, Any]) -> None:
    result.update(type="bloblabels")
    result["value"]["bloblabels"] = result["value"].pop("polygonlabels")


@pytest.mark.parametrize("name", ["labelme", "supervisely", "cvat", "via", "labelstudio"])
def test_a_kind_that_is_not_known_costs_its_image(name: str, tmp_path: Path) -> None:
    """Protects from a mask that lacks an object: what may have an area and cannot be drawn is a fault, not a note."""
    root = tmp_path / "in"
    root.mkdir()
    getattr(made, name)(root, SCENE)
    unknown(name, root)
    done = run(root, tmp_path / "out")
    assert not done.ok
    assert [one for one in done.left if "a kind that cannot be drawn: blob" in one.reason]
    assert set(masks(tmp_path / "out")) == {"b"}
