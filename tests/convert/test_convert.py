"""What a conversion promises beside the pixels: overlaps, splits, a second run, what is left out, hostile files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emaseg.cli.app import main
from PIL import Image

from emaseg.convert.source import read_xml
from emaseg.data.files.label_files import index_rule, read_label
from emaseg.errors import DataError, RecipeError
from tests.convert import made
from tests.convert.made import (
    CLASSES,
    SCENE,
    SIZE,
    SQUARE,
    TRIANGLE,
    Scene,
    expected,
    mask_of,
    masks,
    names,
    run,
    write,
)
from tests.starter.made import refused


# --------------------------------------------------------------------------------------------------------- overlaps
@pytest.mark.parametrize("rule", ["later", "earlier", "smaller", "ignore"])
def test_overlaps_follow_the_stated_rule(rule: str, tmp_path: Path) -> None:
    """Protects the choice of who lies on top, and that an overlap is told."""
    made.labelme(tmp_path / "in", SCENE)
    done = run(tmp_path / "in", tmp_path / "out", overlap=rule)
    triangle, square = mask_of(TRIANGLE) > 0, mask_of(SQUARE) > 0
    assert triangle.sum() < square.sum()
    label = np.where(square, 2, 0)
    label[triangle] = 1
    both = triangle & square
    first = {"later": 2, "earlier": 1, "smaller": 1, "ignore": 255}[rule]
    label[both] = first
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], label)
    label[both] = {"later": 1, "earlier": 2, "smaller": 1, "ignore": 255}[rule]
    np.testing.assert_array_equal(masks(tmp_path / "out")["b"], label)
    assert any(f"Pixels: {2 * both.sum()}; images: 2." in note for note in done.notes)
    assert any(one.value == 255 for one in done.classes) == (rule == "ignore")


def test_holes_are_cut_out(tmp_path: Path) -> None:
    made.supervisely(tmp_path / "in", {"a.jpg": [("cat", SQUARE)]})
    path = tmp_path / "in/ds/ann/a.jpg.json"
    content = json.loads(path.read_text())
    hole = [18.0, 8.0, 24.0, 8.0, 24.0, 14.0, 18.0, 14.0]
    content["objects"][0]["points"]["interior"] = [made.pairs(hole)]
    write(path, content)
    run(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], mask_of(SQUARE) & ~mask_of(hole) & 1)


def test_background_void_and_unlabelled_pixels(tmp_path: Path) -> None:
    """Protects labelme's labels that are no classes: _background_ is 0, __ignore__ is 255; and --unlabelled."""
    scene: Scene = {
        "a.jpg": [("cat", SQUARE), ("__ignore__", [15, 5, 20, 5, 20, 9, 15, 9])],
        "b.jpg": [("dog", TRIANGLE)],
    }
    scene["a.jpg"].append(("_background_", [22, 10, 26, 10, 26, 16, 22, 16]))
    made.labelme(tmp_path / "in", scene)
    run(tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["_background_", "cat", "dog"]
    label = mask_of(SQUARE)
    label[mask_of([15, 5, 20, 5, 20, 9, 15, 9]) > 0] = 255
    label[mask_of([22, 10, 26, 10, 26, 16, 22, 16]) > 0] = 0
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], label)
    made.labelme(tmp_path / "two", SCENE)
    run(tmp_path / "two", tmp_path / "all", unlabelled="ignore")
    assert names(tmp_path / "all") == [*CLASSES]
    np.testing.assert_array_equal(masks(tmp_path / "all")["c"], np.where(mask_of(TRIANGLE) > 0, 0, 255))


def test_a_file_of_class_names_gives_the_order(tmp_path: Path) -> None:
    made.labelme(tmp_path / "in", SCENE)
    write(tmp_path / "in/labels.txt", "__ignore__\n_background_\nroad sign\nbus\n")
    done = run(tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["_background_", "road sign", "bus", "cat"]
    assert "Not in it: cat; they come last." in done.notes


# ----------------------------------------------------------------------------------------------------------- splits
def test_splits_become_folders(tmp_path: Path) -> None:
    """Protects the export's own split: Roboflow's COCO in train, valid and test, with its heading category."""
    for split, image in (("train", "a.jpg"), ("valid", "b.jpg"), ("test", "c.jpg")):
        made.coco(tmp_path / "in" / split, {image: SCENE[image]}, file="_annotations.coco.json")
        shutil.move(tmp_path / "in" / split / "images" / image, tmp_path / "in" / split / image)
        path = tmp_path / "in" / split / "_annotations.coco.json"
        content = json.loads(path.read_text())
        heading = {"id": 0, "name": "signs", "supercategory": "none"}
        content["categories"] = [heading, *({**one, "supercategory": "signs"} for one in content["categories"])]
        write(path, content)
    done = run(tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["background", *CLASSES]
    assert done.splits == {"train": 1, "val": 1, "test": 1}
    assert set(masks(tmp_path / "out")) == {"train/a", "val/b", "test/c"}
    np.testing.assert_array_equal(masks(tmp_path / "out")["val/b"], expected(SCENE["b.jpg"]))
    code = main(["init", str(tmp_path / "out"), "--out", str(tmp_path / "r.toml"), "--device", "cpu", "-q"])
    text = (tmp_path / "r.toml").read_text()
    assert code == 0
    assert 'train_images = "images/train"' in text
    assert 'eval_images = "images/val"' in text


def test_splits_without_a_training_part_are_none(tmp_path: Path) -> None:
    made.coco(tmp_path / "in", SCENE, file="instances_val2017.json")
    done = run(tmp_path / "in", tmp_path / "out")
    assert (done.splits, set(masks(tmp_path / "out"))) == ({"": 3}, {"a", "b", "c"})


def test_equal_names_stay_apart(tmp_path: Path) -> None:
    """Protects images of one name in two folders, and of one stem: each keeps its own mask."""
    for folder, scene in (("x", {"a.jpg": SCENE["a.jpg"], "a.png": SCENE["c.jpg"]}), ("y", {"a.jpg": SCENE["b.jpg"]})):
        for image, objects in scene.items():
            made.labelme(tmp_path / "in" / folder, {image: objects})
            (tmp_path / "in" / folder / "a.json").rename(tmp_path / "in" / folder / f"{image}.json")
    run(tmp_path / "in", tmp_path / "out")
    found = masks(tmp_path / "out")
    assert set(found) == {"x/a_jpg", "x/a_png", "y/a"}
    np.testing.assert_array_equal(found["x/a_png"], expected(SCENE["c.jpg"]))
    np.testing.assert_array_equal(found["y/a"], expected(SCENE["b.jpg"]))
    assert (tmp_path / "out/images/x/a_png.png").exists()


# --------------------------------------------------------------------------------------------------- the second run
def test_a_second_run_goes_on(tmp_path: Path) -> None:
    """Protects the work of an interrupted run: masks that are there stay, changed annotations are drawn again, and what
    has no image any more goes."""
    made.labelme(tmp_path / "in", SCENE)
    first = run(tmp_path / "in", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/masks").iterdir()}
    (tmp_path / "out/masks/a.png").unlink()
    again = run(tmp_path / "in", tmp_path / "out")
    assert (again.kept, again.images) == (2, 3)
    assert again.classes == first.classes
    assert sum(path.stat().st_mtime_ns == before[path] for path in before) == 2
    made.labelme(tmp_path / "in", {"b.jpg": [("cat", SQUARE)]})
    (tmp_path / "in/c.json").unlink()
    third = run(tmp_path / "in", tmp_path / "out")
    assert (third.kept, third.images) == (1, 2)
    assert any("gone: masks/c.png" in note for note in third.notes)
    np.testing.assert_array_equal(masks(tmp_path / "out")["b"], expected([("cat", SQUARE)]))


def test_an_unfinished_conversion_is_not_trained_on(tmp_path: Path) -> None:
    """Protects from a training on half of the masks: init says how to go on."""
    made.labelme(tmp_path / "in", SCENE)
    run(tmp_path / "in", tmp_path / "out")
    report = json.loads((tmp_path / "out/convert.json").read_text())
    write(tmp_path / "out/convert.json", report | {"done": False})
    refused(tmp_path / "out", "did not come to the end", "emaseg convert")


def test_what_holds_something_else_is_never_written_to(tmp_path: Path) -> None:
    made.labelme(tmp_path / "in", SCENE)
    made.labelme(tmp_path / "other", SCENE)
    write(tmp_path / "mine/thesis.txt", "all of it")
    with pytest.raises(RecipeError, match=r"holds something else, such as thesis\.txt"):
        run(tmp_path / "in", tmp_path / "mine")
    with pytest.raises(RecipeError, match="lies in the folder that is converted"):
        run(tmp_path / "in", tmp_path / "in/out")
    run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(RecipeError, match="holds the conversion of"):
        run(tmp_path / "other", tmp_path / "out")
    with pytest.raises(RecipeError, match="is a file"):
        run(tmp_path / "in", tmp_path / "mine/thesis.txt")
    assert (tmp_path / "mine/thesis.txt").read_text() == "all of it"


def test_images_are_the_same_bytes_and_masks_are_read_fast(tmp_path: Path) -> None:
    """Protects from resizing and re-encoding; and the comment in a mask from slowing its reader down."""
    from emaseg.data.files.png import read_header

    made.labelme(tmp_path / "in", SCENE)
    run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/images/a.jpg").read_bytes() == (tmp_path / "in/a.jpg").read_bytes()
    mask = tmp_path / "out/masks/a.png"
    assert read_header(mask.read_bytes()) is not None
    np.testing.assert_array_equal(read_label(mask, index_rule(("g", *CLASSES))), expected(SCENE["a.jpg"]))


# ------------------------------------------------------------------------------------------------ what is left out
def test_images_that_cannot_be_converted_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from silent gaps: a missing image, a wrong size, a damaged JSON; exit 3, and the rest is there."""
    scene = {f"{letter}.jpg": SCENE["a.jpg"] for letter in "abcdef"}
    made.labelme(tmp_path / "in", scene)
    (tmp_path / "in/b.jpg").unlink()
    made.photo(tmp_path / "in/c.jpg", (SIZE[1], SIZE[0]))
    write(tmp_path / "in/d.json", '{"shapes": [')
    (tmp_path / "in/e.json").unlink()
    code = main(["convert", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert code == 3
    assert set(masks(tmp_path / "out")) == {"a", "f"}
    for words in ("no image b.jpg", "turned by its EXIF", "d.json: damaged", "c.jpg"):
        assert words in out
    assert "Images without annotations, skipped: 1 (e.jpg)." in err
    assert out.rstrip().splitlines()[-1].startswith("next: emaseg init ")
    report = json.loads((tmp_path / "out/convert.json").read_text())
    assert main(["convert", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json", "-q"]) == 3
    assert json.loads(capsys.readouterr().out)["left_out"] == report["left_out"]
    assert report["done"]
    assert len(report["left_out"]) == 3


def test_objects_without_area_are_counted(tmp_path: Path) -> None:
    made.labelme(tmp_path / "in", {"a.jpg": SCENE["a.jpg"]})
    path = tmp_path / "in/a.json"
    content = json.loads(path.read_text())
    content["shapes"] += [{"label": "cat", "points": [[1, 1]], "shape_type": "point"}]
    content["shapes"] += [{"label": "cat", "points": [[1, 1], [1.01, 1], [1, 1.01]], "shape_type": "polygon"}]
    write(path, content)
    done = run(tmp_path / "in", tmp_path / "out")
    assert "Not drawn, for they have no area: 1 point." in done.notes
    assert any(note.endswith("outside of their image: 1.") for note in done.notes)


def test_images_without_objects(tmp_path: Path) -> None:
    made.labelme(tmp_path / "in", {**SCENE, "d.jpg": []})
    assert run(tmp_path / "in", tmp_path / "out").images == 4
    assert not masks(tmp_path / "out")["d"].any()
    assert run(tmp_path / "in", tmp_path / "out2", empty="skip").images == 3


def test_class_numbers_need_no_conversion(tmp_path: Path) -> None:
    made.labelme(tmp_path / "in", SCENE)
    run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(RecipeError, match="nothing to convert"):
        run(tmp_path / "out", tmp_path / "out2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no annotations were recognised"):
        run(tmp_path / "empty", tmp_path / "out2")


def test_masks_that_init_refuses_are_refused_with_its_reason(tmp_path: Path) -> None:
    """Protects from a circle: convert sends people to init, and init refuses what they have."""
    made.by_folder(tmp_path / "in", SCENE, "masks/{stem}.png")
    for path in (tmp_path / "in" / "masks").iterdir():
        Image.open(path).convert("L").save(path, "JPEG")
    with pytest.raises(DataError, match="a JPEG mask"):
        run(tmp_path / "in", tmp_path / "out")


def test_boxes_alone_are_no_masks(tmp_path: Path) -> None:
    """Protects from a data set of nothing but background, made of boxes without a word."""
    made.coco(tmp_path / "in", SCENE, lambda _: [])
    with pytest.raises(DataError, match="5 box without an outline"):
        run(tmp_path / "in", tmp_path / "out")


def test_ids_may_be_texts(tmp_path: Path) -> None:
    """Protects objects whose image is 100 here and "100" there: they belong to it."""
    made.coco(tmp_path / "in", SCENE)
    file = tmp_path / "in" / "coco.json"
    content = json.loads(file.read_text())
    for one in content["annotations"]:
        one |= {"image_id": str(one["image_id"]), "category_id": float(one["category_id"])}
    file.write_text(json.dumps(content))
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected(SCENE["a.jpg"]))


def test_equal_names_in_two_splits_go_with_their_own_file(tmp_path: Path) -> None:
    """Protects COCO's own arrangement: train/a.jpg and val/a.jpg, both called a.jpg in a file of their split."""
    for split in ("train", "val"):
        made.coco(tmp_path / "in", {"a.jpg": SCENE["a.jpg"]}, file=f"annotations/instances_{split}.json")
        made.photo(tmp_path / "in" / split / "a.jpg")
    shutil.rmtree(tmp_path / "in" / "images")
    done = run(tmp_path / "in", tmp_path / "out")
    assert (done.ok, done.splits) == (True, {"train": 1, "val": 1})


def test_images_renamed_with_their_annotations(tmp_path: Path) -> None:
    """Protects labelme files that were renamed together with their images, which the name inside does not follow."""
    made.labelme(tmp_path / "in", SCENE)
    for path in sorted((tmp_path / "in").iterdir()):
        path.rename(path.with_name(f"site_{path.name}"))
    assert run(tmp_path / "in", tmp_path / "out").images == 3


def test_labels_in_capitals_are_told(tmp_path: Path) -> None:
    made.labelme(tmp_path / "in", {"a.jpg": [("cat", TRIANGLE)], "b.jpg": [("Cat", TRIANGLE)]})
    assert any(
        "capitals only are different classes: Cat, cat" in note for note in run(tmp_path / "in", tmp_path / "out").notes
    )


def test_two_formats_are_a_choice(tmp_path: Path) -> None:
    made.labelme(tmp_path / "in", SCENE)
    made.via(tmp_path / "in", SCENE)
    with pytest.raises(DataError, match="2 formats") as caught:
        run(tmp_path / "in", tmp_path / "out")
    assert caught.value.hint == "say which one to convert: --format labelme or --format via"
    assert run(tmp_path / "in", tmp_path / "out", format="via").images == 3


def test_palettes_that_differ_are_made_one(tmp_path: Path) -> None:
    """Protects indexed masks whose index means another colour in every file: the colours are the classes."""
    (tmp_path / "in/masks").mkdir(parents=True)
    for place, (image, objects) in enumerate(SCENE.items()):
        made.photo(tmp_path / "in/images" / image)
        colours = [(0, 0, 0), (200, 0, 0), (0, 0, 200)]
        order = [0, 2, 1] if place % 2 else [0, 1, 2]
        mask = Image.fromarray(np.array(order, np.uint8)[expected(objects)])
        mask.putpalette([part for index in order for part in colours[index]])
        mask.save(tmp_path / "in/masks" / f"{Path(image).stem}.png")
    write(tmp_path / "in/class_dict.csv", "name,r,g,b\nground,0,0,0\ncat,200,0,0\nroad sign,0,0,200\n")
    run(tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["ground", *CLASSES]
    for image, objects in SCENE.items():
        np.testing.assert_array_equal(masks(tmp_path / "out")[image[0]], expected(objects))


# --------------------------------------------------------------------------------------------------------- hostile
def change(file: str, edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        content = json.loads((root / file).read_text())
        write(root / file, edit(content) or content)

    return apply


def shape(**keys: object) -> Callable[[Any], object]:
    return lambda content: content["shapes"][0].update(keys)


def note(**keys: object) -> Callable[[Any], object]:
    return lambda content: content["annotations"][0].update(keys)


HOSTILE: list[tuple[str, Callable[[Path], None], str]] = [
    ("labelme", change("a.json", shape(points=[[1e300, 1], [2, 2], [3, 9]])), "a coordinate of 1e+300"),
    ("labelme", change("a.json", shape(points=[[9e7, 1], [2, 9e7], [3, 9]])), "pixels long"),
    ("labelme", change("a.json", shape(points=[["x", 1]])), "not a number"),
    ("labelme", change("a.json", shape(points=5)), "not a list"),
    ("labelme", change("a.json", shape(label=None)), "a label is missing"),
    ("labelme", change("a.json", shape(shape_type="mask", mask="!!!!")), "cannot be unpacked"),
    ("labelme", change("a.json", lambda c: c.update(imagePath="../../../etc/passwd")), "leads out of the folder"),
    ("labelme", change("a.json", lambda c: c.update(imageHeight=10**9, imageWidth=10**9)), "a height of 1e+09"),
    ("labelme", change("a.json", lambda c: c.update(shapes=[5])), "not a shape"),
    ("labelme", lambda root: write(root / "a.json", '{"shapes":' + "[" * 200_000) and None, "nested too deeply"),
    ("labelme", lambda root: write(root / "a.json", '{"shapes": [' + "9" * 9000 + "]}") and None, "damaged"),
    ("labelme", lambda root: (root / "a.json").write_bytes(b"\xff\xfe{") and None, "not a JSON file"),
    ("coco runs", change("coco.json", note(segmentation={"size": [*SIZE], "counts": [5, 5]})), "do not add up"),
    ("coco runs", change("coco.json", note(segmentation={"size": [10**6, 10**6], "counts": [1]})), "run lengths for"),
    ("coco packed", change("coco.json", note(segmentation={"size": [*SIZE], "counts": "~~~\u00e9"})), "strange characters"),
    ("coco", change("coco.json", note(segmentation=[[1, 2, 3]])), "odd number"),
    ("coco", change("coco.json", note(segmentation=[[1, 2, "3", 4, 5, 6]])), "something else than numbers"),
    ("coco", change("coco.json", note(segmentation="abc")), "neither polygons nor run lengths"),
    ("coco", change("coco.json", note(category_id=999)), "a label that the export does not list: '999'"),
    ("coco", change("coco.json", note(image_id=999)), "which the file does not list"),
    ("coco", change("coco.json", lambda c: c["images"].append({**c["images"][0], "id": 5})), "describes it twice"),
    ("supervisely bitmaps", change("ds/ann/a.jpg.json", lambda c: c["objects"][0]["bitmap"].update(origin=[1e7, 1])), "cover no pixel"),
    ("supervisely", change("ds/ann/a.jpg.json", lambda c: c["objects"][0].update(points={})), "points that are not a list"),
    ("labelstudio brush", change("export.json", lambda c: c[0]["annotations"][0]["result"][0]["value"].update(rle=[1, 2])), "cut off"),
    ("labelstudio brush", change("export.json", lambda c: c[0]["annotations"][0]["result"][0]["value"].update(rle=[300])), "list of bytes"),
    ("yolo", lambda root: write(root / "train/labels/a.txt", "0 0.1 0.2 0.3 0.4 0.5 77") and None, "shares of the size"),
    ("yolo", lambda root: write(root / "train/labels/a.txt", "0 0.1 0.2 0.3 0.4 0.5 nan") and None, "a coordinate of nan"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "words"), HOSTILE)
def test_hostile_annotations_cost_their_image_only(
    kind: str, spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    """Protects from a traceback, a full memory or a wrong mask: what is malformed is named, the other images are there."""
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    made.EXPORTERS[kind][0](root, SCENE)
    spoil(root)
    done = run(root, out)
    told = " | ".join([*(f"{one.name}: {one.reason}" for one in done.left), *done.notes])
    assert words in told
    np.testing.assert_array_equal(masks(out)["c"], expected(SCENE["c.jpg"]))


@pytest.mark.parametrize(
    ("kind", "file", "content", "words"),
    [
        (
            "coco",
            "coco.json",
            '{"images": 5, "annotations": [], "categories": [], "segmentation": 0}',
            "should be lists",
        ),
        (
            "coco",
            "coco.json",
            '{"images": [], "annotations": [], "categories": [{}], "segmentation": 0}',
            "a category's id",
        ),
        (
            "cvat",
            "annotations.xml",
            '<!DOCTYPE a [<!ENTITY b "c">]><annotations><meta></meta></annotations>',
            "definitions",
        ),
        ("cvat", "annotations.xml", "<annotations><meta>" + "<a>" * 5000, "nested too deeply"),
        ("cvat", "annotations.xml", "<annotations><image name='a.jpg'></annotations>", "not an XML file"),
        (
            "cvat",
            "annotations.xml",
            '<?xml version="1.0" encoding="none"?><annotations><meta></meta></annotations>',
            "not an XML file",
        ),
        ("cvat", "annotations.xml", "<annotations><meta></meta><track/></annotations>", "export of a video"),
        (
            "via",
            "via_project.json",
            '{"_via_img_metadata": {}, "shape_attributes": 1, "filename": 1}',
            "names no images",
        ),
        ("labelstudio", "export.json", '{"annotations": 1, "data": 1, "result": 1}', "its top is not a list"),
        ("brush pngs", "tasks.json", "[]", "say the task and the label but not the image"),
    ],
)
def test_hostile_files_are_refused(kind: str, file: str, content: str, words: str, tmp_path: Path) -> None:
    """Protects from half an answer where the one file of all annotations is damaged."""
    root = tmp_path / "in"
    root.mkdir()
    made.EXPORTERS[kind][0](root, SCENE)
    write(root / file, content)
    with pytest.raises(DataError, match=words) as caught:
        run(root, tmp_path / "out")
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_definitions_in_16_bits_are_seen(tmp_path: Path) -> None:
    """Protects the memory from entities that grow: expat reads UTF-16, too."""
    for code in ("utf-16-le", "utf-16-be"):
        content = '\ufeff<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><annotations><image/></annotations>'
        (tmp_path / "a.xml").write_bytes(content.encode(code))
        with pytest.raises(DataError, match="definitions of its own"):
            list(read_xml(tmp_path / "a.xml"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Protects from a conversion without end: a pipe among the files is none of them."""
    made.labelme(tmp_path / "in", SCENE)
    for name in ("x.csv", "y.json", "z.txt"):
        os.mkfifo(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out").images == 3


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_half_file_and_goes_on(tmp_path: Path) -> None:
    """Protects the work of hours from a kill: every mask that is there is whole, init waits for the rest, and a second
    run ends with what an undisturbed one gives."""
    made.labelme(tmp_path / "in", {f"i{place:03d}.jpg": SCENE["a.jpg"] for place in range(400)})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "emaseg.cli", "convert", str(tmp_path / "in"), "--out", str(out), "-q"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list((out / "masks").glob("*.png"))) < 20:
            time.sleep(0.005)
        process.kill()
    there = masks(out)
    assert 20 <= len(there) < 400
    for mask in there.values():
        np.testing.assert_array_equal(mask, expected(SCENE["a.jpg"]))
    refused(out, "did not come to the end")
    done = run(tmp_path / "in", out)
    assert (done.images, done.kept >= 20) == (400, True)
    run(tmp_path / "in", tmp_path / "clean")
    found, clean = masks(out), masks(tmp_path / "clean")
    assert set(found) == set(clean)
    assert all((found[name] == clean[name]).all() for name in clean)
