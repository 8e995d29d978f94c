"""Training: one loop that yields events and can stop and continue anywhere, bit for bit.

Room: training.

What a step computes is a pure function of (recipe, step, state), and the state is in the checkpoint: parameters,
buffers, momentum, the generator that dropout draws from, the sums of the next row of metrics.csv. The sample order and
every augmentation derive from (seed, epoch, sample), so they need no state. That is why a run that was interrupted
equals one that was not: exactly on a CPU with the same number of threads and processes; on CUDA as far as its kernels
repeat themselves, and with more than two processes only with train.deterministic (replicas.keeps_order).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from emaseg.data.pipeline.loading import Stream, batches, worker_count
from emaseg.data.pipeline.transforms import Batch
from emaseg.distributed.collectives import from_rank_0, joined, world_size
from emaseg.distributed.lockstep import Action, Lead
from emaseg.distributed.ranks import check_ranks, this_rank
from emaseg.errors import DataError, Diverged, ImageTooLarge, PeerFailed
from emaseg.evaluation.evaluate import evaluate, evaluation_seconds, missed_classes
from emaseg.events import Evaluated, Finished, Logged, Note, Saved, TrainEvent
from emaseg.files import atomic, is_file
from emaseg.losses.terms import few_kept
from emaseg.open_datasets import open_datasets
from emaseg.recipe import Recipe
from emaseg.recipe.channels import ranges
from emaseg.report.run import report_training
from emaseg.runs.folder import RunFolder, append_log, found_checkpoints, hold_target, log_interruption
from emaseg.runs.lock import RunLock
from emaseg.runs.records import record
from emaseg.runs.tensorboard import drawn
from emaseg.training.compute import MOST_SKIPPED, evaluating, switches
from emaseg.training.follow import Beginning, follow
from emaseg.training.replicas import evaluated_network, replicate, whole_batch
from emaseg.training.resuming import with_remedy
from emaseg.training.run_state import RunState, open_run, position, prepare_folder, saved_step, snapshot, started
from emaseg.training.sample_sheet import write_samples
from emaseg.training.saving import copied
from emaseg.training.step import memory_errors, training_step
from emaseg.training.step_statistics import StepStatistics
from emaseg.training.weight_average import averaged
from emaseg.weights.backbone import fetch_backbone
from emaseg.words import Lines, lines_of


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
    rank = this_rank()
    with joined(rank, device):
        if rank.leads:
            lead = Lead(stop)
            try:
                yield from _lead(recipe, out, resume, device, lead)
            finally:
                lead.end()
        else:
            follow(device, stop)
            yield finished


def _lead(
    recipe: Recipe, out: Path, resume: bool, device: torch.device, lead: Lead
) -> Generator[TrainEvent, None, None]:
    """As `train`, on a single process or as the first of several."""
    finished = Finished(out, 0, None, interrupted=True)
    check_ranks(recipe.train.batch, recipe.train.ranks, world_size())
    with hold_target(out, resume) as lock, drawn(RunFolder(out), recipe.train.tensorboard) as draw:
        if lock.took_over:
            yield Note(f"{lock.path}: left by {lock.took_over}, which has ended; taken over", warning=True)
        with contextlib.closing(_train(recipe, RunFolder(out), resume, device, lead, lock)) as events:
            for event in events:
                if isinstance(event, Finished):
                    finished = event  # told when the lock is gone
                    break
                draw(event)
                yield event
    yield finished


def _train(
    recipe: Recipe, run: RunFolder, resume: bool, device: torch.device, lead: Lead, lock: RunLock
) -> Generator[TrainEvent, None, None]:
    """As `train`, by the owner of the folder."""
    stop = lead.stop
    train_set, eval_set, notes = open_datasets(recipe)
    yield from notes
    if not (resume and found_checkpoints(run)):
        for event in fetch_backbone(recipe):
            yield event
            if stop.is_set():
                yield Finished(run.root, 0, None, interrupted=True)
                return
    threads = torch.get_num_threads()
    state, origin, remarks = open_run(recipe, run, device, train_set, eval_set, resume, lock, lead)
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
        yield from prepare_folder(state, origin, [*notes, *remarks])
        _gather(state, resumed=origin is not None)
        yield started(state)
        with switches(recipe.train, device), memory_errors(recipe, state.model, device):
            yield from _loop(state, stop)
    finally:
        torch.set_num_threads(threads)


def _gather(state: RunState, *, resumed: bool) -> None:
    """Bring the other processes to where this one is."""
    if world_size() > 1:
        with state.lead.doing(Action.START):
            beginning = Beginning(state.recipe, state.step, state.schedule.total, state.fingerprint)
            if resumed:
                scale = None if state.scale is None else state.scale.state()
                beginning = replace(beginning, optimizer=copied(state.optimizer.state_dict()), scale=scale)
            from_rank_0(beginning)
    with state.lead.doing(Action.READY):
        state.forward = replicate(state.model, state.recipe, state.device)


def _loop(state: RunState, stop: threading.Event) -> Generator[TrainEvent, None, None]:
    """Steps, evaluations and checkpoints until the end or until `stop`."""
    statistics = StepStatistics(state.recipe, state.schedule, state.running, state.device)
    stream = _stream(state)
    saved = state.step
    try:
        while True:
            if state.schedule.evaluates_at(state.step) and state.best.get("evaluated") != state.step:
                if state.step == state.schedule.total:
                    _save(state, state.run.last)
                began = time.perf_counter()
                yield from _evaluate(state, stop, statistics)
                statistics.evaluating = time.perf_counter() - began
            if stop.is_set():
                if state.saved != position(state):
                    _save(state, state.run.last)
                yield from state.saver.finish()
                log_interruption(state.run, state.step)
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
            yield from _said(state, state.length.after_step(state.step, partial(_evaluation_seconds, state)))
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
    except (
        DataError,
        ImageTooLarge,
        PeerFailed,
    ) as error:  # an image costs itself, not the steps since the last checkpoint
        if state.step > saved and state.lead.whole:
            _save(state, state.run.last)
            yield from state.saver.finish()
        if isinstance(error, PeerFailed):
            append_log(state.run, f"after step {state.step}: another process has failed")
            raise
        first, *rest = lines_of(error.message)
        append_log(state.run, Lines(f"after step {state.step}: {first}", *rest))
        raise with_remedy(error, state.run, state.step, saved_step(state)) from error
    finally:
        stream.close()
        state.saver.close()
    with evaluating(state.recipe.train, state.device), averaged(state.average, state.model):
        samples = write_samples(state.model, state.recipe, state.eval_set, state.run, state.device)
    if not state.schedule.scored:
        yield from report_training(state.run, state.recipe, state.eval_set, None, state.step)
    yield Saved(samples, "samples")
    yield Finished(state.run.root, state.step, state.best.get("miou"), scored=state.schedule.scored)


def _evaluation_seconds(state: RunState) -> float:
    """What an evaluation takes, measured as one is made."""
    protocol = state.recipe.inference, state.recipe.backbone.pixel_stats
    with evaluating(state.recipe.train, state.device):
        return evaluation_seconds(state.model, state.eval_set, *protocol, state.device)


def _said(state: RunState, text: str, *, warning: bool = False) -> Iterator[Note]:
    """A line for the log and for people, unless it is empty."""
    if text:
        append_log(state.run, text)
        yield Note(text, warning=warning)


def _next(state: RunState, stream: Stream, stop: threading.Event) -> Generator[TrainEvent, None, Batch | None]:
    """The next batch; None when `stop` was set while there was none."""
    for item in stream.items:
        if isinstance(item, Batch):
            return item
        yield from _said(state, item.text, warning=True)
        if stop.is_set():
            break
    return None


def _stream(state: RunState) -> Stream:
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
        world=world_size(),
        ranks=recipe.train.ranks,
        device=state.device,
        floats=bool(ranges(recipe.data)),
    )


def _step(state: RunState, batch: Batch) -> tuple[dict[str, float], list[Note]]:
    """One step; returns its losses, and a line where fp16 made it overflow and it was left out.

    Raises:
        Diverged: a loss or the gradient is not finite, in fp16 many times in a row.
    """
    scale = state.scale
    with state.lead.doing(Action.STEP, state.schedule.total):
        result = training_step(
            state.model,
            state.optimizer,
            batch,
            state.step,
            state.schedule,
            state.recipe,
            forward=state.forward,
            scale=scale,
        )
        batch = batch if result.finite else whole_batch(batch)
    if result.finite:
        if state.average is not None:
            state.average.update(state.model, state.step + 1)
        return result.losses, []
    if scale is None or scale.in_a_row >= MOST_SKIPPED:
        raise _diverged(state, batch, result.losses)
    skipped = scale.told(state.step)
    append_log(state.run, skipped.text)
    return result.losses, [skipped]


def _diverged(state: RunState, batch: Batch, losses: dict[str, float]) -> Diverged:
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


def _save_if_due(state: RunState) -> None:
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


def _save(state: RunState, *paths: Path) -> None:
    """Start to write the state as it is to `paths`, in that order.

    Raises:
        SystemFault: the checkpoint before could not be written; the run is another process's by now.
    """
    state.saver.begin(snapshot(state), paths)
    if state.run.last in paths:
        state.saved, state.saved_at = position(state), time.monotonic()


def _evaluate(state: RunState, stop: threading.Event, statistics: StepStatistics) -> Iterator[TrainEvent]:
    """Score the evaluation split; a better mIoU also becomes best.pt. `stop` abandons it: a resume repeats it."""
    recipe, run = state.recipe, state.run
    stats = recipe.backbone.pixel_stats
    state.model.eval()
    scored = None
    try:
        together = evaluated_network(state.model, recipe)
        with (
            state.lead.doing(Action.EVALUATE),
            evaluating(recipe.train, state.device),
            averaged(state.average, state.model),
            together,
        ):
            events = evaluate(
                state.model, state.eval_set, recipe.inference, stats, state.device, shared=True, stop=stop
            )
            for event in events:
                if isinstance(event, Evaluated):
                    scored = event
                    break
                yield event
    finally:
        state.model.train()
    if scored is None:
        return
    yield from _record(state, scored)
    yield from _health(state)
    yield from _said(state, state.length.after_evaluation(state.best))
    if state.step == state.schedule.total:
        row = statistics.last_row(state.step)  # there are steps without one where train.patience has made it the end
        if row is not None:
            yield record(run, row, state.model.loss_names)
        yield from _said(state, missed_classes(scored.scores), warning=True)
    _save(state, *([run.best] if state.best["step"] == state.step else []), run.last)
    yield from state.saver.written()
    yield from report_training(run, recipe, state.eval_set, scored, state.step)


def _health(state: RunState) -> Iterator[Note]:
    """What the network has gathered beside its parameters, as a MemoryNet its memory: in the log with each evaluation's
    scores, and said with the last."""
    report = state.model.report(state.eval_set.classes)
    text = "; ".join(": ".join(line) for line in report.lines) if report else ""
    if state.step == state.schedule.total:
        yield from _said(state, text)
    elif text:
        append_log(state.run, text)


def _record(state: RunState, event: Evaluated) -> tuple[Logged, Evaluated]:
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
