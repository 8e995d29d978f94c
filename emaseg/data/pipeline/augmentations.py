"""Augmentations that no published row has: turned images, and what cameras and files do to pixels.

Room: data/pipeline. Legend: h w crop.

Each is drawn only where the recipe gives it a probability, so a recipe without them draws the same numbers as ever.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.data.dataset import Box, Pixels
from emaseg.recipe.training import Augment

Array = TypeVar("Array", npt.NDArray[np.uint8], npt.NDArray[np.float32], Pixels)


@dataclass(frozen=True, slots=True)
class Turned:
    """How a crop lies in comparison to its image: first mirrored, then upended, then turned counter-clockwise.

    mirrored: left and right are swapped. upended: top and bottom are. turns: quarters, 0 to 3.
    """

    mirrored: bool = False
    upended: bool = False
    turns: int = 0

    @property
    def reflected(self) -> bool:
        """Whether left hands look like right ones."""
        return self.mirrored != self.upended

    def pixels(self, x: Array) -> Array:
        """(h, w, ...) that is mirrored already, upended and turned: no value is computed."""
        if not self.upended and not self.turns:
            return x
        return np.ascontiguousarray(np.rot90(x[::-1] if self.upended else x, self.turns))  # type: ignore[return-value]

    def place(self, box: Box, side: tuple[int, int]) -> Box:
        """Where a box of a canvas of `side` (height, width) lies once the canvas is treated likewise.

        With an odd number of turns the canvas must be square.
        """
        top, left, height, width = box
        if self.mirrored:
            left = side[1] - width - left
        if self.upended:
            top = side[0] - height - top
        for _ in range(self.turns):
            top, left, height, width = side[0] - left - width, top, width, height
        return top, left, height, width


def draw_turned(augment: Augment, mirrored: bool, rng: np.random.Generator) -> Turned:
    """The vertical mirror image, and a turn by 90, 180 or 270 degrees, each of them as likely."""
    upended = augment.vertical_flip > 0 and rng.random() < augment.vertical_flip
    turned = augment.quarter_turns > 0 and rng.random() < augment.quarter_turns
    return Turned(mirrored, bool(upended), int(rng.integers(1, 4)) if turned else 0)


def degrade(image: Pixels, augment: Augment, rng: np.random.Generator) -> Pixels:
    """Blur, noise and JPEG, in the order in which a camera adds them; each with its probability, its strength uniform.

    Args:
        image: (h, w, C); for JPEG uint8 RGB, which a recipe's rules see to.
    """
    if augment.blur > 0 and rng.random() < augment.blur:
        image = blur(image, rng.uniform(*augment.blur_sigma))
    if augment.noise > 0 and rng.random() < augment.noise:
        image = add_noise(image, rng.uniform(*augment.noise_levels), rng)
    if augment.jpeg > 0 and rng.random() < augment.jpeg:
        low, high = augment.jpeg_quality
        image = through_jpeg(image, int(rng.integers(low, high + 1)))
    return image


def blur(image: Pixels, sigma: float) -> Pixels:
    """Gaussian blur, cut off at 4 sigma; beyond the border is what the border shows. sigma: pixels."""
    from scipy import ndimage  # prediction, which reads this file's neighbours, has no use for it

    smooth: npt.NDArray[np.float32] = ndimage.gaussian_filter(
        image.astype(np.float32), (sigma, sigma, 0), mode="nearest"
    )
    return _as_before(smooth, image)


def add_noise(image: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """Gaussian noise, of its own on each channel; deviation: levels of 0..255."""
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(deviation)
    return _as_before((image + noise).astype(np.float32, copy=False), image)


def _as_before(values: npt.NDArray[np.float32], image: Pixels) -> Pixels:
    """Values on 0..255 in the type of the image: rounded where it has 8 bits."""
    if image.dtype == np.uint8:
        return np.rint(values).clip(0, 255).astype(np.uint8)
    return values.clip(0, 255)


def through_jpeg(image: Pixels, quality: int) -> Pixels:
    """Saved as a JPEG file of that quality, 1 to 100, with halved colours, and read again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(file, formats=["JPEG"]))
