"""Check a download of PASCAL VOC 2012 with SBD before training on it; if wanted, turn SBD's .mat files into PNGs.

    python data_scripts/voc.py /path/to/VOC2012 [--sample N] [--png]

Compares the splits with the published numbers, pairs images with masks, and reads N masks of each split with the
sizes of their images. --png first writes SegmentationClassAug/<id>.png for each image of trainaug whose mask is a
.mat file, for programs that read PNGs only (training here reads both). It may be interrupted and started again; masks
that are there are left alone. Exit code 0: as published. 1: something differs; the lines say what.
3: there is no such folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from verify import parser, verify

from emaseg.data.files.label_files import read_label
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.published_counts import IMAGES
from emaseg.data.sets.voc import voc
from emaseg.errors import UserError
from emaseg.files import atomic
from emaseg.recipe.data import VOCData
from emaseg.visual import palette_png

PUBLISHED = {split: IMAGES["voc"][split] for split in ("train", "val", "trainaug")}


def open_split(root: Path, split: str) -> PairedFiles:
    return voc(VOCData(kind="voc", root=str(root), eval_split=split), "eval")


def write_pngs(root: Path) -> int:
    """Write the masks of trainaug that are .mat files as palette PNGs; how many."""
    dataset = open_split(root, "trainaug")
    mats = [index for index, (_, mask) in enumerate(dataset.items) if mask.suffix == ".mat"]
    for index in mats:
        label = read_label(dataset.items[index][1], dataset.rule)
        with atomic(root / "SegmentationClassAug" / f"{dataset.items[index][1].stem}.png") as file:
            palette_png(label, dataset.palette).save(file, format="PNG")
    return len(mats)


def main(arguments: list[str]) -> int:
    known = parser(__doc__ or "")
    known.add_argument("--png", action="store_true", help="write SBD's masks as PNGs first")
    given = known.parse_args(arguments)
    root = given.root.resolve()
    if given.png:
        try:
            print(f"{write_pngs(root):,} masks written to {root / 'SegmentationClassAug'}")
        except UserError as error:
            print(f"error: {error.message}\n  try: {error.hint}", file=sys.stderr)
            return error.exit_code
    return verify(root, PUBLISHED, open_split, given.sample)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
