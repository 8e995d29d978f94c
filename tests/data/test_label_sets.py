"""Class names and colours: they decide what a mask means, so they are pinned."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from emaseg.data.label_sets import label_set, voc_colours
from emaseg.recipe import (
    ADE20KData,
    CityscapesData,
    CocoStuffData,
    CocoVOCData,
    Data,
    FolderData,
    LIPData,
    PascalContextData,
    ShapesData,
    VOCData,
)
from emaseg.recipe.data import num_classes


def folder(**keys: tuple[tuple[int, int, int], ...]) -> FolderData:
    parts = {"train_images": "a", "train_masks": "b", "eval_images": "c", "eval_masks": "d"}
    return FolderData(kind="folder", root="x", classes=("sky", "tree", "road"), **parts, **keys)


# The first 16 digits of the SHA-256 of [names, colours] as the published systems have them.
PINNED: list[tuple[Data, int, str]] = [
    (VOCData(kind="voc", root="x"), 21, "870af9d2186997f0"),
    (ADE20KData(kind="ade20k", root="x"), 150, "9c50e0723287b70d"),
    (CityscapesData(kind="cityscapes", root="x"), 19, "6d241d4404fe54e5"),
    (LIPData(kind="lip", root="x"), 20, "28f6041be0fbcb70"),
    (CocoStuffData(kind="cocostuff10k", root="x", num_classes=182), 182, "93395fee51dcfaea"),
    (CocoStuffData(kind="cocostuff164k", root="x", num_classes=171), 171, "3f53fd481bc41535"),
    (CocoVOCData(kind="coco_voc21", root="x"), 21, "26543d1c997099a7"),
    (PascalContextData(kind="pascal_context", root="x", num_classes=60), 60, "dcbada8004fb1319"),
    (PascalContextData(kind="pascal_context", root="x", num_classes=59), 59, "393ab99eafd5609f"),
]


@pytest.mark.parametrize(("data", "count", "digest"), PINNED)
def test_names_and_colours_are_the_published_ones(data: Data, count: int, digest: str) -> None:
    labels = label_set(data)
    content = json.dumps([list(labels.classes), labels.palette.tolist()])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == digest
    assert (len(labels.classes), labels.palette.shape, labels.palette.dtype) == (count, (count, 3), np.uint8)


@pytest.mark.parametrize(
    "data", [*(row[0] for row in PINNED), folder(), ShapesData(kind="shapes")], ids=lambda data: data.kind
)
def test_the_class_count_is_the_number_of_names(data: Data) -> None:
    assert num_classes(data) == len(label_set(data).classes) == len(label_set(data).palette)


def test_a_folder_has_its_own_colours_or_vocs() -> None:
    assert label_set(folder()).palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    own = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert label_set(folder(palette=own)).palette.tolist() == [list(colour) for colour in own]


def test_the_drawn_shapes_have_distinct_colours() -> None:
    assert len(np.unique(label_set(ShapesData(kind="shapes")).palette, axis=0)) == 5


def test_voc_colours_differ_for_all_256_indices() -> None:
    assert len(np.unique(voc_colours(256), axis=0)) == 256
    assert voc_colours(256)[255].tolist() == [224, 224, 192]  # the border colour of VOC's class maps


def test_a_palette_is_the_callers_own() -> None:
    data = CityscapesData(kind="cityscapes", root="x")
    label_set(data).palette[:] = 0
    assert label_set(data).palette.any()


def test_class_names_need_no_torch() -> None:
    code = "import sys, emaseg.data.label_sets; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
