"""Check a copy of CamVid (the SegNet authors' distribution) before training on it.

    python data_scripts/camvid.py /path/to/CamVid

Reads every image header and every label of the three splits and compares pairs and pixel counts with the known ones.
Exit code 0: complete. 1: something differs; the lines say what. 3: there is no such folder, or it cannot be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from verify import parser

from emaseg.data.checks import check_dataset
from emaseg.data.sets.folder import folder
from emaseg.errors import UserError
from emaseg.recipe import load_recipe
from emaseg.recipe.data import FolderData

# split -> (pairs, labelled pixels of class Road)
KNOWN = {"train": (367, 20_076_880), "val": (101, 5_053_176), "test": (233, 10_390_661)}


def check(root: Path, split: str) -> str:
    """One line on a split; it starts with "ok" when everything agrees."""
    overrides = [f"data.root='{root}'", f'data.eval_images="{split}"', f'data.eval_masks="{split}annot"']
    data = load_recipe("camvid_r50_d16", overrides).data
    if not isinstance(data, FolderData):
        return f"the camvid_r50_d16 recipe reads {data.kind}, not a folder"
    dataset = folder(data, "eval")
    report = check_dataset(dataset, limit=len(dataset))
    pairs, road = KNOWN[split]
    found = report.class_pixels[data.classes.index("Road")]
    if report.images != pairs:
        return f"{split}: {report.images} pairs, expected {pairs}"
    if found != road:
        return f"{split}: {found} pixels of Road, expected {road}: other labels, or resized"
    return f"ok {split}: {pairs} pairs, {100 * report.ignored_share:.1f} % of the pixels ignored"


def main(arguments: list[str]) -> int:
    root = parser(__doc__ or "", sampling=False).parse_args(arguments).root.resolve()
    try:
        lines = [check(root, split) for split in KNOWN]
    except UserError as error:
        print(f"error: {error.message}\n  try: {error.hint}", file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return 0 if all(line.startswith("ok") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
