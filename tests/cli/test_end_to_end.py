"""The commands together, as a user types them: train, resume, eval, predict, and Ctrl-C in the middle."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emaseg.reference import open_engine
from tests.forked import forked, needs_fork
from tests.helpers import emaseg, main

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """
schema = 1
name = "tiny"

[model]
kind = "emanet"
bases = 4
attention_channels = 8
bottleneck_channels = 8
decoder_channels = 8
auxiliary_channels = 8

[backbone]
kind = "resnet14"
output_stride = 8
stem_channels = []
width = 8
weights = "none"

[data]
kind = "shapes"
size = [32, 32]
train_images = 16
eval_images = 4

[augment]
crop = [32, 32]
photometric = "none"

[optim]
lr = 0.01

[train]
iterations = 6
batch = 4
workers = 0
log_every = 2
"""

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
Output = tuple[int, str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "tiny.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A finished run of six steps."""
    assert main(["train", str(folder / "tiny.toml"), "--out", str(folder / "run"), "--device", "cpu", "-q"]) == 0
    return folder / "run"


def test_training_ends_with_the_run_folder_on_stdout(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results on stdout, plain progress lines (first and last step) and next commands on stderr."""
    out = tmp_path / "run"
    code, stdout, stderr = emaseg(capsys, "train", folder / "tiny.toml", "--out", out, "--device", "cpu")
    assert (code, stdout) == (0, f"{out}\n")
    assert "train 1/6  epoch 1 of 2  loss " in stderr
    assert "train 6/6  epoch 2 of 2  loss " in stderr
    assert "step 6: mIoU " in stderr
    assert f"emaseg eval {out}" in stderr
    assert "\x1b" not in stderr
    for name in ("recipe.toml", "env.json", "log.txt", "metrics.csv", "samples.png"):
        assert (out / name).is_file(), name
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.pt", "best.pt", "previous.pt"}


def test_json_is_one_object_and_quiet_is_quiet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code, stdout, stderr = emaseg(
        capsys, "train", folder / "tiny.toml", "--out", out, "--device", "cpu", "--json", "-q"
    )
    assert code == 0
    (warning,) = stderr.splitlines()  # six steps leave classes that are never found
    assert warning.startswith("warning: these classes have an IoU of 0: ")
    assert "training images that show them, more iterations" in warning
    assert "--set " not in warning  # such a line stays whole, and a terminal would break it inside a word
    content = json.loads(stdout)
    assert set(content) == {"schema", "run", "steps", "best_miou", "interrupted"}
    assert content["run"] == str(out)
    assert (content["steps"], content["interrupted"]) == (6, False)
    assert 0 <= content["best_miou"] <= 1


def test_resuming_a_finished_run_is_fine(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "checkpoints" / "last.pt").read_bytes()
    code, stdout, stderr = emaseg(capsys, "train", folder / "tiny.toml", "--out", run, "--resume", "--device", "cpu")
    assert (code, stdout) == (0, f"{run}\n")
    assert "complete already" in stderr
    assert (run / "checkpoints" / "last.pt").read_bytes() == before


def test_a_taken_folder_is_refused_and_untouched(folder: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    code, stdout, stderr = emaseg(capsys, "train", folder / "tiny.toml", "--out", run)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert "--resume" in stderr.partition("try:")[2]
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_dry_run_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = emaseg(capsys, "train", folder / "tiny.toml", "--dry-run", "--device", "cpu")
    assert code == 0
    assert any(line.split()[:2] == ["steps", "6"] for line in stdout.splitlines())
    code, stdout, _ = emaseg(capsys, "train", folder / "tiny.toml", "--dry-run", "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(stdout)["plan"]["device"] == "cpu"
    assert list(tmp_path.iterdir()) == []


def test_without_out_runs_go_below_runs_and_resume_takes_the_newest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = emaseg(capsys, "train", folder / "tiny.toml", "--device", "cpu", "-q")
    assert code == 0
    out = Path(stdout.strip())
    assert out.parts[:2] == ("runs", "tiny")
    assert emaseg(capsys, "train", folder / "tiny.toml", "--device", "cpu", "-q", "--resume") == (0, f"{out}\n", "")


def test_eval_prints_one_object_and_keeps_it_in_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, _ = emaseg(capsys, "eval", run, "--json", "--device", "cpu")
    assert code == 0
    content = json.loads(stdout)
    assert set(content) == {
        *("schema", "miou", "pixel_accuracy", "mean_accuracy", "images", "per_class"),
        *("published", "protocol", "weights_sha256"),
        *("miou_labelled", "miou_interval", "frequency_weighted_iou", "mean_dice", "mean_precision"),
        *("boundary", "calibration"),
    }
    assert content["images"] == 4
    saved = {path.parent: json.loads(path.read_text()) for path in (run / "eval").glob("*/metrics.json")}
    folder = next(folder for folder, other in saved.items() if other == content)
    images = list(csv.DictReader((folder / "images.csv").read_text().splitlines()))
    assert [row["image"] for row in images] == [f"shapes/eval/{index:05d}" for index in range(4)]
    used = json.loads((folder / "environment.json").read_text())
    assert used["device"] == "cpu"
    assert used["packages"]["torch"] == importlib.metadata.version("torch")
    counts = list(csv.reader((folder / "confusion.csv").read_text().splitlines()))
    assert sum(int(cell) for row in counts[1:] for cell in row[1:]) == sum(int(row["pixels"]) for row in images)


def test_the_scores_of_another_split_say_so_and_leave_the_runs_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects readers from training scores that look like a run's result: in the table, the JSON and on the pages."""
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    before = (mine / "report.html").read_bytes()
    arguments = ("eval", mine, "--device", "cpu", "-q", "--out")
    changes = {"train": ("--split", "train"), "eval": ("--set", "data.eval_images=3")}
    for name, options in changes.items():
        code, stdout, stderr = emaseg(capsys, *arguments, tmp_path / name, *options)
        assert (code, stderr) == (0, "")
        assert f"({name})" in next(line for line in stdout.splitlines() if line.startswith("images "))
        assert json.loads((tmp_path / name / "metrics.json").read_text())["split"] == name
        assert f"of the split {name}, " in (tmp_path / name / "report.html").read_text()
        assert (mine / "report.html").read_bytes() == before
    code, stdout, _ = emaseg(capsys, *arguments, tmp_path / "own", "--split", "eval")
    assert code == 0
    assert any(line.split() == ["images", "4", "(eval)"] for line in stdout.splitlines())
    assert "split" not in json.loads((tmp_path / "own/metrics.json").read_text())
    assert (mine / "report.html").read_bytes() != before


def test_eval_of_somebody_elses_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the scores: the run's own page cannot be written anew, which is no reason to end without a result."""
    theirs = tmp_path / "theirs"
    shutil.copytree(run, theirs)
    (theirs / "report.html").unlink()
    (theirs / "report.html").mkdir()
    code, stdout, stderr = emaseg(capsys, "eval", theirs, "--out", tmp_path / "mine", "--device", "cpu")
    assert code == 0
    assert stdout.endswith(f"{tmp_path / 'mine/metrics.json'}\n")
    assert "warning: the run's own page" in stderr
    assert (tmp_path / "mine/report.html").is_file()


def test_evals_that_start_at_once_have_folders_of_their_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects both results: their folders are called by the second."""
    monkeypatch.setattr("emaseg.cli.eval._default_folder", lambda *_: tmp_path / "eval" / "now")
    for name in ("now", "now-2"):
        code, stdout, _ = emaseg(capsys, "eval", run, "--device", "cpu", "-q")
        assert (code, stdout.splitlines()[-1]) == (0, str(tmp_path / "eval" / name / "metrics.json"))


def test_eval_shows_every_class_and_the_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, stderr = emaseg(capsys, "eval", run, "--out", tmp_path, "--split", "train", "--device", "cpu", "-q")
    assert (code, stderr) == (0, "")
    lines = stdout.splitlines()
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert lines[-1] == str(tmp_path / "metrics.json")
    assert [line.split()[0] for line in lines[2 : 2 + len(content["per_class"])]] == [
        c["name"].split()[0] for c in content["per_class"]
    ]
    assert f"{100 * content['miou']:.2f}" in stdout
    assert content["images"] == 16


def test_eval_refuses_what_it_cannot_do(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No published figure to check against, a split that is not there, a network that is not the checkpoint's."""
    assert emaseg(capsys, "eval", run, "--check")[:2] == (2, "")
    assert emaseg(capsys, "eval", run, "--split", "val")[:2] == (2, "")
    assert emaseg(capsys, "eval", run, "--set", "model.bases=5")[:2] == (2, "")
    assert emaseg(capsys, "eval", tmp_path)[:2] == (3, "")


def test_eval_of_a_checkpoint_that_is_replaced_meanwhile(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects weights_sha256 while a run is trained: no score is told with the hash of a file that came after."""
    file = shutil.copy(run / "checkpoints/best.pt", tmp_path / "best.pt")
    newer = shutil.copy(run / "checkpoints/last.pt", tmp_path / "newer.pt")

    def replaced(*arguments: Any, **named: Any) -> Any:
        os.replace(newer, file)
        return open_engine(*arguments, **named)

    monkeypatch.setattr("emaseg.reference.open_engine", replaced)
    code, stdout, stderr = emaseg(capsys, "eval", file, "--device", "cpu", "-q", "--out", tmp_path / "out")
    assert (code, stdout) == (3, "")
    assert "best.pt: was replaced or changed while it was being read" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("published", "code"), [(0.0, 0), (100.0, 1)])
def test_check_compares_with_the_published_score(
    run: Path, tmp_path: Path, published: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "published.toml"
    recipe.write_text(f'{RECIPE}\n[published]\ntable = "a table"\nmiou = {published}\n')
    weights = run / "checkpoints" / "last.pt"
    arguments = ("eval", recipe, "--weights", weights, "--check", "--out", tmp_path, "--device", "cpu", "-q")
    got, stdout, stderr = emaseg(capsys, *arguments)
    assert got == code
    assert f"(published {published:.2f})" in stdout
    assert stderr.startswith("check passed" if code == 0 else "check failed")


TTA = """
[inference_tta]
scales = [0.5, 1.0]
flip = true
average = "probs_before_resize"

[published]
table = "a table"
miou = 12.5
miou_ms_flip = 25.0
"""


@pytest.fixture
def row(tmp_path: Path) -> Path:
    """The recipe of a row with a number for each of two protocols."""
    path = tmp_path / "row.toml"
    path.write_text(f"{RECIPE}{TTA}")
    return path


def test_tta_is_the_published_protocol_and_brings_its_number(
    row: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects --tta: another protocol, said in full; the same as asking for it key by key; --set wins over it."""
    content = {}
    for name, options in {
        "plain": "",
        "tta": "--tta",
        "by keys": '--set inference.scales=[0.5,1.0] --set inference.flip=true --set inference.average="probs_before_resize"',
        "no scales": "--tta --set inference.scales=[1.0]",
        "nothing left": '--tta --set inference.scales=[1.0] --set inference.flip=false --set inference.average="logits"',
        "other images": "--tta --split train",
    }.items():
        arguments = ("eval", row, "--weights", run, *options.split(), "--out", tmp_path, "--device", "cpu", "-q")
        code, stdout, stderr = emaseg(capsys, *arguments, "--json")
        assert (code, stderr) == (0, ""), name
        content[name] = json.loads(stdout)
    assert content["plain"]["protocol"] == "own size; whole; scales 1; logits"
    assert content["tta"]["protocol"] == "own size; whole; scales 0.5 1; flip; probs before resize"
    assert content["no scales"]["protocol"] == "own size; whole; scales 1; flip; probs before resize"
    assert content["by keys"] == content["tta"]
    assert content["nothing left"] == content["plain"]
    assert content["tta"]["per_class"] != content["plain"]["per_class"]
    assert {name: one["published"] for name, one in content.items()} == {
        "plain": 0.125,
        "tta": 0.25,
        "by keys": 0.25,
        "no scales": None,
        "nothing left": 0.125,
        "other images": None,
    }


def test_a_number_of_another_protocol_is_not_shown(
    row: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects readers from comparing what cannot be compared: in the table, and with --check."""
    arguments = ("eval", row, "--weights", run, "--out", tmp_path, "--device", "cpu", "-q")
    assert "(published 25.00)" in emaseg(capsys, *arguments, "--tta")[1]
    code, stdout, _ = emaseg(capsys, *arguments, "--set", "inference.flip=true", "--split", "train")
    assert code == 0
    assert "12.50" not in stdout
    assert "not comparable; changed: inference.flip, data (the training images)" in stdout
    code, stdout, stderr = emaseg(capsys, *arguments, "--set", "inference.flip=true", "--check")
    assert (code, stdout) == (2, "")
    assert "no published mIoU for this protocol (own size; whole; scales 1; flip; logits): not comparable" in stderr
    code, stdout, stderr = emaseg(capsys, "eval", run, "--tta")
    assert (code, stdout) == (2, "")
    assert "--tta: tiny has no [inference_tta]" in stderr


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)
    return path


def test_predict_says_what_it_wrote(run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code, stdout, _ = emaseg(capsys, "predict", photo, "--weights", run, "--out", out, "--json", "--device", "cpu")
    assert code == 0
    content = json.loads(stdout)
    assert set(content) == {"schema", "image", "mask", "files", "width", "height", "classes", "tiles", "error"}
    assert (content["width"], content["height"], content["error"]) == (56, 40, None)
    assert sum(c["share"] for c in content["classes"]) == pytest.approx(1.0, abs=1e-3)
    assert {path.name for path in out.iterdir()} == {"photo_mask.png", "photo_overlay.png"}
    with Image.open(out / "photo_mask.png") as mask:
        assert mask.size == (56, 40)
    code, stdout, _ = emaseg(capsys, "predict", photo, "--weights", run, "--out", out, "--device", "cpu")
    assert code == 0
    assert stdout.startswith(f"{photo} -> {out / 'photo_mask.png'}  ")


def test_predict_goes_on_after_a_broken_image_and_exits_1(
    run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:100])
    out = tmp_path / "out"
    code, stdout, stderr = emaseg(
        capsys, "predict", broken, photo, "--weights", run, "--out", out, "--save", "mask", "--device", "cpu"
    )
    assert code == 1
    assert len(stdout.splitlines()) == 1
    assert str(broken) in stderr
    assert "1 of 2 images failed" in stderr
    assert {path.name for path in out.iterdir()} == {"photo_mask.png"}


@needs_fork
def test_predict_reads_stdin_and_writes_the_mask_to_stdout(run: Path, photo: Path) -> None:
    command = forked(["predict", "-", "--weights", run, "--out", "-", "--device", "cpu"], photo.read_bytes())
    code, stdout, stderr = command.ended()
    assert code == 0, stderr.decode()
    assert stdout.startswith(b"\x89PNG")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_saves_and_resume_finishes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 75, the command that continues on stderr, and the run folder on stdout; then --resume ends with 0."""
    out = tmp_path / "run"
    changes = ("--set", "train.iterations=60", "--device", "cpu")
    command = [sys.executable, "-m", "emaseg.cli", "train", str(folder / "tiny.toml"), "--out", str(out), *changes]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("train 1/60"):
                break
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert stdout == f"{out}\n"
    assert f"--out {out} --resume" in stderr
    assert (out / "checkpoints" / "last.pt").is_file()
    code, stdout, stderr = emaseg(capsys, "train", folder / "tiny.toml", "--out", out, "--resume", *changes)
    assert (code, stdout) == (0, f"{out}\n")
    assert "train 60/60" in stderr
    assert "train 1/60" not in stderr
