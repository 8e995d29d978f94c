"""The list of keys: complete, and true to what the reader takes."""

from __future__ import annotations

import pytest

from emaseg.errors import RecipeError
from emaseg.recipe import load_recipe, parse_recipe, recipe_to_toml
from emaseg.recipe.keys import described_keys
from emaseg.recipe.lines import key_lines
from emaseg.resources import shipped_recipes


def test_every_key_of_every_shipped_recipe_is_listed() -> None:
    """Protects the list from missing a key: whatever a recipe holds can be looked up."""
    listed = {key for one in described_keys() for key in one.keys}
    for name in shipped_recipes():
        for key in key_lines(recipe_to_toml(load_recipe(name))):
            dotted = ".".join("N" if isinstance(part, int) else part for part in key)
            while dotted.endswith(".N"):  # what an array holds
                dotted = dotted.removesuffix(".N")
            section = any(other.startswith(f"{dotted}.") for other in listed)
            assert section or dotted in listed, f"{name}: {dotted}"


def test_a_listed_default_is_the_one_that_the_reader_uses() -> None:
    """Protects from a list of its own: each default, given explicitly, changes nothing."""
    text = recipe_to_toml(load_recipe("demo"))
    plain = parse_recipe("\n".join(line for line in text.splitlines() if "flip" not in line), "demo").recipe
    (flip,) = (one for one in described_keys("flip") if one.keys == ("inference.flip", "inference_tta.flip"))
    assert (flip.kinds, flip.takes, flip.default) == ((), "true or false", "false")
    assert plain.inference.flip is False
    (crop,) = (one for one in described_keys() if one.keys == ("augment.crop",))
    assert crop.default is None
    assert "array of 2 whole numbers, each at least 1" in crop.takes
    (kind,) = (one for one in described_keys() if one.keys == ("model.kind",))
    assert kind.takes == 'one of "emanet", "memorynet"'


def test_a_word_without_a_key_offers_the_nearest() -> None:
    """Protects people who guess: `epoch` and `epohcs` lead to train.epochs."""
    assert ("train.epochs",) in [one.keys for one in described_keys("EPOCH")]
    with pytest.raises(RecipeError, match="no key has that") as caught:
        described_keys("epohcs")
    assert 'did you mean "epochs"?' in caught.value.hint
