"""What a crash, a full disk or a hand can leave in a run folder, and what --resume makes of it."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emaseg.background import Background
from emaseg.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from emaseg.errors import SystemFault, WeightsError
from emaseg.events import Finished, Note, TrainEvent
from emaseg.files import append_text
from emaseg.models import Network, build_model
from emaseg.recipe import Recipe
from emaseg.runs.metrics_file import append_row, repair
from emaseg.training.optim import build_optimizer
from emaseg.training.resuming import misfit
from emaseg.training.run_state import generators, set_generators
from emaseg.weights.contents import rng_faults
from tests.helpers import equal, run, tiny
from tests.training.test_train import last, untimed

TERMS = ("main", "auxiliary")
HEADER = b"step,epoch,lr,loss,loss_main,loss_auxiliary,images_per_second,miou,pixel_accuracy,mean_accuracy\n"
ROWS = [
    b"2,1,0.05,1.5,1.0,0.5,80.5,,,\n",
    b"4,1,0.04,1.25,1.0,0.25,81.5,,,\n",
    b"4,1,,,,,,0.5,0.75,0.6\n",
    b"6,2,0.03,1.125,1e-05,0.25,82,,,\n",
    b"8,2,0.03,nan,inf,-0.25,82,,,\n",
    b"8,2,,,,,,0.625,0.75,0.6\n",
]
FEW = ("train.iterations=6", "train.evaluate_every=3", "data.eval_images=2", "train.keep_every=2")


def few() -> Recipe:
    return tiny(*FEW)


def warnings(events: list[TrainEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and event.warning]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[Path, Path]:
    """A whole run, and one that was stopped at step 4 of 6."""
    top = tmp_path_factory.mktemp("runs")
    run(few(), top / "whole")
    run(few(), top / "cut", stop_after=5)
    return top / "whole", top / "cut"


@pytest.fixture
def cut(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the stopped run; its previous.pt is of step 3."""
    shutil.copytree(pair[1], tmp_path / "run")
    return tmp_path / "run"


def same_end(whole: Path, out: Path) -> None:
    """Both runs ended with the same bits."""
    assert equal(last(whole), last(out))
    assert untimed(whole) == untimed(out)
    assert (whole / "samples.png").read_bytes() == (out / "samples.png").read_bytes()


# ------------------------------------------------------------------------------------------------ metrics.csv
@pytest.mark.parametrize(
    ("content", "kept", "aside"),
    [
        (HEADER + b"".join(ROWS), 3, False),
        (HEADER + b"".join(ROWS[:3]), 3, False),
        (HEADER + b"".join(ROWS[:3]) + ROWS[3][:9], 3, False),
        (HEADER + b"".join(ROWS[:2]) + ROWS[2][:-1], 2, False),
        (HEADER + b"".join(ROWS[:3]) + bytes(4096), 3, False),
        ((HEADER + b"".join(ROWS[:3])).replace(b"\n", b"\r\n"), 3, False),
        (b"\xef\xbb\xbf" + HEADER + ROWS[0], 1, False),
        (b"", 0, False),
        (HEADER, 0, False),
        (HEADER[:20], 0, True),
        (bytes(500), 0, True),
        (bytes(100) + b"\n" + bytes(100) + b"\n", 0, True),
        (b"\xff\xfe\x00" * 9 + b"\n" + b"".join(ROWS[:3]), 3, True),
        (bytes(len(HEADER) - 1) + b"\n" + b"".join(ROWS[:3]), 3, True),
        (b"".join(ROWS[:3]), 3, True),
        (b"step,loss\n1,2\n", 0, True),
        (HEADER.replace(b"miou", b"iou_m") + b"".join(ROWS[:3]), 0, True),
        (HEADER + ROWS[0] + ROWS[1][:10] + ROWS[2] + b"x\n", 1, True),
        (HEADER + ROWS[0] + b"four" + ROWS[1][1:] + ROWS[2], 2, True),
        (HEADER + ROWS[0] + bytes(30) + b"\n" + ROWS[2], 2, True),
        (HEADER + ROWS[0] + ROWS[0] + ROWS[1] + ROWS[0], 2, False),
        (HEADER + b"9" * 5000 + ROWS[0][1:], 0, True),
        (HEADER + ROWS[0].replace(b"1.5", b"1.5\x1b[31m"), 0, True),
    ],
)
def test_metrics_are_cut_to_the_good_rows(tmp_path: Path, content: bytes, kept: int, aside: bool) -> None:
    """Protects the rows: those up to the checkpoint stay byte for byte, whatever stands around them; what is no row is
    kept beside, the whole file as it was."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    notes = repair(path, TERMS, 5, 4)
    good = [row for row in ROWS[:3] if row[:-1] in content]
    if kept:
        lines = path.read_bytes().splitlines(keepends=True)
        assert lines[0] == HEADER
        assert len(lines) == 1 + kept
        assert set(lines[1:]) <= set(good)
    else:
        assert not path.exists() or path.read_bytes() == HEADER
    assert [p.read_bytes() for p in tmp_path.glob("*.damaged")] == ([content] if aside else [])
    assert len(notes) == (aside or (b"\n" in content and not content.endswith(b"\n")))
    append_row(path, {"step": 6, "epoch": 2, "lr": 0.03, "loss": 1.0, "loss_main": 0.5, "loss_auxiliary": 0.5}, TERMS)
    assert path.read_bytes().endswith(b"\n6,2,0.03,1,0.5,0.5,,,,\n")
    assert path.read_bytes().count(HEADER) == 1
    assert repair(path, TERMS, 6, 4) == []


@pytest.mark.parametrize("allowed", [0, 1, 15, 16, 40])
def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path, allowed: int) -> None:
    """Protects the file on a full disk: what was taken of a line is cut off again, and it is exit 4."""
    path = tmp_path / "file"
    append_text(path, "first\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 + allowed, limits[1]))  # a write beyond it is a short one
    try:
        with pytest.raises(SystemFault) if allowed < 41 else pytest.raises(ZeroDivisionError):
            append_text(path, "x" * 40 + "\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"first\n"
    path.write_bytes(b"first\nsec")
    append_text(path, "third\n")
    assert path.read_bytes() == b"first\nsec\nthird\n"


# ------------------------------------------------------------------------------------------------- the folder
def spoil_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "x").write_text("mine")


def spoil_dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent / "away" / "file")


def spoil_cyclic(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def spoil_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [spoil_folder, spoil_dangling, spoil_cyclic, spoil_fifo])
def test_what_is_no_file_is_moved_aside(pair: tuple[Path, Path], cut: Path, spoil: Callable[[Path], None]) -> None:
    """Protects --resume from a folder, a dead link or a pipe in the place of each file it writes: each is named and kept,
    nothing hangs, and the end is that of the whole run but for the rows that were lost."""
    names = ("metrics.csv", "log.txt", "env.json", "recipe.toml", "samples.png")
    inner = ("checkpoints/best.pt", "checkpoints/previous.pt")
    for name in (*names, *inner):
        spoil(cut / name)
    said = "\n".join(warnings(run(few(), cut, resume=True)))
    for name in (*names, *inner):
        assert f"{cut / name}: is not a file" in said
        assert os.path.lexists(cut / f"{name}.damaged")
        assert (cut / name).is_file()
    assert equal(last(pair[0]), last(cut))
    assert (pair[0] / "samples.png").read_bytes() == (cut / "samples.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\0\0", b"{", b"5", b'{"starts": 5}', b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_a_broken_env_json_is_kept_and_begun_anew(cut: Path, content: bytes) -> None:
    """Protects --resume from a file that only tells of starts."""
    (cut / "env.json").write_bytes(content)
    (said,) = warnings(run(few(), cut, resume=True, stop_after=6))
    assert "env.json: damaged" in said
    assert (cut / "env.json.damaged").read_bytes() == content


def test_leftovers_of_a_killed_writer_go(cut: Path) -> None:
    """Protects the disk; a folder of such a name is somebody's, and no error."""
    files = (".metrics.csv.abc.part", ".env.json.abc.part", ".report.html.abc.part", ".samples.png.abc.part")
    for name in (*files, "checkpoints/.last.pt.abc.part"):
        (cut / name).write_bytes(b"half")
    (cut / "checkpoints/.mine.part").mkdir()
    run(few(), cut, resume=True)
    assert [path.name for path in cut.rglob("*.part")] == [".mine.part"]


# --------------------------------------------------------------------------------------------------- checkpoints
def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_text(path: Path) -> None:
    path.write_text("no checkpoint")


@pytest.mark.parametrize("damage", [damage_cut, damage_empty, damage_text, spoil_folder, spoil_dangling, spoil_cyclic])
def test_a_damaged_last_is_passed_over_for_the_one_before(
    pair: tuple[Path, Path], cut: Path, damage: Callable[[Path], None]
) -> None:
    """Protects the run: the newest other checkpoint is used and named, with what was wrong and how many steps are done
    again; the damaged file is kept; the end is that of the whole run."""
    path = cut / "checkpoints/last.pt"
    damage(path)
    events = run(few(), cut, resume=True)
    said = warnings(events)
    assert "passed over last.pt" in said[0]
    assert "going on from step_00000004.pt, step 4" in said[0]
    assert said[0] in (cut / "log.txt").read_text()
    assert os.path.lexists(cut / "checkpoints/last.pt.damaged")
    same_end(pair[0], cut)


def test_the_newest_that_can_be_used(pair: tuple[Path, Path], cut: Path) -> None:
    """Protects the choice: one after the other is damaged, and each time the newest of the rest is taken; without any,
    exit 3 names all of them and nothing is changed; without files, it starts at 0."""
    folder = cut / "checkpoints"
    steps = {}
    for name in ("step_00000004.pt", "previous.pt", "best.pt", "step_00000002.pt"):
        damage_cut(folder / ("last.pt" if not steps else list(steps)[-1]))
        shutil.copytree(cut, cut.parent / "copy")
        said = warnings(run(few(), cut.parent / "copy", resume=True))
        same_end(pair[0], cut.parent / "copy")
        shutil.rmtree(cut.parent / "copy")
        steps[name] = int(said[0].split(", step ")[1].split(":")[0])
        assert any(f"going on from {other}" in said[0] for other in ("previous.pt", "best.pt", name))
    assert list(steps.values()) == sorted(steps.values(), reverse=True)
    for path in folder.iterdir():
        damage_cut(path)
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    with pytest.raises(WeightsError, match="no checkpoint that can be used") as caught:
        run(few(), cut, resume=True)
    assert caught.value.exit_code == 3
    assert all(path.name in caught.value.message for path in folder.iterdir())
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


def test_a_missing_last_is_no_start_from_nothing(pair: tuple[Path, Path], cut: Path) -> None:
    """Protects hours of steps from a deleted file, and from a crash on a disk without links."""
    (cut / "checkpoints/last.pt").unlink()
    assert "last.pt: not there; going on from step_00000004.pt" in warnings(run(few(), cut, resume=True))[0]
    same_end(pair[0], cut)


def test_checkpoints_that_are_no_folder_are_named(cut: Path) -> None:
    """Protects a run whose checkpoints lie on a disk that is away: not begun anew, exit 3."""
    shutil.rmtree(cut / "checkpoints")
    (cut / "checkpoints").symlink_to(cut / "away")
    with pytest.raises(WeightsError, match="a link to nowhere"):
        run(few(), cut, resume=True)
    (cut / "checkpoints").unlink()
    (cut / "checkpoints").write_text("")
    with pytest.raises(WeightsError, match="is not a folder"):
        run(few(), cut, resume=True)


Built = tuple[Network, torch.optim.Optimizer]


@pytest.fixture(scope="module")
def built() -> Built:
    """Model and optimiser of the recipe."""
    model = build_model(few())
    return model, build_optimizer(model, few().optim)


def changed(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    return replace(checkpoint, **changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: {"step": 99},
        lambda c: {"step": -1},
        lambda c: {"step": "4"},
        lambda c: {"step": True},
        lambda c: {"best": [1]},
        lambda c: {"best": {"miou": "x"}},
        lambda c: {"best": {"miou": 0.5}},
        lambda c: {"running": {"loss": None}},
        lambda c: {"rng": {}},
        lambda c: {"rng": {"cpu": torch.zeros(3), "cuda": []}},
        lambda c: {"rng": {"cpu": torch.zeros(3, dtype=torch.uint8), "cuda": []}},
        lambda c: {"rng": {"cpu": c.rng["cpu"], "cuda": 5}},
        lambda c: {"sampler": 5},
        lambda c: {"sampler": {"images": "many"}},
        lambda c: {"sampler": {"images": 20, "x": [1]}},
        lambda c: {"optimizer": {}},
        lambda c: {"optimizer": {**c.optimizer, "state": 5}},
        lambda c: {"optimizer": {**c.optimizer, "state": {0: {"momentum_buffer": torch.zeros(1)}}}},
        lambda c: {"optimizer": {**c.optimizer, "state": {999: {"momentum_buffer": torch.zeros(1)}}}},
        lambda c: {"optimizer": {**c.optimizer, "param_groups": []}},
        lambda c: {"model": {}},
        lambda c: {"model": {"x": 5}},
        lambda c: {"model": dict(list(c.model.items())[1:])},
    ],
)
def test_a_checkpoint_that_does_not_fit_is_said_to(
    pair: tuple[Path, Path], built: Built, change: Callable[[Checkpoint], dict[str, Any]], tmp_path: Path
) -> None:
    """Protects from a traceback: each of these hand-made files has a reason, and none is an exception."""
    whole = read_checkpoint(pair[1] / "checkpoints/last.pt")
    assert misfit(whole, *built, 6, 20) == ""
    odd = tmp_path / "odd.pt"
    save_checkpoint(odd, changed(whole, **change(whole)))
    try:
        reason = misfit(read_checkpoint(odd), *built, 6, 20)
    except WeightsError as error:
        reason = error.message
    assert reason


def test_a_misfit_is_exit_3(cut: Path) -> None:
    """Protects the same where it is used: refused with its reason, or passed over."""
    path = cut / "checkpoints/last.pt"
    save_checkpoint(path, changed(read_checkpoint(path), step=99))
    shutil.copy(path.with_name("previous.pt"), cut.parent / "kept.pt")
    said = warnings(run(few(), cut, resume=True, stop_after=5))[0]
    assert "passed over last.pt: its sampler ends the run with step 6, it is at 99 of 6" in said
    for other in path.parent.iterdir():
        other.unlink()
    save_checkpoint(path, changed(read_checkpoint(cut.parent / "kept.pt"), step=-1))
    with pytest.raises(WeightsError, match="step must be a whole number of steps"):
        run(few(), cut, resume=True)


def test_previous_is_the_one_before(pair: tuple[Path, Path]) -> None:
    """Protects the second copy: a whole file of an earlier step, and last.pt is never away while it is made."""
    folder = pair[1] / "checkpoints"
    assert (read_checkpoint(folder / "previous.pt").step, read_checkpoint(folder / "last.pt").step) == (3, 5)


# -------------------------------------------------------------------------------------------- what has changed
@pytest.mark.parametrize(
    ("key", "value"),
    [("threads", 7), ("torch", "1.0"), ("emaseg", "0.0.1"), ("device", "NVIDIA X"), ("cpu", "Z80"), ("numpy", "1")],
)
def test_what_changes_the_rounding_is_said(cut: Path, key: str, value: int | str) -> None:
    """Protects from other weights without a word: a line for each thing, once; then the run is of the new kind."""
    for path in ("last.pt", "previous.pt"):
        whole = read_checkpoint(cut / "checkpoints" / path)
        save_checkpoint(cut / "checkpoints" / path, changed(whole, sampler={**whole.sampler, key: value}))
    (said,) = warnings(run(few(), cut, resume=True, stop_after=6))
    assert f"{value} when this run was saved" in said
    assert "no longer bit for bit" in said
    assert said in (cut / "log.txt").read_text()


def test_work_in_the_background_ends_before_an_exception(tmp_path: Path) -> None:
    """Protects a checkpoint from a signal: what a handler raises while it is written comes after it is."""
    import signal
    import threading
    import time

    done = threading.Event()

    def stop(*_: object) -> None:
        raise SystemExit(143)

    def work() -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)
        done.set()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SystemExit):
            Background(work).wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.is_set()
    with pytest.raises(ZeroDivisionError):
        Background(lambda: print(1 // 0)).wait()


def test_the_generator_of_an_apple_gpu_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects dropout after a resume on an Apple GPU, which draws from a generator of its own; a checkpoint with its
    state is read on any machine, and one without it goes on there."""
    device, state, put = torch.device("mps"), torch.arange(44, dtype=torch.uint8), list[torch.Tensor]()
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", put.append)
    rng = generators(device)
    assert rng["mps"] is state
    set_generators(rng, device)
    set_generators({"cpu": rng["cpu"], "cuda": []}, device)
    assert put == [state]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert rng_faults(rng) == []
    assert rng_faults({**rng, "mps": state[:3]}) == ["its Apple GPU generator's state is damaged"]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    run(tiny(), tmp_path / "run", stop_after=3)
    file = tmp_path / "run/checkpoints/last.pt"
    content = torch.load(file, weights_only=True)
    assert content["rng"].keys() == {"cpu", "cuda"}
    content["rng"]["mps"] = state
    torch.save(content, file)
    assert any(isinstance(event, Finished) for event in run(tiny(), tmp_path / "run", resume=True))
    content["rng"]["mps"] = 7
    torch.save(content, file)
    with pytest.raises(WeightsError):
        read_checkpoint(file)
