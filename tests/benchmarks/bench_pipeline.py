"""Milliseconds of each pipeline step beside plain alternatives, on one thread, all in one run.

    python -m tests.benchmarks.bench_pipeline [rounds]

One image of 375 x 500, resized to 640 x 854 (the average training scale of the VOC recipes), crop 512 x 512.
Variants take turns and the best round counts, so that other work on the machine hits all of them alike. "off" is the
largest and the mean difference from the published result (the first variant of each step), in levels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from emaseg.data.dataset import MemorySample, UInt8
from emaseg.data.pipeline.colour import Photometric, apply_photometric
from emaseg.data.pipeline.crop import acceptable
from emaseg.data.pipeline.resize import resize_image, resize_label
from emaseg.data.pipeline.rotation import rotate_image
from emaseg.data.pipeline.transforms import normalise, sample_rng, train_crop
from emaseg.recipe.training import Augment
from tests.data.pipeline_golden import STATS, sample_image, sample_label

SIZE, WINDOW = (640, 854), (60, 170, 512, 512)
PART = np.s_[60:572, 170:682]
VOC = Augment(resize_long_short=(2048, 512), scale=(0.5, 2.0), crop=(512, 512), photometric="bgr_as_rgb")

Variant = Callable[[], object]


def planes(image: UInt8) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def pixels(x: torch.Tensor) -> UInt8:
    result: UInt8 = x.permute(1, 2, 0).numpy()
    return result


def steps() -> dict[str, dict[str, Variant]]:
    """Step -> variant -> what to time; the first variant of each step is this package's."""
    image, label = sample_image(375, 500), sample_label(375, 500)
    crop, part = resize_image(image, SIZE, WINDOW).copy(), resize_label(label, SIZE, WINDOW)
    rows, columns = np.arange(640) * 375 // 640, np.arange(854) * 500 // 854
    mean, std = np.float32(STATS.mean), np.float32(STATS.std)
    batch = planes(image)[None]
    return {
        "image: resize and crop": {
            "emaseg, the window only": lambda: resize_image(image, SIZE, WINDOW),
            "emaseg, whole": lambda: resize_image(image, SIZE)[PART],
            "torch uint8": lambda: pixels(F.interpolate(batch, SIZE, mode="bilinear")[0])[PART],
            "torch float, rounded": lambda: pixels(F.interpolate(batch.float(), SIZE, mode="bilinear")[0].round())[
                PART
            ],
            "Pillow": lambda: np.asarray(Image.fromarray(image).resize(SIZE[::-1], Image.Resampling.BILINEAR))[PART],
        },
        "label: resize and crop": {
            "emaseg, the window only": lambda: resize_label(label, SIZE, WINDOW),
            "numpy, whole": lambda: label[rows[:, None], columns][PART],
            "torch, whole": lambda: F.interpolate(torch.from_numpy(label)[None, None], SIZE)[0, 0].numpy()[PART],
        },
        "crop test": {
            "emaseg": lambda: acceptable(part, 0.75),
            "numpy unique": lambda: np.unique(part, return_counts=True)[1].max() / part.size < 0.75,
        },
        "contrast": {
            "emaseg": lambda: apply_photometric(crop, Photometric(contrast=1.2), bgr_as_rgb=False),
            "numpy": lambda: np.clip(crop.astype(np.float32) * 1.2, 0, 255).astype(np.uint8),
        },
        "saturation": {
            "emaseg": lambda: apply_photometric(crop, Photometric(saturation=1.2), bgr_as_rgb=False),
            "torchvision (another operation)": lambda: pixels(tv.adjust_saturation(planes(crop), 1.2)),
        },
        "hue": {
            "emaseg": lambda: apply_photometric(crop, Photometric(hue=9), bgr_as_rgb=False),
            "torchvision": lambda: pixels(tv.adjust_hue(planes(crop), 9 / 180)),
        },
        "rotation": {
            "emaseg": lambda: rotate_image(crop, 17),
            "Pillow": lambda: np.asarray(Image.fromarray(crop).rotate(17, Image.Resampling.BICUBIC)),
        },
        "normalise": {
            "emaseg": lambda: normalise(crop, STATS).numpy(),
            "numpy": lambda: ((crop.astype(np.float32) - mean) / std).transpose(2, 0, 1),
        },
    }


def best(variants: dict[str, Variant], rounds: int) -> dict[str, float]:
    """Best milliseconds of each variant; the variants take turns."""
    times = dict.fromkeys(variants, float("inf"))
    for _ in range(rounds):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            times[name] = min(times[name], 1000 * (time.perf_counter() - began))
    return times


def off(run: Variant, reference: Variant) -> str:
    """Largest and mean difference of two variants' results."""
    a, b = (np.asarray(f(), np.float64) for f in (run, reference))
    return f"off by {np.abs(a - b).max():.3g}, mean {np.abs(a - b).mean():.2g}"


def main() -> None:
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    for step, variants in steps().items():
        print(step)
        reference = next(iter(variants.values()))
        for name, milliseconds in best(variants, rounds).items():
            difference = "" if variants[name] is reference else off(variants[name], reference)
            print(f"  {name:34}{milliseconds:8.2f} ms  {difference}")
    sample = MemorySample("sample", sample_image(375, 500), sample_label(375, 500))
    crops = {str(i): lambda i=i: train_crop(sample, VOC, sample_rng(0, 0, i)) for i in range(20)}
    print(f"whole training crop, mean of 20 draws {np.mean(list(best(crops, rounds // 3 + 1).values())):8.2f} ms")


if __name__ == "__main__":
    main()
