"""Check a download of COCO-Stuff before training on it.

    python data_scripts/cocostuff.py /path/to/cocostuff-10k-v1.1 --set 10k [--sample N]
    python data_scripts/cocostuff.py /path/to/cocostuff --set 164k [--sample N]

Compares the splits with the published numbers, pairs images with labels, and reads N labels of each split with the
sizes of their images; the histogram is that of all 182 categories, of which eleven were never annotated.
Exit code 0: as published. 1: something differs; the lines say what.
3: there is no such folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from verify import parser, verify

from emaseg.data.dataset import Dataset
from emaseg.data.sets.cocostuff import cocostuff
from emaseg.data.sets.published_counts import IMAGES
from emaseg.recipe.data import CocoStuffData

PUBLISHED = {"10k": IMAGES["cocostuff10k"], "164k": IMAGES["cocostuff164k"]}


def open_10k(root: Path, split: str) -> Dataset:
    return cocostuff(CocoStuffData(kind="cocostuff10k", root=str(root), num_classes=182, eval_split=split), "eval")


def open_164k(root: Path, split: str) -> Dataset:
    return cocostuff(CocoStuffData(kind="cocostuff164k", root=str(root), num_classes=182, eval_split=split), "eval")


def main(arguments: list[str]) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--set", choices=tuple(PUBLISHED), required=True, help="which of the two sets")
    given = options.parse_args(arguments)
    opener = open_10k if given.set == "10k" else open_164k
    return verify(given.root.resolve(), PUBLISHED[given.set], opener, given.sample)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
