"""How good a segmentation is near the borders of its regions, where mIoU over all pixels hardly looks.

Room: metrics. Legend: H W image height and width, K classes, R radii.

Two measures, each for a few radii r in pixels (chessboard distance: diagonal steps count 1):

Trimap IoU (Kohli et al., CVPR 2008; Chen et al., DeepLab, section 4.3): the IoU of the classes, counted only on pixels
    within r of another label.
Boundary IoU (Cheng et al., CVPR 2021, equation 1): of each class's region and of each predicted region only the inner
    border of width r is kept, and the IoU of the two borders is taken. As in the authors' code the image's own edge is a
    border. It punishes a small object's missed edge as much as a large one's.

Ignored pixels are a region of their own in both maps: the prediction is ignored there too, and next to them is a border.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

RADII = (1, 3, 5)

_IGNORED = 255
_FAR = len(RADII)  # a pixel's ring where no border is within the largest radius


@dataclass(slots=True, eq=False)
class BoundaryCounts:
    """Pixels of each class within each radius of a border, (R, K) int64.

    labelled, predicted, correct: of the trimap, whose band follows the labels. label_border, prediction_border,
    common_border: of the Boundary IoU, whose borders belong to the label, to the prediction, and to both at once.
    """

    labelled: Int64
    predicted: Int64
    correct: Int64
    label_border: Int64
    prediction_border: Int64
    common_border: Int64

    @classmethod
    def empty(cls, num_classes: int) -> BoundaryCounts:
        return cls(*(np.zeros((len(RADII), num_classes), np.int64) for _ in range(6)))

    def add(self, label: UInt8, prediction: UInt8) -> None:
        """Count one image. Both maps (H, W) uint8; labels of K and above are ignored."""
        k = self.labelled.shape[1]
        valid = label < k
        truth, found = np.where(valid, label, _IGNORED), np.where(valid, prediction, _IGNORED)
        trimap = rings(truth)
        near = valid & (trimap < _FAR)
        ring, true, own = trimap[near], truth[near], found[near]
        right = true == own
        self.labelled += _by_radius(true, ring, k)
        self.predicted += _by_radius(own, ring, k)
        self.correct += _by_radius(true[right], ring[right], k)
        frame = _frame(label.shape)
        outer, inner = np.minimum(trimap, frame), np.minimum(rings(found), frame)
        at_label, at_found = valid & (outer < _FAR), valid & (inner < _FAR)
        common = at_label & at_found & (truth == found)
        self.label_border += _by_radius(truth[at_label], outer[at_label], k)
        self.prediction_border += _by_radius(found[at_found], inner[at_found], k)
        self.common_border += _by_radius(truth[common], np.maximum(outer, inner)[common], k)

    def merge(self, other: BoundaryCounts) -> None:
        """Add what another part of the set has counted."""
        for name in self.__slots__:
            getattr(self, name).__iadd__(getattr(other, name))


def rings(labels: UInt8) -> UInt8:
    """For each pixel of (H, W) the index of the smallest radius within which another label lies; R where there is none."""
    band = _beside_other(labels)
    ring = np.full(labels.shape, _FAR, np.uint8) - band
    for smaller, larger in pairwise(RADII):
        for axis in (0, 1):
            band = _wider(band, larger - smaller, axis)
        ring -= band
    return ring


def _beside_other(labels: UInt8) -> Mask:
    """Pixels whose 3 x 3 neighbourhood holds two labels: it then holds two neighbours that differ."""
    across, down = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    differ = labels[:, 1:] != labels[:, :-1]
    across[:, 1:] |= differ
    across[:, :-1] |= differ
    differ = labels[1:] != labels[:-1]
    down[1:] |= differ
    down[:-1] |= differ
    return _wider(across, 1, 0) | _wider(down, 1, 1)


def _wider(band: Mask, pixels: int, axis: int) -> Mask:
    """The band and all pixels that lie at most so many away along an axis."""
    wide = band.copy()
    source, target = (band, wide) if axis == 0 else (band.T, wide.T)
    for step in range(1, pixels + 1):
        target[step:] |= source[:-step]
        target[:-step] |= source[step:]
    return wide


def _frame(size: tuple[int, ...]) -> UInt8:
    """As `rings`, for the image's own edge."""
    frame = np.full(size, _FAR, np.uint8)
    for ring, radius in reversed(list(enumerate(RADII))):
        frame[:radius] = frame[-radius:] = ring
        frame[:, :radius] = frame[:, -radius:] = ring
    return frame


def _by_radius(classes: UInt8, ring: UInt8, k: int) -> Int64:
    """(R, K): how many of the pixels of each class lie within each radius. Their classes and rings: (n,) each."""
    codes = classes.astype(np.int64) * (_FAR + 1) + ring
    table = np.bincount(codes, minlength=k * (_FAR + 1)).reshape(-1, _FAR + 1)
    counts: Int64 = table[:k, :_FAR].cumsum(axis=1).T
    return counts
