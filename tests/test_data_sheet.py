"""The page and the picture of a data set: every class is shown, text stays text, and look-alikes across splits are found."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from emaseg.cli.app import main
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from emaseg.duplicates import fingerprint, look_alikes
from emaseg.report.data import data_page, data_sheet, thumbnails
from tests.test_check_data import found, recipe_of, recipe_text, report_of, tree


def scene(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture with large forms, as photographs have."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def test_a_frame_of_the_same_scene_is_found(tmp_path: Path) -> None:
    """Protects scores from frames of one clip in both splits: brighter, smaller and compressed, it is still the same."""
    root = tree(tmp_path, train=5, evaluation=2)
    for index in range(5):
        scene(index, (32, 32)).save(root / f"train/{index}.png")
    ImageEnhance.Brightness(scene(3, (32, 32))).enhance(1.15).save(root / "val/0.png")
    scene(99, (32, 32)).save(root / "val/1.png")
    report = report_of(recipe_of(root))
    assert found(report) == {"alike": ("both", 1)}
    assert report.ok
    (message,) = report.findings[0].examples
    assert message.startswith(str(root / "val/0.png"))
    assert str(root / "train/3.png") in message


def test_a_flat_picture_looks_like_nothing() -> None:
    """Protects from false alarms over pictures of fog: the signs of a flat picture are noise."""
    assert fingerprint(np.full((40, 40, 3), 127, np.uint8)) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**256 - 1), min_size=1, max_size=6), st.data())
def test_nothing_within_ten_signs_is_missed(ours: list[int], data: st.DataObject) -> None:
    """Protects the short cut over equal stretches: it finds what comparing everything finds."""
    flipped = data.draw(st.sets(st.integers(0, 255), max_size=12))
    theirs = data.draw(st.sampled_from(ours))
    for bit in flipped:
        theirs ^= 1 << bit
    nearest = min((one ^ theirs).bit_count() for one in ours)
    pairs = look_alikes(ours, [None, theirs])
    assert [at for _, at in pairs] == ([1] if nearest <= 10 else [])
    assert all((ours[one] ^ theirs).bit_count() == nearest for one, _ in pairs)


def test_the_page_is_well_formed_and_shows_every_class(tmp_path: Path) -> None:
    """Protects readers: a class's name with markup is text, each class has its colour, each problem its files."""
    root = tree(tmp_path / "a&b", train=30, evaluation=3)
    (root / "train_masks/7.png").unlink()
    recipe = recipe_of(root, 'data.classes=["<script>alert(1)</script>", "b", "c \U0001f600"]')
    report = report_of(recipe)
    pictures = thumbnails(report)
    assert {one.phase for one in pictures} == {"training", "evaluation"}
    page = data_page(report, pictures)
    tree_of = ElementTree.fromstring(page.split("\n", 1)[1])
    assert "<script" not in page
    assert "<script>alert(1)</script>" in "".join(tree_of.itertext())
    assert page.count("<img") == len(pictures) <= 2 * (9 + 3)
    assert "7.png" in "".join(tree_of.itertext())
    sheet = data_sheet(report, pictures)
    assert sheet.width == 4 * (484 + 12) + 12  # two images of 240 and 4 between them


def test_thin_things_can_be_seen_beside_their_outline(tmp_path: Path) -> None:
    """Protects cracks: the outline covers a line of two pixels, so the left half shows the image alone."""
    root = tree(tmp_path)
    image = np.asarray(Image.open(root / "train/0.png").convert("RGB"))
    first = next(one for one in thumbnails(report_of(recipe_of(root))) if one.name.endswith("train/0.png"))
    found = np.asarray(first.picture)
    assert found.shape[1] == 2 * image.shape[1] + 4
    np.testing.assert_array_equal(found[:, : image.shape[1]], image)
    assert (found[:, -image.shape[1] :] != image).any()


def test_a_sample_of_a_rare_class_is_shown(tmp_path: Path) -> None:
    """Protects from a sheet that misses the class that matters: of 40 images one has it, and it is there."""
    root = tree(tmp_path, train=40)
    for index in range(40):
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / f"train_masks/{index}.png")
    rare = np.zeros((32, 32), np.uint8)
    rare[3, 4] = 2
    Image.fromarray(rare).save(root / "train_masks/17.png")
    report = report_of(recipe_of(root))
    train = report.phases[0]
    assert str(root / "train/17.png") in {train.dataset.name(index) for index in train.pictures}


@pytest.mark.parametrize(("name", "starts"), [("s.html", b"<!DOCTYPE html>"), ("s.png", b"\x89PNG")])
def test_the_command_writes_it_whole(tmp_path: Path, name: str, starts: bytes) -> None:
    """Protects `check-data --sheet`."""
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_text(tree(tmp_path / "set")))
    assert main(["check-data", str(path), "--sheet", str(tmp_path / name), "-q"]) == 0
    assert (tmp_path / name).read_bytes().startswith(starts)
    assert main(["check-data", str(path), "--sheet", str(tmp_path / "s.txt"), "-q"]) == 2
    assert main(["check-data", str(path), "--sheet", str(tmp_path / "no" / name), "-q"]) == 2
