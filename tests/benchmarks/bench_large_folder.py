"""Starting on a folder of very many pairs: seconds and memory before the first step, the first time and afterwards.

    python -m tests.benchmarks.bench_large_folder [--pairs 1000000] [--folder DIR]

The files are hard links to a few tiny ones, in sub-folders of a thousand. Every start is a process of its own; what is
measured is what `train` does before its first step (open and check both phases, compare with the checkpoint's state of
the images, draw the order of an epoch), without imports. CPU is what of it
the processor worked: on a busy machine the other columns say little. `one pair added` must not use the index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

_LINKS = 30_000  # of one file; ext4 takes 65,000
_EACH = 1000  # files of a sub-folder
_SETTLE = 4.0  # seconds: a folder that has just changed is not indexed

START = """
import json, sys, time
from emaseg.open_datasets import open_datasets
from emaseg.data.pipeline.loading import epoch_order
from emaseg.training.image_state import image_state
from emaseg.free_memory import peak_memory
from emaseg.recipe import parse_recipe
import torch
recipe = parse_recipe(sys.argv[1], "bench.toml").recipe
before, busy = time.perf_counter(), time.process_time()
train, evaluation, _ = open_datasets(recipe)
opened = time.perf_counter()
state = image_state(train, evaluation)
order = epoch_order(len(train), recipe.train.seed, 0)
done = time.perf_counter()
peak = peak_memory(torch.device("cpu"))
print(json.dumps({"cpu": time.process_time() - busy, "open": opened - before, "state": done - opened, "peak": peak, "images": len(train) + len(evaluation),
                  "names": state["names"], "order": order[:5].tolist()}))
"""

RECIPE = """
schema = 1
name = "bench"
[model]
kind = "emanet"
[backbone]
kind = "resnet14"
output_stride = 8
weights = "none"
[data]
kind = "folder"
root = {root}
classes = ["ground", "crack"]
train_images = "images"
train_masks = "masks"
eval_images = "images"
eval_masks = "masks"
holdout = 10
[augment]
crop = [32, 32]
[optim]
lr = 0.01
[train]
iterations = 1
"""


def make(root: Path, pairs: int) -> None:
    """`pairs` images and masks below root/images and root/masks."""
    for side, mode in (("images", "RGB"), ("masks", "L")):
        seed = root / f"seed_{side}.png"
        root.mkdir(exist_ok=True)
        for number in range(pairs):
            if number % _LINKS == 0:
                seed.unlink(missing_ok=True)
                Image.new(mode, (8, 8), (number // _LINKS + 1) % 2 if mode == "L" else (number % 255, 9, 9)).save(seed)
            folder = root / side / f"{number // _EACH:05d}"
            if number % _EACH == 0:
                folder.mkdir(parents=True)
            os.link(seed, folder / f"frame_{number:07d}.png")
        seed.unlink()


def start(root: Path, cache: Path) -> dict[str, float]:
    """One start in a process of its own."""
    recipe = RECIPE.format(root=json.dumps(str(root)))
    environment = {**os.environ, "EMASEG_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", START, recipe], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(pairs: int, top: Path) -> None:
    small, large, cache = top / "small", top / "large", top / "cache"
    began = time.perf_counter()
    make(small, 20)
    make(large, pairs)
    print(f"{pairs:,} pairs made in {time.perf_counter() - began:.0f} s", flush=True)
    time.sleep(_SETTLE)
    base = start(small, cache)
    rows = [("20 pairs", base), ("first start", start(large, cache)), ("again", start(large, cache))]
    assert rows[1][1]["names"] == rows[2][1]["names"]
    assert rows[1][1]["order"] == rows[2][1]["order"]
    for side in ("images", "masks"):
        os.link(large / side / "00000/frame_0000000.png", large / side / "00000/zz_added.png")
    changed = start(large, cache)
    assert changed["images"] == pairs + 1
    rows.append(("one pair added", changed))
    print(f"{'':<16}{'open':>9}{'state':>9}{'total':>9}{'CPU':>9}{'memory above 20 pairs':>24}")
    for name, row in rows:
        more = (row["peak"] - base["peak"]) / 1e6
        print(
            f"{name:<16}{row['open']:>8.1f}s{row['state']:>8.1f}s{row['open'] + row['state']:>8.1f}s{row['cpu']:>8.1f}s{more:>21.0f} MB"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to make them [default: a temporary folder]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        main(given.pairs, Path(folder))
