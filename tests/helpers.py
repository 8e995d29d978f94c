"""Small real runs for the tests: a recipe that trains in a second, and what to do with it."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path

import pytest
import torch

from emaseg.events import Stepped, TrainEvent
from emaseg.recipe import Recipe, parse_recipe
from emaseg.train import train

main = importlib.import_module("emaseg.cli").main

TINY = """
schema = 1
name = "tiny"

[model]
kind = "emanet"
bases = 4
attention_channels = 16
bottleneck_channels = 16
decoder_channels = 16
auxiliary_channels = 8

[backbone]
kind = "resnet14"
output_stride = 8
stem_channels = [8, 8, 8]
width = 8
weights = "none"

[data]
kind = "shapes"
size = [32, 32]
train_images = 20
eval_images = 4

[augment]
crop = [32, 32]
scale = [0.75, 1.25]

[optim]
lr = 0.05

[train]
iterations = 12
batch = 4
workers = 0
evaluate_every = 5
log_every = 2
"""


def tiny(*overrides: str) -> Recipe:
    """The tiny recipe with `--set` values."""
    return parse_recipe(TINY, "tiny.toml", overrides).recipe


def emaseg(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command in this process."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def run(recipe: Recipe, out: Path, *, resume: bool = False, stop_after: int | None = None) -> list[TrainEvent]:
    """Train to the end, or ask it to stop once `stop_after` steps are done."""
    stop = threading.Event()
    events: list[TrainEvent] = []
    for event in train(recipe, out, resume=resume, stop=stop):
        events.append(event)
        if isinstance(event, Stepped) and event.step == stop_after:
            stop.set()
    return events


def equal(a: object, b: object) -> bool:
    """Bit-for-bit equality of nested checkpoints."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)
