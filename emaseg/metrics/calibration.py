"""Whether a network is right as often as its confidence says: the expected calibration error.

Room: metrics. Legend: H W image height and width.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equations 2 to 5: the labelled pixels are sorted into
15 equal bins by the probability of the class that was chosen; the error is the mean, over all pixels, of the distance
between a bin's share of right pixels and its mean probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

BINS = 15
UNIT = 1 << 24  # a probability of 1 as an integer: sums are then exact, in whatever order they are made


@dataclass(slots=True, eq=False)
class Calibration:
    """Of each bin, (15,) int64: labelled pixels, those that are right, and the sum of their probabilities in 1 / UNIT."""

    pixels: Int64
    correct: Int64
    confidence: Int64

    @classmethod
    def empty(cls) -> Calibration:
        return cls(*(np.zeros(BINS, np.int64) for _ in range(3)))

    def add(self, label: UInt8, prediction: UInt8, confidence: Float32, num_classes: int) -> None:
        """Count one image. All maps (H, W); the confidence is in 0..1. Labels of num_classes and above are ignored."""
        valid = label < num_classes
        chosen = confidence[valid].astype(np.float64)
        bins = np.clip(np.ceil(chosen * BINS).astype(np.int64) - 1, 0, BINS - 1)  # (lower, upper]
        self.pixels += np.bincount(bins, minlength=BINS)
        self.correct += np.bincount(bins[label[valid] == prediction[valid]], minlength=BINS)
        self.confidence += np.bincount(bins, np.rint(chosen * UNIT), minlength=BINS).astype(np.int64)

    def merge(self, other: Calibration) -> None:
        """Add what another part of the set has counted."""
        self.pixels += other.pixels
        self.correct += other.correct
        self.confidence += other.confidence
