"""Training: one loop that yields events and can stop and continue anywhere, bit for bit.

Room: train; imports every engine room below it. Legend: B batch, H W crop.

What a step computes is a pure function of (recipe, step, state), and the state is in the checkpoint: parameters,
buffers, momentum, the generator that dropout draws from, the sums of the row of metrics.csv to come. The sample order and every augmentation derive from
(seed, epoch, sample), so they need no state. That is why a run that was interrupted equals one that was not: exactly on
a CPU with the same number of threads; on CUDA as far as its kernels repeat themselves.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from emaseg.checkpoint import Checkpoint, save_checkpoint
from emaseg.data.pipeline.loading import Stream, batches
from emaseg.data.pipeline.transforms import Batch
from emaseg.data.sample import Dataset
from emaseg.errors import DataError, Diverged, SystemFault
from emaseg.evaluate import evaluate
from emaseg.events import Evaluated, Finished, Note, Saved, Started, TrainEvent
from emaseg.files import atomic, is_file, sync, uninterrupted
from emaseg.image_state import changed_images, image_state
from emaseg.meter import Meter
from emaseg.metrics_file import append_row, repair
from emaseg.models import Network, build_model
from emaseg.models.layers import Step
from emaseg.optim import build_optimizer, learning_rate, set_learning_rate
from emaseg.plan import (
    check_batch,
    datasets,
    dry_run,
    load_start_weights,
    loader_workers,
    write_samples,
)
from emaseg.recipe import Recipe
from emaseg.resuming import (
    Origin,
    changed_surroundings,
    keep_previous,
    misfit,
    newest_valid,
    put_away,
    same_training,
    surroundings,
)
from emaseg.run_folder import RunFolder, append_log, create, found_checkpoints, hold_target, resume_command
from emaseg.run_lock import RunLock
from emaseg.schedule import Schedule, schedule
from emaseg.weights.start import fetch_backbone
from emaseg.words import Lines, lines_of, quoted_path


@dataclass(slots=True)
class _Session:
    """Everything that one run holds in memory."""

    recipe: Recipe
    run: RunFolder
    device: torch.device
    model: Network
    optimizer: torch.optim.SGD
    plan: Schedule
    train_set: Dataset
    eval_set: Dataset
    state: Mapping[str, int | str]  # of image_state and surroundings
    lock: RunLock
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # miou, step; evaluated = last step that was evaluated
    running: dict[str, float] = field(default_factory=dict)  # of Meter
    saved: tuple[float, ...] = ()  # step and last evaluated step of last.pt
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def complete(self) -> bool:
        """Whether every step and the last evaluation are done."""
        return self.step == self.plan.total and (not self.plan.scored or self.best.get("evaluated") == self.step)


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
    with hold_target(out, resume) as lock:
        if lock.took_over:
            yield Note(f"{lock.path}: left by {lock.took_over}, which has ended; taken over", warning=True)
        with contextlib.closing(_train(recipe, RunFolder(out), resume, device, stop, lock)) as events:
            for event in events:
                if isinstance(event, Finished):
                    finished = event  # told when the lock is gone
                    break
                yield event
    yield finished


def _train(
    recipe: Recipe, run: RunFolder, resume: bool, device: torch.device, stop: threading.Event, lock: RunLock
) -> Generator[TrainEvent, None, None]:
    """As `train`, by the owner of the folder."""
    train_set, eval_set, notes = datasets(recipe)
    yield from notes
    if not (resume and found_checkpoints(run)):
        for event in fetch_backbone(recipe):
            yield event
            if stop.is_set():
                yield Finished(run.root, 0, None, interrupted=True)
                return
    threads = torch.get_num_threads()
    session, origin, remarks = _open(recipe, run, device, train_set, eval_set, resume, lock)
    yield from remarks
    best = session.best.get("miou")
    if session.complete and is_file(run.samples):
        yield Finished(run.root, session.step, best, already=True, scored=session.plan.scored)
        return
    if origin is not None and stop.is_set():  # nothing is new
        yield Finished(run.root, session.step, best, interrupted=True)
        return
    torch.set_num_threads(recipe.train.threads or threads)
    try:
        yield from _prepare(session, origin, [*notes, *remarks])
        yield _started(session)
        yield from _loop(session, stop)
    except torch.OutOfMemoryError as error:
        hint = "use a smaller batch (--set train.batch=...) or a smaller augment.crop"
        raise SystemFault(f"{device}: out of memory with a batch of {recipe.train.batch}", hint) from error
    finally:
        torch.set_num_threads(threads)


def _prepare(session: _Session, origin: Origin | None, said: list[Note]) -> Iterator[Note]:
    """Bring the folder into the state of step `session.step`; what a crash left is repaired or moved aside, and said."""
    run, notes = session.run, []
    if origin is not None:
        notes.append(put_away(run, origin.path))
    notes += create(run, session.recipe, session.device)
    evaluated = int(session.best.get("evaluated", 0))
    notes += repair(run.metrics, session.model.loss_names, session.step, evaluated)
    repairs = [Note(text, warning=True) for text in notes if text]
    for note in (*said, *repairs):
        append_log(run, note.text)
    yield from repairs


def _started(session: _Session) -> Started:
    plan = session.plan
    return Started(
        run=session.run.root,
        step=session.step,
        total_steps=plan.total,
        epochs=plan.total / plan.per_epoch,
        train_images=len(session.train_set),
        eval_images=len(session.eval_set),
        batch=session.recipe.train.batch,
        parameters=sum(p.numel() for p in session.model.parameters()),
        device=str(session.device),
    )


def _open(
    recipe: Recipe,
    run: RunFolder,
    device: torch.device,
    train_set: Dataset,
    eval_set: Dataset,
    resume: bool,
    lock: RunLock,
) -> tuple[_Session, Origin | None, list[Note]]:
    """Model and optimiser at their first step, or as the newest checkpoint that can be used has them."""
    notes: list[Note] = []
    plan = schedule(recipe, len(train_set), scored=not eval_set.withheld_by)
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    check_batch(model, recipe)
    optimizer = build_optimizer(model, recipe.optim)

    def unfit(checkpoint: Checkpoint) -> str:
        same_training(recipe, checkpoint.recipe, run)
        return misfit(checkpoint, model, optimizer, plan.total, len(train_set))

    origin = newest_valid(run, unfit) if resume else None
    if origin is None:
        if resume:
            notes.append(Note(f"{run.last}: no checkpoint yet; starting at step 0"))
        notes += load_start_weights(model, recipe)
    else:
        start = origin.checkpoint.recipe.train.init_from  # stays on record; the checkpoint has everything
        recipe = replace(recipe, train=replace(recipe.train, init_from=start))
    model.to(device).train()
    optimizer = build_optimizer(model, recipe.optim)
    threads = recipe.train.threads or torch.get_num_threads()
    state = {**image_state(train_set, eval_set), **surroundings(device, threads)}
    session = _Session(recipe, run, device, model, optimizer, plan, train_set, eval_set, state, lock)
    if origin is not None:
        _restore(session, origin.checkpoint)
        if not session.complete:
            then = origin.checkpoint.sampler
            notes += (*origin.notes, *changed_images(then, state), *changed_surroundings(then, state))
        notes.append(Note(f"continuing at step {session.step} of {plan.total} from {origin.path}"))
        if origin.path == run.last:
            session.saved = _mark(session)
    return session, origin, notes


def _loop(session: _Session, stop: threading.Event) -> Generator[TrainEvent, None, None]:
    """Steps, evaluations and checkpoints until the end or until `stop`."""
    meter = Meter(session.recipe, session.plan, session.running)
    stream = _stream(session)
    saved = session.step
    try:
        while True:
            if session.plan.evaluates_at(session.step) and session.best.get("evaluated") != session.step:
                if session.step == session.plan.total:
                    yield _save(session)
                yield from _evaluate(session, stop)
            if stop.is_set():
                if session.saved != _mark(session):
                    yield _save(session)
                append_log(session.run, f"interrupted after step {session.step}")
                yield Finished(session.run.root, session.step, session.best.get("miou"), interrupted=True)
                return
            if session.step == session.plan.total:
                if not session.plan.scored:
                    yield _save(session)
                break
            began = time.perf_counter()
            batch = yield from _next(session, stream, stop)
            if batch is None:
                continue
            waited = time.perf_counter() - began
            parts = _step(session, batch)
            session.step += 1
            event = meter.event(session.step, parts, waited, time.perf_counter() - began)
            row = meter.row(event)
            if row is not None:
                session.lock.check()
                append_row(session.run.metrics, row, session.model.loss_names)
            yield event
            yield from _checkpoint_if_due(session)
    except DataError as error:  # a damaged image costs that image, not the steps since the last checkpoint
        if session.step > saved:
            _save(session)
        first, *rest = lines_of(error.message)
        append_log(session.run, Lines(f"after step {session.step}: {first}", *rest))
        raise _with_the_way_on(error, session) from error
    finally:
        stream.close()
    yield Saved(write_samples(session.model, session.recipe, session.eval_set, session.run, session.device), "samples")
    yield Finished(session.run.root, session.step, session.best.get("miou"), scored=session.plan.scored)


def _with_the_way_on(error: DataError, session: _Session) -> DataError:
    """The error of an image with what is saved, and commands that find all such images and continue."""
    run = session.run
    saved = f"after step {session.step}, which is saved in {run.last}" if run.last.exists() else "before the first step"
    commands = (
        f"  every such file: emaseg check-data {quoted_path(run.recipe)}",
        f"  then go on with: {resume_command(run)}",
    )
    hint = error.hint or "mend the file"
    return DataError(Lines(error.message, f"stopped {saved}"), Lines(hint, *commands))


def _next(session: _Session, stream: Stream, stop: threading.Event) -> Generator[TrainEvent, None, Batch | None]:
    """The next batch; None when `stop` was set while there was none."""
    for item in stream.items:
        if isinstance(item, Batch):
            return item
        if item.text:
            append_log(session.run, item.text)
            yield Note(item.text, warning=True)
        if stop.is_set():
            break
    return None


def _stream(session: _Session) -> Stream:
    recipe, backbone = session.recipe, session.recipe.backbone
    return batches(
        session.train_set,
        recipe.augment,
        backbone.mean,
        backbone.std,
        batch=recipe.train.batch,
        start=session.step,
        total=session.plan.total,
        seed=recipe.train.seed,
        workers=loader_workers(recipe, session.device),
        device=session.device,
    )


def _step(session: _Session, batch: Batch) -> dict[str, float]:
    """Forward, backward, and the optimiser step unless a loss or the gradient is not finite."""
    model, plan = session.model, session.plan
    lr = learning_rate(session.step, plan.total, session.recipe.optim)
    set_learning_rate(session.optimizer, lr)
    session.optimizer.zero_grad(set_to_none=True)
    losses = model.training_step(batch.images, batch.labels, Step(session.step, plan.epoch(session.step), lr))
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    *values, gradient = torch.stack([*(loss.detach() for loss in losses.values()), norm]).tolist()
    parts = dict(zip(losses, values, strict=True))
    if not all(map(math.isfinite, (*values, gradient))):
        raise _diverged(session, batch, parts)
    session.optimizer.step()
    return parts


def _diverged(session: _Session, batch: Batch, parts: dict[str, float]) -> Diverged:
    """Save what the step read, and explain."""
    path = session.run.nonfinite(session.step)
    content = {"step": session.step, "losses": parts, "names": list(batch.names)}
    with atomic(path) as file:
        torch.save({**content, "images": batch.images.cpu(), "labels": batch.labels.cpu()}, file)
    terms = ", ".join(f"{name} {value:g}" for name, value in parts.items())
    append_log(session.run, f"step {session.step}: loss or gradient is not finite ({terms})")
    return Diverged(
        f"step {session.step}: the loss or its gradient is not finite ({terms}); the step was not applied, its batch "
        f"is in {path}",
        "look at that batch, or start a new run with a lower learning rate (--set optim.lr=...)",
    )


def _checkpoint_if_due(session: _Session) -> Iterator[TrainEvent]:
    keep = session.recipe.train.keep_every
    if keep and session.step % keep == 0:
        _write(session, session.run.kept(session.step))
        yield Saved(session.run.kept(session.step), "checkpoint")
    if time.monotonic() - session.saved_at >= session.recipe.train.save_seconds:
        yield _save(session)


def _save(session: _Session) -> Saved:
    _write(session, session.run.last)
    session.saved, session.saved_at = _mark(session), time.monotonic()
    return Saved(session.run.last, "checkpoint")


def _mark(session: _Session) -> tuple[float, ...]:
    """What tells the checkpoints of a run apart."""
    return session.step, session.best.get("evaluated", -1)


def _write(session: _Session, path: Path) -> None:
    """Save a checkpoint, and before it the rows of metrics.csv that it counts on; no signal comes in between.

    Raises:
        SystemFault: disk full; the run is another process's by now.
    """
    session.lock.check()
    snapshot = _snapshot(session)

    def work() -> None:
        sync(session.run.metrics)
        if path == session.run.last:
            keep_previous(session.run)
        save_checkpoint(path, snapshot)

    uninterrupted(work)


def _evaluate(session: _Session, stop: threading.Event) -> Iterator[TrainEvent]:
    """Score the evaluation split; a better mIoU also becomes best.pt. `stop` abandons it: a resume repeats it."""
    recipe, run = session.recipe, session.run
    backbone = recipe.backbone
    session.model.eval()
    try:
        for event in evaluate(
            session.model, session.eval_set, recipe.inference, backbone.mean, backbone.std, session.device
        ):
            if stop.is_set():
                return
            if isinstance(event, Evaluated):
                yield _record(session, event)
                break
            yield event
    finally:
        session.model.train()
    if session.best["step"] == session.step:
        _write(session, run.best)
        yield Saved(run.best, "best")
    yield _save(session)


def _record(session: _Session, event: Evaluated) -> Evaluated:
    scores, step = event.scores, session.step
    miou = scores.miou or 0.0
    better = "miou" not in session.best or miou > session.best["miou"]
    if better:
        session.best.update(miou=miou, step=step)
    session.best["evaluated"] = step
    row: dict[str, float] = {"step": step, "epoch": session.plan.epoch(max(0, step - 1)), "miou": miou}
    row["pixel_accuracy"] = scores.pixel_accuracy or 0.0
    row["mean_accuracy"] = scores.mean_accuracy or 0.0
    session.lock.check()
    append_row(session.run.metrics, row, session.model.loss_names)
    append_log(session.run, f"step {step}: mIoU {100 * miou:.2f} on {scores.images} images")
    return Evaluated(scores, step, better)


def _snapshot(session: _Session) -> Checkpoint:
    plan, seed = session.plan, session.recipe.train.seed
    epoch, offset = divmod(session.step, plan.per_epoch)
    rng: dict[str, Any] = {"cpu": torch.get_rng_state(), "cuda": []}
    if session.device.type == "cuda":
        rng["cuda"] = [torch.cuda.get_rng_state(session.device)]
    return Checkpoint(
        model=session.model.state_dict(),
        optimizer=session.optimizer.state_dict(),
        step=session.step,
        epoch=epoch,
        best=dict(session.best),
        rng=rng,
        sampler={"seed": seed, "epoch": epoch, "offset": offset, **session.state},
        running=dict(session.running),
        recipe=session.recipe,
    )


def _restore(session: _Session, checkpoint: Checkpoint) -> None:
    session.model.load_state_dict(checkpoint.model)
    session.optimizer.load_state_dict(checkpoint.optimizer)
    session.step = checkpoint.step
    session.best, session.running = dict(checkpoint.best), dict(checkpoint.running)
    torch.set_rng_state(checkpoint.rng["cpu"])
    if session.device.type == "cuda" and checkpoint.rng["cuda"]:
        torch.cuda.set_rng_state(checkpoint.rng["cuda"][0], session.device)


__all__ = ["dry_run", "train"]
