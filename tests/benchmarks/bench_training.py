"""A training step on the CPU: how much faster in bf16, and how much less memory recomputed or in parts.

    python -m tests.benchmarks.bench_training [--recipe voc_r50_d8] [--rounds 5] [--batch 2] [--size 256]
        [--memory-batch 4] [--memory-size 512]

Time: steps of float32 and of each other way take turns in one process; prints medians and the median of the paired
ratios. Memory: the peak of one step, each in a process of its own, with and without what the process held before.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from emaseg.data.pipeline.transforms import Batch
from emaseg.device import keep_freed_memory
from emaseg.free_memory import peak_memory, reset_peak, start_threads
from emaseg.models import Network, build_model
from emaseg.recipe import Recipe, parse_recipe
from emaseg.schedule import Schedule
from emaseg.training.compute import place, switches
from emaseg.training.optim import build_optimizer
from emaseg.training.step import training_step

RECIPES = Path(__file__).parents[2] / "recipes"
CPU = torch.device("cpu")
SCHEDULE = Schedule(total=1000, per_epoch=10, every=0, scored=True)
TIMED = {
    "float32": (),
    "float32, channels last": ("train.channels_last=true",),
    "bf16": ('train.precision="bf16"',),
    "bf16, channels last": ('train.precision="bf16"', "train.channels_last=true"),
    "recomputed": ("train.recompute=true",),
}
SIZED = {
    "plain": (),
    "recomputed": ("train.recompute=true",),
    "in 2 parts": ("train.accumulate=2",),
    "recomputed, in 2 parts": ("train.recompute=true", "train.accumulate=2"),
}


def recipe_of(name: str, batch: int, keys: tuple[str, ...]) -> Recipe:
    path = RECIPES / f"{name}.toml"
    fixed = ['backbone.weights="none"', "train.seed=0", f"train.batch={batch}"]
    return parse_recipe(path.read_text("utf-8"), str(path), [*fixed, *keys]).recipe


class Trained:
    """A network that takes steps on one batch."""

    def __init__(self, name: str, batch: int, size: int, keys: tuple[str, ...]) -> None:
        self.recipe = recipe_of(name, batch, keys)
        torch.manual_seed(0)
        self.model: Network = build_model(self.recipe)
        place(self.model, self.recipe.train, CPU)
        self.optimizer = build_optimizer(self.model, self.recipe.optim)
        labels = torch.randint(0, self.model.num_classes, (batch, size, size))
        self.batch = Batch(torch.randn(batch, 3, size, size), labels, ("",) * batch)

    def step(self) -> float:
        """Seconds of a step."""
        began = time.perf_counter()
        with switches(self.recipe.train, CPU):
            result = training_step(self.model, self.optimizer, self.batch, 0, SCHEDULE, self.recipe)
        assert result.finite
        return time.perf_counter() - began


def own_peak(name: str, batch: int, size: int, way: str) -> tuple[float, float]:
    """MB of a step in this process: at the most, and of that before it."""
    trained = Trained(name, batch, size, SIZED[way])
    start_threads()
    reset_peak(CPU)
    before = peak_memory(CPU) or 0
    trained.step()
    return (peak_memory(CPU) or 0) / 2**20, before / 2**20


def show_memory(name: str, batch: int, size: int) -> None:
    print(f"peak memory of a step, {name}, batch {batch}, {size}x{size}")
    for way in SIZED:
        command = [sys.executable, "-m", "tests.benchmarks.bench_training", "--recipe", name, "--only", way]
        command += ["--memory-batch", str(batch), "--memory-size", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, before = map(float, done.stdout.split())
        print(f"  {way:24} {peak:6.0f} MB, {peak - before:6.0f} MB of it by the step", flush=True)


def show_times(name: str, batch: int, size: int, rounds: int) -> None:
    ways = {way: Trained(name, batch, size, keys) for way, keys in TIMED.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for trained in ways.values():
        trained.step()
    for _ in range(rounds):
        for way, trained in ways.items():
            times[way].append(trained.step())
    print(f"time of a step, {name}, batch {batch}, {size}x{size}, {torch.get_num_threads()} threads")
    for way, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["float32"], seconds, strict=True))
        print(f"  {way:24} {statistics.median(seconds):7.3f} s   float32 / this: {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="voc_r50_d8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--memory-batch", type=int, default=4)
    parser.add_argument("--memory-size", type=int, default=512)
    parser.add_argument("--only", choices=SIZED, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(*own_peak(given.recipe, given.memory_batch, given.memory_size, given.only))
        return
    show_memory(given.recipe, given.memory_batch, given.memory_size)  # first: while this process is small
    keep_freed_memory()  # as `emaseg train` does
    show_times(given.recipe, given.batch, given.size, given.rounds)


if __name__ == "__main__":
    main()
