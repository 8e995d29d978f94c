"""The README's Python examples run as they stand, on a small recipe and with a logger that writes to a list."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import TINY

LOOP = """
import emaseg
from emaseg.events import Evaluated, Stepped

for event in emaseg.train("demo", "runs/first", overrides=["train.iterations=200"]):
    if isinstance(event, Stepped) and event.step % 50 == 0:
        print(event.step, event.loss)
    elif isinstance(event, Evaluated):
        print("mIoU", event.scores.miou)

*_, evaluated = emaseg.evaluate("runs/first")
print({c.name: c.iou for c in evaluated.scores.per_class})
"""

EXPORT = """
*_, exported = emaseg.export("runs/first", "torch", "model.pt2", shape=(128, 128))
assert exported.passed  # it was run and compared with the model
"""

WANDB = """
import emaseg, wandb
from emaseg.events import Finished, Logged, TrainingStarted

def log(event):
    if isinstance(event, TrainingStarted):
        wandb.init(project="emaseg", id=event.run.name, resume="allow")
    elif isinstance(event, Logged):
        wandb.log(dict(event.values), step=event.step)
    elif isinstance(event, Finished):
        wandb.finish()

*_, finished = emaseg.train("voc_r50_d8", "runs/voc", callbacks=[log], resume=True)
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a small recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def run(text: str) -> None:
    """Run an example, on the small recipe."""
    small = text.replace('"demo"', '"tiny.toml"').replace('"voc_r50_d8"', '"tiny.toml"')
    Path("example.py").write_text(small.replace("iterations=200", "iterations=4").replace("% 50", "% 2"))
    runpy.run_path("example.py")


def test_the_loop(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the first program that people copy."""
    run(LOOP)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["2", "4", "mIoU"]
    assert lines[3].startswith("{'")


@pytest.mark.slow
def test_the_export(here: Path) -> None:
    """Protects the way from a run to a file for other programs."""
    run(LOOP + EXPORT)
    assert (here / "model.pt2").is_file()


def test_a_logger(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the ten lines for Weights & Biases: each row once, with its step, between init and finish."""
    calls: list[tuple[str, Any]] = []
    wandb = SimpleNamespace(
        init=lambda **options: calls.append(("init", options["id"])),
        log=lambda values, step: calls.append(("log", (step, sorted(values)))),
        finish=lambda: calls.append(("finish", None)),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run(WANDB)
    rows = len((here / "runs/voc/metrics.jsonl").read_text().splitlines())
    assert calls[0] == ("init", "voc")
    assert calls[-1] == ("finish", None)
    assert len(calls) == rows + 2
    step, names = calls[1][1]
    assert step == 2
    assert {"loss", "lr", "loss_main", "images_per_second", "data_wait"} <= set(names)
