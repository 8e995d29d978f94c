"""Images that two annotation files describe; archives; and what a conversion of colour masks takes for its images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.errors import DataError
from tests.convert import made
from tests.convert.made import SCENE, SIZE, SQUARE, Scene, expected, masks, run, write

ONE = [("cat", SQUARE)]


def test_person_keypoints_repeat_some_instances(tmp_path: Path) -> None:
    """Protects COCO's own annotations/, where a second file has some of the same outlines: a note, not an error for each of
    120,000 images."""
    made.coco(tmp_path / "in", SCENE, file="annotations/instances_val.json")
    content = json.loads((tmp_path / "in/annotations/instances_val.json").read_text())
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 7]
    content["categories"] = content["categories"][1:]
    write(tmp_path / "in/annotations/person_keypoints_val.json", content)
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.ok
    assert not done.left
    first, second = "annotations/instances_val.json", "annotations/person_keypoints_val.json"
    assert f"{second} describes 3 of the images of {first} again, with no other objects." in done.notes
    np.testing.assert_array_equal(masks(tmp_path / "out")["a"], expected(SCENE["a.jpg"]))


def two(kind: str, root: Path, second: Scene) -> tuple[str, str]:
    """The scene, and a second file of the same tool; the names of both, the one that is used first."""
    shutil.copytree(root, other := root.with_name("other"))
    if kind == "via":
        made.via(root, SCENE)
        made.via_csv(root, second)
        return "via_project.json", "via.csv"
    export: Callable[[Path, Scene], None] = getattr(made, kind)
    export(root, SCENE)
    export(other, second)
    path = next(path for path in sorted(other.iterdir()) if path.suffix in (".json", ".xml"))
    path.rename(root / f"z{path.suffix}")
    return path.name, f"z{path.suffix}"


@pytest.mark.parametrize("kind", ["via", "coco", "cvat", "labelstudio"])
@pytest.mark.parametrize("same", [True, False])
def test_a_second_file_of_all_images_is_told_once(kind: str, same: bool, tmp_path: Path) -> None:
    """Protects from an error for each image where a second file says the same, and from silence where it says more."""
    (root := tmp_path / "in").mkdir()
    used, other = two(kind, root, SCENE if same else {**SCENE, "c.jpg": SCENE["b.jpg"]})
    done = run(root, tmp_path / "out")
    assert done.ok == same
    again = [note for note in done.notes if note.startswith(f"{other} describes")]
    assert again == [f"{other} describes {3 if same else 2} of the images of {used} again, with no other objects."]
    left = [(one.name, one.reason.partition(";")[0]) for one in done.left]
    image = next(path.relative_to(root).as_posix() for path in root.rglob("c.jpg"))
    reason = f"objects of 1 image differ from those of {used}, which are used: {image}"
    assert left == ([] if same else [(other, reason)])
    for name, objects in SCENE.items():
        np.testing.assert_array_equal(masks(tmp_path / "out")[name[0]], expected(objects))


def test_of_two_files_the_one_with_a_split_is_used(tmp_path: Path) -> None:
    """Protects the split of train.json and val.json from annotations.json, which comes first in the alphabet."""
    made.coco(tmp_path / "in", SCENE, file="annotations.json")
    content = json.loads((tmp_path / "in/annotations.json").read_text())
    for split, images in (("train", content["images"][:2]), ("val", content["images"][2:])):
        ids = [one["id"] for one in images]
        some = [one for one in content["annotations"] if one["image_id"] in ids]
        write(tmp_path / f"in/{split}.json", {**content, "images": images, "annotations": some})
    done = run(tmp_path / "in", tmp_path / "out")
    assert (done.ok, done.splits) == (True, {"train": 2, "val": 1})
    assert "annotations.json describes 2 of the images of train.json again, with no other objects." in done.notes


def test_a_file_without_objects_does_not_win(tmp_path: Path) -> None:
    """Protects from a mask that is all background, where the file with a split has no object of an image and another has."""
    made.coco(tmp_path / "in", {**SCENE, "a.jpg": []}, file="train.json")
    made.coco(tmp_path / "in", SCENE, file="annotations.json")
    done = run(tmp_path / "in", tmp_path / "out")
    assert not done.ok
    reason = "train.json has no object of it, and annotations.json has: remove the one that is wrong"
    assert ("images/a.jpg", reason) in [(one.name, one.reason) for one in done.left]
    assert set(masks(tmp_path / "out")) == {"b", "c"}


@pytest.mark.parametrize(
    ("name", "kind"), [("export.zip", "a ZIP archive"), ("x", "a ZIP archive"), ("a.7z", "an archive")]
)
def test_an_archive_is_not_its_folder(name: str, kind: str, tmp_path: Path) -> None:
    """Protects from a conversion of all that lies beside an archive that was not unpacked."""
    made.labelme(tmp_path / "in", SCENE)
    (tmp_path / "in" / name).write_bytes(b"PK\x03\x04" if kind == "a ZIP archive" else b"7z")
    with pytest.raises(DataError, match=f"{name}: {kind}: unpack it first") as caught:
        run(tmp_path / "in" / name, tmp_path / "in/out")
    assert caught.value.hint


@pytest.mark.parametrize("pattern", ["{split}/{part}", "{part}/{split}"])
def test_colour_masks_of_three_parts(pattern: str, tmp_path: Path) -> None:
    """Protects the test part of colour masks, which was told as images without annotations."""
    made.colours(tmp_path / "all", {"a.jpg": ONE, "b.jpg": ONE, "c.jpg": ONE})
    for split, letter in (("train", "a"), ("val", "b"), ("test", "c")):
        for part, ending in (("images", "jpg"), ("masks", "png")):
            folder = tmp_path / "in" / pattern.format(split=split, part=part)
            folder.mkdir(parents=True)
            shutil.copy(tmp_path / "all" / part / f"{letter}.{ending}", folder)
    shutil.copy(tmp_path / "all/labelmap.txt", tmp_path / "in")
    done = run(tmp_path / "in", tmp_path / "out")
    assert (done.ok, done.splits) == (True, {"train": 1, "val": 1, "test": 1})
    assert not [note for note in done.notes if "without annotations" in note]
    np.testing.assert_array_equal(masks(tmp_path / "out")["test/c"], expected(ONE))


def test_a_test_part_that_cannot_be_used_costs_nothing_else(tmp_path: Path) -> None:
    """Protects colour masks from the placeholders of a test part whose labels are not given away."""
    made.colours(tmp_path / "all", {"a.jpg": ONE, "b.jpg": ONE, "c.jpg": ONE})
    for split, letter in (("train", "a"), ("val", "b"), ("test", "c")):
        for part, ending in (("images", "jpg"), ("masks", "png")):
            (folder := tmp_path / "in" / split / part).mkdir(parents=True)
            shutil.copy(tmp_path / "all" / part / f"{letter}.{ending}", folder)
    shutil.copy(tmp_path / "all/labelmap.txt", tmp_path / "in")
    Image.new("L", SIZE[::-1]).save(tmp_path / "in/test/masks/c.png")
    done = run(tmp_path / "in", tmp_path / "out")
    assert (done.ok, done.splits) == (True, {"train": 1, "val": 1})
    assert any(note.startswith("The images of test/masks are not converted: ") for note in done.notes)
