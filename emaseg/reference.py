"""REF: what `eval`, `predict` and `export` are pointed at, turned into a recipe and a weight file.

Room: reference. What is wrong with a REF's name is said before torch is imported, which takes seconds.

A REF is
    a RUN folder            its best checkpoint, else the last
    a folder of runs        its newest complete run
    a checkpoint file       the recipe is inside
    an exported file        the recipe is inside; it runs without a network of ours
    a RECIPE                with --weights FILE (ours or another system's); alone it means its released weights, and
                            where the row has none, the recipe's newest complete run
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.errors import RecipeError, WeightsError, nearest
from emaseg.exported.info import is_exported, needed_overrides, read_info
from emaseg.files import open_file, sha256_of
from emaseg.recipe import Recipe, for_tta, load_recipe, old_names, parse_recipe
from emaseg.recipe.compare import differences
from emaseg.recipe.models import EMANetModel
from emaseg.recipe.overrides import parse_overrides
from emaseg.recipe.rule import EM_ITERATIONS
from emaseg.resources import HINTS, beside, cache_folder, expanded, runs_folder, shipped_recipes
from emaseg.runs.folder import find_run, newest_run, pick_checkpoint
from emaseg.weights.cache import by_hand_advice, locate, verified
from emaseg.weights.kind import check_kind
from emaseg.weights.released import by_reference
from emaseg.words import quoted, quoted_path

if TYPE_CHECKING:
    import torch

    from emaseg.engine import Engine
    from emaseg.exported.runtime import ExportedNetwork
    from emaseg.models import Network

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


Stamp = tuple[int, int, int]  # of a file: inode, bytes, and time of the last change; another file has another


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe, the weights to fill it with, and the run they belong to, if any.

    written: the recipe before `--set` and `--tta`. notes: which run was chosen where the REF named several, and old names
    of keys that the user wrote. state: the weights, where they were read with the recipe; the network's own once opened.
    stretched: (H, W) that every image is brought to, because an exported file takes no other size. stamp: of the file, from
    before `state` was read.
    """

    recipe: Recipe
    weights: Path
    run: Path | None
    written: Recipe
    notes: tuple[str, ...] = ()
    state: Mapping[str, torch.Tensor] | None = field(default=None, repr=False, compare=False)
    stretched: tuple[int, int] | None = None
    stamp: Stamp | None = field(default=None, compare=False)


def resolve(
    ref: str,
    *,
    weights: str | None = None,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    tta: bool = False,
) -> Resolved:
    """Find what a REF means, and read what it names.

    A checkpoint of ours is read whole here, weights and all, for its recipe lies in the same file: this takes as long as
    the file is large, and imports torch. Of released weights the file is hashed where it has changed. Of everything else
    only the recipe is read; `open_model` reads the weights.

    Args:
        ref: a RUN folder, a checkpoint file, or a recipe's name or path.
        weights: a weight file or RUN folder; required with a recipe, refused otherwise.
        checkpoint: "best", "last" or a file, for a RUN folder.
        overrides: `--set` values for the recipe; they may not change the network.
        tta: [inference_tta] takes [inference]'s place; values that `overrides` has for [inference] then go into it.

    Raises:
        RecipeError: a contradiction between the arguments, an empty name, an unknown recipe, or `tta` where it has no
            [inference_tta].
        WeightsError: no such weights, or a file that should hold its recipe and does not; says what to do.
    """
    for what, name in (("REF", ref), ("--weights", weights), ("--checkpoint", checkpoint)):
        if name == "":  # as a path it would be the current folder
            raise RecipeError(f"{what}: an empty name was given", "is it a shell variable that is not set?")
    path = expanded(ref)
    named = ref in shipped_recipes()  # a folder of that name must be written with a separator: ./demo
    if checkpoint is not None and (named or not os.path.isdir(path)):
        hint = f"the folder here is ./{ref}; write it so" if os.path.isdir(path) else "name the checkpoint file itself"
        raise RecipeError(f"--checkpoint {checkpoint}: {ref} is not a run folder", hint)
    if holds_weights(ref):
        if weights is not None:
            raise RecipeError(f"--weights {weights}: {ref} has weights of its own", "drop one of the two")
        if os.path.isdir(path):
            return _of_run(*find_run(path), checkpoint, overrides, tta)
        return _of_file(path, _run_of(path), "", overrides, tta)
    if not named:
        _check_there(ref, alone=weights is None)
    written, recipe = _with_options(lambda sets: load_recipe(ref, sets), overrides, tta)
    if weights is not None:
        file, note = _named_weights(weights)
        return Resolved(recipe, file, None, written, _notes(note, overrides, ref))
    if recipe.published is None or not recipe.published.checkpoint:
        run = newest_run(runs_folder(recipe.name))
        if run is None:
            hint = f"train it: emaseg train {quoted_path(ref)}; or give --weights FILE or a RUN folder"
            if os.path.isdir(path):
                hint = f"the folder here is ./{ref}; write it so, or {hint}"
            raise WeightsError(f"{recipe.name}: this recipe has no released weights, and no complete run here", hint)
        note = f"{recipe.name}: no released weights; its newest complete run is {run}"
        found = _of_run(run, note, None, overrides, tta)
        return replace(found, notes=(*found.notes, *_set_aside(ref, written, found.written, run)))
    file = _released(recipe, recipe.published.checkpoint)
    return Resolved(recipe, file, None, written, _notes(_released_note(recipe, file), overrides, ref))


def _set_aside(ref: str, written: Recipe, used: Recipe, run: Path) -> list[str]:
    """A line where a recipe that led to a run says something else than the one inside the run, which is used."""
    sections = ("model", "backbone", "data", "inference", "inference_tta")
    pairs = ((section, getattr(used, section), getattr(written, section)) for section in sections)
    keys = [difference.key for pair in pairs for difference in differences(*pair)]
    if not keys:
        return []
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    other = any(key.startswith(("model", "backbone", "data.classes", "data.kind")) for key in keys)
    again = "train it" if other else f"{quoted_path(ref)} --weights {quoted_path(run)}"
    return [f"the recipe of that run is used; {ref} has another {', '.join(keys[:4])}{more}: for that, {again}"]


def _released_note(recipe: Recipe, file: Path) -> str:
    """A line where a recipe of another name leads to released weights: it may be a row's copy that was trained since."""
    entry = by_reference(recipe.published.checkpoint) if recipe.published else None
    if entry is None or recipe.name in shipped_recipes():
        return ""
    run = newest_run(runs_folder(recipe.name))
    own = "" if run is None else f"; its newest complete run is {run}"
    return f"{recipe.name}: the released weights that its [published] names, {file.name}{own}"


def holds_weights(ref: str) -> bool:
    """Whether a REF is a run folder or a weight file, which `resolve` may have to read whole; a recipe takes a moment."""
    path = expanded(ref)
    return ref not in shipped_recipes() and (os.path.isdir(path) or _is_weight_file(path))


def _notes(note: str, overrides: Sequence[str], recipe: str = "") -> tuple[str, ...]:
    """A line, unless it is empty, and one for each old name of a key in `--set` or in a recipe of the user's."""
    return (*([note] if note else []), *old_names(overrides, recipe or None))


def _of_run(run: Path, note: str, checkpoint: str | None, overrides: Sequence[str], tta: bool) -> Resolved:
    return _of_file(pick_checkpoint(run, checkpoint), run, note, overrides, tta)


def _of_file(file: Path, run: Path | None, note: str, overrides: Sequence[str], tta: bool) -> Resolved:
    """Of a file with its recipe inside."""
    if not is_exported(file):
        return _of_checkpoint(file, run, note, overrides, tta)
    written, recipe, fixed = _recipe_of_exported(file, overrides, tta)
    notes = _notes(note, overrides)
    if fixed:
        size = f"{fixed[1]} x {fixed[0]} pixels"
        notes = (
            *notes,
            f"{file}: takes images of {size} only: every image is brought to that size, whatever its shape",
        )
    return Resolved(recipe, file, run, written, notes, stretched=fixed)


def _named_weights(weights: str) -> tuple[Path, str]:
    """The file that `--weights` names beside a recipe, and a line that says what was chosen, if anything was.

    Raises:
        WeightsError: there is none. RecipeError: an exported file.
    """
    file, note = expanded(weights), ""
    if os.path.isdir(file):
        run, note = find_run(file)
        file = pick_checkpoint(run)
    if not os.path.isfile(file):
        hint = beside(file) or "name a checkpoint, a weight file or a run folder"
        raise WeightsError(f"--weights {weights}: no such file", hint)
    if is_exported(file):
        raise RecipeError(f"--weights {weights}: an exported file has its recipe inside", f"name it alone: {weights}")
    return file, note


def open_model(resolved: Resolved, device: torch.device) -> Network | ExportedNetwork:
    """The network with its weights, or an exported file in its place, in eval mode on `device`."""
    if is_exported(resolved.weights):
        from emaseg.exported.runtime import open_exported

        return open_exported(resolved.weights, device)
    return open_network(resolved).to(device)


def open_engine(
    resolved: Resolved, device: torch.device, *, compiled: bool = False, probe: torch.Tensor | None = None
) -> Engine | ExportedNetwork:
    """As `open_model`, but made ready to be run fast and in the recipe's `inference.precision` (engine/stages.py).

    Args:
        compiled, probe: as `prepare` has them.

    Raises:
        RecipeError: an exported file is to be compiled. SystemFault: the device does not compute in that precision.
    """
    if is_exported(resolved.weights):
        if compiled:
            raise RecipeError("--compile: an exported file is a finished program", "leave --compile out")
        from emaseg.exported.runtime import open_exported

        return open_exported(resolved.weights, device)
    from emaseg.engine import check_precision, prepare

    precision = resolved.recipe.inference.precision
    check_precision(precision, device)  # before the weights are read
    return prepare(open_network(resolved), precision, device, compiled=compiled, probe=probe)


def device_for(resolved: Resolved, device: torch.device, asked: str) -> tuple[torch.device, list[str]]:
    """Where a REF runs, and a line where that is not `device`: ONNX Runtime for CPUs, as most have it, is no reason to
    refuse a file on a machine with a GPU that nobody asked for.

    Args:
        asked: what --device says.
    """
    if asked != "auto" or device.type == "cpu" or resolved.weights.suffix.lower() != ".onnx":
        return device, []
    from emaseg.exported.run_onnx import can_use

    if can_use(device):
        return device, []
    return type(device)("cpu"), [f"this onnxruntime cannot run on {device}, so {resolved.weights} runs on the CPU"]


def open_network(resolved: Resolved) -> Network:
    """The network with its weights, in eval mode on the CPU.

    Raises:
        RecipeError: the weights are an exported file's.
        WeightsError: not a weight file, or one whose weights do not fit.
    """
    if is_exported(resolved.weights):
        raise RecipeError(f"{resolved.weights}: is exported already", "name the checkpoint that it was made from")
    if resolved.state is None:
        check_kind(resolved.weights)
    from emaseg.checkpoint import load_network

    return load_network(resolved.recipe, resolved.weights, resolved.state)


def stamp_of(file: Path | int) -> Stamp | None:
    """What tells a file, or an open one, from any that takes its place; None where it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def hash_of_weights(file: Path, read: Stamp | None = None) -> str:
    """SHA-256 of a weight file, 64 hexadecimal digits: it ties a score to the file.

    Args:
        read: stamp of the file that the weights were read from; None = whichever is there.

    Raises:
        WeightsError: it cannot be read, or it is another file by now: a training replaces its best checkpoint.
    """
    try:
        with open_file(file) as opened:
            if read is not None and stamp_of(opened.fileno()) != read:
                raise WeightsError(
                    f"{file}: was replaced or changed while it was being read, so its hash would be another file's",
                    "try once more; while a training goes on, copy the checkpoint and name the copy",
                )
            return sha256_of(opened)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({error.strerror or error})", "check the path") from error


def with_em_iterations(resolved: Resolved, count: int) -> Resolved:
    """The same network with `count` EM iterations at evaluation and prediction (the paper's ablation of T).

    Raises:
        RecipeError: a network without EM iterations, or too many.
    """
    model = resolved.recipe.model
    if is_exported(resolved.weights):
        raise RecipeError(
            f"--em-iterations {count}: the iterations of an exported file are fixed",
            f"export it again with --set model.em_iterations_eval={count}",
        )
    if not isinstance(model, EMANetModel):
        raise RecipeError(
            f"--em-iterations {count}: {resolved.recipe.name} is a {model.kind}, which has no EM iterations",
            "leave --em-iterations out; EMANet alone iterates",
        )
    if not 1 <= count <= EM_ITERATIONS:
        raise RecipeError(f"--em-iterations {count}: must be 1 to {EM_ITERATIONS}", "the paper uses 3")
    recipe = replace(resolved.recipe, model=replace(model, em_iterations_eval=count))
    return replace(resolved, recipe=recipe)


def check_precision_name(precision: str) -> None:
    """
    Raises:
        RecipeError: no such precision.
    """
    if precision not in PRECISIONS:
        raise RecipeError(f"--precision {precision}: none of {', '.join(PRECISIONS)}", nearest(precision, PRECISIONS))


def with_precision(resolved: Resolved, precision: str) -> Resolved:
    """The same with another `inference.precision`; "auto" keeps the recipe's, which is fp32 unless it says otherwise.

    Raises:
        RecipeError: no such precision, or that of an exported file, which is fixed.
    """
    check_precision_name(precision)
    if precision == "auto" or precision == resolved.recipe.inference.precision:
        return resolved
    if is_exported(resolved.weights):
        raise RecipeError(
            f"--precision {precision}: the precision of an exported file is fixed",
            f"export it again: emaseg export REF --precision {precision}",
        )
    inference = replace(resolved.recipe.inference, precision=precision)  # type: ignore[arg-type]
    return replace(resolved, recipe=replace(resolved.recipe, inference=inference))


def _with_options(
    read: Callable[[Sequence[str]], Recipe], overrides: Sequence[str], tta: bool
) -> tuple[Recipe, Recipe]:
    """A recipe as it is written, and as `--set` and `--tta` want it.

    Raises:
        RecipeError: `tta`, but no [inference_tta] is written; a `--set` would open one that has nothing of [inference].
    """
    try:
        written = read(())
    except (RecipeError, WeightsError):  # keys that the file leaves out may be given by --set
        written = read(overrides)
    if not tta:
        return written, read(overrides) if overrides else written
    recipe = read(for_tta(overrides)) if written.inference_tta else written
    if recipe.inference_tta is None:
        raise RecipeError(
            f"--tta: {written.name} has no [inference_tta], the published protocol of several scales or flipping",
            "choose your own: --set inference.flip=true --set 'inference.scales=[0.75, 1.0, 1.25]'",
        )
    return written, replace(recipe, inference=recipe.inference_tta)


def _of_checkpoint(file: Path, run: Path | None, note: str, overrides: Sequence[str], tta: bool) -> Resolved:
    """Of one of our checkpoints, which is read here, once."""
    check_kind(file)
    from emaseg.checkpoint import read_network, recipe_inside

    stamp = stamp_of(file)
    text, state = read_network(file)
    if not overrides:
        recipe_inside(text, file)  # what is wrong in it is the file's fault, not that of who names it
    source = f"{file} (recipe inside)"
    written, recipe = _with_options(lambda sets: parse_recipe(text, source, sets).recipe, overrides, tta)
    _check_network(written, recipe, "checkpoint", ("weights", "em_iterations_eval"))
    notes = _notes(note, overrides)
    if written.optim.average_decay:
        notes += (f"{file}: the moving average of its weights (optim.average_decay = {written.optim.average_decay:g})",)
    return Resolved(recipe, file, run, written, notes, state, stamp=stamp)


def _recipe_of_exported(
    file: Path, overrides: Sequence[str], tta: bool
) -> tuple[Recipe, Recipe, tuple[int, int] | None]:
    """The recipe as it is written and as it is wanted, and the (H, W) that every image will be brought to, if any.

    Raises:
        RecipeError: the file cannot follow what is wanted.
    """
    written, recipe = _with_options(lambda sets: read_info(file, sets).recipe, overrides, tta)
    _check_network(written, recipe, "exported file", ("weights",))
    info = read_info(file)
    asked = recipe.inference.precision
    if asked != info.precision and _sets_precision(overrides, tta):
        raise RecipeError(
            f"--set inference.precision={asked}: the precision of an exported file is fixed",
            f"export it again: emaseg export REF --precision {asked}",
        )
    needed = needed_overrides(recipe.inference, info.include, info.shape)
    if needed:
        inside, options = ([f"{' and '.join(info.include)} inside"], ["--include"]) if info.include else ([], [])
        if info.shape is not None:
            inside.append("images of {1} x {0} pixels only".format(*info.shape))
            options.append("--shape")
        remedy = "leave --tta out" if tta else f"add {' '.join(f'--set {quoted(text)}' for text in needed)}"
        raise RecipeError(
            f"{file}: {', '.join(inside)}: it cannot follow this protocol",
            f"{remedy}, or export it without {' and '.join(options)}",
        )
    # the file decides, whatever its recipe says; int8 is of files alone
    inference = replace(recipe.inference, precision=info.precision)  # type: ignore[arg-type]
    return written, replace(recipe, inference=inference), info.fixed_size(recipe.inference)


def _sets_precision(overrides: Sequence[str], tta: bool) -> bool:
    """Whether `--set` names the precision of the protocol in use, as a key or in a whole section."""
    section = "inference_tta" if tta else "inference"
    return any(
        one.key == f"{section}.precision"
        or (one.key == section and isinstance(one.value, dict) and "precision" in one.value)
        for one in parse_overrides(for_tta(overrides) if tta else overrides)
    )


def _check_network(plain: Recipe, recipe: Recipe, what: str, free: Sequence[str]) -> None:
    """
    Raises:
        RecipeError: `recipe` changes a key of the network in `plain` that is not among the `free` ones.
    """
    for section in ("model", "backbone"):
        for changed in differences(section, getattr(plain, section), getattr(recipe, section), free):
            raise RecipeError(
                f"--set {changed.key}: contradicts the {what}, whose network has {changed.before!r}",
                "leave the network as it was trained",
            )


def _released(recipe: Recipe, url: str) -> Path:
    """The released weights of a published row, if they lie in the cache and are what they were."""
    entry = by_reference(url)
    path = cache_folder() / Path(url).name if entry is None else locate(entry)
    if path is None or not os.path.isfile(path):
        known = (
            f"emaseg download-weights {entry.name}; or {by_hand_advice(entry)}" if entry else f"save {url} as {path}"
        )
        raise WeightsError(
            f"{recipe.name}: its released weights are not on this machine", f"{known}; or give --weights FILE"
        )
    if entry is not None:
        verified(entry, path)
    return path


def _check_there(ref: str, *, alone: bool) -> None:
    """What no run folder, no weight file and no shipped recipe is called may still be a recipe's file; else say so.

    Args:
        alone: no weight file was named beside it, so it may have been meant to be one.

    Raises:
        WeightsError: it is written like a file or a folder, and there is none.
        RecipeError: it is written like a recipe's name, and there is none.
    """
    path = expanded(ref)
    if (
        path.suffix == ".toml"
        or os.path.exists(path)
        or path.name in shipped_recipes()
        or os.path.isfile(f"{ref}.toml")
    ):
        return  # load_recipe reads it, or knows better what to say
    separated = os.sep in ref or bool(os.altsep and os.altsep in ref)
    if alone and (separated or path.suffix):
        hint = beside(path) or "name a run folder of `emaseg train`, a checkpoint or an exported file"
        raise WeightsError(f"{ref}: no such run folder or file", hint)
    if not separated:
        hint = nearest(ref, shipped_recipes(), HINTS) or (beside(path) if alone else "")
        nor = ", and there is no such run folder or file" if alone else ""
        raise RecipeError(f"no shipped recipe is called `{ref}`{nor}", f"{hint} `emaseg recipes` lists all".strip())


def _is_weight_file(path: Path) -> bool:
    return os.path.isfile(path) and path.suffix != ".toml"


def _run_of(file: Path) -> Path | None:
    """The run that a checkpoint lies in."""
    run = file.resolve().parent.parent
    return run if file.parent.name == "checkpoints" and (run / "recipe.toml").is_file() else None
