"""Every test of this folder has a cache and a server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.weights.server import Server, running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, where the test can see into it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EMASEG_CACHE", str(folder))
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server
