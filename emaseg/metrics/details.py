"""What can be said of an evaluation beside its mIoU: where it is wrong, how sure the score is, and how the network errs.

Room: metrics. Legend: K classes, N images, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emaseg.metrics.boundary import RADII, BoundaryCounts
from emaseg.metrics.calibration import UNIT, Calibration
from emaseg.metrics.confusion import mean, ratio
from emaseg.metrics.tally import ImageCounts, Tally

RESAMPLES = 1000  # of the images, for the interval of the mIoU
LEVEL = 0.95
_AT_ONCE = 1 << 22  # numbers of a block of resamples: 32 MiB

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassDetail:
    """One class. dice = F1 = 2 TP / (labelled + predicted), precision = TP / predicted, recall = TP / labelled (its
    accuracy); fractions, None for 0 / 0. labelled, predicted: pixels."""

    dice: float | None
    precision: float | None
    recall: float | None
    labelled: int
    predicted: int


@dataclass(frozen=True, slots=True)
class BoundaryScore:
    """Scores near borders (boundary.py), within so many pixels: means over the classes, and of each class."""

    pixels: int
    boundary_miou: float | None
    trimap_miou: float | None
    boundary_iou: tuple[float | None, ...]
    trimap_iou: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """Percentile bootstrap over the images (Efron 1979): between low and high lies the mIoU of `level` of the resampled
    sets of as many images. It says how far the score depends on which images were taken, not on the training."""

    low: float
    high: float
    level: float
    resamples: int


@dataclass(frozen=True, slots=True)
class CalibrationScore:
    """error: expected calibration error, 0..1. bins: (pixels, share that is right, mean confidence) of each bin, from the
    least sure; the last two None where it holds no pixel."""

    error: float | None
    bins: tuple[tuple[int, float | None, float | None], ...]


@dataclass(frozen=True, slots=True)
class Details:
    """Of a whole set; fractions in 0..1, None where undefined.

    miou_labelled: the mIoU of the other convention in circulation (detectron2): the mean over the classes that are
    labelled in the set. A class that is predicted but never labelled counts as 0 in `Scores.miou`, and not at all here.
    frequency_weighted_iou: the IoUs weighted by the labelled pixels. mean_dice, mean_precision: over the classes that
    have a value. per_class: K. interval: None with fewer than two images. calibration: None where it was not counted.
    """

    miou_labelled: float | None
    frequency_weighted_iou: float | None
    mean_dice: float | None
    mean_precision: float | None
    per_class: tuple[ClassDetail, ...]
    boundary: tuple[BoundaryScore, ...]
    interval: Interval | None
    calibration: CalibrationScore | None

    def json(self) -> dict[str, Any]:
        """What metrics.json holds beside the scores of each class, under the names of the attributes."""
        interval, calibration = self.interval, self.calibration
        return {
            "miou_labelled": self.miou_labelled,
            "miou_interval": None
            if interval is None
            else {
                "low": interval.low,
                "high": interval.high,
                "level": interval.level,
                "resamples": interval.resamples,
            },
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "mean_dice": self.mean_dice,
            "mean_precision": self.mean_precision,
            "boundary": [
                {"pixels": row.pixels, "boundary_miou": row.boundary_miou, "trimap_miou": row.trimap_miou}
                for row in self.boundary
            ],
            "calibration": None
            if calibration is None
            else {
                "error": calibration.error,
                "bins": [{"pixels": n, "accuracy": a, "confidence": c} for n, a, c in calibration.bins],
            },
        }

    def class_json(self, k: int) -> dict[str, Any]:
        """What metrics.json holds of class k beside its IoU, accuracy and status."""
        own = self.per_class[k]
        return {
            "dice": own.dice,
            "precision": own.precision,
            "recall": own.recall,
            "labelled_pixels": own.labelled,
            "predicted_pixels": own.predicted,
            "boundary_iou": [row.boundary_iou[k] for row in self.boundary],
            "trimap_iou": [row.trimap_iou[k] for row in self.boundary],
        }


def details_of(tally: Tally) -> Details:
    """Everything beside the scores of a tally."""
    counts = tally.confusion.counts
    correct, labelled, predicted = (
        np.diagonal(counts).tolist(),
        counts.sum(axis=1).tolist(),
        counts.sum(axis=0).tolist(),
    )
    iou = [ratio(c, n + p - c) for c, n, p in zip(correct, labelled, predicted, strict=True)]
    per_class = tuple(
        ClassDetail(ratio(2 * c, n + p), ratio(c, p), ratio(c, n), n, p)
        for c, n, p in zip(correct, labelled, predicted, strict=True)
    )
    total = sum(labelled)
    weighted = sum(n * value for n, value in zip(labelled, iou, strict=True) if value is not None)
    return Details(
        miou_labelled=mean([value for n, value in zip(labelled, iou, strict=True) if n]),
        frequency_weighted_iou=weighted / total if total else None,
        mean_dice=mean([c.dice for c in per_class]),
        mean_precision=mean([c.precision for c in per_class]),
        per_class=per_class,
        boundary=_boundary_scores(tally.boundary),
        interval=bootstrap(tally.images),
        calibration=None if tally.calibration is None else _calibration_score(tally.calibration),
    )


def _boundary_scores(counts: BoundaryCounts) -> tuple[BoundaryScore, ...]:
    found = []
    for row, radius in enumerate(RADII):
        trimap = _ious(counts.correct[row], counts.labelled[row], counts.predicted[row])
        border = _ious(counts.common_border[row], counts.label_border[row], counts.prediction_border[row])
        found.append(BoundaryScore(radius, mean(border), mean(trimap), border, trimap))
    return tuple(found)


def _ious(
    common: npt.NDArray[np.int64], one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> tuple[float | None, ...]:
    return tuple(ratio(c, u) for c, u in zip(common.tolist(), (one + other - common).tolist(), strict=True))


def _calibration_score(counts: Calibration) -> CalibrationScore:
    pixels, correct, sums = counts.pixels.tolist(), counts.correct.tolist(), counts.confidence.tolist()
    bins = tuple((n, ratio(c, n), s / UNIT / n if n else None) for n, c, s in zip(pixels, correct, sums, strict=True))
    total = sum(pixels)
    # A bin's weight times its gap: n / total * |c / n - s / n|.
    gaps = sum(abs(c - s / UNIT) for c, s in zip(correct, sums, strict=True))
    return CalibrationScore(gaps / total if total else None, bins)


def bootstrap(images: Sequence[ImageCounts], resamples: int = RESAMPLES, level: float = LEVEL) -> Interval | None:
    """The interval of the mIoU when as many images are drawn anew, with replacement; None for fewer than two images.

    The draws are the same in every call, so equal evaluations have equal intervals.
    """
    used = [image for image in images if image.pixels]
    if len(used) < 2:
        return None
    counted = np.stack([np.concatenate([i.correct, i.labelled, i.predicted]) for i in used]).astype(np.float64)
    rng = np.random.default_rng(0)
    block = max(1, _AT_ONCE // len(used))
    found = []
    for start in range(0, resamples, block):
        draws = rng.integers(0, len(used), (min(block, resamples - start), len(used)))
        times = np.stack([np.bincount(draw, minlength=len(used)) for draw in draws]).astype(np.float64)
        found.append(_mious(times @ counted))  # whole numbers below 2**53: exact
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(low, high, level, resamples)


def _mious(sums: Float64) -> Float64:
    """(B, 3 K) summed counts -> (B,) mIoU by the published convention."""
    correct, labelled, predicted = np.split(sums, 3, axis=1)
    union = labelled + predicted - correct
    seen = union > 0
    iou = np.divide(correct, union, out=np.zeros_like(union), where=seen)
    mious: Float64 = iou.sum(axis=1) / seen.sum(axis=1)
    return mious
