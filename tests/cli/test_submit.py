"""`emaseg eval --submit`: what users of test sets type, from the recipes' own headers to what a wrong command says."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from emaseg.data.dataset import UInt8
from emaseg.data.files.label_files import apply_rule
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.cityscapes import label_rule
from emaseg.data.sets.published_counts import IMAGES
from emaseg.evaluation.submit import KINDS, layout_of
from emaseg.inference.protocols import label_map
from emaseg.metrics import Confusion
from emaseg.recipe import Recipe, load_recipe, parse_recipe
from emaseg.resources import shipped_recipe_text, shipped_recipes
from tests.data.made import image
from tests.data.sets.test_cityscapes import FRAMES, tree
from tests.exporting.made import checkpoint, network
from tests.forked import forked, needs_fork
from tests.helpers import TINY

main = importlib.import_module("emaseg.cli").main
pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = {
    "memorynet_cityscapes_hrnetv2p_w48": 2,  # commands in the header: for one's own run, and for the released model
    "memorynet_cityscapes_r101_d8": 2,
    "memorynet_cityscapes_r50_d8": 2,
    "memorynet_cityscapes_s101_d8": 2,
    "paper_voc_test_r101": 1,
    "paper_voc_test_r152": 1,
}
TTA = """
[inference_tta]
scales = [0.5, 1.0]
flip = true
average = "probs_before_resize"

[published]
table = "a table"
miou_ms_flip = 81.25
"""


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Cityscapes tree with two test images of noise in different sizes; the working folder is an empty one."""
    made = tree(tmp_path / "cityscapes")
    generator = np.random.default_rng(0)
    for split, name, size in (
        ("test", "berlin_000000_000019", (40, 56)),
        ("test", "bonn_000003_000019", (33, 65)),
        ("val", "frankfurt_000000_000294", (2, 3)),  # as large as its label
    ):
        path = made / "leftImg8bit" / split / name.partition("_")[0] / f"{name}_leftImg8bit.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    monkeypatch.setitem(IMAGES["cityscapes"], "test", 2)  # as if the owner's split held these two
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


def recipe_of(root: Path, kind: str = "cityscapes") -> Recipe:
    """The tiny EMANet as a row that is scored on a test set."""
    section = f'data={{kind="{kind}", root="{root}", eval_split="test"}}'
    return parse_recipe(TINY + TTA, "row.toml", [section]).recipe


@pytest.fixture
def weights(top: Path, tmp_path: Path) -> Path:
    return checkpoint(recipe_of(top), tmp_path / "row.pt")


def emaseg(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `eval` on the CPU."""
    code = main(["eval", *map(str, arguments), "--device", "cpu"])
    return code, *capsys.readouterr()


def maps(path: Path) -> dict[str, UInt8]:
    with zipfile.ZipFile(path) as archive:
        return {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


def test_other_images_than_the_tables_have_no_published_score(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of the split, or a list of one's own under its name: the mean over it is another."""
    monkeypatch.setitem(IMAGES["cityscapes"], "test", 1_525)
    code, stdout, _ = emaseg(capsys, weights, "--tta", "--submit", "results.zip")
    assert code == 0
    assert "not comparable: 2 images, where the table's are 1,525" in stdout


def test_the_commands_in_the_recipes_headers_parse() -> None:
    """Protects every published row whose test labels are kept: what its header tells users to type is taken."""
    command = typer.main.get_command(importlib.import_module("emaseg.cli.app").app).commands["eval"]  # type: ignore[attr-defined]
    found: dict[str, int] = {}
    for name in shipped_recipes():
        for line in re.findall(r"^#.*emaseg eval (.*--submit.*)$", shipped_recipe_text(name), re.MULTILINE):
            with command.make_context("eval", shlex.split(line)) as context:
                assert context.params["tta"] is True
                assert str(context.params["submit"]) == "results.zip"  # typer converts before or after the parameters
                assert name in context.params["reference"]
            found[name] = found.get(name, 0) + 1
    assert found == ROWS


def test_exactly_these_rows_are_scored_by_a_server() -> None:
    """A row on a test set without labels must say how it is scored; each of them can be submitted."""
    kept = {name: load_recipe(name).data for name in shipped_recipes()}
    kept = {name: data for name, data in kept.items() if data.kind in (*KINDS, "lip")}
    tests = {name: data for name, data in kept.items() if getattr(data, "eval_split", "") == "test"}
    assert set(tests) == set(ROWS)
    assert all(layout_of(data) for data in tests.values())


def test_a_test_set_becomes_a_zip(top: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label maps by the protocol that was asked for, at the images' size; the path on stdout; nothing but the ZIP."""
    code, stdout, stderr = emaseg(capsys, weights, "--tta", "--submit", "results.zip")
    assert code == 0, stderr
    lines = stdout.splitlines()
    assert lines[-1] == "results.zip"
    assert ["label", "maps", "2"] in [line.split() for line in lines]
    assert "published   81.25" in stdout
    assert "scales 0.5 1; flip" in stdout
    assert "label maps 2/2" in stderr
    assert [path.name for path in Path().iterdir()] == ["results.zip"]
    recipe = recipe_of(top)
    assert recipe.inference_tta is not None
    dataset, model, rule = build_dataset(recipe.data, "eval"), network(recipe), label_rule(tuple("x" * 19), "labelIds")
    found = maps(Path("results.zip"))
    assert list(found) == ["berlin_000000_000019_pred.png", "bonn_000003_000019_pred.png"]
    for index, (name, raw) in enumerate(found.items()):
        picture = dataset.open(index).image()  # type: ignore[attr-defined]
        backbone = recipe.backbone
        expected = label_map(model, picture, recipe.inference_tta, backbone.pixel_stats, "cpu")
        np.testing.assert_array_equal(apply_rule(raw, Path(name), rule), expected)
    plain = emaseg(capsys, weights, "--submit", "plain.zip", "-q")
    assert (plain[0], plain[2]) == (0, "")
    assert "published   with --tta only" in plain[1]
    assert any(
        (one != other).any() for one, other in zip(found.values(), maps(Path("plain.zip")).values(), strict=True)
    )


def test_json_is_one_small_object(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, stderr = emaseg(capsys, weights, "--tta", "--submit", "results.zip", "--json", "-q")
    assert (code, stderr) == (0, "")
    content = json.loads(stdout)
    assert len(content.pop("weights_sha256")) == 64
    assert content == {
        "schema": 1,
        "submission": "results.zip",
        "images": 2,
        "published": 0.8125,
        "protocol": "own size; whole; scales 0.5 1; flip; probs before resize",
    }


def test_a_rehearsal_with_labels_is_scored_too(top: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One pass: the ZIP holds the very label maps that metrics.json scores."""
    code, stdout, stderr = emaseg(capsys, weights, "--split", "val", "--submit", "val.zip", "--out", "scores")
    assert code == 0, stderr
    assert stdout.splitlines()[-2:] == [str(Path("scores", "metrics.json")), "val.zip"]
    content = json.loads(Path("scores", "metrics.json").read_text())
    ((name, raw),) = maps(Path("val.zip")).items()
    assert name == f"{FRAMES['val'][0]}_pred.png"
    rule = label_rule(tuple("x" * 19), "labelIds")
    confusion = Confusion.empty(19)
    truth = build_dataset(recipe_of(top).data, "train").open(0).label()  # the same values in every label of this tree
    confusion.add(truth, apply_rule(raw, Path(name), rule))
    assert content["miou"] == confusion.scores(tuple("x" * 19), 1).miou
    again = (weights, "--split", "val", "--out", "scores", "--json", "-q")
    code, stdout, _ = emaseg(capsys, *again, "--submit", "again.zip")
    assert (code, json.loads(stdout)) == (0, content)  # the documented object, unchanged
    for taken in (("--submit", "val.zip"), ("--out", "val.zip")):
        code, stdout, stderr = emaseg(capsys, *again, *taken)
        assert (code, stdout) == (2, "")
        assert stderr.startswith(f"error: {taken[0]} val.zip: ")


def test_voc_says_how_to_repack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "VOC2012"
    image(root / "JPEGImages/2008_000006.jpg", (20, 30))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/test.txt").write_text("2008_000006\n")
    weights = checkpoint(recipe_of(root, "voc"), tmp_path / "row.pt")
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = emaseg(capsys, weights, "--submit", "my results.zip")
    assert code == 0, stderr
    assert stdout.splitlines()[-1] == "my results.zip"
    command = stderr.splitlines()[-1].strip()
    assert command == "python3 -m zipfile -e 'my results.zip' . && tar czf results.tar.gz results"
    own_python = command.replace("python3", shlex.quote(sys.executable), 1)
    subprocess.run(own_python, shell=True, check=True)
    assert (tmp_path / "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png").is_file()
    assert (tmp_path / "results.tar.gz").is_file()


# ------------------------------------------------------------------------------------------------------ refusals
def test_a_test_set_without_submit_names_the_ways_out(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, stderr = emaseg(capsys, weights)
    assert (code, stdout) == (2, "")
    assert "the labels of these 2 images are not published" in stderr
    remedy = stderr.partition("try:")[2]
    assert "--submit results.zip" in remedy
    assert "--split val" in remedy
    assert list(Path().iterdir()) == []


def test_a_test_set_of_an_unknown_server_names_the_labelled_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LIP: no --submit in the remedy, and with --submit the data sets that have one."""
    image(tmp_path / "LIP/Testing_images/testing_images/1.jpg")
    weights = checkpoint(recipe_of(tmp_path / "LIP", "lip"), tmp_path / "row.pt")
    monkeypatch.chdir(tmp_path)
    code, _, stderr = emaseg(capsys, weights)
    assert code == 2
    assert "--split val" in stderr
    assert "--submit" not in stderr
    code, _, stderr = emaseg(capsys, weights, "--submit", "results.zip")
    assert code == 2
    assert "voc, cityscapes, ade20k" in stderr
    assert not Path("results.zip").exists()


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("results", "results.zip"),
        ("out/results.tar.gz", "out/results.zip"),
        ("my results.tgz", "'my results.zip'"),
        ("folder", "folder/results.zip"),
        (".", "results.zip"),
    ],
)
def test_another_ending_than_zip_is_refused_with_the_right_name(
    name: str, better: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the weights are even looked for."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    code, stdout, stderr = emaseg(capsys, "no_such_weights.pt", "--submit", name)
    assert (code, stdout) == (2, "")
    assert stderr == f"error: --submit {name}: not the name of a ZIP file\n  try: --submit {better}\n"


def test_a_place_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after hours: below a file, and in a folder of somebody else."""
    (tmp_path / "file").write_text("")
    code, stdout, stderr = emaseg(capsys, "no_such_weights.pt", "--submit", tmp_path / "file" / "results.zip")
    assert (code, stdout) == (4, "")
    assert f"{tmp_path / 'file'}: Not a directory" in stderr
    if os.geteuid() == 0:  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        tmp_path.chmod(0o500)
    code, stdout, stderr = emaseg(capsys, "no_such_weights.pt", "--submit", tmp_path / "new" / "results.zip")
    tmp_path.chmod(0o700)
    assert (code, stdout) == (4, "")
    assert f"{tmp_path}: no permission" in stderr


@pytest.mark.parametrize("option", [("--check",), ("--out", "scores")])
def test_options_that_need_scores_are_refused(
    option: tuple[str, ...], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, stdout, stderr = emaseg(capsys, weights, "--tta", "--submit", "results.zip", *option)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {option[0]}: the labels of these 2 images are not published")
    assert list(Path().iterdir()) == []


@needs_fork
def test_ctrl_c_leaves_no_zip(top: Path, weights: Path) -> None:
    """Exit code 130, and neither a ZIP that looks complete nor a temporary file."""
    for number in range(60):
        image(top / f"leftImg8bit/test/berlin/berlin_{number:06}_000020_leftImg8bit.png", (256, 512))
    command = forked(["eval", weights, "--submit", "results.zip", "--device", "cpu"])
    assert command.stderr.readline().startswith(b"label maps 1/62")
    command.interrupt()
    code, _, stderr = command.ended()
    assert (code, stderr) == (130, b"error: interrupted\n")
    assert list(Path().iterdir()) == []
