"""A small valid recipe whose line numbers the tests of this folder know."""

from __future__ import annotations

from emaseg.errors import RecipeError
from emaseg.recipe import parse_recipe

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
