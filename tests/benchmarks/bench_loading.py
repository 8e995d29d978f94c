"""CPU time of whole training samples, from file to 8-bit crop, beside mmsegmentation's own pipeline; one core, one run.

    python -m tests.benchmarks.bench_loading [rounds]

Compares with mmsegmentation 1.x as it comes from PyPI, which is no dependency of this project. Its packages may lie in
a folder of their own, as the pipeline needs few of them:

    pip install --no-deps --target PEER mmsegmentation "mmcv-lite<2.2" mmengine-lite opencv-python-headless \\
        addict yapf platformdirs termcolor prettytable wcwidth ftfy regex pyyaml
    PYTHONPATH=PEER python -m tests.benchmarks.bench_loading

Without them only this package is measured. OpenCV comes with them, and this package uses it where it is installed
(`emaseg[opencv]`): it is measured with and without. All sides read the same files and stop where mmsegmentation's workers do:
an 8-bit crop with its label (normalisation belongs to the device there as here). Here a sample also pays its share of
laying a batch of 8 together. Images are smooth noise: a JPEG of 512 x 683 at quality 90, a PNG of 1024 x 2048; with
EMASEG_TEST_DATA also frames of Cityscapes. The sides take turns for so many rounds; a ratio is the median of the
rounds' ratios, of process CPU time.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emaseg.data.files.label_files import index_rule
from emaseg.data.pipeline.transforms import Crop, collate, sample_rng, train_crop
from emaseg.data.sets.pairs import PairedFiles
from emaseg.device import keep_freed_memory
from emaseg.recipe.training import Augment
from tests.data.pipeline_golden import without_opencv

CLASSES = 19
BATCH = 8
VOC = Augment(resize_long_short=(2048, 512), scale=(0.5, 2.0), crop=(512, 512), photometric="bgr")
CITYSCAPES = replace(VOC, resize_long_short=(2048, 1024), crop=(512, 1024))

Pairs = tuple[tuple[Path, Path], ...]
Draw = Callable[[int], object]  # sample number i, from its files


@dataclass(frozen=True, slots=True)
class Case:
    """Files, the pipeline for them, samples in a round, and how many times as fast as mmsegmentation's it should be."""

    name: str
    items: Pairs
    augment: Augment
    samples: int
    target: float


# ---------------------------------------------------------------------------------------------------- the files
def noise(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8: coarse noise made smooth, with a little fine noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return (smooth + rng.integers(-3, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


def label(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width) uint8: blocks of classes 0..18, a tenth of them ignored."""
    blocks = np.random.default_rng(seed).integers(0, 21, (height // 32 + 1, width // 32 + 1), np.uint8)
    blocks[blocks >= CLASSES] = 255
    return np.kron(blocks, np.ones((32, 32), np.uint8))[:height, :width]


def made(folder: Path, count: int, size: tuple[int, int], ending: str) -> Pairs:
    items = []
    for i in range(count):
        image_path, label_path = folder / f"{size[0]}_{i}{ending}", folder / f"{size[0]}_{i}_label.png"
        Image.fromarray(noise(*size, i)).save(image_path, **({"quality": 90} if ending == ".jpg" else {}))
        Image.fromarray(label(*size, i)).save(label_path)
        items.append((image_path, label_path))
    return tuple(items)


def frames(root: Path) -> Pairs:
    """The Cityscapes frames below `root` with their labelIds, which both sides take as they are."""
    found = sorted(root.glob("leftImg8bit/train/*/*_leftImg8bit.png"))
    return tuple(
        (path, root / "gtFine/train" / path.parent.name / path.name.replace("leftImg8bit", "gtFine_labelIds"))
        for path in found
    )


# ---------------------------------------------------------------------------------------------------- the sides
def own(items: Pairs, augment: Augment) -> Draw:
    """This package: at each BATCH-th sample all of the batch are read, cropped and laid together, as the loader does."""
    rule = replace(index_rule(tuple(map(str, range(CLASSES)))), lut=bytes(min(v, 255) for v in range(256)))
    dataset = PairedFiles(items, rule, np.zeros((CLASSES, 3), np.uint8))

    def crop(i: int) -> Crop:
        return train_crop(dataset.open(i % len(items)), augment, sample_rng(0, i // len(items), i))

    def draw(i: int) -> object:
        if i % BATCH == BATCH - 1:
            collate(map(crop, range(i + 1 - BATCH, i + 1)), BATCH, augment)
        return None

    return draw


def mmsegmentation(items: Pairs, augment: Augment) -> Draw | None:
    """Its published training pipeline on the same files; None where it is not installed."""
    try:
        import cv2
        from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize
        from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop
    except ImportError as error:
        print(f"without mmsegmentation ({error}); see the top of this file")
        return None
    cv2.setNumThreads(0)
    steps = [
        LoadImageFromFile(),
        LoadAnnotations(),
        RandomResize(scale=augment.resize_long_short, ratio_range=augment.scale, keep_ratio=True),
        RandomCrop(crop_size=augment.crop, cat_max_ratio=augment.max_class_share),
        RandomFlip(prob=augment.flip),
    ]
    if augment.photometric != "none":
        steps.append(PhotoMetricDistortion())
    steps.append(PackSegInputs())

    def draw(i: int) -> object:
        image_path, label_path = items[i % len(items)]
        result = {
            "img_path": str(image_path),
            "seg_map_path": str(label_path),
            "reduce_zero_label": False,
            "seg_fields": [],
            "label_map": None,
        }
        for step in steps:
            result = step(result)
        return result

    return draw


class _NoOps(types.ModuleType):
    """In place of the compiled operators that mmcv-lite leaves out; the pipeline calls none."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


# --------------------------------------------------------------------------------------------------- the clock
def seconds(draw: Draw, first: int, count: int) -> float:
    began = time.process_time()
    for i in range(first, first + count):
        draw(i)
    return time.process_time() - began


def compare(case: Case, rounds: int) -> None:
    ours, theirs = own(case.items, case.augment), mmsegmentation(case.items, case.augment)
    spent: list[tuple[float, float, float]] = []
    for turn in range(-1, rounds):  # the first round only warms up
        first = max(0, turn) * case.samples
        with without_opencv():
            plain = seconds(ours, first, case.samples)
        row = (plain, seconds(ours, first, case.samples), seconds(theirs, first, case.samples) if theirs else math.nan)
        if turn >= 0:
            spent.append(row)
    rates = "".join(f"{statistics.median(case.samples / row[side] for row in spent):10.1f}" for side in range(3))
    ratios = "".join(f"{statistics.median(row[2] / row[side] for row in spent):10.2f}" for side in range(2))
    print(f"{case.name:48}{rates}{ratios}{case.target:8.1f}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # for all sides alike, as the program does
    np.random.seed(0)
    warnings.simplefilter("ignore")
    sys.modules.setdefault("mmcv._ext", _NoOps("mmcv._ext"))
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        small, large = made(Path(folder), 8, (512, 683), ".jpg"), made(Path(folder), 2, (1024, 2048), ".png")
        cases = [
            Case("JPEG 512x683, crop 512x512", small, replace(VOC, photometric="none"), 80, 1.8),
            Case("the same with photometric distortion", small, VOC, 80, 1.0),
            Case("PNG 1024x2048, crop 512x1024", large, replace(CITYSCAPES, photometric="none"), 16, 1.3),
            Case("the same with photometric distortion", large, CITYSCAPES, 16, 1.3),
        ]
        if "EMASEG_TEST_DATA" in os.environ:
            real = frames(Path(os.environ["EMASEG_TEST_DATA"]) / "cityscapes")
            cases.append(Case("Cityscapes frames, with photometric distortion", real, CITYSCAPES, 16, 1.3))
        print(
            f"{'images/s of one core':48}{'emaseg':>10}{'[opencv]':>10}{'mmseg':>10}{'ratio':>10}{'[opencv]':>10}{'aim':>8}"
        )
        for case in cases:
            compare(case, rounds)


if __name__ == "__main__":
    main()
