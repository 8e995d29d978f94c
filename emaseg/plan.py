"""What a run will do before it does it: data, schedule, start weights, and the forecast of `train --dry-run`.

Room: plan; below train, above models, data, optim, inference. Yields nothing, writes nothing but samples.png.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from emaseg.checkpoint import load_backbone, load_start
from emaseg.data.checks import check_dataset, spread
from emaseg.data.pipeline.loading import batches, default_workers
from emaseg.data.sample import Dataset, read_pair
from emaseg.data.sets import build_dataset
from emaseg.data.sets.doubts import file_doubts
from emaseg.errors import RecipeError
from emaseg.events import Note
from emaseg.files import atomic
from emaseg.inference import label_map
from emaseg.models import Network, build_model
from emaseg.models.layers import Step
from emaseg.optim import build_optimizer, learning_rate
from emaseg.recipe import Recipe, toml_value
from emaseg.run_folder import RunFolder
from emaseg.schedule import schedule
from emaseg.visual import sheet
from emaseg.weights.start import backbone_file, fetchable, start_weights
from emaseg.words import duration, rate

SAMPLES = 6  # rows of samples.png


def datasets(recipe: Recipe) -> tuple[Dataset, Dataset, list[Note]]:
    """Training and evaluation set, with a sample of their labels checked.

    Raises:
        DataError: missing, empty, or labelled with values it must not hold.
        RecipeError: a kind of data set that this version does not read.
    """
    sets = build_dataset(recipe.data, "train"), build_dataset(recipe.data, "eval")
    notes = []
    for part, dataset in zip(("training", "evaluation"), sets, strict=True):
        if dataset.layout:
            notes.append(Note(f"{part}: {dataset.layout}"))
        if part == "evaluation" and dataset.withheld_by:
            notes.append(Note(f"{part}: {len(dataset)} images whose labels are not published; nothing is scored"))
            continue
        report = check_dataset(dataset)
        text = f"{part}: {report.images} images, labels of {report.checked} checked"
        if report.never_seen:
            text += f"; not seen in them: {', '.join(report.never_seen[:8])}"
            text += " ..." if len(report.never_seen) > 8 else ""
        notes.append(Note(text))
        doubts = (*report.doubts, *file_doubts(dataset, spread(len(dataset), report.checked)))
        notes += [Note(f"{part}: {doubt.message}; {doubt.hint}", warning=True) for doubt in doubts]
    return (*sets, notes)


def load_start_weights(model: Network, recipe: Recipe) -> list[Note]:
    """Fill the whole network from `train.init_from`, or the backbone with the recipe's start weights.

    Raises:
        WeightsError: not there, unreadable, or of another network or backbone.
    """
    if recipe.train.init_from:
        return _load_initial(model, recipe)
    if recipe.backbone.weights == "none":
        return [Note(f"backbone: untrained (backbone.weights = {toml_value(recipe.backbone.weights)})")]
    path = backbone_file(recipe)
    load_backbone(model.backbone, path)
    return [Note(f"backbone: {path}")]


def _load_initial(model: Network, recipe: Recipe) -> list[Note]:
    path = start_weights(recipe.train.init_from)
    theirs = load_start(model, path)
    notes = [Note(f"start: the network of {path} (train.init_from)")]
    if theirs is not None:
        fresh = ", ".join(model.per_class)
        notes.append(Note(f"start: it has {theirs} classes, this recipe {model.num_classes}; new here: {fresh}"))
    return notes


def loader_workers(recipe: Recipe, device: torch.device) -> int:
    """Loading processes: the recipe's number, or what pays on this machine."""
    return default_workers(device) if recipe.train.workers < 0 else recipe.train.workers


def check_batch(model: Network, recipe: Recipe) -> None:
    """Refuse a batch that leaves a norm layer a single value for a channel: its variance would be undefined.

    Raises:
        RecipeError: with the remedy.
    """
    height, width = recipe.augment.crop
    if model.norm_values(recipe.train.batch, height, width) < 2:
        raise RecipeError(
            f"train.batch = {recipe.train.batch} with augment.crop = [{height}, {width}] leaves one value for each "
            "channel of a norm layer",
            "use a batch of at least 2 (--set train.batch=2) or a larger crop",
        )


def write_samples(model: Network, recipe: Recipe, dataset: Dataset, run: RunFolder, device: torch.device) -> Path:
    """samples.png: image, truth (where there is one) and prediction of a few evaluation images, evenly spread."""
    count = min(SAMPLES, len(dataset))
    rows = []
    model.eval()
    for i in range(count):
        image, truth = read_pair(dataset, i * len(dataset) // count)
        backbone = recipe.backbone
        labels = label_map(model, image, recipe.inference, backbone.mean, backbone.std, device)
        rows.append((image, truth, labels))
    model.train()
    with atomic(run.samples) as file:
        sheet(rows, dataset.palette, dataset.classes).save(file, format="PNG")
    return run.samples


@dataclass(frozen=True, slots=True)
class DryRun:
    """The resolved plan as label and value pairs, with remarks."""

    lines: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def dry_run(recipe: Recipe, *, device: torch.device) -> DryRun:
    """Everything that `train` would do up to its second step, measured, and nothing written.

    The second step is the one measured: the first also pays for warming up.

    Raises:
        the same errors as `train`.
    """
    train_set, eval_set, notes = datasets(recipe)
    plan = schedule(recipe, len(train_set), scored=not eval_set.withheld_by)
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    check_batch(model, recipe)
    missing = fetchable(recipe)
    if missing is None:
        notes += load_start_weights(model, recipe)
    else:  # a dry run measures as well without them
        notes.append(Note(f"backbone: {missing.name} would be downloaded first (at least {missing.megabytes} MB)"))
    model.to(device).train()
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.threads or threads)
    try:
        seconds = _measure(model, recipe, train_set, device)
    finally:
        torch.set_num_threads(threads)
    total = seconds * plan.total
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = f"every {plan.every} steps and at the end" if plan.every else "at the end"
    every = every if plan.scored else "none: the labels are not published"
    marks = (0, plan.total // 2, plan.total - 1)
    rates = ", ".join(f"{learning_rate(i, plan.total, recipe.optim):.3g}" for i in marks)
    lines = (
        ("recipe", f"{recipe.name}: {recipe.title}".rstrip(": ")),
        ("model", f"{recipe.model.kind} on {recipe.backbone.kind}, output stride {recipe.backbone.output_stride}"),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,} ({trainable:,} trained)"),
        ("data", f"{recipe.data.kind}: {len(train_set)} training, {len(eval_set)} evaluation images"),
        ("classes", str(len(train_set.classes))),
        ("batch", f"{recipe.train.batch} crops of {recipe.augment.crop[0]}x{recipe.augment.crop[1]}"),
        ("steps", f"{plan.total} ({plan.per_epoch} an epoch, {plan.total / plan.per_epoch:.1f} epochs)"),
        ("evaluation", every),
        ("learning rate", f"{rates} at the first, middle and last step"),
        ("device", str(device)),
        ("one step", f"{seconds:.2f} s measured, {rate(recipe.train.batch / seconds)} images/s"),
        ("peak memory", _peak_memory(device)),
        ("training time", f"about {duration(total)} without evaluations"),
    )
    return DryRun(lines, tuple(note.text for note in notes))


def _measure(model: Network, recipe: Recipe, dataset: Dataset, device: torch.device) -> float:
    """Seconds of the second training step, data included; the model is thrown away afterwards."""
    optimizer = build_optimizer(model, recipe.optim)
    backbone = recipe.backbone
    stream = batches(
        dataset,
        recipe.augment,
        backbone.mean,
        backbone.std,
        batch=recipe.train.batch,
        start=0,
        total=2,
        seed=recipe.train.seed,
        workers=0,
        device=device,
    )
    done = []
    for i, batch in enumerate(stream):
        losses = model.training_step(batch.images, batch.labels, Step(i, 1, recipe.optim.lr))
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # a GPU is done only when it answers
        done.append(time.perf_counter())
    return done[1] - done[0]


def _peak_memory(device: torch.device) -> str:
    """Of the device's allocator on CUDA, of the whole process otherwise, where the system tells it."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB after two steps"
    try:
        import resource
    except ImportError:  # Windows
        return "not known on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB after two steps"
