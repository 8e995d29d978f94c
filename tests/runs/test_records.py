"""metrics.jsonl, TensorBoard and the events that loggers get: the same rows, each once, whatever was interrupted."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from emaseg.errors import SystemFault
from emaseg.events import Evaluated, Logged
from emaseg.files import append_text
from emaseg.runs.folder import RunFolder
from emaseg.runs.metrics_file import TIMED
from emaseg.runs.metrics_lines import append_line, repair_lines
from tests.helpers import run, tiny

ROWS = [
    b'{"step": 2, "loss": 1.5}\n',
    b'{"step": 4, "loss": null}\n',
    b'{"step": 4, "miou": 0.5, "per_class": []}\n',
    b'{"step": 6, "loss": 1}\n',
    b'{"step": 8, "miou": 0.5}\n',
]


@pytest.mark.parametrize(
    ("content", "kept", "aside"),
    [
        (b"".join(ROWS), [0, 1, 2], False),
        (b"".join(ROWS[:3]) + ROWS[3][:9], [0, 1, 2], False),
        (b"".join(ROWS[:3])[:-1], [0, 1], False),
        (b"", [], False),
        (b"\n", [], True),
        (ROWS[0] + b"[1]\n" + ROWS[2], [0, 2], True),
        (ROWS[0] + ROWS[1][:9] + ROWS[1], [0], True),
        (ROWS[0] + b"[" * 100_000 + b"\n", [0], True),
        (bytes(99) + b"\n" + ROWS[1], [1], True),
        (b'{"step": true}\n{"step": -1}\n{"step": "2"}\n' + ROWS[0], [0], True),
        (ROWS[0] + ROWS[0] + ROWS[1], [0, 1], False),
    ],
)
def test_lines_are_cut_to_the_good_ones(tmp_path: Path, content: bytes, kept: list[int], aside: bool) -> None:
    """Protects the rows up to the checkpoint, byte for byte; what is none is kept beside, the file as it was."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    notes = repair_lines(path, 5, 4)
    assert (path.read_bytes() if path.exists() else b"") == b"".join(ROWS[i] for i in kept)
    assert [p.read_bytes() for p in tmp_path.glob("*.damaged")] == ([content] if aside else [])
    assert len(notes) == (aside or (not content.endswith(b"\n") and bool(content)))
    append_line(path, {"step": 6, "loss": float("nan"), "list": [float("inf"), 1.0], "name": "ö"})
    assert path.read_bytes().endswith(b'{"step": 6, "loss": null, "list": [null, 1.0], "name": "\\u00f6"}\n')
    assert repair_lines(path, 6, 4) == []


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text("ascii").splitlines()]


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows(out)]


def test_the_lines_are_the_rows(tmp_path: Path) -> None:
    """Protects both files and the events: the same rows in the same order, the lines with every digit, the evaluations
    with their classes; and a resumed run's lines equal the uninterrupted one's but for measured values."""
    events = run(tiny("train.evaluate_every=4"), tmp_path / "whole")
    with (tmp_path / "whole/metrics.csv").open(newline="") as file:
        table = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    lines = rows(tmp_path / "whole")
    assert len(lines) == len(table)
    for line, row in zip(lines, table, strict=True):
        assert all(float(f"{line[key]:.6g}") == float(value) for key, value in row.items())
    logged = [event for event in events if isinstance(event, Logged)]
    assert [{"step": event.step, **event.values} for event in logged] == [
        {key: value for key, value in line.items() if key != "per_class"} for line in lines
    ]
    scored = [event.scores for event in events if isinstance(event, Evaluated)]
    assert [line["per_class"] for line in lines if "per_class" in line] == [
        [{"name": c.name, "iou": c.iou, "accuracy": c.accuracy} for c in scores.per_class] for scores in scored
    ]
    run(tiny("train.evaluate_every=4"), tmp_path / "cut", stop_after=7)
    append_text(tmp_path / "cut/metrics.jsonl", '{"step": 8, "loss": 5}\n{"st')
    run(tiny("train.evaluate_every=4"), tmp_path / "cut", resume=True)
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


def points(out: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard draws of a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(out / "tensorboard"))
        board.Reload()
        return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_draws_the_rows_once(tmp_path: Path) -> None:
    """Protects the curves: those of metrics.csv and of each class; a run that was killed after its checkpoint and goes on
    has each step once; the option may be set when a run goes on."""
    from emaseg.events import Stepped
    from emaseg.training.train import train

    whole, out = tmp_path / "whole", tmp_path / "run"
    run(tiny("train.tensorboard=true"), whole)
    for event in train(tiny("train.tensorboard=true", "train.save_every=3"), out):
        if isinstance(event, Stepped) and event.step == 8:
            break
    run(tiny("train.tensorboard=true"), out, resume=True)
    a, b = points(whole), points(out)
    assert [step for step, _ in a["loss"]] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in a["miou"]] == [5, 10, 12]
    assert {"loss_main", "loss_auxiliary", "lr", "images_per_second", "data_wait", "iou/disc"} <= a.keys() | {
        "iou/disc"
    }
    assert {key: value for key, value in a.items() if key not in TIMED} == {
        key: value for key, value in b.items() if key not in TIMED
    }
    run(tiny(), tmp_path / "later", stop_after=6)
    run(tiny("train.tensorboard=true"), tmp_path / "later", resume=True)
    assert [step for step, _ in points(tmp_path / "later")["loss"]] == [8, 10, 12]


def test_a_missing_package_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from hours of training without curves: exit 4 with the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemFault, match="tensorboard is not installed") as caught:
        run(tiny("train.tensorboard=true"), tmp_path / "run")
    assert "uv pip install tensorboard" in caught.value.hint
    assert not RunFolder(tmp_path / "run").recipe.exists()
