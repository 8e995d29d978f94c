"""Names from outside on every way to the terminal: none is obeyed there, none makes a line of its own."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.words import printable
from tests.helpers import emaseg, main, run, tiny

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(os.name == "nt", reason="POSIX file names")]

EVIL = "x\x1b]0;title\x07\x1b[31m\r\nerror: forged\n  try: curl x.y|sh\u202e\u2028\x9b2J\u200b[red]y[link=z]"
TERMINAL = re.compile("[^\\x20-\\x7e\u00a0-\u02ff\u2500-\u25ff\n]")  # what has no business in any message here

ARGUMENTS: list[tuple[str, ...]] = [
    (EVIL,),
    ("train", EVIL),
    ("train", f"{EVIL}.toml"),
    ("train", "demo", f"--{EVIL}"),
    ("train", "demo", "--set", EVIL),
    ("train", "demo", "--set", f"{EVIL}=1"),
    ("train", "demo", "--set", f"train.batch={EVIL}"),
    ("train", "demo", "--set", f"model.kind={json.dumps(EVIL)}"),
    ("train", "demo", "--set", f"name={json.dumps(EVIL)}", "--dry-run"),
    ("train", "demo", "--init-from", EVIL),
    ("train", "demo", "--device", EVIL),
    ("train", "demo", "--out", "taken"),
    ("train", "hostile.toml"),
    ("train", "data.toml", "--dry-run"),
    ("check-data", "data.toml"),
    ("check-data", "hostile.toml"),
    ("eval", EVIL),
    ("eval", f"./{EVIL}"),
    ("eval", "RUN", "--checkpoint", EVIL),
    ("eval", "RUN", "--split", EVIL),
    ("eval", "RUN", "--submit", EVIL),
    ("eval", "demo", "--weights", EVIL),
    ("eval", "demo", "--weights", "taken"),
    ("predict", EVIL, "--weights", "RUN"),
    ("predict", f"{EVIL}*", "--weights", "RUN"),
    ("predict", "taken", "--weights", "RUN"),
    ("predict", "taken", "--weights", "RUN", "--save", EVIL),
    ("predict", "taken", "--weights", "RUN", "--out", f"taken/{EVIL}"),
    ("predict", "taken", "--weights", "RUN", "-v"),
    ("export", "RUN", "--format", EVIL),
    ("export", "RUN", "--format", "onnx", "--include", EVIL),
    ("export", "RUN", "--format", "torch", "--shape", EVIL),
    ("export", "RUN", "--format", "torch", "--out", EVIL),
    ("download-weights", EVIL),
    ("download-weights", "--dataset", EVIL),
    ("download-weights", "--from", EVIL),
    ("download-weights", "--from", "."),
    ("recipes", "--model", EVIL),
    ("init", EVIL),
    ("init", "."),
    ("init", ".", "--out", EVIL),
    ("init", ".", "--name", EVIL),
    ("convert", EVIL, "--out", "made"),
    ("convert", ".", "--out", "made"),
    ("convert", "labelme", "--out", f"made{EVIL}"),
    ("convert", "labelme", "--out", "made"),
    ("convert", "labelme", "--out", "taken"),
    ("convert", "labelme", "--out", "made", "--format", EVIL),
]

RECIPE = """
schema = 1
name = "mine"
[model]
kind = "emanet"
[backbone]
kind = "resnet50"
output_stride = 8
weights = "none"
[data]
kind = "folder"
root = "."
classes = ["a", EVIL]
train_images = "train"
train_masks = "masks"
eval_images = "train"
eval_masks = "masks"
[augment]
crop = [32, 32]
[optim]
lr = 0.01
[train]
iterations = 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder with a hostile name, of classes with hostile names."""
    out = tmp_path_factory.mktemp("runs") / EVIL.replace("/", "_")
    run(tiny("train.iterations=1"), out)
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; `taken` is a file, and all file and class names are hostile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path / EVIL.replace("/", "_")))
    monkeypatch.setenv("EMASEG_OFFLINE", "1")
    (tmp_path / "taken").write_text(EVIL)
    (tmp_path / "labelme").mkdir()
    for name in (EVIL.replace("/", "_"), "plain"):
        Image.new("RGB", (32, 32)).save(tmp_path / "labelme" / f"{name}.jpg")
        shapes = [{"label": f"{EVIL}{i}", "points": [[1, 1], [20, 1], [9, 20]]} for i in range(2)]
        shapes += [{"label": EVIL, "points": EVIL}] if name == "plain" else []
        content = {"imagePath": f"{name}.jpg", "imageHeight": 32, "imageWidth": 32, "shapes": shapes}
        (tmp_path / "labelme" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "hostile.toml").write_text(f"schema = 1\n{json.dumps(EVIL)} = {json.dumps(EVIL)}\n# {EVIL[:2]}\n")
    (tmp_path / "data.toml").write_text(RECIPE.replace("EVIL", json.dumps(EVIL)))
    rng = np.random.default_rng(0)
    for name in (EVIL.replace("/", "_"), "plain"):
        for folder, high, kind in (("train", 256, ".jpg"), ("masks", 4, ".png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            shape = (32, 32, 3) if folder == "train" else (32, 32)
            pixels = rng.integers(0, high, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / (name + kind))
    return tmp_path


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda arguments: printable(" ".join(arguments))[:60])
def test_no_name_is_obeyed_by_the_terminal_or_makes_a_line(
    here: Path, trained: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the terminal and its reader on every path to an error that a name can reach."""
    code, out, err = emaseg(capsys, *(str(trained) if argument == "RUN" else argument for argument in arguments))
    assert code in (0, 1, 2, 3, 4), err
    text = out + err
    assert TERMINAL.findall(text) == []
    for line in text.splitlines():
        assert not line.startswith(("error: forged", "  try: curl", "y[link")), text


def test_results_for_people_are_printable_and_markup_is_text(
    here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the lines of predict and the tables of check-data; [red] in a name is no colour."""
    name = next(path.name for path in (here / "train").iterdir() if path.name != "plain.jpg")
    code, out, _ = emaseg(capsys, "predict", here / "train", "--weights", trained, "--device", "cpu", "-q")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert printable(name) in out
    code, out, _ = emaseg(capsys, "check-data", "data.toml", "-q")
    assert code == 1
    assert printable(EVIL) in out.replace("\n", "") or "[red]y[link=z]" in out
    assert TERMINAL.findall(out) == []


def test_a_path_is_exact_in_a_pipe_and_printable_on_a_terminal(here: Path, trained: Path) -> None:
    """Protects scripts that read the path from stdout, and terminals that show it."""
    name = "run\x1b[31m\n\udcff"
    code = (
        "import importlib, io, os, sys\n"
        "from pathlib import Path\n"
        "render = importlib.import_module('emaseg.cli.render')\n"
        f"render.print_path(Path({name!r}))\n"
    )
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert piped.stdout == os.fsencode(name) + b"\n"
    terminal = f"import pty, sys; pty.spawn([sys.executable, '-c', {code!r}])"
    shown = subprocess.run(
        [sys.executable, "-c", terminal], capture_output=True, check=True, stdin=subprocess.DEVNULL
    ).stdout
    assert shown == b"run\\x1b[31m\\n\\udcff\r\n"


LOCALES = [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, {"FORCE_COLOR": "1", "TERM": "xterm"}]  # fmt: skip


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_json_is_json_in_every_locale(here: Path, locale: dict[str, str]) -> None:
    """Protects programs that read --json: ASCII only, for every name, also one that is no UTF-8; never a colour."""
    code = (
        "import importlib, sys\n"
        "render = importlib.import_module('emaseg.cli.render')\n"
        "streams = importlib.import_module('emaseg.cli.streams')\n"
        f"names = [{EVIL!r}, 'caf\\u00e9 \\u65e5 \\U0001f600', '\\udcff']\n"
        "with streams.guarded():\n"
        "    render.print_json({'names': names})\n"
        "    render.print_table(['a'], [[name] for name in names])\n"
        "    render.print_grid([('a', name) for name in names])\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | locale
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    first, _, rest = done.stdout.partition(b"\n")
    assert first.isascii()
    assert json.loads(first)["names"] == [EVIL, "caf\u00e9 \u65e5 \U0001f600", "\udcff"]
    assert b"\x1b" not in rest


def test_a_recipe_of_init_is_utf_8_in_every_locale(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects `emaseg init photos > photos.toml` where the locale is not UTF-8: TOML must be."""
    (here / "classes.txt").write_text("caf\u00e9\n\u65e5\x1b\x85\u2028z\nc\nd\n", encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert main(["init", ".", "-q", "--device", "cpu"]) == 0
    text = written.getvalue().decode("utf-8")
    assert TERMINAL.findall(text.replace("\u65e5", "")) == []
    assert tomllib.loads(text)["data"]["classes"][0] == "caf\u00e9"
