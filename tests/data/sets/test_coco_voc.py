"""COCO drawn as VOC: which images and pixels the published rule takes, the index, the layouts, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emaseg.data.checks import check_dataset
from emaseg.data.dataset import read_pair
from emaseg.data.label_sets import coco_voc_categories, label_set
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.coco_voc import coco_voc
from emaseg.data.sets.drawn import DrawnFiles
from emaseg.errors import DataError, RecipeError, SystemFault
from emaseg.recipe.data import CocoVOCData, VOCData
from tests.data.made import fails, image, real
from tests.data.test_data_scripts import script

SIZE = (40, 60)
CAT, PERSON, ZEBRA = 17, 1, 24
CAT_ID, PERSON_ID = 8, 15


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def note(image_id: int, category: int, segmentation: object, **more: object) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


# Image 7 comes first in the file; the annotations of all images are mixed.
NOTES = [
    note(7, CAT, box(0, 0, 30, 40), area=1200.0),
    note(3, PERSON, box(0, 0, 50, 20), area=1000.0),  # 1,000 pixels are one too few
    note(7, PERSON, box(20, 0, 40, 40), area=800.0),  # its left half lies under the cat
    note(5, ZEBRA, box(0, 0, 60, 40), area=2400.0),  # none of VOC's
    note(9, PERSON, {"size": [40, 60], "counts": [1399, 1001]}, iscrowd=1),
    note(7, ZEBRA, box(0, 30, 60, 40), area=600.0),
]
IMAGES = [
    {"id": number, "file_name": f"{number:012d}.jpg", "height": 40, "width": 60, "license": 1}
    for number in (7, 3, 5, 9)
]


def tree(top: Path, folder: str = "val2017", content: object = None) -> Path:
    for entry in IMAGES:
        image(top / folder / str(entry["file_name"]), SIZE)
    path = top / "annotations" / "instances_val2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content or {"images": IMAGES, "annotations": NOTES, "categories": []}))
    return top


def data(root: Path, **keys: str) -> CocoVOCData:
    return CocoVOCData(kind="coco_voc21", root=str(root), **keys)


def ids(dataset: DrawnFiles) -> list[int]:
    return [int(Path(dataset.name(i)).stem) for i in range(len(dataset))]


@pytest.mark.parametrize(("below", "root"), [(".", "."), ("COCO", "."), ("coco", ".")])
@pytest.mark.parametrize("folder", ["val2017", "images/val2017"])
def test_the_layouts(tmp_path: Path, folder: str, below: str, root: str) -> None:
    """Images that hold enough of VOC's classes, in the order of the file."""
    tree(tmp_path / below, folder)
    found = build_dataset(data(tmp_path / root), "eval")
    assert isinstance(found, DrawnFiles)
    assert ids(found) == [7, 9]
    assert "COCO val2017" in found.layout
    assert len(found.classes) == len(found.palette) == 21
    assert found.classes[CAT_ID] == "cat"


def test_the_first_annotation_wins_and_the_rest_is_background(tmp_path: Path) -> None:
    """Other categories are not drawn, a crowd is, and nothing is ignored."""
    found = coco_voc(data(tree(tmp_path)), "eval")
    expected = np.zeros(SIZE, np.uint8)
    expected[:, :30], expected[:, 30:40] = CAT_ID, PERSON_ID
    sample = found.open(0)
    np.testing.assert_array_equal(sample.label(), expected)
    assert sample.image().shape == (*SIZE, 3)
    crowd = found.open(1).label()
    assert np.count_nonzero(crowd == PERSON_ID) == np.count_nonzero(crowd) == 1001


def test_categories_are_those_of_the_names(tmp_path: Path) -> None:
    """All twenty, each drawn once: category ids of COCO, train ids of VOC."""
    categories = coco_voc_categories()
    notes = [note(7, c, box(2 * i, 0, 2 * i + 2, 40), area=80.0) for i, c in enumerate(categories) if i]
    tree(tmp_path, content={"images": IMAGES[:1], "annotations": notes})
    label = coco_voc(data(tmp_path), "eval").open(0).label()
    assert label[0, ::2].tolist()[:21] == list(range(21))


def test_the_json_is_parsed_once(tmp_path: Path, cache: Path) -> None:
    """A second start, another process and a moved file: the first two read the index, a changed file makes a new one."""
    path = tree(tmp_path) / "annotations/instances_val2017.json"
    first = coco_voc(data(tmp_path), "eval")
    (index,) = (cache / "annotations").iterdir()
    written = index.stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(coco_voc(data(tmp_path), "eval")))
    np.testing.assert_array_equal(again.open(1).label(), first.open(1).label())
    assert index.stat().st_mtime_ns == written
    path.write_text(json.dumps({"images": IMAGES, "annotations": NOTES[:1]}))
    os.utime(path, ns=(1, 1))
    assert ids(coco_voc(data(tmp_path), "eval")) == [7]
    assert ids(first) == [7, 9]


def test_a_damaged_index_is_made_again(tmp_path: Path, cache: Path) -> None:
    """A cut-off or foreign file is not trusted."""
    tree(tmp_path)
    coco_voc(data(tmp_path), "eval")
    (index,) = (cache / "annotations").iterdir()
    whole = index.read_bytes()
    for content in (whole[:-5], b"", b"[1,2]\n", b"\xff\n", b'[["a","",3]]\nxx'):
        index.write_bytes(content)
        assert coco_voc(data(tmp_path), "eval").open(0).label().any()
        assert index.read_bytes() == whole


def test_an_index_that_goes_while_it_is_used(tmp_path: Path, cache: Path) -> None:
    tree(tmp_path)
    found = coco_voc(data(tmp_path), "eval")
    (index,) = (cache / "annotations").iterdir()
    index.unlink()
    fails(lambda: read_pair(found, 0), DataError, str(index), "gone or damaged")


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    tree(tmp_path)
    cache.write_text("a file where the folder should be")
    fails(lambda: coco_voc(data(tmp_path), "eval"), SystemFault, "EMASEG_CACHE")


def test_wrong_trees_name_what_is_missing(tmp_path: Path) -> None:
    fails(lambda: coco_voc(data(tmp_path), "eval"), DataError, "COCO is not here", "val2017", "annotations")
    tree(tmp_path)
    fails(lambda: coco_voc(data(tmp_path), "train"), DataError, "train2017", "train2017.zip")
    (tmp_path / "train2017").mkdir()
    fails(
        lambda: coco_voc(data(tmp_path), "train"), DataError, "instances_train2017.json: missing", "instances_val2017"
    )
    fails(lambda: coco_voc(data(tmp_path, eval_split="test"), "eval"), RecipeError, "train, val")
    (tmp_path / "val2017/000000000009.jpg").unlink()
    fails(lambda: coco_voc(data(tmp_path), "eval"), DataError, "1 of the 2 images", "000000000009.jpg")
    image(tmp_path / "val2017/000000000009.jpg", (40, 61))
    found = coco_voc(data(tmp_path), "eval")
    fails(lambda: read_pair(found, 1), DataError, "40 x 61", "40 x 60")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a JSON file"),
        ("[]", "not an annotation file"),
        ('{"images": []}', "holds no 'annotations'"),
        (json.dumps({"images": IMAGES[:1], "annotations": [{"category_id": 1, "image_id": 7}]}), "'segmentation'"),
        (json.dumps({"images": IMAGES[:1], "annotations": [note(7, 1, "x")]}), "neither polygons"),
        (json.dumps({"images": 3, "annotations": []}), "holds what no annotation file should"),
        (json.dumps({"images": [{**IMAGES[0], "height": float("inf")}], "annotations": []}), "infinity"),
        (json.dumps({"images": [{**IMAGES[0], "height": 10**7, "width": 10**7}], "annotations": []}), "10000000"),
        (json.dumps({"images": IMAGES[:1], "annotations": [note(7, 1, [[10**400, 1, 2, 3, 4, 5]])]}), "polygon"),
    ],
)
def test_a_json_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    path = tree(tmp_path) / "annotations/instances_val2017.json"
    path.write_text(content)
    fails(lambda: coco_voc(data(tmp_path), "eval"), DataError, str(path), words)


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts the images of the folder and those that are taken."""
    scripts = script(monkeypatch, "coco_voc")
    monkeypatch.setattr(scripts, "PUBLISHED", {"val": 4})
    tree(tmp_path)
    assert scripts.main([str(tmp_path)]) == 0
    assert "ok val: 2 of 4 images hold enough of VOC's classes; 2 labels drawn" in capsys.readouterr().out
    (tmp_path / "val2017/000000000003.jpg").unlink()
    assert scripts.main([str(tmp_path)]) == 1
    assert "val: 3 images, published are 4" in capsys.readouterr().out
    assert scripts.main([str(tmp_path / "none")]) == 3


# ---------------------------------------------------------------------------------------------------- real data
@pytest.mark.realdata
def test_real_run_lengths(tmp_path: Path) -> None:
    """The two pictures of the panoptic sample, detection form: players; riders and horses. Every mask has its area."""
    source = real("coco_json/panopticapi")
    content = json.loads((source / "panoptic_coco_detection_format.json").read_text())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(source / "input_images")
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    found = coco_voc(data(tmp_path), "eval")
    report = check_dataset(found)
    seen = {name: pixels for name, pixels in zip(found.classes, report.class_pixels, strict=True) if pixels}
    expected = {"__background__": 0, "horse": 0, "person": 0}
    names = {PERSON: "person", 19: "horse"}
    for entry in content["annotations"]:
        if entry["category_id"] in names:
            expected[names[entry["category_id"]]] += entry["area"]
    expected["__background__"] = 427 * 640 + 360 * 640 - expected["horse"] - expected["person"]
    assert seen == expected


@pytest.mark.realdata
def test_real_polygons(tmp_path: Path) -> None:
    """labelme's three pictures, drawn by COCO's rule, agree with labelme's own drawing but for the outlines."""
    source = real("coco_json/labelme")
    content = json.loads((source / "annotations.json").read_text())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(source / "JPEGImages")
    voc = label_set(VOCData(kind="voc", root="")).classes
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    for entry in content["annotations"]:
        name = names[entry["category_id"]]
        entry["category_id"] = coco_voc_categories()[voc.index(name)] if name in voc else 999
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    found = coco_voc(data(tmp_path), "eval")
    assert len(found) == 3
    for index in range(3):
        stem = Path(found.name(index)).stem
        (own,) = real("labelme_voc").rglob(f"*Class*/{stem}.png")
        with Image.open(own) as stored:
            truth = np.asarray(stored)
        same = (found.open(index).label() == truth)[truth != 255]
        assert same.mean() > 0.98
