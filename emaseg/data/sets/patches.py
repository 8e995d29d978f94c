"""Scenes of square patches; the class of most of them is told by other patches of the same colour. Needs no files.

Room: data/sets. Legend: H W image, G groups.

Each image has three groups of patches, each in a colour of its own, drawn anew for every image. The pattern on a few
patches of a group (horizontal stripes, vertical stripes or checks) is the class of all patches of that group; the others
are plain. What a patch looks like says nothing about its class, and no colour means the same in two images: a network
has to find the groups of each image by itself. EM attention does that; it is what `recipes/demo_bases.toml` shows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SIDE = 16  # pixels of a patch
GROUPS = 3
SHARE = 0.2  # of a group's patches, rounded up, that carry the pattern
_BAR, _CONTRAST, _NOISE = 4, 45, 6  # pixels of a stripe; grey levels up and down; standard deviation
_APART = 80  # grey levels in one channel, at least, between the colours of two groups


def draw_patches(rng: np.random.Generator, size: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """One scene: image (H, W, 3) uint8 RGB and label (H, W) uint8 with 0 horizontal, 1 vertical, 2 checks."""
    height, width = size
    rows, columns = -(-height // SIDE), -(-width // SIDE)
    colours = _colours(rng)
    patterns = rng.permutation(GROUPS)  # of each group: its class
    image = np.zeros((rows * SIDE, columns * SIDE, 3), np.float32)
    label = np.zeros(image.shape[:2], np.uint8)
    count = rows * columns
    for number, place in enumerate(rng.permutation(count).tolist()):
        group, rank = number % GROUPS, number // GROUPS
        top, left = SIDE * (place // columns), SIDE * (place % columns)
        patch = np.s_[top : top + SIDE, left : left + SIDE]
        image[patch] = colours[group]
        if rank < SHARE * count / GROUPS:
            image[patch] += _CONTRAST * _pattern(rng, int(patterns[group]))[..., None]
        label[patch] = patterns[group]
    image += rng.normal(0, _NOISE, image.shape).astype(np.float32)
    return np.clip(image[:height, :width], 0, 255).astype(np.uint8), np.ascontiguousarray(label[:height, :width])


def _colours(rng: np.random.Generator) -> Floats:
    """(G, 3), each pair well apart."""
    while True:
        colours = rng.uniform(20, 235, (GROUPS, 3)).astype(np.float32)
        distances = np.abs(colours[:, None] - colours[None]).max(axis=2)
        if distances[np.triu_indices(GROUPS, 1)].min() > _APART:
            return colours


def _pattern(rng: np.random.Generator, kind: int) -> Floats:
    """(SIDE, SIDE) of -1 and 1, at a random offset."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] + int(rng.integers(0, 2 * _BAR))
    lines, posts = y // _BAR, x // _BAR
    signs: Floats = np.where((lines, posts, lines + posts)[kind] % 2, 1, -1).astype(np.float32)
    return signs
