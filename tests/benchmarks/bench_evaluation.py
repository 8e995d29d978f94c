"""What the scores beside the mIoU cost: paired ratios of counting an image with and without them, and beside a network.

    python -m tests.benchmarks.bench_evaluation [--rounds 7] [--size 375x500] [--classes 21]

Columns: milliseconds for the confusion matrix alone, for everything an evaluation counts, their ratio, and the
difference as a share of the time that EMANet R-50-D16 takes for the image on this machine; then the same for the
labels alone against labels and confidence (`eval --calibration`). Medians; the two sides of a pair take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from emaseg.inference.protocols import label_and_confidence, label_map
from emaseg.metrics import Confusion, Tally
from emaseg.models import build_model
from emaseg.recipe import load_recipe


def paired(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, found in zip((one, other), times, strict=True):
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", default="375x500")
    parser.add_argument("--classes", type=int, default=21)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    rng = np.random.default_rng(0)
    cells = rng.integers(0, options.classes, (8, 10))
    label = np.kron(cells, np.ones((height // 8 + 1, width // 10 + 1)))[:height, :width].astype(np.uint8)
    prediction = np.roll(label, 2, axis=1)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    confusion, tally = Confusion.empty(options.classes), Tally.empty(options.classes)
    plain, full = paired(
        lambda: confusion.add(label, prediction),
        lambda: tally.add(0, "x", label, prediction, image=image),
        4 * options.rounds,
    )
    recipe = load_recipe("voc_r50_d16")
    model, stats = build_model(recipe).eval(), recipe.backbone.pixel_stats
    with torch.inference_mode():
        labels, sure = paired(
            lambda: label_map(model, image, recipe.inference, stats, "cpu"),
            lambda: label_and_confidence(model, image, recipe.inference, stats, "cpu"),
            options.rounds,
        )
    print(f"{height}x{width}, {options.classes} classes, {torch.get_num_threads()} threads")
    print(
        f"counting    {1e3 * plain:8.2f} ms  {1e3 * full:8.2f} ms  {full / plain:5.2f}x  {(full - plain) / labels:+.2%} of an image"
    )
    print(f"confidence  {1e3 * labels:8.2f} ms  {1e3 * sure:8.2f} ms  {sure / labels:5.2f}x")


if __name__ == "__main__":
    main()
