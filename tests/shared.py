"""What takes seconds to make and several test files look at: made once in a run, whichever process asks first."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock  # PyTorch requires it

T = TypeVar("T")


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
