"""The pretrained weights that a backbone starts from: which file `backbone.weights` means, and how it is fetched.

Room: weights; never torch.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

from emaseg.errors import SystemFault, WeightsError
from emaseg.events import Downloading, Note
from emaseg.recipe import Recipe
from emaseg.resources import cache_folder, expanded, offline
from emaseg.weights.cache import by_hand_advice, locate, verified
from emaseg.weights.download import fetch, sources
from emaseg.weights.released import Released, by_reference

_WITHOUT = "or train from nothing: --set 'backbone.weights=\"none\"'"


def backbone_file(recipe: Recipe) -> Path:
    """The file that `backbone.weights` means: a path, or what lies in the cache under a released name or address.

    Raises:
        WeightsError: it is not here, or no longer what it was; says how to get it and how to do without.
    """
    weights = recipe.backbone.weights
    path = expanded(weights)
    if os.path.isfile(path):  # unlike Path's, it takes names that no file can have, such as signed addresses
        return path
    entry = by_reference(weights)
    if entry is None:
        path = cache_folder() / Path(weights).name
        if os.path.isfile(path):
            return path
        remedy = f"save it as {path}"
    else:
        found = locate(entry)
        if found is not None:
            verified(entry, found)
            return found
        path = cache_folder() / entry.file
        remedy = f"{f'run emaseg download-weights {entry.name}; or ' if sources(entry) else ''}{by_hand_advice(entry)}"
    raise WeightsError(
        f"backbone.weights: {weights} is not here (looked for {path})",
        f"{remedy}; or name a file: --set 'backbone.weights=\"FILE\"'; {_WITHOUT}",
    )


def fetchable(recipe: Recipe) -> Released | None:
    """The released backbone that training would fetch first; None when it is here, not released or not wanted."""
    weights = recipe.backbone.weights
    entry = by_reference(weights)
    if entry is None or recipe.train.init_from or os.path.isfile(expanded(weights)) or locate(entry) is not None:
        return None
    return entry if sources(entry) and not offline() else None


def fetch_backbone(recipe: Recipe) -> Generator[Downloading | Note, None, None]:
    """Fetch the released backbone that the recipe starts from, where it is missing and may be fetched.

    Raises:
        WeightsError, SystemFault: it cannot be had; says also how to do without.
    """
    entry = fetchable(recipe)
    if entry is None:
        return
    try:
        yield from fetch(entry)
    except (SystemFault, WeightsError) as error:
        raise type(error)(error.message, f"{error.hint}; {_WITHOUT}") from error
