"""Training runs: the same result however often it stops, nothing lost, nothing half-written."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emaseg
from emaseg.checkpoint import read_checkpoint
from emaseg.errors import DataError, Diverged, RecipeError, SystemFault, WeightsError
from emaseg.events import Evaluated, Finished, Note, Stepped
from emaseg.recipe import Recipe, load_recipe
from emaseg.runs.metrics_file import TIMED
from emaseg.schedule import Schedule, build_schedule
from emaseg.training.step_statistics import StepStatistics
from emaseg.training.train import train
from tests.data.made import image, label
from tests.helpers import equal, run, tiny


def last(path: Path) -> dict[str, object]:
    content: dict[str, object] = torch.load(path / "checkpoints/last.pt", weights_only=True)
    return content


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(run: Path) -> list[list[str]]:
    """metrics.csv as text but for the columns of measured time, which two equal runs do not share."""
    rows = [line.split(",") for line in (run / "metrics.csv").read_bytes().decode().split("\n")]
    timed = [rows[0].index(name) for name in TIMED if name in rows[0]]
    return [[cell for i, cell in enumerate(row) if i not in timed] for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run; who writes to it takes a copy."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(tiny(), out)
    return out


@pytest.mark.parametrize("cut", [3, 5, 7])
def test_resumed_equals_uninterrupted(whole: Path, tmp_path: Path, cut: int) -> None:
    """Protects the promise: stopping after any step (in mid-epoch, on an evaluation) changes no bit of the result.

    Weights, buffers, momentum, generators, sampler, best score: the whole last.pt is compared, and metrics.csv byte for
    byte but for measured time (a row's mean covers the steps before the stop, too).
    """
    events = run(tiny(), tmp_path / "cut", stop_after=cut)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.interrupted
    assert finished.step == cut
    events = run(tiny(), tmp_path / "cut", resume=True)
    assert [e.step for e in events if isinstance(e, Stepped)] == list(range(cut + 1, 13))
    assert equal(last(whole), last(tmp_path / "cut"))
    best, resumed = (torch.load(out / "checkpoints/best.pt", weights_only=True) for out in (whole, tmp_path / "cut"))
    assert equal(best, resumed)
    assert untimed(whole) == untimed(tmp_path / "cut")


def test_many_interruptions_and_another_worker_count(whole: Path, tmp_path: Path) -> None:
    """Protects against state hidden in the loader: two stops, then a loading process instead of none."""
    run(tiny(), tmp_path / "cut", stop_after=2)
    run(tiny(), tmp_path / "cut", resume=True, stop_after=6)
    run(tiny("train.workers=1"), tmp_path / "cut", resume=True)
    a, b = last(whole), last(tmp_path / "cut")
    assert equal({k: v for k, v in a.items() if k != "recipe"}, {k: v for k, v in b.items() if k != "recipe"})


def test_resume_after_a_kill_repeats_from_the_last_checkpoint(whole: Path, tmp_path: Path) -> None:
    """Protects a run whose process died between checkpoints: rows written after it are replaced, not doubled."""
    out = tmp_path / "killed"
    for event in train(tiny("train.save_every=1"), out):  # saved after every step
        if isinstance(event, Stepped) and event.step == 8:
            break
    events = run(tiny(), out, resume=True)
    assert next(e.step for e in events if isinstance(e, Stepped)) == 8
    assert equal(last(whole)["model"], last(out)["model"])
    assert untimed(whole) == untimed(out)


def test_run_folder(tmp_path: Path) -> None:
    """Protects the contract of files, and that recipe.toml runs again as it is."""
    events = run(tiny("train.keep_every=6"), tmp_path / "run")
    files = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert files == {
        "recipe.toml", "env.json", "metrics.csv", "metrics.jsonl", "log.txt", "samples.png", "report.html",
        "checkpoints/last.pt", "checkpoints/previous.pt", "checkpoints/best.pt", "checkpoints/step_00000006.pt",
        "checkpoints/step_00000012.pt",
    }  # fmt: skip
    assert load_recipe(str(tmp_path / "run/recipe.toml")) == tiny("train.keep_every=6")
    assert json.loads((tmp_path / "run/env.json").read_text())["starts"][0]["packages"]["torch"]
    rows = metrics(tmp_path / "run")
    assert [int(r["step"]) for r in rows if r["loss"]] == [2, 4, 6, 8, 10, 12]
    assert [int(r["step"]) for r in rows if r["miou"]] == [5, 10, 12]
    for row in rows:
        if row["loss"]:
            assert float(row["loss"]) == pytest.approx(float(row["loss_main"]) + float(row["loss_auxiliary"]), rel=1e-4)
    scored = [e for e in events if isinstance(e, Evaluated)]
    best = max(scored, key=lambda e: e.scores.miou or 0)
    content = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)
    assert content["best"]["miou"] == best.scores.miou
    assert content["step"] == best.step
    keys = {"format", "model", "optimizer", "step", "epoch", "best", "rng", "sampler", "running", "recipe"}
    assert set(content) == keys | {"scaler"}


def test_finished_run_resumes_to_nothing(whole: Path, tmp_path: Path) -> None:
    """Protects a loop that always passes --resume: a complete run is left as it is."""
    shutil.copytree(whole, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    finished = run(tiny(), tmp_path / "run", resume=True)[-1]
    assert isinstance(finished, Finished)
    assert finished.already
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_resume_without_a_checkpoint_starts_and_says_so(tmp_path: Path) -> None:
    """Protects the first start of a command that always passes --resume."""
    events = run(tiny("train.iterations=1"), tmp_path / "run", resume=True)
    assert any(isinstance(e, Note) and "starting at step 0" in e.text for e in events)


def test_resume_with_another_recipe_is_refused(tmp_path: Path) -> None:
    """Protects a run from being continued as something else; names the key."""
    run(tiny(), tmp_path / "run", stop_after=2)
    with pytest.raises(RecipeError, match=r"optim\.lr = 0\.05 there, 0\.1 now"):
        run(tiny("optim.lr=0.1"), tmp_path / "run", resume=True)


def test_resume_with_other_images_is_refused(tmp_path: Path) -> None:
    """Protects the sample order: with another number of images it would silently be another run."""
    out = tmp_path / "run"
    run(tiny(), out, stop_after=2)
    path = out / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    content["sampler"]["images"] = 19
    torch.save(content, path)
    with pytest.raises(DataError, match="had 19 images when this run started and has 20 now"):
        run(tiny(), out, resume=True)


def test_damaged_image_in_mid_run_keeps_the_steps(tmp_path: Path) -> None:
    """Protects the work done: the error names the image, and a resume goes on from the step before it."""
    recipe = folder_recipe(tmp_path / "data", images=80)
    out = tmp_path / "run"
    damaged = tmp_path / "data/images/70.png"
    damaged.write_bytes(damaged.read_bytes()[:150])  # headers are checked at the start, pixels when they are read
    with pytest.raises(DataError, match=r"70\.png"):
        run(recipe, out)
    steps = read_checkpoint(out / "checkpoints/last.pt").step
    assert steps > 0
    assert "70.png" in (out / "log.txt").read_text()


def folder_recipe(root: Path, images: int) -> Recipe:
    """Random pictures with two-class masks as a folder data set."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(images):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(rng.integers(0, 2, (32, 32), dtype=np.uint8)).save(root / f"masks/{i}.png")
    data = (
        f'data={{kind="folder", root="{root}", classes=["a", "b"], train_images="images", train_masks="masks", '
        'eval_images="images", eval_masks="masks"}'
    )
    return tiny(data, "train.iterations=40", "train.evaluate_every=0")


def test_finished_run_without_its_picture_gets_one(whole: Path, tmp_path: Path) -> None:
    """Protects a run that died between its last evaluation and its last file."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/samples.png").unlink()
    finished = run(tiny(), tmp_path / "run", resume=True)[-1]
    assert isinstance(finished, Finished)
    assert not finished.already
    assert (tmp_path / "run/samples.png").is_file()


def test_occupied_folder_is_refused(tmp_path: Path) -> None:
    """Protects an earlier run from being written over."""
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RecipeError, match="not empty"):
        run(tiny(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_truncated_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    """Protects a resume from a damaged file: said plainly, the folder untouched."""
    run(tiny(), tmp_path / "run", stop_after=2)
    path = tmp_path / "run/checkpoints/last.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="damaged"):
        run(tiny(), tmp_path / "run", resume=True)


def test_divergence_stops_before_the_step_and_saves_the_batch(tmp_path: Path) -> None:
    """Protects the weights: a rate that explodes ends with exit code 5 and the batch that did it."""
    with pytest.raises(Diverged, match="not finite") as caught:
        run(tiny("optim.lr=1e25", "train.save_seconds=0.001", "optim.momentum=0.0"), tmp_path / "run")
    assert caught.value.exit_code == 5
    (saved,) = (tmp_path / "run").glob("nonfinite_step_*.pt")
    content = torch.load(saved, weights_only=True)
    assert content["images"].shape == (4, 3, 32, 32)
    assert len(content["names"]) == 4
    assert not all(math.isfinite(v) for v in content["losses"].values())
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt").step == content["step"]


def test_one_value_per_channel_is_refused(tmp_path: Path) -> None:
    """Protects batch norm from a variance of a single value, before anything is written; says what to do."""
    recipe = tiny("train.batch=1", "augment.crop=[8, 8]", "data.size=[16, 16]")
    with pytest.raises(RecipeError, match="one value") as caught:
        run(recipe, tmp_path / "run")
    assert "train.batch=2" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_too_few_images(tmp_path: Path) -> None:
    """Protects from an endless or empty epoch."""
    with pytest.raises(DataError, match="do not fill one batch"):
        run(tiny("train.batch=64"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_backbone_weights_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the offline user: the file, the place and the way without."""
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError) as caught:
        run(tiny('backbone.weights="https://example.org/resnet.pth"'), tmp_path / "run")
    assert str(tmp_path / "cache" / "resnet.pth") in caught.value.hint
    assert "none" in caught.value.hint


def test_schedule() -> None:
    """Protects the count of steps: a rest smaller than a batch is dropped, epochs and iterations agree."""
    assert build_schedule(load_recipe("voc_r50_d8"), 10582).total == 39660
    assert build_schedule(load_recipe("ade20k_r50_d8"), 20210).total == 164190
    schedule = build_schedule(tiny(), 20)
    assert (schedule.total, schedule.per_epoch, schedule.epoch(4), schedule.epoch(5)) == (12, 5, 1, 2)
    assert [s for s in range(13) if schedule.evaluates_at(s)] == [5, 10, 12]
    assert [schedule.evaluations_after(s) for s in (0, 4, 5, 9, 10, 11, 12)] == [3, 3, 2, 2, 1, 1, 0]


def fill_disk(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """Protects the run: a full disk is exit code 4, no temporary file stays, the old checkpoint still loads."""
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run(tiny(), small / "run", stop_after=2)
        fill_disk(small / "filler")
        with pytest.raises(SystemFault, match="disk is full") as caught:
            run(tiny(), small / "run", resume=True, stop_after=3)
        assert caught.value.exit_code == 4
        assert read_checkpoint(small / "run/checkpoints/last.pt").step == 2
        assert not list(small.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_global_generator_is_not_used_by_loading(tmp_path: Path) -> None:
    """Protects reproducibility of everything around a run: only model start and dropout draw from torch's generator."""
    curves = []
    for workers in (0, 1):
        events = run(tiny(f"train.workers={workers}", "train.iterations=4"), tmp_path / str(workers))
        curves.append([e.loss for e in events if isinstance(e, Stepped)])
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("name", "overrides", "steps", "within"),
    [("demo_curve", (), 2, 1e-4), ("demo_curve_small_steps", ("optim.lr=1e-3",), 20, 2e-3)],
)
def test_golden_curves_of_the_demo(
    tmp_path: Path, name: str, overrides: tuple[str, ...], steps: int, within: float
) -> None:
    """Protects training as a whole: losses on whatever processor. At the demo's rate each step multiplies a difference in
    rounding by ten, so that only two tell; at a hundredth of it 20 steps differ by at most 4e-4 between AVX-512, AVX2,
    SSE4.1 and plain code."""
    golden = json.loads((Path(__file__).parents[1] / f"golden/{name}.json").read_text())[:steps]
    assert len(golden) == steps
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = emaseg.load_recipe("demo", ["train.save_seconds=1e9", *overrides])
        losses = [event.loss for event in run(recipe, tmp_path / "run", stop_after=steps) if isinstance(event, Stepped)]
    finally:
        torch.set_num_threads(torch_threads)
    assert losses == pytest.approx(golden, rel=within)


def test_a_test_set_without_labels_is_trained_on_without_scores(tmp_path: Path) -> None:
    """Protects the rows whose evaluation split has no published labels: they train, save and show samples, score
    nothing, and a finished one stays finished."""
    top = tmp_path / "cityscapes"
    for split, count in (("train", 4), ("test", 2)):
        for i in range(count):
            frame = f"aachen_00000{i}_000019"
            image(top / "leftImg8bit" / split / "aachen" / f"{frame}_leftImg8bit.png", (40, 48))
            if split == "train":
                label(top / "gtFine" / split / "aachen" / f"{frame}_gtFine_labelIds.png", [7, 11, 33], (40, 48))
    data = f'data={{kind="cityscapes", root="{top.as_posix()}", eval_split="test"}}'
    recipe = tiny(data, "train.iterations=3", "train.evaluate_every=1")
    events = run(recipe, tmp_path / "run")
    assert not any(isinstance(event, Evaluated) for event in events)
    assert any(isinstance(event, Note) and "nothing is scored" in event.text for event in events)
    assert events[-1] == Finished(tmp_path / "run", 3, None, scored=False)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt").step == 3
    assert (tmp_path / "run" / "samples.png").is_file()
    again = run(recipe, tmp_path / "run", resume=True)
    assert again[-1] == Finished(tmp_path / "run", 3, None, already=True, scored=False)


def test_time_left_counts_evaluations_to_come() -> None:
    """Protects who waits for a run: on large images half of its time is evaluation."""
    statistics = StepStatistics(tiny("train.iterations=10"), Schedule(10, 5, 2), {}, torch.device("cpu"))
    before = [statistics.event(step, {"main": 1.0}, 0.0, 3.0).seconds_left for step in (1, 2, 3)]
    assert before == [None, None, pytest.approx(7 * 3.0)]
    statistics.evaluating = 20.0
    assert statistics.event(4, {"main": 1.0}, 0.0, 3.0).seconds_left == pytest.approx(6 * 3.0 + 3 * 20.0)
