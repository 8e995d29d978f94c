"""A raw batch on its way out of a loading process: the same values in the same order in memory, whichever way it takes."""

from __future__ import annotations

import mmap
import pickle

import numpy as np
import pytest
import torch

from emaseg.data.pipeline.transforms import RawBatch
from emaseg.data.pipeline.transport import Slot, pack, unpack


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 2, 1, 0)])
def test_a_batch_keeps_its_order_in_memory(order: tuple[int, ...], shared: bool) -> None:
    """Protects planes from being laid out pixel by pixel on their way, and back again."""
    shape, memory = (2, 5, 7, 3), mmap.mmap(-1, 10**5) if shared else None
    slot = Slot(memoryview(memory)[64:] if memory else None, 64)
    pixels = slot.empty(tuple(shape[axis] for axis in order), np.dtype(np.uint8))
    labels = slot.empty(shape[:3], np.dtype(np.uint8))
    pixels.flat, labels[...] = range(210), 1
    raw = RawBatch(
        torch.from_numpy(pixels.transpose(tuple(map(order.index, range(4))))),
        torch.from_numpy(labels), ((0, 0, 5, 7),) * 2, ("a", "b"),
    )  # fmt: skip
    packed = pack(raw, slot)
    assert isinstance(packed.pixels, tuple) == isinstance(packed.labels, tuple) == shared
    got = unpack(packed, memory)
    assert torch.equal(got.pixels, raw.pixels)
    assert torch.equal(got.labels, raw.labels)
    assert (got.windows, got.names) == (raw.windows, raw.names)
    assert got.pixels.stride() == raw.pixels.stride()


@pytest.mark.parametrize("size", [0, 1, 209, 210, 419, 420])
def test_what_has_no_room_in_a_slot_travels_as_bytes(size: int) -> None:
    """Pixels, labels, or both; nothing is written beyond the slot, where the next one begins."""
    memory = mmap.mmap(-1, 1024)
    slot = Slot(memoryview(memory)[64 : 64 + size], 64)
    pixels, labels = (slot.empty((1, 10, 7, 3), np.dtype(np.uint8)) for _ in range(2))
    pixels[...], labels[...] = 5, 6
    packed = pack(RawBatch(torch.from_numpy(pixels), torch.from_numpy(labels), (), ()), slot)
    assert (isinstance(packed.pixels, tuple), isinstance(packed.labels, tuple)) == (size >= 210, size >= 420)
    got = unpack(pickle.loads(pickle.dumps(packed)), memory)
    assert (got.pixels == 5).all()
    assert (got.labels == 6).all()
    assert not any(memory[:64])
    assert not any(memory[64 + size :])
