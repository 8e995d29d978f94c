"""The forecast of `train --dry-run`: what a run will be, how long a step takes, and whether its memory is there.

Room: training. Writes nothing.

Threat: a batch that does not fit makes the system kill this process, or another one, without a word. So one crop is
measured, then two, and the memory of the whole batch follows from them; the whole batch is measured only where it fits.
On Linux every measurement runs under a limit that refuses what is not free.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from emaseg.data.dataset import Dataset
from emaseg.data.files.opencv import opencv
from emaseg.data.pipeline.loading import batches
from emaseg.distributed.ranks import ALONE, check_ranks, ranks_here, this_rank
from emaseg.events import DryRunEvent, Forecast, LessMemory, Measuring, Note, Planned
from emaseg.free_memory import allocation_limit, device_memory, is_out_of_memory, peak_memory, reset_peak, start_threads
from emaseg.models import Network, build_model
from emaseg.open_datasets import open_datasets
from emaseg.recipe import Recipe
from emaseg.recipe.channels import ranges
from emaseg.runs.folder import RunFolder
from emaseg.schedule import Schedule, build_schedule
from emaseg.training.class_balance import given_weights
from emaseg.training.compute import LossScale, notes_on, place, switches
from emaseg.training.optim import build_optimizer, learning_rate, short_warmup
from emaseg.training.resuming import origin_of
from emaseg.training.run_steps import DECIDES_AFTER, shortened
from emaseg.training.scaling import scaling_lines, traffic
from emaseg.training.start_weights import load_start_weights
from emaseg.training.step import check_batch, smallest_batch, training_step
from emaseg.training.weight_average import average_of
from emaseg.weights.backbone import fetchable
from emaseg.words import duration, rate
from emaseg.words import size as bytes_

_KEPT_FREE = 0.05  # of the memory: for evaluations, for what the system does meanwhile, and for the estimate's error
_LONG = 30.0  # seconds; a step that is expected to take longer is measured once, without a step to warm up
_INPUT_BYTES = 4 + 8  # of a pixel as the network reads it, at least one channel and its label: no crop takes less
_RECOMPUTE = "--set train.recompute=true"
_CROP_UNIT = 32  # crops are made smaller by this many pixels: the coarsest grid of any backbone


@dataclass(frozen=True, slots=True)
class _Run:
    """What is measured. start: the step that the run begins with, above 0 where it is resumed. decided: train.hours has
    made the schedule what it is, or train.patience."""

    recipe: Recipe
    device: torch.device
    model: Network
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train_set: Dataset
    start: int
    scale: LossScale | None
    ranks: int = 1
    decided: bool = False

    @property
    def share(self) -> int:
        """Crops of a step that one rank computes; no fewer than one rank alone can, in as many parts."""
        train = self.recipe.train
        fewest = smallest_batch(self.model, self.recipe.augment.crop) * train.accumulate
        return max(fewest, train.batch // self.ranks)


@dataclass(frozen=True, slots=True)
class _Probe:
    """A measured step on so many crops: the most memory that was held meanwhile, seconds, data included, and whether
    its losses and gradient were finite."""

    crops: int
    peak: int | None
    seconds: float
    finite: bool


def dry_run(
    recipe: Recipe, *, device: torch.device, run: Path | None = None, ranks: int = 1
) -> Generator[DryRunEvent, None, None]:
    """Everything that `train` would do up to its first steps, measured, and nothing written.

    Args:
        recipe: as for `train`. device: where it would compute.
        run: the run's folder where it would be resumed: the forecast is of what is left.
        ranks: processes that would train: one's share of the batch is measured, and the forecast has their efficiency.

    Yields:
        Notes, what is planned as soon as it is known, and the Forecast at the end.

    Raises:
        the same errors as `train`; but not for memory that is missing, which the forecast tells.
    """
    check_ranks(recipe.train.batch, recipe.train.ranks, ranks)
    train_set, eval_set, notes = open_datasets(recipe)
    yield from notes
    schedule = build_schedule(recipe, len(train_set), scored=not eval_set.withheld_by)
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    check_batch(model, recipe, ranks)
    if (
        recipe.loss.class_balance != "none" and not recipe.loss.class_weights
    ):  # any weights take the same time and memory
        model.loss = replace(recipe.loss, class_weights=(1.0,) * model.num_classes)
    optimizer = build_optimizer(model, recipe.optim)
    start, end, remarks = _start(recipe, model, optimizer, schedule, len(train_set), run)
    schedule = replace(schedule, total=end or schedule.total)
    yield from remarks
    yield Planned(tuple(_plan(recipe, model, train_set, eval_set, schedule, start, device)))
    yield from notes_on(recipe, device)
    left = schedule.total - start
    if left == 0:
        yield Forecast((("training time", "every step is done"),), 0)
        return
    place(model, recipe.train, device)
    optimizer = build_optimizer(model, recipe.optim)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.threads or threads)
    try:
        scale = LossScale.of(recipe.train, device)
        with switches(recipe.train, device):
            measured = _Run(recipe, device, model, optimizer, schedule, train_set, start, scale, ranks, bool(end))
            for event in _measure(measured):
                yield event
                if isinstance(event, Forecast) and ranks > 1 and event.seconds_per_step:
                    yield Planned(tuple(scaling_lines(event.seconds_per_step, traffic(model, recipe))))
    finally:
        torch.set_num_threads(threads)


def _start(
    recipe: Recipe,
    model: Network,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    train_images: int,
    run: Path | None,
) -> tuple[int, int, list[Note]]:
    """The step that the run begins with, the one that it was decided to end with (0 = none was), and what it begins from.

    Weights are read as `train` would, to check them.
    """
    notes = []
    if run is not None:
        folder = RunFolder(run)
        origin = origin_of(folder, recipe, model, optimizer, schedule.total, train_images)
        if origin is not None:
            step, end = origin.checkpoint.step, int(origin.checkpoint.sampler.get("steps", 0))
            text = f"continuing at step {step} of {end or schedule.total} from {origin.path}"
            return step, end, [*origin.notes, Note(text)]
        notes.append(Note(f"{folder.root}: no checkpoint here; starting at step 0"))
    notes += [*short_warmup(schedule.total, recipe.optim), *given_weights(recipe)]
    missing = fetchable(recipe)
    if missing is None:
        return 0, 0, notes + load_start_weights(model, recipe)
    # a dry run measures as well without them
    text = f"backbone: {missing.name} would be downloaded first (at least {missing.megabytes} MB)"
    return 0, 0, [*notes, Note(text)]


def _plan(
    recipe: Recipe,
    model: Network,
    train_set: Dataset,
    eval_set: Dataset,
    schedule: Schedule,
    start: int,
    device: torch.device,
) -> Iterator[tuple[str, str]]:
    """What is known without measuring, as label and value pairs."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = f"every {schedule.every} steps and at the end" if schedule.every else "at the end"
    marks = (start, schedule.total // 2, schedule.total - 1)
    rates = ", ".join(f"{learning_rate(i, schedule.total, recipe.optim):.3g}" for i in marks)
    first = "first" if not start else "next"
    epochs = schedule.total / schedule.per_epoch
    yield "recipe", f"{recipe.name}: {recipe.title}".rstrip(": ")
    yield "model", f"{recipe.model.kind} on {recipe.backbone.kind}, output stride {recipe.backbone.output_stride}"
    yield "parameters", f"{sum(p.numel() for p in model.parameters()):,} ({trained:,} trained)"
    yield "data", f"{recipe.data.kind}: {len(train_set)} training, {len(eval_set)} evaluation images"
    yield "classes", str(len(train_set.classes))
    yield "batch", f"{recipe.train.batch} crops of {recipe.augment.crop[0]}x{recipe.augment.crop[1]}"
    yield "steps", f"{schedule.total} ({schedule.per_epoch} an epoch, {epochs:.1f} epochs)"
    if start:
        yield "steps left", f"{schedule.total - start} of {schedule.total}"
    yield "evaluation", every if schedule.scored else "none: the labels are not published"
    yield "learning rate", f"{rates} at the {first}, middle and last step"
    yield "device", str(device)


# ------------------------------------------------------------------------------------------------- measuring
def _measure(run: _Run) -> Generator[DryRunEvent, None, None]:
    """Measure the smallest batch, one crop more, and the whole batch where it fits, and what would need less memory."""
    train, crop = run.recipe.train, run.recipe.augment.crop
    batch, first = run.share, smallest_batch(run.model, crop)
    available = _available(run)
    probes: list[_Probe] = []
    for crops in range(first, min(first + 2, batch)):
        yield Measuring(crops, crop)
        probe = _probe(run, crops, crop, warm=not probes)
        if probe is None:
            break
        probes.append(probe)
    needed = _needed(run, probes, train.accumulate)
    refused = len(probes) < min(2, batch - first) or not _fits(needed, available)
    # before the whole batch: what that leaves behind in this process would count
    ways = yield from _less_memory(run, first, probes, available)
    whole = None
    if not refused:
        seconds = _seconds(probes, batch)
        yield Measuring(batch, crop, seconds or None)
        whole = _probe(run, batch, crop, warm=seconds < _LONG, parts=train.accumulate)
    if whole is not None:
        if not whole.finite:
            text = "the loss or its gradient was not finite in a measured step: the run may diverge; lower optim.lr"
            yield Note(text, warning=True)
        yield _fitting(run, whole, available, ways)
        return
    remedy = next((way.options for way in ways if way.fits), "")
    if not remedy:
        remedy = yield from _remedy(run, first, probes, available)
    yield _too_large(run, probes, needed, available, remedy, ways)


def _less_memory(
    run: _Run, first: int, probes: list[_Probe], available: int | None
) -> Generator[DryRunEvent, None, tuple[LessMemory, ...]]:
    """Ways of the same batch that need less memory, what changes the result least first; where recomputing is not the
    recipe's own way yet, it is measured on the smallest batch and one crop more.

    Parts are as few as fit, or as many as there can be.
    """
    train, crop, ways = run.recipe.train, run.recipe.augment.crop, []
    lists = [("", probes)]
    if not (train.recompute or train.compile):
        lists.append((_RECOMPUTE, []))
        run.model.recompute_activations()
        for crops in range(first, min(first + 2, run.share + 1)):
            yield Measuring(crops, crop, recomputed=True)
            probe = _probe(run, crops, crop, warm=False)
            if probe is not None:
                lists[-1][1].append(probe)
        run.model.recompute_activations(False)
    counts = [n for n in range(train.accumulate, run.share // first + 1) if n == train.accumulate or run.share % n == 0]
    for option, measured in reversed(lists):
        tried = [(n, needed) for n in counts if (needed := _needed(run, measured, n)) is not None]
        if option and tried:
            ways.append(_way(option, tried[0][1], available))
        more = [(n, needed) for n, needed in tried if n > train.accumulate]
        enough = next(((n, needed) for n, needed in more if _fits(needed, available)), more[-1] if more else None)
        if enough is not None and not (option and ways and ways[0].fits):
            ways.append(_way(f"{option} --set train.accumulate={enough[0]}".strip(), enough[1], available))
    return tuple(ways)


def _way(options: str, needed: int, available: int | None) -> LessMemory:
    name = "recomputed" if options == _RECOMPUTE else "recomputed, in parts" if _RECOMPUTE in options else "in parts"
    return LessMemory(name, options, needed, None if available is None else _fits(needed, available))


def _probe(run: _Run, crops: int, crop: tuple[int, int], *, warm: bool, parts: int = 1) -> _Probe | None:
    """Measure a step on so many crops of this size, in so many parts, after one to warm up; None where its memory was
    refused."""
    recipe, steps = replace(run.recipe, train=replace(run.recipe.train, accumulate=parts)), 2 if warm else 1
    stream = batches(
        run.train_set,
        replace(recipe.augment, crop=crop),
        recipe.backbone.pixel_stats,
        batch=crops,
        start=0,
        total=steps,
        seed=recipe.train.seed,
        workers=0,
        device=run.device,
        floats=bool(ranges(recipe.data)),
    )
    start_threads()
    opencv()  # its import starts threads, too
    reset_peak(run.device)
    free = _available(run) if run.device.type == "cpu" else None
    began, seconds, finite = 0.0, 0.0, True
    try:
        with allocation_limit(None if free is None else _usable(free) - (peak_memory(run.device) or 0)):
            average = average_of(run.model, recipe.optim.average_decay)
            for i in range(steps):
                began = time.perf_counter()
                batch = next(stream)
                result = training_step(
                    run.model, run.optimizer, batch, run.start + i, run.schedule, recipe, scale=run.scale
                )
                if average is not None:
                    average.update(run.model, i + 1)
                seconds = time.perf_counter() - began
                finite = finite and (result.finite or run.scale is not None)  # its first factor may be too large
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        stream.close()
        run.optimizer.zero_grad(set_to_none=True)
    return _Probe(crops, peak_memory(run.device), seconds, finite)


def _available(run: _Run) -> int | None:
    """What one of the processes that would train can have of the device's memory: on a CPU they share the machine's."""
    whole = device_memory(run.device)
    if whole is None or run.device.type != "cpu":
        return whole
    return whole // (run.ranks if this_rank() == ALONE else ranks_here())  # a launcher's may be on several machines


def _usable(available: int) -> int:
    return int(available * (1 - _KEPT_FREE))


def _fits(needed: int | None, available: int | None) -> bool:
    """Whether so much may be tried. Unknown needs may, under the limit; unknown memory is not risked for a large need."""
    if needed is None:
        return True
    return available is not None and needed <= _usable(available)


def _per_crop(probes: list[_Probe], crop: tuple[int, int]) -> int | None:
    """Bytes that one crop more takes; None where that was not measured."""
    if len(probes) < 2 or probes[0].peak is None or probes[1].peak is None:
        return None
    return max(probes[1].peak - probes[0].peak, _INPUT_BYTES * crop[0] * crop[1])


def _needed(run: _Run, probes: list[_Probe], parts: int) -> int | None:
    """The peak of the whole batch in so many parts; None where nothing is known.

    It grows by the same with each crop that goes through at once. Of several parts all but the first find the gradient
    of those before them.
    """
    crops = run.share // parts
    gradient = sum(p.numel() * p.element_size() for p in run.model.parameters() if p.requires_grad)
    known = next((probe.peak for probe in probes if probe.crops == crops), None)
    each = _per_crop(probes, run.recipe.augment.crop)
    if known is None and each is not None and probes[1].peak is not None:
        known = probes[1].peak + each * (crops - probes[1].crops)
    return None if known is None else known + (gradient if parts > 1 else 0)


def _seconds(probes: list[_Probe], batch: int) -> float:
    """Of a step with the whole batch, as if each crop took the same time; 0 where nothing is known."""
    return probes[-1].seconds / probes[-1].crops * batch if probes else 0.0


# ----------------------------------------------------------------------------------------------- what comes of it
def _fitting(run: _Run, probe: _Probe, available: int | None, ways: tuple[LessMemory, ...]) -> Forecast:
    left = run.schedule.total - run.start
    ways = tuple(way for way in ways if probe.peak is None or way.needed < probe.peak)  # estimates: some are no less
    size = "not known on this system" if probe.peak is None else f"{bytes_(probe.peak)} measured"
    fits = "" if available is None or probe.peak is None else f"; fits, {bytes_(available)} are free"
    lines = (
        ("one step", f"{probe.seconds:.2f} s measured, {rate(probe.crops / probe.seconds)} images/s"),
        ("peak memory", size + fits),
        *_way_lines(ways),
        ("training time", f"about {duration(probe.seconds * left)} without evaluations"),
        *_time_limit(run, probe.seconds),
    )
    return Forecast(lines, left, probe.seconds, probe.peak, available, measured=True, fits=True, less_memory=ways)


def _way_lines(ways: tuple[LessMemory, ...]) -> Iterator[tuple[str, str]]:
    for way in ways:
        same = ", same result" if way.options == _RECOMPUTE else ""
        fits = {True: "would fit", False: "does not fit", None: ""}[way.fits]
        yield way.name, "; ".join(text for text in (f"about {bytes_(way.needed)}", fits, way.options + same) if text)


def _time_limit(run: _Run, pace: float) -> Iterator[tuple[str, str]]:
    """What train.hours will make of the schedule at this pace; evaluations, which take time too, are not measured here."""
    hours, total = run.recipe.train.hours, run.schedule.total
    if not hours or run.decided:
        return
    steps = shortened(run.schedule, run.start, pace, 0.0, 3600 * hours).total
    yield (
        "time limit",
        f"{hours:g} h: {'all' if steps == total else f'at most {steps} of'} {total} steps; decided {DECIDES_AFTER} steps after the start",
    )


def _too_large(
    run: _Run,
    probes: list[_Probe],
    needed: int | None,
    available: int | None,
    remedy: str,
    ways: tuple[LessMemory, ...],
) -> Forecast:
    """The forecast where the whole batch could not be measured. `fits` is None where the free memory is unknown."""
    left, seconds = run.schedule.total - run.start, _seconds(probes, run.share)
    measured = " and ".join(str(probe.crops) for probe in probes)
    need = f"about {bytes_(needed)}" if needed else "more"
    if available is None:
        memory = f"needs {need}; what is free is not known on this system, so the whole batch was not tried"
    else:
        memory = f"does not fit: needs {need}{',' if needed else ' than the'} {bytes_(available)} {'are' if needed else 'that are'} free"
    lines = [("peak memory", memory), *_way_lines(ways)]
    if probes:
        lines.insert(0, ("one step", f"about {duration(seconds)}, from steps with {measured} crops"))
        lines.append(("training time", f"about {duration(seconds * left)} without evaluations"))
    if remedy:
        lines.append(("would fit", remedy))
    fits = None if available is None else False
    return Forecast(
        tuple(lines),
        left,
        seconds or None,
        needed,
        available,
        measured=False,
        fits=fits,
        remedy=remedy,
        less_memory=ways,
    )


def _remedy(run: _Run, first: int, probes: list[_Probe], available: int | None) -> Generator[Measuring, None, str]:
    """What would fit, as `--set` options: the largest batch, or the smallest batch with a crop that was measured; ""
    where nothing is known."""
    ranks, crop, batch = run.ranks, run.recipe.augment.crop, run.share
    if available is None:
        return ""
    each = _per_crop(probes, crop)
    if each is not None and probes[0].peak is not None:
        most = probes[0].crops + (_usable(available) - probes[0].peak) // each
        most = min(most, batch * 3 // 4)  # less, where the estimate was too low and the whole batch was refused
        if most >= first:
            return f"--set train.batch={most * ranks}"
    elif probes:
        return f"--set train.batch={probes[-1].crops * ranks}"
    while max(crop) >= 2 * _CROP_UNIT:
        crop = _halved(crop)
        crops = smallest_batch(run.model, crop)
        yield Measuring(crops, crop)
        if _probe(run, crops, crop, warm=False) is not None:
            return f"--set train.batch={crops * ranks} --set 'augment.crop=[{crop[0]}, {crop[1]}]'"
    return ""


def _halved(crop: tuple[int, int]) -> tuple[int, int]:
    """About half of both sides, on the same grid: 513 gives 257, and 512 gives 256. Short sides stay."""
    height, width = (side - side // _CROP_UNIT // 2 * _CROP_UNIT if side >= 2 * _CROP_UNIT else side for side in crop)
    return height, width
