"""`emaseg recipes`: what is shipped, one of them to copy, and what every key of a recipe means.

Room: cli. Needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emaseg.errors import RecipeError, nearest

from .options import SCHEMA, Json, Verbose, session_of

if TYPE_CHECKING:
    from emaseg.recipe import Recipe
    from emaseg.recipe.published import Published

# How a published mIoU was reached, by the key that holds it; the order is that of the column.
PROTOCOLS = {"miou": "", "miou_flip": "flip", "miou_ms_flip": "ms+flip", "miou_other": "protocol not stated"}

_WIDE = 120  # columns of a terminal that show the whole table


def recipes(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this recipe; with --keys, a word to look for.")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="What every key of a recipe takes and means.")] = False,
    model: Annotated[str | None, typer.Option("--model", metavar="KIND", help="emanet or memorynet only.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--data", "--dataset", metavar="KIND", help="One data set only: voc, ade20k, ...")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="KIND", help="One backbone only: resnet50, ...")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """List the shipped recipes with the mIoU that was published for each row; print one; explain their keys.

    \b
    Examples:
      emaseg recipes
      emaseg recipes --model emanet --data voc
      emaseg recipes voc_r50_d8 > mine.toml
      emaseg recipes --keys crop

    mIoU is in percent, of one scale unless said otherwise (flip: with flipping, ms: several scales). Where weights is
    yes, the row's network was released: emaseg download-weights RECIPE.
    """
    session = session_of(context, verbose)
    from emaseg.recipe import load_recipe
    from emaseg.resources import shipped_recipe_text, shipped_recipes

    from .render import console, print_json, print_table, print_toml

    data = "--dataset" if any(word.startswith("--dataset") for word in session.arguments) else "--data"  # as typed
    if keys or name is not None:
        for option, value in (("--model", model), (data, dataset), ("--backbone", backbone)):
            if value is not None:
                raise RecipeError(f"{option} {value}: filters the list of all recipes", "leave NAME and --keys out")
    if keys:
        return _print_keys(name or "", as_json)
    if name is not None:
        text = shipped_recipe_text(name)
        if as_json:
            print_json({"schema": SCHEMA, "recipes": [{**_entry(load_recipe(name)), "toml": text}]})
        else:
            print_toml(text)
        return 0
    chosen = [load_recipe(name) for name in shipped_recipes()]
    for option, value, known in (
        ("--model", model, [recipe.model.kind for recipe in chosen]),
        (data, dataset, [recipe.data.kind for recipe in chosen]),
        ("--backbone", backbone, [recipe.backbone.kind for recipe in chosen]),
    ):
        if value is not None:
            _check_known(option, value, known)
    chosen = [
        recipe
        for recipe in chosen
        if model in (None, recipe.model.kind)
        and dataset in (None, recipe.data.kind)
        and backbone in (None, recipe.backbone.kind)
    ]
    if as_json:
        print_json({"schema": SCHEMA, "recipes": [_entry(recipe) for recipe in chosen]})
    else:
        headings: tuple[str, ...] = ("recipe", "model", "backbone", "data", "published mIoU", "weights")
        rows = [_row(recipe) for recipe in chosen]
        if console(sys.stdout).width < _WIDE:  # the names say the middle columns too
            headings, rows = (headings[0], *headings[4:]), [(row[0], *row[4:]) for row in rows]
        print_table(headings, rows, whole="recipe")
    return 0


def _print_keys(word: str, as_json: bool) -> int:
    """Two lines for each key: its name, type, range and default; then what it means."""
    from emaseg.recipe.keys import described_keys

    from .render import print_json, print_wrapped

    found = described_keys(word)
    if as_json:
        entries = [
            {"keys": one.keys, "kinds": one.kinds, "takes": one.takes, "default": one.default, "meaning": one.meaning}
            for one in found
        ]
        print_json({"schema": SCHEMA, "keys": entries})
        return 0
    for one in found:
        default = {None: "must be given", "": "may be left out"}.get(one.default, f"default {one.default}")
        kinds = f" ({', '.join(one.kinds)})" if one.kinds else ""
        print_wrapped(f"{', '.join(one.keys)}{kinds}: {one.takes}; {default}", "        ")
        print_wrapped(f"    {one.meaning}", "    ")
    return 0


def _check_known(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        there = ", ".join(sorted(set(known)))
        raise RecipeError(f"{option} {value}: no shipped recipe", nearest(value, known) or f"there are {there}")


def _row(recipe: Recipe) -> tuple[str, ...]:
    published = recipe.published
    backbone = f"{recipe.backbone.kind} /{recipe.backbone.output_stride}"
    released = "yes" if published and published.checkpoint else "-"
    return recipe.name, recipe.model.kind, backbone, recipe.data.kind, _scores(published), released


def _scores(published: Published | None) -> str:
    """`39.84, 41.49 ms+flip`."""
    scores = [(getattr(published, key, None), protocol) for key, protocol in PROTOCOLS.items()]
    return ", ".join(f"{miou:.2f} {protocol}".rstrip() for miou, protocol in scores if miou is not None) or "-"


def _entry(recipe: Recipe) -> dict[str, Any]:
    """One recipe for --json; mIoU in percent, as in the recipe."""
    from emaseg.resources import shipped_recipe_path

    published = recipe.published
    return {
        "name": recipe.name,
        "title": recipe.title,
        "path": str(shipped_recipe_path(recipe.name)),
        "model": recipe.model.kind,
        "backbone": recipe.backbone.kind,
        "output_stride": recipe.backbone.output_stride,
        "data": recipe.data.kind,
        "published_table": published.table if published else None,
        **{f"published_{key}": getattr(published, key, None) for key in PROTOCOLS},
        "weights": (published.checkpoint or None) if published else None,
    }
