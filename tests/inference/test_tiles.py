"""Images that do not fit into memory: tiles that cover them, results that a whole image would have had, and the words."""

from __future__ import annotations

import dataclasses
import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from emaseg.engine import Engine
from emaseg.engine.packed import packing_works
from emaseg.engine.winograd import best_conv
from emaseg.errors import DataError
from emaseg.free_memory import room
from emaseg.inference import predict
from emaseg.inference.predict import Predictor
from emaseg.inference.protocols import label_map
from emaseg.inference.tiles import _spans, tile_size, tiling, whole_need
from emaseg.recipe import Inference
from tests.exporting.made import checkpoint, recipe
from tests.helpers import emaseg as run
from tests.inference.test_protocols import STATS, Toy, photo

TIGHT = 1  # byte: nothing fits but the smallest tile


@settings(max_examples=300)
@given(st.integers(1, 3000), st.integers(16, 700))
def test_tiles_cover_each_pixel_once(length: int, side: int) -> None:
    """Protects the label map: kept parts follow each other without a gap, inside their tiles, away from inner borders."""
    spans = _spans(length, side)
    assert spans[0][2] == 0
    assert spans[-1][3] == length
    assert all(a[3] == b[2] for a, b in itertools.pairwise(spans))
    margin = min(side, length) // 8
    for start, end, kept, stop in spans:
        assert 0 <= start <= kept < stop <= end <= length
        assert min(side, length) <= end - start < side + 64
        assert start == 0 or kept - start >= margin
        assert end == length or end - stop >= margin


@pytest.mark.parametrize("wanted", [{}, {"confidence": True}, {"probabilities": True}], ids=str)
def test_a_network_that_sees_a_neighbour_gives_the_whole_images_result(wanted: dict[str, bool]) -> None:
    """Protects exactness: where margins hold all that a cell depends on, tiles and the whole image are the same."""
    pixels = photo(300, 412)  # whole cells
    tiny = recipe("emanet")
    whole = Predictor(Toy(), tiny).predict(pixels, **wanted)  # type: ignore[call-overload]
    tiles = Predictor(Toy(), tiny, max_memory=TIGHT).predict(pixels, **wanted)  # type: ignore[call-overload]
    assert whole.tiles is None
    assert tiles.tiles == "12 tiles of 128 x 128 pixels, 32 of them shared"
    assert (whole.labels == tiles.labels).mean() > 0.999  # at a tie either class is right
    for own, other in ((whole.confidence, tiles.confidence), (whole.probabilities, tiles.probabilities)):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            assert np.abs(own.astype(np.float32) - other.astype(np.float32)).max() < 0.01
    assert whole.shares[0][0] == tiles.shares[0][0]


def test_a_tile_is_resized_by_the_images_factor() -> None:
    """Protects recipes that resize: a tile must not be blown up to the whole image's limits."""
    inference = Inference(resize_long_short=(2000, 500))
    assert tile_size((0, 0, 400, 600), (1000, 3000), inference) == (200, 300)
    assert tile_size((0, 0, 400, 600), (1000, 3000), Inference()) == (400, 600)
    tiles = tiling((1000, 3000), inference, 1e4 * 128 * 128, 1e4, 2048)
    assert tiles.side == (256, 256)
    assert {tile[2:] for tile, _ in tiles.boxes} <= {(h, w) for h in range(256, 320) for w in range(256, 320)}


@pytest.mark.parametrize("source", ["tensor", "image"])
def test_a_tile_of_another_shape_than_its_image(source: Literal["tensor", "image"]) -> None:
    """Protects recipes that do not keep the ratio: a high tile of a wide image is not turned into a wide input's sides."""
    inference = Inference(resize_long_short=(2048, 512), keep_ratio=False, scale_source=source)
    tile, size = (0, 0, 2000, 1050), (2000, 2100)
    assert tile_size(tile, size, inference) == (512, 1024)
    for scale in (1.0, 0.5):
        network = Toy()
        protocol = replace(inference, scales=(scale,))
        label_map(network.eval(), photo(2000, 1050), protocol, STATS, "cpu", tile_size(tile, size, protocol))
        assert network.sizes == [(1, 3, int(512 * scale), int(1024 * scale))]


def test_a_file_of_one_size_takes_images_of_any() -> None:
    """Protects exported files: a large image is brought to their size, so it needs neither tiles nor another size's trial."""

    class Fixed(Toy):
        input_size, full = (96, 128), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[2:] == self.input_size
            if self.full:
                raise MemoryError
            return super().forward(x)

    network = Fixed()
    assert Predictor(network, recipe("emanet"), max_memory=TIGHT).predict(photo(300, 410)).tiles is None
    network.full = True
    with pytest.raises(DataError, match="out of memory with an image of 410 x 300 pixels"):
        Predictor(network, recipe("emanet"), max_memory=TIGHT).predict(photo(300, 410))


def test_a_file_of_one_size_whose_windows_slide_is_given_tiles() -> None:
    """Protects memory: the sum over the windows is as large as the image, whatever the size of the windows."""

    class Window(Toy):
        input_size = (128, 128)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[2:] == self.input_size
            return super().forward(x)

    slide = recipe("emanet", 'inference.mode="slide"', "inference.window=[128,128]", "inference.stride=[128,128]")
    assert Predictor(Window(), slide, max_memory=TIGHT).predict(photo(300, 410)).tiles is not None


def test_probabilities_that_do_not_fit_are_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "free_memory", lambda: 10**6)
    predictor = Predictor(Toy(), recipe("emanet"))
    assert predictor.predict(photo(300, 400)).probabilities is None
    with pytest.raises(DataError, match="the probabilities of 400 x 300 pixels") as caught:
        predictor.predict(photo(300, 400), probabilities=True)
    assert "--top-k" in caught.value.hint
    assert predictor.predict(photo(300, 400), probabilities=True, top_k=2).probabilities is not None


def test_what_an_image_takes() -> None:
    """Protects the choice: more pixels take more; a window takes no more than its size, but several terms of windows are
    summed at the image's size. Those of whole images stay on the feature grid, which is 1/16 of it at the most: an image
    that fits is not divided because it is mirrored too."""
    base = whole_need((1000, 1000), Inference(), 20, 1e4)
    assert whole_need((2000, 1000), Inference(), 20, 1e4) > 1.9 * base
    assert whole_need((1000, 1000), Inference(flip=True), 20, 1e4) == base
    slide = Inference(mode="slide", window=(200, 200), stride=(100, 100))
    assert whole_need((1000, 1000), slide, 20, 1e4) < 0.1 * base
    mirrored = dataclasses.replace(slide, flip=True)
    assert whole_need((1000, 1000), mirrored, 20, 1e4) == whole_need((1000, 1000), slide, 20, 1e4) + 4 * 20 * 1e6
    resized = Inference(resize_long_short=(500, 500))
    assert whole_need((1000, 1000), resized, 20, 1e4) < 0.3 * base


def test_memory_that_runs_out_leads_to_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a wrong estimate: what torch refuses is tried again in tiles, and in the end said without a word on
    training."""
    sizes: list[tuple[int, ...]] = []

    class Limited(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(x.shape[2:]))
            if x.shape[2] * x.shape[3] > limit:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            return super().forward(x)

    limit = 200 * 200
    prediction = Predictor(Limited(), recipe("emanet")).predict(photo(400, 500))
    assert sizes[0] == (400, 500)
    assert prediction.tiles is not None
    assert prediction.labels.shape == (400, 500)
    limit = 10
    with pytest.raises(DataError, match="out of memory") as caught:
        Predictor(Limited(), recipe("emanet")).predict(photo(300, 300))
    assert "train" not in caught.value.hint


def test_a_tile_that_is_the_whole_image_is_none() -> None:
    """Protects what is told: a small image is predicted by the recipe's protocol, however little memory there is."""
    predictor = Predictor(Toy(), recipe("emanet"), max_memory=TIGHT)
    small = predictor.predict(photo(60, 70))
    assert small.tiles is None
    assert np.array_equal(small.labels, Predictor(Toy(), recipe("emanet")).predict(photo(60, 70)).labels)
    assert predictor.predict(photo(300, 410)).tiles is not None


def test_where_the_system_says_nothing_tiles_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects images on macOS and Windows: one refusal does not make the smallest tiles of a large image."""
    largest = 560 * 560

    class Limited(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[2] * x.shape[3] > largest:
                raise MemoryError
            return super().forward(x)

    monkeypatch.setattr(predict, "room", lambda *_: None)
    prediction = Predictor(Limited(), recipe("emanet")).predict(photo(700, 900))
    assert prediction.tiles is not None
    assert "of 512 x 512 pixels" in prediction.tiles


def test_the_command_stays_within_a_limit_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects --max-memory: announced on stderr, recorded in JSON; the same image without a limit is whole."""
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(recipe("emanet"), tmp_path / "model.pt")
    Image.fromarray(photo(300, 410)).save("photo.png")
    code, out, err = run(capsys, "predict", "photo.png", "--weights", weights, "--max-memory", "1k", "--json")
    assert code == 0
    assert json.loads(out)["tiles"].startswith("12 tiles")
    assert "another protocol" in err
    code, out, err = run(capsys, "predict", "photo.png", "--weights", weights, "--json", "--out", "whole")
    assert json.loads(out)["tiles"] is None
    assert "another protocol" not in err
    a, b = (np.array(Image.open(f"{folder}/photo_mask.png")) for folder in ("predictions", "whole"))
    assert a.shape == b.shape
    code, _, err = run(capsys, "predict", "photo.png", "--weights", weights, "--max-memory", "much")
    assert code == 2
    assert "3G" in err


@pytest.mark.skipif(not packing_works(torch.float32), reason="this processor's PyTorch has no oneDNN")
@pytest.mark.parametrize(("free", "quick"), [(1_000_000_000, True), (20_000_000, False)])
def test_weights_that_only_save_time_yield_to_the_image(
    free: int, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects a small --max-memory: the second set of weights of a wide convolution is made where it has room, else not."""
    monkeypatch.setattr(predict, "room", lambda *_: free)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # more threads want larger images
    convs = nn.Sequential(best_conv(nn.Conv2d(3, 256, 3, padding=1)), best_conv(nn.Conv2d(256, 256, 3, padding=1)))
    convs.num_classes, convs.align_corners = 256, False  # type: ignore[assignment]
    engine = Engine(convs, "fp32", torch.device("cpu"), packed=True, compiled=False)  # type: ignore[arg-type]
    to_come = 36 * 256 * 256 * 4
    assert engine.bytes_to_come() == to_come
    Predictor(engine, recipe("emanet", "inference.mode='whole'")).predict(photo(64, 64))
    assert engine.bytes_to_come() == 0
    assert bool(convs[1]._places) == quick


def test_room_counts_what_is_held() -> None:
    """Protects the limit's meaning: it is the whole process's, so the room below it is less."""
    free = room(torch.device("cpu"), None)
    tight = room(torch.device("cpu"), 1)
    assert free is None or free > 0
    assert tight is None or tight < 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_megapixels_within_three_gigabytes(tmp_path: Path) -> None:
    """Protects large photographs: the peak of the whole command, decoding and writing included, stays below 3 GB."""
    import subprocess
    import sys

    weights = checkpoint(recipe("emanet", "backbone.width=64", "model.attention_channels=512"), tmp_path / "model.pt")
    small = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(small).resize((10_000, 10_000), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=90)
    arguments = ["predict", "large.jpg", "--weights", str(weights), "--max-memory", "3G", "--json"]
    program = (
        "import sys, torch\n"
        "from emaseg.cli import main\n"
        "from emaseg.free_memory import peak_memory\n"
        "code = main(sys.argv[1:])\n"
        # not ru_maxrss: a started process inherits the peak of the one that started it
        "print(peak_memory(torch.device('cpu')), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tiles"] is not None
    assert int(done.stderr.split()[-1]) < 3e9
    header = (tmp_path / "predictions/large_mask.png").read_bytes()[16:24]  # Pillow warns of so many pixels
    assert struct.unpack(">II", header) == (10_000, 10_000)


def test_painting_in_bands_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects overlays: bands of 7 rows give the picture that one band gives, outlines across their borders included."""
    from emaseg import visual

    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (10, 12)), np.ones((190, 5))).astype(np.uint8)  # thick outlines
    image = rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    whole = np.array(visual.overlay(image, labels, palette, ["a", "b", "c"]))
    monkeypatch.setattr(visual, "_BAND", 7)
    assert np.array_equal(np.array(visual.overlay(image, labels, palette, ["a", "b", "c"])), whole)
    monkeypatch.setattr(visual, "_BAND", 5000)
    assert np.array_equal(np.array(visual.overlay(image, labels, palette, ["a", "b", "c"])), whole)
    monkeypatch.setattr(visual, "_COUNTED", 100)
    assert visual.label_counts(labels).tolist() == np.bincount(labels.ravel(), minlength=256).tolist()
