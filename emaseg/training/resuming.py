"""Continuing a run: which checkpoint is used, whether it fits, and what is said about what has changed since.

Room: training.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from emaseg.checkpoint import Checkpoint, check_resumable, read_checkpoint
from emaseg.distributed.collectives import world_size
from emaseg.errors import DataError, ImageTooLarge, RecipeError, UserError, WeightsError
from emaseg.events import Note
from emaseg.files import set_aside
from emaseg.models import Network
from emaseg.recipe import Recipe, toml_value
from emaseg.recipe.compare import differences
from emaseg.runs.folder import RunFolder, found_checkpoints, resume_command
from emaseg.runs.metrics_file import last_step
from emaseg.schedule import build_schedule
from emaseg.training.optim import learning_rate
from emaseg.training.run_steps import STALLED
from emaseg.words import Lines, excerpt, lines_of, quoted_path


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run goes on from: a checkpoint, its file, and lines that say what was passed over."""

    checkpoint: Checkpoint
    path: Path
    notes: tuple[Note, ...] = ()


def origin_of(
    run: RunFolder, recipe: Recipe, model: Network, optimizer: torch.optim.Optimizer, total: int, images: int
) -> Origin | None:
    """What a run of this recipe goes on from; None where there is no checkpoint at all.

    Args:
        model, optimizer: as the recipe builds them. total: the run's steps. images: to train on.

    Raises:
        WeightsError: there are checkpoints, but none that can be used; says what is wrong with each.
        RecipeError: they are of another recipe. DataError: of another number of images.
    """

    def unfit(checkpoint: Checkpoint) -> str:
        same_training(recipe, checkpoint.recipe, run, longer=_is_longer(checkpoint, recipe, images, total))
        return misfit(checkpoint, model, optimizer, total, images)

    origin = newest_valid(run, unfit)
    if origin is None or not _is_longer(origin.checkpoint, recipe, images, total):
        return origin
    checkpoint = origin.checkpoint
    sampler = {key: value for key, value in checkpoint.sampler.items() if key != "steps"}  # the end that it had come to
    sampler[STALLED] = 0  # nor what train.patience had counted: else the next evaluation would be the last again
    notes = (*origin.notes, _extension(checkpoint, recipe, images, total))
    return replace(origin, checkpoint=replace(checkpoint, sampler=sampler), notes=notes)


def newest_valid(run: RunFolder, misfit: Callable[[Checkpoint], str]) -> Origin | None:
    """last.pt where it can be used, else of previous.pt, best.pt and the kept ones that with most steps; None where
    there is no checkpoint at all.

    Args:
        misfit: what is wrong with a checkpoint for this run, or "".

    Raises:
        WeightsError: there are checkpoints, but none that can be used; says what is wrong with each.
        RecipeError: what `misfit` raises for all that can be read. DataError: what it raises.
    """
    paths = found_checkpoints(run)
    skipped: list[str] = []
    chosen: tuple[Checkpoint, Path] | None = None
    for path in paths:
        if chosen is not None and (chosen[1] == run.last or _step_in(path) <= chosen[0].step):
            continue
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:  # damaged, or the recipe in it is
            skipped.append(f"{path.name}: {lines_of(error.message)[0].removeprefix(f'{path}: ')}")
            continue
        try:
            reason = misfit(checkpoint)
        except RecipeError as error:  # where a newer one fits, this is from before the run was made longer
            if chosen is None:
                raise
            reason = lines_of(error.message)[0].removeprefix(f"{run.last}: ")
        if reason:
            skipped.append(f"{path.name}: {reason}")
        elif chosen is None or checkpoint.step > chosen[0].step:
            chosen = checkpoint, path
    if chosen is None:
        if not paths:
            return None
        raise WeightsError(
            Lines(f"{run.checkpoints}: no checkpoint that can be used", *(f"  {line}" for line in skipped)),
            Lines(
                "copy one there from a backup, or start anew in another folder",
                f"  emaseg train {quoted_path(run.recipe)} --out ANOTHER",
            ),
        )
    if chosen[1] == run.last:
        return Origin(*chosen)
    text = f"{run.last}: not there" if run.last not in paths else f"{run.checkpoints}: passed over {'; '.join(skipped)}"
    again = max(0, last_step(run.metrics) - chosen[0].step)
    text += f"; going on from {chosen[1].name}, step {chosen[0].step}: at least {again} steps are done again"
    return Origin(*chosen, (Note(text, warning=True),))


def _step_in(path: Path) -> float:
    """The step that a kept checkpoint's name tells; more than any where the name tells none."""
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdigit() else math.inf


def misfit(checkpoint: Checkpoint, model: Network, optimizer: torch.optim.Optimizer, total: int, images: int) -> str:
    """What keeps a checkpoint from being gone on from, in a line, or "". Nothing is changed.

    Args:
        model, optimizer: as the recipe builds them. total: the run's steps. images: to train on.

    Raises:
        DataError: it was saved with another number of images to train on: the order of the samples would be another.
    """
    then = checkpoint.sampler.get("images", images)
    if type(then) is not int:
        return "its sampler does not say how many images there are"
    if then != images:
        raise DataError(
            f"the training set had {then} images when this run started and has {images} now",
            "bring it back to what it was, or start a new run",
        )
    steps = checkpoint.sampler.get("steps", total)
    if type(steps) is not int or not checkpoint.step <= steps <= total:
        return f"its sampler ends the run with step {excerpt(steps)}, it is at {checkpoint.step} of {total}"
    try:
        check_resumable(checkpoint, model, optimizer, total, "it")
    except WeightsError as error:
        reason = "; ".join(line.strip() for line in lines_of(error.message)).removeprefix("it: ")
        return reason if checkpoint.optimizer else f"{reason}; {error.hint}"
    return ""


def with_remedy(error: DataError | ImageTooLarge, run: RunFolder, step: int, saved: int | None) -> UserError:
    """The error of an image met after `step` steps with what is saved, and commands that find all damaged ones and continue.

    saved: the step that last.pt holds; None = there is none.
    """
    where = f"after step {step}, which is saved in {run.last}"
    if saved is None:
        where = "before the first step"
    elif saved != step:
        where = f"after step {step}; {run.last} holds step {saved}"
    message, resume = Lines(error.message, f"stopped {where}"), f"  then continue with: {resume_command(run)}"
    if isinstance(error, ImageTooLarge):
        return ImageTooLarge(message, Lines(error.hint, resume))
    every = f"  every such file: emaseg check-data {quoted_path(run.recipe)}"
    return DataError(message, Lines(error.hint or "repair or replace the file", every, resume))


def put_away(run: RunFolder, origin: Path) -> str:
    """Move a last.pt that was passed over out of the way of the next one; returns a line that says so, or ""."""
    if origin == run.last or not os.path.lexists(run.last):
        return ""
    return f"{run.last}: kept as {set_aside(run.last).name}"


# ------------------------------------------------------------------------------------- what has changed since
# Changing these does not change what a step computes (but threads its rounding).
_FREE = {
    "train": (
        "init_from",
        "workers",
        "threads",
        "log_every",
        "evaluate_every",
        "tensorboard",
        "recompute",
        "save_seconds",
        "save_every",
        "keep_every",
        "keep_last",
        "patience",
    ),
    "data": ("root",),
}
_FREE_SECTIONS = ("title", "inference", "inference_tta", "published", "name")


_LENGTH = ("epochs", "iterations")


def same_training(recipe: Recipe, saved: Recipe, run: RunFolder, *, longer: bool = False) -> None:
    """A resumed run keeps its recipe, but for what does not change the result.

    longer: the run has come to its end, and the recipe asks for more steps: then its length may differ, too.

    Raises:
        RecipeError: names the first keys that differ.
    """
    if recipe.loss.class_balance != "none" and not recipe.loss.class_weights:  # they were computed when the run started
        recipe = replace(recipe, loss=replace(recipe.loss, class_weights=saved.loss.class_weights))
    sections = [field.name for field in fields(recipe) if field.name not in _FREE_SECTIONS]
    differing = [
        f"{difference.key} = {_shown(difference.before)} there, {_shown(difference.after)} now"
        for section in sections
        for difference in differences(
            section, getattr(saved, section), getattr(recipe, section), _FREE.get(section, ())
        )
        if not (longer and section == "train" and difference.key.removeprefix("train.") in _LENGTH)
    ]
    if differing:
        raise RecipeError(
            Lines(f"{run.last}: this run was started with another recipe", *(f"  {line}" for line in differing[:5])),
            Lines("resume with its own, or start a new run in another folder", f"  {resume_command(run)}"),
        )


def _is_longer(checkpoint: Checkpoint, recipe: Recipe, images: int, total: int) -> bool:
    """Whether a checkpoint is the end of its run, and more is wanted now: more steps in `total` than it had planned, or
    more patience than that which ended it.

    images: to train on.
    """
    planned = build_schedule(checkpoint.recipe, images).total
    if checkpoint.step != checkpoint.sampler.get("steps", planned):
        return False
    patience = recipe.train.patience
    more = _impatient(checkpoint) and (not patience or patience > checkpoint.recipe.train.patience)
    return planned < total or (more and checkpoint.step < planned == total)


def _impatient(checkpoint: Checkpoint) -> bool:
    """Whether train.patience ended a checkpoint's run."""
    stalled = checkpoint.sampler.get(STALLED)
    return type(stalled) is int and stalled >= checkpoint.recipe.train.patience > 0


_NEAR = 1.1  # a learning rate that grows by no more than this factor is no second beginning


def _extension(checkpoint: Checkpoint, recipe: Recipe, images: int, total: int) -> Note:
    """What going on beyond the end of a checkpoint's run, to `total`, does to its learning rate."""
    step = planned = checkpoint.step
    text = f"this run had come to its end after {step} steps and goes on to step {total}"
    if _impatient(checkpoint):  # the rate had not fallen to its end
        planned = max(step, build_schedule(checkpoint.recipe, images).total)
        text = f"train.patience had ended this run after {step} steps; it goes on to step {total}"
    last = learning_rate(min(step, planned - 1), planned, recipe.optim)
    now = learning_rate(step, total, recipe.optim)
    if now <= _NEAR * last:
        return Note(f"{text}, at a learning rate of {now:.2g}")
    return Note(
        f"{text}: by the schedule of {total} steps the learning rate goes from {last:.2g} back up to {now:.2g} and falls "
        "anew. One run of that length would have been another: for that, start a new run",
        warning=True,
    )


def changed_protocol(saved: Checkpoint, recipe: Recipe) -> list[Note]:
    """A warning where evaluations are made in another way than those before, if there were any; what precision rounds is
    not another way."""
    then, now = saved.recipe.inference, recipe.inference
    idle = () if then.flip or now.flip else ("flip_pairs",)
    changed = differences("inference", then, now, ("precision", *idle))
    if not changed or "miou" not in saved.best:
        return []
    keys = ", ".join(difference.key for difference in changed)
    return [
        Note(
            f"{keys}: not as when this run was saved; scores before and after do not compare, so best.pt may be stale",
            warning=True,
        )
    ]


def _shown(value: object) -> str:
    return "absent" if value is None else toml_value(value)


def surroundings(device: torch.device, threads: int) -> dict[str, int | str]:
    """What the rounding of a step depends on beside recipe and images, as checkpoints remember it.

    threads: that compute on the CPU.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "threads": threads,
        "device": name,
        _RANKS: world_size(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        **{package: importlib.metadata.version(package) for package in ("emaseg", "torch", "numpy", "pillow")},
    }


_RANKS = "ranks"
_DESCRIBED = {
    "threads": "threads (train.threads, or the cores where that is 0)",
    "device": "device",
    _RANKS: "processes that train",
    "cpu": "instructions of the processor",
    "emaseg": "version of emaseg",
    "torch": "version of torch",
    "numpy": "version of numpy",
    "pillow": "version of pillow",
}


def changed_surroundings(then: Mapping[str, int | str], now: Mapping[str, int | str], recipe: Recipe) -> list[Note]:
    """A warning for each thing that changes the rounding, or with another number of processes more than that; silent for
    checkpoints from before these were kept."""
    return [
        Note(
            f"{what}: {then[key]} when this run was saved, {now[key]} now; from here on the run is no longer bit for bit the "
            f"uninterrupted one{_by_ranks(then[key], now[key], recipe) if key == _RANKS else ''}",
            warning=True,
        )
        for key, what in _DESCRIBED.items()
        if then.get(key, now[key]) != now[key]
    ]


def _by_ranks(then: int | str, now: int | str, recipe: Recipe) -> str:
    """What `now` processes, instead of the `then` of a checkpoint, change beside the rounding."""
    if not isinstance(then, int) or not isinstance(now, int):
        return ""
    means = {"loss.ranks": recipe.loss.ranks, "model.memory_ranks": getattr(recipe.model, "memory_ranks", "")}
    plain = [
        f'{key} = "plain_mean"' for key, value in means.items() if value == "plain_mean" and not recipe.train.ranks
    ]
    apart = recipe.model.norm == "batch"
    texts = []
    if plain:
        texts.append(
            f"With {' and '.join(plain)} each process takes the mean of its own pixels, which changes the training"
        )
    if apart:
        texts.append(
            'With model.norm = "batch" each process has the norm statistics of its own images, which are others now'
        )
    if not texts:
        return ""
    texts[-1] += f": resume with {then} process{'' if then == 1 else 'es'}"
    if plain and not apart and then % now == 0:  # for other numbers train.ranks is refused
        texts[-1] += (
            f"; with --set train.ranks={then} the next run is the same on {then} processes and on any divisor of that"
        )
    return "".join(f". {text}" for text in texts)
