"""mmsegmentation's and the authors' inference: their numbers, and their order of steps written out again."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import emaseg
import emaseg.inference.protocols as engine
from emaseg.data.pipeline.resize import limit_size, resize_image
from emaseg.data.pipeline.transforms import normalise
from emaseg.inference.protocols import label_map, window_spans
from emaseg.recipe import Inference, PixelStats, Recipe, load_recipe
from tests.inference.scores import scores_map
from tests.parity import golden, images, worst
from tests.shared import published_file

STATS = PixelStats((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


# -------------------------------------------------------------------------------------------------- their numbers
def filled(recipe: Recipe, name: str, factory: pytest.TempPathFactory) -> nn.Module:
    with torch.device("meta"):
        model = emaseg.build_model(recipe)
    emaseg.load_weights(model, published_file(factory, name, factory.mktemp("weights")))
    return model.eval()


@pytest.fixture(scope="module")
def mmseg(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    recipe = load_recipe("mmseg_cityscapes_r50_d8_512x1024_80k")
    return filled(recipe, "mmseg/mmseg_r50_512x1024", tmp_path_factory)


def test_mmseg_whole_and_windows(mmseg: nn.Module) -> None:
    """Protects the scores at input size: the whole image, and overlapping windows divided by their cover."""
    reference, image = golden("mmseg/mmseg_r50_512x1024.npz"), images((1, 3, 129, 161), 0)
    whole = load_recipe("mmseg_cityscapes_r50_d8_512x1024_80k").inference
    slide = Inference(mode="slide", window=(97, 97), stride=(65, 65), logits_path="via_input")
    for inference, key in ((whole, "logits_full_s4"), (slide, "slide_logits_s4")):
        scores = scores_map(mmseg, image, inference, (129, 161))
        assert worst(scores[None, :, ::4, ::4], reference[key]) <= 1e-5, key


def test_mmseg_from_pixels_to_labels(mmseg: nn.Module) -> None:
    """Protects colour order, normalisation and the two resizes, up to the class of every pixel."""
    reference = golden("mmseg/mmseg_r50_512x1024.npz")
    bgr = np.random.default_rng(3).integers(0, 256, (129, 161, 3), np.uint8)
    recipe = load_recipe("mmseg_cityscapes_r50_d8_512x1024_80k")
    inference = dataclasses.replace(recipe.inference, resize_long_short=())  # the fixture's image is resized already
    with torch.inference_mode():
        views = engine._image_views(bgr[..., ::-1], inference, recipe.backbone.pixel_stats)
        (term,) = engine._terms(mmseg, views, inference)
        scores = engine._sum([engine._whole(term, False)], (200, 250), inference, False)
        labels = engine._arg_max([term], (200, 250), inference, False)
    assert worst(scores[:, ::8, ::8], reference["predict_logits_s8"]) <= 1e-5
    best = scores.topk(2, dim=0).values
    decided = (best[0] - best[1]).numpy() > 1e-4
    assert decided.mean() > 0.999
    assert np.array_equal(labels.numpy()[decided], reference["predict_labels"][decided])
    direct = engine._sum([mmseg(normalise(bgr[..., ::-1], STATS)[None])[0]], (200, 250), inference, False)
    assert worst(direct[:, ::8, ::8].detach(), reference["predict_logits_s8"]) > 1e-3  # one resize is something else


@pytest.mark.slow  # the network's own numbers are in tests/models/test_emanet_variants.py
def test_authors_whole_image(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Protects the authors' network in their own protocol: padded to 8k + 1 (nothing to pad here), corners aligned."""
    recipe = load_recipe("paper_voc_val_r101_emanet512", ['backbone.kind="resnet50"'])
    model = filled(recipe, "mmseg/official_r50", tmp_path_factory)
    scores = scores_map(model, images((1, 3, 129, 161), 0), recipe.inference, (129, 161))
    assert worst(scores[None, :, ::4, ::4], golden("mmseg/official_r50.npz")["logits_full_s4"]) <= 1e-5


# ------------------------------------------------------------------------------------------- their order of steps
class Toy(nn.Module):
    """Logits of 5 classes from the mean colour of each 4 x 4 cell and of its left neighbour."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.sizes: list[tuple[int, ...]] = []
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 5, (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[-2:]))
        logits: Tensor = self.conv(F.pad(F.avg_pool2d(x, 4, ceil_mode=True), (1, 0, 0, 0)))
        return logits


def photo(height: int, width: int) -> np.ndarray:
    """Blocks of colour: scores of neighbouring classes are well apart."""
    coarse = np.random.default_rng(5).integers(0, 256, (-(-height // 6), -(-width // 6), 3), dtype=np.uint8)
    return coarse.repeat(6, axis=0).repeat(6, axis=1)[:height, :width]


def mmseg_logits(model: Toy, x: Tensor, window: int, stride: int) -> Tensor:
    """Whole (window 0) or by windows: every window's logits go to its size, are added, and divided by the count."""
    height, width = x.shape[-2:]
    if not window:
        return F.interpolate(model(x), size=(height, width), mode="bilinear", align_corners=model.align_corners)
    total, count = torch.zeros(1, 5, height, width), torch.zeros(1, 1, height, width)
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            part = x[:, :, top:bottom, left:right]
            logits = F.interpolate(model(part), part.shape[-2:], mode="bilinear", align_corners=model.align_corners)
            total += F.pad(logits, (left, width - right, top, height - bottom))
            count[:, :, top:bottom, left:right] += 1
    return total / count


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(0, 0), (24, 16)])
def test_mmseg_several_scales(window: int, stride: int, align_corners: bool) -> None:
    """Protects "ms+flip" of the 512x1024 (whole) and of the 769 rows (windows, corners aligned).

    Each ratio of the original image, then its mirror image: logits over the input's size and turned back, resized to
    the original size, softmax, mean.
    """
    row = load_recipe("mmseg_cityscapes_r50_d8_769x769_80k" if window else "mmseg_cityscapes_r50_d8_512x1024_80k")
    assert row.inference_tta is not None
    inference = row.inference_tta
    if window:
        inference = dataclasses.replace(inference, window=(window, window), stride=(stride, stride))
    model, image = Toy(align_corners).eval(), photo(37, 61)
    total = torch.zeros(1, 5, 37, 61)
    with torch.inference_mode():
        for ratio in RATIOS:
            sides = int(37 * ratio + 0.5), int(61 * ratio + 0.5)  # the target; the ratio of sides is kept inside it
            factor = min(sides[1] / 61, sides[0] / 37)
            size = int(37 * factor + 0.5), int(61 * factor + 0.5)
            x = normalise(resize_image(image, size), STATS)[None]
            for mirrored in (False, True):
                logits = mmseg_logits(model, x.flip(-1) if mirrored else x, window, stride)
                logits = logits.flip(-1) if mirrored else logits
                total += F.interpolate(logits, (37, 61), mode="bilinear", align_corners=align_corners).softmax(1)
    best = total[0].topk(2, dim=0)
    decided = (best.values[0] - best.values[1]).numpy() > 1e-4
    assert decided.mean() > 0.99
    own = label_map(model, image, inference, STATS, "cpu")
    assert np.array_equal(own[decided], best.indices[0].numpy()[decided])


def test_mmseg_769_on_a_cityscapes_image() -> None:
    """Protects the hand-computed sizes of the 769 rows: 2048x1024 grows by one pixel a side and takes eight windows."""
    row = load_recipe("mmseg_cityscapes_r50_d8_769x769_80k")
    inference = row.inference
    assert limit_size((1024, 2048), inference.resize_long_short, inference.keep_ratio) == (1025, 2049)
    assert window_spans(1025, inference.window[0], inference.stride[0]) == [(0, 769), (256, 1025)]
    columns = window_spans(2049, inference.window[1], inference.stride[1])
    assert columns == [(0, 769), (513, 1282), (1026, 1795), (1280, 2049)]
    with torch.device("meta"):
        assert emaseg.build_model(row).align_corners


# --------------------------------------------------------------------------------------------------- 8k + 1
@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_authors_padding(height: int, width: int) -> None:
    """Protects the authors' evaluation: zeros below and right up to the next 8k + 1, corners aligned over the padded
    size, and the padding cut off before the classes are chosen.
    """
    model, image = Toy(align_corners=True).eval(), photo(height, width)
    own = label_map(model, image, Inference(pad="8k+1", logits_path="via_input"), STATS, "cpu")
    rows, columns = next(s for s in range(height, 99) if s % 8 == 1), next(s for s in range(width, 99) if s % 8 == 1)
    assert model.sizes == [(rows, columns)]
    padded = torch.zeros(1, 3, rows, columns)
    padded[0, :, :height, :width] = normalise(image, STATS)
    with torch.inference_mode():
        scores = F.interpolate(model(padded), (rows, columns), mode="bilinear", align_corners=True)
    best = scores[0, :, :height, :width].topk(2, dim=0)
    decided = (best.values[0] - best.values[1]).numpy() > 1e-5
    assert np.array_equal(own[decided], best.indices[0].numpy()[decided])


@pytest.mark.parametrize(
    ("size", "padded"),
    [((33, 41), (33, 41)), ((32, 42), (33, 49)), ((1, 2), (1, 9)), ((375, 500), (377, 505)), ((513, 513), (513, 513))],
)
def test_authors_padded_sizes(size: tuple[int, int], padded: tuple[int, int]) -> None:
    """Sizes computed by hand, VOC's among them."""
    model = Toy(align_corners=True).eval()
    settings_: dict[str, Any] = {"pad": "8k+1", "logits_path": "via_input"}
    assert label_map(model, photo(*size), Inference(**settings_), STATS, "cpu").shape == size
    assert model.sizes == [padded]
