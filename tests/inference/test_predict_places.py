"""Where predict writes, and what it must never replace; bad inputs that cost nothing but themselves."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emaseg
from emaseg.data.files.signed import is_signed, signed
from emaseg.errors import DataError, RecipeError, SystemFault
from emaseg.inference.image_inputs import find_images
from emaseg.inference.predict import Predictor
from emaseg.inference.predict_files import ImageDone, predict_files
from emaseg.visual import overlay

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(os.name == "nt", reason="POSIX file systems")]

SMALL = ["backbone.width=8", "model.attention_channels=16", "model.decoder_channels=16", "model.bottleneck_channels=16"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """An untrained EMANet on a 14-layer ResNet."""
    recipe = emaseg.load_recipe("demo", SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Predictor(emaseg.build_model(recipe), recipe)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with own/photo.png."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "own/photo.png")
    yield tmp_path
    for folder in tmp_path.rglob("*"):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o700)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def predict(predictor: Predictor, *inputs: str, out: str = "own", resume: bool = False) -> list[ImageDone]:
    return list(predict_files(predictor, find_images(inputs, Path(out)), Path(out), resume=resume))


def state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Which file has which name, when it was written, and how long it is."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (status.st_ino, status.st_mtime_ns, status.st_size) for path, status in found.items()}


# ------------------------------------------------------------------------------------------------ what must stay
def edited(path: Path) -> None:
    """A mask of ours, corrected by hand in a program that keeps texts."""
    with Image.open(path) as mask:
        text = mask.info["Software"]
        mask.putpixel((0, 0), (mask.getpixel((0, 0)) or 0) + 1)  # type: ignore[operator]
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("Software", text)
        mask.save(path, pnginfo=info)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


IN_THE_PLACE: dict[str, Callable[[Path], object]] = {
    "a drawing": picture,
    "a text": lambda path: path.write_text("mine"),
    "a folder": Path.mkdir,
    "a link to a file": lambda path: path.symlink_to("../precious"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "a hard link of the input": lambda path: os.link("own/photo.png", path),
}


@pytest.mark.parametrize("ending", ["mask", "overlay"])
@pytest.mark.parametrize("what", IN_THE_PLACE)
def test_nothing_is_replaced_that_predict_did_not_write(
    predictor: Predictor, here: Path, what: str, ending: str
) -> None:
    """Protects `predict own --out own` from replacing photo_mask.png, hours of drawing; no link is written through."""
    (here / "precious").write_text("precious")
    place = here / f"own/photo_{ending}.png"
    IN_THE_PLACE[what](place)
    before = state(here)
    (done,) = predict(predictor, "own/photo.png")
    assert done.error is not None
    assert str(place.relative_to(here)) in done.error
    hint = "move it away, or choose another folder with --out"
    own = "already exists" in done.error
    assert done.hint == (f"{hint}; --overwrite replaces it" if own else hint)
    assert not done.files
    assert state(here) == before
    assert (here / "precious").read_text() == "precious"


@pytest.mark.parametrize("what", IN_THE_PLACE)
def test_overwrite_replaces_ordinary_files_alone(predictor: Predictor, here: Path, what: str) -> None:
    """Protects what --overwrite cannot mean: an input, a folder, and what a link leads to."""
    (here / "precious").write_text("precious")
    place = here / "own/photo_mask.png"
    IN_THE_PLACE[what](place)
    (done,) = predict_files(predictor, find_images(["own/photo.png"]), Path("own"), overwrite=True)
    if what in ("a drawing", "a text"):
        assert done.error is None
        assert is_signed(place)
    else:
        assert done.error is not None
        assert not place.is_file() or not is_signed(place)
    assert (here / "precious").read_text() == "precious"


@pytest.mark.parametrize("change", [edited, longer])
def test_a_result_that_somebody_worked_on_is_theirs(
    predictor: Predictor, here: Path, change: Callable[[Path], None]
) -> None:
    """Protects masks that were corrected by hand where predict wrote them."""
    predict(predictor, "own/photo.png")
    mask = here / "own/photo_mask.png"
    change(mask)
    content = mask.read_bytes()
    (done,) = predict(predictor, "own/photo.png")
    assert "it is not as predict wrote it, so it is kept" in (done.error or "")
    assert mask.read_bytes() == content


def test_results_of_its_own_are_replaced(predictor: Predictor, here: Path) -> None:
    """Protects the second run with another model; an empty file, all that a full disk may leave, is nobody's work."""
    (first,) = predict(predictor, "own/photo.png")
    mask = here / "own/photo_mask.png"
    content, number = mask.read_bytes(), mask.stat().st_ino
    (second,) = predict(predictor, "own/photo.png")
    assert (second, mask.read_bytes()) == (first, content)
    assert mask.stat().st_ino != number
    mask.write_bytes(b"")
    assert predict(predictor, "own/photo.png") == [first]
    assert mask.read_bytes() == content


def test_a_result_that_is_an_input_too_stays(predictor: Predictor, here: Path) -> None:
    """Protects the second image from the first one's result, also when predict wrote that itself, under any name."""
    predict(predictor, "own/photo.png")
    os.link("own/photo_mask.png", "own/other_name.png")
    for name in ("own/photo_mask.png", "own/other_name.png"):
        content = (here / "own/photo_mask.png").read_bytes()
        first, second = predict(predictor, "own/photo.png", name)
        assert "is an input itself" in (first.error or "")
        assert second.error is None
        assert (here / "own/photo_mask.png").read_bytes() == content


def test_the_same_name_in_two_spellings_has_two_results(here: Path) -> None:
    """Protects results on file systems for which capitals and the two ways to write an accent are the same."""
    names = ["caf\u00e9.png", "cafe\u0301.jpg", "CAF\u00c9.webp"]
    for number, name in enumerate(names):
        picture(here / str(number) / name)
    stems = [item.stem for item in find_images([f"{number}/{name}" for number, name in enumerate(names)])]
    assert stems == names


def test_the_mark_is_a_part_of_a_valid_png(tmp_path: Path) -> None:
    """Protects readers: the marked file is a PNG with the same pixels, and no other file passes for one."""
    path = picture(tmp_path / "a.png")
    plain = path.read_bytes()
    assert not is_signed(path)
    path.write_bytes(signed(plain))
    assert is_signed(path)
    with Image.open(path) as marked, Image.open(io.BytesIO(plain)) as other:
        marked.verify()
        assert marked.info["Software"].startswith("emaseg predict ")
    with Image.open(path) as marked, Image.open(io.BytesIO(plain)) as other:
        assert np.array_equal(np.array(marked), np.array(other))
    for damaged in (path.read_bytes()[:-1], path.read_bytes()[:60], b"", plain[:33] + path.read_bytes()[33:] + b"x"):
        path.write_bytes(damaged)
        assert not is_signed(path)


def test_any_class_name_can_be_drawn() -> None:
    """Protects overlays and sample sheets from class names with line breaks, controls or half characters."""
    names = ["a\nb", "\x1b[31m", "\udcff", "\u2028", ""]
    labels = np.arange(100, dtype=np.uint8).reshape(10, 10) % len(names)
    palette = np.zeros((len(names), 3), np.uint8)
    assert overlay(np.zeros((10, 10, 3), np.uint8), labels, palette, names).width == 10


def test_resume_replaces_nothing_either(predictor: Predictor, here: Path) -> None:
    """Protects a drawing beside which the overlay is missing."""
    picture(here / "own/photo_mask.png")
    content = (here / "own/photo_mask.png").read_bytes()
    (done,) = predict(predictor, "own/photo.png", resume=True)
    assert done.error is not None
    assert (here / "own/photo_mask.png").read_bytes() == content


# ----------------------------------------------------------------------------------------------- one bad input
def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


LONG = "x" * 251
BAD: dict[str, Callable[[Path], object]] = {
    "loop.png": lambda path: path.symlink_to(path.name),
    "broken.png": lambda path: path.symlink_to("nothing"),
    "pipe.png": os.mkfifo,
    "socket.png": a_socket,
    "device.png": lambda path: path.symlink_to("/dev/zero"),
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("\x1b[2J not an image"),
    f"{LONG}.png": picture,  # its result's name would be too long
    "bomb.png": lambda path: path.write_bytes(b"P6 90000 90000 255\n"),
}


@pytest.mark.parametrize("how", ["folder", "pattern", "names"])
def test_bad_inputs_cost_only_themselves(predictor: Predictor, here: Path, how: str) -> None:
    """Protects a folder of thousands from one file that nobody can read: the others are done, each bad one is named."""
    for name, make in BAD.items():
        make(here / "own" / name)
    good = ["own/photo.png", "own/zebra.png"]
    picture(here / good[1])
    names = sorted([*good, *(f"own/{name}" for name in BAD)])
    inputs = {"folder": ["own"], "pattern": ["own/*.png"], "names": names}[how]
    results = {done.image: done for done in predict(predictor, *inputs, out="out")}
    assert sorted(results) == names
    assert sorted(name for name, done in results.items() if done.error is None) == good
    for name, done in results.items():
        line = json.loads(json.dumps(done.json(), allow_nan=False))
        assert (line["error"] is None) == (name in good)
    assert len(list(Path("out").iterdir())) == 4


@pytest.mark.parametrize(
    "argument", ["gone.png", "none*.png", "a" * 5000 + ".png", "a/" * 3000 + "b", "nul\0.png", "deep"]
)
def test_an_argument_that_leads_nowhere_costs_only_itself(predictor: Predictor, here: Path, argument: str) -> None:
    """Protects the other arguments; alone it is an error of the whole command."""
    (here / "deep").mkdir()
    bad, good = predict(predictor, argument, "own", out="out")
    assert bad.error is not None
    assert bad.error.startswith(argument[:200])
    assert good.error is None
    with pytest.raises(DataError):
        find_images([argument], Path("out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_without_permission_costs_only_itself(predictor: Predictor, here: Path) -> None:
    """Protects the other folders of a tree."""
    picture(here / "own/locked/a.png")
    (here / "own/locked").chmod(0)
    good, bad = sorted(predict(predictor, "own", out="out"), key=lambda done: done.error is not None)
    assert good.error is None
    assert bad.error == "own/locked: cannot be read (Permission denied)"


def test_an_image_that_vanishes_after_the_search_costs_only_itself(predictor: Predictor, here: Path) -> None:
    """Protects long jobs in folders that others work in."""
    inputs = find_images(["own", str(picture(here / "own/second.png"))], Path("out"))
    (here / "own/photo.png").unlink()
    first, second = predict_files(predictor, inputs, Path("out"))
    assert first.error == "own/photo.png: no such file"
    assert second.error is None


def test_a_file_in_the_place_of_a_sub_folder_costs_only_that_folder(predictor: Predictor, here: Path) -> None:
    """Protects the other images; a file in the place of the whole folder ends the run (see test_predict_files)."""
    picture(here / "own/sub/a.png")
    (here / "out").mkdir()
    (here / "out/sub").write_text("mine")
    good, bad = sorted(predict(predictor, "own", out="out"), key=lambda done: done.error is not None)
    assert good.error is None
    assert "out/sub" in (bad.error or "")
    assert (here / "out/sub").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89PNG\r\n\x1a\n"])
def test_garbage_on_stdin_is_that_inputs_error(
    predictor: Predictor, here: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Protects the other images from an empty or broken pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    bad, good = predict(predictor, "-", "own", out="out")
    assert (bad.error or "").startswith("stdin: ")
    assert good.error is None


def test_no_stdin(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a wait for an image that somebody would have to type, and from a bug when stdin is closed."""
    with open("own/photo.png", "ab") as not_readable, open(os.dup(not_readable.fileno()), encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(DataError, match="stdin: cannot be read"):
            find_images(["-"])
    main, side = os.openpty()
    try:
        with open(side, encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            with pytest.raises(RecipeError, match="stdin is a terminal"):
                find_images(["-"])
    finally:
        os.close(main)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_in_the_middle_ends_the_run_and_keeps_what_is_done(predictor: Predictor, here: Path) -> None:
    """Protects from an error for each of thousands of images; no half file stays.

    Results are written behind the prediction, so some images more may be complete when the disk gets full.
    """
    import resource

    for number in range(2, 13):
        picture(here / f"own/photo{number:02}.png")
    done = predict_files(predictor, find_images(["own"], Path("out")), Path("out"))
    assert next(done).error is None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))  # Python ignores SIGXFSZ: writing fails with EFBIG
    try:
        with pytest.raises(SystemFault):
            list(done)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    made = sorted(path.name for path in Path("out").iterdir())
    assert {"photo_mask.png", "photo_overlay.png"} <= set(made)
    assert len(made) < 2 * 12
    assert {name for name in made if name.endswith("_mask.png")} <= {
        f"{name[:-12]}_mask.png" for name in made if "_overlay" in name
    }
    for name in made:
        with Image.open(Path("out") / name) as whole:
            whole.load()


def test_results_are_called_the_same_whatever_else_is_predicted(tmp_path: Path) -> None:
    """Protects scripts: cat.jpg beside cat.png has cat.jpg_mask.png alone, with the other and in its folder."""
    for name in ("cat.jpg", "cat.png", "dog.jpg", "dog_mask.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    alone = find_images([str(tmp_path / "cat.jpg")])
    both = find_images([str(tmp_path / "cat.png"), str(tmp_path / "cat.jpg")])
    folder = find_images([str(tmp_path)])
    assert [one.stem for one in alone] == ["cat.jpg"]
    assert [one.stem for one in both] == ["cat.png", "cat.jpg"]
    assert [one.stem for one in folder] == ["cat.jpg", "cat.png", "dog"]
