"""Pictures: what is in the pixels and where, not how it looks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from emaseg import lettering
from emaseg.inference.attention_sheet import sheet as attention_sheet
from emaseg.lettering import lettered
from emaseg.visual import CELL, GAP, contact_sheet, overlay, palette_png, sheet

PALETTE = np.array([[0, 0, 0], [220, 40, 40], [40, 40, 220]], np.uint8)
PLAIN = ImageFont.load_default(13).getname()
CLASSES = ("background", "cat", "a class with a rather long name")


def colours_in(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3)}


def test_palette_png_keeps_the_class_ids() -> None:
    """The file holds ids (what tools read) and shows colours (what people see), 8 bits a pixel."""
    labels = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)
    file = io.BytesIO()
    palette_png(labels, PALETTE).save(file, format="PNG")
    assert file.getvalue()[24] == 8  # the PNG header's bit depth
    with Image.open(file) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), labels)
        rgb = np.asarray(picture.convert("RGB"))
    assert np.array_equal(rgb[0], PALETTE)
    assert tuple(rgb[1, 1]) == (224, 224, 192)


def test_overlay_keeps_the_photograph_below_the_colours() -> None:
    """Inside a region the colour is a blend of photograph and class; borders are bright; the legend is below."""
    image = np.full((60, 90, 3), 100, np.uint8)
    labels = np.zeros((60, 90), np.uint8)
    labels[:, 45:] = 1
    picture = overlay(image, labels, PALETTE, CLASSES)
    assert picture.mode == "RGB"
    assert picture.width == 90
    assert picture.height > 60
    pixels = np.asarray(picture)
    assert (pixels[10, 10] < 100).all()  # black class: darkened
    assert (pixels[10, 10] > 40).all()  # but not hidden
    assert pixels[10, 80, 0] > 100 > pixels[10, 80, 1]
    assert pixels[10, 45].min() > 170
    assert (220, 40, 40) in colours_in(picture.crop((0, 60, 90, picture.height)))


def test_legend_names_what_shows() -> None:
    """Classes below half a percent are left out, unless nothing else is there; ignored pixels are left as they are."""
    image = np.full((40, 100, 3), 90, np.uint8)
    labels = np.ones((40, 100), np.uint8)
    labels[0, :3] = 2
    legend = overlay(image, labels, PALETTE, CLASSES).crop((0, 40, 100, 4000))
    assert (220, 40, 40) in colours_in(legend)
    assert (40, 40, 220) not in colours_in(legend)
    ignored = np.asarray(overlay(image, np.full((40, 100), 255, np.uint8), PALETTE, CLASSES))
    assert (ignored[:40] == 90).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (500, 17), (64, 64)])
def test_any_size_makes_a_picture(size: tuple[int, int]) -> None:
    """No image is too small or too narrow for its legend."""
    labels = (np.arange(size[0] * size[1]) % 3).astype(np.uint8).reshape(size)
    picture = overlay(np.zeros((*size, 3), np.uint8), labels, PALETTE, CLASSES)
    assert picture.width == size[1]
    assert picture.height > size[0]


def test_sheet_shows_truth_and_prediction_in_flat_colours() -> None:
    """Three columns, a row a sample, sizes normalised, ignored pixels hatched in neither class colour."""
    image = np.full((50, 80, 3), 130, np.uint8)
    truth = np.full((50, 80), 1, np.uint8)
    truth[:, :20] = 255
    prediction = np.full((50, 80), 2, np.uint8)
    tall = (np.zeros((90, 30, 3), np.uint8), np.ones((90, 30), np.uint8), np.ones((90, 30), np.uint8))
    picture = sheet([(image, truth, prediction), tall], PALETTE, CLASSES)
    assert picture.width == 3 * CELL + 4 * GAP
    middle = 19 + 2 * GAP + round(CELL * 50 / 80) // 2
    pixels = np.asarray(picture)
    column = [GAP + i * (CELL + GAP) for i in range(3)]
    assert tuple(pixels[middle, column[0] + 200]) == (130, 130, 130)
    assert tuple(pixels[middle, column[1] + 200]) == (220, 40, 40)
    assert tuple(pixels[middle, column[2] + 200]) == (40, 40, 220)
    ignored = {tuple(c) for c in pixels[middle, column[1] + 5 : column[1] + 60]}
    assert ignored == {(255, 255, 255), (190, 190, 190)}


def test_sheet_of_nothing_labelled() -> None:
    """An unlabelled split still gives a page."""
    nothing = np.full((10, 10), 255, np.uint8)
    assert sheet([(np.zeros((10, 10, 3), np.uint8), nothing, nothing)], PALETTE, CLASSES).height > CELL


# ------------------------------------------------------------------------------------------------------- letters
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("sky", "sky"),
        ("Gebäude", "Gebaude"),
        ("trottoir pavé", "trottoir pave"),
        ("a\u00a0b", "a b"),
        ("дорога", "class 3"),
        ("猫 2", "class 3"),
        ("🚗 car", "class 3"),
        ("Łąka", "Laka"),
        ("左 arm", "class 3"),
        ("α-phase", "class 3"),
    ],
)
def test_without_another_font_names_stay_readable(name: str, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects legends from boxes: Pillow's own font has ASCII; accents go, and a number stands for other scripts, since without
    some of their letters two names could read alike."""
    monkeypatch.setattr(lettering, "_installed", tuple)
    text, font = lettered(name, 13, "class 3")
    assert (text, font.getname()) == (written, PLAIN)


@pytest.mark.skipif(not lettering._installed(), reason="no font of those that are tried is installed")
def test_a_font_of_the_system_writes_what_it_has() -> None:
    """Protects names as their owners write them, and pictures from a font that draws boxes just as well."""
    text, font = lettered("Gebäude", 13, "class 3")
    assert (text, font.getname() != PLAIN) == ("Gebäude", True)
    assert lettered("\U000f0000", 13, "class 3")[0] == "class 3"


def test_fonts_are_looked_for_in_the_systems_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a file of the current folder, which may be anybody's, and from one that is damaged."""
    (tmp_path / "fonts").mkdir()
    for place in ("DejaVuSans.ttf", "fonts/Arial.ttf"):
        (tmp_path / place).write_bytes(b"no font")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lettering, "_folders", lambda: [tmp_path / "fonts", tmp_path / "none"])
    opened: list[str] = []
    monkeypatch.setattr(lettering, "_opens", lambda path: opened.append(path))
    assert lettering._installed.__wrapped__() == ()
    assert opened == [str(tmp_path / "fonts/Arial.ttf")]
    monkeypatch.undo()
    assert not lettering._opens(opened[0])


def test_every_picture_writes_other_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects all of them: legend, sheet, contact sheet and attention maps look as with the names that are written."""
    monkeypatch.setattr(lettering, "_installed", tuple)
    image, labels = np.full((60, 90, 3), 100, np.uint8), np.zeros((60, 90), np.uint8)
    maps = np.ones((1, 1, 2, 3), np.float32)

    def pictures(name: str, caption: str) -> list[bytes]:
        return [
            overlay(image, labels, PALETTE[:1], [name]).tobytes(),
            sheet([(image, labels, labels)], PALETTE[:1], [name]).tobytes(),
            contact_sheet([(Image.fromarray(image), caption)], PALETTE[:1], [name], 90).tobytes(),
            attention_sheet(image, maps, [(0, name, "")], ["1"]).tobytes(),
        ]

    assert pictures("дорога", "дорога") == pictures("class 0", "image 1")
    assert pictures("größe", "größe") == pictures("grosse", "grosse")
