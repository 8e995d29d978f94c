"""Prediction: which files are meant, what is written, what happens to bad images; with a real, tiny EMANet."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emaseg
from emaseg.checkpoint import Checkpoint, save_checkpoint
from emaseg.errors import DataError, RecipeError, SystemFault, WeightsError
from emaseg.inference.image_inputs import find_images
from emaseg.inference.predict import ImageDone, Predictor, predict_files
from emaseg.inference.prediction import class_shares

TINY = ["backbone.width=8", "model.attention_channels=16", "model.decoder_channels=16", "model.bottleneck_channels=16"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained EMANet on a 14-layer ResNet."""
    recipe = emaseg.load_recipe("demo", TINY)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = emaseg.build_model(recipe)
    path = tmp_path_factory.mktemp("run") / "tiny.pt"
    save_checkpoint(
        path,
        Checkpoint(model=model.state_dict(), optimizer={}, step=0, epoch=0, best={}, rng={}, sampler={}, recipe=recipe),
    )
    return path


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor.from_weights(weights)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 56)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def stems(*inputs: str | Path, out: Path | None = None) -> list[str]:
    return [item.stem for item in find_images([str(i) for i in inputs], out)]


# -------------------------------------------------------------------------------------------------- one image
def test_predictor_reads_files_arrays_and_pictures_alike(predictor: Predictor, tmp_path: Path) -> None:
    """The same pixels give the same labels, however they arrive."""
    path = picture(tmp_path / "a.png")
    with Image.open(path) as opened:
        pixels = np.array(opened)
        results = [predictor.predict(source) for source in (path, str(path), pixels, opened)]
    for result in results:
        assert np.array_equal(result.labels, results[0].labels)
    first = results[0]
    assert (first.width, first.height, first.labels.shape, first.labels.dtype) == (56, 40, (40, 56), np.uint8)
    assert first.shares == class_shares(first.labels, predictor.classes)
    assert len(predictor.classes) == len(predictor.palette) == 5


def test_pillow_pictures_are_read_like_their_files(predictor: Predictor, tmp_path: Path) -> None:
    """Orientation, transparency and 16 bits: a picture opened with Pillow means what its file means."""
    grey = np.random.default_rng(1).integers(0, 65536, (24, 24), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    rgba = np.random.default_rng(2).integers(0, 256, (24, 24, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba[:16, :, :3].copy()).save(tmp_path / "turned.jpg", exif=exif)
    for name in ("deep.png", "clear.png", "turned.jpg"):
        with Image.open(tmp_path / name) as opened:
            assert np.array_equal(predictor.predict(opened).labels, predictor.predict(tmp_path / name).labels), name


def test_arrays_that_are_no_images_are_refused(predictor: Predictor) -> None:
    """Channels first in an array, floats beyond 1 and 16 bits would give a silent wrong answer."""
    floats = np.full((8, 8, 3), 200, np.float32)
    for wrong in (np.zeros((3, 8, 8), np.uint8), floats, np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8), np.uint16)):
        with pytest.raises(DataError, match="is no image"):
            predictor.predict(wrong)  # type: ignore[arg-type]


def test_shares_are_sorted_and_add_up() -> None:
    """Largest first, in the class order where equal; absent classes are not listed."""
    labels = np.array([[2, 2, 2, 0], [1, 0, 1, 2]], np.uint8)
    assert class_shares(labels, ("a", "b", "c", "d")) == (("c", 0.5), ("a", 0.25), ("b", 0.25))


def test_foreign_weights_need_a_recipe(tmp_path: Path) -> None:
    """A weight file does not say what network it belongs to unless it is ours."""
    torch.save({"model": {}}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match="not an emaseg checkpoint"):
        Predictor.from_weights(tmp_path / "foreign.pth")


def test_a_recipe_may_replace_the_one_inside(weights: Path) -> None:
    """A protocol of one's own on the same network."""
    recipe = emaseg.load_recipe("demo", [*TINY, "inference.flip=true"])
    assert Predictor.from_weights(weights, recipe=recipe).recipe.inference.flip


# ---------------------------------------------------------------------------------------------- which files
def test_folders_are_searched_and_keep_their_structure(tmp_path: Path) -> None:
    """Sorted, below the given folder, images only, no hidden files."""
    for name in ("b.png", "a.JPG", "sub/c.png", "sub/deep/d.webp", ".hidden.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.jpg").mkdir()
    assert stems(tmp_path) == ["a", "b", "sub/c", "sub/deep/d"]


def test_colliding_stems_keep_their_extension(tmp_path: Path) -> None:
    """Nothing is overwritten: cat.jpg and cat.png, Cat.jpg on some file systems, the same name in two places."""
    for name in ("cat.jpg", "cat.png", "dog.png", "x/bird.png", "y/bird.png"):
        picture(tmp_path / name)
    assert stems(tmp_path / "cat.jpg", tmp_path / "cat.png", tmp_path / "dog.png") == ["cat.jpg", "cat.png", "dog"]
    assert stems(tmp_path / "x/bird.png", tmp_path / "y/bird.png") == ["bird.png", "bird.png-2"]
    assert len(set(stems(tmp_path, tmp_path / "x"))) == 5


def test_patterns_and_repeats(tmp_path: Path) -> None:
    """A pattern the shell did not expand; an image named twice is predicted once."""
    for name in ("a.png", "b.png", "sub/c.png"):
        picture(tmp_path / name)
    (tmp_path / "b.txt").write_text("x")
    assert stems(tmp_path / "*") == ["a", "b"]
    assert stems(tmp_path / "**/*.png") == ["a", "b", "c"]
    assert stems(tmp_path / "a.png", tmp_path) == ["a", "b", "sub/c"]


def test_an_earlier_run_is_not_predicted_again(tmp_path: Path, predictor: Predictor) -> None:
    """Outputs written next to the images are not taken for images; a photograph called x_mask.png alone is one."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "alone_mask.png")
    before = stems(tmp_path)
    list(predict_files(predictor, find_images([str(tmp_path)]), tmp_path))
    assert before == ["a", "alone_mask"]
    assert stems(tmp_path) == before


def test_the_results_folder_is_not_searched(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects `predict .` typed twice from labelling its own masks, however the two folders are written."""
    monkeypatch.chdir(tmp_path)
    for name in ("tree/a.png", "tree/sub/b.png"):
        picture(tmp_path / name)
    Path("link").symlink_to("tree")
    out = Path("tree/out")
    for _ in range(2):
        list(predict_files(predictor, find_images(["tree"], out), out))
    assert len([file for file in out.rglob("*") if file.is_file()]) == 4
    for folder, results in (
        ("tree", out),
        ("tree", tmp_path / "link/out"),
        ("link", out),
        (".", Path("tree/sub/../out")),
        (str(tmp_path / "tree"), out),
    ):
        found = stems(folder, out=results)
        assert [Path(stem).name for stem in found] == ["a", "b"], (folder, results)
    assert stems("tree/**/*.png", out=out) == stems("tree/**/*.png", out=Path("link/out")) == ["a", "b"]


def test_the_results_folder_itself_may_be_named(predictor: Predictor, tmp_path: Path) -> None:
    """Protects `predict *`, of which the shell makes `predictions` too, and images that share a folder with results."""
    out = tmp_path / "predictions"
    photo = picture(tmp_path / "a.png")
    list(predict_files(predictor, find_images([str(photo)], out), out))
    assert stems(photo, out, out=out) == ["a"]
    with pytest.raises(DataError, match="no images here but the results of an earlier run"):
        find_images([str(out)], out)
    picture(out / "b.png")
    assert stems(out, out=out) == ["b"]
    list(predict_files(predictor, find_images([str(out)], out), out))
    assert stems(out, out=out) == ["b"]


def test_a_named_file_in_the_results_folder_is_predicted(tmp_path: Path) -> None:
    """What is named is meant: a file, and a folder or pattern that lies in the results folder."""
    out = tmp_path / "out"
    mask = picture(out / "a_mask.png")
    picture(out / "sub/c.png")
    assert stems(mask, out=out) == ["a_mask"]
    assert stems(out / "sub", out=out) == stems(out / "sub/*", out=out) == ["c"]


def test_a_folder_with_nothing_but_results_says_where_it_looked(tmp_path: Path) -> None:
    """Protects from "no images" about a folder in which the user sees images."""
    picture(tmp_path / "out/a.png")
    with pytest.raises(DataError, match=r"no images in this folder outside of .*out, where results go"):
        find_images([str(tmp_path)], tmp_path / "out")


def test_an_empty_name_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects `predict "$PHOTO"` with a variable that is not set from labelling the whole current folder."""
    monkeypatch.chdir(tmp_path)
    photo = picture(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="an empty name was given"):
        find_images([str(photo), ""])


@pytest.mark.parametrize(
    ("argument", "message"),
    [("none.jpg", "no such file or folder"), ("empty", "no images in this folder"), ("*.jpg", "no image matches")],
)
def test_nothing_to_predict_is_an_error(tmp_path: Path, argument: str, message: str) -> None:
    """A typing mistake must not look like success."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_images([str(tmp_path / argument)])


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, predictor: Predictor) -> None:
    """`-` is one image, read once."""
    content = picture(tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    (item,) = find_images(["-", "-"])
    assert (item.source, item.name, item.stem) == (content, "stdin", "stdin")
    (done,) = predict_files(predictor, [item], tmp_path / "out")
    assert (tmp_path / "out/stdin_mask.png").is_file()
    assert (done.width, done.height) == (56, 40)


# ------------------------------------------------------------------------------------------------ many files
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


def test_predicting_imports_no_torchvision(weights: Path, tmp_path: Path) -> None:
    """It costs seconds on a cold start, and prediction needs nothing of it."""
    path = picture(tmp_path / "a.png")
    code = (
        "import sys, emaseg\n"
        f"emaseg.Predictor.from_weights({str(weights)!r}).predict({str(path)!r})\n"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
