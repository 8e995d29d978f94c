"""`shapes`: drawn scenes whose classes are told apart by shape alone. Needs no files.

Room: data/sets. Legend: H W image.

Every object gets a colour drawn from the same distribution, whatever its class, and so does the background: a
classifier that sees one pixel's colour can hardly do better than chance, a network has to see the outline. Colours
vary inside an object (a linear ramp) and pixel noise is added, so that an object is not one flat value either.
An image is a pure function of (seed, phase, index).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emaseg.data.dataset import MemorySample, Phase, Sample, UInt8
from emaseg.data.label_sets import label_set
from emaseg.recipe.data import ShapesData

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_PHASES = {"train": 0, "eval": 1}
OBJECTS = 4  # tries to place one
TILT = np.pi / 15  # largest turn of a square or triangle


@dataclass(frozen=True, slots=True)
class Shapes:
    """The drawings of one phase, "train" or "eval", as a data set."""

    data: ShapesData
    phase: Phase

    @property
    def classes(self) -> tuple[str, ...]:
        return label_set(self.data).classes

    @property
    def palette(self) -> UInt8:
        return label_set(self.data).palette

    @property
    def layout(self) -> str:
        return ""

    def __len__(self) -> int:
        return self.data.train_images if self.phase == "train" else self.data.eval_images

    def name(self, index: int) -> str:
        return f"shapes/{self.phase}/{index:05d}"

    @property
    def withheld_by(self) -> str:
        return ""

    @property
    def common_files(self) -> tuple[Path, ...]:
        return ()

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def open(self, index: int) -> Sample:
        rng = np.random.default_rng((self.data.seed, _PHASES[self.phase], index))
        image, label = draw(rng, self.data.size)
        return MemorySample(self.name(index), image, label)


def shapes(data: ShapesData, phase: Phase) -> Shapes:
    """The drawings of one phase."""
    return Shapes(data, phase)


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """One scene: image (H, W, 3) uint8 RGB and label (H, W) uint8 with 0 background, 1 disc, 2 square, 3 triangle,
    4 ring. An object that would overlap an earlier one is left out."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    background = _colour(rng)
    image = _paint(rng, background, x / width, y / height)
    label = np.zeros(size, np.uint8)
    placed: list[tuple[float, float, float]] = []  # centre and radius of each object
    for _ in range(OBJECTS):
        kind = int(rng.integers(1, 5))
        radius = float(rng.uniform(0.19, 0.29)) * min(size)
        cx = float(rng.uniform(radius, width - radius))
        cy = float(rng.uniform(radius, height - radius))
        if any(np.hypot(cx - ox, cy - oy) < radius + other for ox, oy, other in placed):
            continue
        placed.append((cx, cy, radius))
        inside = _SHAPES[kind](rng, (x - cx) / radius, (y - cy) / radius)
        colours = _paint(rng, _colour(rng, background), x / width, y / height)
        image[inside] = colours[inside]
        label[inside] = kind
    image += rng.normal(0, 4, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _colour(rng: np.random.Generator, other: Floats | None = None) -> Floats:
    """A random colour; with `other`, one that the eye can tell from it."""
    while True:
        colour: Floats = rng.uniform(20, 235, 3).astype(np.float32)
        if other is None or float(np.abs(colour - other).max()) > 60:
            return colour


def _paint(rng: np.random.Generator, colour: Floats, u: Floats, v: Floats) -> Floats:
    """(H, W, 3): `colour` on 0..255 with a random linear ramp across the image."""
    ramp: Floats = rng.uniform(-30, 30, (2, 3)).astype(np.float32)
    painted: Floats = colour + (u - 0.5)[..., None] * ramp[0] + (v - 0.5)[..., None] * ramp[1]
    return painted


def _disc(_: np.random.Generator, u: Floats, v: Floats) -> Mask:
    return np.asarray(u * u + v * v <= 1.0)


def _ring(_: np.random.Generator, u: Floats, v: Floats) -> Mask:
    r = u * u + v * v
    return np.asarray((r <= 1.0) & (r >= 0.25))


def _square(rng: np.random.Generator, u: Floats, v: Floats) -> Mask:
    u, v = _turn(u, v, float(rng.uniform(-TILT, TILT)))
    return np.asarray(np.maximum(np.abs(u), np.abs(v)) <= 0.8)


def _triangle(rng: np.random.Generator, u: Floats, v: Floats) -> Mask:
    u, v = _turn(u, v, float(rng.uniform(-TILT, TILT)) + np.pi / 2)
    third = 2 * np.pi / 3
    return np.asarray(np.maximum.reduce([u * np.cos(k * third) + v * np.sin(k * third) for k in range(3)]) <= 0.55)


def _turn(u: Floats, v: Floats, angle: float) -> tuple[Floats, Floats]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * u + s * v, c * v - s * u


_SHAPES = {1: _disc, 2: _square, 3: _triangle, 4: _ring}
