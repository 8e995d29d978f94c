"""A written recipe must read back as the same recipe: checkpoints and run folders rely on it."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.errors import RecipeError
from emaseg.recipe import Recipe, load_recipe, load_recipe_with_origins, parse_recipe, recipe_to_toml, toml_value
from emaseg.recipe.rule import Rule
from emaseg.recipe.sections import Problem, read_section, section_classes, section_keys
from emaseg.recipe.writer import toml_key
from emaseg.resources import shipped_recipes
from emaseg.words import printable
from tests.recipe.samples import MINIMAL, extra_keys


def values(type_: Any, rule: Rule) -> st.SearchStrategy[Any]:
    """Anything that the schema allows for one key."""
    classes = section_classes(type_)
    if classes:
        strategy = st.one_of([sections(cls) for cls in classes])
        return st.one_of(st.none(), strategy) if type(None) in typing.get_args(type_) else strategy
    if type_ == float | None:
        return st.one_of(st.none(), values(float, rule))
    if type_ == str | tuple[str, ...]:
        return values(str, rule) | values(tuple[str, ...], rule)
    if typing.get_origin(type_) is Literal:
        return st.sampled_from(typing.get_args(type_))
    if typing.get_origin(type_) is tuple:
        item, *rest = typing.get_args(type_)
        if rest == [...]:
            lengths = rule.lengths or (0, 1, 3)
            return st.sampled_from(lengths).flatmap(lambda n: st.tuples(*[values(item, rule)] * n))
        return st.tuples(*[values(item, rule)] * (1 + len(rest)))
    high = rule.ceiling if rule.high is None else rule.high
    if type_ is float:
        low = next((limit for limit in (rule.low, rule.floor, rule.above) if limit is not None), None)
        return st.floats(low, high, exclude_min=low == rule.above, allow_nan=False, allow_infinity=False, width=64)
    if type_ is int:
        return st.integers(None if rule.low is None else int(rule.low), None if high is None else int(high))
    if type_ == str | None:
        return st.none() | st.text(max_size=6)
    return {bool: st.booleans(), str: st.text(max_size=6)}[type_]


def sections(cls: type) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: values(key.type, key.rule) for name, key in section_keys(cls).items()})


@settings(max_examples=60, deadline=None)
@given(sections(Recipe))
def test_whatever_the_schema_allows_survives_the_round_trip(recipe: Recipe) -> None:
    problems: list[Problem] = []
    again = read_section(Recipe, tomllib.loads(recipe_to_toml(recipe)), "", problems, {})
    assert (again, problems) == (recipe, [])


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_survives_the_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    assert parse_recipe(recipe_to_toml(recipe), "again").recipe == recipe


def test_a_written_recipe_states_every_key_but_the_extra_ones_that_are_not_used() -> None:
    text = recipe_to_toml(parse_recipe(MINIMAL, "my.toml").recipe)
    origins = parse_recipe(text, "again").origins
    assert {key for key, origin in origins.items() if origin == "default"} == {
        *("inference_tta", "published", "data.image_prefix", "data.mask_prefix"),
        *(key for key in extra_keys() if not key.startswith("inference_tta.")),  # there is no such section
    }


def test_origins_become_comments() -> None:
    loaded = parse_recipe(MINIMAL, "my.toml", ["optim.lr=0.5"])
    rows = recipe_to_toml(loaded.recipe, loaded.origins).splitlines()
    assert "lr = 0.5  # --set" in rows
    assert "momentum = 0.9  # default" in rows
    assert "epochs = 2" in rows
    assert parse_recipe("\n".join(rows), "again").recipe == loaded.recipe


@given(st.text())
def test_any_text_is_quoted_so_that_tomllib_reads_it_back(text: str) -> None:
    assert tomllib.loads(f"x = {toml_value(text)}") == {"x": text}


def test_long_arrays_are_written_one_element_a_line() -> None:
    recipe = parse_recipe(MINIMAL, "my.toml").recipe
    classes = tuple(f"a rather long class name {index}" for index in range(6))
    wide = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, classes=classes))
    text = recipe_to_toml(wide)
    assert '    "a rather long class name 3",\n' in text
    assert parse_recipe(text, "again").recipe == wide


def test_parameter_groups_survive_with_their_origins() -> None:
    sets = ['optim.groups=[{match="bias", lr_scale=2}, {match="backbone"}]']
    loaded = load_recipe_with_origins("voc_r50_d8", sets)
    assert [group.lr_scale for group in loaded.recipe.optim.groups] == [2.0, 1.0]
    assert loaded.origins["optim.groups.1.match"] == "--set"
    assert parse_recipe(recipe_to_toml(loaded.recipe), "again").recipe == loaded.recipe


# Anything a name can hold, lone surrogates aside, which TOML cannot say; and as much of what is dangerous in it.
NAMES = st.text(
    st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from("\n\r\t\x1b\x7f\x85\u2028\u202e\"\\#'=["))
)


@given(st.dictionaries(NAMES, st.one_of(NAMES, st.lists(NAMES), st.dictionaries(NAMES, NAMES))))
def test_any_key_and_any_text_reads_back_and_nothing_in_it_is_obeyed(table: dict[str, Any]) -> None:
    """Protects a recipe that is shown on a terminal or edited: what is written is one line, printable and the same."""
    text = toml_value(table)
    assert printable(text) == text
    assert tomllib.loads(f"x = {text}") == {"x": table}
    lines = "\n".join(f"{toml_key(name)} = {toml_value(value)}" for name, value in table.items())
    assert tomllib.loads(lines) == table


@pytest.mark.parametrize(
    "edit",
    [
        lambda recipe: dataclasses.replace(recipe, title="\udcff"),
        lambda recipe: dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, classes=("a", "b\udcff"))),
        lambda recipe: dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root="x\udcff/y")),
    ],
)
def test_a_name_that_is_no_utf_8_is_refused(edit: Any) -> None:
    """Protects run folders from a recipe.toml that cannot be read, and the user from a bug report at the first write."""
    recipe = parse_recipe(MINIMAL, "mine.toml").recipe
    with pytest.raises(RecipeError, match=r"holds bytes that are not UTF-8"):
        recipe_to_toml(edit(recipe))
