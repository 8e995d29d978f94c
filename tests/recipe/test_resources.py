"""Where things are looked for: environment variables are read at the call, and a miss names every place."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from emaseg.errors import DataError, RecipeError
from emaseg.resources import cache_folder, data_root, default_run_folder, shipped_recipe_text, shipped_recipes


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working folder without any of our variables."""
    for name in ("EMASEG_CACHE", "EMASEG_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_cache_is_ours_then_xdgs_then_homes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == home / ".cache" / "emaseg"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # void by the XDG rules
    assert cache_folder() == home / ".cache" / "emaseg"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/emaseg")
    monkeypatch.setenv("EMASEG_CACHE", "~/mine")
    assert cache_folder() == home / "mine"


def test_data_is_found_below_emaseg_data_first_then_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "sets").mkdir()
    assert data_root("sets") == home / "sets"
    (home / "data" / "sets").mkdir(parents=True)
    assert data_root("sets") == home / "data" / "sets"
    (home / "disk" / "sets").mkdir(parents=True)
    monkeypatch.setenv("EMASEG_DATA", str(home / "disk"))
    assert data_root("sets") == home / "disk" / "sets"
    assert data_root(str(home / "sets")) == home / "sets"
    assert data_root("~/sets") == home / "sets"


def test_missing_data_names_every_place_and_the_remedy(home: Path) -> None:
    with pytest.raises(DataError) as caught:
        data_root("VOCdevkit/VOC2012")
    places = f"{home}/data/VOCdevkit/VOC2012 and {home}/VOCdevkit/VOC2012"
    assert caught.value.message == f'data.root = "VOCdevkit/VOC2012": no such folder; looked at {places}'
    assert """--set 'data.root="/path/to/VOC2012"'""" in caught.value.hint
    assert caught.value.exit_code == 3


def test_a_file_is_no_data_folder(home: Path) -> None:
    (home / "sets").write_text("")
    with pytest.raises(DataError, match="no such folder"):
        data_root(str(home / "sets"))


def test_run_folders_sort_by_time() -> None:
    early, late = datetime(2024, 1, 2, 3, 4, 5), datetime(2024, 1, 2, 13, 4, 5)
    assert default_run_folder("demo", early) == Path("runs/demo/2024-01-02_03-04-05")
    assert str(default_run_folder("demo", early)) < str(default_run_folder("demo", late))


def test_shipped_recipes_are_listed_and_readable() -> None:
    assert shipped_recipes() == tuple(sorted(shipped_recipes()))
    assert 'name = "voc_r50_d8"' in shipped_recipe_text("voc_r50_d8")
    with pytest.raises(RecipeError, match="no shipped recipe is called `voc`"):
        shipped_recipe_text("voc")
