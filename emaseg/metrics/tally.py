"""Everything that an evaluation counts: pixels of classes, of borders, of confidences, and of each image.

Room: metrics. Legend: H W image height and width, K classes.

All of it is integers, so that the tallies of parts of a set add up to that of the whole, exactly and in any order: this
is what several processes exchange (`merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from emaseg.metrics.boundary import BoundaryCounts
from emaseg.metrics.calibration import Calibration
from emaseg.metrics.confusion import Confusion, Scores, mean, ratio
from emaseg.metrics.examples import Examples

UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ImageCounts:
    """One image. index: its place in the data set. correct, labelled, predicted: (K,) counted pixels of each class."""

    index: int
    name: str
    correct: UInt32
    labelled: UInt32
    predicted: UInt32

    @property
    def pixels(self) -> int:
        """How many are labelled."""
        return int(self.labelled.sum())

    @property
    def iou(self) -> tuple[float | None, ...]:
        """Of each class in this image alone; None where it is neither labelled nor predicted."""
        union = self.labelled + self.predicted - self.correct
        return tuple(ratio(c, u) for c, u in zip(self.correct.tolist(), union.tolist(), strict=True))

    @property
    def miou(self) -> float | None:
        """Mean IoU of the classes that are labelled or predicted here; None where nothing is labelled."""
        return mean(self.iou)

    @property
    def pixel_accuracy(self) -> float | None:
        return ratio(int(self.correct.sum()), self.pixels)


@dataclass(slots=True, eq=False)
class Tally:
    """What was counted. calibration: None where the confidences were not asked for. images: in the data set's order.

    examples: the worst and the best of those whose pixels were given.
    """

    confusion: Confusion
    boundary: BoundaryCounts
    calibration: Calibration | None = None
    images: list[ImageCounts] = field(default_factory=list)
    examples: Examples = field(default_factory=Examples)

    @classmethod
    def empty(cls, num_classes: int, *, calibrated: bool = False) -> Tally:
        """Nothing counted yet.

        Raises:
            ValueError: as Confusion.empty.
        """
        calibration = Calibration.empty() if calibrated else None
        return cls(Confusion.empty(num_classes), BoundaryCounts.empty(num_classes), calibration)

    def add(
        self,
        index: int,
        name: str,
        label: UInt8,
        prediction: UInt8,
        confidence: Float32 | None = None,
        image: UInt8 | None = None,
    ) -> ImageCounts:
        """Count one image. All maps (H, W); confidence: of each pixel's class, in 0..1, where calibration is counted.

        image: (H, W, 3) uint8 RGB, where the worst and the best are kept to be looked at.

        Returns:
            This image's own counts.

        Raises:
            ValueError: as Confusion.add, or the confidence that calibration needs is missing.
        """
        own = self.confusion.add(label, prediction)
        correct, labelled, predicted = np.diagonal(own), own.sum(axis=1), own.sum(axis=0)
        counts = ImageCounts(index, name, *(row.astype(np.uint32) for row in (correct, labelled, predicted)))
        self.boundary.add(label, prediction)
        if self.calibration is not None:
            if confidence is None:
                raise ValueError("calibration is counted, but an image has no confidence")
            self.calibration.add(label, prediction, confidence, len(own))
        self.images.append(counts)
        if image is not None:
            self.examples.add(index, name, counts.miou, image, label, prediction)
        return counts

    def merge(self, other: Tally) -> None:
        """Add what another part of the set has counted; the images are put in the data set's order."""
        self.confusion.counts += other.confusion.counts
        self.boundary.merge(other.boundary)
        if self.calibration is not None and other.calibration is not None:
            self.calibration.merge(other.calibration)
        self.examples.merge(other.examples)
        self.images = sorted([*self.images, *other.images], key=lambda image: image.index)

    def scores(self, classes: Sequence[str]) -> Scores:
        """The scores of everything counted so far. classes: K names.

        Raises:
            ValueError: not K names.
        """
        return self.confusion.scores(classes, len(self.images))
