"""The shipped recipes say what the published rows say, and say all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emaseg.recipe import check, load_recipe, load_recipe_with_origins
from emaseg.recipe.check import num_classes
from emaseg.resources import shipped_recipe_text, shipped_recipes

GOLDEN: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent.parent / "golden" / "recipes.json").read_text())

# What a recipe may leave out: numbers that the table does not have, and sections that a row does not need.
MAY_BE_ABSENT = {"inference_tta", "published"}
NUMBERS = {"miou", "miou_ms_flip", "miou_flip", "miou_other", "memory_gb", "images_per_second"}


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", GOLDEN)
def test_a_row_has_the_published_values(name: str) -> None:
    recipe = load_recipe(name)
    found: dict[str, Any] = {}
    for key in GOLDEN[name]:
        value: Any = recipe
        for part in key.split("."):
            value = num_classes(recipe.data) if key == "num_classes" else getattr(value, part)
        found[key] = plain(value)
    assert found == GOLDEN[name]


def test_every_published_row_is_shipped() -> None:
    assert len(GOLDEN) == 12
    assert set(GOLDEN) <= set(shipped_recipes())


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_states_every_key(name: str) -> None:
    loaded = load_recipe_with_origins(name)
    silent = {key for key, origin in loaded.origins.items() if origin == "default"}
    assert silent <= MAY_BE_ABSENT | {f"published.{number}" for number in NUMBERS}
    assert loaded.recipe.name == name
    assert check(loaded.recipe) == ()


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_opens_with_the_commands_to_run_it(name: str) -> None:
    head = shipped_recipe_text(name).partition("schema")[0]
    assert f"emaseg train {name}" in head or f"emaseg train recipes/{name}.toml" in head
