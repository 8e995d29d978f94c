"""What a data set is: a list of samples whose image and label are read when they are asked for.

Room: data. Legend: H W image height and width, K classes, C channels. Images are 8-bit RGB unless a recipe declares
others, labels are train ids with 255 = ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from emaseg.errors import DataError
from emaseg.recipe.data import IGNORE

__all__ = [
    "WORD",
    "Box",
    "Dataset",
    "LabelError",
    "MemorySample",
    "Phase",
    "Pixels",
    "Region",
    "Sample",
    "SizeError",
    "Subset",
    "UInt8",
    "Words",
    "check_sizes",
    "published_label",
    "read_pair",
]

UInt8 = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]  # (H, W): a pixel's channels in the bytes of a number, the first in the lowest
WORD = np.dtype("<u4")  # of Words, whatever byte order the machine has
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]  # (H, W, C) on 0..255
Box = tuple[int, int, int, int]  # top, left, height, width
Phase = Literal["train", "eval"]  # which of a recipe's images: those it trains on, or those it is scored on


@dataclass(frozen=True, slots=True)
class Region:
    """Some of an image's pixels, (h, w, C), from (top, left) on.

    size: (H, W) of the image. words: (h, w), the same RGB pixels below a fourth byte of any value, if the reader has
    them, else None; resizing then lays them out itself.
    """

    pixels: Pixels
    top: int
    left: int
    size: tuple[int, int]
    words: Words | None = None

    @staticmethod
    def whole(image: Pixels) -> Region:
        return Region(image, 0, 0, (image.shape[0], image.shape[1]))


class Sample(Protocol):
    """One image and its label. Each method reads when it is called and raises a DataError that names the file.

    Image and label must have one size: whichever is read second is checked against the first.
    """

    @property
    def name(self) -> str:
        """What messages call it (the image's path)."""
        ...

    def label(self) -> UInt8 | None:
        """(H, W) train ids, 255 = ignore; None where the labels are not published. Read once, then kept."""
        ...

    def image(self) -> Pixels:
        """(H, W, C) on 0..255, oriented as a viewer shows it: uint8 RGB, or what the recipe declares (Bands)."""
        ...

    def region(self, box: Box) -> Region:
        """At least the pixels of `box`. Damage in rows that no box needs may go unseen."""
        ...

    def size(self) -> tuple[int, int]:
        """(H, W) of the image, from its header where the format allows."""
        ...


class Dataset(Protocol):
    """A list of samples. Implementations are picklable and hold no open files."""

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

    @property
    def withheld_by(self) -> str:
        """Who keeps the labels of a test set unpublished; "" = the labels are here."""
        ...

    @property
    def common_files(self) -> tuple[Path, ...]:
        """Files that every sample is read from, such as a packed file."""
        ...

    def __len__(self) -> int: ...

    def files(self, index: int) -> tuple[Path, ...]:
        """The files that sample `index` alone is read from, its image first; () for what is drawn or packed."""
        ...

    def name(self, index: int) -> str:
        """As Sample.name, without reading anything."""
        ...

    def open(self, index: int) -> Sample:
        """Sample `index`; nothing is read yet."""
        ...


@dataclass(frozen=True, slots=True)
class MemorySample:
    """A sample that is in memory already; satisfies Sample. pixels: (H, W, C). ids: (H, W), or None."""

    name: str
    pixels: Pixels
    ids: UInt8 | None

    def label(self) -> UInt8 | None:
        return self.ids

    def image(self) -> Pixels:
        return self.pixels

    def region(self, box: Box) -> Region:
        return Region.whole(self.pixels)

    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Subset:
    """Some samples of a data set, in the order of `indices`; satisfies Dataset."""

    dataset: Dataset
    indices: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @property
    def palette(self) -> UInt8:
        return self.dataset.palette

    @property
    def layout(self) -> str:
        return self.dataset.layout

    @property
    def withheld_by(self) -> str:
        return self.dataset.withheld_by

    @property
    def common_files(self) -> tuple[Path, ...]:
        return self.dataset.common_files

    def __len__(self) -> int:
        return len(self.indices)

    def files(self, index: int) -> tuple[Path, ...]:
        return self.dataset.files(self.indices[index])

    def name(self, index: int) -> str:
        return self.dataset.name(self.indices[index])

    def open(self, index: int) -> Sample:
        return self.dataset.open(self.indices[index])


def read_pair(dataset: Dataset, index: int) -> tuple[Pixels, UInt8]:
    """Image (H, W, C) and label (H, W) of sample `index`; the label is all ignored where it is not published.

    Raises:
        DataError: one of them is missing, damaged or mislabelled, or their sizes differ.
    """
    sample = dataset.open(index)
    label, image = sample.label(), sample.image()
    return image, np.full(image.shape[:2], IGNORE, np.uint8) if label is None else label


def published_label(sample: Sample) -> UInt8:
    """(H, W) train ids of a sample that must have a label.

    Raises:
        DataError: the label is not published, or as Sample.label.
    """
    label = sample.label()
    if label is None:
        raise DataError(
            f"{sample.name}: the labels of this test set are not published, so it can be neither trained on nor scored "
            "here",
            'choose a labelled split, such as "val"',
        )
    return label


class LabelError(DataError):
    """A label file that can be read but not used.

    kind: "mask" (a file that cannot hold classes), "values", "colours", or "ignored" (not one labelled pixel).
    """

    def __init__(self, message: str, hint: str = "", kind: str = "values") -> None:
        super().__init__(message, hint)
        self.kind = kind

    def __reduce__(self) -> tuple[type[LabelError], tuple[str, str, str]]:  # type: ignore[override]
        return type(self), (self.message, self.hint, self.kind)


class SizeError(DataError):
    """An image and a label of different size."""


def check_sizes(image_name: str, image: Sequence[int], label_name: str, label: Sequence[int]) -> None:
    """Stop unless image and label have one size (H, W).

    Raises:
        SizeError: they have not.
    """
    if tuple(image) == tuple(label):
        return
    turned = tuple(image) == tuple(label)[::-1]
    raise SizeError(
        f"{image_name} is {image[0]} x {image[1]} (height x width), but its mask {label_name} is {label[0]} x {label[1]}",
        "the mask seems drawn on the unrotated picture (EXIF orientation): turn it by 90 degrees"
        if turned
        else "image and mask must have one size: export the mask again, or resize it by nearest neighbour",
    )
