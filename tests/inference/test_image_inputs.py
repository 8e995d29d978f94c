"""Which files the arguments of `predict` mean, and where their results go."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from emaseg.errors import DataError, RecipeError
from emaseg.inference.image_inputs import find_images, unread_files
from emaseg.inference.predict import Predictor
from emaseg.inference.predict_files import predict_files
from tests.inference.made import picture


def stems(*inputs: str | Path, out: Path | None = None) -> list[str]:
    return [item.stem for item in find_images([str(i) for i in inputs], out)]


def test_folders_are_searched_and_keep_their_structure(tmp_path: Path) -> None:
    """Sorted, below the given folder, images only, no hidden files."""
    for name in ("b.png", "a.JPG", "sub/c.png", "sub/deep/d.webp", ".hidden.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.jpg").mkdir()
    assert stems(tmp_path) == ["a", "b", "sub/c", "sub/deep/d"]


def test_colliding_stems_keep_their_extension(tmp_path: Path) -> None:
    """Nothing is overwritten: cat.jpg and cat.png, Cat.jpg on some file systems, the same name in two places."""
    for name in ("cat.jpg", "cat.png", "dog.png", "x/bird.png", "y/bird.png"):
        picture(tmp_path / name)
    assert stems(tmp_path / "cat.jpg", tmp_path / "cat.png", tmp_path / "dog.png") == ["cat.jpg", "cat.png", "dog"]
    assert stems(tmp_path / "x/bird.png", tmp_path / "y/bird.png") == ["bird.png", "bird.png-2"]
    assert len(set(stems(tmp_path, tmp_path / "x"))) == 5


def test_patterns_and_repeats(tmp_path: Path) -> None:
    """A pattern the shell did not expand; an image named twice is predicted once."""
    for name in ("a.png", "b.png", "sub/c.png"):
        picture(tmp_path / name)
    (tmp_path / "b.txt").write_text("x")
    assert stems(tmp_path / "*") == ["a", "b"]
    assert stems(tmp_path / "**/*.png") == ["a", "b", "c"]
    assert stems(tmp_path / "a.png", tmp_path) == ["a", "b", "sub/c"]


def test_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    """Protects from masks of thumbnails, of the bin, of what macOS packs beside; a folder that is named is meant."""
    for name in ("a.png", ".thumbnails/a.png", ".thumbnails/b.png", "__MACOSX/c.png", "sub/d.png", "sub/.bin/e.png"):
        picture(tmp_path / name)
    (tmp_path / ".thumbnails/f.heic").write_bytes(b"x")
    assert stems(tmp_path) == ["a", "sub/d"]
    assert stems(tmp_path / ".thumbnails") == ["a", "b"]
    assert unread_files([str(tmp_path)]) == []
    assert len(unread_files([str(tmp_path / ".thumbnails")])) == 1


def test_links_of_two_names_to_one_file_are_two_images(tmp_path: Path) -> None:
    """Protects folders of links, as tools for data sets make them, from results for some of the names only; one name by
    two ways is one image."""
    picture(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").symlink_to("a.png")
    (tmp_path / "linked").symlink_to("in")
    assert stems(tmp_path / "in") == ["a", "b"]
    first = tmp_path / "in/a.png"
    assert stems(first, first, tmp_path / "linked/a.png", tmp_path / "linked", tmp_path / "in") == ["a", "b"]


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects lists of many images in mixed order: each folder is looked through for equal names once, and in the next
    call anew."""
    monkeypatch.chdir(tmp_path)
    folders = [f"{number:02}" for number in range(70)]
    lines = [f"{folder}/{name}" for name in ("a.png", "b.png") for folder in folders]
    for line in lines:
        Path(line).parent.mkdir(exist_ok=True)
        Path(line).touch()
    Path("list.txt").write_text("\n".join(lines))
    listed: Counter[str] = Counter()
    listdir = os.listdir

    def counted(folder: str | Path = ".") -> list[str]:
        listed[str(folder)] += 1
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", counted)
    assert stems("@list.txt") == [line.removesuffix(".png") for line in lines]
    assert listed == Counter(folders)
    Path("00/a.jpg").touch()
    assert stems("00/a.png") == ["a.png"]


def test_an_earlier_run_is_not_predicted_again(tmp_path: Path, predictor: Predictor) -> None:
    """Outputs written next to the images are not taken for images; a photograph called x_mask.png alone is one."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "alone_mask.png")
    before = stems(tmp_path)
    list(predict_files(predictor, find_images([str(tmp_path)]), tmp_path))
    assert before == ["a", "alone_mask"]
    assert stems(tmp_path) == before


def test_the_results_folder_is_not_searched(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects `predict .` typed twice from labelling its own masks, however the two folders are written."""
    monkeypatch.chdir(tmp_path)
    for name in ("tree/a.png", "tree/sub/b.png"):
        picture(tmp_path / name)
    Path("link").symlink_to("tree")
    out = Path("tree/out")
    for _ in range(2):
        list(predict_files(predictor, find_images(["tree"], out), out))
    assert len([file for file in out.rglob("*") if file.is_file()]) == 4
    for folder, results in (
        ("tree", out),
        ("tree", tmp_path / "link/out"),
        ("link", out),
        (".", Path("tree/sub/../out")),
        (str(tmp_path / "tree"), out),
    ):
        found = stems(folder, out=results)
        assert [Path(stem).name for stem in found] == ["a", "b"], (folder, results)
    assert stems("tree/**/*.png", out=out) == stems("tree/**/*.png", out=Path("link/out")) == ["a", "b"]


def test_the_results_folder_itself_may_be_named(predictor: Predictor, tmp_path: Path) -> None:
    """Protects `predict *`, of which the shell makes `predictions` too, and images that share a folder with results."""
    out = tmp_path / "predictions"
    photo = picture(tmp_path / "a.png")
    list(predict_files(predictor, find_images([str(photo)], out), out))
    assert stems(photo, out, out=out) == ["a"]
    with pytest.raises(DataError, match="no images here but the results of an earlier run"):
        find_images([str(out)], out)
    picture(out / "b.png")
    assert stems(out, out=out) == ["b"]
    list(predict_files(predictor, find_images([str(out)], out), out))
    assert stems(out, out=out) == ["b"]


def test_a_named_file_in_the_results_folder_is_predicted(tmp_path: Path) -> None:
    """What is named is meant: a file, and a folder or pattern that lies in the results folder."""
    out = tmp_path / "out"
    mask = picture(out / "a_mask.png")
    picture(out / "sub/c.png")
    assert stems(mask, out=out) == ["a_mask"]
    assert stems(out / "sub", out=out) == stems(out / "sub/*", out=out) == ["c"]


def test_a_folder_with_nothing_but_results_says_where_it_looked(tmp_path: Path) -> None:
    """Protects from "no images" about a folder in which the user sees images."""
    picture(tmp_path / "out/a.png")
    with pytest.raises(DataError, match=r"no images in this folder outside of .*out, where results go"):
        find_images([str(tmp_path)], tmp_path / "out")


def test_what_cannot_be_read_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Protects the other images: a name that no file can have, and a link to a folder, which no search follows."""
    picture(tmp_path / "in/a.png")
    (tmp_path / "in/b.heic").write_bytes(b"x")
    (tmp_path / "else").mkdir()
    (tmp_path / "else/c.nef").write_bytes(b"x")
    (tmp_path / "in/link").symlink_to(tmp_path / "else")
    given = [str(tmp_path / "in"), str(tmp_path / ("x" * 300))]
    assert unread_files(given) == [f"{tmp_path / 'in'}: files that are not read: 1 .heic"]
    assert [one.problem is None for one in find_images(given)] == [True, False]


def test_earlier_results_are_no_unread_files(tmp_path: Path) -> None:
    """Protects `predict .` run twice: the probabilities of the first run are its own."""
    picture(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_probabilities.npz").write_bytes(b"x")
    (tmp_path / "b.heic").write_bytes(b"x")
    told = [f"{tmp_path}: files that are not read: 1 .heic"]
    assert unread_files([str(tmp_path)], tmp_path / "out") == told
    (tmp_path / "a_probabilities.npz").write_bytes(b"x")
    assert unread_files([str(tmp_path)], tmp_path) == told


def test_an_empty_name_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects `predict "$PHOTO"` with a variable that is not set from labelling the whole current folder."""
    monkeypatch.chdir(tmp_path)
    photo = picture(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="an empty name was given"):
        find_images([str(photo), ""])


@pytest.mark.parametrize(
    ("argument", "message"),
    [("none.jpg", "no such file or folder"), ("empty", "no images in this folder"), ("*.jpg", "no image matches")],
)
def test_nothing_to_predict_is_an_error(tmp_path: Path, argument: str, message: str) -> None:
    """A typing mistake must not look like success."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_images([str(tmp_path / argument)])


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, predictor: Predictor) -> None:
    """`-` is one image, read once."""
    content = picture(tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    (item,) = find_images(["-", "-"])
    assert (item.source, item.name, item.stem) == (content, "stdin", "stdin")
    (done,) = predict_files(predictor, [item], tmp_path / "out")
    assert (tmp_path / "out/stdin_mask.png").is_file()
    assert (done.width, done.height) == (56, 40)
