"""The exported files that several tests look at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emaseg.exporting.export import Exported
from tests.exporting.made import FILES, exported, recipe


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
