"""A run that ends early, by the clock or for want of progress: it says so, ends whole, and a resume repeats the decision."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emaseg.checkpoint import read_checkpoint
from emaseg.errors import WeightsError
from emaseg.events import Evaluated, Finished, Logged, Note, Stepped, TrainEvent
from emaseg.recipe.training import Train
from emaseg.runs.folder import is_complete
from emaseg.schedule import Schedule
from emaseg.training import run_steps
from emaseg.training.optim import learning_rate
from emaseg.training.run_steps import shortened, time_after
from emaseg.training.sample_sheet import write_samples
from emaseg.training.train import train
from tests.helpers import equal, run, tiny


@given(
    st.integers(1, 60), st.integers(0, 20), st.integers(0, 40), st.floats(0.1, 5), st.floats(0, 9), st.floats(0, 200)
)
def test_the_longest_schedule_that_fits(
    total: int, every: int, step: int, pace: float, evaluation: float, left: float
) -> None:
    """Protects the search: its answer fits, one step more does not, it never grows, and one step is always left."""
    step = min(step, total - 1)
    schedule = Schedule(total, 10, every)

    def fits(steps: int) -> bool:
        evaluations = sum(i % every == 0 for i in range(step + 1, steps + 1)) if every else 0
        evaluations += not every or steps % every > 0
        return (steps - step) * pace + evaluations * evaluation <= left

    found = shortened(schedule, step, pace, evaluation, left).total
    assert step < found <= total
    assert fits(found) or found == step + 1
    assert found == total or not fits(found + 1)
    assert (time_after(schedule, step, pace, evaluation) <= left) == fits(total)


def _timed(*overrides: str) -> list[str]:
    return [
        "train.iterations=15",
        "train.evaluate_every=0",
        f"train.hours={7 / 3600}",
        "data.eval_images=1",
        *overrides,
    ]


def wind(patch: pytest.MonkeyPatch) -> None:
    """Each look at the clock from now on finds it half a second later, and evaluating takes a hundredth of one, however
    busy the machine is."""
    ticks = itertools.count(0, 0.5)
    patch.setattr(run_steps, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    patch.setattr(run_steps, "DECIDES_AFTER", 5)
    patch.setattr("emaseg.training.train.evaluation_seconds", lambda *_: 0.01)


def _rates(events: list[TrainEvent]) -> list[float]:
    return [event.lr for event in events if isinstance(event, Stepped)]


def test_a_limit_shortens_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the rate: it falls to its end within the steps that there are, instead of being cut in the middle."""
    recipe = tiny(*_timed())
    wind(monkeypatch)
    events = run(recipe, tmp_path / "run")
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert run_steps.DECIDES_AFTER < finished.step < 15
    assert not finished.interrupted
    rates = _rates(events)
    assert rates[:4] == [learning_rate(step, 15, recipe.optim) for step in range(4)]
    assert rates[-1] == pytest.approx(0.05 * (1 / finished.step) ** 0.9)
    text = f"{finished.step} steps instead of 15"
    assert any(isinstance(event, Note) and text in event.text for event in events)
    assert text in (tmp_path / "run/log.txt").read_text()
    assert is_complete(tmp_path / "run")
    again = run(recipe, tmp_path / "run", resume=True)[-1]
    assert isinstance(again, Finished)
    assert again.already


def test_a_resume_repeats_the_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a run that goes on on a faster machine: the schedule stays, and the weights are those of the whole run."""
    results = []
    for name, stop in (("whole", None), ("cut", 7)):
        with monkeypatch.context() as patch:
            wind(patch)
            run(tiny(*_timed()), tmp_path / name, stop_after=stop)
        if stop:
            run(tiny(*_timed()), tmp_path / name, resume=True)
        results.append(read_checkpoint(tmp_path / name / "checkpoints/last.pt"))
    assert results[0].step == results[1].step == results[0].sampler["steps"] < 15
    assert equal(results[0].model, results[1].model)


def test_a_limit_that_is_far_away_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a run that fits: the same weights as without a limit."""
    wind(monkeypatch)
    options = ["train.iterations=7", "train.evaluate_every=0"]
    for hours in (0, 1000):
        run(tiny(*options, f"train.hours={hours}"), tmp_path / str(hours))
    one, two = (read_checkpoint(tmp_path / hours / "checkpoints/last.pt") for hours in ("0", "1000"))
    assert equal(one.model, two.model)
    assert (one.sampler.get("steps"), two.sampler.get("steps")) == (None, 7)


def test_what_evaluates_does_so_as_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects compiled runs: the timed evaluation, and the samples at the end, compile no network for their images.

    With train.hours, the minutes of that would be multiplied by the evaluations, and the run be as short as can be.
    """
    inside: list[Train] = []
    seen: dict[str, int] = {}

    @contextlib.contextmanager
    def evaluating(train: Train, device: torch.device) -> Iterator[None]:
        inside.append(train)
        yield
        inside.pop()

    def samples(*arguments: Any) -> Path:
        seen["samples"] = len(inside)
        return write_samples(*arguments)

    def seconds(*_: object) -> float:
        seen["seconds"] = len(inside)
        return 0.01

    wind(monkeypatch)
    monkeypatch.setattr("emaseg.training.train.evaluating", evaluating)
    monkeypatch.setattr("emaseg.training.train.write_samples", samples)
    monkeypatch.setattr("emaseg.training.train.evaluation_seconds", seconds)
    run(tiny(*_timed()), tmp_path / "run")
    assert seen == {"samples": 1, "seconds": 1}


STALLING = ("train.evaluate_every=2", "train.patience=2", "optim.lr=1e-30", "optim.power=0")


def test_a_stalled_run_ends(tmp_path: Path) -> None:
    """Protects patience: nothing is learnt at a rate of next to nothing, so the second evaluation in a row without a
    better score is the last thing that happens; the run is whole, a resume finds it finished, and one that asks
    for more goes on with all of its patience, which may be another."""
    recipe = tiny(
        "train.iterations=40", "train.evaluate_every=2", "train.patience=2", "optim.lr=1e-30", "optim.power=0"
    )
    events = run(recipe, tmp_path / "run")
    scores = [event for event in events if isinstance(event, Evaluated)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    best = next(event.step for event in reversed(scores) if event.best)
    assert best is not None
    assert finished.step == scores[-1].step == best + 4 < 40
    assert any(isinstance(event, Note) and "the run ends (train.patience)" in event.text for event in events)
    assert is_complete(tmp_path / "run")
    again = run(recipe, tmp_path / "run", resume=True)[-1]
    assert isinstance(again, Finished)
    assert again.already
    end = finished.step
    for iterations, patience in ((60, 2), (80, 3)):
        longer = tiny(*STALLING, f"train.iterations={iterations}", f"train.patience={patience}")
        events = run(longer, tmp_path / "run", resume=True)
        better = [event.step for event in events if isinstance(event, Evaluated) and event.best]
        last = events[-1]
        assert isinstance(last, Finished)
        assert last.step == (better or [end])[-1] + 2 * patience < iterations
        end = last.step


@pytest.mark.parametrize(("patience", "goes_on"), [(0, True), (3, True), (2, False), (1, False)])
def test_more_patience_makes_a_stalled_run_longer(patience: int, goes_on: bool, tmp_path: Path) -> None:
    """Protects --resume --set train.patience=0 from doing nothing where patience ended the run; the learning rate is that
    of the schedule as before, so nobody is warned of one that rises. As much patience or less ends nothing anew."""
    falling = ("train.iterations=14", "train.evaluate_every=2", "train.patience=2", "optim.lr=1e-30")
    end = run(tiny(*falling), tmp_path / "run")[-1]
    assert isinstance(end, Finished)
    assert end.step < 14
    events = run(tiny(*falling, f"train.patience={patience}"), tmp_path / "run", resume=True)
    notes = [event for event in events if isinstance(event, Note) and "train.patience had ended this run" in event.text]
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.already != goes_on
    if not goes_on:
        assert (last.step, notes) == (end.step, [])
        return
    assert last.step > end.step
    assert patience or last.step == 14
    (note,) = notes
    assert not note.warning
    assert f"after {end.step} steps; it goes on to step 14, at a learning rate of" in note.text


def test_the_last_losses_of_a_stalled_run_are_written(tmp_path: Path) -> None:
    """Protects metrics.csv from ending before the run does: steps since the last row have one, too, and what a longer run
    adds later does not count them twice."""
    events = run(tiny("train.iterations=60", *STALLING, "train.log_every=50"), tmp_path / "run")
    end = events[-1]
    assert isinstance(end, Finished)
    stepped = [event for event in events if isinstance(event, Stepped)]
    (row,) = [event for event in events if isinstance(event, Logged) and "loss" in event.values]
    assert row.step == end.step < 50
    assert row.values["loss"] == pytest.approx(sum(event.loss for event in stepped) / len(stepped))
    assert row.values["lr"] == stepped[-1].lr
    table = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table if line.split(",")[3]] == ["step", str(end.step)]
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt").running == {}


def test_a_kill_after_the_last_losses_does_not_double_them(tmp_path: Path) -> None:
    """Protects both files of metrics from the same row twice: the run that patience ended died after it had written the last
    losses, and last.pt was of before them."""
    recipe = tiny("train.iterations=60", *STALLING, "train.log_every=50", "train.save_every=2")
    with contextlib.closing(train(recipe, tmp_path / "run")) as events:
        row = next(event for event in events if isinstance(event, Logged) and "loss" in event.values)
    checkpoint = read_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert checkpoint.step == row.step
    assert checkpoint.running
    end = run(recipe, tmp_path / "run", resume=True)[-1]
    assert isinstance(end, Finished)
    assert end.step == row.step
    table = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table if line.split(",")[3]] == ["step", str(end.step)]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [end.step]


@pytest.mark.parametrize("old", [False, True])
def test_patience_counts_evaluations_whatever_their_distance(old: bool, tmp_path: Path) -> None:
    """Protects a run that is resumed with another train.evaluate_every, which may change: one evaluation was without a
    better score, so one more ends it, and neither at once nor later; an older checkpoint does not hold the count."""
    patient = ("train.iterations=40", *STALLING, "train.patience=3")
    run(tiny(*patient, "train.evaluate_every=4"), tmp_path / "run", stop_after=9)
    file = tmp_path / "run/checkpoints/last.pt"
    content = torch.load(file, weights_only=True)
    assert content["sampler"]["stalled"] == (content["best"]["evaluated"] - content["best"]["step"]) // 4
    content["best"].update(step=4, evaluated=8, miou=1.0)
    content["sampler"]["stalled"] = 1
    if old:
        del content["sampler"]["stalled"]
    torch.save(content, file)
    events = run(tiny(*patient, "train.evaluate_every=1"), tmp_path / "run", resume=True)
    scores = [event.step for event in events if isinstance(event, Evaluated)]
    assert scores == [9, 10]
    assert any(isinstance(event, Note) and "in 3 evaluations" in event.text for event in events)


@pytest.mark.parametrize("steps", [3, 13, "5", 5.0])
def test_a_decision_that_cannot_be_is_refused(tmp_path: Path, steps: object) -> None:
    """Protects a resume from a number of steps that the checkpoint is beyond, or that the recipe does not have."""
    run(tiny(), tmp_path / "run", stop_after=4)
    file = tmp_path / "run/checkpoints/last.pt"
    content = torch.load(file, weights_only=True)
    content["sampler"]["steps"] = steps
    torch.save(content, file)
    with pytest.raises(WeightsError, match="last"):
        list(train(tiny(), tmp_path / "run", resume=True))
