"""Which images the arguments of `predict` mean, and where the results of each go.

Room: inference.
"""

from __future__ import annotations

import functools
import glob
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from emaseg.data.files.images import EXTENSIONS, image_names, images_apart
from emaseg.data.sets.folder import count_endings
from emaseg.errors import DataError, RecipeError
from emaseg.files import is_hidden, read_bytes
from emaseg.inference.outputs import ENDINGS
from emaseg.resources import expanded
from emaseg.words import quoted

_RESULTS = tuple(end for end in ENDINGS.values() if end.endswith(".png"))  # images that predict_files writes
_MOST_OF_STDIN = 2**31  # bytes: more than any image that read_image accepts; /dev/zero has no end
_MOST_OF_LIST = 2**28  # bytes of a list of files
_VIDEOS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_WEB = ("http://", "https://", "ftp://", "s3://", "gs://")


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image to predict. source: its file, or its bytes (standard input). name: what messages call it.

    stem: where its outputs go below the output folder, without `_mask.png`; posix, e.g. `street/cat`.
    problem: why there is no image; its error is reported like that of an image that cannot be read.
    """

    source: Path | bytes
    name: str
    stem: str
    problem: DataError | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """What an argument led to: an image and its place below the argument, or why there is none."""

    source: Path | bytes
    name: str
    relative: Path
    problem: DataError | None = None


def find_images(inputs: Sequence[str], out: Path | None = None) -> list[ImageInput]:
    """The images that the arguments mean: files, folders (searched recursively), patterns (`*.jpg`), `-` = stdin, and
    `@list.txt`: a text file that names one of these a line.

    Each argument's images are sorted; an image that is meant twice comes once, links of two names to one file are two.
    Outputs keep the structure below a given folder, and that of relative names in a list. Where two images would write
    to one stem, both use the file name instead (`cat.jpg`, `cat.png`). In folders, hidden files, hidden folders and an
    earlier run's own `<stem>_mask.png` and `<stem>_overlay.png` are left out.

    A search that meets `out` passes it by: it often lies among the images (`predict .` writes below it), and its
    masks and overlays are images, too, which every further run would label again. Where `out` itself is searched,
    because images and results share a folder or the shell made `predictions` of `*`, what ends as results do is left
    out. A file that is named is always taken.

    Args:
        out: the folder that results go to; links on the way make no difference. None: none.

    Where some arguments or sub-folders lead to no image, that is the problem of an input of its own, and the other
    images are found as ever.

    Raises:
        RecipeError: an argument is the empty text, or stdin is a terminal.
        DataError: no image at all; says why the first argument leads to none. A list cannot be read or is empty.
    """
    found: dict[str, _Found] = {}
    results = None if out is None else _real(out)
    for text, listed in _arguments(inputs):
        if text == "-" and "-" not in found:
            found["-"] = _standard_input()
        elif text != "-":
            for one in _files(text, results, listed):
                found.setdefault(_key(one), one)
    good = [one for one in found.values() if one.problem is None]
    for one in found.values():
        if one.problem is not None and not good:
            raise one.problem
    if not good:
        raise DataError(f"{out}: no images here but the results of an earlier run", "name the images or their folder")
    images_by_stem = functools.cache(_images_by_stem)  # of this call alone: folders change
    stems = iter(_stems([(one.relative, _has_twin(one.source, images_by_stem)) for one in good]))
    return [ImageInput(one.source, one.name, "" if one.problem else next(stems), one.problem) for one in found.values()]


def shard(inputs: Sequence[ImageInput], text: str) -> list[ImageInput]:
    """The I-th of N parts of all inputs, "I/N" counted from 1: every N-th, so that N processes share the work.

    Outputs are called the same in every part as without.

    Raises:
        RecipeError: the text is none of that kind.
    """
    first, slash, second = text.partition("/")
    number, count = (int(part) if part.isascii() and part.isdecimal() else 0 for part in (first, second))
    if not slash or not 1 <= number <= count:
        raise RecipeError(f"--shard {text}: write I/N with I from 1 to N", "the second of four parts: --shard 2/4")
    return list(inputs[number - 1 :: count])


def _arguments(inputs: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each argument, with the lines of a list in its place, and whether it is such a line."""
    for text in inputs:
        if not text:
            raise RecipeError("IMAGE: an empty name was given", "is it a shell variable that is not set?")
        if text.startswith("@"):
            yield from ((line, True) for line in _lines(text[1:]))
        else:
            yield text, False


def _lines(name: str) -> list[str]:
    """The lines of a list file that are not empty.

    Raises:
        DataError: it cannot be read, is no text, or has none.
    """
    hint = f"a list names one image a line; an image that is called so is written {quoted(f'./@{name}')}"
    try:
        text = read_bytes(expanded(name), _MOST_OF_LIST).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "not a text file" if isinstance(error, ValueError) else error.strerror or error
        raise DataError(f"@{name}: the list cannot be read ({reason})", hint) from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip() != "-"]
    if not lines:
        raise DataError(f"@{name}: the list is empty", hint)
    return lines


def unread_files(inputs: Sequence[str], out: Path | None = None) -> list[str]:
    """Of each argument that is a folder, the number and the endings of files that find_images leaves out, as sentences.

    It searches where find_images does, and not in `out`; what that cannot read is told by it.
    """
    folders = [expanded(text) for text in inputs if text not in ("", "-") and os.path.isdir(expanded(text))]
    results = None if out is None else _real(out)
    names = [(folder, _names_below(folder, results)) for folder in folders]
    counts = [(folder, count_endings(images_apart(found)[1], texts=False)) for folder, found in names]
    return [f"{folder}: files that are not read: {text}" for folder, text in counts if text]


def _names_below(folder: Path, results: Path | None) -> list[str]:
    """The files in a folder and its sub-folders, but hidden ones and results, as `_below` searches it."""
    found: list[str] = []
    written = tuple(ENDINGS.values()) if _is_results(folder, results) else ()
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name) and not _is_results(Path(root, name), results)]
        found += [
            os.path.join(root, name) for name in sorted(names) if not is_hidden(name) and not name.endswith(written)
        ]
    return found


def _key(one: _Found) -> str:
    """The same for a file however its folder is written; a link to it that has another name is an image of its own."""
    if one.problem is not None or isinstance(one.source, bytes):
        return f"problem of {one.name}"
    return str(_real(one.source.parent) / one.source.name)


def _problem(name: str, message: str, hint: str) -> _Found:
    return _Found(b"", name, Path(), DataError(f"{name[:200]}: {message}", hint))


def _standard_input() -> _Found:
    """All bytes of stdin, up to the limit.

    Raises:
        RecipeError: somebody would have to type the image.
    """
    if sys.stdin.isatty():
        raise RecipeError("-: stdin is a terminal, no image", "send an image there: emaseg predict - < photo.jpg")
    parts: list[bytes] = []
    size = 0
    try:
        while part := sys.stdin.buffer.read(1 << 20):
            parts.append(part)
            size += len(part)
            if size > _MOST_OF_STDIN:
                return _problem("stdin", f"more than {_MOST_OF_STDIN:,} bytes, which no image has", "send one image")
    except OSError as error:
        return _problem("stdin", f"cannot be read ({error.strerror})", "send an image there: ... - < photo.jpg")
    return _Found(b"".join(parts), "stdin", Path("stdin"))


def _files(text: str, results: Path | None, listed: bool) -> list[_Found]:
    """The images of one argument and the problems on the way; of the folder of `results` there may be none."""
    try:
        return list(_search(text, results, listed))
    except (OSError, ValueError) as error:  # a name that the system does not take
        reason = error.strerror if isinstance(error, OSError) else error
        return [_problem(text, f"cannot be looked up ({reason})", "check the path")]


def _out_of_scope(text: str) -> tuple[str, str] | None:
    """Why an argument is nothing that is read here, and the command that makes something of it that is."""
    if text.lower().startswith(_WEB):
        name = PurePath(text.partition("?")[0]).name or "photo.jpg"
        return "a web address; predict reads files", f"curl -L -o {quoted(name)} {quoted(text)}"
    if text.lower().endswith(_VIDEOS):
        frames = PurePath(text).stem
        command = f"mkdir {quoted(frames)} && ffmpeg -i {quoted(text)} {quoted(f'{frames}/%06d.png')}"
        return "a video; predict reads images", f"{command}, then emaseg predict {quoted(frames)}"
    return None


def _search(text: str, results: Path | None, listed: bool) -> Iterator[_Found]:
    if (reason := _out_of_scope(text)) is not None and not os.path.isdir(expanded(text)):
        yield _problem(text, *reason)
        return
    endings = f"images end in {' '.join(EXTENSIONS)}"
    path = expanded(text)
    if path.is_dir():
        files, problems = _below(path, results)
        if not files and not problems and not _is_results(path, results):
            apart = results is not None and results.is_relative_to(_real(path)) and results.is_dir()
            where = f" outside of {results}, where results go" if apart else ""
            yield _problem(text, f"no images in this folder{where}", endings)
        yield from (_Found(file, str(file), file.relative_to(path)) for file in files)
        yield from problems
    elif os.path.lexists(path):  # a link to nothing or to itself, too: reading it says what is wrong
        written = Path(text)
        kept = listed and not written.is_absolute() and ".." not in written.parts and not text.startswith("~")
        yield _Found(path, str(path), written if kept else Path(path.name))
    elif not glob.has_magic(text):
        yield _problem(text, "no such file or folder", "check the path")
    else:
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        chosen = set(image_names([str(match) for match in matches if not match.is_dir()]))
        images = [match for match in matches if str(match) in chosen]
        if results is not None and not _real(_fixed_part(path)).is_relative_to(results):
            images = [image for image in images if not _real(image.parent).is_relative_to(results)]
        if not images:
            yield _problem(text, "no image matches this pattern", endings)
        yield from (_Found(image, str(image), Path(image.name)) for image in images)


def _real(path: Path) -> Path:
    """The path without links; unlike Path.resolve it does not fail where a link leads to itself."""
    return Path(os.path.realpath(path))


def _fixed_part(pattern: Path) -> Path:
    """The folder in which the search for a pattern begins."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _is_results(folder: Path, results: Path | None) -> bool:
    return results is not None and _real(folder) == results


def _below(folder: Path, results: Path | None) -> tuple[list[Path], list[_Found]]:
    """The images in a folder and its sub-folders, and the sub-folders that cannot be read."""
    problems: list[_Found] = []

    def note(error: OSError) -> None:
        problems.append(_problem(str(error.filename), f"cannot be read ({error.strerror})", "check the permissions"))

    images: list[Path] = []
    shared = _is_results(folder, results)
    for root, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not is_hidden(name) and not _is_results(Path(root, name), results)]
        here = [Path(root, name) for name in names if not is_hidden(name)]
        some = set(image_names([file.name for file in here]))
        here = [file for file in here if file.name in some]
        stems = {stem for file in here for stem in (file.stem, file.name)}
        images += [file for file in here if not _is_output(file.name, None if shared else stems)]
    return sorted(images), problems


def _is_output(name: str, stems: Collection[str] | None) -> bool:
    """Whether a file is called as a result of one of `stems`, or with None of any image."""
    return any(name.endswith(end) and (stems is None or name.removesuffix(end) in stems) for end in _RESULTS)


def _has_twin(source: Path | bytes, images_by_stem: Callable[[Path], Mapping[str, int]]) -> bool:
    """Whether another image in the file's folder has its name but for the ending: cat.jpg beside cat.png.

    Then results carry the whole name, also where one of the two is predicted: they are called the same in any case.

    Args:
        images_by_stem: _images_by_stem, which need not list a folder again.
    """
    return isinstance(source, Path) and images_by_stem(source.parent).get(_folded(source.stem), 0) > 1


def _images_by_stem(folder: Path) -> Mapping[str, int]:
    """How many images of a folder have each name without its ending; hidden files and results are left out."""
    try:
        names = [name for name in os.listdir(folder) if not is_hidden(name)]
    except OSError:
        return {}
    stems = {PurePath(name).stem for name in names if PurePath(name).suffix.lower() in EXTENSIONS}
    images = [PurePath(name) for name in names if PurePath(name).suffix.lower() in EXTENSIONS]
    return Counter(_folded(path.stem) for path in images if not _is_output(path.name, stems))


def _stems(files: Sequence[tuple[Path, bool]]) -> list[str]:
    """An output stem for each file, no two alike; capitals, and the ways to write an accent, count as equal: some
    file systems think so.

    files: the place below the argument, and whether the file has a twin in its folder.
    """
    plain = [relative.with_suffix("").as_posix() for relative, _ in files]
    times = Counter(map(_folded, plain))
    taken: set[str] = set()
    stems = []
    for (relative, twin), short in zip(files, plain, strict=True):
        base = stem = relative.as_posix() if twin or times[_folded(short)] > 1 else short
        number = 2
        while _folded(stem) in taken:
            stem, number = f"{base}-{number}", number + 1
        taken.add(_folded(stem))
        stems.append(stem)
    return stems


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
