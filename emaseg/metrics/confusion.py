"""Scores of a segmentation: one confusion matrix over the whole set, then IoU and accuracies.

Room: metrics.
Legend: H W image height and width, K classes.

The published convention (chainercv, sssegmentation, mmsegmentation and the EMANet authors agree on it): pixels
labelled 255, or K and above, count nowhere, not even as predictions; a class that neither occurs nor is
predicted on a counted pixel is left out of the mean; a class that is predicted but never occurs counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

_VALUES = 256  # of an 8-bit label map
_MOST_CLASSES = 255  # the value 255 means ignore

Status = Literal["ok", "absent", "never_predicted", "only_predicted", "never_right"]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class. Fractions in 0..1; None where 0 would have to be divided by 0.

    status: "absent" = neither labelled nor predicted, "never_predicted" = labelled only,
    "only_predicted" = never labelled, "never_right" = both, but nowhere at the same pixel, "ok" = right somewhere.
    """

    name: str
    iou: float | None
    accuracy: float | None
    status: Status


@dataclass(frozen=True, slots=True)
class Scores:
    """A whole set. Fractions in 0..1; None when no pixel of the set is labelled.

    miou: mean IoU of the classes that have one. pixel_accuracy: share of the labelled pixels that are right.
    mean_accuracy: mean of the accuracies of the labelled classes. images: how many were counted.
    """

    miou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    images: int
    per_class: tuple[ClassScore, ...]


@dataclass(slots=True, eq=False)
class Confusion:
    """Pixel counts, (K, K) int64: row = label, column = prediction."""

    counts: Int64

    @classmethod
    def empty(cls, num_classes: int) -> Confusion:
        """No pixel counted yet.

        Raises:
            ValueError: not 1..255 classes (labels are 8 bits and 255 means ignore).
        """
        if not 1 <= num_classes <= _MOST_CLASSES:
            raise ValueError(f"{num_classes} classes; a confusion matrix holds 1 to {_MOST_CLASSES}")
        return cls(np.zeros((num_classes, num_classes), dtype=np.int64))

    def add(self, label: UInt8, prediction: UInt8) -> Int64:
        """Count one image. Both maps (H, W) uint8; labels of K and above are ignored.

        Returns:
            This image's own counts, (K, K).

        Raises:
            ValueError: the sizes differ, a map is not uint8, or a counted pixel is predicted as K or above.
        """
        if label.shape != prediction.shape:
            raise ValueError(f"label {label.shape} and prediction {prediction.shape} differ in size")
        if label.dtype != np.uint8 or prediction.dtype != np.uint8:
            raise ValueError(f"label {label.dtype} and prediction {prediction.dtype} must both be uint8")
        # One pass over the pairs as 16-bit codes: ignored labels fall outside the K rows by themselves, no mask.
        codes = label.astype(np.int32)
        codes <<= 8  # _VALUES = 2**8
        codes |= prediction
        table = (
            torch.bincount(torch.from_numpy(codes.reshape(-1)), minlength=_VALUES**2).numpy().reshape(_VALUES, _VALUES)
        )
        k = len(self.counts)
        if table[:k, k:].any():
            raise ValueError(f"a prediction holds class {prediction.max()}, but there are only {k} classes")
        own: Int64 = table[:k, :k]
        self.counts += own
        return own

    def scores(self, classes: Sequence[str], images: int) -> Scores:
        """The scores of everything counted so far. classes: K names; images: how many were added.

        Raises:
            ValueError: not K names.
        """
        if len(classes) != len(self.counts):
            raise ValueError(f"{len(classes)} class names for {len(self.counts)} classes")
        correct = np.diagonal(self.counts).tolist()
        labelled = self.counts.sum(axis=1).tolist()
        predicted = self.counts.sum(axis=0).tolist()
        per_class = tuple(map(_class_score, classes, correct, labelled, predicted))
        return Scores(
            miou=mean([c.iou for c in per_class]),
            pixel_accuracy=ratio(sum(correct), sum(labelled)),
            mean_accuracy=mean([c.accuracy for c in per_class]),
            images=images,
            per_class=per_class,
        )


def _class_score(name: str, correct: int, labelled: int, predicted: int) -> ClassScore:
    """IoU = TP / (labelled + predicted - TP), accuracy = TP / labelled."""
    status: Status = "ok"
    if not labelled:
        status = "only_predicted" if predicted else "absent"
    elif not predicted:
        status = "never_predicted"
    elif not correct:
        status = "never_right"
    return ClassScore(name, ratio(correct, labelled + predicted - correct), ratio(correct, labelled), status)


def ratio(count: int, total: int) -> float | None:
    """None for 0 / 0."""
    return count / total if total else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known; None without any."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
