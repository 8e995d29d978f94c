"""What bf16 costs a trained network: mIoU in fp32 and in bf16 over the same images, and the pixels that keep their class.

    python -m tests.benchmarks.bench_precision REF [--set KEY=VALUE ...] [--images N]

REF is what `emaseg eval` takes, with its images where the recipe has them. Each image goes through the network as it was
trained and through the engine in both precisions. Without --images all of the recipe's evaluation split are used, else N
of them at equal distances.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from emaseg.data.dataset import read_pair
from emaseg.engine import Precision, prepare
from emaseg.inference.protocols import label_map
from emaseg.metrics import Confusion
from emaseg.open_datasets import open_datasets
from emaseg.reference import open_network, resolve

ENGINES: tuple[Precision, ...] = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reference")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--images", type=int)
    options = parser.parse_args()
    resolved = resolve(options.reference, overrides=options.overrides)
    recipe, cpu = resolved.recipe, torch.device("cpu")
    dataset = open_datasets(recipe)[1]
    ways = {"network, fp32": open_network(resolved).eval()}
    ways |= {f"engine, {precision}": prepare(open_network(resolved), precision) for precision in ENGINES}
    counts = {name: Confusion.empty(len(dataset.classes)) for name in ways}
    same = dict.fromkeys(ways, 0.0)
    count = min(options.images or len(dataset), len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    for index in chosen.tolist():
        image, label = read_pair(dataset, index)
        first = None
        for name, model in ways.items():
            labels = label_map(model, image, recipe.inference, recipe.backbone.pixel_stats, cpu)
            first = labels if first is None else first
            same[name] += float((labels == first).mean()) / count
            counts[name].add(label, labels)
    scores = {name: confusion.scores(dataset.classes, count).miou or 0.0 for name, confusion in counts.items()}
    base = next(iter(scores.values()))
    print(f"{options.reference}: {count} images, {len(dataset.classes)} classes")
    print("| way | mIoU | points of difference | pixels with the network's class |\n| --- | --- | --- | --- |")
    for name, score in scores.items():
        print(f"| {name} | {100 * score:.3f} | {100 * (score - base):+.3f} | {100 * same[name]:.3f} % |")


if __name__ == "__main__":
    main()
