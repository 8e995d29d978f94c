"""All that a training run holds in memory, and how it begins: anew, or as a checkpoint has it.

Room: training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from emaseg.checkpoint import Checkpoint
from emaseg.data.dataset import Dataset
from emaseg.distributed.lockstep import Lead
from emaseg.events import Note, TrainingStarted
from emaseg.models import Network, build_model
from emaseg.recipe import Recipe
from emaseg.runs.folder import RunFolder, append_log, create, not_complete_yet
from emaseg.runs.lock import RunLock
from emaseg.runs.records import repair_records
from emaseg.schedule import Schedule, build_schedule
from emaseg.training.class_balance import with_class_weights
from emaseg.training.compute import LossScale, notes_on, place
from emaseg.training.image_state import changed_images, image_state
from emaseg.training.optim import build_optimizer, load_optimizer, short_warmup
from emaseg.training.replicas import Forward, order_note
from emaseg.training.resuming import (
    Origin,
    changed_protocol,
    changed_surroundings,
    origin_of,
    put_away,
    surroundings,
)
from emaseg.training.run_steps import RunSteps
from emaseg.training.saving import Saver
from emaseg.training.start_weights import load_start_weights
from emaseg.training.step import check_batch
from emaseg.training.weight_average import WeightAverage, average_of


@dataclass(slots=True)
class RunState:
    """Everything that one run holds in memory."""

    recipe: Recipe
    run: RunFolder
    device: torch.device
    model: Network
    optimizer: torch.optim.Optimizer
    length: RunSteps
    train_set: Dataset
    eval_set: Dataset
    fingerprint: Mapping[str, int | str]  # of the images and the surroundings, as checkpoints remember them
    lock: RunLock
    saver: Saver
    average: WeightAverage | None
    lead: Lead
    forward: Forward
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # miou, step; evaluated = last step that was evaluated
    running: dict[str, float] = field(default_factory=dict)  # of StepStatistics
    warned: bool = False  # of the few pixels that OHEM keeps
    saved: tuple[float, ...] = ()  # step and last evaluated step of last.pt, written or being written
    saved_at: float = field(default_factory=time.monotonic)
    scale: LossScale | None = None  # in fp16

    @property
    def schedule(self) -> Schedule:
        """As it is now: it may become shorter."""
        return self.length.schedule

    @property
    def complete(self) -> bool:
        """Whether every step and the last evaluation are done."""
        return self.step == self.schedule.total and (
            not self.schedule.scored or self.best.get("evaluated") == self.step
        )


def open_run(
    recipe: Recipe,
    run: RunFolder,
    device: torch.device,
    train_set: Dataset,
    eval_set: Dataset,
    resume: bool,
    lock: RunLock,
    lead: Lead,
) -> tuple[RunState, Origin | None, list[Note]]:
    """Model and optimiser at their first step, or as the newest checkpoint that can be used has them."""
    notes: list[Note] = []
    schedule = build_schedule(recipe, len(train_set), scored=not eval_set.withheld_by)
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    check_batch(model, recipe)

    origin = None
    if resume:
        trial = build_optimizer(model, recipe.optim)  # only to tell which saved states fit; it takes no step
        origin = origin_of(run, recipe, model, trial, schedule.total, len(train_set))
    if origin is None:
        if resume:
            notes.append(Note(f"{run.root}: no checkpoint here; starting at step 0"))
        notes += [*short_warmup(schedule.total, recipe.optim), *load_start_weights(model, recipe)]
        recipe, remarks = with_class_weights(recipe, train_set)
        notes += remarks
    else:
        start = origin.checkpoint.recipe.train.init_from  # stays on record; the checkpoint has everything
        recipe = replace(recipe, train=replace(recipe.train, init_from=start), loss=origin.checkpoint.recipe.loss)
    model.loss = recipe.loss
    place(model, recipe.train, device)
    notes += notes_on(recipe, device)
    optimizer = build_optimizer(model, recipe.optim)  # after `place`: on CUDA its steps are fused
    threads = recipe.train.threads or torch.get_num_threads()
    now = {**image_state(train_set, eval_set), **surroundings(device, threads)}
    saver = Saver(run, lock.check, recipe.train.keep_last)
    average = average_of(model, recipe.optim.average_decay)
    notes += [] if average is None else [Note(f"evaluated and saved is the {average}")]
    length = RunSteps(schedule, recipe.train)
    state = RunState(
        recipe,
        run,
        device,
        model,
        optimizer,
        length,
        train_set,
        eval_set,
        now,
        lock,
        saver,
        average,
        lead,
        model.training_step,
    )
    state.scale = LossScale.of(recipe.train, device)
    if origin is not None:
        _restore(state, origin.checkpoint)
        if not state.complete:
            then = origin.checkpoint.sampler
            notes += (*origin.notes, *changed_images(then, now), *changed_surroundings(then, now, recipe))
            notes += changed_protocol(origin.checkpoint, recipe)
            if state.step < state.schedule.total and then.get("ranks", now["ranks"]) == now["ranks"]:
                notes += order_note(recipe, device)  # another number of processes has a warning of its own
        notes.append(Note(f"continuing at step {state.step} of {state.schedule.total} from {origin.path}"))
        if origin.path == run.last:
            state.saved = position(state)
    return state, origin, notes


def _restore(state: RunState, checkpoint: Checkpoint) -> None:
    # Not checkpoint.load_state: check_resumable has compared the names and shapes and read every value already.
    state.model.load_state_dict(checkpoint.model)
    if state.average is not None:
        state.average.load(checkpoint.average)
    load_optimizer(state.optimizer, checkpoint.optimizer)
    if state.scale is not None:
        state.scale.restore(checkpoint.scaler)
    state.step = checkpoint.step
    before = build_schedule(checkpoint.recipe, len(state.train_set)).every
    state.length.restore(checkpoint.sampler, checkpoint.best, before)
    state.best, state.running = dict(checkpoint.best), dict(checkpoint.running)
    set_generators(checkpoint.rng, state.device)


def prepare_folder(state: RunState, origin: Origin | None, messages: list[Note]) -> Iterator[Note]:
    """Bring the folder into the state of step `state.step`; what a crash left is repaired or moved aside, and said."""
    run, notes = state.run, []
    if origin is not None:
        notes.append(put_away(run, origin.path))
    if not state.complete:
        not_complete_yet(run)
    notes += create(run, state.recipe, state.device)
    evaluated = int(state.best.get("evaluated", 0))
    # Sums that are still running have no row yet: one of this very step was written after the checkpoint, as that of a
    # run that train.patience ends, and is written again.
    step = state.step - bool(state.running)
    notes += repair_records(run, state.model.loss_names, step, evaluated)
    repairs = [Note(text, warning=True) for text in notes if text]
    for note in (*messages, *repairs):
        append_log(run, note.text)
    yield from repairs


def started(state: RunState) -> TrainingStarted:
    schedule = state.schedule
    return TrainingStarted(
        run=state.run.root,
        step=state.step,
        total_steps=schedule.total,
        epochs=schedule.total / schedule.per_epoch,
        train_images=len(state.train_set),
        eval_images=len(state.eval_set),
        batch=state.recipe.train.batch,
        parameters=sum(p.numel() for p in state.model.parameters()),
        device=str(state.device),
    )


def snapshot(state: RunState) -> Checkpoint:
    schedule, seed = state.schedule, state.recipe.train.seed
    epoch, offset = divmod(state.step, schedule.per_epoch)
    return Checkpoint(
        model=state.model.state_dict(),
        optimizer=state.optimizer.state_dict(),
        step=state.step,
        epoch=epoch,
        best=dict(state.best),
        rng=generators(state.device),
        sampler={"seed": seed, "epoch": epoch, "offset": offset, **state.length.remembered, **state.fingerprint},
        running=dict(state.running),
        average={} if state.average is None else state.average.state,
        scaler={} if state.scale is None else state.scale.state(),
        recipe=state.recipe,
    )


def generators(device: torch.device) -> dict[str, Any]:
    """The states of the generators that a run on this device draws from, as a checkpoint keeps them: "mps" on Apple's
    GPUs only."""
    rng: dict[str, Any] = {"cpu": torch.get_rng_state(), "cuda": []}
    if device.type == "cuda":
        rng["cuda"] = [torch.cuda.get_rng_state(device)]
    if device.type == "mps":
        rng["mps"] = torch.mps.get_rng_state()
    return rng


def set_generators(rng: Mapping[str, Any], device: torch.device) -> None:
    """Go on with the states of a checkpoint, of those that it has for this device."""
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda" and rng["cuda"]:
        torch.cuda.set_rng_state(rng["cuda"][0], device)
    if device.type == "mps" and "mps" in rng:
        torch.mps.set_rng_state(rng["mps"])


def position(state: RunState) -> tuple[float, ...]:
    """What tells the checkpoints of a run apart."""
    return state.step, state.best.get("evaluated", -1)


def saved_step(state: RunState) -> int | None:
    """The step that last.pt holds; None where this start has not written one and went on from none."""
    return int(state.saved[0]) if state.saved else None
