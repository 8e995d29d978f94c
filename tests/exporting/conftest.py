"""The exported files that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from emaseg.data.sets.build import build_dataset
from emaseg.errors import SystemFault
from emaseg.exported.extra import check_torch
from emaseg.exporting.export import Exported
from tests.exporting.made import FILES, ONE, ONE_SIZE, exported, recipe
from tests.shared import once

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
    """One of FILES, or ONE, made at its first use in the run; nobody writes to it."""

    @cache
    def make(name: str) -> Exported:
        kind, format_, include = FILES[name] if name != ONE else FILES["plain.pt2"]
        shape = ONE_SIZE if name == ONE else None
        return once(
            tmp_path_factory,
            f"exported {name}",
            lambda folder: exported(recipe(kind), folder / name, format_, include=include, shape=shape),
        )

    return make


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A file of 8 bits, its ranges learned from the four images of the recipe; nobody writes to it."""

    def make(folder: Path) -> Exported:
        (folder / "images").mkdir()
        dataset = build_dataset(recipe("emanet").data, "eval")
        for i in range(len(dataset)):
            Image.fromarray(dataset.open(i).image()).save(folder / f"images/{i}.png")
        return exported(recipe("emanet"), folder / "int8.onnx", "onnx", precision="int8", calibrate=folder / "images")

    return once(tmp_path_factory, "exported int8", make)
