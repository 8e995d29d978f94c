"""The things that travel through the data room: a sample, a training crop, a batch, and what a data set is.

Room: data. Legend: B batch, H W image height and width. Images are RGB, labels are train ids with 255 = ignore.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from emaseg.recipe.schema import IGNORE

__all__ = ["IGNORE", "Batch", "Box", "Dataset", "LabelFirst", "Part", "Sample", "UInt8", "Unread"]

UInt8 = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its labels, as stored.

    image: (H, W, 3) uint8 RGB. label: (H, W) uint8 train ids, 255 = ignore. name: what messages call it (its path).
    """

    image: UInt8
    label: UInt8
    name: str

    def part(self, box: Box) -> Part:
        """As Unread has it; here the whole image is there."""
        return Part.whole(self.image)


@dataclass(frozen=True, slots=True)
class Unread:
    """A sample whose label is read and whose image is not: a crop drawn on the label may need a part of it only.

    label, name: as in Sample. part: reads at least the pixels of a box, or raises the DataError that Dataset.read would.
    """

    label: UInt8
    name: str
    part: Callable[[Box], Part]


@dataclass(frozen=True, slots=True)
class Part:
    """Some of an image's pixels, (h, w, 3) uint8 RGB, from (top, left) on; size: (H, W) of the image."""

    pixels: UInt8
    top: int
    left: int
    size: tuple[int, int]

    @staticmethod
    def whole(image: UInt8) -> Part:
        return Part(image, 0, 0, (image.shape[0], image.shape[1]))


@dataclass(frozen=True, slots=True)
class Batch:
    """What a training step reads: images (B, 3, H, W) float32 normalised, labels (B, H, W) int64, 255 = ignore."""

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]


class Dataset(Protocol):
    """A list of samples that are read when asked for. Implementations are picklable and hold no open files."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def palette(self) -> UInt8:
        """(K, 3) uint8 RGB, a colour for each class."""
        ...

    @property
    def layout(self) -> str:
        """For people: how the files were recognised; "" = nothing to say."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call sample `index` (its image path)."""
        ...

    def read(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DataError: the image or its labels cannot be used; names file, value and remedy.
        """
        ...


@runtime_checkable
class LabelFirst(Dataset, Protocol):
    """A data set that can read the label of a sample before its image."""

    def begin(self, index: int) -> Sample | Unread:
        """Read the label of one sample; the image may wait until a crop is drawn on it.

        Raises:
            DataError: as read. What is wrong with the image may show only when it is read, or never in rows that no
                crop needs.
        """
        ...
