"""Training: one loop that yields events and can stop and continue anywhere, bit for bit.

Room: train.

What a step computes is a pure function of (recipe, step, state), and the state is in the checkpoint: parameters,
buffers, momentum, the generator that dropout draws from, the sums of the next row of metrics.csv. The sample order and
every augmentation derive from (seed, epoch, sample), so they need no state. That is why a run that was interrupted
equals one that was not: exactly on a CPU with the same number of threads; on CUDA as far as its kernels repeat
themselves.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emaseg.checkpoint import Checkpoint
from emaseg.class_balance import with_class_weights
from emaseg.compute import MOST_SKIPPED, LossScale, evaluating, notes_on, place, switches
from emaseg.data.pipeline.loading import Stream, batches, worker_count
from emaseg.data.pipeline.transforms import Batch
from emaseg.data.sample import Dataset
from emaseg.datasets import open_datasets
from emaseg.errors import DataError, Diverged
from emaseg.evaluate import evaluate, evaluation_seconds, missed_classes
from emaseg.events import Evaluated, Finished, Logged, Note, Saved, TrainEvent, TrainingStarted
from emaseg.files import atomic, is_file
from emaseg.image_state import changed_images, image_state
from emaseg.loss_terms import few_kept
from emaseg.models import Network, build_model
from emaseg.optim import build_optimizer, load_optimizer
from emaseg.recipe import Recipe
from emaseg.records import record, repair_records
from emaseg.report.run import report_training
from emaseg.resuming import (
    Origin,
    changed_surroundings,
    origin_of,
    put_away,
    surroundings,
    with_remedy,
)
from emaseg.run_folder import RunFolder, append_log, create, found_checkpoints, hold_target
from emaseg.run_length import RunLength
from emaseg.run_lock import RunLock
from emaseg.samples import write_samples
from emaseg.saving import Saver
from emaseg.schedule import Schedule, build_schedule
from emaseg.start_weights import load_start_weights
from emaseg.step_statistics import StepStatistics
from emaseg.tensorboard import drawn
from emaseg.training_step import check_batch, memory_errors, training_step
from emaseg.weight_average import WeightAverage, averaged
from emaseg.weights.start import fetch_backbone
from emaseg.words import Lines, lines_of


@dataclass(slots=True)
class _TrainingState:
    """Everything that one run holds in memory."""

    recipe: Recipe
    run: RunFolder
    device: torch.device
    model: Network
    optimizer: torch.optim.Optimizer
    length: RunLength
    train_set: Dataset
    eval_set: Dataset
    fingerprint: Mapping[str, int | str]  # of the images and the surroundings, as checkpoints remember them
    lock: RunLock
    saver: Saver
    average: WeightAverage | None
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


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: torch.device | None = None,
    stop: threading.Event | None = None,
) -> Generator[TrainEvent, None, None]:
    """Train a recipe into the folder `out`, or continue there.

    Args:
        recipe: what to do.
        out: the run's folder; must be empty or absent unless `resume`.
        resume: continue from out/checkpoints/last.pt, or where that is damaged from the newest checkpoint that is not,
            whatever train.init_from says; without any, start at step 0 and say so.
        device: where to compute; the CPU if None.
        stop: when set, the run saves a checkpoint after the current step and ends with Finished(interrupted=True).

    Yields:
        Events; the last one is Finished.

    Raises:
        RecipeError: `out` is taken or being trained, the checkpoint is of another recipe, a batch is too small for its
            norm layers.
        DataError: the data set cannot be used.
        WeightsError: start weights or every checkpoint of the run are damaged.
        SystemFault: disk, memory or permission.
        Diverged: a loss that is not finite; the batch is saved, the parameters were not touched by it.
    """
    device, stop = device or torch.device("cpu"), stop or threading.Event()
    finished = Finished(out, 0, None, interrupted=True)
    with hold_target(out, resume) as lock, drawn(RunFolder(out), recipe.train.tensorboard) as draw:
        if lock.took_over:
            yield Note(f"{lock.path}: left by {lock.took_over}, which has ended; taken over", warning=True)
        with contextlib.closing(_train(recipe, RunFolder(out), resume, device, stop, lock)) as events:
            for event in events:
                if isinstance(event, Finished):
                    finished = event  # told when the lock is gone
                    break
                draw(event)
                yield event
    yield finished


def _train(
    recipe: Recipe, run: RunFolder, resume: bool, device: torch.device, stop: threading.Event, lock: RunLock
) -> Generator[TrainEvent, None, None]:
    """As `train`, by the owner of the folder."""
    train_set, eval_set, notes = open_datasets(recipe)
    yield from notes
    if not (resume and found_checkpoints(run)):
        for event in fetch_backbone(recipe):
            yield event
            if stop.is_set():
                yield Finished(run.root, 0, None, interrupted=True)
                return
    threads = torch.get_num_threads()
    state, origin, remarks = _open(recipe, run, device, train_set, eval_set, resume, lock)
    yield from remarks
    best = state.best.get("miou")
    if state.complete and is_file(run.samples):
        yield Finished(run.root, state.step, best, already=True, scored=state.schedule.scored)
        return
    if origin is not None and stop.is_set():  # nothing is new
        yield Finished(run.root, state.step, best, interrupted=True)
        return
    torch.set_num_threads(recipe.train.threads or threads)
    try:
        yield from _prepare(state, origin, [*notes, *remarks])
        yield _started(state)
        with switches(recipe.train, device), memory_errors(recipe, device):
            yield from _loop(state, stop)
    finally:
        torch.set_num_threads(threads)


def _prepare(state: _TrainingState, origin: Origin | None, messages: list[Note]) -> Iterator[Note]:
    """Bring the folder into the state of step `state.step`; what a crash left is repaired or moved aside, and said."""
    run, notes = state.run, []
    if origin is not None:
        notes.append(put_away(run, origin.path))
    notes += create(run, state.recipe, state.device)
    evaluated = int(state.best.get("evaluated", 0))
    notes += repair_records(run, state.model.loss_names, state.step, evaluated)
    repairs = [Note(text, warning=True) for text in notes if text]
    for note in (*messages, *repairs):
        append_log(run, note.text)
    yield from repairs


def _started(state: _TrainingState) -> TrainingStarted:
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


def _open(
    recipe: Recipe,
    run: RunFolder,
    device: torch.device,
    train_set: Dataset,
    eval_set: Dataset,
    resume: bool,
    lock: RunLock,
) -> tuple[_TrainingState, Origin | None, list[Note]]:
    """Model and optimiser at their first step, or as the newest checkpoint that can be used has them."""
    notes: list[Note] = []
    schedule = build_schedule(recipe, len(train_set), scored=not eval_set.withheld_by)
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    check_batch(model, recipe)
    optimizer = build_optimizer(model, recipe.optim)

    origin = origin_of(run, recipe, model, optimizer, schedule.total, len(train_set)) if resume else None
    if origin is None:
        if resume:
            notes.append(Note(f"{run.last}: no checkpoint yet; starting at step 0"))
        notes += load_start_weights(model, recipe)
        recipe, remarks = with_class_weights(recipe, train_set)
        notes += remarks
    else:
        start = origin.checkpoint.recipe.train.init_from  # stays on record; the checkpoint has everything
        recipe = replace(recipe, train=replace(recipe.train, init_from=start), loss=origin.checkpoint.recipe.loss)
    model.loss = recipe.loss
    place(model, recipe.train, device)
    notes += notes_on(recipe, device)
    optimizer = build_optimizer(model, recipe.optim)
    threads = recipe.train.threads or torch.get_num_threads()
    now = {**image_state(train_set, eval_set), **surroundings(device, threads)}
    saver = Saver(run, lock.check, recipe.train.keep_last)
    average = WeightAverage(model, recipe.optim.average_decay) if recipe.optim.average_decay else None
    length = RunLength(schedule, recipe.train)
    state = _TrainingState(
        recipe, run, device, model, optimizer, length, train_set, eval_set, now, lock, saver, average
    )
    state.scale = LossScale.of(recipe.train, device)
    if origin is not None:
        _restore(state, origin.checkpoint)
        if not state.complete:
            then = origin.checkpoint.sampler
            notes += (*origin.notes, *changed_images(then, now), *changed_surroundings(then, now))
        notes.append(Note(f"continuing at step {state.step} of {state.schedule.total} from {origin.path}"))
        if origin.path == run.last:
            state.saved = _position(state)
    return state, origin, notes


def _loop(state: _TrainingState, stop: threading.Event) -> Generator[TrainEvent, None, None]:
    """Steps, evaluations and checkpoints until the end or until `stop`."""
    statistics = StepStatistics(state.recipe, state.schedule, state.running, state.device)
    stream = _stream(state)
    protocol = state.recipe.inference, state.recipe.backbone.pixel_stats
    evaluation = partial(evaluation_seconds, state.model, state.eval_set, *protocol, state.device)
    saved = state.step
    try:
        while True:
            if state.schedule.evaluates_at(state.step) and state.best.get("evaluated") != state.step:
                if state.step == state.schedule.total:
                    _save(state, state.run.last)
                yield from _evaluate(state, stop)
            if stop.is_set():
                if state.saved != _position(state):
                    _save(state, state.run.last)
                yield from state.saver.finish()
                append_log(state.run, f"interrupted after step {state.step}")
                yield Finished(state.run.root, state.step, state.best.get("miou"), interrupted=True)
                return
            if state.step == state.schedule.total:
                if not state.schedule.scored:
                    _save(state, state.run.last)
                yield from state.saver.finish()
                break
            began = time.perf_counter()
            batch = yield from _next(state, stream, stop)
            if batch is None:
                continue
            waited = time.perf_counter() - began
            losses, skipped = _step(state, batch)
            state.step += 1
            yield from _said(state, state.length.after_step(state.step, evaluation))
            statistics.schedule = state.schedule
            event = statistics.event(state.step, losses, waited, time.perf_counter() - began)
            row = statistics.row(event)
            if row is not None:
                state.lock.check()
                yield record(state.run, row, state.model.loss_names)
                text = "" if state.warned else few_kept(state.model.kept_share)
                state.warned = state.warned or bool(text)
                yield from _said(state, text, warning=True)
            yield event
            yield from skipped
            _save_if_due(state)
            yield from state.saver.written()
    except DataError as error:  # a damaged image costs that image, not the steps since the last checkpoint
        if state.step > saved:
            _save(state, state.run.last)
            yield from state.saver.finish()
        first, *rest = lines_of(error.message)
        append_log(state.run, Lines(f"after step {state.step}: {first}", *rest))
        raise with_remedy(error, state.run, state.step) from error
    finally:
        stream.close()
        state.saver.close()
    with averaged(state.average, state.model):
        samples = write_samples(state.model, state.recipe, state.eval_set, state.run, state.device)
    if not state.schedule.scored:
        yield from report_training(state.run, state.recipe, state.eval_set, None, state.step)
    yield Saved(samples, "samples")
    yield Finished(state.run.root, state.step, state.best.get("miou"), scored=state.schedule.scored)


def _said(state: _TrainingState, text: str, *, warning: bool = False) -> Iterator[Note]:
    """A line for the log and for people, unless it is empty."""
    if text:
        append_log(state.run, text)
        yield Note(text, warning=warning)


def _next(state: _TrainingState, stream: Stream, stop: threading.Event) -> Generator[TrainEvent, None, Batch | None]:
    """The next batch; None when `stop` was set while there was none."""
    for item in stream.items:
        if isinstance(item, Batch):
            return item
        yield from _said(state, item.text, warning=True)
        if stop.is_set():
            break
    return None


def _stream(state: _TrainingState) -> Stream:
    recipe = state.recipe
    return batches(
        state.train_set,
        recipe.augment,
        recipe.backbone.pixel_stats,
        batch=recipe.train.batch,
        start=state.step,
        total=state.schedule.total,
        seed=recipe.train.seed,
        workers=worker_count(recipe.train, state.device),
        device=state.device,
    )


def _step(state: _TrainingState, batch: Batch) -> tuple[dict[str, float], list[Note]]:
    """One step; returns its losses, and a line where fp16 made it overflow and it was left out.

    Raises:
        Diverged: a loss or the gradient is not finite, in fp16 many times in a row.
    """
    scale = state.scale
    result = training_step(state.model, state.optimizer, batch, state.step, state.schedule, state.recipe, scale=scale)
    if result.finite:
        if state.average is not None:
            state.average.update(state.model, state.step + 1)
        return result.losses, []
    if scale is None or scale.in_a_row >= MOST_SKIPPED:
        raise _diverged(state, batch, result.losses)
    skipped = scale.told(state.step)
    append_log(state.run, skipped.text)
    return result.losses, [skipped]


def _diverged(state: _TrainingState, batch: Batch, losses: dict[str, float]) -> Diverged:
    """Save what the step read, and explain."""
    path = state.run.nonfinite(state.step)
    content = {"step": state.step, "losses": losses, "names": list(batch.names)}
    with atomic(path) as file:
        torch.save({**content, "images": batch.images.cpu(), "labels": batch.labels.cpu()}, file)
    terms = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    append_log(state.run, f"step {state.step}: loss or gradient is not finite ({terms})")
    return Diverged(
        f"step {state.step}: the loss or its gradient is not finite ({terms}); the step was not applied, its batch "
        f"is in {path}",
        "look at that batch, or start a new run with a lower learning rate (--set optim.lr=...)",
    )


def _save_if_due(state: _TrainingState) -> None:
    """Start to write the checkpoints that are due after a step. One that only time asks for waits until the one before
    is written."""
    train, paths = state.recipe.train, []
    if train.keep_every and state.step % train.keep_every == 0:
        paths.append(state.run.kept(state.step))
    by_time = time.monotonic() - state.saved_at >= train.save_seconds and not state.saver.busy
    if by_time or (train.save_every and state.step % train.save_every == 0):
        paths.append(state.run.last)
    if paths:
        _save(state, *paths)


def _save(state: _TrainingState, *paths: Path) -> None:
    """Start to write the state as it is to `paths`, in that order.

    Raises:
        SystemFault: the checkpoint before could not be written; the run is another process's by now.
    """
    state.saver.begin(_snapshot(state), paths)
    if state.run.last in paths:
        state.saved, state.saved_at = _position(state), time.monotonic()


def _position(state: _TrainingState) -> tuple[float, ...]:
    """What tells the checkpoints of a run apart."""
    return state.step, state.best.get("evaluated", -1)


def _evaluate(state: _TrainingState, stop: threading.Event) -> Iterator[TrainEvent]:
    """Score the evaluation split; a better mIoU also becomes best.pt. `stop` abandons it: a resume repeats it."""
    recipe, run = state.recipe, state.run
    stats = recipe.backbone.pixel_stats
    state.model.eval()
    try:
        with evaluating(recipe.train), averaged(state.average, state.model):
            for event in evaluate(state.model, state.eval_set, recipe.inference, stats, state.device):
                if stop.is_set():
                    return
                if isinstance(event, Evaluated):
                    scored = event
                    break
                yield event
    finally:
        state.model.train()
    yield from _record(state, scored)
    yield from _said(state, state.length.after_evaluation(state.best))
    if state.step == state.schedule.total:
        yield from _said(state, missed_classes(scored.scores), warning=True)
    _save(state, *([run.best] if state.best["step"] == state.step else []), run.last)
    yield from state.saver.written()
    yield from report_training(run, recipe, state.eval_set, scored, state.step)


def _record(state: _TrainingState, event: Evaluated) -> tuple[Logged, Evaluated]:
    scores, step = event.scores, state.step
    miou = scores.miou or 0.0
    better = "miou" not in state.best or miou > state.best["miou"]
    if better:
        state.best.update(miou=miou, step=step)
    state.best["evaluated"] = step
    row: dict[str, float] = {"step": step, "epoch": state.schedule.epoch(max(0, step - 1)), "miou": miou}
    row["pixel_accuracy"] = scores.pixel_accuracy or 0.0
    row["mean_accuracy"] = scores.mean_accuracy or 0.0
    state.lock.check()
    logged = record(state.run, row, state.model.loss_names, event)
    append_log(state.run, f"step {step}: mIoU {100 * miou:.2f} on {scores.images} images")
    return logged, Evaluated(scores, step, better, event.tally)


def _snapshot(state: _TrainingState) -> Checkpoint:
    schedule, seed = state.schedule, state.recipe.train.seed
    epoch, offset = divmod(state.step, schedule.per_epoch)
    rng: dict[str, Any] = {"cpu": torch.get_rng_state(), "cuda": []}
    if state.device.type == "cuda":
        rng["cuda"] = [torch.cuda.get_rng_state(state.device)]
    return Checkpoint(
        model=state.model.state_dict(),
        optimizer=state.optimizer.state_dict(),
        step=state.step,
        epoch=epoch,
        best=dict(state.best),
        rng=rng,
        sampler={"seed": seed, "epoch": epoch, "offset": offset, **state.length.remembered, **state.fingerprint},
        running=dict(state.running),
        average={} if state.average is None else state.average.state,
        scaler={} if state.scale is None else state.scale.state(),
        recipe=state.recipe,
    )


def _restore(state: _TrainingState, checkpoint: Checkpoint) -> None:
    state.model.load_state_dict(checkpoint.model)
    if state.average is not None:
        state.average.load(checkpoint.average)
    load_optimizer(state.optimizer, checkpoint.optimizer)
    if state.scale is not None:
        state.scale.restore(checkpoint.scaler)
    state.step = checkpoint.step
    state.length.restore(checkpoint.sampler)
    state.best, state.running = dict(checkpoint.best), dict(checkpoint.running)
    torch.set_rng_state(checkpoint.rng["cpu"])
    if state.device.type == "cuda" and checkpoint.rng["cuda"]:
        torch.cuda.set_rng_state(checkpoint.rng["cuda"][0], state.device)
