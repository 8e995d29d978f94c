"""Images of any kind from the folder to the mask: what `init` writes trains, and every command takes such images."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from data_scripts import pack
from emaseg.data.files.bands import bands_of, read_pixels
from emaseg.data.sets.build import build_dataset
from emaseg.errors import DataError, RecipeError
from emaseg.inference.predict import Predictor
from emaseg.models import build_model
from emaseg.open_datasets import open_datasets
from emaseg.recipe import parse_recipe
from tests.bands.made import SIZE, as_grey_png, as_npy, as_tiff, channels, drawn, folder, recipe_of, text_of
from tests.data.made import fails
from tests.helpers import emaseg, needs_programs
from tests.starter.made import dry_run, start
from tests.test_check_data import report_of

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, tuple[Callable[[Path, np.ndarray], None], int, type, float]] = {
    "tiff4": (as_tiff, 4, np.uint8, 255),
    "tiff16": (as_tiff, 5, np.uint16, 9000),
    "floats": (as_tiff, 2, np.float32, 1),
    "arrays": (as_npy, 6, np.uint16, 4000),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_init_writes_trains(kind: str, tmp_path: Path) -> None:
    """Law: init finds the kind, measures it, and its recipe cuts crops whose normalised mean is 0 and deviation 1."""
    pytest.importorskip("tifffile")
    save, count, dtype, white = KINDS[kind]
    started = start(folder(tmp_path / "data", save, count, dtype, white))
    recipe = dry_run(started.text)
    assert recipe.backbone.in_channels == count
    assert any(f"{count} channels" in note for note in started.notes)
    found = recipe.data.range  # type: ignore[union-attr]
    assert bool(found) == (dtype is not np.uint8)
    assert all(low == 0 and 0.8 * white <= high <= 1.2 * white for low, high in found)
    stats, dataset = recipe.backbone.pixel_stats, build_dataset(recipe.data, "train", bands_of(recipe))
    pixels = np.concatenate([dataset.open(i).image().reshape(-1, count) for i in range(len(dataset))])
    normal = (pixels - np.array(stats.mean)) / np.array(stats.std)
    assert np.abs(normal.mean(0)).max() < 0.02
    assert np.abs(normal.std(0) - 1).max() < 0.02


@pytest.mark.parametrize(
    ("dtype", "white", "mark", "stated"),
    [
        (np.float32, 0.5, -9999, False),
        (np.float32, 9, -9999, False),
        (np.uint16, 600, 65535, False),
        (np.float32, 0.5, 0.7, True),
        (np.int16, 9000, -9999, True),
        (np.int16, 3000, -32768, False),
    ],
)
def test_pixels_without_data_leave_the_range_alone(
    dtype: type, white: float, mark: float, stated: bool, tmp_path: Path
) -> None:
    """Protects from images that are flat grey to the network because a border holds -9999, stated by GDAL or not."""
    tifffile = pytest.importorskip("tifffile")

    def save(path: Path, image: np.ndarray) -> None:
        image = image.copy()
        image[:, :4] = mark
        tag = [(42113, "s", 0, f"{mark:g}", True)] if stated else []
        tifffile.imwrite(
            path.with_suffix(".tif"), image, photometric="minisblack", planarconfig="contig", extratags=tag
        )

    started = start(folder(tmp_path / "data", save, 2, dtype, white))
    recipe = dry_run(started.text)
    found = recipe.data.range  # type: ignore[union-attr]
    expected = max(1, white)
    assert found
    assert all(low == 0 and 0.4 * expected <= high <= 1.2 * expected for low, high in found)
    assert any(f"without pixels of {mark:g}, taken to mark" in note for note in started.notes)
    assert min(recipe.backbone.pixel_stats.std) > 10


def test_init_refuses_a_mixture(tmp_path: Path) -> None:
    """Protects from a run that stops at the hundredth image."""
    root = folder(tmp_path / "data", as_npy, 4, np.uint16, 4000)
    np.save(root / "train" / "3.npy", np.zeros((*SIZE, 4), np.float32))
    fails(lambda: start(root), DataError, "3.npy", "4 channels of float32", "4 channels of uint16")


def test_arrays_beside_pictures_are_no_images(tmp_path: Path) -> None:
    """Protects folders in which each picture has features in an array of its name."""
    root = folder(tmp_path / "data", as_grey_png, 1, np.uint8, 255)
    for path in (root / "train").glob("*.png"):
        np.save(path.with_suffix(".npy"), np.zeros(4))
    started = start(root)
    assert started.recipe.backbone.in_channels == 3
    assert any("4 .npy" in note for note in started.notes)


def test_from_folder_to_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects every command on 16-bit grey: checks, training, evaluation, masks, overlays and standard output."""
    root = folder(tmp_path / "data", as_grey_png, 1, np.uint16, 4000)
    file = tmp_path / "grey.toml"
    file.write_text(text_of(root, *channels(1), "data.range=[[0, 4000]]"))
    code, _, err = emaseg(capsys, "check-data", file)
    assert code == 0, err
    code, out, err = emaseg(capsys, "train", file, "--out", tmp_path / "run")
    assert code == 0, err
    code, out, err = emaseg(capsys, "eval", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 2
    photo = root / "val" / "0.png"
    code, out, err = emaseg(
        capsys, "predict", photo, "--weights", tmp_path / "run", "--out", tmp_path / "out", "--save", "mask,overlay"
    )
    assert code == 0, err
    mask = np.asarray(Image.open(tmp_path / "out" / "0_mask.png"))
    assert mask.shape == SIZE
    with Image.open(tmp_path / "out" / "0_overlay.png") as overlay:
        assert overlay.mode == "RGB"
    colour = tmp_path / "colour.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(colour)
    code, out, err = emaseg(capsys, "predict", colour, "--weights", tmp_path / "run", "--out", tmp_path / "out")
    assert code == 1
    assert "colour.png: 3 channels, but backbone.in_channels is 1" in err


def test_predictor_takes_arrays_of_the_declared_channels(tmp_path: Path) -> None:
    """Protects Python users: an array gives what its file gives, in the file's values, whatever holds it."""
    torch.manual_seed(0)
    recipe = recipe_of(tmp_path, *channels(4), "data.range=[[0, 9000]]")
    predictor = Predictor(build_model(recipe), recipe)
    image, _ = drawn(4, np.uint16, 9000, 0)
    np.save(tmp_path / "a.npy", image)
    expected = predictor.predict(tmp_path / "a.npy")
    tensor = torch.from_numpy(image.astype(np.float32))
    for same in (image, image.astype(np.float64), tensor, tensor.permute(2, 0, 1), tensor.permute(2, 0, 1)[None]):
        found = predictor.predict(same)
        assert np.array_equal(found.labels, expected.labels)
        assert found.image is not None
        assert np.array_equal(found.image, read_pixels(tmp_path / "a.npy", bands=predictor.bands))
    assert expected.overlay().mode == "RGB"
    assert [one.labels.shape for one in predictor.predict([image, image])] == [SIZE] * 2
    assert predictor.bases(image).values.shape[0]
    fails(lambda: predictor.predict(image[..., :3]), DataError, "(48, 64, 3)", "3 channels", "is 4")
    bytes_ = Predictor(build_model(recipe_of(tmp_path, *channels(1))), recipe_of(tmp_path, *channels(1)))
    grey, _ = drawn(1, np.uint8, 255, 0)
    labels = bytes_.predict(grey).labels
    for same in (grey[..., 0], Image.fromarray(grey[..., 0]), grey / np.float32(255)):
        assert np.array_equal(bytes_.predict(same).labels, labels)
    with pytest.raises(DataError, match="nothing says which are black and white"):
        bytes_.predict(grey.astype(np.uint16))


def test_packed_files_hold_them_too(tmp_path: Path) -> None:
    """Protects clusters: a packed file holds the images byte for byte, so it is read as the folder is."""
    root = folder(tmp_path / "data", as_npy, 4, np.uint16, 4000)
    file, declared = tmp_path / "a.toml", (*channels(4), "data.range=[[0, 4000]]")
    file.write_text(text_of(root, *declared))
    for part in ("train", "eval"):
        pack.run(str(file), part, tmp_path / f"{part}.h5", [])
    data = f'data={{kind="packed", root={json.dumps(str(tmp_path))}, classes=["ground", "thing"], range=[[0, 4000]]}}'
    packed, plain = recipe_of(root, *channels(4), data), recipe_of(root, *declared)
    for part in ("train", "eval"):
        one, other = (build_dataset(r.data, part, bands_of(r)) for r in (packed, plain))  # type: ignore[arg-type]
        assert len(one) == len(other)
        assert np.array_equal(one.open(1).image(), other.open(1).image())


@needs_programs(any_size=False)
def test_export_refuses_to_normalise_what_has_more_than_8_bits(tmp_path: Path) -> None:
    """Protects from a file whose input would be 8-bit pixels of images that have none."""
    from emaseg.exporting.export import export
    from emaseg.exporting.request import make_request

    recipe = recipe_of(tmp_path, *channels(4), "data.range=[[0, 4000]]")
    request = make_request("torch", include="normalize")
    events = export(build_model(recipe).eval(), recipe, request, tmp_path / "a.pt2")
    fails(lambda: list(events), RecipeError, "--include normalize", "data.range")


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "torch"])
@pytest.mark.parametrize(("count", "ranges"), [(1, ""), (4, ""), (4, "data.range=[[0, 255]]")])
def test_exported_files_and_their_program(
    count: int, ranges: str, format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects other programs: the file names its channels, and the printed program gives the mask of `predict`."""
    from emaseg.exported.info import read_info
    from emaseg.exporting.export import Exported, export
    from emaseg.exporting.request import make_request
    from emaseg.exporting.usage import snippet

    if format_ == "onnx":
        pytest.importorskip("onnxruntime")
    pytest.importorskip("tifffile")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    limits = "inference.resize_long_short=[56, 40]"
    recipe = recipe_of(tmp_path, *channels(count), limits, *([ranges] if ranges else []))
    includes = ("", "normalize") if not ranges else ("",)
    image, _ = drawn(count, np.uint8, 255, 0)
    (as_grey_png if count == 1 else as_tiff)(tmp_path / "photo", image)
    for include in includes:
        path = tmp_path / f"x{include}{'.onnx' if format_ == 'onnx' else '.pt2'}"
        *_, done = export(build_model(recipe).eval(), recipe, make_request(format_, include=include), path)
        assert isinstance(done, Exported)
        assert done.passed
        info = read_info(path)
        texts = info.texts()
        assert json.loads(texts["channels"]) == (["grey"] if count == 1 else [f"channel {n}" for n in range(1, 5)])
        assert ("range" in texts) == bool(ranges)
        assert len(json.loads(texts["mean"])) == count
        expected = Predictor.from_weights(path).predict(image).labels
        (tmp_path / "program.py").write_text(snippet(path, info))
        with patch.object(sys, "argv", ["program.py"]):
            runpy.run_path("program.py")
        assert np.mean(np.asarray(Image.open("mask.png")) == expected) > 0.999


def test_recipes_inside_files_keep_their_channels(tmp_path: Path) -> None:
    """Protects checkpoints: the recipe inside says what the network reads."""
    recipe = recipe_of(tmp_path, *channels(4), "data.range=[[0, 1], [0, 1], [0, 1], [-1, 1]]")
    from emaseg.recipe import recipe_to_toml

    assert parse_recipe(recipe_to_toml(recipe), "again").recipe == recipe


@pytest.mark.parametrize(("high", "told"), [(65535, True), (8192, True), (8190, False), (4095, False)])
def test_a_range_far_above_the_largest_value_of_pgms_is_told(high: int, told: bool, tmp_path: Path) -> None:
    """Protects recipes from before the values of PGMs were those in the file: their images would be dark for no reason
    that shows."""

    def save(path: Path, image: np.ndarray) -> None:
        content = b"P5\n%d %d\n4095\n" % (image.shape[1], image.shape[0])
        path.with_suffix(".pgm").write_bytes(content + image[..., 0].astype(">u2").tobytes())

    recipe = recipe_of(folder(tmp_path, save, 1, np.uint16, 4000), *channels(1), f"data.range=[[0, {high}]]")
    words = f"go to 4,095 at most, data.range to {high}"
    found = [finding for finding in report_of(recipe).findings if finding.kind == "range"]
    assert [finding.level for finding in found] == ["warning", "warning"] * told
    assert all(words in example for finding in found for example in finding.examples)
    assert any(note.warning and words in note.text for note in open_datasets(recipe)[2]) == told
