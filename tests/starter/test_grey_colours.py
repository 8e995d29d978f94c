"""RGB masks whose colours are grey, or not those of the file that names the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.starter.made import data_of, dry_run, grey, made, start


def equal(*values: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.asarray(grey(*values)(0))[..., None], 3, axis=2))


def test_class_numbers_beside_a_file_of_colours(tmp_path: Path) -> None:
    """Protects cat and dog, the numbers 1 and 2 in three equal channels, from being classes that are in no mask."""
    made(tmp_path, lambda _: equal(0, 1, 2))
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nbackground,0,0,0\ncat,128,0,0\ndog,0,128,0\n")
    started = start(tmp_path)
    data = data_of(started)
    assert (data.classes, data.palette, data.values) == (("background", "cat", "dog"), (), ())
    assert any("read as class numbers, for the colours in class_dict.csv are others" in note for note in started.notes)
    dry_run(started.text)


@pytest.mark.parametrize(
    ("values", "rows", "colours"),
    [
        ((0, 1, 255), ("sky,0,0,0", "car,128,0,0", "void,255,255,255"), False),
        ((0, 60, 128), ("road,255,0,0", "sky,128,128,128", "other,0,0,0"), True),
        ((0, 255), ("other,0,0,0", "car,255,0,0"), False),
        ((0, 255), ("other,0,0,0", "car,255,255,255", "sky,9,9,200"), True),
    ],
)
def test_grey_colours_or_numbers(values: tuple[int, ...], rows: tuple[str, ...], colours: bool, tmp_path: Path) -> None:
    """Protects both readings of greys: most of them in the file, or numbers of its names."""
    made(tmp_path, lambda _: equal(*values))
    (tmp_path / "class_dict.csv").write_text("\n".join(("name,r,g,b", *rows)))
    assert bool(data_of(start(tmp_path)).palette) is colours


@pytest.mark.parametrize(
    ("colour", "words"),
    [((200, 9, 9), "is it the file of other masks?"), ((0, 0, 128), "red and blue exchanged"), ((128, 0, 0), "")],
)
def test_colours_of_another_file_are_a_warning(colour: tuple[int, int, int], words: str, tmp_path: Path) -> None:
    """Protects from classes that no mask holds: a file that states none of the masks' colours is of others."""
    table = np.array([(0, 0, 0), colour], np.uint8)
    made(tmp_path, lambda _: Image.fromarray(table[np.asarray(grey(0, 1)(0))]))
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nbackground,0,0,0\ncat,128,0,0\n")
    warnings = [note for note in start(tmp_path).notes if note.startswith("warning: class_dict.csv states none of")]
    assert [words in note for note in warnings] == [True] * bool(words)
