"""Laws of the conversion: names never shift, what it writes trains, no mask is lost without a line, nothing crashes it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emaseg.convert import OVERLAPS, Conversion
from emaseg.data.sets.build import build_dataset
from emaseg.errors import UserError
from emaseg.words import printable
from tests.convert import made
from tests.convert.made import CLASSES, EXPORTERS, SCENE, SIZE, Objects, mask_of, masks, run, write
from tests.starter.made import data_of, dry_run, start

LABELS = st.lists(
    st.one_of(st.text("abcXYZ019 :,;#._-'\"[](){}é\u202e\n", min_size=1, max_size=8), st.sampled_from(["car", "0", "3: road", "#ff0000", "1,2,3,x", "names:", "ignore"])),
    min_size=2, max_size=5, unique=True,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(labels=LABELS)
def test_a_class_keeps_its_number_whatever_it_is_called(
    labels: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: the pixels of each label have the number under which the recipe of `init` knows its name."""
    root, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out") / "o"
    for image in ("a", "b"):
        made.photo(root / f"{image}.jpg")
        shapes = [
            {"label": name, "points": made.pairs(made.rectangle_at(place)), "shape_type": "polygon"}
            for place, name in enumerate(labels)
        ]
        about = {"imagePath": f"{image}.jpg", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        write(root / f"{image}.json", {**about, "shapes": shapes})
    try:
        done = run(root, out)
    except UserError:
        assert any(not name.strip() for name in labels) or all("ignore" in name for name in labels)
        return
    if any(not name.strip() for name in labels):
        assert not done.ok
        return
    started = start(out)
    names = data_of(started).classes
    label = masks(out)["a"]
    written = {one.value: one.name for one in done.classes}
    for place, name in enumerate(labels):
        x, y = (int(value) + 1 for value in made.rectangle_at(place)[:2])
        value = int(label[y, x])
        if value == 255:
            assert "ignore" in name
            continue
        assert names[value] == written[value]
        if printable(name) != name:
            continue
        letters = [char for char in name if char.isalnum() and char.isascii()]
        assert [char for char in written[value] if char.isalnum() and char.isascii()][: len(letters)] == letters
    dry_run(started.text)


BOXES = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.integers(3, 18), st.integers(2, 12), st.integers(3, 11), st.integers(3, 9)),
    min_size=0, max_size=4,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    images=st.lists(BOXES, min_size=3, max_size=6),
    kind=st.sampled_from(sorted(EXPORTERS)),
    rule=st.sampled_from(OVERLAPS),
)
def test_what_is_drawn_is_what_is_trained(
    images: list[list[tuple[str, int, int, int, int]]], kind: str, rule: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law over made exports: every annotated image has a mask, a pixel without objects is background, one of a single
    class has that class, and what `init` writes for the result dry-runs."""
    root, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out") / "o"
    scene: dict[str, Objects] = {}
    for place, boxes in enumerate(images):
        objects = [(name, [float(v) for v in made.box(x, y, x + w, y + h)]) for name, x, y, w, h in boxes]
        if EXPORTERS[kind][1] in ("masks", "labelstudio-brush"):  # one mask of a class
            objects = list({name: (name, polygon) for name, polygon in objects}.values())
        scene[f"i{place}.jpg"] = objects
    scene["both.jpg"] = [("cat", made.box(4, 3, 9, 9)), ("road sign", made.box(12, 3, 25, 19))]
    scene["more.jpg"] = scene["both.jpg"]
    EXPORTERS[kind][0](root, scene)
    if kind == "colours" and rule != "later":
        return
    done = run(root, out, overlap=rule)
    found = masks(out)
    drawn = {image: objects for image, objects in scene.items() if objects}
    assert {f"{name}.jpg" for name in found} >= set(drawn)
    for image, objects in drawn.items():
        label = found[image.removesuffix(".jpg")]
        covers = np.stack([np.any([mask_of(p) > 0 for n, p in objects if n == name] or [np.zeros(SIZE, bool)], axis=0) for name in CLASSES])  # fmt: skip
        assert not label[~covers.any(axis=0)].any()
        for value in (1, 2):
            assert (label[covers[value - 1] & ~covers[2 - value]] == value).all()
    recipe = dry_run(start(out).text)
    assert sum(len(build_dataset(recipe.data, phase)) for phase in ("train", "eval")) == done.images  # type: ignore[arg-type]


@settings(max_examples=12, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["_car", "_road", "_sky_1", "_sky_2"]), min_size=2, max_size=4, unique=True),
    values=st.sampled_from([(0, 255), (0, 1), (0, 9), (0, 1, 2)]),
    data=st.data(),
)
def test_no_mask_of_a_class_is_lost_without_a_line(
    kinds: list[str], values: tuple[int, ...], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: each of several masks is drawn into its image's label map, or the image is named with the reason."""
    root, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out") / "o"
    (root / "masks").mkdir()
    written: dict[str, int] = {}
    for image in range(6):
        made.photo(root / "images" / f"img_{image}.jpg")
        for place, kind in enumerate(kinds):
            if image < 3 or data.draw(st.booleans()):
                mask = np.full(SIZE, values[0], np.uint8)
                x, y = (int(value) for value in made.rectangle_at(place)[:2])
                for step, value in enumerate(values[1:]):
                    mask[y : y + 3, x + step : x + 3] = value
                Image.fromarray(mask).save(root / "masks" / f"img_{image}{kind}.png")
                written[f"img_{image}"] = written.get(f"img_{image}", 0) + 1
    done: Conversion | None
    try:
        done = run(root, out)
    except UserError as error:
        reason = error.message
        done = None
    if done is None:
        assert len(values) == 3
        assert "with values 0, 1, 2" in reason
        return
    assert len(values) == 2
    found = masks(out)
    assert set(found) == set(written)
    assert sum(one.objects for one in done.classes) == sum(written.values())
    for name, count in written.items():
        assert int((found[name] > 0).sum()) == 9 * count


JUNK = st.sampled_from(
    [None, True, -1, 10**30, 1e308, float("inf"), "", "x" * 300, "../../etc/passwd", "\ud800", [], {}, [[]], [[1]], [None] * 3, {"a": []}]
)  # fmt: skip


def nodes(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a JSON tree."""
    if path:
        yield path
    rows = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in rows:
        yield from nodes(value, (*path, key))


FILES = {
    "labelme": "a.json", "labelme masks": "a.json", "coco": "coco.json", "coco packed": "coco.json",
    "panoptic": "panoptic.json", "supervisely": "ds/ann/a.jpg.json", "supervisely bitmaps": "ds/ann/a.jpg.json",
    "via": "via_project.json", "labelstudio": "export.json", "labelstudio brush": "export.json",
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(FILES)), junk=JUNK, data=st.data())
def test_no_junk_in_annotations_is_a_crash(
    kind: str, junk: object, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: whatever stands anywhere in an annotation file, the answer is a conversion or an error for people."""
    root, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out") / "o"
    EXPORTERS[kind][0](root, SCENE)
    path = root / FILES[kind]
    content = json.loads(path.read_text())
    *above, last = data.draw(st.sampled_from(list(nodes(content))))
    inner = content
    for key in above:
        inner = inner[key]
    inner[last] = junk
    path.write_text(json.dumps(content))
    with contextlib.suppress(UserError):
        done = run(root, out)
        assert set(masks(out)) <= {"a", "b", "c"}
        assert done.ok or done.left
