"""The shipped recipes say what the published rows say, and say all of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from emaseg.evaluation.evaluate import compare_with_published
from emaseg.recipe import check, load_recipe, load_recipe_with_origins
from emaseg.recipe.data import num_classes
from emaseg.resources import shipped_recipe_text, shipped_recipes
from tests.recipe.samples import extra_keys

GOLDEN: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent.parent / "golden" / "recipes.json").read_text())

# The paper's two test-server rows are trained in three rounds; the first two are recipes without a published number.
ROUNDS = {f"paper_voc_test_{depth}_{last}" for depth in ("r101", "r152") for last in ("coco", "trainaug")}

# What a recipe may leave out: numbers that the table does not have, sections that a row does not need, and how processes
# share a loss that is the same either way.
MAY_BE_ABSENT = {"inference_tta", "published", "data.image_prefix", "data.mask_prefix", "loss.ranks"}
EXTRA = extra_keys()
NUMBERS = {"miou", "miou_ms_flip", "miou_flip", "miou_other", "memory_gb", "images_per_second"}


def plain(value: Any) -> Any:
    """As JSON says it: arrays for tuples, and for a parameter group its values in order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return list(dataclasses.astuple(value))
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", GOLDEN)
def test_a_row_has_the_published_values(name: str) -> None:
    """Protects every published value: the golden ones were not made from the recipes."""
    recipe = load_recipe(name)
    found: dict[str, Any] = {}
    for key in GOLDEN[name]:
        value: Any = recipe
        for part in key.split("."):
            value = num_classes(recipe.data) if key == "num_classes" else getattr(value, part)
        found[key] = plain(value)
    assert found == GOLDEN[name]


def test_every_published_row_is_shipped() -> None:
    """Protects the count: 41 rows in four documents, and the rounds that lead to two of them."""
    rows = set(GOLDEN) - ROUNDS
    assert len(rows) == 41
    assert set(GOLDEN) - rows == ROUNDS
    assert set(GOLDEN) <= set(shipped_recipes())
    assert {name for name in shipped_recipes() if load_recipe(name).published is not None} == rows


@pytest.mark.parametrize("name", shipped_recipes())
def test_tta_is_there_where_a_number_was_published_with_it(name: str) -> None:
    """Protects --tta: its protocol leads to the golden number of several scales or mirroring, the plain one to the
    other, and the header names it just where there is one."""
    recipe = load_recipe(name)
    golden = GOLDEN.get(name, {})
    single = golden.get("published.miou")
    with_tta = golden.get("published.miou_ms_flip") or golden.get("published.miou_flip")
    assert (recipe.inference_tta is not None) == (with_tta is not None)
    assert ("--tta" in shipped_recipe_text(name).partition("schema")[0]) == (with_tta is not None)
    for inference, percent in ((recipe.inference, single), (recipe.inference_tta, with_tta)):
        if inference is not None:
            found = compare_with_published(dataclasses.replace(recipe, inference=inference), recipe).miou
            assert found == (None if percent is None else pytest.approx(percent / 100))


@pytest.mark.parametrize("name", sorted(ROUNDS | {"paper_voc_test_r101", "paper_voc_test_r152"}))
def test_the_rounds_are_chained(name: str) -> None:
    """Protects COCO -> trainaug -> trainval: each round starts from the one before and asks for nothing else."""
    recipe = load_recipe(name)
    start = recipe.train.init_from
    assert (start == "") == name.endswith("_coco")
    assert (recipe.backbone.weights == "none") == bool(start)
    if start:
        before = load_recipe(start)
        assert (before.model, before.augment) == (recipe.model, recipe.augment)
        assert num_classes(before.data) == num_classes(recipe.data)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_states_every_key(name: str) -> None:
    """Protects reading a recipe on its own: no default decides anything, and no keys contradict each other."""
    loaded = load_recipe_with_origins(name)
    silent = {key for key, origin in loaded.origins.items() if origin == "default"}
    assert silent <= MAY_BE_ABSENT | EXTRA | {f"published.{number}" for number in NUMBERS}
    assert loaded.recipe.name == name
    assert check(loaded.recipe) == ()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_row_reads_as_published(name: str) -> None:
    """Protects the rows from options that no published system had: they neither state one nor set it otherwise."""
    origins = load_recipe_with_origins(name).origins
    assert {key for key in EXTRA & set(origins) if origins[key] != "default"} == set()


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_opens_with_the_commands_to_run_it(name: str) -> None:
    """Protects people who open the file first."""
    head = shipped_recipe_text(name).partition("schema")[0]
    assert f"emaseg train {name}" in head or f"emaseg train recipes/{name}.toml" in head
