"""How a raw batch gets from a loading process to the training process: through shared memory, or as bytes.

Room: data/pipeline. Legend: B batch.

A batch is made where it will be read, in a slot of the shared memory; its place is all that travels.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from emaseg.data.pipeline.transforms import RawBatch

Packed = npt.NDArray[Any] | tuple[str, tuple[int, ...], int]  # or data type, shape and place of one in shared memory


@dataclass(slots=True)
class Slot:
    """Room for a batch in the shared memory, from `offset` on: arrays are made there, one behind the other.

    made: where each begins, by its address.
    """

    space: memoryview | None
    offset: int
    used: int = 0
    made: dict[int, int] = field(default_factory=dict)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Not filled; in memory of its own where the slot has no room."""
        size, begin = math.prod(shape), self.used
        if self.space is None or begin + size * dtype.itemsize > len(self.space):
            return np.empty(shape, dtype)
        self.used += size * dtype.itemsize
        array = np.frombuffer(self.space, dtype, size, begin).reshape(shape)
        self.made[array.ctypes.data] = begin
        return array

    def packed(self, array: npt.NDArray[Any]) -> Packed:
        """An array as the other side will read it."""
        begin = self.made.get(array.ctypes.data)
        if begin is None or not array.flags.c_contiguous:
            return np.ascontiguousarray(array)
        return array.dtype.str, array.shape, self.offset + begin


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A raw batch on its way. The axes of its pixels go from the longest stride to the shortest; `axes` permutes them back."""

    pixels: Packed
    labels: Packed
    axes: tuple[int, ...]
    meta: tuple[Any, ...]  # the rest of a RawBatch


def pack(raw: RawBatch, slot: Slot) -> PackedBatch:
    """Whatever was not made in the slot travels as bytes."""
    pixels = raw.pixels.numpy()
    order = sorted(range(pixels.ndim), key=lambda axis: -pixels.strides[axis])
    axes = tuple(map(order.index, range(pixels.ndim)))
    return PackedBatch(
        slot.packed(pixels.transpose(order)), slot.packed(raw.labels.numpy()), axes, (raw.windows, raw.names)
    )


def unpack(packed: PackedBatch, memory: mmap.mmap | None) -> RawBatch:
    """The other side of pack; in shared memory the tensors lie where they were left."""
    tensors = []
    for one in (packed.pixels, packed.labels):
        array = one
        if isinstance(array, tuple):
            dtype, shape, offset = array
            array = np.frombuffer(cast(mmap.mmap, memory), dtype, math.prod(shape), offset).reshape(shape)
        tensors.append(torch.from_numpy(array))
    return RawBatch(tensors[0].permute(packed.axes), tensors[1], *packed.meta)
