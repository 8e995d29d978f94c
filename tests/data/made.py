"""Tiny files for the tests of the data sets' readers, and what their errors must say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.errors import UserError


def image(path: Path, size: tuple[int, int] = (2, 3)) -> Path:
    """A grey picture of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 90, 90)).save(path)
    return path


def label(path: Path, values: list[int], size: tuple[int, int] = (2, 3)) -> Path:
    """A one-channel PNG of (height, width) that holds `values`, repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), size)).save(path)
    return path


def fails(call: Callable[[], object], error: type[UserError], *words: str) -> None:
    """The call raises `error` with a remedy, and message or remedy hold all of `words`."""
    with pytest.raises(error) as caught:
        call()
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message + "\n" + caught.value.hint


def real(part: str) -> Path:
    """A folder of the image collection of EMASEG_TEST_DATA."""
    top = os.environ.get("EMASEG_TEST_DATA")
    if not top:
        pytest.skip("EMASEG_TEST_DATA is not set")
    return Path(top, part)
