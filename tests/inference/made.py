"""A tiny network, and images that are made for these tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ["backbone.width=8", "model.attention_channels=16", "model.decoder_channels=16", "model.bottleneck_channels=16"]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 56)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
