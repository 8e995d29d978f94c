"""What people see: units, plain progress lines where there is no terminal, and signals that stop a run politely."""

from __future__ import annotations

import importlib
import io
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from emaseg import words
from emaseg.distributed.ranks import ALONE
from emaseg.evaluation.evaluate import Comparison
from emaseg.events import Evaluated, Evaluating, Finished, Note, Saved, Stepped, TrainingStarted
from emaseg.metrics import ClassScore, Scores
from emaseg.recipe.data import Data, LIPData, VOCData

render = importlib.import_module("emaseg.cli.render")
progress = importlib.import_module("emaseg.cli.progress")
train = importlib.import_module("emaseg.cli.train")
evaluate = importlib.import_module("emaseg.cli.eval")

SCORES = Scores(
    miou=0.45678,
    pixel_accuracy=0.9,
    mean_accuracy=None,
    images=3,
    per_class=(
        ClassScore("disc", 0.91356, 1.0, "ok"),
        ClassScore("ring [x]", 0.0, None, "only_predicted"),
        ClassScore("square", None, None, "absent"),
    ),
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min"), (360000, "4 d 04 h")],
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_scores_are_a_table_in_percent_with_the_published_figure(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_scores(SCORES, Comparison(0.4615), "own size; whole")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["class", "IoU", "accuracy"]
    assert lines[2:5] == [
        ["disc", "91.36", "100.00"],
        ["ring", "[x]", "0.00", "-", "predicted,", "but", "not", "in", "this", "set"],
        ["square", "-", "-", "not", "in", "this", "set"],
    ]
    assert ["mIoU", "45.68", "(published", "46.15)"] in lines
    assert ["mean", "accuracy", "-"] in lines


def test_a_missing_published_figure_has_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_scores(SCORES, Comparison(None, "with --tta only"), "own size; whole")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    at = lines.index(["mIoU", "45.68"])
    assert lines[at + 1] == ["published", "with", "--tta", "only"]
    render.print_scores(SCORES, Comparison(None), "own size; whole")
    assert "published" not in capsys.readouterr().out


def test_json_has_no_nan() -> None:
    """NaN is no JSON: a missing value must be null, so NaN is a bug that must show."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        render.print_json({"miou": float("nan")})


@given(
    total=st.integers(1, 999_999),
    loss=st.floats(0, 1e6),
    pace=st.floats(0.01, 99_999),
    left=st.floats(0, 3e7),
    wait=st.floats(0, 1),
    memory=st.none() | st.integers(10**6, 10**11),
    miou=st.none() | st.floats(0, 1),
)
def test_a_step_has_one_line_on_80_columns(
    total: int, loss: float, pace: float, left: float, wait: float, memory: int | None, miou: float | None
) -> None:
    """Protects the screen from a line that breaks: whatever the numbers are, it fits, and says at least the loss."""
    step = Stepped(total, total, 3, loss, {}, 0.00123, pace, wait, left, memory)
    room = 80 - len("evaluate ") - len(f"{total}/{total} ")
    text = progress._step_text(step, miou, room)
    assert len(text) <= room
    assert text.startswith(("loss", "epoch"))


def test_all_of_a_step_is_said_on_80_columns() -> None:
    """Protects what people watch: loss, time left, last mIoU, pace, wait and memory of a published row."""
    step = Stepped(41_234, 90_000, 3, 0.43214, {}, 0.00123, 14.3, 0.031, 93_000, 7_940_000_000)
    room = 80 - len("evaluate ") - len("41234/90000 ")
    assert progress._step_text(step, 0.45678, room) == "loss 0.432 25h50 left mIoU 45.7 14.3 img/s wait 3% 7.94 GB"
    assert progress._step_text(step, 0.45678, 120) == (
        "epoch 3  loss 0.4321  mIoU 45.68  lr 0.00123  14.3 images/s  25 h 50 min left  data wait 3%  7.94 GB at most"
    )


@given(st.lists(st.floats(0, 7), min_size=1, max_size=40))
def test_plain_progress_shows_first_and_last_and_at_most_a_line_in_ten_seconds(pauses: list[float]) -> None:
    now = [0.0]
    meter = progress.Meter(quiet=False, clock=lambda: now[0])
    meter.out = render.console(stream := io.StringIO())
    shown: list[tuple[int, float]] = []
    for done, pause in enumerate(pauses, start=1):
        now[0] += pause
        before = stream.tell()
        meter.update("train", done, len(pauses), "loss 1")
        if stream.tell() > before:
            shown.append((done, now[0]))
    assert shown[0][0] == 1
    assert shown[-1][0] == len(pauses)
    times = [at for done, at in shown if done < len(pauses)]
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))


def stepped(step: int, wait: float) -> Stepped:
    return Stepped(step, 2, 1, 0.5, {"main": 0.5}, 0.01, 123.4, wait, 60.0)


def test_a_training_run_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole text of a small run in a pipe; a slow data source is named, checkpoints are not."""
    events = [
        Note("training: 16 images"),
        TrainingStarted(Path("runs/x"), 0, 2, 0.5, 16, 4, 4, 1_230_000, "cpu"),
        stepped(1, 0.05),
        stepped(2, 0.25),
        Evaluating(1, 1, 9.87, 0.0),
        Evaluated(SCORES, step=2, best=True),
        Saved(Path("runs/x/checkpoints/best.pt"), "best"),
        Finished(Path("runs/x"), 2, 0.45678),
    ]
    assert progress.show_training(iter(events), False) is events[-1]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "training: 16 images",
        "runs/x: 16 images, 4 to evaluate; 2 steps of 4 (0.5 epochs); 1.23 M parameters on cpu",
        "train 1/2  epoch 1  loss 0.5000  lr 0.01  123 images/s  60 s left  data wait 5%",
        "train 2/2  epoch 1  loss 0.5000  lr 0.01  123 images/s  60 s left  data wait 25%",
        "evaluate 1/1  9.87 images/s  0 s left",
        "step 2: mIoU 45.68  best so far",
    ]


def test_a_terminal_breaks_prose_between_words_and_leaves_commands_whole() -> None:
    """A path or a command that the terminal breaks itself is copied in one piece; in a pipe nothing is broken."""
    message, path = "the mask holds 7 (3 pixels), but 0..2 are classes", "/data/" + "deep/" * 9 + "mask.png"
    command = "take other weights: emaseg download-weights voc_r50_d8 --dir /data/weights"

    def shown(hint: str, terminal: bool) -> list[str]:
        out = Console(file=io.StringIO(), width=40, soft_wrap=True, force_terminal=terminal, color_system=None)
        render.print_error(f"{path}: {message}", hint, out)
        return out.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]

    assert shown("save it again as a PNG with one channel", terminal=True) == [
        f"error: {path}:",
        "  the mask holds 7 (3 pixels), but 0..2",
        "  are classes",
        "  try: save it again as a PNG with one",
        "       channel",
    ]
    assert shown(command, terminal=True)[-1] == f"  try: {command}"
    assert shown(command, terminal=False) == [f"error: {path}: {message}", f"  try: {command}"]
    assert render.fitted("two\n  paragraphs\n\nhere", Console(force_terminal=True)) == "two\n  paragraphs\n\nhere"


def test_after_training_the_commands_that_can_follow_are_named() -> None:
    """Where the evaluation split has no published labels, a plain `emaseg eval RUN` could only fail."""
    voc, lip = VOCData(kind="voc", root="VOC", eval_split="test"), LIPData(kind="lip", root="LIP", eval_split="test")
    run = Path("runs/my run")

    output = train.Output("voc.toml", ["train.batch=2"], as_json=False, quiet=False, rank=ALONE, device="cpu")

    def said(finished: Finished, data: Data) -> list[str]:
        return [line.strip() for line in train._closing_lines(finished, output, data)]

    assert said(Finished(run, 7, 0.5), voc) == [
        "done: 7 steps; best mIoU 50.00",
        "emaseg eval 'runs/my run'",
        "emaseg predict IMAGE --weights 'runs/my run'",
        "samples: runs/my run/samples.png",
    ]
    unscored = said(Finished(run, 7, None, scored=False), voc)
    assert unscored[1:3] == ["emaseg eval 'runs/my run' --split val", "emaseg eval 'runs/my run' --submit results.zip"]
    assert not any("--submit" in line for line in said(Finished(run, 7, None, scored=False), lip))
    assert said(Finished(run, 7, None, interrupted=True), voc)[1:] == [
        "emaseg train voc.toml --out 'runs/my run' --resume --device cpu --set train.batch=2"
    ]


def test_quiet_keeps_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    notes = [Note("fine"), Note("label 7 was never seen", warning=True)]
    finished = Finished(Path("runs/x"), 1, None)
    events = [*notes, stepped(1, 0.5), Evaluated(SCORES, 1), finished]
    assert progress.show_training(iter(events), True) is finished
    assert capsys.readouterr().err == "warning: label 7 was never seen\n"


def test_on_a_terminal_there_is_a_bar_and_no_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    import sys

    progress.show_training(iter([stepped(1, 0.0), stepped(2, 0.0), Finished(Path("runs/x"), 2, None)]), False)
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "━" in text
    assert "train 1/2" not in text


@pytest.mark.parametrize(("measured", "passed"), [(0.7479, True), (0.7478, False), (0.76, True), (None, False)])
def test_check_allows_half_a_point_below_the_published_score(measured: float | None, passed: bool) -> None:
    scores = Scores(measured, None, None, 1, ())
    verdict, sentence = evaluate._check(scores, 0.7529)
    assert verdict is passed
    assert "75.29" in sentence


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_first_signal_asks_second_signal_leaves(signum: int, code: int) -> None:
    before = signal.getsignal(signum)
    with train.stop_on_signals() as stop:
        os.kill(os.getpid(), signum)
        assert stop.flag.wait(5)
        assert 128 + stop.signum == code
        with pytest.raises(SystemExit) as leaving:
            os.kill(os.getpid(), signum)
        assert leaving.value.code == code
    assert signal.getsignal(signum) is before


def test_details_fit_the_terminal_and_both_conventions_show_where_they_differ(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pipe gets every column; the mean without classes that are not in the set is shown only when it is another."""
    import numpy as np

    from emaseg.metrics import Tally, details_of

    tally = Tally.empty(2)
    for index in range(2):
        tally.add(index, "x", np.array([[0, 0, 0]], np.uint8), np.array([[0, 0, index]], np.uint8))
    scores = tally.scores(("a", "b"))
    render.print_scores(scores, Comparison(None), "whole", details=details_of(tally))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", "IoU", "accuracy", "precision", "Dice", "edge", "IoU", "3", "px"]
    assert lines[2].split() == ["a", "83.33", "83.33", "100.00", "90.91", "83.33"]
    shown = {line[:18].strip(): line[18:].strip() for line in lines[5:]}
    assert shown["mIoU"] == "41.67"
    assert shown["labelled classes"].startswith("83.33")
    assert shown["95 % interval"].startswith("33.33 to 100.00")
