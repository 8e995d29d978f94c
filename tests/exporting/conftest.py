"""The exported files that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emaseg.errors import SystemFault
from emaseg.exported.extra import check_torch
from emaseg.exporting.export import Exported
from tests.exporting.made import FILES, exported, recipe

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a PyTorch that makes no programs for images of any size, all that makes a file here is skipped with that reason."""
    try:
        check_torch("torch", any_size=True)
    except SystemFault as fault:
        for item in items:
            if item.path.parent == HERE and item.path.stem not in ("test_request", "test_network"):
                item.add_marker(pytest.mark.skip(reason=fault.message))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """One of FILES, made at its first use; nobody writes to it."""
    folder = tmp_path_factory.mktemp("exported")
    done: dict[str, Exported] = {}

    def make(name: str) -> Exported:
        if name not in done:
            kind, format_, include = FILES[name]
            done[name] = exported(recipe(kind), folder / name, format_, include=include)
        return done[name]

    return make
