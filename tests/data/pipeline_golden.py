"""The synthetic sample and the golden numbers of the pipeline tests.

Golden: what the published system's own transforms gave for this sample with OpenCV 4.5.5.
Arrays hold every n-th pixel; whole results are given by their SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from emaseg.data.dataset import UInt8
from emaseg.data.files import images, label_files, region
from emaseg.data.pipeline import resize
from emaseg.data.pipeline.transforms import Batch, Crop, collate, normalise_batch
from emaseg.recipe import Augment, PixelStats
from tests.parity import GOLDEN, golden

ARRAYS = golden("pipeline.npz")
FACTS: dict[str, Any] = json.loads((GOLDEN / "pipeline.json").read_text())
STATS = PixelStats((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def batch_of(crops: Sequence[Crop], augment: Augment) -> Batch:
    """The batch of some crops, on the CPU."""
    return normalise_batch(collate(crops, len(crops), augment), STATS, torch.device("cpu"))


def sample_image(height: int, width: int) -> UInt8:
    """(H, W, 3): ramps, an interference pattern and a chequerboard, different in each channel."""
    y, x = np.mgrid[:height, :width]
    grey = 3 * x + 5 * y + ((x * y) >> 5) + 40 * (((x >> 4) + (y >> 4)) & 1)
    return ((grey[..., None] + 70 * np.arange(3)) % 256).astype(np.uint8)


def sample_label(height: int, width: int) -> UInt8:
    """(H, W): blocks of 21 classes, crossed by ignored diagonals."""
    y, x = np.mgrid[:height, :width]
    label = ((x // 23) * 3 + (y // 19) * 5) % 21
    label[(x + y) % 50 < 2] = 255
    return label.astype(np.uint8)


def sha256(array: UInt8) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


@contextlib.contextmanager
def without_opencv() -> Iterator[None]:
    """As where it is not installed."""
    with contextlib.ExitStack() as stack:
        for module, name in (
            (resize, "_opencv_resize"),
            (images, "opencv"),
            (region, "jpeg_decoder"),
            (region, "png_decoder"),
            (label_files, "numbers_decoder"),
        ):
            stack.enter_context(mock.patch.object(module, name, _nothing))
        yield


def _nothing() -> None:
    """In the place of a decoder that is not there. A mock would count its calls, for 10 us each."""
