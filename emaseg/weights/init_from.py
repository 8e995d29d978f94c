"""Which file `train.init_from` means: the whole network that a training starts from.

Room: weights; never torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from emaseg.errors import WeightsError, nearest
from emaseg.recipe import Published, load_recipe
from emaseg.resources import HINTS, beside, expanded, runs_folder, shipped_recipes
from emaseg.runs.folder import RunFolder, find_run, newest_run, pick_checkpoint, resume_command, runs_by_time
from emaseg.weights.cache import by_hand_advice, locate, verified
from emaseg.weights.kind import check_kind
from emaseg.weights.released import by_reference
from emaseg.words import quoted_path


def init_from_file(ref: str) -> Path:
    """The file that `train.init_from` means.

    A recipe, by its name or its file, means the released weights that its [published] names, as for every command, or
    where its row has none its newest complete run below ./runs. Everything else is a path: a run folder, a folder of
    runs (its newest complete one), a checkpoint or a weight file. Of a run: its best checkpoint, else the last.

    Raises:
        RecipeError: the recipe file cannot be read.
        WeightsError: there is no such run or file; names the command that makes it.
    """
    path = expanded(ref)
    if path.suffix == ".toml":
        recipe = load_recipe(path)
        return _of_recipe(recipe.name, recipe.published, ref)
    plain = path.name == ref and ref not in (".", "..")
    if plain and ref in shipped_recipes():
        return _of_recipe(ref, load_recipe(ref).published, ref)
    if plain and os.path.isdir(runs_folder(ref)):
        return _of_recipe(ref, None, ref)
    if os.path.isdir(path):
        return pick_checkpoint(find_run(path)[0])
    if not os.path.isfile(path):
        hint = beside(path) or (nearest(ref, shipped_recipes(), HINTS) if plain else "")
        raise WeightsError(
            f'train.init_from = "{ref}": no such recipe, run folder or file',
            hint or "name a recipe that was trained here, a run folder, a checkpoint or a weight file",
        )
    check_kind(path)
    return path


def _of_recipe(name: str, published: Published | None, ref: str) -> Path:
    """A recipe's released weights, else the best checkpoint, else the last, of its newest complete run.

    Args:
        name, published: the recipe's. ref: how the user wrote it; a command that trains it, too.
    """
    entry = by_reference(published.checkpoint) if published else None
    file = locate(entry) if entry else None
    if entry and file:
        verified(entry, file)
        return file
    if entry:
        raise WeightsError(
            f'train.init_from = "{ref}": its released weights are not on this machine',
            f"emaseg download-weights {entry.name}; or {by_hand_advice(entry)}; or name a run folder or a checkpoint",
        )
    folder = runs_folder(name)
    complete = newest_run(folder)
    if complete is not None:
        return pick_checkpoint(complete)
    runs = runs_by_time(folder)
    named = ref if ref in shipped_recipes() or ref != name else f"{ref}.toml"
    remedy = f"train it first: emaseg train {quoted_path(named)}"
    if runs:
        remedy = f"finish the newest: {resume_command(RunFolder(runs[0]))}"
    raise WeightsError(
        f'train.init_from = "{ref}": no complete run of this recipe below {folder} ({len(runs)} incomplete)',
        f"{remedy} (or name a run folder, a checkpoint or a weight file instead)",
    )
