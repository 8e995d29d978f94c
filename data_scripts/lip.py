"""Check a download of Look Into Person before training on it.

    python data_scripts/lip.py /path/to/LIP [--sample N]

Compares the splits with the published numbers, pairs images with masks, and reads N masks of each split with the
sizes of their images. Exit code 0: as published. 1: something differs; the lines say what.
3: there is no such folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from verify import check_published, verify

from emaseg.data.dataset import Dataset
from emaseg.data.sets.lip import lip
from emaseg.data.sets.published_counts import IMAGES
from emaseg.recipe.data import LIPData

__all__ = ["main", "open_split", "verify"]


def open_split(root: Path, split: str) -> Dataset:
    return lip(LIPData(kind="lip", root=str(root), eval_split=split), "eval")


def main(arguments: list[str]) -> int:
    return check_published(arguments, __doc__ or "", IMAGES["lip"], open_split)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
