"""The index of large folders: used while nothing has changed, and never after; and lists of very many paths."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emaseg.data.sets import folder_index
from emaseg.data.sets.folder import folder
from emaseg.data.sets.folder_index import index_file, read_index
from emaseg.data.sets.path_lists import Names, PathList, PathPairs
from emaseg.errors import DataError
from emaseg.recipe.data import FolderData
from emaseg.training.image_state import changed_images, image_state
from tests.data.sets.test_folder import data, draw

FILES = [f"{side}/{place}.png" for side in ("image", "mask") for place in ("a", "b", "x/c", "x/d", "y/e")]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five pairs, indexed whatever their number and age."""
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "LEAST", 1)
    monkeypatch.setattr(folder_index, "_SETTLED", -60.0)
    return draw(tmp_path / "data", *FILES)


def index_of(recipe: FolderData) -> Path:
    return index_file(Path(recipe.root), "train", recipe)


def names(recipe: FolderData) -> list[tuple[str, ...]]:
    dataset = folder(recipe, "train")
    return [tuple(path.relative_to(recipe.root).as_posix() for path in dataset.files(i)) for i in range(len(dataset))]


def test_the_index_is_what_the_folders_hold(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the order and the pairs: the same with the index as without, and folders are then not listed again."""
    recipe = data(root, holdout=2)
    first = names(recipe)
    assert read_index(index_of(recipe)) is not None
    monkeypatch.setattr(os, "scandir", None)
    assert names(recipe) == first
    assert len(first) == 3


def add(root: Path) -> None:
    draw(root, "image/x/new.png", "mask/x/new.png")


def remove(root: Path) -> None:
    for side in ("image", "mask"):
        (root / side / "a.png").unlink()


def rename(root: Path) -> None:
    for side in ("image", "mask"):
        (root / side / "y/e.png").rename(root / side / "y/f.png")


def add_a_folder(root: Path) -> None:
    draw(root, "image/z/new.png", "mask/z/new.png")


def secretly(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same, but the folders' times of change are set back."""

    def changed(root: Path) -> None:
        places = [root, *(path for path in root.rglob("*") if path.is_dir())]
        before = {path: path.stat() for path in places}
        change(root)
        for path, state in before.items():
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    return changed


def other_folder_of_that_name(root: Path) -> None:
    (root / "image/y").rename(root.parent / "old_images")
    (root / "mask/y").rename(root.parent / "old_masks")
    draw(root, "image/y/other.png", "mask/y/other.png")


@pytest.mark.parametrize(
    "change",
    [add, remove, rename, add_a_folder, other_folder_of_that_name]
    + [secretly(change) for change in (add, remove, rename, add_a_folder)],
)
def test_a_changed_folder_is_listed_again(root: Path, change: Callable[[Path], None]) -> None:
    """Protects a training from the files of yesterday, also where a copying program sets times back."""
    recipe = data(root)
    before = names(recipe)
    change(root)
    assert read_index(index_of(recipe)) is None
    there = sorted(path.relative_to(root / "image").as_posix() for path in (root / "image").rglob("*.png"))
    assert names(recipe) == [(f"image/{name}", f"mask/{name}") for name in there] != before
    assert read_index(index_of(recipe)) is not None


def test_a_changed_list_and_other_options_have_their_own_result(root: Path) -> None:
    """Protects lists, masks' names and the two phases from each other's index."""
    (root / "list.txt").write_text("x/d.png\na\n")
    listed = data(root, train_list="list.txt")
    assert names(listed) == [(f"image/{n}.png", f"mask/{n}.png") for n in ("x/d", "a")]
    (root / "list.txt").write_text("y/e.png\n")
    assert names(listed) == [("image/y/e.png", "mask/y/e.png")]
    assert len(names(data(root))) == 5
    recipe = data(root, holdout=5)
    assert (len(folder(recipe, "train")), len(folder(recipe, "eval"))) == (4, 1)
    assert (len(folder(recipe, "train")), len(folder(recipe, "eval"))) == (4, 1)


def test_errors_are_found_each_time(root: Path) -> None:
    """Protects from an index that hides a missing mask: what is wrong is not stored."""
    (root / "mask/a.png").unlink()
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 5 images"):
            folder(data(root), "train")
    assert not index_of(data(root)).exists()


def test_a_damaged_index_is_none(root: Path) -> None:
    """Protects from a torn or forged cache: whatever byte is changed, the folders are listed and the index is mended."""
    recipe = data(root)
    first, path = names(recipe), index_of(data(root))
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read_index(path) is None
    for content in (b"", whole[:50], whole[:-1], bytes(100), hashlib.sha256(b"[]").digest() + b"[]"):
        path.write_bytes(content)
        assert read_index(path) is None
    assert names(recipe) == first
    assert path.read_bytes() == whole


def test_what_has_just_changed_is_not_stored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a change in the same tick of the disk's clock; small sets leave nothing in the cache; a cache that
    cannot be written is no error."""
    monkeypatch.setattr(folder_index, "_SETTLED", 3600.0)
    names(data(root))
    monkeypatch.setattr(folder_index, "_SETTLED", -60.0)
    monkeypatch.setattr(folder_index, "LEAST", 6)
    names(data(root))
    assert not (root.parent / "cache").exists()
    monkeypatch.setattr(folder_index, "LEAST", 5)
    (root.parent / "cache").write_text("a file")
    assert len(names(data(root))) == 5


# --------------------------------------------------------------------------------------------------- path lists
# What a name can hold: any character, and bytes that are no UTF-8, which Python reads as U+DC80 to U+DCFF.
characters = st.characters(exclude_characters="/\0", exclude_categories=("Cs",)) | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=("Cs",)
)
# A name as the system gives it: bytes that are UTF-8 together would have come as their character.
name = st.text(characters, min_size=1, max_size=4).filter(lambda name: os.fsdecode(os.fsencode(name)) == name)
file_names = st.lists(name, min_size=1, max_size=3)
lists = st.lists(file_names.map("/".join), max_size=6)


@given(lists, lists, st.integers(1, 3))
def test_a_path_list_is_a_tuple_of_paths(first: list[str], second: list[str], times: int) -> None:
    """Law: length, order, places from both ends, slices and pickling are those of a tuple, whatever the names hold."""
    parts = (Names.of(Path("/top"), first),) * times + (Names.of(None, second),)
    expected = tuple(Path(f"/top/{name}") for name in first) * times + tuple(Path(name) for name in second)
    found = pickle.loads(pickle.dumps(PathList(parts)))
    assert tuple(found) == expected == tuple(PathList(parts)) == tuple(map(Path, found.paths()))
    assert len(found) == len(expected)
    assert found[1:-1] == list(expected[1:-1])
    for i in range(-len(expected), len(expected)):
        assert found[i] == expected[i]
    for outside in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            found[outside]
    assert list(PathPairs(found, found)) == [(path, path) for path in expected]


# ------------------------------------------------------------------------------------------------- image state
def test_names_have_the_hash_that_checkpoints_hold(root: Path) -> None:
    """Protects runs that exist: the names' hash is that of the text that it was always made of."""
    dataset = folder(data(root), "train")
    text = "a.png\nb.png\nx/c.png\nx/d.png\ny/e.png"
    assert image_state(dataset, dataset)["names"] == hashlib.sha256(text.encode()).hexdigest()


def test_of_a_very_large_set_some_files_are_asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the start on a million images: files evenly spread; a set that was converted is found; a checkpoint from
    before, which holds something of every file, is no alarm."""
    import emaseg.training.image_state as module

    everything = image_state(*(folder(data(root), "train"),) * 2)
    monkeypatch.setattr(module, "_ALL", 4)
    monkeypatch.setattr(module, "_SOME", 2)
    dataset = folder(data(root), "train")
    some = image_state(dataset, dataset)
    assert "files" not in some
    assert some["names"] == everything["names"]
    assert changed_images(everything, some) == []
    assert module._files(dataset) == list(chain(dataset.files(0), dataset.files(2)))
    for path in (root / "image").rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"converted")
    (note,) = changed_images(some, image_state(dataset, dataset))
    assert "training and evaluation images or labels have other contents" in note.text
