"""Check a download of ADE20K scene parsing (ADEChallengeData2016) before training on it.

    python data_scripts/ade20k.py /path/to/ADEChallengeData2016 [--sample N]

Compares the splits with the published numbers, pairs images with masks, and reads N masks of each split with the
sizes of their images. Exit code 0: as published. 1: something differs; the lines say what.
3: there is no such folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from verify import check_published, verify

from emaseg.data.dataset import Dataset
from emaseg.data.sets.ade20k import ade20k
from emaseg.data.sets.published_counts import IMAGES
from emaseg.recipe.data import ADE20KData

__all__ = ["main", "open_split", "verify"]


def open_split(root: Path, split: str) -> Dataset:
    return ade20k(ADE20KData(kind="ade20k", root=str(root), eval_split=split), "eval")


def main(arguments: list[str]) -> int:
    return check_published(arguments, __doc__ or "", IMAGES["ade20k"], open_split)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
