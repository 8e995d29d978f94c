"""What eval and init are told to write, and what stands there already."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers import emaseg, run, tiny

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(os.name == "nt", reason="POSIX links")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny("train.iterations=1"), out)
    return out


def test_eval_replaces_its_own_scores_and_nobody_elses(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects a metrics.json of another program in the folder that --out names; a link is not written through."""
    arguments = ("eval", trained, "--out", tmp_path, "--device", "cpu", "-q")
    file = tmp_path / "metrics.json"
    for content in ('{"accuracy": 1}', "", "\0"):
        file.write_text(content)
        code, out, err = emaseg(capsys, *arguments)
        assert (code, out) == (2, "")
        assert f"{file}: already exists, and no evaluation wrote it" in err
        assert file.read_text() == content
    file.unlink()
    file.symlink_to("precious")
    assert emaseg(capsys, *arguments)[0] == 2
    assert not (tmp_path / "precious").exists()
    file.unlink()
    for _ in range(2):
        assert emaseg(capsys, *arguments)[0] == 0
        assert json.loads(file.read_text())["schema"] == 1


def test_eval_replaces_no_table_or_page_of_others(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the images.csv or report.html of a project's own folder, and the page of another run; a run's own page and
    an earlier evaluation are written anew."""
    for name in ("images.csv", "confusion.csv", "environment.json", "report.html"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text("mine")
        code, _, err = emaseg(capsys, "eval", trained, "--out", out, "--device", "cpu", "-q")
        assert code == 2
        assert f"{out / name}: already exists, and no evaluation wrote it" in err
        assert (out / name).read_text() == "mine"
    for _ in range(2):
        assert emaseg(capsys, "eval", trained, "--out", trained, "--device", "cpu", "-q")[0] == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_eval_waits_for_no_pipe(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from a command that hangs: opening a pipe waits for its other end."""
    os.mkfifo(tmp_path / "metrics.json")
    assert emaseg(capsys, "eval", trained, "--out", tmp_path, "--device", "cpu", "-q")[0] == 2


def test_init_and_submit_do_not_replace_a_link_to_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects a link to a disk that is not there at the moment."""
    for name, arguments in (("a.toml", ("init", tmp_path, "--out")), ("a.zip", ("eval", trained, "--submit"))):
        place = tmp_path / name
        place.symlink_to("nothing")
        code, _, err = emaseg(capsys, *arguments, place)
        assert code == 2
        assert "already exists" in err
        assert place.is_symlink()


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", LONG),
        ("runs", LONG, LONG),
        ("init", LONG),
        ("convert", LONG, "--out", "new"),
        ("eval", "run", "--out", LONG),
        ("eval", "run", "--checkpoint", LONG),
        ("eval", "run", "--submit", f"{LONG}.zip"),
    ],
    ids=lambda arguments: "-".join(arguments).replace(LONG, "x"),
)
def test_a_name_that_is_too_long_is_a_wrong_name(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from "this is a bug": systems limit the length of names, and Python before 3.14 raises what they say."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    code, out, err = emaseg(capsys, *arguments)
    assert code in (2, 3)
    assert out == ""
    assert LONG in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
