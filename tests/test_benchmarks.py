"""The comparison with other packages: it measures what it says, and says at once what it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from emaseg.bench import environment
from tests.benchmarks.peers import environment as peers
from tests.benchmarks.peers import measure, pictures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("ENV nothing", "no such part: nothing; possible: forward-2, "),
        ("ENV growth --images /no/such", "--images /no/such: no such folder"),
        ("ENV growth --images ENV", "--images ENV: no such folder, or no picture in it"),
        ("ENV growth --small ENV", "--small ENV: no such folder, or no picture in it"),
        ("ENV growth --results none/r.json", "--results none/r.json: there is no such folder"),
        ("ENV predict", "bin/python: not there; python -m tests.benchmarks.peers.environment makes"),
    ],
)
def test_what_cannot_be_measured_is_told_before_the_work(
    arguments: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects hours of measuring that end in nothing, or in figures of noise instead of photographs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ENV").mkdir()
    with pytest.raises(SystemExit) as ended:
        measure.main(arguments.split())
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.replace("\\", "/")


def test_the_environment_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        peers.main([])
    assert ended.value.code == 2
    assert "folder" in capsys.readouterr().err


def test_rounds_of_other_peers_or_pictures_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a table from times of other versions and of other photographs, and from files that do not tell these."""
    ran: list[str] = []

    def process(name: str, *_: object) -> dict[str, float]:
        ran.append(name)
        return {"wall": 1.0, "cpu": 1.0, "peak": 1.0}

    monkeypatch.setattr(measure, "_process", process)
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "photo.png")
    finished = tmp_path / "rounds"
    old = {"about": {"what": "x", **environment(torch.device("cpu"))}, "ways": {"mmseg": process("old")}}
    finished.write_text(f"{json.dumps(old)}\n")

    def measured(images: Path, version: str, small: Path | None = None) -> int:
        """How many ways were run."""
        ran.clear()
        settings = measure.Settings(
            python=Path(),
            images=images,
            rounds=2,
            count=1.0,
            side=1.0,
            small=small,
            large=None,
            precisions=("fp32",),
            folder=tmp_path,
            finished=finished,
            versions={"mmseg": version},
        )
        measure._commands(settings, "x", {"mmseg": []})
        return len(ran)

    assert measured(tmp_path / "a", "1.0") == 2
    assert measured(tmp_path / "b" / ".." / "a", "1.0") == 0
    assert measured(tmp_path / "b", "1.0") == 2
    assert measured(tmp_path / "a", "1.1") == 2
    assert measured(tmp_path / "a", "1.0") == 0
    assert measured(tmp_path / "a", "1.0", small=tmp_path / "b") == 2


def test_images_that_are_taken_as_they_are_keep_their_pixels(tmp_path: Path) -> None:
    """Protects the times of a named data set from pictures of another size, and from fewer of them than the table says."""
    for name, size in (("a.png", (48, 36)), ("b.png", (48, 36)), ("c.png", (64, 32))):
        Image.effect_noise(size, 50).save(tmp_path / name)
    pictures.copies(tmp_path, 3, tmp_path / "made", first=4)
    made = sorted((tmp_path / "made").iterdir())
    assert [path.name for path in made] == ["0004.png", "0005.png", "0006.png"]
    with Image.open(made[0]) as copy, Image.open(tmp_path / "a.png") as original:
        assert copy.tobytes() == original.convert("RGB").tobytes()
    assert pictures.sizes(tmp_path / "made") == "2 of 36x48 and 1 of 32x64"
    with pytest.raises(SystemExit, match="3 pictures, 4 are needed"):
        pictures.copies(tmp_path / "made", 4, tmp_path / "more")
