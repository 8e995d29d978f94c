"""Indexed masks whose palettes differ from file to file: the colours are the classes, as the warning of init says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.files.mask_values import Colour
from emaseg.errors import DataError
from tests.convert import made
from tests.convert.made import SIZE, masks, run, write

BLACK, RED, GREEN = (0, 0, 0), (200, 0, 0), (0, 200, 0)


def pair(root: Path, stem: str, numbers: Sequence[int], palette: Sequence[Colour]) -> None:
    """An image, and a mask with stripes of these numbers; palette: () = none."""
    made.photo(root / f"images/{stem}.jpg")
    label = np.zeros(SIZE, np.uint8)
    for place, number in enumerate(numbers):
        label[8 * place : 8 * place + 8] = number
    mask = Image.fromarray(label)
    if palette:
        mask.putpalette([part for colour in palette for part in colour])
    (root / "masks").mkdir(parents=True, exist_ok=True)
    mask.save(root / f"masks/{stem}.png")


def names_file(root: Path) -> None:
    write(root / "class_dict.csv", "name,r,g,b\nground,0,0,0\nrust,200,0,0\nmoss,0,200,0\n")


def test_palettes_with_one_object_colour_each(tmp_path: Path) -> None:
    """Protects rust and moss from becoming one class, number 1: each file has black and the colour of its object."""
    root = tmp_path / "in"
    for place in range(6):
        pair(root, str(place), [0, 1], [BLACK, RED if place % 2 else GREEN])
    names_file(root)
    run(root, tmp_path / "out")
    assert [sorted(set(mask.ravel().tolist())) for mask in masks(tmp_path / "out").values()] == [[0, 2], [0, 1]] * 3


@pytest.mark.parametrize("bare", [0, 5])
def test_an_empty_mask_without_a_palette(bare: int, tmp_path: Path) -> None:
    """Protects the classes from a grey mask of zeros, wherever it stands: many tools write empty masks so."""
    root = tmp_path / "in"
    for place in range(6):
        colours = [BLACK, RED, GREEN] if place % 2 else [BLACK, GREEN, RED]
        pair(root, str(place), [0] if place == bare else [0, 1, 2], () if place == bare else colours)
    names_file(root)
    run(root, tmp_path / "out")
    found = masks(tmp_path / "out")
    assert not found[str(bare)].any()
    for place in {*range(6)} - {bare}:
        assert found[str(place)][8:24:8, 0].tolist() == ([1, 2] if place % 2 else [2, 1])


def test_a_palette_that_is_rare_is_found(tmp_path: Path) -> None:
    """Protects from refusing what init's warning advises, where one mask of many has another palette."""
    root = tmp_path / "in"
    for place in range(40):
        pair(root, f"{place:02}", [0, 1], [BLACK, GREEN if place == 7 else RED])
    names_file(root)
    run(root, tmp_path / "out")
    assert masks(tmp_path / "out")["07"].max() == 2


def test_numbers_without_a_palette_among_colours(tmp_path: Path) -> None:
    """Protects from a class of the colour (1, 1, 1): what a number means in a mask without a palette is not known."""
    root = tmp_path / "in"
    for place in range(5):
        pair(root, str(place), [0, 1], [BLACK, RED if place % 2 else GREEN])
    pair(root, "x", [0, 1], ())
    with pytest.raises(DataError, match=r"x\.png: has no palette"):
        run(root, tmp_path / "out")
