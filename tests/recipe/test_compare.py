"""Which keys differ: the one comparison behind resuming, published scores and what a checkpoint's network is."""

from __future__ import annotations

from dataclasses import replace

from emaseg.recipe import ShapesData, load_recipe
from emaseg.recipe.compare import Difference, differences


def test_keys_are_named_with_both_values() -> None:
    """Protects messages: the key as --set writes it; keys that may differ are passed over."""
    recipe = load_recipe("demo")
    other = replace(recipe.train, batch=3, workers=7)
    assert differences("train", recipe.train, other, ("workers",)) == [Difference("train.batch", recipe.train.batch, 3)]
    assert differences("train", recipe.train, recipe.train) == []


def test_another_kind_is_one_difference() -> None:
    """Protects from a list of keys that the other kind does not have."""
    demo, voc = load_recipe("demo"), load_recipe("voc_r50_d8")
    assert differences("data", demo.data, voc.data) == [Difference("data.kind", "shapes", "voc")]
    assert differences("backbone", demo.backbone, voc.backbone) == [Difference("backbone.kind", "resnet14", "resnet50")]


def test_plain_values_and_sections_left_out_differ_as_a_whole() -> None:
    """Protects optional sections, such as [inference_tta], and the title."""
    data = ShapesData(kind="shapes")
    assert differences("title", "a", "b") == [Difference("title", "a", "b")]
    assert differences("data", None, data) == [Difference("data", None, data)]
    assert differences("data", None, None) == []


def test_pixel_stats_are_the_backbone_s_keys() -> None:
    """Protects what images are normalised by."""
    backbone = load_recipe("demo", ["backbone.mean=[1, 2, 3]", "backbone.std=[4, 5, 6]"]).backbone
    assert (backbone.pixel_stats.mean, backbone.pixel_stats.std) == ((1, 2, 3), (4, 5, 6))
