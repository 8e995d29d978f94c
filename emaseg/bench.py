"""How fast a network runs, and trains, on this machine: time, memory, multiply-adds, parameters.

Room: bench. Legend: B batch, H W image height and width, K classes.

Speed does not depend on the weights, so a recipe alone is enough. Multiply-adds are those of convolutions and matrix products,
as the papers count their "FLOPs".
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emaseg.data.pipeline.loading import Stream, batches, worker_count
from emaseg.engine import Engine, Precision, check_precision, prepare
from emaseg.errors import DataError
from emaseg.free_memory import peak_memory, reset_peak
from emaseg.models import Network, build_model
from emaseg.open_datasets import open_datasets
from emaseg.recipe import EMANetModel, Recipe
from emaseg.recipe.channels import ranges
from emaseg.schedule import build_schedule
from emaseg.training.compute import LossScale, place, switches
from emaseg.training.optim import build_optimizer
from emaseg.training.step import check_batch, memory_errors, training_step

JSON_SCHEMA = 1
# The attention unit that the paper counts beside its ResNet (table 1): the two 1x1 convolutions, the iterations, and the 3x3
# reduction before them.
UNIT = ("reduce", "project", "attention", "expand")
STAGES = ("data", "forward", "loss", "backward", "optimiser")


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: batch images of height x width pixels, in a precision, on so many threads."""

    batch: int
    height: int
    width: int
    precision: Precision
    threads: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A case's result.

    Attributes:
        seconds: of each forward pass and the resize to the image's size, warm-up left out.
        cpu_seconds: of the processor, on all threads, for the middle pass; None on a GPU.
        peak: bytes of memory that were held at most, the network included. packed: the engine's way on a CPU.
    """

    case: Case
    seconds: tuple[float, ...]
    cpu_seconds: float | None
    peak: int | None
    packed: bool

    @property
    def images_per_second(self) -> float:
        return self.case.batch / statistics.median(self.seconds)

    def latency(self, percent: int) -> float:
        """The time, in seconds, within which so many of 100 passes were done."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, -(-percent * len(ordered) // 100) - 1)]

    def json(self) -> dict[str, Any]:
        case = self.case
        return {
            "batch": case.batch,
            "height": case.height,
            "width": case.width,
            "precision": case.precision,
            "threads": case.threads,
            "images_per_second": self.images_per_second,
            "seconds": {f"p{p}": self.latency(p) for p in (50, 90, 99)},
            "cpu_seconds": self.cpu_seconds,
            "peak_memory": self.peak,
            "passes": len(self.seconds),
            "packed": self.packed,
        }


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a network: its parameters and, for one image of the first case's size, its multiply-adds."""

    name: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class TrainMeasured:
    """Seconds of a training step in each of STAGES, the median of `steps` steps, and the most memory that was held."""

    stages: dict[str, float]
    steps: int
    batch: int
    crop: tuple[int, int]
    peak: int | None


# ----------------------------------------------------------------------------------------------- what is counted
def parts(recipe: Recipe, height: int, width: int) -> list[Part]:
    """The network's parts in their order, heads for training left out, and the whole as the last.

    An EMANet's attention unit is one part, with its bases, as in the paper's table 1.
    """
    with torch.device("meta"):
        model = build_model(recipe).eval()
        with FlopCounterMode(display=False, depth=2) as counter:
            model(torch.empty(1, model.backbone.in_channels, height, width))
    root = type(model).__name__
    adds = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    found: list[Part] = []
    for name, module in model.named_children():
        label = "EM attention unit" if isinstance(recipe.model, EMANetModel) and name in UNIT else name
        count = sum(p.numel() for p in module.parameters())
        if name == "attention":
            count += sum(b.numel() for b in module.buffers())  # the paper counts the bases
        cost = adds.get(f"{root}.{name}", 0)
        if cost == 0 and name != "attention":
            continue  # dropout, and what only training uses
        if found and found[-1].name == label:
            before = found.pop()
            count, cost = count + before.parameters, cost + before.multiply_adds
        found.append(Part(label, count, cost))
    whole = sum(p.numel() for p in model.parameters())
    return [*found, Part("network, training heads included", whole, adds.get("Global", adds.get(root, 0)))]


def environment(device: torch.device) -> dict[str, str]:
    """What a figure depends on beside the program."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}: {name}",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": platform.platform(terse=True),
        "emaseg": version("emaseg"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------- what is measured
def measure(
    network: Network, cases: Sequence[Case], device: torch.device, *, passes: int, warm_up: int, compiled: bool = False
) -> Iterator[Measured]:
    """Run the engine of a network: each case's forward passes with the resize to the image's size.

    Args:
        network: on the CPU, in eval mode; it is used up. All cases have one precision.
        passes: that are measured, after `warm_up` that are not.

    Raises:
        SystemFault: the device does not compute in the precision.
    """
    (precision,) = {case.precision for case in cases}
    check_precision(precision, device)
    before, channels = torch.get_num_threads(), network.backbone.in_channels
    try:
        torch.set_num_threads(cases[0].threads)
        engine = prepare(network, precision, device, compiled=compiled)
        for case in cases:
            torch.set_num_threads(case.threads)
            yield _measured(engine, channels, case, device, passes, warm_up)
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _measured(engine: Engine, channels: int, case: Case, device: torch.device, passes: int, warm_up: int) -> Measured:
    size = (case.height, case.width)
    images = torch.randn(case.batch, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def run() -> None:
        logits = engine(images)
        nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=engine.align_corners)
        _wait(device)

    for _ in range(max(1, warm_up)):
        run()
    reset_peak(device)
    run()  # on CUDA memory was given back, and is fetched again
    seconds, cpu = [], []
    for _ in range(passes):
        began, used = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    used_cpu = statistics.median(cpu) if device.type == "cpu" else None
    return Measured(case, tuple(seconds), used_cpu, peak_memory(device), engine.packed)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_training(recipe: Recipe, device: torch.device, *, steps: int, warm_up: int) -> TrainMeasured:
    """A training step by its stages, with the recipe's data, batch, crop and threads; nothing is written.

    The step is the trainer's own; its parts are timed from outside. "backward" is what is left: the gradients and their norm.
    "data" is the wait for a batch that the workers make meanwhile.

    Raises:
        the same errors as `train`.
    """
    train_set, eval_set, _ = open_datasets(recipe)
    if len(train_set) == 0:
        raise DataError("there are no training images", "check the recipe's [data]")
    schedule = build_schedule(recipe, len(train_set), scored=not eval_set.withheld_by)
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    check_batch(model, recipe)
    if recipe.loss.class_balance != "none" and not recipe.loss.class_weights:
        model.loss = replace(recipe.loss, class_weights=(1.0,) * model.num_classes)  # any weights take the same time
    place(model.train(), recipe.train, device)
    optimizer = build_optimizer(model, recipe.optim)
    scale = LossScale.of(recipe.train, device)
    clock = _Clock(device)
    forward = clock.timed("forward", model.training_step)
    model._loss = clock.timed("loss", model._loss)  # type: ignore[method-assign]
    optimizer.step = clock.timed("optimiser", optimizer.step)  # type: ignore[method-assign]
    stream = batches(
        train_set,
        recipe.augment,
        recipe.backbone.pixel_stats,
        batch=recipe.train.batch,
        start=0,
        total=warm_up + steps,
        seed=recipe.train.seed,
        workers=worker_count(recipe.train, device),
        device=device,
        floats=bool(ranges(recipe.data)),
    )
    rows: list[dict[str, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.threads or threads)
    try:
        with memory_errors(recipe, model, device), switches(recipe.train, device), contextlib.closing(stream):
            for i in range(warm_up + steps):
                if i == warm_up:
                    reset_peak(device)
                rows.append(_step(clock, stream, i, model, optimizer, schedule, recipe, forward, scale))
    finally:
        torch.set_num_threads(threads)
    measured = rows[warm_up:]
    stages = {stage: statistics.median(row[stage] for row in measured) for stage in STAGES}
    crop = (recipe.augment.crop[0], recipe.augment.crop[1])
    return TrainMeasured(stages, steps, recipe.train.batch, crop, peak_memory(device))


def _step(
    clock: _Clock,
    stream: Stream,
    number: int,
    model: Network,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    recipe: Recipe,
    forward: Any,
    scale: LossScale | None,
) -> dict[str, float]:
    """Seconds of one step in each stage."""
    clock.spent.clear()
    began = time.perf_counter()
    batch = next(stream)
    data = time.perf_counter() - began
    began = time.perf_counter()
    training_step(model, optimizer, batch, number, schedule, recipe, forward=forward, scale=scale)
    _wait(clock.device)
    whole = time.perf_counter() - began
    spent = {stage: clock.spent.get(stage, 0.0) for stage in ("forward", "loss", "optimiser")}
    backward = whole - spent["forward"] - spent["optimiser"]
    return {**spent, "data": data, "forward": spent["forward"] - spent["loss"], "backward": backward}


class _Clock:
    """Adds up the seconds that wrapped functions take; on a GPU until their work is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = {}

    def timed(self, stage: str, function: Any) -> Any:
        """The function, whose calls are counted under `stage`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            _wait(self.device)
            began = time.perf_counter()
            result = function(*args, **kwargs)
            _wait(self.device)
            self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - began
            return result

        return call
