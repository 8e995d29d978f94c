"""Folders of images that are not 8-bit RGB, and small recipes for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.recipe import Recipe, parse_recipe

SIZE = (48, 64)
Image3 = npt.NDArray[np.generic]
Save = Callable[[Path, Image3], None]  # writes an image (H, W, C)

SMALL = """
schema = 1
name = "small"
[model]
kind = "emanet"
bases = 8
attention_channels = 32
bottleneck_channels = 32
decoder_channels = 32
auxiliary_channels = 0
[backbone]
kind = "resnet14"
output_stride = 16
width = 8
stem_channels = [8, 8, 16]
weights = "none"
[data]
kind = "folder"
train_images = "train"
train_masks = "train_masks"
eval_images = "val"
eval_masks = "val_masks"
classes = ["ground", "thing"]
root = "."
[augment]
crop = [48, 64]
photometric = "none"
[optim]
lr = 0.05
[train]
iterations = 2
batch = 2
workers = 0
[inference]
"""


def as_tiff(path: Path, image: Image3) -> None:
    import tifffile

    tifffile.imwrite(path.with_suffix(".tif"), image, photometric="minisblack", planarconfig="contig")


def as_npy(path: Path, image: Image3) -> None:
    np.save(path.with_suffix(".npy"), image)


def as_grey_png(path: Path, image: Image3) -> None:
    Image.fromarray(image[..., 0]).save(path.with_suffix(".png"))


def drawn(channels: int, dtype: type[np.generic], white: float, seed: int) -> tuple[Image3, npt.NDArray[np.uint8]]:
    """An image (H, W, C) with a thing that is brighter in its last channel, and the thing's mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    top, left = rng.integers(4, 20), rng.integers(4, 30)
    mask[top : top + 24, left : left + 28] = 1
    image = rng.uniform(0, 0.4 * white, (*SIZE, channels))
    image[..., -1] += 0.5 * white * mask
    return image.astype(dtype), mask


def folder(root: Path, save: Save, channels: int, dtype: type[np.generic], white: float, count: int = 4) -> Path:
    """train, train_masks, val and val_masks below `root`."""
    for part, (split, number) in enumerate((("train", count), ("val", 2))):
        for name in (split, f"{split}_masks"):
            (root / name).mkdir(parents=True)
        for index in range(number):
            image, mask = drawn(channels, dtype, white, 100 * part + index)
            save(root / split / str(index), image)
            Image.fromarray(mask).save(root / f"{split}_masks" / f"{index}.png")
    return root


def text_of(root: Path, *overrides: str) -> str:
    """A recipe file's text for such a folder."""
    from emaseg.recipe import recipe_to_toml

    return recipe_to_toml(recipe_of(root, *overrides))


def recipe_of(root: Path, *overrides: str) -> Recipe:
    return parse_recipe(SMALL, "small", [f"data.root={json.dumps(str(root))}", *overrides]).recipe


def channels(count: int, *, mean: float = 100, std: float = 60) -> Sequence[str]:
    """The --set values that declare so many channels."""
    return (
        f"backbone.in_channels={count}",
        f"backbone.mean={[mean] * count}",
        f"backbone.std={[std] * count}",
    )
