"""A second conversion into the same folder: what somebody made or changed there stays, and what stays is told."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from emaseg.convert import Conversion
from emaseg.convert.mask_files import as_written, read_made
from emaseg.data.files import png
from emaseg.data.files.signed import check_place, is_signed
from emaseg.errors import DataError, RecipeError
from tests.convert import made
from tests.convert.made import SCENE, SQUARE, TRIANGLE, expected, masks, run, write


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """A folder with an export, in/, and its conversion, out/."""
    made.labelme(tmp_path / "in", SCENE)
    run(tmp_path / "in", tmp_path / "out")
    return tmp_path


def note_of(done: Conversion, word: str) -> str:
    """The note that names a file; "" = there is none."""
    return " ".join(note for note in done.notes if word in note)


def edit(path: Path, *, comment: bool = False) -> np.ndarray:
    """Correct a corner of a mask in another program, which may keep its comment."""
    with Image.open(path) as picture:
        texts, label = dict(picture.info), np.array(picture)
    label[:4, :4] = 1
    kept = PngImagePlugin.PngInfo()
    for key in ("Comment", "Software") if comment else ():
        kept.add_text(key, texts[key])
    Image.fromarray(label).save(path, pnginfo=kept)
    return label


def unsign(path: Path) -> None:
    """A mask as versions before the signature wrote it."""
    with Image.open(path) as picture:
        said = json.loads(picture.info["Comment"])
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", json.dumps({key: said[key] for key in said if key not in ("item", "file", "names")}))
        again = Image.fromarray(np.array(picture))
        again.putpalette(picture.getpalette())
    again.save(path, pnginfo=text)


def infinite(path: Path) -> None:
    """A mask that says of itself what no number is."""
    with Image.open(path) as picture:
        said, label = json.loads(picture.info["Comment"]), np.array(picture)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", json.dumps(said | {"contested": float("inf")}))
    Image.fromarray(label).save(path, pnginfo=text)


def huge(path: Path) -> None:
    """A mask of more pixels than are read."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    path.write_bytes(png.START + b"".join(png.chunk(*part) for part in parts))


@pytest.mark.parametrize("change", [infinite, huge])
def test_a_mask_that_no_run_wrote_is_not_ours(change: Callable[[Path], None], twice: Path) -> None:
    """Protects a second run from what lies in place of a mask, whatever it is: it stays, and the others are converted."""
    path = twice / "out/masks/a.png"
    change(path)
    content = path.read_bytes()
    assert read_made(path) is None
    assert not as_written(path)
    made.labelme(twice / "in", {"b.jpg": [("cat", TRIANGLE)]})
    run(twice / "in", twice / "out")
    assert path.read_bytes() == content
    with Image.open(twice / "out/masks/b.png") as picture:
        np.testing.assert_array_equal(np.array(picture), expected([("cat", TRIANGLE)]))


@pytest.mark.parametrize("redrawn", [False, True])
@pytest.mark.parametrize("comment", [False, True])
def test_a_mask_that_somebody_corrected_stays(redrawn: bool, comment: bool, twice: Path) -> None:
    """Protects hours of corrections, also where the annotations have changed since, and the editor kept the comment."""
    label = edit(twice / "out/masks/a.png", comment=comment)
    if redrawn:
        made.labelme(twice / "in", {**SCENE, "a.jpg": [("cat", SQUARE)]})
    done = run(twice / "in", twice / "out")
    np.testing.assert_array_equal(masks(twice / "out")["a"], label)
    assert "Kept as they are" in note_of(done, "masks/a.png")
    pixels = sum(one.pixels for one in done.classes if one.value == 1)
    assert pixels == sum(int((one == 1).sum()) for one in masks(twice / "out").values())
    assert done.ok


def test_a_corrected_mask_never_gets_other_classes(twice: Path) -> None:
    """Protects the numbers of a corrected mask: where the classes change nothing is written."""
    edit(twice / "out/masks/a.png")
    before = {path: path.read_bytes() for path in (twice / "out").rglob("*") if path.is_file()}
    made.labelme(twice / "in", {**SCENE, "d.jpg": [("bird", SQUARE)]})
    with pytest.raises(RecipeError, match=r"masks/a\.png was changed"):
        run(twice / "in", twice / "out")
    assert {path: path.read_bytes() for path in (twice / "out").rglob("*") if path.is_file()} == before


def test_a_class_that_is_added_at_the_end_does_not_stop(twice: Path) -> None:
    """Protects a run whose corrected masks keep their meaning: every number there was means what it did."""
    label = edit(twice / "out/masks/a.png")
    made.labelme(twice / "in", {**SCENE, "d.jpg": [("zebra", SQUARE)]})
    assert run(twice / "in", twice / "out").ok
    np.testing.assert_array_equal(masks(twice / "out")["a"], label)


def test_a_spoiled_mask_is_named(twice: Path) -> None:
    """Protects from training on a mask with a number of no class, and from drawing over it."""
    path = twice / "out/masks/a.png"
    Image.fromarray(np.full(made.SIZE, 77, np.uint8)).save(path)
    content = path.read_bytes()
    done = run(twice / "in", twice / "out")
    assert [one.name for one in done.left if "the value 77" in one.reason] == ["a.jpg"]
    assert path.read_bytes() == content


def test_files_of_ones_own_stay(twice: Path) -> None:
    """Protects pairs that somebody put beside the converted ones: they are named, and not removed."""
    made.photo(twice / "out/images/own.jpg")
    Image.fromarray(expected(SCENE["a.jpg"])).save(twice / "out/masks/own.png")
    done = run(twice / "in", twice / "out")
    for name in ("images/own.jpg", "masks/own.png"):
        assert (twice / "out" / name).exists()
        assert note_of(done, name)


def test_an_image_of_ones_own_is_not_replaced(twice: Path) -> None:
    """Protects an image that somebody put in the place of a converted one."""
    place = twice / "out/images/a.jpg"
    place.unlink()
    made.photo(place, (9, 9))
    os.utime(place, ns=(1, 1))
    content = place.read_bytes()
    done = run(twice / "in", twice / "out")
    assert [one.name for one in done.left if "another file" in one.reason] == ["a.jpg"]
    assert place.read_bytes() == content


def test_an_image_that_changed_at_its_origin_is_replaced(twice: Path) -> None:
    """Protects from an old image beside a new mask: what a run put there itself follows the original."""
    (twice / "in/a.jpg").unlink()
    made.photo(twice / "in/a.jpg")
    os.utime(twice / "in/a.jpg", ns=(7, 7))
    assert run(twice / "in", twice / "out").ok
    assert (twice / "out/images/a.jpg").stat().st_mtime_ns == 7


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("case", ["rounded", "copied", "exported again"])
def test_an_image_of_the_same_bytes_is_no_other_file(case: str, older: bool, twice: Path) -> None:
    """Protects a second run where a disk rounds times, or a copy or a new export gave the images new ones."""
    for letter in "abc":
        if older:
            unsign(twice / f"out/masks/{letter}.png")
        place, original = twice / f"out/images/{letter}.jpg", twice / f"in/{letter}.jpg"
        content, time = place.read_bytes(), original.stat().st_mtime_ns
        changed = original if case == "exported again" else place
        changed.unlink()
        changed.write_bytes(content)
        time = time // 1000 * 1000 - 1000 if case == "rounded" else time + 10**12
        os.utime(changed, ns=(time, time))
    assert run(twice / "in", twice / "out").ok


@pytest.mark.parametrize("older", [False, True])
def test_a_copy_is_replaced_when_its_original_changes(older: bool, twice: Path) -> None:
    """Protects from an old image beside a new mask where images are copies, with a rounded time or under an old mask."""
    place, original = twice / "out/images/a.jpg", twice / "in/a.jpg"
    time = original.stat().st_mtime_ns
    place.unlink()
    place.write_bytes(original.read_bytes())
    if older:
        unsign(twice / "out/masks/a.png")
        os.utime(place, ns=(time, time))
    else:
        os.utime(place, ns=(time // 1000 * 1000 - 1000,) * 2)
    original.unlink()
    made.photo(original)
    with original.open("ab") as file:
        file.write(b"\0")
    os.utime(original, ns=(time + 10**12,) * 2)
    assert run(twice / "in", twice / "out").ok
    assert place.read_bytes() == original.read_bytes()


def test_a_run_that_converts_nothing_removes_nothing(twice: Path) -> None:
    """Protects a conversion from a second run at a time when no image can be read."""
    before = sorted((twice / "out").rglob("*.*g"))
    for letter in "abc":
        (twice / f"in/{letter}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no image could be converted"):
        run(twice / "in", twice / "out")
    assert sorted((twice / "out").rglob("*.*g")) == before


@pytest.mark.parametrize("fault", ["image", "annotation"])
def test_what_failed_this_time_stays(fault: str, twice: Path) -> None:
    """Protects the pair of an image whose annotation, or which itself, cannot be read this time; it is told."""
    if fault == "image":
        (twice / "in/a.jpg").unlink()
        (twice / "in/a.jpg").write_bytes(b"")
    else:
        write(twice / "in/a.json", '{"shapes": [')
    done = run(twice / "in", twice / "out")
    assert not done.ok
    assert "not converted this time" in note_of(done, "masks/a.png")
    assert (twice / "out/images/a.jpg").exists()
    np.testing.assert_array_equal(masks(twice / "out")["a"], expected(SCENE["a.jpg"]))


@pytest.mark.parametrize("older", [False, True])
def test_pairs_without_an_annotation_go_wherever_their_original_is(older: bool, twice: Path) -> None:
    """Protects from training on what is no longer annotated, or on what is validated: one original lies elsewhere now,
    the other where it was."""
    for name in ("a", "b") if older else ():
        unsign(twice / f"out/masks/{name}.png")
    (twice / "in/moved").mkdir()
    (twice / "in/a.jpg").rename(twice / "in/moved/other.jpg")
    for name in ("a", "b"):
        (twice / f"in/{name}.json").unlink()
    assert run(twice / "in", twice / "out").ok
    left = sorted(path.stem for path in (twice / "out/images").rglob("*") if path.is_file())
    assert {"a", "b"}.isdisjoint(left)
    assert {"a", "b"}.isdisjoint(masks(twice / "out"))


def test_the_last_copy_of_an_image_stays(twice: Path) -> None:
    """Protects the only copy of an image, whose original and annotation somebody has removed."""
    for name in ("a.jpg", "a.json"):
        (twice / "in" / name).unlink()
    done = run(twice / "in", twice / "out")
    assert (twice / "out/images/a.jpg").exists()
    assert note_of(done, "images/a.jpg")


def test_masks_of_other_classes_go(twice: Path) -> None:
    """Protects from a mask of old numbers beside masks of new ones, where its image could not be converted again."""
    write(twice / "in/a.json", '{"shapes": [')
    made.labelme(twice / "in", {"d.jpg": [("bird", SQUARE)]})
    done = run(twice / "in", twice / "out")
    assert "Removed" in note_of(done, "masks/a.png")
    assert set(masks(twice / "out")) == {"b", "c", "d"}


def test_masks_of_older_versions(twice: Path) -> None:
    """Protects conversions of older versions, without signatures: kept, drawn again where nobody has changed them, else
    left as they are."""
    for letter in "abc":
        unsign(twice / f"out/masks/{letter}.png")
    assert run(twice / "in", twice / "out").kept == 3
    label = edit(twice / "out/masks/a.png", comment=False)
    made.labelme(twice / "in", {"b.jpg": [("cat", TRIANGLE)]})
    done = run(twice / "in", twice / "out")
    assert done.kept == 2
    np.testing.assert_array_equal(masks(twice / "out")["a"], label)
    np.testing.assert_array_equal(masks(twice / "out")["b"], expected([("cat", TRIANGLE)]))


def test_hard_links_are_told(twice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the originals from a program that shrinks the converted images in place; copies need no warning."""
    done = run(twice / "in", twice / "out")
    linked = os.path.samefile(twice / "in/a.jpg", twice / "out/images/a.jpg")
    assert bool(note_of(done, "Hard links to the originals: 3 files")) == linked

    def refuse(*_: object) -> None:
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert not note_of(run(twice / "in", twice / "copied"), "Hard links")


def test_predict_does_not_replace_a_mask_of_convert(twice: Path) -> None:
    """Protects the masks of a conversion from predictions that are written into their folder: each keeps to its own."""
    mask = twice / "out/masks/a.png"
    assert is_signed(mask, "convert")
    with pytest.raises(DataError, match="is not as predict wrote it"):
        check_place(mask, ())
