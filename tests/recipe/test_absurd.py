"""Absurd recipes: every key beyond its limits, and texts of a size, depth or kind that no recipe has. All at once exit 2."""

from __future__ import annotations

import os
import time
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from emaseg.errors import RecipeError
from emaseg.recipe import load_recipe, parse_recipe
from emaseg.recipe.overrides import nested
from emaseg.recipe.reader import MOST_BYTES
from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import Key, section_classes, section_keys, section_kinds
from tests.helpers import emaseg
from tests.recipe.samples import MINIMAL, complaint, edited


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Nothing here is worth a second of this machine."""
    before = time.process_time()
    yield
    assert time.process_time() - before < 2


def keys() -> Iterator[tuple[str, str, str]]:
    """Section, kind of section and name of each key of the schema."""
    for section, key in section_keys(Recipe).items():
        classes = section_classes(key.type)
        kinds = section_kinds(key.type) if len(classes) > 1 else dict(zip([""], classes, strict=False))
        for kind, cls in kinds.items():
            yield from ((section, kind, name) for name in section_keys(cls) if name != "kind")


def rule_of(section: str, kind: str, name: str) -> Key:
    type_ = section_keys(Recipe)[section].type
    cls = section_kinds(type_)[kind] if kind else section_classes(type_)[0]
    return section_keys(cls)[name]


NUMBERS = [
    (section, kind, name)
    for section, kind, name in keys()
    if {int, float} & {rule_of(section, kind, name).type, *typing.get_args(rule_of(section, kind, name).type)}
]
RATES = (("optim", "lr"), ("optim", "min_lr"), ("model", "memory_base_lr"))
EXTREMES = ("-1e309", "1e309", "inf", "-inf", "nan", "1e38", str(2**63), str(2**70), "-" + str(2**70), "9" * 4000)


@pytest.mark.parametrize(("section", "kind", "name"), NUMBERS)
def test_every_number_has_limits(section: str, kind: str, name: str) -> None:
    """Protects from the one key that was forgotten: no number of the schema takes any of the extremes, and all are named."""
    type_ = rule_of(section, kind, name).type
    args = [arg for arg in typing.get_args(type_) if arg is not Ellipsis and arg is not type(None)]
    for extreme in EXTREMES:
        if (section, name) in RATES and 0 < float(extreme) < 1e30:
            continue  # such a rate diverges, which costs one step
        value = f"[{', '.join([extreme] * max(2, len(args)))}]" if typing.get_origin(type_) is tuple else extreme
        sets = [f'{section}.kind="{kind}"'] if kind else []
        message = complaint(MINIMAL, *sets, f"{section}.{name}={value}")
        assert f"{section}.{name}: " in message, (extreme, message[:300])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "epochs = 2",
            "epochs = 2\nworkers = 1000000",
            "29: train.workers: got 1000000; must be a whole number, -1 to 256",
        ),
        (
            "epochs = 2",
            "epochs = 2\nthreads = 1000000",
            "29: train.threads: got 1000000; must be a whole number, 0 to 1024",
        ),
        (
            "epochs = 2",
            f"epochs = 2\nseed = {2**70}",
            f"29: train.seed: got {2**70}; must be a whole number, 0 to {2**63 - 1}",
        ),
        (
            "crop = [64, 96]",
            "crop = [1000000000, 96]",
            "22: augment.crop: got [1000000000, 96]; must be an array of 2 whole numbers, each 1 to 16384",
        ),
        (
            "crop = [64, 96]",
            "crop = [64, 96]\nresize_long_short = [1000000, 1000000]",
            "23: augment.resize_long_short: got [1000000, 1000000]; "
            + "must be an array of 0 or 2 whole numbers, each 1 to 16384",
        ),
        (
            'kind = "emanet"',
            'kind = "emanet"\nem_iterations_eval = 1000000000',
            "6: model.em_iterations_eval: got 1000000000; must be a whole number, 1 to 100",
        ),
        (
            "epochs = 2",
            "epochs = 2\n[inference]\nscales = [" + "1.0, " * 1000 + "]",
            "of numbers, each above 0, at most 32 of them",
        ),
        ('weights = "none"', 'weights = "none"\nstd = [1e-30, 1, 1]', "each 0.001 to 1000"),
        ('name = "mine"', f'name = "{"x" * 1000}"', "text in double quotes, of at most 100 characters"),
        ('["sky", "tree"]', f'["sky", "{"x" * 1000}"]', "15: data.classes: got"),
        ('["sky", "tree"]', f'["sky", "{"x" * 1000}"]', "of at most 200 characters"),
        ('["sky", "tree"]', str([f"c{i}" for i in range(20_000)]), "20000 names; at most 254: 254"),
        ('["sky", "tree"]', str(["x"] * 20_000), "20000 names; at most 254: 254"),
        (
            "epochs = 2",
            'epochs = 2\n[inference]\nmode = "slide"\nwindow = [512, 512]\nstride = [1, 1]',
            "32: inference.stride: [1, 1] would compute every pixel again and again; "
            + "at least [32, 32] with window = [512, 512]",
        ),
        (
            "lr = 0.01",
            "lr = 0.01\ngroups = [" + '{match = "bias"}, ' * 5000 + "]",
            "an array of tables, at most 64 of them",
        ),
    ],
)
def test_what_is_beyond_a_limit_is_named_with_the_range(old: str, new: str, message: str) -> None:
    """Protects the reader of the message: file, line and what is allowed. The numbers were all once obeyed."""
    assert message in complaint(edited((old, new)))


def test_what_a_serious_user_wants_is_within_the_limits() -> None:
    """Protects large but sensible runs: long ablations, big crops, dense overlap, many loading processes."""
    sets = [
        *(
            "model.em_iterations_eval=100",
            "augment.crop=[2048, 4096]",
            "train.workers=128",
            "train.batch=1024",
            "optim.lr=10",
        ),
        *(
            'inference={mode="slide", window=[1024, 1024], stride=[128, 128], scales=[0.25, 4.0]}',
            "train.seed=4294967295",
        ),
    ]
    assert complaint(MINIMAL, *sets) == ""


DEEP = 20_000
QUOTED = '"a"'
TEXTS = {
    "700,000 keys": "".join(f"k{i} = 1\n" for i in range(700_000)),
    "20,000 keys": "".join(f"k{i} = 1\n" for i in range(20_000)),
    "arrays in arrays": f"a = {'[' * DEEP}{']' * DEEP}",
    "tables in tables": f"a = {'{a = ' * DEEP}1{'}' * DEEP}",
    "a key of many parts": f"{'.'.join('a' * DEEP)} = 1",
    "a header of many parts": f"[{'.'.join('a' * DEEP)}]",
    "a header of many parts, in an array": f"[[{'.'.join('a' * DEEP)}]]\nb = 1",
    "quoted parts": f"{'.'.join([QUOTED] * DEEP)} = 1",
    "many parts below a section": f"[model]\nkind.{'.'.join('a' * DEEP)} = 1",
    "20,000 tables": "".join(f"[t{i}]\n" for i in range(20_000)),
    "20,000 tables in an array": "[[optim.groups]]\n" * 12_000,
    "a number of 200,000 digits": f"a = {'9' * 200_000}",
    "a text of 200,000 characters": f'name = "{"x" * 200_000}"',
    "a key of 200,000 characters": f"{'x' * 200_000} = 1",
    "a text of 300,000 characters": f'name = "{"x" * 300_000}"',
    "quotes": '"' * 200_000,
    "a damaged line of 200,000 characters": f"{'x' * 200_000}",
    "an array of 100,000 numbers": f"name = [{'1,' * 100_000}]",
}


@pytest.mark.parametrize("name", TEXTS)
def test_an_absurd_text_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """Protects from minutes of looking for what 700,000 keys were meant to be, and from running out of stack."""
    path = tmp_path / "my.toml"
    path.write_text(TEXTS[name])
    with pytest.raises(RecipeError, match=r"my\.toml:\d+: ") as caught:
        load_recipe(path)
    assert len(caught.value.message) < 20_000 + 200_000 * name.startswith("a key of 200")


RAW = {
    "NUL bytes": b"name = 1\n\0\0\0",
    "nothing but NUL": bytes(4096),
    "Latin-1": 'name = "\xe9"'.encode("latin-1"),
    "UTF-16": MINIMAL.encode("utf-16"),
    "half a character": b'name = "\xe2\x82',
    "escapes": b"name = \x1b[2J",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, name: str) -> None:
    """Protects from a traceback, and the terminal from what the line holds."""
    path = tmp_path / "my.toml"
    path.write_bytes(RAW[name])
    with pytest.raises(RecipeError, match=r"my\.toml:\d+: ") as caught:
        load_recipe(path)
    assert "\x1b" not in caught.value.message
    assert "\0" not in caught.value.message


def test_a_byte_order_mark_and_other_line_ends_are_fine(tmp_path: Path) -> None:
    """Protects files that were saved on Windows."""
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_recipe(path).name == "mine"
    path.write_bytes(MINIMAL.replace("lr = 0.01", "lr = -1").replace("\n", "\r\n").encode())
    with pytest.raises(RecipeError, match=r"my\.toml:25: optim\.lr"):
        load_recipe(path)


@pytest.mark.parametrize("make", ["pipe", "zero", "folder", "five gigabytes", "loop"])
def test_what_is_no_recipe_file_is_refused_at_once(
    tmp_path: Path, make: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from waiting on a pipe for ever and from reading a device without end."""
    path = tmp_path / "my.toml"
    if make == "pipe":
        os.mkfifo(path)
    elif make == "zero":
        path.symlink_to("/dev/zero")
    elif make == "folder":
        path.mkdir()
    elif make == "loop":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(5 << 30)  # sparse: takes no space
    code, _, stderr = emaseg(capsys, "train", path, "--dry-run")
    assert code == 2
    assert "my.toml" in stderr


@pytest.mark.parametrize(
    "item",
    [
        f"{'.'.join('a' * DEEP)}=1",
        f"data={{{'.'.join('a' * DEEP)} = 1}}",
        f"model={'[' * DEEP}{']' * DEEP}",
        f"model.bases={'9' * 5000}",
        f"model.bases={'9' * 60_000}",
        f"name={'x' * 60_000}",
        f"name={'x' * 300_000}",
        f"{'x' * 60_000}=1",
        f"x.{'y' * 60_000}=1",
        f"model.bases={'[1, 2], ' * 5000}",
        "model.bases=\0",
        "model.bases=1\nname=2",
    ],
    ids=range(12),
)
def test_an_absurd_set_is_refused_at_once(item: str) -> None:
    """Protects --set in the same way; what is repeated of it is short."""
    message = complaint(MINIMAL, item)
    assert message.startswith("--set ")
    assert len(message) < 130_000


HUGE = f"0x{'F' * 5000}"  # tomllib takes it; Python does not write it in decimal digits


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (edited(("epochs = 2", f"epochs = 2\nbatch = {HUGE}")), [], "my.toml:29: train.batch: a whole number of more"),
        (edited(("[64, 96]", f"[64, [{HUGE}]]")), [], "my.toml:22: augment.crop.1.0: a whole number of more"),
        (MINIMAL, [f"train.batch={HUGE}"], "--set train.batch: a whole number of more"),
        (MINIMAL, [f"optim.groups=[{{match={HUGE}}}]"], "--set optim.groups: a whole number of more"),
        (MINIMAL, [f"data.classes.{'9' * 5000}=1"], "data.classes has 2 elements, counted from 0"),
        (MINIMAL, [f"data.classes.{'9' * 5000}.match='a'"], "is not a section of this recipe"),
    ],
    ids=range(6),
)
def test_a_number_that_python_does_not_write_is_refused(text: str, sets: list[str], message: str) -> None:
    """Protects from a ValueError in the very message that would show the number, or in the place of an element."""
    assert message in complaint(text, *sets)


def test_nesting_is_measured_without_recursion() -> None:
    """Protects the measure itself from the depth that it measures."""
    value: object = 1
    for _ in range(100_000):
        value = [value]
    assert nested(value, 8)
    assert not nested({"a": [[1]], "b": {"c": {"d": 1}}}, 2)
    assert nested({"a": [[1]], "b": {"c": {"d": 1}}}, 1)


def test_the_text_inside_a_checkpoint_has_the_same_limit() -> None:
    """Protects from the recipe that comes from no file."""
    with pytest.raises(RecipeError, match="more than 256 kB"):
        parse_recipe("#" * (MOST_BYTES + 1), "last.pt (recipe inside)")
