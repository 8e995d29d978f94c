"""Check a download of PASCAL Context before training on it.

    python data_scripts/pascal_context.py /path/to/VOC2010 [--sample N] [--numbering detail|owners]

Compares the splits with the published numbers, pairs images with labels, and reads N labels of each split with the
sizes of their images. Look at the histogram: the two numberings of label files cannot be told apart by their values,
but with the wrong one sky, grass and person are no longer the most frequent classes. Exit code 0: as published.
1: something differs; the lines say what. 3: there is no such folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from verify import parser, verify

from emaseg.data.dataset import Dataset
from emaseg.data.sets.pascal_context import pascal_context
from emaseg.data.sets.published_counts import IMAGES
from emaseg.recipe.data import PascalContextData


def open_split(root: Path, split: str, numbering: Literal["detail", "owners"]) -> Dataset:
    data = PascalContextData(kind="pascal_context", root=str(root), eval_split=split, numbering=numbering)
    return pascal_context(data, "eval")


def main(arguments: list[str]) -> int:
    known = parser(__doc__ or "")
    known.add_argument("--numbering", choices=("detail", "owners"), default="detail", help="as data.numbering")
    given = known.parse_args(arguments)
    root = given.root.resolve()
    return verify(
        root, IMAGES["pascal_context"], lambda top, split: open_split(top, split, given.numbering), given.sample
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
