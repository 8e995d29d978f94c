"""What the losses for thin and rare classes are worth: CrackForest, whose cracks are 1.6 % of the pixels, from nothing.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_thin_classes FOLDER [--steps 250] [--seeds 3] [--ways plain dice ...]

FOLDER holds images/, labels/, train.txt and val.txt. Every way trains the same recipe with the same seeds on one thread;
only [loss] differs. Prints the IoU of the cracks and the CPU time of each run as it ends, then a table. The twelve runs
that it does unasked take about 19 minutes of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from emaseg.events import Evaluated
from emaseg.recipe import Recipe, parse_recipe, toml_value
from emaseg.training.train import train

WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "dice": ("loss.dice_weight=1.0",),
    "inverse_log": ("loss.class_balance='inverse_log'",),
    "median_frequency": ("loss.class_balance='median_frequency'",),
    "focal": ("loss.focal_gamma=2.0",),
    "hard pixels": ("loss.ohem_threshold=0.7", "loss.ohem_min_kept=3000"),
}

RECIPE = """
schema = 1
name = "cracks"
title = "Thin cracks, from nothing"
[model]
kind = "emanet"
bases = 16
attention_channels = 64
bottleneck_channels = 64
decoder_channels = 64
auxiliary_channels = 32
[backbone]
kind = "resnet14"
output_stride = 8
stem_channels = [16, 16, 32]
width = 16
weights = "none"
[data]
kind = "folder"
root = {root}
classes = ["road", "crack"]
train_images = "images"
train_masks = "labels"
eval_images = "images"
eval_masks = "labels"
train_list = "train.txt"
eval_list = "val.txt"
[augment]
crop = [192, 192]
scale = [0.9, 1.5]
max_class_share = 1.0
vertical_flip = 0.5
quarter_turns = 0.5
photometric = "bgr"
[optim]
lr = 0.05
min_lr = 5e-4
weight_decay = 5e-4
[train]
iterations = {steps}
batch = 4
threads = 1
workers = 0
evaluate_every = 0
seed = {seed}
"""


def recipe(folder: Path, steps: int, seed: int, way: str, sets: tuple[str, ...] = ()) -> Recipe:
    text = RECIPE.format(root=toml_value(str(folder)), steps=steps, seed=seed)
    return parse_recipe(text, "cracks", [*sets, *WAYS[way]]).recipe


def crack_iou(recipe: Recipe, out: Path) -> float:
    """Train to the end and score once; in percent."""
    iou = 0.0
    for event in train(recipe, out):
        if isinstance(event, Evaluated):
            iou = 100 * (event.scores.per_class[1].iou or 0.0)
    return iou


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["plain", "inverse_log", "median_frequency", "dice"])
    parser.add_argument("--set", action="append", default=[], help="of the recipe, for every way")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in arguments.ways}
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            began = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                one = recipe(arguments.folder, arguments.steps, seed, way, tuple(arguments.set))
                iou = crack_iou(one, Path(folder) / "run")
            found[way].append(iou)
            seconds = time.process_time() - began
            print(f"seed {seed}  {way:16}  crack IoU {iou:5.2f}  {seconds / 60:5.1f} CPU minutes", flush=True)
    print(f"\n{'loss':16}  crack IoU: mean (lowest to highest), over plain with the same seed")
    for way, scores in found.items():
        row = f"{way:16}  {statistics.mean(scores):5.2f} ({min(scores):.2f} to {max(scores):.2f})"
        if "plain" in found:
            gains = [a - b for a, b in zip(scores, found["plain"], strict=True)]
            row += f"  {statistics.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})"
        print(row)


if __name__ == "__main__":
    main()
