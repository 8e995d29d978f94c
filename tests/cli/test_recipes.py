"""`emaseg recipes`: the list, one recipe to copy, and the keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emaseg.recipe import load_recipe
from emaseg.resources import beside
from tests.helpers import emaseg


def test_one_recipe_is_printed_as_it_is_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects copies: what is printed is a recipe file with its comments, and --json says where the file lies."""
    code, out, err = emaseg(capsys, "recipes", "voc_r50_d8")
    assert (code, err) == (0, "")
    assert out.startswith("# EMANet")
    (tmp_path / "mine.toml").write_text(out)
    assert load_recipe(tmp_path / "mine.toml") == load_recipe("voc_r50_d8")
    (entry,) = json.loads(emaseg(capsys, "recipes", "voc_r50_d8", "--json")[1])["recipes"]
    assert Path(entry["path"]).read_text("utf-8") == entry["toml"] == out
    code, _, err = emaseg(capsys, "recipes", "vocr50")
    assert (code, 'did you mean "voc_r50_d8"?' in err) == (2, True)
    code, _, err = emaseg(capsys, "recipes", "demo", "--model", "emanet")
    assert (code, "filters the list" in err) == (2, True)


def test_keys_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects people who look a key up: type, range, default and meaning, two lines a key in a pipe."""
    code, out, _ = emaseg(capsys, "recipes", "--keys", "lr_every")
    assert code == 0
    assert out == (
        "optim.lr_every: a whole number, at least 1; default 1\n"
        "    iterations between changes of the learning rate: 1, or 10 (EMANet authors)\n"
    )
    (key,) = json.loads(emaseg(capsys, "recipes", "--keys", "lr_every", "--json")[1])["keys"]
    assert (key["keys"], key["default"]) == (["optim.lr_every"], "1")


def test_a_folder_called_as_a_recipe_is_offered_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from the other meaning: ./demo is the folder, demo the recipe."""
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert beside(Path("./dmo")) == 'did you mean "./demo"?'
