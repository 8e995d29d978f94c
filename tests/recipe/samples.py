"""A small valid recipe whose line numbers the tests of this folder know."""

from __future__ import annotations

from emaseg.errors import RecipeError
from emaseg.recipe import Recipe, parse_recipe
from emaseg.recipe.sections import section_classes, section_keys

MINIMAL = """\
schema = 1
name = "mine"

[model]
kind = "emanet"

[backbone]
kind = "resnet50"
output_stride = 8
weights = "none"

[data]
kind = "folder"
root = "photos"
classes = ["sky", "tree"]
train_images = "train"
train_masks = "train_masks"
eval_images = "val"
eval_masks = "val_masks"

[augment]
crop = [64, 96]

[optim]
lr = 0.01

[train]
epochs = 2
"""


def edited(*changes: tuple[str, str]) -> str:
    """MINIMAL with texts replaced, each of which must be there once."""
    text = MINIMAL
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def complaint(text: str, *sets: str) -> str:
    """The message of the RecipeError that reading the text as "my.toml" raises; "" when it is accepted."""
    try:
        parse_recipe(text, "my.toml", sets)
    except RecipeError as error:
        return error.message
    return ""


def extra_keys() -> set[str]:
    """The dotted keys that are written only where they differ from their default."""
    return {
        f"{section}.{name}"
        for section, key in section_keys(Recipe).items()
        for cls in section_classes(key.type)
        for name, inner in section_keys(cls).items()
        if inner.rule.extra
    }
