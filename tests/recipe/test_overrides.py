"""`--set`: TOML values only, and an error that says what to type instead."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emaseg.recipe import EMANetModel, FolderData, for_tta, parse_recipe
from tests.recipe.samples import MINIMAL, complaint

IN_QUOTES = """type it in single quotes, with double quotes around text: --set 'data.classes=["a", "b"]'"""


def test_set_wins_over_the_file_and_the_last_one_wins() -> None:
    loaded = parse_recipe(MINIMAL, "my.toml", ["optim.lr=1", "train.batch = 4", "optim.lr=0.5"])
    assert (loaded.recipe.optim.lr, loaded.recipe.train.batch) == (0.5, 4)
    assert (loaded.origins["optim.lr"], loaded.origins["train.batch"]) == ("--set", "--set")


def test_set_replaces_a_whole_section() -> None:
    loaded = parse_recipe(MINIMAL, "my.toml", ['model={kind="emanet", bases=16}'])
    assert loaded.recipe.model == EMANetModel(kind="emanet", bases=16)
    assert loaded.origins["model.bases"] == "--set"


def test_set_reaches_into_arrays() -> None:
    groups = ['optim.groups=[{match="bias"}]', "optim.groups.0.lr_scale=2", 'data.classes.1="grass"']
    recipe = parse_recipe(MINIMAL, "my.toml", groups).recipe
    assert recipe.optim.groups[0].lr_scale == 2
    assert isinstance(recipe.data, FolderData)
    assert recipe.data.classes == ("sky", "grass")


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("data.root=/a b", "/a b"),
        ("data.root=it's # 1", "it's # 1"),
        ("data.root = 2012 ", "2012"),
        ("data.root=true", "true"),
        ("data.root='C:\\data'", "C:\\data"),
        ('data.root="x"', "x"),
        ('data.root="x" # a comment', "x"),
    ],
)
def test_a_text_needs_no_quotes(item: str, value: str) -> None:
    """Protects from shells that eat quotes: where the key holds a text, what is typed is the text; TOML's stays TOML's."""
    recipe = parse_recipe(MINIMAL, "my.toml", [item]).recipe
    assert isinstance(recipe.data, FolderData)
    assert recipe.data.root == value
    kinds = parse_recipe(
        MINIMAL, "my.toml", ["backbone.kind=resnet101", "inference.mode=whole", "data.classes.1=grass"]
    )
    assert kinds.recipe.backbone.kind == "resnet101"
    assert isinstance(kinds.recipe.data, FolderData)
    assert kinds.recipe.data.classes[1] == "grass"


def test_set_means_the_section_of_tta() -> None:
    """Protects the order: below --tta, [inference] is the name of [inference_tta], and of one key the last value wins."""
    items = ["inference.flip=false", " inference = {}", "inference_tta.pad='none'", "train.init_from='inference.pt'"]
    assert for_tta(items) == ("inference_tta.flip=false", "inference_tta = {}", *items[2:])
    both = ["inference_tta.scales=[2.0]", "inference.scales=[3.0]"]
    for order, scales in ((both, (3.0,)), (both[::-1], (2.0,))):
        recipe = parse_recipe(MINIMAL, "my.toml", for_tta(order)).recipe
        assert recipe.inference_tta is not None
        assert (recipe.inference_tta.scales, recipe.inference.scales) == (scales, (1.0,))


def test_set_opens_a_section_that_the_file_does_not_have() -> None:
    assert parse_recipe(MINIMAL, "my.toml", ["loss.auxiliary_weight=0"]).recipe.loss.auxiliary_weight == 0


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("optim.lr=.1", "--set optim.lr: .1 is not a TOML value; type --set optim.lr=0.1"),
        ("optim.lr=1.", "--set optim.lr: 1. is not a TOML value; type --set optim.lr=1.0"),
        ("optim.nesterov=True", "--set optim.nesterov: True is not a TOML value; type --set optim.nesterov=true"),
        ("data.root=", """--set data.root: the value is empty; empty text is typed --set 'data.root=""'"""),
        ("a.b=c", """--set a.b: c is not a TOML value; type --set 'a.b="c"'"""),
        ("optim.lr", "--set optim.lr: no value; write key=VALUE, as in --set optim.lr=0.02"),
        ("a..b=1", "--set a..b=1: `a..b` is not a key; write section.key=VALUE, as in --set optim.lr=0.02"),
        ("optim.lr=1\nmomentum=2", "--set optim.lr: more than one value given"),
        (
            "data.classes=[a, b]",
            "--set data.classes: [a, b] is not a TOML value; " + IN_QUOTES,
        ),
        (
            'data.root="x',
            """--set data.root: "x is not a TOML value; type it with a closing quote: --set 'data.root="..."'""",
        ),
    ],
)
def test_a_text_that_is_no_override_says_what_to_type(item: str, message: str) -> None:
    assert complaint(MINIMAL, item) == message


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("train.batch=abc", "abc is not a TOML value; it takes a whole number, at least 1: --set train.batch=16"),
        ("train.batch=8px", "8px is not a TOML value; it takes a whole number, at least 1: --set train.batch=8"),
        ("train.batch=", "the value is empty; it takes a whole number, at least 1: --set train.batch=16"),
        ("train.batch=True", "True is not a TOML value; it takes a whole number, at least 1: --set train.batch=16"),
        ("optim.lr=0,02", "0,02 is not a TOML value; it takes a number, above 0: --set optim.lr=0.02"),
        ("optim.nesterov=yes", "yes is not a TOML value; it takes true or false: --set optim.nesterov=true"),
        (
            "augment.crop=512x256",
            "512x256 is not a TOML value; "
            + "it takes an array of 2 whole numbers, each at least 1: --set 'augment.crop=[512, 256]'",
        ),
        (
            "data.classes=sky, road",
            "sky, road is not a TOML value; it takes an array of texts in double quotes: "
            + """--set 'data.classes=["sky", "road"]'""",
        ),
    ],
)
def test_the_value_to_type_is_one_that_the_key_takes(item: str, message: str) -> None:
    """Protects from advice that is refused as well: the command of each message is read."""
    key = item.partition("=")[0]
    assert complaint(MINIMAL, item) == f"--set {key}: {message}"
    parse_recipe(MINIMAL, "my.toml", shlex.split(message.partition(": --set ")[2]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("optim.lrr=1", '--set optim.lrr: [optim] has no such key; did you mean "lr"?'),
        ("optm.lr=1", '--set optm.lr: optm: is not a section of a recipe; did you mean "optim"?'),
        ("data.root=[3]", "--set data.root: got [3]; must be text in double quotes"),
        ("optim.min_lr=1", "--set optim.min_lr: 1.0 is above lr = 0.01"),
        ("name.x=1", "--set name.x: name is not a section of this recipe"),
        ("data.classes.2=1", "--set data.classes.2: data.classes has 2 elements, counted from 0"),
        ("model=3", "--set model: got 3; must be a section: [model]"),
        (
            "published={miou=3}",
            "--set published: published.table: is missing: document and row (text in double quotes)",
        ),
        (
            "published.miou=3",
            "--set published.miou: published.table: is missing: document and row (text in double quotes)",
        ),
    ],
)
def test_a_wrong_value_is_reported_at_its_set(item: str, message: str) -> None:
    assert complaint(MINIMAL, item) == message


def test_all_bad_overrides_are_reported_together_and_before_the_file() -> None:
    assert complaint(MINIMAL, "x", "optim.lr=a").count("\n") == 1
    broken = MINIMAL.replace("crop = [64, 96]", "crop = 64")
    first, second = complaint(broken, "optim.lr=-1").splitlines()
    assert first.startswith("--set optim.lr: ")
    assert second.startswith("my.toml:22: augment.crop: ")


def test_another_kind_says_which_keys_came_with_the_old_one() -> None:
    first, *rest = complaint(MINIMAL, 'data.kind="voc"').splitlines()
    assert first == (
        '--set data.kind: got "voc", which does not take the keys that came with kind "folder": classes, train_images, '
        """train_masks, eval_images, eval_masks; give the whole section: --set 'data={kind = "voc", ...}'"""
    )
    assert rest == []


def test_another_kind_as_a_whole_section_is_accepted() -> None:
    recipe = parse_recipe(MINIMAL, "my.toml", ['data={kind="voc", root="VOCdevkit/VOC2012"}']).recipe
    assert recipe.data.kind == "voc"


def test_set_mends_a_kind_that_the_file_has_wrong() -> None:
    broken = MINIMAL.replace('kind = "resnet50"', 'kind = "resnet5"')
    assert parse_recipe(broken, "my.toml", ['backbone.kind="resnet101"']).recipe.backbone.kind == "resnet101"


@given(st.text(max_size=20))
def test_no_text_is_evaluated_or_crashes(text: str) -> None:
    """Whatever is typed is a value (of a section that is unknown here) or no value; a message either way."""
    assert complaint(MINIMAL, f"a.b={text}").startswith("--set a.b: ")
