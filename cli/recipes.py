"""`emaseg recipes`: what is shipped.

Room: cli. Needs no torch.
"""

from __future__ import annotations

import typer

from .options import SCHEMA, Json, Verbose, session_of


def recipes(context: typer.Context, as_json: Json = False, verbose: Verbose = False) -> int:
    """List the shipped recipes, with the mIoU that was published for each row.

    \b
    Examples:
      emaseg recipes
      emaseg recipes --json
    """
    session_of(context, verbose)
    from emaseg.recipe import load_recipe
    from emaseg.resources import shipped_recipes

    from .render import print_json, print_table

    shipped = [load_recipe(name) for name in shipped_recipes()]
    rows = [(r.name, r.title, r.data.kind, r.published.miou if r.published else None) for r in shipped]
    if as_json:
        keys = ("name", "title", "data", "published_miou")  # percent, as in the recipe
        print_json({"schema": SCHEMA, "recipes": [dict(zip(keys, row, strict=True)) for row in rows]})
    else:
        headings = ("recipe", "title", "data", "published mIoU")
        shown = [(name, title, data, "-" if miou is None else f"{miou:.2f}") for name, title, data, miou in rows]
        print_table(headings, shown, numbers=("published mIoU",))
    return 0
