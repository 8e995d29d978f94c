"""Photographs that EXIF turns within their size: `init`, check-data and the start of training say so, as a warning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.files.images import image_header, image_size
from emaseg.open_datasets import open_datasets
from tests.starter.made import SIZE, grey, made, start
from tests.test_check_data import report_of

WORDS = "images are turned or mirrored when they are read"


def photograph(path: Path, size: tuple[int, int], orientation: int) -> None:
    """One that is read with `size` (H, W)."""
    stored = size if orientation < 5 else size[::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(orientation).integers(0, 255, (*stored, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)


def folder(root: Path, *orientations: int) -> Path:
    """Six images and their masks; the first images are photographs of these orientations."""
    made(root, grey(0, 1))
    for number, orientation in enumerate(orientations):
        photograph(root / f"images/img_{number}.jpg", SIZE, orientation)
    return root


def square(root: Path, orientation: int) -> Path:
    """As `folder`, with a first image of equal sides."""
    folder(root)
    photograph(root / "images/img_0.jpg", (24, 24), orientation)
    mask = root / "masks/img_0.png"
    Image.fromarray(np.asarray(Image.open(mask))[:, :24]).save(mask)
    return root


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_photograph_that_is_turned_within_its_size_is_warned_of(orientation: int, tmp_path: Path) -> None:
    """Protects masks that were drawn on the stored pixels: sizes agree, and the labels are upside down."""
    started = start(folder(tmp_path, orientation))
    (note,) = (note for note in started.notes if WORDS in note)
    assert note.startswith("warning: 1 of 6 images")
    assert "img_0.jpg" in note
    assert "check-data --sheet" in note
    report = report_of(started.recipe)
    assert [finding.level for finding in report.findings if finding.kind == "turned"] == ["warning"]
    assert report.ok
    assert [note.warning for note in open_datasets(started.recipe)[2] if WORDS in note.text] == [True]


@pytest.mark.parametrize(("orientation", "count"), [(1, 0), (5, 1), (6, 1), (7, 1), (8, 1)])
def test_a_square_photograph(orientation: int, count: int, tmp_path: Path) -> None:
    """Protects square pictures, which no turn gives another size."""
    assert sum(WORDS in note for note in start(square(tmp_path, orientation)).notes) == count


def test_masks_that_fit_an_image_of_exchanged_sides_leave_no_doubt(tmp_path: Path) -> None:
    """Protects from a warning where the masks show that they were drawn on turned images, or nothing is turned."""
    for name, orientations in (("upright", (1, 1)), ("exchanged", (6, 8)), ("both", (3, 6))):
        assert not [note for note in start(folder(tmp_path / name, *orientations)).notes if WORDS in note]


@pytest.mark.parametrize("ending", [".jpg", ".tif", ".webp", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_says_how_a_picture_is_turned(ending: str, orientation: int, tmp_path: Path) -> None:
    """Protects TIFFs, which Pillow turns itself, and the other kinds: size and orientation of each are read."""
    path = tmp_path / f"a{ending}"
    photograph(path, SIZE, orientation)
    header = image_header(path)
    assert (header.size, header.turn) == (image_size(path), orientation)
    assert header.size == SIZE
