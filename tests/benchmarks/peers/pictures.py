"""The pictures and label maps that both sides of the comparison are given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image


def all_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))


def resized(source: Path | None, count: int, size: tuple[int, int], folder: Path, ending: str, first: int = 0) -> Path:
    """`count` pictures of one size, made from those of a folder in turn; noise of many scales where there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = all_in(source) if source else []
    rng, made = np.random.default_rng(0), 0
    while made < count:
        try:
            if not sources:
                raise OSError
            with Image.open(sources[made % len(sources)]) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            if sources:
                del sources[made % len(sources)]
                continue
            picture = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        whole = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        whole.save(folder / f"{first + made:04}{ending}", quality=90)
        made += 1
    return folder


def copies(source: Path, count: int, folder: Path, first: int = 0) -> None:
    """The first `count` pictures of a folder, as they are, in PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = all_in(source)[:count]
    if len(found) < count:
        raise SystemExit(f"{source}: {len(found)} pictures, {count} are needed")
    for made, path in enumerate(found):
        with Image.open(path) as picture:
            picture.convert("RGB").save(folder / f"{first + made:04}.png")


def sizes(folder: Path) -> str:
    """How many pictures of which size a folder holds: "16 of 360x480 and 1 of 1024x2048"."""
    found: Counter[str] = Counter()
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            found[f"{picture.height}x{picture.width}"] += 1
    return " and ".join(f"{count} of {size}" for size, count in found.items())


def draw_labels(images: Path, labels: Path, classes: int) -> None:
    """A label map of 32-pixel blocks for each image."""
    labels.mkdir(exist_ok=True)
    for i, path in enumerate(sorted(images.iterdir())):
        with Image.open(path) as picture:
            width, height = picture.size
        blocks = np.random.default_rng(i).integers(0, classes, (-(-height // 32), -(-width // 32)), dtype=np.uint8)
        whole = blocks.repeat(32, 0).repeat(32, 1)[:height, :width]
        Image.fromarray(whole).save(labels / f"{path.stem}.png")
