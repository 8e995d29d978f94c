"""Going on with a run: what is said when the data, the recipe or the folder named are not what the run was started with."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emaseg.errors import DataError, RecipeError
from emaseg.events import Finished, Note, TrainEvent
from emaseg.open_datasets import open_datasets
from emaseg.recipe import Recipe
from emaseg.runs.folder import RunFolder, resume_command
from emaseg.training.image_state import _contents
from emaseg.training.resuming import changed_surroundings, surroundings
from tests.helpers import emaseg, run, tiny


def own_data(root: Path, count: int, *overrides: str) -> Recipe:
    """A recipe on `count` images with masks of two classes, every fifth held out."""
    rng = np.random.default_rng(0)
    for kind, channels, values in (("images", (3,), 256), ("masks", (), 2)):
        (root / kind).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, values, (32, 32, *channels), dtype=np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{i:02}.png")
    return on(root, *overrides)


def on(root: Path, *overrides: str) -> Recipe:
    folders = 'train_images="images", train_masks="masks", eval_images="images", eval_masks="masks"'
    data = f'data={{kind="folder", root="{root.as_posix()}", classes=["a", "b"], {folders}, holdout=5}}'
    return tiny(data, *overrides)


def remove(root: Path, name: str) -> None:
    for kind in ("images", "masks"):
        (root / kind / name).unlink()


def warnings(events: list[TrainEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and event.warning]


def test_images_that_changed_parts_are_said(tmp_path: Path) -> None:
    """Protects from scores of two evaluation sets in one run: with one file less every later image moves on a place in
    `holdout`, as many are left to train on, and nothing else would show it. Said once, and in the log."""
    recipe = own_data(tmp_path / "data", 23)
    run(recipe, tmp_path / "run", stop_after=2)
    remove(tmp_path / "data", "01.png")
    (warning,) = warnings(run(recipe, tmp_path / "run", resume=True, stop_after=4))
    assert "training and evaluation images" in warning
    assert "18 to train on and 5 to evaluate then, 18 and 4 now" in warning
    assert "no longer bit for bit" in warning
    assert "best.pt may be stale" in warning
    assert warning in (tmp_path / "run/log.txt").read_text()
    assert warnings(run(recipe, tmp_path / "run", resume=True)) == []


def test_other_training_images_alone_leave_the_scores(tmp_path: Path) -> None:
    """Protects the warning from saying too much: a training image under another name changes no score's images."""
    recipe = own_data(tmp_path / "data", 23)
    run(recipe, tmp_path / "run", stop_after=2)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "00.png").rename(tmp_path / "data" / kind / "00b.png")
    (warning,) = warnings(run(recipe, tmp_path / "run", resume=True, stop_after=3))
    assert "the same training images" in warning
    assert "stale" not in warning


def test_images_whose_contents_changed_are_said(tmp_path: Path) -> None:
    """Protects from other weights without a word: an image drawn again, a label of the same size changed in one pixel;
    said once, for the part that it concerns."""
    recipe = own_data(tmp_path / "data", 23)
    run(recipe, tmp_path / "run", stop_after=1)
    rng = np.random.default_rng(9)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "data/images/00.png")
    (warning,) = warnings(run(recipe, tmp_path / "run", resume=True, stop_after=2))
    assert "training images or labels have other contents" in warning
    assert "no longer bit for bit" in warning
    assert "stale" not in warning
    held_out = Path(open_datasets(recipe)[1].name(0))
    label = tmp_path / "data/masks" / held_out.name
    pixels = np.asarray(Image.open(label)).copy()
    pixels[0, 0] ^= 1
    size = label.stat().st_size
    Image.fromarray(pixels).save(label)
    label.write_bytes(label.read_bytes()[:size].ljust(size, b"\0"))
    (warning,) = warnings(run(recipe, tmp_path / "run", resume=True, stop_after=3))
    assert "evaluation images or labels have other contents" in warning
    assert "best.pt may be stale" in warning
    assert warnings(run(recipe, tmp_path / "run", resume=True, stop_after=4)) == []


def test_images_that_were_only_touched_are_a_remark(tmp_path: Path) -> None:
    """Protects from a false alarm: files written again with the bytes that they had are told of, and no warning."""
    recipe = own_data(tmp_path / "data", 23)
    run(recipe, tmp_path / "run", stop_after=1)
    os.utime(tmp_path / "data/images/00.png", (2e9, 2e9))
    events = run(recipe, tmp_path / "run", resume=True, stop_after=2)
    assert warnings(events) == []
    assert any(isinstance(e, Note) and e.text.startswith("some training images or labels were written") for e in events)


def test_files_older_than_1970_stop_no_resume(tmp_path: Path) -> None:
    """Protects runs on disks and archives that give 1601 or 1904 for no date."""
    recipe = own_data(tmp_path / "data", 23)
    for path in (tmp_path / "data").rglob("*.png"):
        os.utime(path, (-9e8, -9e8))
    run(recipe, tmp_path / "run", stop_after=1)
    assert warnings(run(recipe, tmp_path / "run", resume=True, stop_after=2)) == []


def test_another_protocol_of_evaluation_is_said(tmp_path: Path) -> None:
    """Protects from a best.pt that is never replaced, since its score was made by a dearer protocol; precision is none."""
    options = "train.iterations=6", "train.evaluate_every=2"
    run(tiny(*options), tmp_path / "run", stop_after=1)
    other = tiny(*options, "inference.flip=true", 'inference.precision="bf16"')
    assert warnings(run(other, tmp_path / "run", resume=True, stop_after=3)) == []  # nothing was scored before
    (warning,) = warnings(run(tiny(*options), tmp_path / "run", resume=True, stop_after=4))
    assert warning.startswith("inference.flip: not as when this run was saved")
    assert "best.pt may be stale" in warning
    assert warnings(run(tiny(*options), tmp_path / "run", resume=True, stop_after=5)) == []


def test_an_extended_run_goes_on_from_its_own_checkpoints(tmp_path: Path) -> None:
    """Protects a run that was made longer and whose last.pt is damaged: its best.pt, from before, is of a shorter run, and
    stops nothing."""
    options = "train.keep_every=2", "train.evaluate_every=2", "train.save_every=1"
    out = tmp_path / "run"
    run(tiny("train.iterations=4", *options), out)
    kept = out / "checkpoints/step_00000002.pt"
    kept.replace(out / "checkpoints/best.pt")
    longer = tiny("train.iterations=8", *options)
    run(longer, out, resume=True, stop_after=7)
    (out / "checkpoints/last.pt").write_bytes(b"damaged")
    events = run(longer, out, resume=True)
    assert any("going on from previous.pt, step 6" in text for text in warnings(events))
    assert isinstance(events[-1], Finished)
    assert (events[-1].step, events[-1].interrupted) == (8, False)


def test_the_state_of_many_images_is_cheap(tmp_path: Path) -> None:
    """Protects the start with a large data set: 20,000 files are asked in a fraction of a second of work."""
    (tmp_path / "a").write_bytes(bytes(100_000))
    began = time.process_time()
    _contents([tmp_path / "a"] * 20_000)
    assert time.process_time() - began < 2


@pytest.mark.timeout(60, method="thread")  # a handler of signals would be waited for, too
def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    """Protects the start: bytes are read of files alone; what is wrong with another thing is said when it is its turn."""
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    (tmp_path / "c.png").write_bytes(bytes(100_000))
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png", "none.png")]
    assert _contents(files) == _contents(files)


def test_a_data_set_that_moved_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a run that goes on on another machine, or with a relative root: no false alarm."""
    run(own_data(tmp_path / "data", 23), tmp_path / "run", stop_after=2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").rename(tmp_path / "elsewhere" / "mine")
    assert warnings(run(on(tmp_path / "elsewhere/mine"), tmp_path / "run", resume=True, stop_after=3)) == []
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert warnings(run(on(Path("mine")), tmp_path / "run", resume=True, stop_after=4)) == []


def test_a_finished_run_and_a_checkpoint_of_old_are_silent(tmp_path: Path) -> None:
    """Protects runs that nothing is wrong with: one that is complete goes on with nothing, and a checkpoint from before
    the lists were kept loads as it did."""
    recipe = own_data(tmp_path / "data", 23, "train.iterations=3")
    run(recipe, tmp_path / "old", stop_after=2)
    run(recipe, tmp_path / "done")
    path = tmp_path / "old/checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    for key in ("names", "eval_images", "eval_names"):
        del content["sampler"][key]
    torch.save(content, path)
    remove(tmp_path / "data", "01.png")
    (unlearnt,) = warnings(run(recipe, tmp_path / "old", resume=True))  # three steps leave a class that is never found
    assert unlearnt.startswith("this class has an IoU of 0: b. ")
    assert warnings(run(recipe, tmp_path / "done", resume=True)) == []


def test_another_recipe_is_answered_with_the_command(tmp_path: Path) -> None:
    """Protects who resumes with the wrong recipe: the remedy is a whole command, quoted, and the values are TOML."""
    out = tmp_path / "my runs" / "a"
    run(tiny(), out, stop_after=1)
    with pytest.raises(RecipeError) as caught:
        run(tiny("augment.crop=[24, 24]", 'backbone.weights="x.pth"'), out, resume=True)
    assert "augment.crop = [32, 32] there, [24, 24] now" in caught.value.message
    assert 'backbone.weights = "none" there, "x.pth" now' in caught.value.message
    command = next(line for line in caught.value.hint.splitlines() if "emaseg train" in line)
    assert shlex.split(command) == ["emaseg", "train", str(out / "recipe.toml"), "--out", str(out), "--resume"]


def test_the_recipe_of_a_run_resumes_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects `emaseg train RUN/recipe.toml --resume` from a new run at step 0; a recipe.toml that lies in no run
    folder, and a start without --resume, still get a folder below runs/."""
    monkeypatch.chdir(tmp_path)
    run(tiny("train.iterations=3"), Path("a"), stop_after=1)
    own = ("train", Path("a/recipe.toml"), "--device", "cpu")
    code, stdout, stderr = emaseg(capsys, *own, "--resume")
    assert (code, stdout) == (0, "a\n")
    assert "continuing at step 1 of 3" in stderr
    assert not Path("runs").exists()
    assert emaseg(capsys, *own, "-q")[1].startswith(str(Path("runs/tiny/")))
    Path("mine/checkpoints").mkdir(parents=True)
    Path("mine/recipe.toml").write_bytes(Path("a/recipe.toml").read_bytes())
    code, stdout, _ = emaseg(capsys, "train", Path("mine/recipe.toml"), "--device", "cpu", "-q", "--resume")
    assert stdout.startswith(str(Path("runs/tiny/")))
    assert sorted(path.name for path in Path("mine").iterdir()) == ["checkpoints", "recipe.toml"]


def test_a_damaged_image_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the hours before it: what is saved, the command that finds all such files at once, and the one that goes
    on, which then does."""
    root, out = tmp_path / "data", tmp_path / "run"
    recipe = own_data(root, 60, "train.iterations=14", "train.evaluate_every=0")
    whole = (root / "images/33.png").read_bytes()
    (root / "images/33.png").write_bytes(whole[: len(whole) // 2])  # its header is whole: found when it is read
    with pytest.raises(DataError, match=r"33\.png") as caught:
        run(recipe, out)
    assert caught.value.exit_code == 3
    step = torch.load(out / "checkpoints/last.pt", weights_only=True)["step"]
    assert f"stopped after step {step}, which is saved in {out / 'checkpoints/last.pt'}" in caught.value.message
    commands = [line.partition(": ")[2] for line in caught.value.hint.splitlines()[1:]]
    check, again = [shlex.split(command) for command in commands]
    assert check == ["emaseg", "check-data", str(out / "recipe.toml")]
    code, stdout, _ = emaseg(capsys, *check[1:])
    assert code == 1
    assert "33.png" in stdout
    (root / "images/33.png").write_bytes(whole)
    code, stdout, stderr = emaseg(capsys, *again[1:], "--device", "cpu")
    assert (code, stdout) == (0, f"{out}\n")
    assert f"continuing at step {step} of 14" in stderr


def test_a_damaged_image_before_any_checkpoint_claims_none(tmp_path: Path) -> None:
    """Protects from a message that names a file which is not there."""
    recipe = own_data(tmp_path / "data", 10)
    for path in (tmp_path / "data/images").iterdir():
        path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DataError) as caught:
        run(recipe, tmp_path / "run")
    assert "stopped before the first step" in caught.value.message
    assert "last.pt" not in caught.value.message


MEMORY = 'model={kind="memorynet", memory_base_lr=0.05, memory_ranks="plain_mean"}'


@pytest.mark.parametrize(
    ("key", "named"),
    [('loss.ranks="plain_mean"', 'loss.ranks = "plain_mean" each'), (MEMORY, 'model.memory_ranks = "plain_mean" each')],
)
def test_another_number_of_processes_is_said(key: str, named: str) -> None:
    """Protects from a training that changes without a word: with plain means another number of processes trains otherwise,
    and the note names the key that frees the next run of it, where it is not refused: 1 -> 4 and 2 -> 4 have none. A
    checkpoint that does not tell its number is silent."""
    plain = tiny(key)
    now = surroundings(torch.device("cpu"), 1)
    for then, current, advice in (
        (1, 4, "resume with 1 process"),
        (2, 4, "resume with 2 processes"),
        (4, 2, "--set train.ranks=4 the next run is the same on 4 processes and on any divisor of that"),
    ):
        (note,) = changed_surroundings({**now, "ranks": then}, {**now, "ranks": current}, plain)
        assert note.text.startswith(f"processes that train: {then} when this run was saved, {current} now")
        assert named in note.text
        assert note.text.endswith(advice)
        assert f"resume with {then} process" in note.text
    for recipe in (tiny(), tiny(key, "train.ranks=2")):
        (note,) = changed_surroundings({**now, "ranks": 4}, now, recipe)
        assert note.text.endswith("the uninterrupted one")
    assert changed_surroundings({key: value for key, value in now.items() if key != "ranks"}, now, plain) == []


@pytest.mark.parametrize("more", [(), ('loss.ranks="plain_mean"',), ("train.ranks=4",)])
def test_norm_statistics_of_another_number_of_processes_are_said(more: tuple[str, ...]) -> None:
    """Protects a resume with norm statistics of each process: train.ranks does not bring them back, so it is no advice."""
    now = surroundings(torch.device("cpu"), 1)
    recipe = tiny('model.norm="batch"', *more)
    (note,) = changed_surroundings({**now, "ranks": 4}, {**now, "ranks": 2}, recipe)
    assert note.text.endswith("of its own images, which are others now: resume with 4 processes")
    assert ("plain_mean" in note.text) == (len(more) == 1 and "loss" in more[0])


def test_the_order_of_sums_is_told_where_steps_are_added_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects from a line that says too little beside the warning of another number of processes, or that speaks of a next
    step where there is none: only the sample sheet is missing."""
    monkeypatch.setattr("emaseg.training.run_state.order_note", lambda *_: [Note("another order")])

    def told(**arguments: int) -> int:
        events = run(tiny(), tmp_path / "run", resume=True, **arguments)
        return [event.text for event in events if isinstance(event, Note)].count("another order")

    run(tiny(), tmp_path / "run", stop_after=2)
    assert told(stop_after=4) == 1
    file = tmp_path / "run/checkpoints/last.pt"
    content = torch.load(file, weights_only=True)
    content["sampler"]["ranks"] = 4
    torch.save(content, file)
    assert told() == 0
    content = torch.load(file, weights_only=True)
    content["best"]["evaluated"] = content["best"]["step"] = 10
    torch.save(content, file)
    assert told() == 0


def test_the_command_goes_on_as_the_run_was_started(tmp_path: Path) -> None:
    """Protects who copies the command from fewer processes or another device than the run had; of an env.json that is
    damaged, or of another program, nothing is taken."""
    folder = RunFolder(tmp_path)
    plain = f"emaseg train {tmp_path / 'recipe.toml'} --out {tmp_path} --resume"
    assert resume_command(folder) == plain
    for start, options in (
        ({"nproc": 4, "command": ["emaseg", "train", "x", "--device", "cpu"]}, " --nproc 4 --device cpu"),
        ({"nproc": None, "command": ["emaseg", "train", "x", "--device=cuda:1"]}, " --device cuda:1"),
        ({"command": ["emaseg", "train", "x"]}, ""),
        ({"nproc": "4; ls", "command": ["own.py", "--device", "cpu"]}, ""),
        ({"nproc": 1, "command": ["emaseg", "train", "--device", "a b"]}, " --device 'a b'"),
        ([], ""),
    ):
        folder.environment.write_text(json.dumps({"schema": 1, "starts": [{"command": ["no"]}, start]}))
        assert resume_command(folder) == plain + options
    folder.environment.write_text('{"starts": {}}')
    assert resume_command(folder) == plain
