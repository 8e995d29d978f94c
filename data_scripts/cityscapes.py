"""Check a download of Cityscapes (leftImg8bit and gtFine) before training on it.

    python data_scripts/cityscapes.py /path/to/cityscapes [--sample N]

Compares the splits with the published numbers, pairs images with labels, and reads N labels of each split with the
sizes of their images. Exit code 0: as published. 1: something differs; the lines say what.
3: there is no such folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from verify import check_published, verify

from emaseg.data.dataset import Dataset
from emaseg.data.sets.cityscapes import cityscapes
from emaseg.data.sets.published_counts import IMAGES
from emaseg.recipe.data import CityscapesData

__all__ = ["main", "open_split", "verify"]


def open_split(root: Path, split: str) -> Dataset:
    return cityscapes(CityscapesData(kind="cityscapes", root=str(root), eval_split=split), "eval")


def main(arguments: list[str]) -> int:
    return check_published(arguments, __doc__ or "", IMAGES["cityscapes"], open_split)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
