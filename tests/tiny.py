"""A recipe that trains in a second, and equality to the bit: all that tests need who have no command line."""

from __future__ import annotations

import torch

from emaseg.recipe import Recipe, parse_recipe

TINY = """
schema = 1
name = "tiny"

[model]
kind = "emanet"
bases = 4
attention_channels = 16
bottleneck_channels = 16
decoder_channels = 16
auxiliary_channels = 8

[backbone]
kind = "resnet14"
output_stride = 8
stem_channels = [8, 8, 8]
width = 8
weights = "none"

[data]
kind = "shapes"
size = [32, 32]
train_images = 20
eval_images = 4

[augment]
crop = [32, 32]
scale = [0.75, 1.25]

[optim]
lr = 0.05

[train]
iterations = 12
batch = 4
workers = 0
evaluate_every = 5
log_every = 2
"""


def tiny(*overrides: str) -> Recipe:
    """The tiny recipe with `--set` values."""
    return parse_recipe(TINY, "tiny.toml", overrides).recipe


def equal(a: object, b: object) -> bool:
    """Bit-for-bit equality of nested checkpoints."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)
