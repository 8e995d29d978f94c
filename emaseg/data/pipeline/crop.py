"""Where a training crop is cut: windows are drawn until one holds no class on too much of it.

Room: data/pipeline. Legend: H W image height and width, h w crop.
"""

from __future__ import annotations

import numpy as np
import torch

from emaseg.data.dataset import Box, UInt8
from emaseg.data.pipeline.resize import Size, as_tensor, resize_label
from emaseg.recipe.data import IGNORE
from emaseg.recipe.training import Augment


def draw_crop(label: UInt8, size: Size, augment: Augment, rng: np.random.Generator) -> tuple[Box, UInt8]:
    """Where to crop the resized sample: the first acceptable window, or the last of augment.crop_draws.

    Only windows are ever resized, not the whole label.

    Args:
        label: (H, W) before resizing.
        size: of the resized label.

    Returns:
        The window, as large as augment.crop or as the resized label where that is smaller, and its label.
    """
    height, width = (min(side, crop) for side, crop in zip(size, augment.crop, strict=True))
    for draw in range(1, augment.crop_draws + 1):
        top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        window = (top, left, height, width)
        window_label = resize_label(label, size, window)
        if draw == augment.crop_draws or acceptable(window_label, augment.max_class_share):
            break
    return window, window_label


def acceptable(label: UInt8, max_class_share: float) -> bool:
    """Whether a crop holds two classes or more, each on less than `max_class_share` of its labelled pixels.

    A share of 1 accepts every crop.
    """
    if max_class_share >= 1.0:
        return True
    labelled = int(np.count_nonzero(label != IGNORE))
    if not labelled:
        return False
    # The classes below a middle one, that one, and those above it: as a rule none of the three groups holds too much,
    # so neither does a class, and comparing all pixels twice takes a fifth of the time of counting every class.
    some = label[::16, ::16]
    some = np.sort(some[some != IGNORE])
    middle = some[some.size // 2] if some.size else 0
    below, at = int(np.count_nonzero(label < middle)), int(np.count_nonzero(label == middle))
    largest = max(below, at, labelled - below - at)
    if largest / labelled >= max_class_share > at / labelled:
        largest = int(torch.bincount(as_tensor(label).flatten(), minlength=IGNORE + 1)[:IGNORE].max())
    return largest / labelled < max_class_share  # which is below 1, so that two classes are there
