"""Training: one loop that yields events and can stop and continue anywhere, bit for bit.

Room: train; imports every engine room below it. Legend: B batch, H W crop.

What a step computes is a pure function of (recipe, step, state), and the state is in the checkpoint: parameters,
buffers, momentum, the generator that dropout draws from. The sample order and every augmentation derive from
(seed, epoch, sample), so they need no state. That is why a run that was interrupted equals one that was not: exactly on
a CPU with the same number of threads; on CUDA as far as its kernels repeat themselves.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from emaseg.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from emaseg.data.loading import batches
from emaseg.data.sample import Batch, Dataset
from emaseg.errors import DataError, Diverged, RecipeError, SystemFault
from emaseg.evaluate import evaluate
from emaseg.events import Evaluated, Finished, Note, Saved, Started, Stepped, TrainEvent
from emaseg.files import atomic
from emaseg.models import Network, build_model
from emaseg.models.layers import Step
from emaseg.optim import build_optimizer, learning_rate, set_learning_rate
from emaseg.plan import (
    Schedule,
    changed_images,
    check_batch,
    datasets,
    dry_run,
    image_lists,
    is_scored,
    load_start_weights,
    loader_notes,
    loader_workers,
    schedule,
    write_samples,
)
from emaseg.recipe import Recipe, toml_value
from emaseg.run_folder import RunFolder, append_log, append_metrics, check_target, create, cut_metrics, resume_command
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
    lists: Mapping[str, int | str]  # of plan.image_lists
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # miou, step; evaluated = last step that was evaluated
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
) -> Iterator[TrainEvent]:
    """Train a recipe into the folder `out`, or continue there.

    Args:
        recipe: what to do.
        out: the run's folder; must be empty or absent unless `resume`.
        resume: continue from out/checkpoints/last.pt, whatever train.init_from says; without one, start at step 0
            and say so.
        device: where to compute; the CPU if None.
        stop: when set, the run saves a checkpoint after the current step and ends with Finished(interrupted=True).

    Yields:
        Events; the last one is Finished.

    Raises:
        RecipeError: `out` is taken, the checkpoint is of another recipe, a batch is too small for its norm layers.
        DataError: the data set cannot be used.
        SystemFault: disk, memory or permission.
        Diverged: a loss that is not finite; the batch is saved, the parameters were not touched by it.
    """
    device = device or torch.device("cpu")
    stop = stop or threading.Event()
    check_target(out, resume)
    run = RunFolder(out)
    train_set, eval_set, notes = datasets(recipe)
    yield from notes
    if not (resume and run.last.exists()):
        for event in fetch_backbone(recipe):
            yield event
            if stop.is_set():
                yield Finished(out, 0, None, interrupted=True)
                return
    session, remarks = _open(recipe, run, device, train_set, eval_set, resume)
    yield from remarks
    if session.complete and run.samples.exists():
        yield Finished(out, session.step, session.best.get("miou"), already=True, scored=session.plan.scored)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.threads or threads)
    try:
        create(run, session.recipe, device)
        cut_metrics(run, session.step, int(session.best.get("evaluated", 0)))
        for note in (*notes, *remarks):
            append_log(run, note.text)
        yield _started(session)
        yield from _loop(session, stop)
    except torch.OutOfMemoryError as error:
        hint = "use a smaller batch (--set train.batch=...) or a smaller augment.crop"
        raise SystemFault(f"{device}: out of memory with a batch of {recipe.train.batch}", hint) from error
    finally:
        torch.set_num_threads(threads)


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
    recipe: Recipe, run: RunFolder, device: torch.device, train_set: Dataset, eval_set: Dataset, resume: bool
) -> tuple[_Session, list[Note]]:
    """Model and optimiser at their first step, or as the last checkpoint has them."""
    notes: list[Note] = []
    plan = schedule(recipe, len(train_set), scored=is_scored(eval_set))
    checkpoint = None
    if resume:
        if run.last.exists():
            checkpoint = read_checkpoint(run.last)
            _same_training(recipe, checkpoint.recipe, run.last)
            origin = checkpoint.recipe.train.init_from  # stays on record; the checkpoint has everything
            recipe = replace(recipe, train=replace(recipe.train, init_from=origin))
        else:
            notes.append(Note(f"{run.last}: no checkpoint yet; starting at step 0"))
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    check_batch(model, recipe)
    if checkpoint is None:
        notes += load_start_weights(model, recipe)
    notes += loader_notes(recipe, device)
    model.to(device).train()
    optimizer, lists = build_optimizer(model, recipe.optim), image_lists(train_set, eval_set)
    session = _Session(recipe, run, device, model, optimizer, plan, train_set, eval_set, lists)
    if checkpoint is not None:
        _restore(session, checkpoint)
        if not session.complete:
            notes += changed_images(checkpoint.sampler, lists)
        notes.append(Note(f"continuing at step {session.step} of {plan.total} from {run.last}"))
    return session, notes


def _loop(session: _Session, stop: threading.Event) -> Generator[TrainEvent, None, None]:
    """Steps, evaluations and checkpoints until the end or until `stop`."""
    meter = _Meter(session)
    stream = _stream(session)
    saved = session.step
    try:
        while True:
            if session.plan.evaluates_at(session.step) and session.best.get("evaluated") != session.step:
                if session.step == session.plan.total:
                    yield _save(session)
                yield from _evaluate(session, stop)
            if stop.is_set():
                yield _save(session)
                append_log(session.run, f"interrupted after step {session.step}")
                yield Finished(session.run.root, session.step, session.best.get("miou"), interrupted=True)
                return
            if session.step == session.plan.total:
                if not session.plan.scored:
                    yield _save(session)
                break
            began = time.perf_counter()
            batch = next(stream)
            waited = time.perf_counter() - began
            parts = _step(session, batch)
            session.step += 1
            yield meter.event(parts, waited, time.perf_counter() - began)
            yield from _checkpoint_if_due(session)
    except DataError as error:  # a damaged image costs that image, not the steps since the last checkpoint
        first, *rest = lines_of(error.message)
        append_log(session.run, Lines(f"after step {session.step}: {first}", *rest))
        if session.step > saved:
            _save(session)
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


def _stream(session: _Session) -> Generator[Batch, None, None]:
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
        save_checkpoint(session.run.kept(session.step), _snapshot(session))
        yield Saved(session.run.kept(session.step), "checkpoint")
    if time.monotonic() - session.saved_at >= session.recipe.train.save_seconds:
        yield _save(session)


def _save(session: _Session) -> Saved:
    save_checkpoint(session.run.last, _snapshot(session))
    session.saved_at = time.monotonic()
    return Saved(session.run.last, "checkpoint")


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
        save_checkpoint(run.best, _snapshot(session))
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
    append_metrics(session.run, row, session.model.loss_names)
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
        sampler={"seed": seed, "epoch": epoch, "offset": offset, **session.lists},
        recipe=session.recipe,
    )


def _restore(session: _Session, checkpoint: Checkpoint) -> None:
    then, now = checkpoint.sampler.get("images", len(session.train_set)), len(session.train_set)
    if then != now:
        raise DataError(
            f"the training set had {then} images when this run started and has {now} now",
            "bring it back to what it was, or start a new run",
        )
    session.model.load_state_dict(checkpoint.model)
    session.optimizer.load_state_dict(checkpoint.optimizer)
    session.step = checkpoint.step
    session.best = dict(checkpoint.best)
    torch.set_rng_state(checkpoint.rng["cpu"])
    if session.device.type == "cuda" and checkpoint.rng["cuda"]:
        torch.cuda.set_rng_state(checkpoint.rng["cuda"][0], session.device)


# Changing these does not change what a step computes (but threads its rounding).
_FREE = {
    "train": ("init_from", "workers", "threads", "save_seconds", "keep_every", "log_every", "evaluate_every"),
    "data": ("root",),
}
_FREE_SECTIONS = ("title", "inference", "inference_tta", "published", "name")


def _same_training(recipe: Recipe, saved: Recipe, path: Path) -> None:
    """A resumed run keeps its recipe, but for what does not change the result.

    Raises:
        RecipeError: names the first keys that differ.
    """
    differing = []
    for section in type(recipe).__dataclass_fields__:
        now, then = getattr(recipe, section), getattr(saved, section)
        if section in _FREE_SECTIONS or now == then:
            continue
        if type(now) is not type(then) or not hasattr(now, "__dataclass_fields__"):
            differing.append(section)
            continue
        for key in type(now).__dataclass_fields__:
            if getattr(now, key) != getattr(then, key) and key not in _FREE.get(section, ()):
                differing.append(
                    f"{section}.{key} = {_shown(getattr(then, key))} there, {_shown(getattr(now, key))} now"
                )
    if differing:
        raise RecipeError(
            Lines(f"{path}: this run was started with another recipe", *(f"  {line}" for line in differing[:5])),
            Lines(
                "resume with its own, or start a new run in another folder",
                f"  {resume_command(RunFolder(path.parent.parent))}",
            ),
        )


def _shown(value: object) -> str:
    return "absent" if value is None else toml_value(value)


class _Meter:
    """Rates, time left and the rows of metrics.csv."""

    def __init__(self, session: _Session) -> None:
        self.session = session
        self.seconds = 0.0  # of one step, smoothed
        self.waiting = 0.0  # of it, for data
        self.window: list[dict[str, float]] = []

    def event(self, parts: dict[str, float], waited: float, took: float) -> Stepped:
        """The event of the step that has just been counted; adds a row to metrics.csv when one is due.

        Args:
            waited: seconds it waited for data; took: seconds in all.
        """
        session = self.session
        fresh = self.seconds == 0.0
        self.seconds = took if fresh else 0.9 * self.seconds + 0.1 * took
        self.waiting = waited if fresh else 0.9 * self.waiting + 0.1 * waited
        done, total = session.step, session.plan.total
        lr = learning_rate(done - 1, total, session.recipe.optim)
        self.window.append(parts)
        event = Stepped(
            step=done,
            total_steps=total,
            epoch=session.plan.epoch(done - 1),
            loss=sum(parts.values()),
            parts=parts,
            lr=lr,
            images_per_second=session.recipe.train.batch / self.seconds,
            data_wait=min(1.0, self.waiting / self.seconds),
            seconds_left=(total - done) * self.seconds,
        )
        if done % session.recipe.train.log_every == 0 or done == total:
            self._row(event)
        return event

    def _row(self, event: Stepped) -> None:
        """Means over the steps since the last row; a loss that started in between, over the steps that had it."""
        loss = _mean([sum(parts.values()) for parts in self.window])
        row: dict[str, float] = {"step": event.step, "epoch": event.epoch, "lr": event.lr, "loss": loss}
        for name in event.parts:
            row[f"loss_{name}"] = _mean([parts[name] for parts in self.window if name in parts])
        self.window.clear()
        row["images_per_second"] = event.images_per_second
        append_metrics(self.session.run, row, self.session.model.loss_names)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


__all__ = ["dry_run", "train"]
