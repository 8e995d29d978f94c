"""The things that travel through the data room: a sample, a training crop, a batch, and what a data set is.

Room: data. Legend: B batch, H W image height and width. Images are RGB, labels are train ids with 255 = ignore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from emaseg.recipe.schema import IGNORE

__all__ = ["IGNORE", "Batch", "Dataset", "Sample", "UInt8"]

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its labels, as stored.

    image: (H, W, 3) uint8 RGB. label: (H, W) uint8 train ids, 255 = ignore. name: what messages call it (its path).
    """

    image: UInt8
    label: UInt8
    name: str


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
