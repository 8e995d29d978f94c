"""Pack one split of a recipe's data set into one HDF5 file, for file systems on which many small files are slow.

    python data_scripts/pack.py RECIPE --part train --out /fast/voc/train.h5 [--set data.root="/path"]
    python data_scripts/pack.py --verify /fast/voc/train.h5

RECIPE: a file, or the name of a shipped recipe. Image and label files go in byte for byte, so training on the packed
file gives the same numbers. Progress goes to stderr; at the end the [data] section that reads the files is printed. A
run that was stopped leaves FILE.part, which the next run continues, unless an image or label has changed. --verify
compares a file with its checksum, and with the images and labels that it was packed from, where they are there.
Exit code 0: done. 2: the recipe, 3: the data, 4: the disk or the memory is at fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.packed import open_packed, pack, verify
from emaseg.errors import UserError
from emaseg.recipe import load_recipe, toml_value
from emaseg.recipe.channels import ranges


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("recipe", nargs="?", help="a recipe file, or the name of a shipped recipe")
    made.add_argument("--part", choices=("train", "eval"), default="train")
    made.add_argument("--out", type=Path, help="the packed file (default: PART.h5)")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    made.add_argument("--verify", type=Path, metavar="FILE", help="check a packed file instead")
    return made


def main(arguments: list[str]) -> int:
    asked = parser()
    given = asked.parse_args(arguments)
    if (given.recipe is None) == (given.verify is None):
        asked.error("give a recipe, or --verify and a packed file")
    try:
        if given.verify:
            verify(given.verify)
            print(f"{given.verify}: as it was packed")
            return 0
        out = given.out or Path(f"{given.part}.h5")
        if out.exists():
            asked.error(f"{out} already exists; remove it first, or check it with --verify")
        run(given.recipe, given.part, out, given.set)
    except UserError as error:
        print(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        return 130
    return 0


def run(source: str, part: str, out: Path, changes: list[str]) -> None:
    recipe = load_recipe(source, changes)
    told = 0.0
    for done, total in pack(build_dataset(recipe.data, "train" if part == "train" else "eval"), out):
        if done == total or time.monotonic() - told > 1:
            told = time.monotonic()
            print(f"\r{done:,} of {total:,}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found = open_packed(out)
    print(f'[data]\nkind = "packed"\nroot = {json.dumps(str(out.resolve().parent))}\n{part}_file = "{out.name}"')
    print(f"classes = {json.dumps(found.classes, ensure_ascii=False)}\npalette = {found.palette.tolist()}")
    if ranges(recipe.data):
        print(f"range = {toml_value(ranges(recipe.data))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
