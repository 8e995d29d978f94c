"""What a training starts from: ImageNet weights of the backbone, or a whole network (train.init_from).

Room: weights; never torch.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from emaseg.errors import SystemFault, WeightsError, nearest
from emaseg.events import Downloading, Note
from emaseg.recipe import Recipe, load_recipe
from emaseg.resources import HINTS, beside, cache_folder, expanded, offline, runs_folder, shipped_recipes
from emaseg.runs.folder import RunFolder, find_run, newest_run, pick_checkpoint, resume_command
from emaseg.weights.cache import by_hand_advice, locate, verified
from emaseg.weights.download import fetch, sources
from emaseg.weights.kind import check_kind
from emaseg.weights.released import Released, by_reference
from emaseg.words import quoted_path

_WITHOUT = "or train from nothing: --set 'backbone.weights=\"none\"'"


def backbone_file(recipe: Recipe) -> Path:
    """The file that `backbone.weights` means: a path, or what lies in the cache under a released name or address.

    Raises:
        WeightsError: it is not here, or no longer what it was; says how to get it and how to do without.
    """
    weights = recipe.backbone.weights
    path = expanded(weights)
    if path.is_file():
        return path
    entry = by_reference(weights)
    if entry is None:
        path = cache_folder() / Path(weights).name
        if path.is_file():
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
    if entry is None or recipe.train.init_from or expanded(weights).is_file() or locate(entry) is not None:
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


def start_weights(ref: str) -> Path:
    """The file that `train.init_from` means.

    A name is a recipe's: its newest complete run below ./runs counts, and where it was never trained here, its released
    weights in the cache. Everything else is a path: a recipe file (its name counts), a run folder, a folder of runs (its
    newest complete one), a checkpoint or a weight file. Of a run: its best checkpoint, else the last.

    Raises:
        RecipeError: the recipe file cannot be read.
        WeightsError: there is no such run or file; names the command that makes it.
    """
    path = expanded(ref)
    if path.suffix == ".toml":
        return _newest_run(load_recipe(path).name, ref)
    plain = path.name == ref and ref not in (".", "..")
    if plain and (ref in shipped_recipes() or runs_folder(ref).is_dir()):
        return _newest_run(ref, ref)
    if path.is_dir():
        return pick_checkpoint(find_run(path)[0])
    if not path.is_file():
        hint = beside(path) or (nearest(ref, shipped_recipes(), HINTS) if plain else "")
        raise WeightsError(
            f'train.init_from = "{ref}": no such recipe, run folder or file',
            hint or "name a recipe that was trained here, a run folder, a checkpoint or a weight file",
        )
    check_kind(path)
    return path


def _newest_run(name: str, ref: str) -> Path:
    """The best checkpoint, else the last, of a recipe's newest complete run; without any run its released weights.

    Args:
        name: the recipe's. ref: how the user wrote it; a command that trains it, too.
    """
    folder = runs_folder(name)
    complete = newest_run(folder)
    if complete is not None:
        return pick_checkpoint(complete)
    runs = sorted((run for run in folder.glob("*") if (run / "recipe.toml").is_file()), reverse=True)
    entry = by_reference(name)
    file = locate(entry) if entry else None
    if entry and file and not runs:
        verified(entry, file)
        return file
    named = ref if ref in shipped_recipes() or ref != name else f"{ref}.toml"
    remedy = f"train it first: emaseg train {quoted_path(named)}"
    if runs:
        remedy = f"finish the newest: {resume_command(RunFolder(runs[0]))}"
    elif entry:
        remedy = f"fetch its released weights: emaseg download-weights {entry.name}; or {remedy}"
    raise WeightsError(
        f'train.init_from = "{ref}": no complete run of this recipe below {folder} ({len(runs)} incomplete)',
        f"{remedy} (or name a run folder, a checkpoint or a weight file instead)",
    )
