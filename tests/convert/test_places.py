"""Which image an annotation means: never one of another folder, and never one that another annotation means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emaseg.errors import DataError
from tests.convert import made
from tests.convert.made import SCENE, SIZE, SQUARE, TRIANGLE, Polygon, expected, masks, run, write


def coco(root: Path, images: dict[str, Polygon], file: str = "a.json") -> None:
    """A COCO JSON of these paths, each with one cat; no images."""
    listed = [
        {"id": place, "file_name": path, "height": SIZE[0], "width": SIZE[1]} for place, path in enumerate(images)
    ]
    notes = [
        {"id": place, "image_id": place, "category_id": 1, "segmentation": [polygon]}
        for place, polygon in enumerate(images.values())
    ]
    write(root / file, {"images": listed, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]})


def cvat(root: Path, images: dict[str, Polygon]) -> None:
    write(root / "a.xml", made.cvat_xml({path: [("cat", polygon)] for path, polygon in images.items()}))


def via(root: Path, images: dict[str, Polygon]) -> None:
    content = {}
    for path, polygon in images.items():
        shape = {"name": "polygon", "all_points_x": polygon[::2], "all_points_y": polygon[1::2]}
        regions = [{"shape_attributes": shape, "region_attributes": {"class": "cat"}}]
        content[path] = {"filename": path, "size": 1, "regions": regions}
    write(root / "a.json", {"_via_img_metadata": content})


@pytest.mark.parametrize("export", [coco, cvat, via])
def test_an_image_that_was_not_copied_is_never_another_folders(export: type, tmp_path: Path) -> None:
    """Protects cam1's photos from the masks of cam2, whose folder is not there, in whatever order the file lists them."""
    root = tmp_path / "in"
    for name in ("0001.jpg", "0002.jpg"):
        made.photo(root / "cam1" / name)
    export(root, {"cam2/0001.jpg": SQUARE, "cam1/0001.jpg": TRIANGLE, "cam2/0002.jpg": SQUARE})
    done = run(root, tmp_path / "out")
    found = masks(tmp_path / "out")
    assert list(found) == ["0001"]
    np.testing.assert_array_equal(found["0001"], expected([("cat", TRIANGLE)], ["cat"]))
    assert [one.name for one in done.left if one.fault] == ["cam2/0001.jpg", "cam2/0002.jpg"]
    assert all(one.reason.startswith("no image cam2/000") for one in done.left if one.fault)


@pytest.mark.parametrize("export", ["coco", "labelme"])
def test_pictures_beside_annotations_do_not_hide_the_images(export: str, tmp_path: Path) -> None:
    """Protects exports that name images alone and have previews, which no annotation means, in their own folder."""
    root = tmp_path / "in"
    made.photo(root / "photos/a.jpg")
    made.photo(root / "notes/preview.png")
    if export == "coco":
        coco(root, {"a.jpg": SQUARE}, "notes/a.json")
    else:
        made.labelme(root, {"a.jpg": [("cat", SQUARE)]})
        (root / "a.json").rename(root / "notes/a.json")
        (root / "a.jpg").unlink()
    assert not [one for one in run(root, tmp_path / "out").left if one.fault]
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", SQUARE)], ["cat"]))


@pytest.mark.parametrize("export", ["coco", "labelme"])
def test_masks_beside_annotations_are_not_their_images(export: str, tmp_path: Path) -> None:
    """Protects the photographs of a folder of their own from pictures that are called as the annotations beside them."""
    root = tmp_path / "in"
    for name in ("a", "b"):
        made.photo(root / f"photos/{name}.jpg")
        made.photo(root / f"notes/{name}.png")
    if export == "coco":
        coco(root, {"a.jpg": SQUARE, "b.jpg": TRIANGLE}, "notes/a.json")
    else:
        made.labelme(root, {"a.jpg": [("cat", SQUARE)], "b.jpg": [("cat", TRIANGLE)]})
        for name in ("a", "b"):
            (root / f"{name}.json").rename(root / f"notes/{name}.json")
            (root / f"{name}.jpg").unlink()
    done = run(root, tmp_path / "out")
    assert not [one for one in done.left if one.fault]
    assert {path.name for path in (tmp_path / "out").rglob("*.jpg")} == {"a.jpg", "b.jpg"}


def test_a_supervisely_image_that_was_not_copied(tmp_path: Path) -> None:
    """Protects the photos of one dataset from the annotations of another whose images are not there."""
    root = tmp_path / "in"
    made.supervisely(root, {"a.jpg": [("cat", TRIANGLE)]})
    other = root / "back/ann/a.jpg.json"
    other.parent.mkdir(parents=True)
    other.write_bytes((root / "ds/ann/a.jpg.json").read_bytes())
    done = run(root, tmp_path / "out")
    found = masks(tmp_path / "out")
    np.testing.assert_array_equal(found["a"], expected([("cat", TRIANGLE)], ["cat"]))
    assert [one.name for one in done.left if one.fault] == ["back/ann/a.jpg.json"]
    (root / "ds/ann/a.jpg.json").unlink()  # then it is its only annotation
    assert not [one for one in run(root, tmp_path / "again").left if one.fault]


def test_two_paths_never_mean_one_image_by_its_name(tmp_path: Path) -> None:
    """Protects an image that no path names with its folder: of two that may mean it, neither is drawn on it."""
    root = tmp_path / "in"
    made.photo(root / "photos/a.jpg")
    made.photo(root / "photos/b.jpg")
    coco(root, {"x/a.jpg": SQUARE, "y/a.jpg": TRIANGLE, r"C:\Users\me\b.jpg": SQUARE})
    done = run(root, tmp_path / "out")
    assert list(masks(tmp_path / "out")) == ["b"]
    reasons = {one.name: one.reason for one in done.left if one.fault}
    assert set(reasons) == {"x/a.jpg", "y/a.jpg"}
    assert "y/a.jpg means that, too" in reasons["x/a.jpg"]


@pytest.mark.parametrize("folder", ["C:\\Users\\me\\", "/home/me/", "https://host/", "../photos/", "upload/"])
def test_paths_of_another_machine_lead_to_the_images_here(folder: str, tmp_path: Path) -> None:
    """Protects exports whose folders are not those here: the names are enough where each is there once."""
    root = tmp_path / "in"
    made.photo(root / "images/a.jpg")
    made.photo(root / "images/more/b.jpg")
    coco(root, {f"{folder}a.jpg": SQUARE, f"{folder}b.jpg": TRIANGLE}, "annotations/a.json")
    assert run(root, tmp_path / "out").ok
    assert set(masks(tmp_path / "out")) == {"a", "more/b"}


# ----------------------------------------------------------------------------------------------------- Label Studio
def test_label_studio_paths_may_be_written_as_an_address(tmp_path: Path) -> None:
    """Protects local files with a blank in their name, which an export may write as %20, and those with a % in it."""
    made.labelstudio(tmp_path / "in", {"my img.jpg": SCENE["a.jpg"], "50%20.jpg": SCENE["c.jpg"]})
    text = (tmp_path / "in/export.json").read_text().replace("my img", "my%20img")
    write(tmp_path / "in/export.json", text.replace("/data/upload/1/1234abcd-", "/data/local-files/?d="))
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["my img"], expected(SCENE["a.jpg"]))
    np.testing.assert_array_equal(masks(tmp_path / "out")["50%20"], expected(SCENE["c.jpg"]))


def test_label_studio_folders_are_kept_apart(tmp_path: Path) -> None:
    """Protects local files of one name in two folders, one of which was not copied."""
    made.labelstudio(tmp_path / "in", {"cam2/a.jpg": SCENE["a.jpg"], "cam1/b.jpg": SCENE["c.jpg"]})
    (tmp_path / "in/cam2/a.jpg").rename(tmp_path / "in/cam1/a.jpg")
    text = (tmp_path / "in/export.json").read_text()
    write(tmp_path / "in/export.json", text.replace("/data/upload/1/1234abcd-", "/data/local-files/?d="))
    done = run(tmp_path / "in", tmp_path / "out")
    assert [one.reason for one in done.left if one.fault] == ["no image cam2/a.jpg"]


def test_brush_exports_of_two_people_are_not_mixed(tmp_path: Path) -> None:
    """Protects the mask of a task that two people drew: the first annotation counts, as in the JSON export, and it is
    told."""
    made.brush_pngs(tmp_path / "in", {"a.jpg": [("cat", TRIANGLE)], "b.jpg": [("cat", SQUARE)]})
    second = tmp_path / "in/export/task-0-annotation-12-by-2-tag-dog-0.png"
    second.write_bytes(made.png(made.mask_of(SQUARE)))
    done = run(tmp_path / "in", tmp_path / "out")
    assert made.names(tmp_path / "out") == ["background", "cat"]
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", TRIANGLE)], ["cat"]))
    assert "1 tasks have several annotations: the first of each is used." in done.notes


def test_the_tables_of_brush_projects_have_long_cells(tmp_path: Path) -> None:
    """Protects a project's CSV export, whose brush drawings stand in cells longer than the csv module takes."""
    made.brush_pngs(tmp_path / "in", {"a.jpg": [("cat", TRIANGLE)], "b.jpg": [("cat", SQUARE)]})
    (tmp_path / "in/tasks.json").unlink()
    drawing = "255, " * 30_000
    rows = [f'{place},/data/upload/1/1234abcd-{name}.jpg,"[{drawing}]"' for place, name in enumerate("ab")]
    write(tmp_path / "in/project.csv", "\n".join(["id,image,tag", *rows]))
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", TRIANGLE)], ["cat"]))


def two_tasks_of_one_image(root: Path, kind: Callable[[Path, made.Scene], None], file: str) -> None:
    """Two uploads called a.jpg, one of which is here."""
    kind(root, {"a.jpg": [("cat", TRIANGLE)], "b.jpg": [("cat", SQUARE)], "c.jpg": [("cat", SQUARE)]})
    write(root / file, (root / file).read_text().replace("1234abcd-b.jpg", "99999999-a.jpg"))


@pytest.mark.parametrize(
    ("kind", "file"), [(made.labelstudio, "export.json"), (made.brush_pngs, "tasks.json")], ids=["json", "brushes"]
)
def test_two_uploads_of_one_name_are_never_one_image(
    kind: Callable[[Path, made.Scene], None], file: str, tmp_path: Path
) -> None:
    """Protects from the drawing of another image, and from a mask that depends on which thread comes last."""
    two_tasks_of_one_image(tmp_path / "in", kind, file)
    done = run(tmp_path / "in", tmp_path / "out")
    assert set(masks(tmp_path / "out")) == {"c"}
    assert done.images == 1
    reasons = [one.reason for one in done.left if one.fault]
    assert len(reasons) == 2
    assert all("2 tasks lead to" in reason and "1234abcd-a.jpg, 99999999-a.jpg" in reason for reason in reasons)


def test_brush_tasks_of_one_address_are_one_image(tmp_path: Path) -> None:
    """Protects from two threads that write one mask: the first of two tasks counts, and the second is told."""
    two_tasks_of_one_image(tmp_path / "in", made.brush_pngs, "tasks.json")
    write(tmp_path / "in/tasks.json", (tmp_path / "in/tasks.json").read_text().replace("99999999", "1234abcd"))
    done = run(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", TRIANGLE)], ["cat"]))
    assert done.images == 2
    assert any("another task is of" in one.reason for one in done.left)


def test_a_task_with_two_pictures_is_not_drawn_on_one(tmp_path: Path) -> None:
    """Protects pairs, such as before and after, of equal size: whose regions are whose is not asked yet."""
    made.labelstudio(tmp_path / "in", SCENE)
    tasks = json.loads((tmp_path / "in/export.json").read_text())
    results = tasks[0]["annotations"][0]["result"]
    for name, one in zip(["before", "after"], [results[0], dict(results[0])], strict=True):
        one["to_name"] = name
        results.append(one)
    write(tmp_path / "in/export.json", tasks)
    done = run(tmp_path / "in", tmp_path / "out")
    assert any(one.fault and "several pictures of one task (after, before)" in one.reason for one in done.left)
    assert "a" not in masks(tmp_path / "out")


def test_the_image_of_a_task_is_what_looks_like_one(tmp_path: Path) -> None:
    """Protects projects whose image is called photo, after other texts of a task."""
    made.labelstudio(tmp_path / "in", SCENE)
    tasks = json.loads((tmp_path / "in/export.json").read_text())
    for task in tasks:
        task["data"] = {"split": "train", "photo": task["data"]["image"]}
    write(tmp_path / "in/export.json", tasks)
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected(SCENE["a.jpg"]))


def test_shapes_without_a_label_are_counted(tmp_path: Path) -> None:
    """Protects from regions that are lost without a word: of a shape and its label as two results, one is not there."""
    made.labelstudio_regions(tmp_path / "in", SCENE)
    tasks = json.loads((tmp_path / "in/export.json").read_text())
    results = tasks[0]["annotations"][0]["result"]
    del results[next(i for i, one in enumerate(results) if one["type"] == "labels")]
    write(tmp_path / "in/export.json", tasks)
    done = run(tmp_path / "in", tmp_path / "out")
    assert any("1 polygon without a label" in note for note in done.notes)


# ---------------------------------------------------------------------------------------------------------- labelme
@pytest.mark.parametrize("copy", ["a - Copy.json", "z.json"])
def test_a_second_labelme_file_of_an_image_is_left_out(copy: str, tmp_path: Path) -> None:
    """Protects a mask from a copy of its annotations, which another thread drew over it: the file of the image's own name
    counts, and the copy is named."""
    made.labelme(tmp_path / "in", {"a.jpg": [("cat", TRIANGLE)]})
    text = (tmp_path / "in/a.json").read_text()
    write(tmp_path / "in" / copy, text.replace("cat", "dog"))
    done = run(tmp_path / "in", tmp_path / "out")
    assert [(one.name, one.reason) for one in done.left] == [(copy, "a second file for a.jpg")]
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", TRIANGLE)], ["cat"]))


def test_a_labelme_file_is_never_of_another_folders_image(tmp_path: Path) -> None:
    """Protects day1's image from the annotations of day2's, which was not copied though others of day2 were."""
    for folder, image, polygon in (("day1", "1.jpg", TRIANGLE), ("day2", "1.jpg", SQUARE), ("day2", "2.jpg", SQUARE)):
        made.labelme(tmp_path / "in" / folder, {image: [("cat", polygon)]})
    for missing in ("day1/1.json", "day2/1.jpg"):
        (tmp_path / "in" / missing).unlink()
    done = run(tmp_path / "in", tmp_path / "out")
    assert ("day2/1.json", "no image 1.jpg") in [(one.name, one.reason) for one in done.left]
    assert set(masks(tmp_path / "out")) == {"2"}


def test_a_labelme_file_that_names_the_image_it_was_copied_from(tmp_path: Path) -> None:
    """Protects the second of two images, whose file was made from the first one's and still names it."""
    made.labelme(tmp_path / "in", {"a.jpg": SCENE["a.jpg"], "b.jpg": SCENE["c.jpg"]})
    text = (tmp_path / "in/b.json").read_text()
    write(tmp_path / "in/b.json", text.replace("b.jpg", "a.jpg"))
    assert run(tmp_path / "in", tmp_path / "out").ok
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected(SCENE["a.jpg"]))
    np.testing.assert_array_equal(masks(tmp_path / "out")["b"], expected(SCENE["c.jpg"]))


# ------------------------------------------------------------------------------------------------- what else is stated
def test_a_panoptic_png_that_changed_is_drawn_again(tmp_path: Path) -> None:
    """Protects a second run from an old mask: the drawing is in the PNG, the JSON stays as it is."""
    made.panoptic(tmp_path / "in", {"a.jpg": [("cat", TRIANGLE)], "b.jpg": [("cat", SQUARE)]})
    run(tmp_path / "in", tmp_path / "out")
    png = tmp_path / "in/panoptic"
    png.joinpath("a.png").write_bytes(png.joinpath("b.png").read_bytes())
    assert run(tmp_path / "in", tmp_path / "out").kept == 1
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected([("cat", SQUARE)], ["cat"]))


def test_two_images_of_one_id_have_no_objects(tmp_path: Path) -> None:
    """Protects exports that were joined without new numbers: all objects would be painted on the first of the two, and the
    second would be background."""
    made.coco(tmp_path / "in", SCENE)
    content = json.loads((tmp_path / "in/coco.json").read_text())
    first, second = (one["id"] for one in content["images"][:2])
    content["images"][1]["id"] = str(first)
    for one in content["annotations"]:
        one["image_id"] = first if one["image_id"] == second else one["image_id"]
    write(tmp_path / "in/coco.json", content)
    done = run(tmp_path / "in", tmp_path / "out")
    assert set(masks(tmp_path / "out")) == {"c"}
    assert [one.name for one in done.left if one.fault] == ["a.jpg", "b.jpg"]
    assert all("2 images of coco.json have the id" in one.reason for one in done.left)


def test_pictures_beside_a_yolo_set_are_no_images_of_it(tmp_path: Path) -> None:
    """Protects from masks and plots as training images that show nothing; those that show nothing, in images/ or in a
    folder of their own, are images."""
    made.yolo(tmp_path / "in", SCENE)
    images = next((tmp_path / "in").rglob("a.jpg")).parent
    for path in (
        tmp_path / "in/masks/a.png",
        tmp_path / "in/plots/val_batch0.jpg",
        images / "empty/d.jpg",
        tmp_path / "in/day2/e.jpg",
    ):
        made.photo(path)
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.ok
    assert {Path(name).name for name in masks(tmp_path / "out")} == {"a", "b", "c", "d", "e"}
    assert {one.name for one in done.left} == {"masks/a.png", "plots/val_batch0.jpg"}


def test_panoptic_pngs_are_no_images_without_annotations(tmp_path: Path) -> None:
    """Protects people from a report of as many forgotten images as there are annotated ones; real ones are still told."""
    made.panoptic(tmp_path / "in", {"a.jpg": [("cat", TRIANGLE)], "b.jpg": [("cat", SQUARE)]})
    made.photo(tmp_path / "in/images/forgotten.jpg")
    alone = [note for note in run(tmp_path / "in", tmp_path / "out").notes if "without annotations" in note]
    assert alone == ["Images without annotations, skipped: 1 (images/forgotten.jpg)."]


def test_key_points_are_no_outlines(tmp_path: Path) -> None:
    """Protects from polygons through boxes and key points: by the 2 of a visible one, or by what data.yaml says."""
    made.yolo(tmp_path / "in", SCENE)
    write(tmp_path / "in/train/labels/a.txt", "0 0.5 0.5 0.4 0.4 0.3 0.3 2 0.7 0.7 2\n")
    done = run(tmp_path / "in", tmp_path / "out")
    assert [one.reason for one in done.left] == ["line 1: a coordinate of 2; shares of the size run from 0 to 1"]
    with (tmp_path / "in/data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 3]\n")
    with pytest.raises(DataError, match="boxes with key points") as caught:
        run(tmp_path / "in", tmp_path / "two")
    assert caught.value.hint


# --------------------------------------------------------------------------------------------- one mask for each class
def test_folders_with_a_number_are_classes_of_their_own(tmp_path: Path) -> None:
    """Protects class_2 from being drawn as class_1: the number is what tells the two folders apart."""
    made.by_folder(tmp_path / "in", SCENE, "masks/class_{name}/{stem}.png")
    for number, name in enumerate(made.CLASSES, 1):
        (tmp_path / "in/masks" / f"class_{name}").rename(tmp_path / "in/masks" / f"class_{number}")
    done = run(tmp_path / "in", tmp_path / "out")
    assert made.names(tmp_path / "out") == ["background", "class_1", "class_2"]
    assert not any("One class" in note for note in done.notes)
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected(SCENE["a.jpg"]))


def test_endings_that_are_taken_for_one_class_are_told(tmp_path: Path) -> None:
    """Protects layer_1 and layer_2 of an image from becoming one class without a word; car_1 and car_2 are two cars."""
    objects = {"a.jpg": [("car_1", TRIANGLE), ("car_2", SQUARE)], "b.jpg": [("car_1", SQUARE), ("car_2", TRIANGLE)]}
    made.by_folder(tmp_path / "in", objects, "masks/{stem}_{name}.png")
    done = run(tmp_path / "in", tmp_path / "out")
    assert made.names(tmp_path / "out") == ["background", "car"]
    assert any(note.startswith("One class, car: the masks _car_1, _car_2.") for note in done.notes)


def test_images_of_one_name_with_one_set_of_masks(tmp_path: Path) -> None:
    """Protects a.png from being passed over in silence beside a.jpg: the masks may be of either, so both are named."""
    made.by_folder(tmp_path / "in", SCENE)
    folder = next((tmp_path / "in").rglob("a.jpg")).parent
    made.photo(folder / "a.png")
    done = run(tmp_path / "in", tmp_path / "out")
    assert {Path(one.name).name for one in done.left if one.fault and "2 images have this name" in one.reason} == {
        "a.jpg",
        "a.png",
    }
    assert set(masks(tmp_path / "out")) == {"b", "c"}


def test_an_image_without_annotations_is_told_beside_one_of_its_name(tmp_path: Path) -> None:
    """Protects an image from being left out in silence, for another of its name but its ending has annotations."""
    made.labelme(tmp_path / "in", SCENE)
    made.photo(tmp_path / "in/a.png")
    done = run(tmp_path / "in", tmp_path / "out")
    assert "Images without annotations, skipped: 1 (a.png)." in done.notes


def test_labels_of_one_name_are_told(tmp_path: Path) -> None:
    """Protects from two classes where one was meant: two ids of COCO with one name are numbered, and that is told."""
    root = tmp_path / "in"
    made.photo(root / "a.jpg")
    coco(root, {"a.jpg": SQUARE})
    content = json.loads((root / "a.json").read_text())
    content["categories"].append({"id": 2, "name": "cat"})
    content["annotations"].append({**content["annotations"][0], "id": 5, "category_id": 2, "segmentation": [TRIANGLE]})
    write(root / "a.json", content)
    done = run(root, tmp_path / "out")
    assert made.names(tmp_path / "out") == ["background", "cat", "cat_2"]
    assert any("told apart by a number: cat_2." in note for note in done.notes)
