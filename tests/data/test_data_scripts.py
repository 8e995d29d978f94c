"""data_scripts/: a complete download passes, and whatever differs from the published set ends with exit code 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.data.made import image, label
from tests.data.sets import test_ade20k, test_cityscapes, test_cocostuff

SCRIPTS = Path(__file__).parents[2] / "data_scripts"


def script(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A script of data_scripts as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name)


def check(scripts: ModuleType, root: Path, published: dict[str, int], optional: tuple[str, ...] = ("test",)) -> int:
    code: int = scripts.verify(root, published, scripts.open_split, 0, optional)
    return code


def test_a_complete_set_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts, label shares and layout are printed; test images are optional."""
    root = test_ade20k.tree(tmp_path)
    assert check(script(monkeypatch, "ade20k"), root, {"train": 2, "val": 1, "test": 4}) == 0
    out = capsys.readouterr().out
    for words in ("train              2          2            2    33.3 %  ok", "not here", "50.000 %        3  wall"):
        assert words in out
    assert "everything agrees" in out


def test_findings_end_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong counts, wrong sizes, wrong values and missing pairs, each with its file."""
    scripts = script(monkeypatch, "cityscapes")
    root = test_cityscapes.tree(tmp_path)
    published = {"train": 2, "val": 1, "test": 1}
    assert check(scripts, root, published) == 0
    assert check(scripts, root, {**published, "train": 3, "test": 9}) == 1
    assert "train: 2 images, published are 3\ntest: 1 images, published are 9\n" in capsys.readouterr().out
    frame = root / "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png"
    label(frame, [7], size=(3, 3))
    assert check(scripts, root, published) == 1
    assert f"its mask {frame} is 3 x 3" in capsys.readouterr().out
    label(frame, [99])
    assert check(scripts, root, published) == 1
    assert f"{frame}: the mask holds 99" in capsys.readouterr().out
    frame.unlink()
    assert check(scripts, root, published) == 1
    assert "val: 1 of 1 images" in capsys.readouterr().out
    path = image(root / "leftImg8bit/test/berlin/berlin_000001_000019_leftImg8bit.png")
    path.write_bytes(path.read_bytes()[:20])
    assert check(scripts, root, published) == 1
    assert str(path) in capsys.readouterr().out


def test_cocostuff_asks_which_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = script(monkeypatch, "cocostuff")
    assert scripts.main([str(test_cocostuff.tree_10k(tmp_path)), "--set", "10k"]) == 1
    assert "test: 1 images, published are 1,000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        scripts.main([str(tmp_path)])
    assert scripts.main([str(tmp_path / "none"), "--set", "164k"]) == 3


def test_a_script_runs_from_anywhere(tmp_path: Path) -> None:
    """As its docstring says, and without a traceback."""
    root = test_ade20k.tree(tmp_path)
    call = [sys.executable, str(SCRIPTS / "ade20k.py"), str(root), "--sample", "1"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "train: 2 images, published are 20,210" in done.stdout
