"""Scores beside the mIoU: each against a second, slow implementation, and the law that parts of a set add up to it."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.inference.protocols import label_and_confidence, label_map
from emaseg.metrics import RADII, Tally, details_of
from emaseg.metrics.boundary import BoundaryCounts, rings
from emaseg.metrics.details import bootstrap
from emaseg.recipe import Inference, PixelStats
from tests.evaluation.test_evaluate import Painted, Reader, run
from tests.inference.scores import scores_map

UInt8 = npt.NDArray[np.uint8]
K = 3
CLASSES = ("a", "b", "c")


def blobs(seed: int, height: int, width: int, ignored: bool = True) -> tuple[UInt8, UInt8]:
    """A label map of rectangles with some ignored, and a prediction that is shifted and has errors of its own."""
    rng = np.random.default_rng(seed)
    label = np.zeros((height, width), np.uint8)
    for _ in range(4):
        top, left = rng.integers(0, height), rng.integers(0, width)
        value = rng.choice([0, 1, 2, 255] if ignored else [0, 1, 2])
        label[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = value
    prediction = np.roll(label, int(rng.integers(-2, 3)), axis=int(rng.integers(0, 2)))
    prediction = np.where(prediction == 255, rng.integers(0, K), prediction).astype(np.uint8)
    flips = rng.random(label.shape) < 0.03
    prediction[flips] = rng.integers(0, K, int(flips.sum()))
    return label, prediction


# ------------------------------------------------------------------------------------------------- near borders
def near_other(labels: UInt8, y: int, x: int, radius: int) -> bool:
    """Whether a pixel of another label lies within the radius, looking at each."""
    window = labels[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
    return bool((window != labels[y, x]).any())


def inner_border(region: npt.NDArray[np.bool_], radius: int) -> set[tuple[int, int]]:
    """The pixels of a region that an erosion by a square takes away; outside the image nothing belongs to it."""
    height, width = region.shape
    found = set()
    for y, x in zip(*np.nonzero(region), strict=True):
        square = [(y + dy, x + dx) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1)]
        if not all(0 <= v < height and 0 <= u < width and region[v, u] for v, u in square):
            found.add((int(y), int(x)))
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 17), st.integers(1, 15))
def test_boundary_iou_and_trimaps_equal_a_slow_count(seed: int, height: int, width: int) -> None:
    """Cheng's borders by erosion of each class, the trimap by looking around each pixel; ignored pixels included."""
    label, prediction = blobs(seed, height, width)
    counts = BoundaryCounts.empty(K)
    counts.add(label, prediction)
    masked = np.where(label < K, prediction, 255).astype(np.uint8)
    for row, radius in enumerate(RADII):
        band = [
            (y, x) for y in range(height) for x in range(width) if label[y, x] < K and near_other(label, y, x, radius)
        ]
        for k in range(K):
            assert counts.labelled[row, k] == sum(label[p] == k for p in band)
            assert counts.predicted[row, k] == sum(prediction[p] == k for p in band)
            assert counts.correct[row, k] == sum(label[p] == prediction[p] == k for p in band)
            one, other = inner_border(label == k, radius), inner_border(masked == k, radius)
            assert counts.label_border[row, k] == len(one)
            assert counts.prediction_border[row, k] == len(other)
            assert counts.common_border[row, k] == len(one & other)


def test_rings_of_a_straight_edge() -> None:
    """Distances are those of a chessboard: 1 within one pixel, then within three, within five, and none."""
    labels = np.zeros((3, 16), np.uint8)
    labels[:, 8:] = 1
    assert rings(labels)[1].tolist() == [3, 3, 3, 2, 2, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_a_perfect_map_has_perfect_borders() -> None:
    label, _ = blobs(3, 24, 30)
    tally = Tally.empty(K)
    tally.add(0, "x", label, np.where(label < K, label, 0).astype(np.uint8))
    for row in details_of(tally).boundary:
        assert (row.boundary_miou, row.trimap_miou) == (1.0, 1.0)


# --------------------------------------------------------------------------------------------------- calibration
def slow_error(label: UInt8, prediction: UInt8, confidence: npt.NDArray[np.float32]) -> float:
    """Guo et al.'s equations 3 to 5, pixel by pixel."""
    bins: list[list[tuple[bool, float]]] = [[] for _ in range(15)]
    for true, own, sure in zip(label.ravel(), prediction.ravel(), confidence.ravel(), strict=True):
        if true < K:
            place = next(m for m in range(15) if float(sure) <= (m + 1) / 15 or m == 14)
            bins[place].append((bool(true == own), float(sure)))
    total = sum(map(len, bins))
    gaps = (abs(sum(r for r, _ in b) / len(b) - sum(c for _, c in b) / len(b)) * len(b) for b in bins if b)
    return sum(gaps) / total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_calibration_error_equals_a_slow_count(seed: int) -> None:
    label, prediction = blobs(seed, 13, 9)
    confidence = np.random.default_rng(seed).random(label.shape).astype(np.float32)
    tally = Tally.empty(K, calibrated=True)
    tally.add(0, "x", label, prediction, confidence)
    score = details_of(tally).calibration
    assert score is not None
    if (label < K).any():
        assert score.error == pytest.approx(slow_error(label, prediction, confidence), abs=1e-6)  # in steps of 2**-24
    assert sum(pixels for pixels, _, _ in score.bins) == (label < K).sum()


@pytest.mark.parametrize("average", ["logits", "probs_before_resize", "probs_after_resize"])
@pytest.mark.parametrize("flip", [False, True])
def test_confidence_is_the_probability_of_the_label(average: str, flip: bool) -> None:
    """The same labels as without, and the probability that the whole map of scores gives, in every protocol."""

    class Coarse(Reader):
        def forward(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:  # type: ignore[override]
            return super().forward(x)[..., ::4, ::4] / 60  # type: ignore[index]

    image = np.random.default_rng(0).integers(0, 255, (37, 50, 3), dtype=np.uint8)
    stats, inference = PixelStats((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), Inference(average=average, flip=flip)  # type: ignore[arg-type]
    model = Coarse().eval()
    labels, confidence = label_and_confidence(model, image, inference, stats, "cpu")
    assert np.array_equal(labels, label_map(model, image, inference, stats, "cpu"))
    import torch

    prepared = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    scores = scores_map(model, prepared, inference, (37, 50))
    expected = (scores.softmax(0) if average == "logits" else scores).amax(0).numpy()
    assert np.allclose(confidence, expected, atol=1e-5)


# ------------------------------------------------------------------------------------------ of the whole confusion
def test_dice_precision_and_the_frequency_weighted_iou_by_hand() -> None:
    """Six pixels that can be counted on fingers; b is predicted without being there, so the conventions differ."""
    tally = Tally.empty(K)
    tally.add(0, "x", np.array([[0, 0, 0, 2, 2, 255]], np.uint8), np.array([[0, 0, 1, 2, 0, 0]], np.uint8))
    details = details_of(tally)
    a, b, c = details.per_class
    assert (a.dice, a.precision, a.recall) == (4 / 6, 2 / 3, 2 / 3)
    assert (b.dice, b.precision, b.recall) == (0.0, 0.0, None)
    assert (c.dice, c.precision, c.recall) == (2 / 3, 1.0, 0.5)
    assert tally.scores(CLASSES).miou == pytest.approx((2 / 4 + 0 + 1 / 2) / 3)
    assert details.miou_labelled == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert details.frequency_weighted_iou == pytest.approx((3 * 2 / 4 + 2 * 1 / 2) / 5)
    assert details.interval is None  # of one image


def test_a_class_that_is_never_right_says_so() -> None:
    """Labelled and predicted, never at one pixel: neither absent nor overlooked."""
    tally = Tally.empty(2)
    tally.add(0, "x", np.array([[0, 1]], np.uint8), np.array([[1, 0]], np.uint8))
    assert [c.status for c in tally.scores(("a", "b")).per_class] == ["never_right", "never_right"]


def test_images_have_scores_of_their_own() -> None:
    tally = Tally.empty(K)
    first = tally.add(4, "x", np.array([[0, 0, 255]], np.uint8), np.array([[0, 2, 1]], np.uint8))
    assert (first.pixels, first.iou, first.miou, first.pixel_accuracy) == (2, (0.5, None, 0.0), 0.25, 0.5)
    empty = tally.add(5, "y", np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert (empty.pixels, empty.miou, empty.pixel_accuracy) == (0, None, None)


# -------------------------------------------------------------------------------------------------- the bootstrap
def test_the_interval_equals_one_image_after_the_other() -> None:
    """The same draws, added up and scored in plain Python."""
    tally = Tally.empty(K)
    for index in range(7):
        tally.add(index, str(index), *blobs(index, 12, 12))
    interval = bootstrap(tally.images, resamples=50)
    draws = np.random.default_rng(0).integers(0, 7, (50, 7))
    mious = []
    for draw in draws:
        again = Tally.empty(K)
        for place, index in enumerate(draw):
            again.add(place, "", *blobs(int(index), 12, 12))
        mious.append(again.scores(CLASSES).miou)
    assert interval is not None
    assert [interval.low, interval.high] == pytest.approx(
        np.quantile(np.array(mious), [0.025, 0.975]).tolist(), abs=1e-12
    )


# -------------------------------------------------------------------------------------------------------- the sums
def test_parts_add_up_to_the_whole_in_any_order() -> None:
    """What several processes count is what one counts, to the last digit."""

    def counted(indices: list[int]) -> Tally:
        tally = Tally.empty(K, calibrated=True)
        for index in indices:
            confidence = np.random.default_rng(index).random((14, 11)).astype(np.float32)
            tally.add(index, f"image {index}", *blobs(index, 14, 11), confidence)
        return tally

    whole, sum_of_parts = counted(list(range(9))), Tally.empty(K, calibrated=True)
    for part in ([1, 4, 7], [2, 5, 8], [0, 3, 6]):
        sum_of_parts.merge(counted(part))
    assert details_of(sum_of_parts) == details_of(whole)
    assert sum_of_parts.scores(CLASSES) == whole.scores(CLASSES)
    assert [i.name for i in sum_of_parts.images] == [i.name for i in whole.images]


def test_an_evaluation_tells_its_tally_and_json_holds_it() -> None:
    """Every number is in metrics.json under its own name, strict JSON; existing keys are where they were."""
    from emaseg.evaluation.evaluate import evaluation_json

    last = run(Painted())[-1]
    tally = last.tally  # type: ignore[union-attr]
    assert [(i.index, i.name) for i in tally.images] == [(n, f"image {n}") for n in range(3)]
    details = details_of(tally)
    plain = evaluation_json(last.scores, None, Inference(), None)  # type: ignore[union-attr]
    content = json.loads(
        json.dumps(evaluation_json(last.scores, None, Inference(), None, details=details), allow_nan=False)
    )  # type: ignore[union-attr]
    assert list(content)[: len(plain)] == list(plain)
    assert set(content) - set(plain) == {
        "miou_labelled", "miou_interval", "frequency_weighted_iou", "mean_dice", "mean_precision", "boundary", "calibration",
    }  # fmt: skip
    assert content["calibration"] is None
    assert content["miou_interval"] == {"low": 1.0, "high": 1.0, "level": 0.95, "resamples": 1000}
    assert [row["pixels"] for row in content["boundary"]] == [1, 3, 5]
    first = content["per_class"][0]
    assert first["dice"] == first["precision"] == first["recall"] == 1.0
    assert math.isclose(sum(c["labelled_pixels"] for c in content["per_class"]), 3 * 31 * 21 - 15)
