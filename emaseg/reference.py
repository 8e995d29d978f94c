"""REF: what `eval` and `predict` are pointed at, turned into a recipe and a weight file.

Room: reference; imports recipe, resources, run_folder; checkpoint and models (and with them torch) when needed.

A REF is
    a RUN folder            its best checkpoint, else the last
    a checkpoint file       the recipe is inside
    a RECIPE                with --weights FILE (ours or another system's); alone it means its released weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.errors import RecipeError, WeightsError
from emaseg.recipe import Recipe, load_recipe, parse_recipe
from emaseg.resources import cache_folder, expanded, shipped_recipes
from emaseg.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from emaseg.models.emanet import EMANet

CHOICES = ("best", "last")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe, the weights to fill it with, and the run they belong to, if any."""

    recipe: Recipe
    weights: Path
    run: Path | None


def resolve(
    ref: str, *, weights: str | None = None, checkpoint: str | None = None, overrides: Sequence[str] = ()
) -> Resolved:
    """Find what a REF means.

    Args:
        ref: a RUN folder, a checkpoint file, or a recipe's name or path.
        weights: a weight file or RUN folder; required with a recipe, refused otherwise.
        checkpoint: "best", "last" or a file, for a RUN folder.
        overrides: `--set` values for the recipe; they may not change the network.

    Raises:
        RecipeError: a contradiction between the arguments, or an unknown recipe.
        WeightsError: no such weights; says what to do.
    """
    path = expanded(ref)
    named = ref in shipped_recipes()  # a folder of that name must be written with a separator: ./demo
    if checkpoint is not None and (named or not path.is_dir()):
        raise RecipeError(f"--checkpoint {checkpoint}: {ref} is not a run folder", "name the checkpoint file itself")
    if not named and (path.is_dir() or _is_weight_file(path)):
        if weights is not None:
            raise RecipeError(f"--weights {weights}: {ref} has weights of its own", "drop one of the two")
        run = path if path.is_dir() else _run_of(path)
        file = _pick(path, checkpoint) if path.is_dir() else path
        return Resolved(_recipe_inside(file, overrides), file, run)
    recipe = load_recipe(ref, overrides)
    if weights is None:
        return Resolved(recipe, _released(recipe), None)
    file = expanded(weights)
    if file.is_dir():
        file = _pick(file, None)
    if not file.is_file():
        raise WeightsError(f"--weights {weights}: no such file", "name a checkpoint, a weight file or a run folder")
    return Resolved(recipe, file, None)


def open_model(resolved: Resolved, device: torch.device) -> EMANet:
    """The network with its weights, in eval mode on `device`."""
    import torch

    from emaseg.checkpoint import load_weights
    from emaseg.models import build_model

    with torch.device("meta"):
        model = build_model(resolved.recipe)
    load_weights(model, resolved.weights)
    return model.to(device).eval()


def _pick(run: Path, checkpoint: str | None) -> Path:
    folder = RunFolder(run)
    if checkpoint is not None and checkpoint not in CHOICES:
        file = Path(checkpoint)
        if not file.is_file():
            raise WeightsError(f"--checkpoint {checkpoint}: no such file", "use best, last or a file")
        return file
    wanted = {"best": (folder.best,), "last": (folder.last,), None: (folder.best, folder.last)}[checkpoint]
    for file in wanted:
        if file.is_file():
            return file
    names = " or ".join(str(file) for file in wanted)
    raise WeightsError(f"{run}: no checkpoint in this folder (looked for {names})", "name a run folder or a file")


def _recipe_inside(file: Path, overrides: Sequence[str]) -> Recipe:
    from emaseg.checkpoint import FORMAT, read_file

    content = read_file(file)
    if content.get("format") != FORMAT or not isinstance(content.get("recipe"), str):
        raise WeightsError(
            f"{file}: holds no recipe, so it does not say which network it belongs to",
            f"name the recipe too: RECIPE --weights {file}",
        )
    source = f"{file} (recipe inside)"
    plain = parse_recipe(content["recipe"], source).recipe
    recipe = parse_recipe(content["recipe"], source, overrides).recipe
    for section in ("model", "backbone"):
        old, new = getattr(plain, section), getattr(recipe, section)
        for key in (f.name for f in fields(old)):
            if getattr(old, key) != getattr(new, key, None) and key not in ("weights", "stages_eval"):
                raise RecipeError(
                    f"--set {section}.{key}: contradicts the checkpoint, whose network has {getattr(old, key)!r}",
                    "leave the network as it was trained",
                )
    return recipe


def _released(recipe: Recipe) -> Path:
    """The released weights of a published row, if they lie in the cache."""
    url = recipe.published.checkpoint if recipe.published else ""
    if not url:
        raise WeightsError(f"{recipe.name}: this recipe has no released weights", "give --weights FILE or a RUN folder")
    names = [Path(u).name for u in (url, *(recipe.published.checkpoint_mirrors if recipe.published else ()))]
    for name in names:
        if (cache_folder() / name).is_file():
            return cache_folder() / name
    raise WeightsError(
        f"{recipe.name}: its released weights are not on this machine",
        f"download {url} and save it as {cache_folder() / names[0]}, or give --weights FILE",
    )


def _is_weight_file(path: Path) -> bool:
    return path.is_file() and path.suffix != ".toml"


def _run_of(file: Path) -> Path | None:
    """The run that a checkpoint lies in."""
    run = file.resolve().parent.parent
    return run if file.parent.name == "checkpoints" and (run / "recipe.toml").is_file() else None
