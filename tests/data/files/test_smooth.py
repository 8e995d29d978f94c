"""Recognising smooth edges: in bands of rows as in the whole mask, and within a memory that does not grow with it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from emaseg.data.files import smooth
from emaseg.data.files.smooth import Blend, find_blend


def smoothed(size: int, *, coloured: bool) -> np.ndarray:
    """Areas of two classes with edges of three values in between."""
    area = np.add.outer(np.arange(size), np.arange(size)) % 40
    steps = np.array([0] * 17 + [60, 120, 180] + [255] * 17 + [180, 120, 60])
    values = steps[area]
    return (values << 16 | 255 - values).astype(np.uint32) if coloured else values.astype(np.uint8)


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("pixels", [1, 7 * 83, 1 << 18])
def test_bands_find_what_the_whole_mask_shows(pixels: int, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the verdict from where a band ends: an edge at its border has its neighbours."""
    mask = smoothed(83, coloured=coloured)
    monkeypatch.setattr(smooth, "_PIXELS", pixels)
    between = {60, 120, 180} if not coloured else {v << 16 | 255 - v for v in (60, 120, 180)}
    count = int(np.isin(mask, list(between)).sum())
    assert find_blend(mask, coloured=coloured) == Blend(count, mask.size, tuple(sorted(between)))
    assert find_blend(np.where(mask > 0, 5, mask)) is None


@pytest.mark.parametrize("coloured", [False, True])
def test_memory_does_not_grow_with_the_mask(coloured: bool) -> None:
    """Protects init with large masks, several of which are looked at at once: 100 bytes for each pixel were 4 GB."""
    mask = smoothed(2000, coloured=coloured)
    tracemalloc.start()
    try:
        assert find_blend(mask, coloured=coloured) is not None
        assert tracemalloc.get_traced_memory()[1] < 15 * mask.size
    finally:
        tracemalloc.stop()
