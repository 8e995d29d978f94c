"""Inference protocols: the published results of both networks, then laws on a small network with known behaviour."""

from __future__ import annotations

import dataclasses
import itertools
import json
import weakref
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
from emaseg.errors import DataError
from emaseg.inference.protocols import label_map, window_spans
from emaseg.recipe import Inference, PixelStats
from tests.inference.scores import scores_map
from tests.parity import GOLDEN, golden, images, worst
from tests.shared import published_file

META = json.loads((GOLDEN / "inference.json").read_text())
FINAL = tuple(META["final"])
STATS = PixelStats((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
SLIDE: dict[str, Any] = {"mode": "slide", "window": (24, 32), "stride": (20, 30)}


# ----------------------------------------------------------------------------------------------- published numbers
@pytest.fixture(scope="module")
def emanet(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """EMANet R-50-D8 with the weights that the golden results were made with."""
    return filled("voc_r50_d8", "ssseg/emanet_r50d8_voc", tmp_path_factory)


def filled(recipe: str, weights: str, factory: pytest.TempPathFactory) -> nn.Module:
    with torch.device("meta"):
        model = emaseg.build_model(emaseg.load_recipe(recipe))
    emaseg.load_weights(model, published_file(factory, weights, factory.mktemp("weights")))
    return model.eval()


def published(case: str) -> Inference:
    settings_ = META["cases"][case]
    slide = settings_["mode"] == "slide"
    return Inference(
        mode=settings_["mode"],
        window=tuple(META["window"]) if slide else (),
        stride=tuple(META["stride"]) if slide else (),
        scales=tuple(map(float, settings_["ms"])),
        flip=settings_["flip"],
        average="probs_before_resize" if settings_["probs"] else "logits",
    )


@pytest.mark.parametrize(
    "case",
    [
        "whole_logits",
        "whole_probs",
        pytest.param("slide_logits", marks=pytest.mark.slow),
        "slide_probs",
        pytest.param("whole_msflip_logits", marks=pytest.mark.slow),
        "whole_msflip_probs",
        pytest.param("slide_msflip_probs", marks=pytest.mark.slow),  # 150 windows
    ],
)
def test_published_protocols(emanet: nn.Module, case: str) -> None:
    """sssegmentation's scores and label maps: whole and slide, logits and probabilities, scales and flip."""
    reference = {k.split("/")[1]: v for k, v in golden("inference.npz").items() if k.startswith(f"{case}/")}
    inference = published(case)
    hold(emanet, inference, reference, classes=(4 if inference.mode == "slide" else 2, 4))


def hold(model: nn.Module, inference: Inference, reference: dict[str, np.ndarray], classes: tuple[int, int]) -> None:
    """Compare with golden results that hold every so many classes: of single terms, and of the final scores."""
    image = images((1, 3, *META["input"]), META["seed"])
    with torch.inference_mode():
        terms = list(engine._terms(model, engine._rescaled(image, inference.scales), inference))
        whole = [engine._whole(term, False) for term in terms]
        scores = engine._sum(whole, FINAL, inference, False) / len(terms)
        labels = engine._arg_max(terms, FINAL, inference, False)
    every, last = classes
    assert worst(whole[0][::every, ::2, ::2], reference["first_sub"]) <= 1e-4
    assert worst(whole[-1][::every, ::4, ::4], reference["last_sub"]) <= 1e-4
    assert worst(scores[::last, ::4, ::4], reference["final_sub"]) <= 1e-4
    best = scores.topk(2, dim=0).values
    undecided = (best[0] - best[1]).numpy() <= 1e-5 * scores.abs().max().item()
    assert undecided.mean() < 1e-3
    assert np.array_equal(labels.numpy()[~undecided], reference["argmax"][~undecided])


def test_published_window_on_a_smaller_image(emanet: nn.Module) -> None:
    """An image lower than the window gives windows of its own height, without padding."""
    case = META["cases"]["slide_small"]
    image = images((1, 3, *case["input"]), case["seed"])
    with torch.inference_mode():
        scores = engine._slide(emanet, image, published("slide_logits"))
    assert worst(scores[::4, ::2, ::2], golden("inference.npz")["slide_small/sub"]) <= 1e-4


@pytest.fixture(scope="module")
def memorynet(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """MemoryNet R-50-D8 with the weights that the golden results were made with."""
    return filled("memorynet_ade20k_r50_d8", "ssseg/memorynet_r50d8_ade20k", tmp_path_factory)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", [case for case in META["cases"] if case != "slide_small"])
def test_published_protocols_of_memorynet(memorynet: nn.Module, case: str) -> None:
    """The same protocols with the other network and 150 classes."""
    reference = golden("inference_memorynet.npz")
    prefix = f"ade20k/{case}/"
    hold(memorynet, published(case), {k.removeprefix(prefix): v for k, v in reference.items() if prefix in k}, (15, 15))


@pytest.mark.slow
def test_published_mirroring_of_persons(tmp_path_factory: pytest.TempPathFactory) -> None:
    """LIP: the mirrored image's left and right limbs change places, by the recipe's own protocol."""
    recipe = emaseg.load_recipe("memorynet_lip_r101_d8")
    assert recipe.inference_tta is not None
    assert recipe.inference_tta.flip
    assert recipe.inference_tta.flip_pairs == ((14, 15), (16, 17), (18, 19))
    inference = Inference(flip=True, flip_pairs=recipe.inference_tta.flip_pairs)
    prefix = "lip/whole_flip_logits/"
    reference = golden("inference_memorynet.npz")
    model = filled("memorynet_lip_r101_d8", "ssseg/memorynet_r101d8_lip", tmp_path_factory)
    hold(model, inference, {k.removeprefix(prefix): v for k, v in reference.items() if prefix in k}, (2, 2))


# ------------------------------------------------------------------------------------------------ a small network
class Toy(nn.Module):
    """Logits from the mean colour of each cell of `step` x `step` pixels, and from its left neighbour's."""

    def __init__(self, classes: int = 5, step: int = 4, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.step = step
        self.sizes: list[tuple[int, ...]] = []
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, classes, (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape))
        cells: Tensor = F.avg_pool2d(x, self.step, ceil_mode=True)
        logits: Tensor = self.conv(F.pad(cells, (1, 0, 0, 0)))
        return logits


class Constant(nn.Module):
    """The same logits everywhere."""

    align_corners = False

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[-2] // 8 + 1, x.shape[-1] // 8 + 1)
        return torch.tensor([0.0, 2.0, -1.0])[None, :, None, None].expand(1, 3, *grid)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels_of(model: nn.Module, image: np.ndarray, inference: Inference) -> np.ndarray:
    return label_map(model.eval(), image, inference, STATS, "cpu")


PROTOCOLS = {
    "whole": Inference(),
    "whole, probabilities": Inference(average="probs_before_resize"),
    "resized": Inference(resize_long_short=(80, 24)),
    "over the input": Inference(resize_long_short=(80, 24), logits_path="via_input"),
    "scales and flip": Inference(scales=(0.5, 1.0, 1.5), flip=True),
    "mmseg's": Inference(
        scales=(0.5, 1.0, 1.75),
        flip=True,
        scale_source="image",
        average="probs_after_resize",
        logits_path="via_input",
    ),
    "authors'": Inference(pad="8k+1", logits_path="via_input"),
    "slide": Inference(**SLIDE),
    "slide, everything": Inference(**SLIDE, scales=(0.75, 1.25), flip=True, average="probs_before_resize"),
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_bands_change_nothing(name: str, align_corners: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label map made in bands of two rows is the arg max of the whole score map."""
    model, image, inference = Toy(align_corners=align_corners).eval(), photo(37, 53), PROTOCOLS[name]
    with torch.inference_mode():
        views = engine._image_views(image, inference, STATS)
        terms = [engine._whole(term, align_corners) for term in engine._terms(model, views, inference)]
        scores = engine._sum(terms, (37, 53), inference, align_corners)
    best = scores.topk(2, dim=0).values
    decided = (best[0] - best[1]).numpy() > 1e-5
    assert decided.mean() > 0.99
    for rows in (2, 1000):
        monkeypatch.setattr(engine, "BAND_BYTES_CPU", rows * 4 * 5 * 53)
        labels = labels_of(model, image, inference)
        assert labels.shape == (37, 53)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels[decided], scores.argmax(0).numpy()[decided])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_constant_scores_survive_every_protocol(name: str) -> None:
    """Windows, scales and mirror images are averaged, not added up: logits come out as they went in."""
    inference = dataclasses.replace(PROTOCOLS[name], scale_source="tensor")
    scores = scores_map(Constant().eval(), torch.zeros(1, 3, 41, 59), inference, (30, 70))
    expected = torch.tensor([0.0, 2.0, -1.0])
    if inference.average != "logits":
        expected = expected.softmax(0)
    torch.testing.assert_close(scores, expected[:, None, None].expand(3, 30, 70))


def test_one_window_is_the_whole_image() -> None:
    """Slide with a window that covers the image equals whole, over the input's size."""
    image = images((1, 3, 30, 44), 1)
    slide = Inference(mode="slide", window=(64, 44), stride=(32, 20))
    whole = Inference(logits_path="via_input")
    assert torch.equal(
        scores_map(Toy().eval(), image, slide, (50, 60)), scores_map(Toy().eval(), image, whole, (50, 60))
    )


def test_a_mirrored_image_gives_the_mirrored_result() -> None:
    """With flip, left and right are treated alike: swapping them in the image swaps them in the scores."""
    image, inference = images((1, 3, 32, 48), 2), Inference(flip=True)
    scores = scores_map(Toy().eval(), image, inference, (32, 48))
    mirrored = scores_map(Toy().eval(), image.flip(-1), inference, (32, 48))
    torch.testing.assert_close(mirrored.flip(-1), scores)
    alone = dataclasses.replace(inference, flip=False)
    plain, turned = (scores_map(Toy().eval(), x, alone, (32, 48)) for x in (image, image.flip(-1)))
    assert (turned.flip(-1) - plain).abs().max() > 0.1  # the network itself does not treat them alike


def test_flip_pairs_swap_left_and_right() -> None:
    """A mirrored left arm is a right arm: the pair's channels change places, the others stay."""
    image = images((1, 3, 32, 48), 4)
    plain = scores_map(Toy().eval(), image, Inference(), (32, 48))
    turned = scores_map(Toy().eval(), image.flip(-1), Inference(), (32, 48)).flip(-1)
    paired = scores_map(Toy().eval(), image, Inference(flip=True, flip_pairs=((1, 3),)), (32, 48))
    torch.testing.assert_close(paired, (plain + turned[[0, 3, 2, 1, 4]]) / 2)


def test_softmax_of_a_single_result_on_the_grid_keeps_the_order() -> None:
    """At the grid's own size probabilities and logits choose the same classes."""
    image = images((1, 3, 32, 48), 5)
    logits = scores_map(Toy().eval(), image, Inference(), (8, 12))
    probs = scores_map(Toy().eval(), image, Inference(average="probs_before_resize"), (8, 12))
    torch.testing.assert_close(probs, logits.softmax(0))
    after = scores_map(Toy().eval(), image, Inference(average="probs_after_resize"), (31, 50))
    torch.testing.assert_close(after, scores_map(Toy().eval(), image, Inference(), (31, 50)).softmax(0))


def test_scales_sample_at_the_factor() -> None:
    """0.75 of 97 is 72.75: sampling at steps of 1/0.75, not of 97/72, as the published scores need."""
    image = images((1, 3, 97, 131), 6)
    (scaled,) = engine._rescaled(image, (0.75,))
    assert scaled.shape == (1, 3, 72, 98)
    x = (np.arange(98) + 0.5) / 0.75 - 0.5
    y = (np.arange(72) + 0.5) / 0.75 - 0.5
    (left, top), (u, v) = (np.floor(x).astype(int), np.floor(y).astype(int)), (x % 1, y % 1)
    pixels = np.pad(image[0].numpy(), ((0, 0), (0, 1), (0, 1)), mode="edge")
    rows = pixels[:, top] * (1 - v)[:, None] + pixels[:, top + 1] * v[:, None]
    expected = rows[:, :, left] * (1 - u) + rows[:, :, left + 1] * u
    assert np.abs(scaled[0].numpy() - expected).max() < 1e-4
    (same,) = engine._rescaled(image, (1.0,))
    assert torch.equal(same, F.interpolate(image, scale_factor=1.0, mode="bilinear", align_corners=False))


def test_scales_of_the_image_come_from_its_pixels() -> None:
    """scale_source "image" resizes the photograph itself, to round(side * scale), with the limits scaled alike."""
    model = Toy().eval()
    labels_of(model, photo(37, 53), Inference(scales=(0.5, 1.0, 2.0), scale_source="image"))
    assert [size[-2:] for size in model.sizes] == [(19, 27), (37, 53), (74, 106)]
    model.sizes.clear()
    labels_of(model, photo(40, 60), Inference(resize_long_short=(200, 80), scales=(0.5, 2.0), scale_source="image"))
    assert [size[-2:] for size in model.sizes] == [(40, 60), (160, 240)]


def test_padding_reaches_the_network_and_not_the_result() -> None:
    """8k+1: the network sees sides of 1 modulo 8, padded with the mean colour; the result has the image's size."""
    model = Toy(step=1).eval()
    padded = Inference(pad="8k+1", logits_path="via_input")
    image = photo(34, 49)
    labels = labels_of(model, image, padded)
    assert model.sizes == [(1, 3, 41, 49)]
    assert np.array_equal(labels, labels_of(model, image, Inference()))  # step 1 looks at no other row


def test_terms_are_not_piled_up() -> None:
    """Where a term is as large as the result, none is alive while the next is made, whatever the scales."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def one() -> Tensor:
        alive.append(sum(ref() is not None for ref in made))
        term = torch.ones(3, 8, 8)
        made.append(weakref.ref(term))
        return term

    total = engine._sum((one() for _ in range(5)), (8, 8), Inference(), False)
    assert torch.equal(total, torch.full((3, 8, 8), 5.0))
    assert alive == [0, 0, 0, 0, 0]


def test_views_are_not_piled_up() -> None:
    """Protects memory at large scales: of the image as the network sees it, one view is alive, in the layout it wants."""
    made: list[weakref.ref[Tensor]] = []

    class Watching(Toy):
        def forward(self, x: Tensor) -> Tensor:
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert all(ref() is None for ref in made)
            made.append(weakref.ref(x))
            return super().forward(x)

    inference = Inference(scales=(0.5, 1.5, 0.75), flip=True, scale_source="image")
    label_map(Watching().eval(), photo(24, 40), inference, STATS, "cpu")
    assert len(made) == 6


def test_a_training_model_is_refused() -> None:
    """Batch statistics of one image would silently change every score."""
    with pytest.raises(ValueError, match="training mode"):
        scores_map(Toy(), torch.zeros(1, 3, 16, 16), Inference(), (16, 16))


def test_an_image_that_vanishes_is_an_error_of_the_image() -> None:
    """A message instead of a failure deep inside the network."""
    with pytest.raises(DataError, match=r"1 x 9 pixels at scale 0.5"):
        labels_of(Toy(), photo(9, 1), Inference(scales=(0.5, 1.0)))


@settings(max_examples=200)
@given(st.integers(1, 400), st.integers(1, 100), st.integers(1, 100))
def test_windows_cover_every_pixel(length: int, window: int, stride: int) -> None:
    """Windows lie inside, start no further apart than the stride, and cover the whole side."""
    stride = min(stride, window)
    spans = window_spans(length, window, stride)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(end - start == min(window, length) for start, end in spans)
    assert all(0 < b[0] - a[0] <= stride for a, b in itertools.pairwise(spans))
    assert window_spans(129, 65, 43) == [(0, 65), (43, 108), (64, 129)]
