"""`emaseg predict` on the command line: what is refused before any work, and how an interrupted job goes on."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.forked import forked, needs_fork
from tests.helpers import emaseg, main, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TWO_RANKS = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny("train.iterations=1"), out)
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one photograph; nothing may be downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path / "cache"))
    picture(tmp_path / "photo.png")
    return tmp_path


def picture(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)


def test_a_second_run_in_the_same_folder_predicts_the_same_images(
    here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects a folder of photographs from filling with masks of masks."""
    arguments = ("predict", ".", "--weights", trained, "--device", "cpu", "-q")
    first = emaseg(capsys, *arguments)
    assert first[0] == 0
    assert emaseg(capsys, *arguments) == first
    assert emaseg(capsys, *arguments, "--resume")[1].startswith("photo.png -> predictions/photo_mask.png")
    assert {path.name for path in (here / "predictions").rglob("*")} == {"photo_mask.png", "photo_overlay.png"}


def test_overwrite_is_said_where_it_would_help(here: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects a drawing of the user's until they say that it may go."""
    (here / "predictions").mkdir()
    mask = here / "predictions/photo_mask.png"
    picture(mask)
    drawn = mask.read_bytes()
    arguments = ("predict", "photo.png", "--weights", trained, "--device", "cpu", "-q")
    code, _, err = emaseg(capsys, *arguments)
    assert code == 1
    assert "--overwrite replaces it" in err
    assert mask.read_bytes() == drawn
    assert emaseg(capsys, *arguments, "--overwrite")[0] == 0
    assert mask.read_bytes() != drawn


def test_overwrite_leaves_the_images_of_other_shards(
    here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects an image that another process is to read, and whose name is that of a result."""
    other = here / "photo_mask.png"
    picture(other)
    before = other.read_bytes()
    arguments = ("predict", "photo.png", "photo_mask.png", "--weights", trained, "--out", ".", "--device", "cpu", "-q")
    code, _, err = emaseg(capsys, *arguments, "--shard", "1/2", "--overwrite")
    assert code == 1
    assert "is an input itself" in err
    assert other.read_bytes() == before


def test_the_part_that_a_launcher_gives_is_said(
    here: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from half of the masks without a word: a launcher's variables may be left in a shell or a notebook."""
    for name in ("a.png", "b.png", "c.png"):
        picture(here / name)
    for name, value in TWO_RANKS.items():
        monkeypatch.setenv(name, value)
    arguments = ("predict", ".", "--weights", trained, "--save", "mask", "--device", "cpu")
    code, out, err = emaseg(capsys, *arguments)
    assert (code, len(out.splitlines())) == (0, 2)
    assert "process 1 of 2 (the launcher's variables): 2 of 4 images" in err.splitlines()
    assert emaseg(capsys, *arguments, "-q") == (0, out, "")
    for option in (("--shard", "1/2"), ("--shard=1/1",)):
        assert "launcher" not in emaseg(capsys, *arguments, *option)[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('predict "" --weights RUN', "IMAGE: an empty name was given"),
        ('predict photo.png --weights ""', "--weights: an empty name was given"),
        ('predict photo.png --recipe "" --weights RUN', "--recipe: an empty name was given"),
        ('predict photo.png --weights RUN --out ""', "--out: an empty name was given"),
        ("predict photo.png --weights RUN --out taken.png", "try: --out is the folder for the results; for one mask"),
        ("predict photo.png --weights RUN --out taken.png/deep", "--out taken.png/deep: taken.png is a file"),
        ("predict photo.png --weights RUN --device gpu", 'did you mean "cuda"?'),
        ("predict . --weights RUN --out -", "--out -: 2 images, but stdout holds one mask"),
        ("predict photo.png --weights RUN --save overlay,json --out -", "nothing of --save\n  try: leave --save out"),
        ("predict photo.png --weights RUN --bases 4 --out -", "nothing of --bases\n  try: leave --bases out; or"),
        (
            "predict photo.png --weights RUN --save mask,probabilities --top-k 2 --json --out -",
            "try: leave --save and --top-k and --json out; or",
        ),
        ("predict photo.png taken.png --weights RUN --out -", "to stdout\n  try: name one image; or"),
        ("predict photo.png --weights RUN --top-k 2", "--top-k 2: no probabilities are saved"),
        (
            "predict photo.png --weights RUN --top-k 99 --save probabilities",
            "top_k: this network has 5 classes, not 99",
        ),
    ],
)
def test_refused_before_any_work(
    here: Path, trained: Path, arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from work that is lost, done on the wrong images, or with other weights than the reader thinks."""
    picture(here / "taken.png")
    before = sorted(here.rglob("*"))
    code, out, err = emaseg(capsys, *shlex.split(arguments.replace("RUN", shlex.quote(str(trained)))))
    assert (code, out) == (2, "")
    assert words in err
    assert sorted(here.rglob("*")) == before


def test_a_mask_on_stdout_comes_with_what_must_be_said(
    here: Path, trained: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Protects readers from tiles that they do not know of: another protocol is told where there is no line of results."""
    Image.new("RGB", (500, 400)).save(here / "large.png")
    arguments = ["predict", "large.png", "--weights", str(trained), "--device", "cpu", "--max-memory", "8M"]
    for options in ([], ["--save", "mask"], ["-q"]):
        assert main([*arguments, "--out", "-", *options]) == 0
        out, err = capfdbinary.readouterr()
        assert out.startswith(b"\x89PNG")
        said = b"warning: large.png: 500 x 400 pixels do not fit into memory whole; predicted in "
        assert err.startswith(said) if options != ["-q"] else err == b""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_the_device_is_looked_at_before_weights_are_downloaded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from a download of hundreds of MB that ends in "no such device"."""
    code, out, err = emaseg(capsys, "predict", "photo.png", "--device", "cuda")
    assert (code, out) == (4, "")
    assert err == "error: --device cuda: PyTorch sees no CUDA device here\n  try: use --device cpu\n"
    assert not (here / "cache").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_no_mask_on_a_terminal(here: Path, trained: Path) -> None:
    """Protects the screen from the bytes of a PNG."""
    main, side = os.openpty()
    command = [sys.executable, "-m", "emaseg.cli", "predict", "photo.png", "--weights", str(trained), "--out", "-"]
    try:
        done = subprocess.run(command, stdout=side, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(side)
        os.close(main)
    assert done.returncode == 2
    assert "--out - > mask.png" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_a_narrow_terminal_breaks_the_line_of_an_image_between_words(
    here: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects names and numbers on 40 columns: none is broken inside, and nothing is lost."""
    monkeypatch.setenv("COLUMNS", "40")
    ours, side = os.openpty()
    try:
        with open(side, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            assert main(["predict", "photo.png", "--weights", str(trained), "--device", "cpu"]) == 0
            terminal.flush()
            shown = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
    lines = shown.splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("photo.png -> ")
    assert "predictions/photo_mask.png" in shown.split()
    assert shown.split()[-1].endswith("%")


@needs_fork
def test_ctrl_c_says_how_to_go_on(here: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the hours of a long job: exit code 130, --resume named, and what was done stays done."""
    (here / "many").mkdir()
    for number in range(200):
        os.link(here / "photo.png", here / f"many/{number:03}.png")
    arguments = ["predict", *(f"many/{number:03}.png" for number in range(200)), "--weights", str(trained)]
    arguments += ["--save", "mask", "--device", "cpu"]
    command = forked(arguments)
    command.stdout.readline()
    command.interrupt()
    code, _, stderr = command.ended()
    assert code == 130, stderr
    assert b"error: interrupted after " in stderr
    assert stderr.endswith(b"of 200 images\n  try: go on with the same command and --resume\n")
    code, stdout, _ = emaseg(capsys, *arguments, "--resume", "-q")
    assert code == 0
    assert 0 < sum(line.endswith("(was there)") for line in stdout.splitlines()) < 200
