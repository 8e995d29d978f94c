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
from tests.starter.made import data_of, grey, made, start


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


def test_one_missing_mask_is_a_warning(tmp_path: Path) -> None:
    """Protects a day's work from one file: the rest trains, the image is named by init and at the start of training."""
    made(tmp_path, grey(0, 1), count=25)
    (tmp_path / "masks" / "img_7.png").unlink()
    done = start(tmp_path)
    assert data_of(done).unmasked == "leave_out"
    assert any("have no mask" in note and "img_7.jpg" in note for note in done.notes)
    train, evaluation, notes = open_datasets(done.recipe)
    assert len(train) + len(evaluation) == 24
    assert any("img_7.jpg" in note.text and note.warning for note in notes)
    for number in (1, 2, 3):
        (tmp_path / "masks" / f"img_{number}.png").unlink()
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
