"""What people meet on the first day with a folder of their own: named folders, odd values, a mask that is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.errors import DataError, RecipeError
from emaseg.open_datasets import open_datasets
from emaseg.recipe import load_recipe
from emaseg.starter import Machine, Started, start_recipe
from tests.helpers import emaseg
from tests.starter.made import data_of, dry_run, grey, made, refused, start


def started(folder: Path, **options: str) -> Started:
    events = start_recipe(folder, Machine, **options)
    while True:
        try:
            next(events)
        except StopIteration as end:
            done: Started = end.value
            return done


def test_folders_that_no_name_tells_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects people whose folders are called as nobody guesses: --images and --masks say which is which."""
    made(tmp_path, grey(0, 1), image="raw tiles/img_{}.png", mask="ground/img_{}_gt.png")
    with pytest.raises(DataError):
        start(tmp_path)
    data = data_of(started(tmp_path, images="raw tiles", masks="ground"))
    assert (data.train_images, data.train_masks, data.mask_suffix) == ("raw tiles", "ground", "_gt")
    with pytest.raises(DataError, match="--masks grund: no such folder"):
        started(tmp_path, images="raw tiles", masks="grund")
    code, out, err = emaseg(capsys, "init", tmp_path, "--images", "raw tiles")
    assert (code, out, "go together" in err) == (2, "", True)
    code, out, _ = emaseg(capsys, "init", tmp_path, "--images", "raw tiles", "--masks", tmp_path / "ground", "-q")
    assert (code, 'train_masks = "ground"' in out) == (0, True)


@pytest.mark.parametrize(("values", "wanted"), [((0, 255), (0, 255)), ((3, 200), (3, 200)), ((0, 1), ())])
def test_two_names_go_to_the_two_values(values: tuple[int, int], wanted: tuple[int, ...], tmp_path: Path) -> None:
    """Protects the commonest masks of all: 0 and 255 with a file of two names are two classes, and nothing is ignored."""
    made(tmp_path, grey(*values))
    (tmp_path / "classes.txt").write_text("road\ncrack\n")
    data = data_of(start(tmp_path))
    assert (data.classes, data.values) == (("road", "crack"), wanted)
    assert 255 not in data.ignore or 255 not in values


@pytest.mark.parametrize(
    ("text", "values", "classes", "numbers"),
    [
        ("crack", (0, 255), ("background", "crack"), (0, 255)),
        ("crack", (0, 1), ("background", "crack"), ()),
        ("crack", (1, 0), ("background", "crack"), ()),
        ("crack", (1, 0, 255), ("background", "crack"), ()),
        ("background", (0, 7), ("background", "foreground"), (0, 7)),
        ("crack\nbackground", (0, 255), ("background", "crack"), (0, 255)),
        ("crack\nBackground", (0, 1), ("Background", "crack"), ()),
        ("crack\nbackground", (1, 0), ("crack", "background"), ()),
        ("background\ncrack", (1, 0), ("background", "crack"), ()),
    ],
)
def test_one_object_with_or_without_a_name_of_its_background(
    text: str, values: tuple[int, ...], classes: tuple[str, ...], numbers: tuple[int, ...], tmp_path: Path
) -> None:
    """Protects sets of one object, whose file names it alone, or before the background; the first value is the most
    frequent one, and names in the order of the values stay where nothing speaks against it."""
    made(tmp_path, grey(*values))
    (tmp_path / "classes.txt").write_text(text)
    started = start(tmp_path)
    assert (data_of(started).classes, data_of(started).values) == (classes, numbers)
    turned = [note for note in started.notes if note.startswith("warning: taken: 0 is Background; 1 is crack")]
    assert len(turned) == (text == "crack\nBackground")
    dry_run(started.text)


def test_an_object_and_its_void_say_what_to_call_it(tmp_path: Path) -> None:
    """Protects from a remedy that has nothing to do with it: everything but the object is not ignored."""
    made(tmp_path, grey(0, 255))
    (tmp_path / "classes.txt").write_text("void\ncrack")
    refused(tmp_path, "a single class", "if void in classes.txt is everything but the object, call it background")


@pytest.mark.parametrize(
    ("text", "values", "classes", "warned"),
    [
        ("car\nroad\ntree", (2, 0, 1, 3), ("car", "road", "tree"), "If it is 0 background, 1 car, 3 tree"),
        (
            "car\nroad\ntree",
            (0, 2, 1, 3),
            ("background", "car", "road", "tree"),
            "If it is 0 car, 1 road, 3 unlabelled",
        ),
        (
            "car\nroad\ntree",
            (3, 2, 1, 0),
            ("car", "road", "tree"),
            "If it is 0 background, 1 car, 3 tree",
        ),
        ("car\nroad", (1, 0, 2, 255), ("background", "car", "road"), "If it is 0 car, 1 road, 2 unlabelled"),
        ("background\nroad", (0, 1, 2), ("background", "road"), ""),
    ],
)
def test_one_name_fewer_than_values_is_a_warning_of_both_readings(
    text: str, values: tuple[int, ...], classes: tuple[str, ...], warned: str, tmp_path: Path
) -> None:
    """Protects from classes that are all one value off, in masks whose 0 is unlabelled (MATLAB's) or whose last value."""
    made(tmp_path, grey(*values))
    (tmp_path / "classes.txt").write_text(text)
    started = start(tmp_path)
    assert data_of(started).classes == classes
    warnings = [note for note in started.notes if note.startswith("warning: classes.txt has")]
    assert [warned in note for note in warnings] == [True] * bool(warned)
    (tmp_path / "classes.txt").write_text(
        "0: unlabelled\n" + "\n".join(f"{n}: n{n}" for n in range(1, max(values[:3]) + 1))
    )
    assert not [note for note in start(tmp_path).notes if note.startswith("warning: classes.txt")]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/img_{}.jpg", "masks/img_{}.png"),
        ("train/img_{}.jpg", "train/img_{}_mask.png"),
        ("img_{}.jpg", "img_{}_mask.png"),
    ],
)
def test_one_missing_mask_is_a_warning(image: str, mask: str, tmp_path: Path) -> None:
    """Protects a day's work from one file: the rest trains, the image is named by init and at the start of training."""
    made(tmp_path, grey(0, 1), image, mask, count=25)
    (tmp_path / mask.format(7)).unlink()
    done = start(tmp_path)
    assert data_of(done).unmasked == "leave_out"
    assert any("have no mask" in note and "img_7.jpg" in note for note in done.notes)
    train, evaluation, notes = open_datasets(done.recipe)
    assert len(train) + len(evaluation) == 24
    assert any("img_7.jpg" in note.text and note.warning for note in notes)
    for number in (1, 2, 3):
        (tmp_path / mask.format(number)).unlink()
    with pytest.raises(DataError, match="have no mask"):
        start(tmp_path)


def test_thin_things_are_not_shrunk_away(tmp_path: Path) -> None:
    """Protects cracks, wires and vessels: where masks hold lines of 1 to 3 pixels, images keep the size they need."""
    for width, shrunk in ((1, False), (3, True), (40, True)):
        folder = tmp_path / str(width)
        mask = np.zeros((600, 640), np.uint8)
        mask[:, 100 : 100 + width] = mask[:, 400 : 400 + width] = 1
        for number in range(4):
            for kind, picture in (("images", np.full((600, 640, 3), 40 * number, np.uint8)), ("masks", mask)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(folder / kind / f"{number}.png")
        done = start(folder)
        limits = done.recipe.augment.resize_long_short
        assert bool(limits) is shrunk
        assert done.recipe.inference.resize_long_short == limits
        factor = min(limits) / 600 if limits else 1
        assert width * factor >= min(width, 1.9)
        assert any("pixels wide" in note for note in done.notes) is (width < 40)


@pytest.mark.skipif(sys.platform == "win32", reason="a file descriptor is redirected as shells do it")
def test_a_file_that_init_could_not_fill_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Protects from an empty photos.toml that train then calls incomplete: the reason is in the file, as comments."""
    (tmp_path / "photos").mkdir()
    code, out, err = emaseg(capfd, "init", tmp_path / "photos")  # capfd is an ordinary file
    assert code == 3
    assert out.startswith("# emaseg init failed, so there is no recipe here:\n# ")
    assert err.startswith("error: ")
    file = tmp_path / "photos.toml"
    file.write_text(out)
    with pytest.raises(RecipeError, match="holds no recipe, only this") as caught:
        load_recipe(file)
    assert "emaseg init failed" in str(caught.value)
    assert "try: emaseg init FOLDER" in str(caught.value)
    file.write_text("")
    with pytest.raises(RecipeError, match="the file is empty"):
        load_recipe(file)
