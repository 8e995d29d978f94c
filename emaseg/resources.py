"""Where things are: shipped recipes, the cache, data sets, run folders.

Room: the ground; never torch. Environment variables are read when a function is called.
"""

from __future__ import annotations

import importlib.resources
import os
from datetime import datetime
from functools import cache
from pathlib import Path

from emaseg.errors import DataError, RecipeError, closest, did_you_mean, nearest

HINTS = 3  # names that a hint offers


@cache
def shipped_recipes() -> tuple[str, ...]:
    """The names of the recipes that come with the program, sorted."""
    files = importlib.resources.files("emaseg.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def shipped_recipe_text(name: str) -> str:
    """The TOML text of a shipped recipe.

    Raises:
        RecipeError: there is none of this name.
    """
    if name not in shipped_recipes():
        hint = nearest(name, shipped_recipes()) or f"shipped: {', '.join(shipped_recipes())}"
        raise RecipeError(f"no shipped recipe is called `{name}`", hint)
    return importlib.resources.files("emaseg.recipes").joinpath(f"{name}.toml").read_text("utf-8")


def shipped_recipe_path(name: str) -> Path:
    """The file of a shipped recipe."""
    return Path(str(importlib.resources.files("emaseg.recipes").joinpath(f"{name}.toml")))


def cache_folder() -> Path:
    """Where downloaded weights live: $EMASEG_CACHE, else $XDG_CACHE_HOME/emaseg, else ~/.cache/emaseg."""
    own = os.environ.get("EMASEG_CACHE")
    if own:
        return expanded(own)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(xdg) if os.path.isabs(xdg) else expanded("~/.cache")  # the XDG rules: a relative path is void
    return base / "emaseg"


def offline() -> bool:
    """Whether EMASEG_OFFLINE rules out the network: set, and not to 0, false or no."""
    return os.environ.get("EMASEG_OFFLINE", "").lower() not in ("", "0", "false", "no")


def mirror() -> str:
    """EMASEG_MIRROR, the address of a folder that holds the weight files by name (a cache folder does); "" = none.

    It may hold a password or a token: never show it; weights/address.py reads it.
    """
    return os.environ.get("EMASEG_MIRROR", "")


def data_root(root: str) -> Path:
    """The folder of a data set: absolute or from `~` as it is, else below $EMASEG_DATA (default ./data), else here.

    Raises:
        DataError: none of these is a folder; names all that were looked at.
    """
    path = expanded(root)
    below = expanded(os.environ.get("EMASEG_DATA") or "data")
    places = [path] if path.is_absolute() else [(below / path).absolute(), path.absolute()]
    for place in places:
        if os.path.isdir(place):
            return place
    looked = " and ".join(map(str, dict.fromkeys(places)))
    where = "" if path.is_absolute() else ", or the folder above it: export EMASEG_DATA=/path"
    hint = f"""say where it is: --set 'data.root="/path/to/{path.name or "data"}"'{where}"""
    raise DataError(f'data.root = "{root}": no such folder; looked at {looked}', hint)


def runs_folder(name: str) -> Path:
    """Where the runs of a recipe lie that were given no folder: runs/<recipe>; their names, times, sort by age."""
    return Path("runs") / name


def default_run_folder(name: str, now: datetime) -> Path:
    """Where a run goes that was given no folder: runs/<recipe>/<time>."""
    return runs_folder(name) / now.strftime("%Y-%m-%d_%H-%M-%S")


def expanded(path: str) -> Path:
    """The path with a leading `~` replaced."""
    return Path(os.path.expanduser(path))  # unlike Path.expanduser, leaves an unknown ~user alone


def beside(path: Path) -> str:
    """`did you mean "a/best.pt"?` of what lies in the folder of a path that is not there, or of the nearest that is."""
    while path.parent != path and not os.path.isdir(path.parent):
        path = path.parent
    try:
        there = sorted(other.name for other in path.parent.iterdir() if not other.name.startswith("."))
    except OSError:
        return ""
    found = (str(path.parent / name) for name in closest(path.name, there, HINTS))
    return did_you_mean(f"./{name}" if name in shipped_recipes() else name for name in found)
