"""Small real runs for the tests: a recipe that trains in a second, and what to do with it."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path

import pytest

from emaseg.errors import SystemFault
from emaseg.events import Stepped, TrainEvent
from emaseg.exported.extra import check_torch
from emaseg.recipe import Recipe
from emaseg.training.train import train
from tests.tiny import TINY, equal, tiny

__all__ = ["TINY", "emaseg", "equal", "main", "needs_programs", "run", "tiny"]

main = importlib.import_module("emaseg.cli").main


def emaseg(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command in this process."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def needs_programs(*, any_size: bool) -> pytest.MarkDecorator:
    """Skips where PyTorch is too old to export programs of one size, or of any, with the words that users get."""
    reason = ""
    try:
        check_torch("torch", any_size=any_size)
    except SystemFault as fault:
        reason = fault.message
    return pytest.mark.skipif(bool(reason), reason=reason)


def run(recipe: Recipe, out: Path, *, resume: bool = False, stop_after: int | None = None) -> list[TrainEvent]:
    """Train to the end, or ask it to stop once `stop_after` steps are done."""
    stop = threading.Event()
    events: list[TrainEvent] = []
    for event in train(recipe, out, resume=resume, stop=stop):
        events.append(event)
        if isinstance(event, Stepped) and event.step == stop_after:
            stop.set()
    return events
