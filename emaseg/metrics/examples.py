"""The worst and the best images of an evaluation, small, for people to look at.

Room: metrics. Legend: H W image height and width, h w of the small copies.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]

WORST, BEST = 6, 4  # how many are kept
SIDE = 320  # pixels: longest side of the copies


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image. index: its place in the data set. miou: of this image alone.

    image: (h, w, 3) RGB. label, prediction: (h, w) train ids, every n-th pixel. All uint8.
    """

    index: int
    name: str
    miou: float
    image: UInt8
    label: UInt8
    prediction: UInt8


@dataclass(slots=True, eq=False)
class Examples:
    """The images with the lowest mIoU, the worst first, and with the highest, the best first."""

    worst: list[Example] = field(default_factory=list)
    best: list[Example] = field(default_factory=list)

    def add(self, index: int, name: str, miou: float | None, image: UInt8, label: UInt8, prediction: UInt8) -> None:
        """Keep copies of an image if it is among them. image: (H, W, 3), the others (H, W)."""
        if miou is None:
            return
        among_worst = len(self.worst) < WORST or (miou, index) < (self.worst[-1].miou, self.worst[-1].index)
        among_best = len(self.best) < BEST or (-miou, index) < (-self.best[-1].miou, self.best[-1].index)
        if among_worst or among_best:
            step = -(-max(label.shape) // SIDE)
            small = np.asarray(Image.fromarray(image).reduce(step)) if step > 1 else image.copy()
            reduced = (label[::step, ::step].copy(), prediction[::step, ::step].copy())
            self.merge(Examples(*[[Example(index, name, miou, small, *reduced)]] * 2))

    def merge(self, other: Examples) -> None:
        """Keep the worst and the best of both."""
        self.worst = sorted([*self.worst, *other.worst], key=lambda one: (one.miou, one.index))[:WORST]
        self.best = sorted([*self.best, *other.best], key=lambda one: (-one.miou, one.index))[:BEST]
