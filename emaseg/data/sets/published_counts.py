"""How many images the splits of the published data sets hold, as their owners count them.

Room: data/sets.
"""

from __future__ import annotations

from emaseg.data.dataset import Phase
from emaseg.recipe.data import CocoVOCData, Data, FolderData, PackedData, ShapesData

IMAGES: dict[str, dict[str, int]] = {
    "voc": {"train": 1_464, "val": 1_449, "trainaug": 10_582, "test": 1_456},
    "ade20k": {"train": 20_210, "val": 2_000, "test": 3_352},
    "cityscapes": {"train": 2_975, "val": 500, "test": 1_525},
    "cocostuff10k": {"train": 9_000, "test": 1_000},
    "cocostuff164k": {"train": 118_287, "val": 5_000},
    "lip": {"train": 30_462, "val": 10_000, "test": 10_000},
    "pascal_context": {"train": 4_998, "val": 5_105},
}


def published_images(data: Data, phase: Phase) -> int | None:
    """Images of the split that a data section reads; None where no number is published (how many of COCO's images
    hold VOC's classes, a list of one's own)."""
    if isinstance(data, FolderData | PackedData | ShapesData | CocoVOCData):
        return None
    return IMAGES[data.kind].get(data.train_split if phase == "train" else data.eval_split)
