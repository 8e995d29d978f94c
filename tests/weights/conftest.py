"""Every test of this folder has a cache, a server and an environment of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.weights.server import Server, running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, and no proxy, mirror or offline setting of the machine's."""
    for name in ("EMASEG_OFFLINE", "EMASEG_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "cache"
    monkeypatch.setenv("EMASEG_CACHE", str(folder))
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server
