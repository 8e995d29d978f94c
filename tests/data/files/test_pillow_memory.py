"""Pillow's memory, lent: the picture's own pixels, for as long as they are looked at, and copied where they are not lent."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.dataset import UInt8, Words
from emaseg.data.files import pillow_memory
from emaseg.data.files.pillow_memory import words_of

ROOT = Path(__file__).parents[3]
BOX = (3, 5, 20, 30)


def picture_of(height: int, width: int) -> tuple[Image.Image, UInt8]:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels), pixels


def check_box(words: Words, top: int, left: int, pixels: UInt8) -> None:
    y, x, height, width = BOX
    seen = words[y - top :, x - left :][:height, :width]
    np.testing.assert_array_equal(
        np.stack([seen >> 8 * lane & 255 for lane in range(3)], 2), pixels[y:, x:][:height, :width]
    )
    assert not words.flags.writeable


def check_rows() -> None:
    assert Image.core.get_alignment() == 64
    picture, pixels = picture_of(40, 50)
    check_box(*words_of(picture, BOX), pixels)


@pytest.mark.skipif(not pillow_memory._LENDS, reason="this Pillow does not lend its memory")
def test_it_is_the_pictures_own_memory_and_stays_when_the_picture_goes() -> None:
    picture, pixels = picture_of(40, 50)
    words, top, left = words_of(picture, BOX)
    assert (top, left, words.shape) == (0, 0, (BOX[0] + BOX[2], 50))
    again, _, _ = words_of(picture, BOX)
    assert again.ctypes.data == words.ctypes.data
    del picture, again
    gc.collect()
    others = [picture_of(40, 50)[0] for _ in range(50)]  # they would take the memory, were it free
    check_box(words, top, left, pixels)
    assert len(others) == 50


def test_a_picture_in_several_pieces_is_copied_and_only_its_box() -> None:
    picture, pixels = picture_of(2100, 2100)  # Pillow's pieces have up to 16 MB
    words, top, left = words_of(picture, BOX)
    assert (top, left, words.shape) == (*BOX[:2], BOX[2:])
    check_box(words, top, left, pixels)


def test_a_pillow_that_lends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_memory, "_LENDS", False)
    picture, pixels = picture_of(40, 50)
    words, top, left = words_of(picture, BOX)
    assert words.shape == BOX[2:]
    check_box(words, top, left, pixels)


def test_rows_that_do_not_lie_one_after_the_other() -> None:
    """PILLOW_ALIGNMENT pads the rows; older versions lend them nevertheless."""
    code = "from tests.data.files.test_pillow_memory import check_rows; check_rows()"
    environment = {**os.environ, "PILLOW_ALIGNMENT": "64"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
