"""Check a download of COCO 2017 before pre-training on it as VOC's 21 classes, and make the index of its annotations.

    python data_scripts/coco_voc.py /path/to/COCO [--sample N]

Counts the images of each split, finds those that hold enough of VOC's classes (minutes at the first time), and draws
the labels of N of them with the sizes of their images. Exit code 0: complete. 1: something differs; the lines say what.
3: there is no such folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from verify import parser

from emaseg.data.checks import check_dataset
from emaseg.data.sets.coco_voc import coco_voc
from emaseg.data.sets.trees import files_below
from emaseg.errors import DataError, UserError
from emaseg.recipe.data import CocoVOCData

PUBLISHED = {"train": 118_287, "val": 5_000}  # images of COCO; how many hold VOC's classes is nowhere published


def check(root: Path, split: str, sample: int) -> str:
    """One line on a split; it starts with "ok" when everything agrees."""
    try:
        dataset = coco_voc(CocoVOCData(kind="coco_voc21", root=str(root), eval_split=split), "eval")
        report = check_dataset(dataset, limit=sample or len(dataset))
        images = len(files_below(Path(dataset.name(0)).parent, ".jpg").files)
    except UserError as error:
        return f"{split}: {error.message}\n  try: {error.hint}"
    if images != PUBLISHED[split]:
        return f"{split}: {images:,} images, published are {PUBLISHED[split]:,}"
    total = sum(report.class_pixels)
    shares = (
        f"{name} {100 * pixels / total:.1f} %"
        for name, pixels in zip(dataset.classes, report.class_pixels, strict=True)
    )
    return (
        f"ok {split}: {report.images:,} of {images:,} images hold enough of VOC's classes; "
        f"{report.checked:,} labels drawn: {', '.join(shares)}"
    )


def main(arguments: list[str]) -> int:
    given = parser(__doc__ or "").parse_args(arguments)
    root = given.root.resolve()
    if not root.is_dir():
        print(f"error: {root}: no such folder", file=sys.stderr)
        return DataError.exit_code
    lines = [check(root, split, given.sample) for split in PUBLISHED]
    print("\n".join(lines))
    return 0 if all(line.startswith("ok") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
