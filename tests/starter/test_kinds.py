"""`init` on more kinds of folders: several pairs of folders, lists of pairs, images that show nothing, frames of clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.pairs import PairedFiles
from tests.starter.made import data_of, dry_run, grey, labels, made, refused, start


def phases(text: str) -> tuple[set[str], set[str]]:
    """The names of the images of both phases, below the root."""
    data = dry_run(text).data
    sets = build_dataset(data, "train"), build_dataset(data, "eval")
    root = data.root  # type: ignore[union-attr]
    train, evaluation = ({Path(one.name(i)).relative_to(root).as_posix() for i in range(len(one))} for one in sets)
    return train, evaluation


def test_several_pairs_of_folders(tmp_path: Path) -> None:
    """Protects people whose images come from several places: one training reads all, each divided."""
    for site, count in (("site_a", 6), ("site_b", 12), ("site_c", 2)):
        made(tmp_path / site, grey(0, 1), count=count)
    started = start(tmp_path)
    data = data_of(started)
    assert data.train_images == ("site_a/images", "site_b/images", "site_c/images")
    assert data.eval_masks == ("site_a/masks", "site_b/masks", "site_c/masks")
    train, evaluation = phases(started.text)
    assert (len(train | evaluation), train & evaluation) == (20, set())
    assert len(evaluation) == 3


@pytest.mark.parametrize("form", ["{image} {mask}", "{image},{mask}", "csv"])
def test_lists_of_pairs(form: str, tmp_path: Path) -> None:
    """Protects sets whose masks cannot be found by name."""
    made(tmp_path, grey(0, 1), image="photos/p{}.jpg", mask="truth/t{}.png", count=6)
    pairs = [(f"photos/p{i}.jpg", f"truth/t{(i + 1) % 6}.png") for i in range(6)]
    heading = ["image,mask"] if form == "csv" else []
    line = "{image},{mask}" if form == "csv" else form
    texts = [line.format(image=image, mask=mask) for image, mask in pairs]
    ending = "csv" if form == "csv" else "txt"
    (tmp_path / f"train.{ending}").write_text("\n".join([*heading, *texts[:4]]))
    (tmp_path / f"val.{ending}").write_text("\n".join([*heading, *texts[4:]]))
    started = start(tmp_path)
    assert data_of(started).train_list == f"train.{ending}"
    train, evaluation = phases(started.text)
    assert (train, evaluation) == ({image for image, _ in pairs[:4]}, {image for image, _ in pairs[4:]})
    (tmp_path / f"train.{ending}").write_text("\n".join([*heading, *texts]))
    (tmp_path / f"val.{ending}").unlink()
    train, evaluation = phases(start(tmp_path).text)
    assert (len(train), len(evaluation), train & evaluation) == (5, 1, set())


def test_images_that_show_nothing(tmp_path: Path) -> None:
    """Protects negatives in a folder of their own: they are trained on as background, and it is said."""
    made(tmp_path, grey(0, 1), count=10)
    made(tmp_path / "x", grey(0, 1), image="negatives/n{}.jpg", count=5)
    (tmp_path / "x/negatives").rename(tmp_path / "negatives")
    for left in (tmp_path / "x/masks").iterdir():
        left.unlink()
    started = start(tmp_path)
    assert data_of(started).train_masks == ("masks", "")
    assert "The images in negatives have no masks: all of their pixels are taken for the background." in started.notes
    train, evaluation = phases(started.text)
    assert (len(train), len(evaluation)) == (12, 3)
    assert labels(build_dataset(data_of(started), "eval")) == {0, 1}
    for mask in (tmp_path / "masks").iterdir():
        grey(1, 2)(0).save(mask)
    refused(tmp_path, "images without masks would be all class_1")


def test_frames_of_clips_stay_together(tmp_path: Path) -> None:
    """Protects from scores that are too good: no clip is in both phases, and it is said how."""
    for clip in range(6):
        made(tmp_path, grey(0, 1), image=f"images/clip{clip}_{{}}.jpg", mask=f"masks/clip{clip}_{{}}.png", count=4)
    started = start(tmp_path)
    data = data_of(started)
    assert (data.holdout, data.holdout_group) == (5, "^(.*?)[0-9]+$")
    assert any("whole clips are held out" in note for note in started.notes)
    train, evaluation = ({name.split("_")[0] for name in names} for names in phases(started.text))
    assert (len(train), len(evaluation), train & evaluation) == (5, 1, set())


def test_frames_beside_their_masks_stay_together(tmp_path: Path) -> None:
    """Protects slices of one patient whose masks lie beside them: the masks' names, which end otherwise, hide no clip."""
    for clip in range(6):
        name = f"p{clip}/p{clip}_{{}}"
        made(tmp_path, grey(0, 1), image=f"{name}.png", mask=f"{name}_mask.png", count=4)
    data = data_of(start(tmp_path))
    assert (data.holdout, data.holdout_group) == (5, "^(.*?)[0-9]+$")


def test_one_run_of_numbers_is_no_clip(tmp_path: Path) -> None:
    made(tmp_path, grey(0, 1), count=12)
    assert data_of(start(tmp_path)).holdout_group == ""


def test_a_list_of_pairs_with_a_wrong_line_is_never_passed_over(tmp_path: Path) -> None:
    """Protects the pairs that people state: one missing file is an error with its line, no reason to guess by names."""
    made(tmp_path, grey(0, 1), image="a/img_{}.jpg", mask="b/{}.png", count=6)
    lines = [f"a/img_{n}.jpg,b/{5 - n if n < 6 else n}.png" for n in range(7)]
    (tmp_path / "pairs.csv").write_text("\n".join(["Bild,Maske", *lines]))
    refused(tmp_path, "pairs.csv:8: no file a/img_6.jpg")
    (tmp_path / "pairs.csv").write_text("\n".join(["Bild,Maske", *lines[:6]]))
    train = build_dataset(dry_run(start(tmp_path).text).data, "train")
    assert isinstance(train, PairedFiles)
    assert {(image.stem, mask.stem) for image, mask in train.items} <= {(f"img_{n}", f"{5 - n}") for n in range(6)}


@pytest.mark.parametrize(
    "form", ["images/img_{}.jpg", "./images/img_{}", r"C:\data\images\img_{}.jpg", "/old/images/img_{}.jpg"]
)
def test_lists_that_name_the_folder_too_are_the_split(form: str, tmp_path: Path) -> None:
    """Protects a stated split from being replaced by every fifth image because its lines begin with the folder."""
    made(tmp_path, grey(0, 1), count=6)
    for name, numbers in (("train.txt", range(4)), ("val.txt", range(4, 6))):
        (tmp_path / name).write_text("\n".join(form.format(n) for n in numbers))
    assert phases(start(tmp_path).text) == (
        {f"images/img_{n}.jpg" for n in range(4)},
        {"images/img_4.jpg", "images/img_5.jpg"},
    )


def test_folders_that_name_masks_in_different_ways(tmp_path: Path) -> None:
    made(tmp_path / "a", grey(0, 1))
    made(tmp_path / "b", grey(0, 1), mask="masks/img_{}_mask.png")
    refused(tmp_path, "name the masks in different ways", "end in _mask")
