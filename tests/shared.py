"""What takes seconds to make and several test files look at: made once in a run, whichever process asks first."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock  # PyTorch requires it

from tests.parity import filled_file

T = TypeVar("T")
OFTEN = ("ssseg/emanet_r50d8_voc", "ssseg/memorynet_r50d8_ade20k", "mmseg/mmseg_r50_512x1024")  # up to 370 MB


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """What `make` gives for a folder of its own; the run's other processes get the same, and wait for it if need be.

    The folder lives as long as the run, and nobody else writes to it.
    """
    top = factory.getbasetemp()
    folder = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.pickle"
    with FileLock(folder / "lock"):
        if not result.exists():
            made = pickle.dumps(make(folder))
            result.write_bytes(made)
        return pickle.loads(result.read_bytes())  # type: ignore[no-any-return]


def published_file(factory: pytest.TempPathFactory, name: str, folder: Path) -> Path:
    """`filled_file(name)`: of those that several tests look at the run's own, of others one in `folder`."""
    if name not in OFTEN:
        return filled_file(name, folder / "weights.pth")
    return once(factory, name.replace("/", " "), lambda own: filled_file(name, own / "weights.pth"))
