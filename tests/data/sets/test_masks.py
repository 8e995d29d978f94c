"""Drawing COCO's annotations: known masks, properties, and what is refused."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from emaseg.data.sets.masks import paint, polygon_mask, unpacked_counts

# Masks that COCO's own tools (pycocotools 2.0) draw for these polygons on 8 x 12 pixels.
POLYGONS = {
    "corners on whole numbers": (
        [2, 1, 7, 1, 7, 5, 2, 5],
        "............ ..#####..... ..#####..... ..#####..... ..#####..... ............ ............ ............",
    ),
    "corners on halves": (
        [2.5, 1.5, 7.5, 1.5, 7.5, 5.5, 2.5, 5.5],
        "............ ............ ...#####.... ...#####.... ...#####.... ...#####.... ............ ............",
    ),
    "slanting edges": (
        [1, 1, 10.3, 3.2, 4.4, 7.9],
        "............ .##......... ..######.... ..########.. ...######... ...####..... ....##...... ....#.......",
    ),
    "beyond the image": (
        [-3, -2, 5.2, -1, 14, 9, 6, 12],
        "######...... #######..... ########.... .########... .#########.. ..#########. ...######### ...#########",
    ),
    "crossing itself": (
        [1, 1, 9, 7, 9, 1, 1, 7],
        "............ .#......#... .##....##... .###..###... .###..###... .##....##... .#......#... ............",
    ),
    "thinner than a pixel": ([3, 0.2, 3.3, 0.2, 3.3, 7.8, 3, 7.8], " ".join(["............"] * 8)),
    "two corners": ([1, 1, 9, 7], " ".join(["............"] * 8)),
}


def drawn(segmentation: object, size: tuple[int, int] = (8, 12)) -> np.ndarray:
    label = np.zeros(size, np.uint8)
    paint(label, segmentation, 1)
    return label


def text(label: np.ndarray) -> str:
    return " ".join("".join(".#"[value] for value in row) for row in label)


@pytest.mark.parametrize(("polygon", "expected"), POLYGONS.values(), ids=POLYGONS.keys())
def test_polygons(polygon: list[float], expected: str) -> None:
    """Pixel for pixel as the published labels were drawn."""
    assert text(drawn([polygon])) == expected


def test_parts_are_united_and_later_paint_covers() -> None:
    label = np.zeros((3, 5), np.uint8)
    paint(label, [[0, 0, 2, 0, 2, 3, 0, 3], [3, 0, 5, 0, 5, 2, 3, 2]], 7)
    paint(label, [[1, 1, 4, 1, 4, 2, 1, 2]], 9)
    assert label.tolist() == [[7, 7, 0, 7, 7], [7, 9, 9, 9, 7], [7, 7, 0, 0, 0]]


def test_runs_go_down_the_columns() -> None:
    """Uncompressed and packed; 4320 is what COCO's tools make of this mask."""
    expected = "..## .#.# .#.#"
    assert text(drawn({"size": [3, 4], "counts": [4, 3, 2, 3]}, (3, 4))) == expected
    assert text(drawn({"size": [3, 4], "counts": "4320"}, (3, 4))) == expected
    assert text(drawn({"size": [2, 2], "counts": [0, 1, 3]}, (2, 2))) == "#. .."


def test_a_longer_packed_mask() -> None:
    """Numbers of several characters and negative differences, as COCO's tools pack a frame of 40 x 50 pixels."""
    packed = "m3l0<000000000000YON82HN82HN82HN82HN82HN82HN82HN82HN82HN82?" + "0" * 52 + "c3"
    expected = np.zeros((40, 50), np.uint8)
    expected[5:33, 3:47] = 1
    expected[10:20, 10:20] = 0
    np.testing.assert_array_equal(drawn({"size": [40, 50], "counts": packed}, (40, 50)), expected)


def packed(runs: list[int]) -> str:
    """The packed form, written down from its description."""
    characters = []
    for place, run in enumerate(runs):
        number = run - (runs[place - 2] if place > 2 else 0)
        while True:
            five, number = number & 31, number >> 5
            more = number != (-1 if five & 16 else 0)
            characters.append(chr(48 + (five | (32 if more else 0))))
            if not more:
                break
    return "".join(characters)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 100_000), max_size=20))
def test_unpacking_inverts_packing(runs: list[int]) -> None:
    assert unpacked_counts(packed(runs)).tolist() == runs


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_rectangles_cover_what_they_enclose(height: int, width: int, data: st.DataObject) -> None:
    """On whole numbers a rectangle is the slice of the array, whichever corner comes first and way round it goes."""
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    start = data.draw(st.integers(0, 3))
    corners = corners[start:] + corners[:start]
    corners = corners[:: data.draw(st.sampled_from((1, -1)))]
    expected = np.zeros((height, width), np.uint8)
    expected[top:bottom, left:right] = 1
    polygon = [float(value) for corner in corners for value in corner]
    np.testing.assert_array_equal(drawn([polygon], (height, width)), expected)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ("m3l0", "neither polygons nor run lengths"),
        ([[1, 2, 3]], "in pairs"),
        ([[1, 2, 3, 4, 5, float("nan")]], "in pairs"),
        ([["a", 2, 3, 4, 5, 6]], "not a list of numbers"),
        ([[10**400, 2, 3, 4, 5, 6]], "not a list of numbers"),
        ([[[1, 2], [3, 4], [5]]], "not a list of numbers"),
        ({"size": [12, 8], "counts": [96]}, "size"),
        ({"counts": [96]}, "size"),
        ({"size": [8, 12], "counts": [95]}, "add up"),
        ({"size": [8, 12], "counts": [100, -4]}, "add up"),
        ({"size": [8, 12], "counts": ["x"]}, "not numbers"),
        ({"size": [8, 12], "counts": None}, "not numbers"),
        ({"size": [8, 12], "counts": "é"}, "strange characters"),
        ({"size": [8, 12], "counts": "P"}, "cut off"),
        ({"size": [8, 12], "counts": "P" * 12 + "0"}, "endless"),
    ],
)
def test_what_is_malformed_is_refused(segmentation: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        drawn(segmentation)


def test_an_endless_outline_is_refused() -> None:
    """Protects memory: three corners far out of an image would be a thousand million points."""
    with pytest.raises(ValueError, match="far more than an image of 10 x 10 needs"):
        polygon_mask([0, 0, 9e7, 0, 0, 9e7], 10, 10)
    assert polygon_mask([0, 0, 5e4, 0, 0, 5e4], 10, 10)[1].all()
