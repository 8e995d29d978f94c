"""The built-in demo keeps its promise: a real network learns shapes on a CPU within 150 processor seconds."""

from __future__ import annotations

import csv
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from emaseg.recipe import load_recipe


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    """Protects the first command of the README: score, processor time, picture, checkpoints while it runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "emaseg.cli", "train", "demo", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        scores = [float(row["miou"]) for row in csv.DictReader(file) if row["miou"]]
    assert scores[-1] >= 0.70  # the best per-pixel colour classifier is held below 0.40 in tests/data/test_shapes.py
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 150
    assert (tmp_path / "run/samples.png").is_file()
    assert load_recipe("demo").train.save_seconds <= 10
    assert "emaseg predict" in done.stderr
