"""The law of the printed program: on any photograph it gives the mask that `emaseg predict` gives with the same file."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from emaseg.data.sets.build import build_dataset
from emaseg.exported.info import read_info, supported_protocol
from emaseg.exported.runtime import open_exported
from emaseg.exporting.export import Exported
from emaseg.exporting.usage import snippet
from emaseg.inference.predict import Predictor
from emaseg.recipe import parse_recipe, recipe_to_toml
from tests.exporting.made import exported, recipe

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(1800)]  # a .pt2 takes seconds for each size

LEAST = 0.999  # share of the pixels that have the same class

PROTOCOLS = {
    "own size": (),
    "shrunk": ("inference.resize_long_short=[220, 120]",),
    "shrunk via the input": ("inference.resize_long_short=[220, 120]", 'inference.logits_path="via_input"'),
    "stretched": ("inference.resize_long_short=[97, 97]", "inference.keep_ratio=false"),
    "padded": ('inference.pad="8k+1"', 'inference.logits_path="via_input"'),
    "windows": (
        'inference.mode="slide"',
        "inference.window=[64, 80]",
        "inference.stride=[48, 56]",
        'inference.average="probs_before_resize"',
    ),
}


def drawn(height: int, width: int, seed: int) -> Image.Image:
    """Shapes of several classes, large and small."""
    made = recipe("emanet", f"data.size=[{max(height, 64)}, {max(width, 64)}]")
    return Image.fromarray(build_dataset(made.data, "eval").open(seed % 4).image()[:height, :width])


def stored(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def odd_photos() -> dict[str, bytes]:
    """Ten files as cameras, scanners and drawing programs write them."""
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = drawn(120, 100, 1).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    grey16 = np.asarray(drawn(70, 90, 2).convert("L")).astype(np.uint16) * 257 + 90
    return {
        "portrait by EXIF": stored(drawn(96, 150, 0), "JPEG", quality=95, exif=turned),
        "grey": stored(drawn(110, 83, 1).convert("L"), "PNG"),
        "grey of 16 bits": stored(Image.fromarray(grey16), "PNG"),
        "black and white": stored(drawn(75, 75, 3).convert("1"), "PNG"),
        "transparent": stored(clear, "PNG"),
        "palette with a transparent colour": stored(drawn(90, 130, 2).convert("P"), "GIF", transparency=3),
        "CMYK": stored(drawn(88, 99, 0).convert("CMYK"), "JPEG", quality=95),
        "small": stored(drawn(35, 41, 1), "PNG"),
        "large": stored(drawn(700, 901, 2), "PNG"),
        "wide": stored(drawn(70, 330, 3), "WEBP", lossless=True),
    }


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    return odd_photos()


def agreements(file: Path, photos: dict[str, bytes], *overrides: str, corners: bool = False) -> dict[str, float]:
    """For each photo, the share of pixels to which predict and the printed program give the same class."""
    info = read_info(file)
    wanted = parse_recipe(recipe_to_toml(info.recipe), "inside", overrides).recipe
    protocol = supported_protocol(wanted.inference, info.include, info.shape)
    info = replace(info, recipe=replace(wanted, inference=protocol), align_corners=info.align_corners or corners)
    model = open_exported(file)
    model.align_corners = info.align_corners
    predictor = Predictor(model, info.recipe)
    Path("run.py").write_text(snippet(file, info))
    found = {}
    classes = set()
    for name, content in photos.items():
        Path("a photo.jpg").write_bytes(content)
        own = predictor.predict("a photo.jpg").labels
        with patch.object(sys, "argv", ["run.py", "a photo.jpg"]):
            runpy.run_path("run.py")  # as the user runs it, but for the start of Python
        with Image.open("mask.png") as mask:
            theirs = np.array(mask)
        assert theirs.shape == own.shape, name
        found[name] = float((own == theirs).mean())
        classes |= set(np.unique(own))
    assert len(classes) > 1  # the comparison is one of different things
    return found


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        *(("plain.onnx", protocol) for protocol in PROTOCOLS),
        ("pixels.onnx", "own size"),
        ("pixels.onnx", "shrunk"),
        pytest.param("plain.pt2", "shrunk", marks=pytest.mark.slow),  # seconds for each new size of images
        pytest.param("pixels.pt2", "own size", marks=pytest.mark.slow),
    ],
)
def test_any_file_by_any_protocol(
    name: str,
    protocol: str,
    made: Callable[[str], Exported],
    photos: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Protects people who copy the program: it follows the recipe's protocol, with logits outside, with normalisation
    and arg max inside, and as .pt2."""
    monkeypatch.chdir(tmp_path)
    if protocol == "windows":
        photos = {kind: photo for kind, photo in photos.items() if kind != "large"}  # that would be hundreds of windows
    found = agreements(made(name).path, photos, *PROTOCOLS[protocol], corners=protocol == "padded")
    assert min(found.values()) >= LEAST, found


def test_8_bits(int8: Exported, photos: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects files of 8 bits: the program runs the same numbers."""
    monkeypatch.chdir(tmp_path)
    found = agreements(int8.path, photos, *PROTOCOLS["shrunk"])
    assert min(found.values()) >= LEAST, found


def test_one_size(photos: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects files for one size: predict and the program bring photos of any shape to it, and the mask to the photo."""
    monkeypatch.chdir(tmp_path)
    done = exported(recipe("emanet"), tmp_path / "one.pt2", "torch", shape="64x96")
    found = agreements(done.path, {kind: photos[kind] for kind in ("portrait by EXIF", "small", "large", "wide")})
    assert min(found.values()) >= LEAST, found
