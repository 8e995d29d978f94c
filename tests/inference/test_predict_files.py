"""Predicting many files: what is written and reported, and what happens to bad images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.errors import SystemFault, WeightsError
from emaseg.inference.image_inputs import find_images
from emaseg.inference.predict import Predictor
from emaseg.inference.predict_files import ImageDone, predict_files
from tests.inference.made import picture


def test_outputs_and_report(predictor: Predictor, tmp_path: Path) -> None:
    """Mask and overlay of the image's size, ids in the mask, and the documented JSON line."""
    picture(tmp_path / "in/sub/a.png")
    (done,) = predict_files(predictor, find_images([str(tmp_path / "in")]), tmp_path / "out")
    mask = tmp_path / "out/sub/a_mask.png"
    with Image.open(mask) as opened:
        assert opened.mode == "P"
        labels = np.asarray(opened)
    assert np.array_equal(labels, predictor.predict(tmp_path / "in/sub/a.png").labels)
    with Image.open(tmp_path / "out/sub/a_overlay.png") as opened:
        assert opened.width == 56
        assert opened.height > 40
    line = json.loads(json.dumps(done.json(), allow_nan=False))
    assert list(line) == ["schema", "image", "mask", "files", "width", "height", "classes", "tiles", "error"]
    assert line["schema"] == 1
    assert line["image"] == str(tmp_path / "in/sub/a.png")
    assert (line["mask"], line["width"], line["height"], line["error"]) == (str(mask), 56, 40, None)
    assert sum(c["share"] for c in line["classes"]) == pytest.approx(1)
    assert set(line["classes"][0]) == {"name", "share"}


@pytest.mark.parametrize("save", ["mask", "overlay"])
def test_only_what_was_asked_for(predictor: Predictor, tmp_path: Path, save: str) -> None:
    """--save mask writes no overlay, and the other way round."""
    picture(tmp_path / "a.png")
    list(predict_files(predictor, find_images([str(tmp_path / "a.png")]), tmp_path / "out", save=(save,)))  # type: ignore[arg-type]
    assert [f.name for f in (tmp_path / "out").iterdir()] == [f"a_{save}.png"]


def test_a_bad_image_is_reported_and_skipped(predictor: Predictor, tmp_path: Path) -> None:
    """One damaged file does not cost the others, and leaves nothing behind."""
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    picture(tmp_path / "c.png")
    results = list(predict_files(predictor, find_images([str(tmp_path)]), tmp_path / "out"))
    assert [r.error is None for r in results] == [True, False, True]
    bad = results[1].json()
    assert str(tmp_path / "b.png") in bad["error"]
    assert (bad["mask"], bad["width"], bad["height"], bad["classes"]) == (None, None, None, [])
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_resume_skips_what_is_there(predictor: Predictor, tmp_path: Path) -> None:
    """A second run reports the same and writes only what is missing or damaged."""
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name)
    out, inputs = tmp_path / "out", find_images([str(tmp_path / "in")])
    first = list(predict_files(predictor, inputs, out))
    (out / "b_overlay.png").unlink()
    (out / "c_mask.png").write_bytes(b"")
    kept = (out / "a_mask.png").stat().st_mtime_ns
    second = list(predict_files(predictor, inputs, out, resume=True))
    assert [r.skipped for r in second] == [True, False, False]
    assert [r.json() for r in second] == [r.json() for r in first]
    assert (out / "a_mask.png").stat().st_mtime_ns == kept
    assert all(isinstance(r, ImageDone) and r.error is None for r in second)


def test_resume_meets_a_damaged_mask(predictor: Predictor, tmp_path: Path) -> None:
    """A crash may leave zeros in a file: it is no result, and not as we wrote it, so it is told and kept."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    out, inputs = tmp_path / "out", find_images([str(tmp_path / "in")])
    assert all(done.error is None for done in predict_files(predictor, inputs, out))
    mask = out / "a_mask.png"
    content = mask.read_bytes()
    at = content.index(b"IDAT") - 1
    wrong_length = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]  # Pillow calls it a SyntaxError
    for damage in (
        wrong_length,
        content.replace(b"IDAT", bytes(4)),
        content[:60],
        content[: len(content) // 2] + bytes(len(content) // 2),
    ):
        mask.write_bytes(damage)
        first, second = predict_files(predictor, inputs, out, resume=True)
        assert first.error is not None
        assert "a_mask.png" in first.error
        assert mask.read_bytes() == damage
        assert second.skipped


def test_resume_looks_at_the_size_of_the_image(predictor: Predictor, tmp_path: Path) -> None:
    """Protects from another image's mask: a picture of the same name may have taken the place of the first one. Where
    there is no mask that says its size, the name alone counts."""
    photo = picture(tmp_path / "a.png")
    out, inputs = tmp_path / "out", find_images([str(photo)])
    list(predict_files(predictor, inputs, out))
    picture(photo, size=(48, 64))
    (done,) = predict_files(predictor, inputs, out, resume=True)
    assert (done.error, done.skipped, done.width, done.height) == (None, False, 64, 48)
    with Image.open(out / "a_mask.png") as mask:
        assert mask.size == (64, 48)
    (done,) = predict_files(predictor, inputs, out, resume=True)
    assert (done.skipped, done.width, done.height) == (True, 64, 48)
    photo.write_bytes(b"")
    (done,) = predict_files(predictor, inputs, out, resume=True)
    assert "the file is empty" in (done.error or "")
    (done,) = predict_files(predictor, inputs, out, ("overlay",), resume=True)
    assert (done.error, done.skipped, done.width) == (None, True, None)


def test_values_that_do_not_fit_into_16_bits_are_one_images_fault(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the other images of a run from the one whose values become infinite."""
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    answers = iter((None, WeightsError("the network gives NaN in fp16", "use bf16"), None))
    whole = predictor.predict

    def predict(image: object, **wanted: object) -> object:
        if (error := next(answers)) is not None:
            raise error
        return whole(image, **wanted)  # type: ignore[call-overload]

    monkeypatch.setattr(predictor, "predict", predict)
    results = list(predict_files(predictor, find_images([str(tmp_path)]), tmp_path / "out"))
    assert [r.error is None for r in results] == [True, False, True]
    assert (results[1].error, results[1].hint) == (f"{tmp_path / 'b.png'}: the network gives NaN in fp16", "use bf16")


def test_resume_meets_a_name_that_results_cannot_have(predictor: Predictor, tmp_path: Path) -> None:
    """A name that is as long as names may be leaves no room for `_mask.png`: that image's error, with --resume as without."""
    picture(tmp_path / "in" / f"{'x' * 250}.png")
    for resume in (False, True):
        (done,) = predict_files(predictor, find_images([str(tmp_path / "in")]), tmp_path / "out", resume=resume)
        assert done.error is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_a_system_fault(predictor: Predictor, tmp_path: Path) -> None:
    """A full disk or a missing permission ends the run instead of failing image by image."""
    picture(tmp_path / "a.png")
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(SystemFault, match="no permission"):
        list(predict_files(predictor, find_images([str(tmp_path / "a.png")]), tmp_path / "out"))


def test_a_file_where_the_output_folder_should_be(predictor: Predictor, tmp_path: Path) -> None:
    """The disk's refusal arrives as a message."""
    picture(tmp_path / "a.png")
    (tmp_path / "out").write_text("taken")
    with pytest.raises(SystemFault, match="writing it"):
        list(predict_files(predictor, find_images([str(tmp_path / "a.png")]), tmp_path / "out"))


@pytest.mark.realdata
def test_odd_files_never_end_the_run(predictor: Predictor, tmp_path: Path) -> None:
    """Photographs of every kind are predicted; damaged files are reported one by one."""
    root = os.environ.get("EMASEG_TEST_DATA")
    if not root:
        pytest.skip("EMASEG_TEST_DATA is not set")
    odd = find_images([str(Path(root, "odd_images"))])
    results = list(predict_files(predictor, odd, tmp_path / "odd", save=("mask",)))
    assert len(results) == len(odd)
    assert {r.error is None for r in results} == {True, False}
    photos = [item for item in find_images([str(Path(root, "predict_photos"))]) if "12mp" not in item.name]
    assert all(r.error is None for r in predict_files(predictor, photos, tmp_path / "photos"))
