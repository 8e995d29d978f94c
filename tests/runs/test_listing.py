"""The list of runs, and what happens to a finished run that is asked for more steps."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emaseg.errors import RecipeError, WeightsError
from emaseg.events import Finished, Note, Stepped
from emaseg.recipe import recipe_to_toml
from emaseg.report.compare import compare_runs
from emaseg.report.history import History, read_history
from emaseg.runs.folder import newest_run, runs_by_time
from emaseg.runs.listing import list_runs
from emaseg.runs.lock import hold
from emaseg.training.train import train
from emaseg.weights.init_from import init_from_file
from tests.helpers import emaseg, tiny
from tests.helpers import run as train_until

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that has come to its end."""
    folder = tmp_path_factory.mktemp("runs")
    list(train(tiny("train.iterations=4", "train.evaluate_every=2"), folder / "tiny" / "2026-01-01_10-00-00"))
    return folder


def test_what_is_listed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the overview: name, state, step, best mIoU, place and the next command, of every state of a run."""
    (run,) = list_runs(finished)
    assert (run.recipe, run.state, run.step, run.total, run.unit) == ("tiny", "complete", 4, 4, "steps")
    assert run.best_miou is not None
    assert 0 < run.best_miou < 1
    assert run.next == f"emaseg eval {run.path}"
    scored = run.path / "eval" / "2026-01-01_10-05-00" / "metrics.json"
    scored.parent.mkdir(parents=True)
    scored.write_text("{}")
    assert list_runs(finished)[0].next == f"emaseg predict IMAGE --weights {run.path}"
    shutil.rmtree(run.path / "eval")
    code, out, err = emaseg(capsys, "runs", finished, "--json")
    assert (code, err) == (0, "")
    (entry,) = json.loads(out)["runs"]
    assert (entry["run"], entry["state"], entry["step"]) == (str(run.path), "complete", 4)
    samples = run.path / "samples.png"
    aside = samples.rename(tmp_path / "samples.png")
    try:
        (cut,) = list_runs(finished)
        assert (cut.state, cut.next.endswith("--resume")) == ("interrupted", True)
        with hold(run.path):
            (held,) = list_runs(finished / "tiny")
        assert held.state == "training"
        assert held.owner.startswith("process ")
    finally:
        aside.rename(samples)
    with pytest.raises(WeightsError, match="no run in this folder"):
        list_runs(tmp_path)
    code, _, err = emaseg(capsys, "runs", tmp_path / "none")
    assert (code, "no such folder" in err) == (3, True)


def test_a_finished_run_goes_on(finished: Path) -> None:
    """Protects from a run that silently is not what one longer run would be: it says what the learning rate does.

    An unfinished run keeps its length.
    """
    (run,) = list_runs(finished)
    with pytest.raises(RecipeError, match="started with another recipe"):
        list(train(tiny("train.iterations=3", "train.evaluate_every=2"), run.path, resume=True))
    longer = tiny("train.iterations=6", "train.evaluate_every=2")
    *events, last = train(longer, run.path, resume=True)
    notes = [event.text for event in events if isinstance(event, Note) and event.warning]
    assert any("after 4 steps and goes on to step 6" in text and "back up to" in text for text in notes)
    assert isinstance(last, Finished)
    assert (last.step, last.interrupted, last.already) == (6, False, False)
    (run,) = list_runs(finished)
    assert (run.state, run.step, run.total) == ("complete", 6, 6)


def test_a_run_that_ended_early_is_complete(tmp_path: Path) -> None:
    """Protects runs that train.patience or train.hours ended: the list offers no --resume, which would do nothing."""
    options = "train.iterations=40", "train.evaluate_every=1", "train.patience=1", "optim.lr=1e-30", "optim.power=0"
    train_until(tiny(*options), tmp_path / "run")
    (run,) = list_runs(tmp_path)
    assert run.step < 40
    assert (run.state, run.next) == ("complete", f"emaseg eval {run.path}")


def test_a_finished_run_that_goes_on_is_complete_no_more(tmp_path: Path) -> None:
    """Protects what stands for the newest complete run: a run that was extended and killed is none until its new end."""
    short, longer = (
        tiny(f"train.epochs={epochs}", "train.iterations=0", "train.evaluate_every=0") for epochs in (1, 2)
    )
    train_until(short, tmp_path / "run")
    assert newest_run(tmp_path) == tmp_path / "run"
    train_until(longer, tmp_path / "run", resume=True, stop_after=7)
    (cut,) = list_runs(tmp_path)
    assert (cut.state, cut.next.endswith("--resume")) == ("interrupted", True)
    assert newest_run(tmp_path) is None
    train_until(longer, tmp_path / "run", resume=True)
    assert list_runs(tmp_path)[0].state == "complete"


# ------------------------------------------------------------------------------------------------------ several runs
def test_runs_are_compared_by_recipe_and_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What differs and nothing else, each class held against the first run, and one page that needs no other file."""
    import json
    import xml.etree.ElementTree as ET

    from tests.helpers import emaseg, tiny
    from tests.helpers import run as train_run

    first, second = tmp_path / "a", tmp_path / "<b> & c"
    train_run(tiny(), first)
    train_run(tiny("optim.lr=0.01", "model.bases=6"), second)
    page = tmp_path / "compared.html"
    code, stdout, stderr = emaseg(capsys, "runs", first, second, "--out", page)
    assert (code, stderr) == (0, "")
    assert stdout.splitlines()[-1] == str(page)
    keys = [line.split() for line in stdout.splitlines() if line.startswith(("model", "optim", "data", "train"))]
    assert keys == [["model.bases", "4", "6"], ["optim.lr", "0.05", "0.01"]]
    code, stdout, _ = emaseg(capsys, "runs", first, second, "--json")
    content = json.loads(stdout)
    assert [row["name"] for row in content["per_class"]] == ["background", "disc", "square", "triangle", "ring"]
    mious = [run["miou"] for run in content["runs"]]
    for place, miou in enumerate(mious):  # of five classes all occur in the four images, or are predicted
        ious = [row["iou"][place] for row in content["per_class"] if row["iou"][place] is not None]
        assert miou == pytest.approx(sum(ious) / len(ious), rel=1e-5)
    (tmp_path / "above").mkdir()
    second.rename(tmp_path / "above" / "b")
    code, stdout, _ = emaseg(capsys, "runs", first, tmp_path / "above", "--json")
    assert [run["run"] for run in json.loads(stdout)["runs"]] == [str(first), str(tmp_path / "above" / "b")]
    shown = "".join(ET.fromstring(page.read_text().partition("\n")[2]).itertext())
    assert "<b> & c" in shown
    assert "optim.lr" in shown
    assert "optim.momentum" not in shown


def test_runs_that_differ_in_a_group_are_not_equal(tmp_path: Path) -> None:
    """Protects from "The recipes are equal" of two runs whose groups of parameters learn at different rates."""
    for name, scale in (("a", 2), ("b", 10)):
        (tmp_path / name).mkdir()
        recipe = tiny('optim.groups=[{match="backbone"}]', f"optim.groups.0.lr_scale={scale}")
        (tmp_path / name / "recipe.toml").write_text(recipe_to_toml(recipe))
    ((key, values),) = compare_runs([tmp_path / "a", tmp_path / "b"]).keys
    assert key == "optim.groups"
    assert "lr_scale = 2" in values[0]
    assert "lr_scale = 10" in values[1]


@pytest.mark.parametrize("value", ['"abc"', "{}", "[]", "true", "NaN", "1e999", "1" * 400, "-3"])
def test_damaged_scores_are_left_out_of_a_comparison(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the comparison of whole runs from one damaged line, and from the scores of other images."""
    from tests.helpers import emaseg, tiny

    (tmp_path / "recipe.toml").write_text(recipe_to_toml(tiny()))
    (tmp_path / "metrics.csv").write_text(f"step,miou\n1,0.5\n2,{value}\n")
    good = f'"per_class": [{{"name": "a", "iou": 0.5}}, {{"name": "b", "iou": {value}}}, 3]}}'
    lines = [f'{{"miou": {value}, "per_class": [{{"name": "c"}}]}}', f'{{"miou": 0.5, {good}', '{"per_class": "x"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    expected = (("a", (0.5, 0.5)), ("b", (None, None)))
    assert compare_runs([tmp_path, tmp_path]).classes == expected
    for options in ((), ("--json",), ("--out", tmp_path / "page.html")):
        assert emaseg(capsys, "runs", tmp_path, tmp_path, *options)[0::2] == (0, "")
    (tmp_path / "metrics.jsonl").unlink()
    other = '{"split": "train", "miou": 1.0, "per_class": [{"name": "c", "iou": 1.0}]}'
    for time, content in (("1", lines[1]), ("2", value), ("3", '{"per_class": {}}'), ("4", other)):
        (tmp_path / "eval" / time).mkdir(parents=True)
        (tmp_path / "eval" / time / "metrics.json").write_text(content)
    (tmp_path / "eval/5/metrics.json").mkdir(parents=True)
    assert compare_runs([tmp_path, tmp_path]).classes == expected


@pytest.mark.timeout(60, method="thread")  # a handler of signals would be waited for, too
@pytest.mark.parametrize("spoil", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_in_a_run_is_not_waited_for(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the list, comparisons and pages from a folder of somebody's: nothing hangs, and what is no file is left
    out."""
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        for folder in ("checkpoints", "eval/1"):
            (run / folder).mkdir(parents=True)
        (run / "recipe.toml").write_text(recipe_to_toml(tiny()))
        for name in ("metrics.csv", "metrics.jsonl", "env.json", "log.txt", "lock", "eval/1/metrics.json"):
            spoil(run / name)
    assert read_history(runs[0]) == History()
    for arguments in ((tmp_path,), runs, (*runs, "--out", tmp_path / "page.html")):
        code, _, err = emaseg(capsys, "runs", *arguments)
        assert (code, err) == (0, "")


@pytest.mark.parametrize("seconds", [1e14, 1e300, -1e14])
def test_times_that_no_calendar_has(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the list from a file whose disk keeps a time beyond the year 9999, or one long before the first."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/recipe.toml").write_text(recipe_to_toml(tiny()))
    before = Path.stat

    def stat(self: Path, **options: bool) -> os.stat_result:
        return os.stat_result(tuple(before(self, **options)), {"st_mtime": seconds})

    monkeypatch.setattr(Path, "stat", stat)
    for options in ((), ("--json",)):
        assert emaseg(capsys, "runs", tmp_path, *options)[0::2] == (0, "")


def test_what_is_no_run_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.helpers import emaseg

    (tmp_path / "a").mkdir()
    code, _, stderr = emaseg(capsys, "runs", tmp_path / "a", tmp_path / "b")
    assert code == 2
    assert "is not a run: it holds no recipe.toml" in stderr
    code, _, stderr = emaseg(capsys, "runs", tmp_path / "b", tmp_path / "a")
    assert (code, f"{tmp_path / 'b'}: no such folder" in stderr) == (2, True)
    code, _, stderr = emaseg(capsys, "runs", tmp_path / "a", "--out", tmp_path / "x.html")
    assert (code, "name two runs" in stderr) == (2, True)


def test_nothing_is_forecast_from_the_first_steps(tmp_path: Path) -> None:
    """Protects from a forecast of hours that is of minutes: the first steps of a start fill caches."""
    steps = [event for event in train(tiny("train.iterations=5"), tmp_path / "run") if isinstance(event, Stepped)]
    assert [step.seconds_left is None for step in steps] == [True, True, False, False, False]
    assert [(step.epoch, step.epochs) for step in steps] == [(1, 1)] * 5


def test_an_interruption_between_two_rows_is_seen(tmp_path: Path) -> None:
    """Protects from "step 0": a run that was stopped before its first row says where in log.txt alone."""
    train_until(tiny("train.log_every=50", "train.evaluate_every=0"), tmp_path / "run", stop_after=3)
    (cut,) = list_runs(tmp_path)
    assert (cut.state, cut.step) == ("interrupted", 3)


def test_the_newest_run_is_the_one_written_to_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects `--resume` without --out, and the command that finishes a run, from a name that sorts last: people name
    runs, too, and go on with older ones."""
    monkeypatch.chdir(tmp_path)
    for name, when in (("2026-01-01_10-00-00", 300), ("2026-02-01_10-00-00", 200), ("zeta", 100)):
        run = Path("runs/tiny") / name
        run.mkdir(parents=True)
        (run / "recipe.toml").write_text("")
        (run / "log.txt").write_text("")
        os.utime(run / "recipe.toml", (50, 50))
        os.utime(run / "log.txt", (when, when))
    (tmp_path / "runs/tiny/no run").mkdir()
    assert [run.name for run in runs_by_time(Path("runs/tiny"))] == [
        "2026-01-01_10-00-00",
        "2026-02-01_10-00-00",
        "zeta",
    ]
    assert runs_by_time(Path("runs/none")) == []
    known = importlib.import_module("emaseg.cli.train")._known_run("tiny.toml", "tiny")
    assert known.name == "2026-01-01_10-00-00"
    with pytest.raises(WeightsError) as caught:
        init_from_file("tiny")
    assert "finish the newest: emaseg train" in caught.value.hint
    assert "2026-01-01_10-00-00" in caught.value.hint
