"""check-data tells everything that is wrong with a data set at once, and what to do about each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from emaseg.cli.app import main
from PIL import Image

from emaseg.check_data import DataReport, _look, check_data, class_shares, report_json
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.packed import open_packed, pack
from emaseg.data.sets.pairs import PairedFiles
from emaseg.recipe import Recipe, parse_recipe
from tests.data.made import image, label, real
from tests.data.sets.test_ade20k import tree as ade20k_tree
from tests.helpers import TINY

FOLDER = """[data]
kind = "folder"
root = "{root}"
classes = ["a", "b", "c"]
train_images = "train"
train_masks = "train_masks"
eval_images = "val"
eval_masks = "val_masks"

[augment]"""


def recipe_text(root: Path) -> str:
    start, end = TINY.index("[data]"), TINY.index("[augment]")
    return TINY[:start] + FOLDER.format(root=root) + TINY[end + len("[augment]") :]


def recipe_of(root: Path, *overrides: str) -> Recipe:
    return parse_recipe(recipe_text(root), "tiny.toml", overrides).recipe


def tree(root: Path, *, train: int = 4, evaluation: int = 1) -> Path:
    """A data set without a fault: each picture another grey, so that no two files are the same."""
    for part, count in (("train", train), ("val", evaluation)):
        for index in range(count):
            picture(root / part / f"{index}.png", 10 * index + (part == "val"))
            label(root / f"{part}_masks" / f"{index}.png", [0, 1, 2, 255], (32, 32))
    return root


def picture(path: Path, grey: int, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (grey, grey, 200)).save(path)


def report_of(recipe: Recipe, sample: int = 0) -> DataReport:
    events = check_data(recipe, sample)
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def found(report: DataReport) -> dict[str, tuple[str, int]]:
    """Part and count of each kind."""
    return {finding.kind: (finding.phase, finding.count) for finding in report.findings}


def test_a_sound_data_set_has_no_findings_and_is_counted(tmp_path: Path) -> None:
    """Protects from false alarms, and the shares: of labelled pixels, by part."""
    report = report_of(recipe_of(tree(tmp_path)))
    assert report.ok
    assert report.findings == ()
    content = report_json(report)
    assert content["parts"]["train"]["images"] == content["parts"]["train"]["read"] == 4
    assert [c["images"] for c in content["parts"]["train"]["classes"]] == [4, 4, 4]
    assert content["parts"]["train"]["ignored_share"] == 0.25
    assert [c["share"] for c in content["parts"]["eval"]["classes"]] == pytest.approx([1 / 3] * 3)


def test_a_damaged_sample_of_a_packed_file_is_a_finding(tmp_path: Path) -> None:
    """Protects the promise for packed files, too: a damaged sample is told with the others, and the rest is read."""
    recipe = recipe_of(tree(tmp_path))
    dataset = build_dataset(recipe.data, "train")
    assert isinstance(dataset, PairedFiles)
    for _ in pack(dataset, tmp_path / "train.h5"):
        pass
    image = dataset.items[1][0].read_bytes()
    content = (tmp_path / "train.h5").read_bytes()
    place = content.index(image) + len(image) // 2
    (tmp_path / "train.h5").write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    look = _look(open_packed(tmp_path / "train.h5"), 1)
    assert [kind for kind, _ in look.problems] == ["image"]
    assert not _look(open_packed(tmp_path / "train.h5"), 0).problems


def test_every_problem_is_told_in_one_run(tmp_path: Path) -> None:
    """Protects the promise: one of each problem in one tree, all found, each with a file's name and a remedy."""
    root = tree(tmp_path, train=12, evaluation=2)
    masks = root / "train_masks"
    label(masks / "0.png", [0, 7], (32, 32))  # no class
    Image.new("RGB", (32, 32), (9, 8, 7)).save(masks / "1.png")  # a colour mask
    label(masks / "2.png", [255], (32, 32))  # nothing labelled
    label(masks / "3.png", [0, 1], (16, 32))  # another size
    whole = (masks / "4.png").read_bytes()
    (masks / "4.png").write_bytes(whole[: len(whole) // 2])  # a mask cut short
    whole = (root / "train" / "5.png").read_bytes()
    (root / "train" / "5.png").write_bytes(whole[: len(whole) // 2])  # an image cut short
    (masks / "6.png").unlink()  # an image without a mask
    label(masks / "lonely.png", [0], (32, 32))  # a mask without an image
    (root / "val" / "1.png").write_bytes((root / "train" / "8.png").read_bytes())  # one image in both parts
    picture(root / "train" / "9.png", 99, (8, 8))  # far below the crop
    label(masks / "9.png", [0, 1], (8, 8))
    for mask in (root / "val_masks").iterdir():
        label(mask, [0, 1], (32, 32))  # class c is not evaluated
    report = report_of(recipe_of(root))
    assert not report.ok
    assert found(report) == {
        "files": ("train", 1),  # the last of its two: they have different remedies
        "image": ("train", 1),
        "mask": ("train", 1),
        "values": ("train", 1),
        "colours": ("train", 1),
        "ignored": ("train", 1),
        "size": ("train", 1),
        "unseen": ("eval", 1),
        "duplicate": ("both", 1),
        "small": ("train", 1),
    }
    assert all(finding.remedy for finding in report.findings)
    texts = "\n".join(text for finding in report.findings for text in finding.examples)
    for name in (
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "5.png",
        "6.png",
        "lonely.png",
        "8.png",
        "9.png: 8 x 8",
        '"c"',
    ):
        assert name in texts
    levels = [finding.level for finding in report.findings]
    assert levels == sorted(levels)  # errors before warnings


def test_problems_of_one_kind_are_one_finding_with_their_number(tmp_path: Path) -> None:
    """Protects readers of a long list: thirty times the same mistake is one remedy."""
    root = tree(tmp_path, train=30)
    for mask in (root / "train_masks").iterdir():
        label(mask, [0, 1, 2, 9], (32, 32))
    (finding,) = report_of(recipe_of(root)).findings
    assert (finding.kind, finding.count, len(finding.examples)) == ("values", 30, 20)


def test_binary_masks_are_recognised(tmp_path: Path) -> None:
    """Protects from training a network of one class on 0/255 masks; data.values is the remedy, and works."""
    root = tree(tmp_path)
    for mask in [*(root / "train_masks").iterdir(), *(root / "val_masks").iterdir()]:
        label(mask, [0, 255], (32, 32))
    report = report_of(recipe_of(root, 'data.classes=["a", "b"]'))
    assert set(found(report)) == {"binary"}
    assert "data.values = [0, 255]" in report.findings[0].remedy
    assert report_of(recipe_of(root, 'data.classes=["a", "b"]', "data.values=[0,255]", "data.ignore=[]")).ok


def test_too_few_images_for_a_batch(tmp_path: Path) -> None:
    """Protects from a run that could not take its first step."""
    assert set(found(report_of(recipe_of(tree(tmp_path, train=3))))) == {"batch"}


def test_a_missing_part_does_not_hide_the_other(tmp_path: Path) -> None:
    """Protects the second half of the check."""
    root = tree(tmp_path)
    label(root / "train_masks" / "0.png", [8], (32, 32))
    report = report_of(recipe_of(root, 'data.eval_images="vall"'))
    assert found(report) == {"files": ("eval", 1), "values": ("train", 1)}


def test_a_sample_reads_no_more_than_it_says(tmp_path: Path) -> None:
    """Protects --sample: so many of each part, and no verdict on classes never seen."""
    root = tree(tmp_path, train=8)
    report = report_of(recipe_of(root, 'data.classes=["a", "b", "c", "d"]'), sample=3)
    assert [one.chosen for one in report.phases] == [3, 1]
    assert [finding.phase for finding in report.findings] == ["eval"]  # all of its one mask was read


def test_any_kind_of_data_set_can_be_checked() -> None:
    """Protects data sets without files."""
    report = report_of(parse_recipe(TINY, "tiny.toml").recipe)
    assert report.ok
    assert [one.images for one in report.phases] == [20, 4]


def test_the_command_exits_1_and_shows_remedies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects scripts: 0 with warnings only, 1 when training would fail; --json is one object."""
    root, file = tree(tmp_path / "data"), tmp_path / "my.toml"
    file.write_text(recipe_text(root))
    assert main(["check-data", str(file), "-q", "--set", 'data.classes=["a","b","c","d"]']) == 0
    assert "ready to train, 2 warnings" in capsys.readouterr().out
    label(root / "train_masks" / "0.png", [0, 9], (32, 32))
    assert main(["check-data", str(file), "-q"]) == 1
    text = capsys.readouterr().out
    assert "training would fail: 1 error, no warnings" in text
    assert "  try: " in text
    assert main(["check-data", str(file), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ok"] is False
    assert "training 4/4" in captured.err


def test_labels_that_are_not_published_are_no_masks_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects people who check a test split from looking for damage: there are no masks to be read."""
    root = ade20k_tree(tmp_path)
    image(tmp_path / "release_test/testing/ADE_test_00000001.jpg")
    main(["check-data", "ade20k_r50_d8", "-q", "--set", f"data.root={root}", "--set", "data.eval_split=test"])
    text = capsys.readouterr().out
    assert "1 images read, its labels are not published" in text
    assert "no mask could be read" not in text


@pytest.mark.realdata
def test_camvid_counts_are_the_published_ones() -> None:
    """Protects the histogram: pixels of Sky and Bicyclist in training and evaluation, counted by the data's readers."""
    text = Path(__file__).parent.parent.joinpath("recipes/camvid_r50_d16.toml").read_text()
    recipe = parse_recipe(text, "camvid", [f"data.root={json.dumps(str(real('camvid')))}"]).recipe
    report = report_of(recipe)
    assert report.ok
    pixels = [one.labels.class_pixels for one in report.phases if one.labels]
    assert [(row[0], row[10]) for row in pixels] == [(10682767, 184967), (1601620, 387010)]


@pytest.mark.realdata
def test_crackforest_through_a_plain_recipe() -> None:
    """Protects list files of one folder: the published split, cracks in every mask, on 1.62 % of the pixels."""
    root = real("crackforest")
    folders = ('data.train_images="images"', 'data.train_masks="labels"', 'data.eval_images="images"')
    lists = ('data.eval_masks="labels"', 'data.train_list="train.txt"', 'data.eval_list="val.txt"')
    report = report_of(recipe_of(root, 'data.classes=["road", "crack"]', *folders, *lists))
    assert report.findings == ()
    labels = [one.labels for one in report.phases if one.labels]
    assert [(row.checked, row.class_images) for row in labels] == [(72, (72, 72)), (46, (46, 46))]
    shares = [class_shares(row)[1] for row in labels]
    assert shares == pytest.approx([0.0162, 0.0161], abs=5e-5)


def test_duplicates_need_equal_content_not_only_length(tmp_path: Path) -> None:
    """Protects from false alarms: files of one length differ in one byte."""
    root = tree(tmp_path)
    for part, grey in (("train", 1), ("val", 2)):
        pixels = np.full((32, 32, 3), grey, np.uint8)
        Image.fromarray(pixels).save(root / part / "0.bmp")
        (root / part / "0.png").unlink()
    assert (root / "train/0.bmp").stat().st_size == (root / "val/0.bmp").stat().st_size
    assert report_of(recipe_of(root)).findings == ()
