"""Keys with another name than before: the old one is read everywhere, and named in one line where a user wrote it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emaseg.exported.info import FORMAT, info_of
from emaseg.recipe import EMANetModel, MemoryNetModel, load_recipe, load_recipe_with_origins, old_names, parse_recipe
from emaseg.recipe.renamed import RENAMED, new_name
from emaseg.recipe.schema import Recipe
from emaseg.recipe.sections import section_classes, section_keys
from tests.helpers import TINY, run, tiny
from tests.recipe.samples import MINIMAL, complaint, edited

main = importlib.import_module("emaseg.cli").main

OLD = edited(('kind = "emanet"', 'kind = "emanet"\nbases = 16\nstages = 2\nstages_eval = 5'))  # lines 7 and 8
NEW = OLD.replace("stages", "em_iterations")
MEMORYNET = 'kind = "memorynet"\nmemory_base_lr = 0.009\nstage1_weight = 0.3'


def old(text: str) -> str:
    """A recipe's text as it was written before the keys were renamed."""
    for before, now in RENAMED.items():
        text = text.replace(f"{now.rpartition('.')[2]} =", f"{before.rpartition('.')[2]} =")
    return text


@pytest.mark.parametrize("key", RENAMED)
def test_every_new_name_is_a_key_and_no_old_one_is(key: str) -> None:
    """Protects the list: an old name that came back as a key of its own would never be read."""

    def known(dotted: str) -> bool:
        section, _, name = dotted.rpartition(".")
        classes = section_classes(section_keys(Recipe)[section].type)
        return any(name in section_keys(cls) for cls in classes)

    assert known(RENAMED[key])
    assert not known(key)
    assert RENAMED[key] not in RENAMED


def test_a_file_with_old_names_is_the_same_recipe(tmp_path: Path) -> None:
    """Protects recipes that users keep: same values, origins at the right lines, one note for each old name."""
    path = tmp_path / "my.toml"
    path.write_text(OLD)
    loaded = load_recipe_with_origins(path)
    assert loaded.recipe == load_recipe(path) == parse_recipe(NEW, "my.toml").recipe
    assert isinstance(loaded.recipe.model, EMANetModel)
    assert (loaded.recipe.model.em_iterations, loaded.recipe.model.em_iterations_eval) == (2, 5)
    assert loaded.origins["model.em_iterations"] == f"{path}:7"
    assert loaded.origins["train.epochs"] == f"{path}:31"
    notes = (
        f"{path}:7: model.stages is called model.em_iterations now",
        f"{path}:8: model.stages_eval is called model.em_iterations_eval now",
    )
    assert loaded.notes == old_names((), path) == notes
    path.write_text(NEW)
    assert load_recipe_with_origins(path).notes == old_names((), path) == ()


def test_memorynet() -> None:
    """Protects the third renamed key, in a section of another kind."""
    text = edited(('kind = "emanet"', MEMORYNET))
    for given in (text, text.replace("stage1", "coarse")):
        model = parse_recipe(given, "my.toml").recipe.model
        assert isinstance(model, MemoryNetModel)
        assert model.coarse_weight == 0.3


def test_a_recipe_inside_a_file_has_no_note() -> None:
    """Protects checkpoints: nobody can edit the text inside, so only what was typed is named."""
    assert parse_recipe(OLD, "last.pt (recipe inside)").notes == ()
    sets = ["model.stages=4"]
    expected = ("--set model.stages: model.stages is called model.em_iterations now",)
    assert parse_recipe(OLD, "last.pt (recipe inside)", sets).notes == old_names(sets) == expected


@pytest.mark.parametrize(
    ("sets", "iterations"),
    [
        (["model.stages=4"], 4),
        (["model.em_iterations=4"], 4),
        (["model.em_iterations=3", "model.stages=4"], 4),  # the last one wins, as of any key
        (["model.stages=3", "model.em_iterations=4"], 4),
        (['model={kind="emanet", stages=4}'], 4),
        (['model={kind="emanet", bases=8}', "model.stages=4"], 4),
    ],
)
@pytest.mark.parametrize("text", [OLD, NEW, MINIMAL])
def test_set(text: str, sets: list[str], iterations: int) -> None:
    """Protects --set under either name on a file with either name."""
    model = parse_recipe(text, "my.toml", sets).recipe.model
    assert isinstance(model, EMANetModel)
    assert model.em_iterations == iterations


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (
            OLD.replace("bases = 16", "em_iterations = 4"),
            [],
            "my.toml:7: model.stages: is the old name of model.em_iterations, which is there too; keep model.em_iterations",
        ),
        (
            MINIMAL,
            ['model={kind="emanet", stages=2, em_iterations=3}'],
            "--set model: model.stages: is the old name of model.em_iterations, which is there too; keep",
        ),
        (
            OLD.replace("stages = 2", "stages = 0"),
            [],
            "my.toml:7: model.em_iterations (stages in this line): got 0; must be a whole number, at least 1",
        ),
        (
            OLD.replace("epochs = 2", "epochs = -2"),
            [],
            "my.toml:31: train.epochs: got -2; must be a whole number, at least 0",
        ),
        (
            MINIMAL,
            ["model.stages=0"],
            "--set model.stages: model.em_iterations: got 0; must be a whole number, at least 1",
        ),
        (
            MINIMAL,
            ["model.stages="],
            "--set model.stages: the value is empty; it takes a whole number, at least 1: --set model.em_iterations=3",
        ),
        (
            MINIMAL,
            ["model.stages=four"],
            "--set model.stages: four is not a TOML value; it takes a whole number, at least 1: --set model.em_iterations=3",
        ),
        (
            edited(('kind = "emanet"', 'kind = "emanet"\nstage1_weight = 0.3')),
            [],
            "my.toml:6: model.coarse_weight (stage1_weight in this line): is not for this kind; it belongs to kind",
        ),
        (
            edited(('kind = "resnet50"', 'kind = "resnet50"\nstages = 4')),  # of another section: never a key
            [],
            "my.toml:9: backbone.stages: [backbone] has no such key; its keys: kind",
        ),
    ],
)
def test_messages(text: str, sets: list[str], message: str) -> None:
    """Protects what is wrong in a file with old names: lines stay right, and both names are told."""
    assert complaint(text, *sets).startswith(message)


def test_inline_and_quoted_tables() -> None:
    """Protects the other ways to write a key in TOML."""
    header = '[model]\nkind = "emanet"'
    for model in ('model = {kind = "emanet", stages = 2}', 'model.kind = "emanet"\nmodel.stages = 2'):
        text = model + "\n" + MINIMAL.replace(header, "")
        assert parse_recipe(text, "my.toml").recipe.model == EMANetModel(kind="emanet", em_iterations=2)
    dotted = '"model.stages" = 2\n' + MINIMAL  # one key with a dot in its name, which is no key of a recipe
    assert complaint(dotted) == complaint(dotted.replace("stages", "em_iterations")).replace("em_iterations", "stages")
    text = MINIMAL.replace(header, f'{header}\n"stages" = 2')
    assert parse_recipe(text, "my.toml").recipe.model == EMANetModel(kind="emanet", em_iterations=2)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.stages", "model.em_iterations"),
        ("model.stages.x", "model.em_iterations.x"),
        ("model.stages_eval", "model.em_iterations_eval"),
        ("model.stagesx", "model.stagesx"),
        ("backbone.stages", "backbone.stages"),
    ],
)
def test_new_name(key: str, expected: str) -> None:
    assert new_name(key) == expected


# ----------------------------------------------------------------------------------------- files of before
@pytest.fixture(scope="module", name="before")
def fixture_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps whose files have the old names, as the version before wrote them."""
    folder = tmp_path_factory.mktemp("runs") / "before"
    run(tiny("train.iterations=4"), folder)
    for path in (folder / "checkpoints").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        content["recipe"] = old(content["recipe"])
        assert "\nstages = " in content["recipe"]
        torch.save(content, path)
    recipe = folder / "recipe.toml"
    recipe.write_text(old(recipe.read_text()))
    return folder


def called(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(command)
    return code, capsys.readouterr().err


def test_an_old_run_evaluates_predicts_and_resumes(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects old run folders. A resumed run compares recipes under today's names; no note is on what no one wrote."""
    code, said = called(["eval", str(before), "--device", "cpu", "--out", str(tmp_path / "scores")], capsys)
    assert (code, "is called" in said) == (0, False)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "black.png")
    set_, out = ["--set", "model.stages_eval=1"], str(tmp_path / "masks")
    command = ["predict", str(tmp_path / "black.png"), "--weights", str(before), "--device", "cpu", "--out", out, *set_]
    code, said = called(command, capsys)
    assert (code, said.count("model.stages_eval is called model.em_iterations_eval now")) == (0, 1)

    path = tmp_path / "tiny.toml"
    path.write_text(old(TINY).replace("[model]", "[model]\nstages = 3"))
    sets = ["--set", "train.iterations=4", "--out", str(before), "--device", "cpu"]
    code, said = called(["train", str(path), *sets, "--resume"], capsys)
    assert (code, said.count("model.stages is called model.em_iterations now")) == (0, 1)
    code, said = called(["train", str(path), *sets, "--resume", "--set", "model.stages=2"], capsys)
    assert (code, "model.em_iterations = 3 there, 2 now" in said) == (2, True)


def test_check_data_names_old_keys_unless_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the note in a command that reads recipes only; --quiet leaves notes out."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("[model]", "[model]\nstages = 3"))
    assert "is called model.em_iterations now" in called(["check-data", str(path), "--sample", "1"], capsys)[1]
    assert "is called" not in called(["check-data", str(path), "--sample", "1", "-q"], capsys)[1]


def test_an_exported_file_of_before() -> None:
    """Protects exports: the recipe in their metadata has the old names."""
    texts = {
        "format": FORMAT,
        "recipe": old(TINY.replace("[model]", "[model]\nem_iterations = 2")),
        "precision": "fp32",
    }
    texts |= {key: json.dumps(value) for key, value in (("include", []), ("shape", None), ("align_corners", False))}
    info = info_of(texts | {"versions": "{}"}, Path("model.onnx"), ["model.stages_eval=4"])
    assert info.recipe.model == tiny("model.em_iterations=2", "model.em_iterations_eval=4").model
