"""Links in a run folder: a stranger's lead nothing of ours into other files, and people's own go on to serve."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from emaseg.errors import RecipeError
from emaseg.events import Note
from emaseg.recipe import Recipe
from tests.helpers import equal, run, tiny
from tests.training.test_train import last, untimed

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(os.name == "nt", reason="POSIX links")]


def few() -> Recipe:
    return tiny("train.iterations=6", "train.evaluate_every=3", "data.eval_images=2")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[Path, Path]:
    """A whole run, and one that was stopped before its end."""
    top = tmp_path_factory.mktemp("runs")
    run(few(), top / "whole")
    run(few(), top / "cut", stop_after=4)
    return top / "whole", top / "cut"


@pytest.fixture
def cut(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    shutil.copytree(pair[1], tmp_path / "run")
    return tmp_path / "run"


def test_a_strangers_links_lead_nowhere(pair: tuple[Path, Path], cut: Path, tmp_path: Path) -> None:
    """Protects files outside the run: an archive keeps links, and --resume adds lines to log.txt and the metrics."""
    names = ("log.txt", "metrics.csv", "metrics.jsonl")
    for name in names:
        (tmp_path / name).write_text("mine\n")
        (cut / name).unlink()
        (cut / name).symlink_to(tmp_path / name)
    events = run(few(), cut, resume=True)
    said = "\n".join(event.text for event in events if isinstance(event, Note) and event.warning)
    assert f"{cut / 'log.txt'}: is a link" in said
    for name in names:
        assert (tmp_path / name).read_text() == "mine\n"
        assert (cut / name).is_file()
        assert not (cut / name).is_symlink()
        assert (cut / f"{name}.damaged").is_symlink()
    assert equal(last(pair[0]), last(cut))


def test_a_run_that_lies_in_several_places_goes_on(pair: tuple[Path, Path], cut: Path, tmp_path: Path) -> None:
    """Protects people who put checkpoints or metrics on another disk, or reach a run through a link; and on that disk
    the half-written files of others. A backup that is made of second names stays as it was."""
    disk, way = tmp_path / "disk", tmp_path / "way"
    disk.mkdir()
    for name in ("checkpoints", "metrics.csv"):
        (cut / name).rename(disk / name)
        (cut / name).symlink_to(disk / name)
    for name in ("log.txt", "metrics.jsonl"):
        os.link(cut / name, disk / name)
    before = {name: (disk / name).read_bytes() for name in ("metrics.csv", "metrics.jsonl", "log.txt")}
    theirs = {".theirs.part", ".data.bin.0a1b2c3d.part", ".last.pt.another name.part"}
    ours = {".last.pt.0a1b2c3d.part", ".step_00000004.pt.0a1b2c3d.part", ".previous.pt.link.part"}
    for name in theirs | ours:
        (disk / "checkpoints" / name).write_bytes(b"half")
    way.symlink_to(cut)
    run(few(), way, resume=True)
    assert equal(last(pair[0]), last(cut))
    assert untimed(pair[0]) == untimed(cut)
    assert (cut / "log.txt").read_bytes().startswith(before["log.txt"])
    assert (cut / "checkpoints").is_symlink()
    assert {path.name for path in (disk / "checkpoints").glob(".*")} == theirs
    assert {name: (disk / name).read_bytes() for name in before} == before


def test_the_checkpoints_of_another_run_are_not_written_over(pair: tuple[Path, Path], cut: Path) -> None:
    """Protects a run from another one whose checkpoints are a link into it: exit 2, and neither is touched."""
    shutil.copytree(pair[0], cut.parent / "other")
    shutil.rmtree(cut / "checkpoints")
    (cut / "checkpoints").symlink_to(cut.parent / "other/checkpoints")
    before = {path: path.read_bytes() for path in cut.parent.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match="leads into another run"):
        run(few(), cut, resume=True)
    assert {path: path.read_bytes() for path in cut.parent.rglob("*") if path.is_file()} == before
