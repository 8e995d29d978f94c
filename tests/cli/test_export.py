"""`emaseg export` as a user types it: the file, what is printed, and every refusal's exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emaseg.data.sets.build import build_dataset
from tests.exporting.made import checkpoint, recipe
from tests.helpers import emaseg, needs_programs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(recipe("emanet"), tmp_path_factory.mktemp("trained") / "tiny.pt")


def photo(path: Path) -> Path:
    Image.fromarray(build_dataset(recipe("emanet").data, "eval").open(2).image()).save(path)
    return path


@needs_programs(any_size=True)
def test_the_printed_command_and_python_give_the_same_mask(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects what the user copies: the command and the program run and agree, the second without emaseg or torch.

    stdout holds the path alone, and a second export does not write over the program.
    """
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "photo.png").rename(tmp_path / "photo.jpg")
    code, out, err = emaseg(
        capsys, "export", trained, "--format", "onnx", "--include", "normalize,argmax", "--shape", "64x80",
        "--out", "model.onnx", "--snippet", "run it.py",
    )  # fmt: skip
    assert (code, out) == (0, "model.onnx\n")
    assert err.count("of the pixels agree") == 4
    line = next(line for line in err.splitlines() if line.startswith("run it:  "))
    assert line == "run it:  emaseg predict photo.jpg --weights model.onnx"
    assert emaseg(capsys, *line.split()[3:])[0] == 0
    assert "or without emaseg:  python 'run it.py' IMAGE\n" in err
    python = Path("run it.py").read_text()
    assert python.startswith("# pip install onnxruntime numpy 'pillow>=10.1'\n")
    guard = "import sys\nsys.modules['emaseg'] = sys.modules['torch'] = None\n"
    subprocess.run([sys.executable, "-c", guard + python], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    code, out, err = emaseg(
        capsys, "export", trained, "--format", "torch", "--out", "new.pt2", "--snippet", "run it.py"
    )
    assert (code, out, "--snippet run it.py: already exists" in err) == (2, "", True)
    own, theirs = Image.open("predictions/photo_mask.png"), Image.open("mask.png")
    assert np.array_equal(np.array(own), np.array(theirs))
    assert own.getpalette()[:15] == theirs.getpalette()[:15]  # type: ignore[index]


@needs_programs(any_size=True)
def test_json_and_eval_on_the_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects scripts: one object, and the scores of the file beside the checkpoint's, with what differs in their making:
    images stretched to the file's one size are no published protocol."""
    file = tmp_path / "model.pt2"
    code, out, err = emaseg(
        capsys, "export", trained, "--format", "torch", "--shape", "64x80", "--out", file, "--json", "-q"
    )
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert content["file"] == str(file)
    assert len(content["checks"]) == 4
    assert max(check["difference"] for check in content["checks"]) <= content["tolerance"]["difference"] == 1e-3
    assert "torch.export.load" in content["snippet"]
    scores, ways = [], []
    for reference in (trained, file):
        code, out, _ = emaseg(capsys, "eval", reference, "--json", "-q", "--out", tmp_path / "eval")
        assert code == 0
        scores.append(json.loads(out)["miou"])
        ways.append(json.loads(out)["protocol"].split("; ")[0])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert ways == ["own size", "stretched to 80x64"]
    code, _, err = emaseg(capsys, "eval", file, "--check", "--set", 'published={table="t", miou=0.0}')
    assert (code, "not comparable; every image is stretched to 80x64" in err) == (2, True), err
    code, _, err = emaseg(capsys, "eval", file, "--em-iterations", "1")
    assert (code, "are fixed" in err) == (2, True)
    code, _, err = emaseg(capsys, "export", file, "--format", "torch", "--out", tmp_path / "again.pt2")
    assert (code, "is exported already" in err) == (2, True)


def test_refusals(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the exit codes: usage 2, weights of other classes 3, a target that cannot be written 4."""
    (tmp_path / "file").touch()
    classes = 'data={kind="folder", root="x", classes=["a", "b"], train_images="i", train_masks="m", eval_images="i", eval_masks="m"}'
    cases = (
        (2, "--format torch", ["--format", "torch", "--precision", "int8", "--out", tmp_path / "a.pt2"]),
        (2, "sides must be", ["--format", "torch", "--shape", "4x4", "--out", tmp_path / "a.pt2"]),
        (4, "file", ["--format", "weights", "--out", tmp_path / "file" / "a.pt"]),
        (4, "too long", ["--format", "weights", "--out", tmp_path / f"{'x' * 300}.pt"]),
        (
            3,
            "it has 5 classes, the recipe has 2",
            ["--format", "weights", "--out", tmp_path / "a.pt", "--set", classes],
        ),
        (
            3,
            "no such folder",
            [
                *("--format", "onnx", "--shape", "64x64", "--precision", "int8"),
                *("--calibrate", tmp_path / "no", "--out", tmp_path / "a.onnx"),
            ],
        ),
    )
    for wanted, words, arguments in cases:
        if "onnx" in arguments:
            pytest.importorskip("onnxscript")
        code, out, err = emaseg(capsys, "export", trained, *arguments)
        assert (code, out) == (wanted, ""), err
        assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@needs_programs(any_size=True)
def test_a_failed_comparison_is_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects pipelines: nothing under the final name, a table of what was compared, exit code 1."""
    path = checkpoint(recipe("emanet"), tmp_path / "large.pt")
    content = torch.load(path, weights_only=True)
    content["model"]["classifier.weight"] *= 1e6
    torch.save(content, path)
    options = ("--format", "torch", "--precision", "fp16", "--shape", "64x64", "--out", tmp_path / "half.pt2")
    code, out, err = emaseg(capsys, "export", path, *options)
    assert (code, out) == (1, "")
    assert err.count("(too far)") == 4
    assert "not written" in err
    assert not (tmp_path / "half.pt2").exists()
