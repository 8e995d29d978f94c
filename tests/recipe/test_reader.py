"""Strict reading: every mistake is named with file, line, key, value given, what is allowed, and the nearest name."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emaseg.errors import RecipeError
from emaseg.recipe import load_recipe, load_recipe_with_origins, parse_recipe
from tests.recipe.samples import MINIMAL, complaint, edited

ONE_OF_BACKBONES = (
    'one of "resnet50", "resnet101", "resnet152", "resnet14", "resnest101", "hrnetv2_w48", "vit_large_p16_384"'
)
ONE_OF_MATCHES = 'one of "backbone", "norm_weight", "bias"'
ALL_SECTIONS = "model, backbone, data, augment, loss, optim, train, inference, inference_tta, published"


def test_the_small_recipe_reads_with_defaults_and_origins() -> None:
    loaded = parse_recipe(MINIMAL, "my.toml")
    assert loaded.recipe.optim.lr == 0.01
    assert loaded.recipe.augment.crop == (64, 96)
    assert loaded.recipe.published is None
    origins = loaded.origins
    assert (origins["optim.lr"], origins["optim.momentum"], origins["schema"]) == ("my.toml:25", "default", "my.toml:1")


def test_a_whole_number_serves_as_a_number() -> None:
    lr = parse_recipe(edited(("lr = 0.01", "lr = 1")), "my.toml").recipe.optim.lr
    assert (lr, type(lr)) == (1.0, float)


# ------------------------------------------------------------------------------------------- keys and values
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # names
        (
            "lr = 0.01",
            "lr = 0.01\nmomentun = 0",
            '26: optim.momentun: [optim] has no such key; did you mean "momentum"?',
        ),
        ("epochs = 2", "epochs = 2\nlr = 1", "29: train.lr: [train] has no such key; `lr` belongs to [optim]"),
        (
            "epochs = 2",
            "epochs = 2\nmode = 1",
            "29: train.mode: [train] has no such key; `mode` belongs to [inference]",
        ),
        (
            'root = "photos"',
            'root = "photos"\nlabel_folders = []',
            '15: data.label_folders: is not for this kind; it belongs to kind "voc"',
        ),
        (
            "crop = [64, 96]",
            "crop = [64, 96]\n[loss]\nzzz = 1",
            "24: loss.zzz: [loss] has no such key; its keys: reduction, ranks, auxiliary_weight, class_weights, class_balance, label_smoothing, focal_gamma, dice_weight, ohem_threshold, ohem_min_kept",
        ),
        ('name = "mine"', 'name = "mine"\nlr = 1', "3: lr: a recipe has no such key; `lr` belongs to [optim]"),
        ("[optim]", "[los]\n[optim]", '24: los: is not a section of a recipe; did you mean "loss"?'),
        (
            "[optim]",
            "[xyz]\n[optim]",
            f"24: xyz: is not a section of a recipe; sections: {ALL_SECTIONS}",
        ),
        # types
        ("epochs = 2", 'epochs = "2"', '28: train.epochs: got "2"; must be a whole number, at least 0'),
        ("epochs = 2", "epochs = 2.0", "28: train.epochs: got 2.0; must be a whole number, at least 0"),
        ("epochs = 2", "epochs = true", "28: train.epochs: got true; must be a whole number, at least 0"),
        ("lr = 0.01", "lr = true", "25: optim.lr: got true; must be a number, above 0"),
        ("lr = 0.01", "lr = nan", "25: optim.lr: got nan; must be a number, above 0"),
        ("lr = 0.01", "lr = inf", "25: optim.lr: got inf; must be a number, above 0"),
        ("lr = 0.01", "lr = 0.01\nnesterov = 1", "26: optim.nesterov: got 1; must be true or false"),
        ("lr = 0.01", "lr = 1979-05-27", "25: optim.lr: got 1979-05-27; must be a number, above 0"),
        ('root = "photos"', "root = 3", "14: data.root: got 3; must be text in double quotes"),
        ('name = "mine"', "name = ['mine']", '2: name: got ["mine"]; must be text in double quotes'),
        (
            'classes = ["sky", "tree"]',
            'classes = "sky"',
            '15: data.classes: got "sky"; must be an array of texts in double quotes',
        ),
        ("schema = 1", "schema = 2", "1: schema: got 2; must be 1"),
        ("schema = 1", "schema = true", "1: schema: got true; must be 1"),
        # ranges
        ("lr = 0.01", "lr = 0", "25: optim.lr: got 0; must be a number, above 0"),
        ("lr = 0.01", "lr = 1\nmomentum = 1.5", "26: optim.momentum: got 1.5; must be a number, 0 to 1"),
        (
            "crop = [64, 96]",
            "crop = [64, 0]",
            "22: augment.crop: got [64, 0]; must be an array of 2 whole numbers, each at least 1",
        ),
        (
            "crop = [64, 96]",
            "crop = [64, 96]\nmax_class_share = 0",
            "23: augment.max_class_share: got 0; must be a number, above 0 and at most 1",
        ),
        # choices
        ("output_stride = 8", "output_stride = 4", "9: backbone.output_stride: got 4; must be one of 8, 16, 32"),
        ("output_stride = 8", "output_stride = 8.0", "9: backbone.output_stride: got 8.0; must be one of 8, 16, 32"),
        (
            "crop = [64, 96]",
            'crop = [64, 96]\npad = "center"',
            '23: augment.pad: got "center"; must be one of "centre", "bottom_right"; did you mean "centre"?',
        ),
        (
            'kind = "resnet50"',
            'kind = "resnet5"',
            f'8: backbone.kind: got "resnet5"; must be {ONE_OF_BACKBONES}; did you mean "resnet50"?',
        ),
        ('kind = "resnet50"', "kind = 50", f"8: backbone.kind: got 50; must be {ONE_OF_BACKBONES}"),
        # arrays
        (
            "crop = [64, 96]",
            "crop = 64",
            "22: augment.crop: got 64; must be an array of 2 whole numbers, each at least 1",
        ),
        (
            "crop = [64, 96]",
            "crop = [64]",
            "22: augment.crop: got [64]; must be an array of 2 whole numbers, each at least 1",
        ),
        (
            'weights = "none"',
            'weights = "none"\nstem_channels = [32, 64]',
            "11: backbone.stem_channels: got [32, 64]; must be an array of 0 or 3 whole numbers, each at least 1",
        ),
        (
            "crop = [64, 96]",
            "crop = [64, 96]\nflip_pairs = [[0, 1], [2]]",
            "23: augment.flip_pairs: got [[0, 1], [2]]; must be an array of arrays of 2 whole numbers, each at least 0",
        ),
        # tables
        ("lr = 0.01", "lr = 1\ngroups = 3", "26: optim.groups: got 3; must be an array of tables"),
        ("lr = 0.01", "lr = 1\ngroups = [3]", "26: optim.groups.0: got 3; must be a table: { key = value }"),
        (
            "lr = 0.01",
            'lr = 1\n[[optim.groups]]\nmatch = "bias"\n[[optim.groups]]\nmatch = "biases"',
            f'29: optim.groups.1.match: got "biases"; must be {ONE_OF_MATCHES}; did you mean "bias"?',
        ),
        (
            "lr = 0.01",
            "lr = 1\n[[optim.groups]]\nlr_scale = 2",
            f"26: optim.groups.0.match: is missing: which parameters; bias is without a ViT's in_proj_bias ({ONE_OF_MATCHES})",
        ),
        # absent
        ("lr = 0.01\n", "", "24: optim.lr: is missing: learning rate of iteration 0 (a number, above 0)"),
        ("[train]\nepochs = 2\n", "", "1: train: is missing: length, batch, checkpoints (a section)"),
        ('kind = "emanet"\n', "", '4: model.kind: is missing: one of "emanet", "memorynet"'),
        (
            '[model]\nkind = "emanet"\n',
            "",
            '1: model: is missing: the network (a section whose kind is one of "emanet", "memorynet")',
        ),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(old: str, new: str, message: str) -> None:
    assert complaint(edited((old, new))).splitlines()[0] == f"my.toml:{message}"


def test_a_section_must_be_a_table() -> None:
    text = 'model = "emanet"\n' + edited(('[model]\nkind = "emanet"\n', ""))
    assert complaint(text) == 'my.toml:1: model: got "emanet"; must be a section: [model]'


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    text = edited(("epochs = 2", "epochs = -1"), ("output_stride = 8", "output_stride = 5"), ('name = "mine"\n', ""))
    assert [line.split(": ")[0:2] for line in complaint(text).splitlines()] == [
        ["my.toml:1", "name"],
        ["my.toml:8", "backbone.output_stride"],
        ["my.toml:27", "train.epochs"],
    ]


def test_an_unknown_kind_still_reports_keys_that_no_kind_has() -> None:
    text = edited(('kind = "emanet"', 'kind = "emanets"\nbases = 3\nbasis = 3'))
    assert [line.split(":")[1:3] for line in complaint(text).splitlines()] == [
        ["5", " model.kind"],
        ["7", " model.basis"],
    ]


def test_a_long_value_is_cut_short_and_a_strange_key_is_quoted() -> None:
    text = edited(("epochs = 2", f'epochs = "{"x" * 500}"\n"a\\nb" = 1'))
    first, second = complaint(text).splitlines()
    assert len(first) < 150
    assert second.startswith('my.toml:29: train."a\\nb": [train] has no such key')


# ---------------------------------------------------------------------------------------- between the keys
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epochs = 0", "28: train.epochs: epochs and iterations are both 0; give one of them"),
        ("epochs = 2", "epochs = 2\niterations = 5", "29: train.iterations: 5 contradicts epochs = 2; one must be 0"),
        ("epochs = 2", f"epochs = {10**20}", f"28: train.epochs: {10**20} would never end; at most 1000000000"),
        ("lr = 0.01", "lr = 0.01\nmin_lr = 0.1", "26: optim.min_lr: 0.1 is above lr = 0.01"),
        (
            "crop = [64, 96]",
            'crop = [64, 96]\ninterpolation = "align_corners"\nphotometric = "bgr"',
            '24: augment.photometric: must be "none" with interpolation = "align_corners"',
        ),
        (
            "crop = [64, 96]",
            "crop = [64, 96]\nscale = [2, 0.5]",
            "23: augment.scale: [2.0, 0.5] runs backwards; write [0.5, 2.0]",
        ),
        (
            "crop = [64, 96]",
            "crop = [64, 96]\nresize_long_short = [512, 2048]",
            "23: augment.resize_long_short: [512, 2048]: the long side comes first; write [2048, 512]",
        ),
        (
            "crop = [64, 96]",
            "crop = [64, 96]\nflip_pairs = [[0, 2]]",
            "23: augment.flip_pairs: there is no class 2; the data set has 2, counted from 0",
        ),
        (
            "crop = [64, 96]",
            "crop = [64, 96]\nflip_pairs = [[1, 1]]",
            "23: augment.flip_pairs: class 1 stands in it twice",
        ),
        (
            'name = "mine"',
            'name = "a/b"',
            "2: name: must be letters, digits and _ - + . only: the run folder carries it",
        ),
        (
            'name = "mine"',
            'name = ".."',
            "2: name: must be letters, digits and _ - + . only: the run folder carries it",
        ),
        ('classes = ["sky", "tree"]', "classes = []", "15: data.classes: is empty; name at least one class"),
        ('classes = ["sky", "tree"]', 'classes = ["sky", "sky"]', '15: data.classes: "sky" appears twice'),
        ('classes = ["sky", "tree"]', 'classes = ["sky", ""]', "15: data.classes: class 1 has an empty name"),
        (
            'classes = ["sky", "tree"]',
            f"classes = {[str(index) for index in range(255)]}",
            "15: data.classes: 255 names; at most 254: 254 and 255 are taken",
        ),
        (
            'root = "photos"',
            'root = "photos"\nignore = [1, 255]',
            '15: data.ignore: 1 is also the class "tree"; a class cannot be ignored',
        ),
        (
            'root = "photos"',
            'root = "photos"\npalette = [[0, 0, 0]]',
            "15: data.palette: 1 colours for 2 classes; give one each, or none",
        ),
        (
            'root = "photos"',
            'root = "photos"\npalette = [[0, 0, 0], [9, 9, 9]]\nignore_colours = [[9, 9, 9]]',
            '16: data.ignore_colours: [9, 9, 9] is also the colour of class "tree"',
        ),
        (
            "[train]",
            "[inference]\nwindow = [9, 9]\n[train]",
            '28: inference.window: is for mode "slide" only; mode is "whole": write window = []',
        ),
        (
            "[train]",
            '[inference]\nmode = "slide"\nwindow = [9, 9]\n[train]',
            '27: inference.stride: is empty; mode "slide" needs it: [height, width]',
        ),
        (
            "[train]",
            '[inference_tta]\nmode = "slide"\nwindow = [9, 9]\nstride = [9, 10]\n[train]',
            "30: inference_tta.stride: [9, 10] is larger than window = [9, 9]; pixels would be left out",
        ),
        (
            "[train]",
            "[inference]\nscales = []\n[train]",
            "28: inference.scales: is empty; [1.0] is the image's own scale",
        ),
    ],
)
def test_keys_that_contradict_each_other(old: str, new: str, message: str) -> None:
    assert complaint(edited((old, new))).splitlines()[0] == f"my.toml:{message}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("taps = [3, 2]", "taps = []", "12: backbone.taps: must name at least one layer, each once, from the first"),
        ("taps = [3, 2]", "image_size = [15, 512]", "12: backbone.image_size: got [15, 512]; must be an array of 2"),
    ],
)
def test_vit_taps_and_patches(old: str, new: str, message: str) -> None:
    vit = ('kind = "resnet50"\noutput_stride = 8\nweights = "none"', 'kind = "vit_large_p16_384"\noutput_stride = 16\n')
    text = edited((vit[0], f'{vit[1]}weights = "none"\n{old}'), ('"emanet"', '"memorynet"\nmemory_base_lr = 0.01'))
    assert complaint(text).startswith("my.toml:12: backbone.taps: ")
    assert complaint(text.replace(old, new)).startswith(f"my.toml:{message}")


def test_an_emanet_needs_normalised_maps() -> None:
    """Protects users: an EMANet on a ViT would train on maps that nothing ever normalised."""
    vit = 'kind = "vit_large_p16_384"\noutput_stride = 16\nweights = "none"'
    text = edited(('kind = "resnet50"\noutput_stride = 8\nweights = "none"', vit))
    assert complaint(text).startswith("my.toml:8: backbone.kind: vit_large_p16_384 has maps without a norm")


def test_voc_needs_a_label_folder() -> None:
    sets = 'data={kind="voc", root="x", label_folders=[]}'
    assert complaint(MINIMAL, sets) == "--set data: data.label_folders: is empty; name at least one folder"


# ------------------------------------------------------------------------------------------------- bad TOML
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr = 0.01", "lr = 0.01\nlr = 0.02", "26: optim.lr: appears twice; first on line 25"),
        ("[train]", "[model]", "27: model: appears twice; first on line 4"),
        ('weights = "none"', "weights = none", "10: not valid TOML: Invalid value: weights = none"),
        ("lr = 0.01", "lr 0.01", "25: not valid TOML: Expected '=' after a key in a key/value pair: lr 0.01"),
        ("epochs = 2", "epochs = [2", "28: not valid TOML: Unclosed array: epochs = [2"),
        ("epochs = 2", f"epochs = {'9' * 5000}", "1: not valid TOML: a number is too long"),
        ("epochs = 2", f"epochs = {'[' * 5000}", "1: not valid TOML: brackets are nested too deeply"),
    ],
)
def test_bad_toml_shows_file_line_and_text(old: str, new: str, message: str) -> None:
    assert complaint(edited((old, new))) == f"my.toml:{message}"


@given(st.text(max_size=40), st.integers(0, len(MINIMAL)))
def test_any_damage_is_a_recipe_error(junk: str, at: int) -> None:
    message = complaint(MINIMAL[:at] + junk + MINIMAL[at:])
    assert message == "" or message.startswith("my.toml:")


# ---------------------------------------------------------------------------------------------------- files
def failure(name: str | pathlib.Path) -> tuple[str, str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    return caught.value.message, caught.value.hint


def test_a_path_and_a_shipped_name_are_told_apart(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("my.toml").write_text(MINIMAL)
    pathlib.Path("bare").write_text(MINIMAL)
    assert load_recipe("my.toml").name == "mine"
    assert load_recipe("./bare").name == "mine"
    assert load_recipe(pathlib.Path("bare")).name == "mine"
    assert load_recipe("voc_r50_d8").name == "voc_r50_d8"
    assert failure("bare") == ("no shipped recipe is called `bare`", "the file here is ./bare; write it so")
    assert failure("my") == ("no shipped recipe is called `my`", "the file here is ./my.toml; write it so")
    assert failure("voc_r50_d") == ("no shipped recipe is called `voc_r50_d`", 'did you mean "voc_r50_d8"?')
    assert failure("mine.toml") == ("`mine.toml` is not here", 'did you mean "my.toml"?')


def test_a_missing_path_with_a_shipped_name_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = ("`recipes/voc_r50_d8.toml` is not here", "the shipped recipe is called `voc_r50_d8`")
    assert failure("recipes/voc_r50_d8.toml") == expected


def test_a_folder_names_the_recipe_in_it(tmp_path: pathlib.Path) -> None:
    assert failure(tmp_path) == (f"`{tmp_path}` is a folder", "name a TOML file")
    (tmp_path / "recipe.toml").write_text(MINIMAL)
    assert failure(tmp_path) == (f"`{tmp_path}` is a folder", f"its recipe is {tmp_path / 'recipe.toml'}")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs file permissions that bind this user")
def test_a_file_that_may_not_be_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(MINIMAL)
    path.chmod(0)
    assert failure(path)[0] == f"`{path}` cannot be read: Permission denied"


def test_a_file_that_is_not_utf8(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(MINIMAL.encode().replace(b"photos", "fotos \u00e9".encode("latin-1")))
    assert failure(path) == (f"{path}:14: byte 0xe9 is not UTF-8 text", "save the file as UTF-8")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    loaded = load_recipe_with_origins(path)
    assert loaded.recipe == parse_recipe(MINIMAL, "my.toml").recipe
    assert loaded.origins["optim.lr"] == f"{path}:25"


# -------------------------------------------------------------------------------------------------- imports
def test_reading_a_recipe_imports_neither_torch_nor_numpy() -> None:
    """A recipe error must appear at once."""
    code = (
        "import sys, emaseg.recipe, emaseg.resources; emaseg.recipe.load_recipe('voc_r50_d8'); "
        "print([name for name in ('torch', 'numpy', 'torchvision', 'typer', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
