"""Scores: the published convention to the last digit, and the laws of a confusion matrix."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emaseg.metrics import Confusion, Scores
from tests.parity import GOLDEN, golden

CASES: dict[str, dict[str, object]] = json.loads((GOLDEN / "metrics.json").read_text())
SIX = tuple("abcdef")


def counted(case: str) -> Confusion:
    arrays = golden("metrics.npz")
    confusion = Confusion.empty(6)
    for image in range(3):
        confusion.add(arrays[f"{case}__gt{image}"], arrays[f"{case}__pred{image}"])
    return confusion


def by_hand(*pixels: tuple[int, int], classes: int = 3) -> Scores:
    """Scores of a one-row image given as (label, prediction) pairs."""
    confusion = Confusion.empty(classes)
    label, prediction = np.array(pixels, dtype=np.uint8).T
    confusion.add(label[None], prediction[None])
    return confusion.scores([f"c{k}" for k in range(classes)], 1)


@pytest.mark.parametrize("case", CASES)
def test_published_scores(case: str) -> None:
    """The numbers that the published tables are made with, absent and out-of-range classes included."""
    confusion, expected = counted(case), CASES[case]
    rows = golden("metrics.npz")[f"{case}__confusion_gt_rows"]  # stops at the largest id that occurs
    padded = np.zeros((6, 6), dtype=np.int64)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    assert np.array_equal(confusion.counts, padded)
    scores = confusion.scores(SIX, 3)
    assert scores.images == 3
    for name in ("miou", "pixel_accuracy", "mean_accuracy"):
        assert getattr(scores, name) == pytest.approx(expected[name], abs=1e-12)
    for name in ("iou", "accuracy"):
        values = expected[name]
        assert isinstance(values, list)
        own = [getattr(c, name) for c in scores.per_class]
        assert [v is None for v in own] == [v is None for v in values]
        assert [v or 0.0 for v in own] == pytest.approx([v or 0.0 for v in values], abs=1e-12)


@pytest.mark.parametrize("wrong", ["wrong_nan_as_zero", "wrong_mean_of_images"])
def test_the_two_common_mistakes_would_show(wrong: str) -> None:
    """The golden cases can tell this convention from counting NaN as 0 and from averaging images."""
    scores = counted("c3_absent_gt_predicted_one_valid_pixel").scores(SIX, 3)
    assert abs((scores.miou or 0.0) - float(str(CASES["c3_absent_gt_predicted_one_valid_pixel"][wrong]))) > 1e-3


def test_status_of_each_kind_of_class() -> None:
    """The table tells a class that failed from one that the split does not hold."""
    scores = by_hand((0, 0), (0, 2), (1, 0), (255, 3), classes=4)
    assert [c.status for c in scores.per_class] == ["ok", "never_predicted", "only_predicted", "absent"]
    assert [c.iou for c in scores.per_class] == [pytest.approx(1 / 3), 0.0, 0.0, None]
    assert [c.accuracy for c in scores.per_class] == [0.5, 0.0, None, None]
    assert scores.miou == pytest.approx(1 / 9)
    assert scores.mean_accuracy == pytest.approx(0.25)


def test_nothing_labelled_has_no_scores() -> None:
    """No 0/0 and no warning on a split of ignored pixels."""
    scores = by_hand((255, 0), (255, 1))
    assert (scores.miou, scores.pixel_accuracy, scores.mean_accuracy) == (None, None, None)


def test_wrong_input_is_refused() -> None:
    """A silent miscount is worse than an error."""
    confusion, label = Confusion.empty(3), np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="differ in size"):
        confusion.add(label, label[:1])
    with pytest.raises(ValueError, match="uint8"):
        confusion.add(label, label.astype(np.int64))
    with pytest.raises(ValueError, match="only 3 classes"):
        confusion.add(label, label + 3)
    with pytest.raises(ValueError, match="4 class names"):
        confusion.scores(["a", "b", "c", "d"], 1)
    with pytest.raises(ValueError, match="256 classes"):
        Confusion.empty(256)


def test_read_only_and_strided_maps() -> None:
    """Arrays straight from Pillow are read-only, crops are not contiguous."""
    label = np.arange(16, dtype=np.uint8).reshape(4, 4) % 3
    label.setflags(write=False)
    confusion = Confusion.empty(3)
    confusion.add(label[:, ::2], label[:, ::2])
    assert confusion.counts.trace() == confusion.counts.sum() == 8


@settings(max_examples=40)
@given(
    st.integers(2, 182),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
)
def test_counts_are_exact(classes: int, images: list[tuple[int, int, int]]) -> None:
    """Equal to counting pixel by pixel."""
    whole, plain = Confusion.empty(classes), np.zeros((classes, classes), np.int64)
    for seed, height, width in images:
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 256, (height, width), dtype=np.uint8)
        prediction = rng.integers(0, classes, (height, width), dtype=np.uint8)
        whole.add(label, prediction)
        for a, b in zip(label.flat, prediction.flat, strict=True):
            if a < classes:
                plain[a, b] += 1
    assert np.array_equal(whole.counts, plain)
    scores = whole.scores([str(k) for k in range(classes)], len(images))
    assert scores.miou is None or 0 <= scores.miou <= 1
