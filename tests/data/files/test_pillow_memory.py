"""Pillow's memory, lent: the picture's own pixels, for as long as they are looked at, and copied where they are not lent."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from PIL import Image

from emaseg.data.dataset import UInt8, Words
from emaseg.data.files.pillow_memory import words_of

LENDS = hasattr(Image.Image, "__arrow_c_array__")  # from Pillow 11.3 on
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


@pytest.mark.skipif(not LENDS, reason="this Pillow does not lend its memory")
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
    monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    picture, pixels = picture_of(40, 50)
    words, top, left = words_of(picture, BOX)
    assert words.shape == BOX[2:]
    check_box(words, top, left, pixels)
