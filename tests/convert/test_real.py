"""Real exports: from JSON to a trained run in three commands, nothing edited; and the collected situations of people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.errors import DataError
from tests.convert.made import masks, names, run
from tests.data.made import real
from tests.helpers import emaseg
from tests.starter.made import dry_run, start
from tests.test_check_data import report_of

pytestmark = [pytest.mark.realdata, pytest.mark.usefixtures("one_thread")]

SHORT = ("--set", "train.iterations=2", "--set", "augment.crop=[64,64]")


@pytest.mark.parametrize(
    ("folder", "classes", "labels"),
    [
        ("coco_json/labelme", 21, {"bus": 117_890, "person": 66_840}),
        ("coco_json/panopticapi", 134, {"person": 85_111}),
        ("labelme_voc", 21, {"bus": 117_884, "person": 66_811}),
    ],
)
def test_from_an_export_to_a_trained_run(
    folder: str, classes: int, labels: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the promise: convert, init, train, predict; four commands, and each names the next."""
    out, recipe, trained = tmp_path / "mine", tmp_path / "mine.toml", tmp_path / "run"
    code, text, _ = emaseg(capsys, "convert", real(folder), "--out", out)
    assert code == 0
    assert text.splitlines()[-1] == f"next: emaseg init {out} --out mine.toml"
    report = json.loads((out / "convert.json").read_text())
    assert len(report["classes"]) - (report["classes"][-1]["value"] == 255) == classes
    found = {one["name"]: one["pixels"] for one in report["classes"]}
    assert {name: found[name] for name in labels} == labels
    assert emaseg(capsys, "init", out, "--out", recipe, "--device", "cpu")[0] == 0
    assert emaseg(capsys, "train", recipe, "--out", trained, "--device", "cpu", *SHORT)[0] == 0
    image = next((out / "images").glob("*.jpg"))
    assert emaseg(capsys, "predict", image, "--weights", trained, "--out", tmp_path / "p", "--device", "cpu")[0] == 0


def test_labelme_agrees_with_its_own_export(tmp_path: Path) -> None:
    """Protects the meaning of labelme's shapes: all but the pixels on the outlines are as labelme itself draws them."""
    run(real("labelme_voc"), tmp_path / "out")
    for name, mask in masks(tmp_path / "out").items():
        theirs = np.asarray(Image.open(real("labelme_voc") / "SegmentationClass" / f"{name}.png"))
        assert (mask == theirs).mean() > 0.99


def test_panoptic_pngs_agree_with_their_run_lengths(tmp_path: Path) -> None:
    """Protects the numbers of segments: both files of the same two images become the same masks."""
    run(real("coco_json/panopticapi"), tmp_path / "runs")
    run(real("coco_json/panopticapi/panoptic_examples.json"), tmp_path / "png")
    runs, pngs = masks(tmp_path / "runs"), masks(tmp_path / "png")
    assert set(runs) == set(pngs) == {"000000142238", "000000439180"}
    for name in runs:
        np.testing.assert_array_equal(runs[name], pngs[name])


@pytest.mark.parametrize(
    ("case", "classes"),
    [
        ("coco", ["background", "cat"]),
        ("labelme_json", ["background", "cat"]),
        ("perclass", ["background", "car", "road"]),
        ("perclass_suffix", ["background", "car", "road"]),
        ("palettes_differ", ["background", "foreground"]),
        ("rgba", ["background", "foreground"]),
    ],
)
def test_situations_of_people(case: str, classes: list[str], tmp_path: Path) -> None:
    """Law over the collected situations that need a conversion: one command, and what init then writes trains."""
    assert run(real("field_cases") / case, tmp_path / "out").ok
    assert names(tmp_path / "out") == classes
    assert report_of(dry_run(start(tmp_path / "out").text)).ok


def test_brush_exports_alone_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="say the task and the label but not the image"):
        run(real("field_cases/labelstudio"), tmp_path / "out")
