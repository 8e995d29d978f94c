"""The folder that is converted: its files, finding the image that an annotation means, and reading what tools write.

Room: convert.

Threat: annotations are a stranger's. A path in them may lead out of the folder, which is never followed; JSON may be
endless or nested a million deep; XML may define entities that grow without end.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from emaseg.convert.numbers import Malformed
from emaseg.data.checks import spread
from emaseg.data.files.images import EXTENSIONS
from emaseg.data.sets.folder import walk
from emaseg.errors import DataError, SystemFault
from emaseg.files import open_file, read_bytes
from emaseg.signatures import GZIP, HEAD, ZIP, kind_of
from emaseg.words import excerpt

__all__ = [
    "Finder",
    "Source",
    "among",
    "check_no_archive",
    "find_image",
    "finder",
    "has_name",
    "image_at",
    "is_at_its_place",
    "json_files",
    "read_json",
    "read_xml",
    "scan",
    "size_in_bytes",
    "split_of",
    "state_of",
]

MOST_BYTES = 1 << 30  # of one annotation file
_DEPTH = 64  # of XML elements in each other
_SNIFFED = 40  # JSON files that are looked into to recognise a format, and
_LARGEST = 8  # ... the largest ones: one file of all annotations may lie among many of single images
_SPLITS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "eval": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_AGAIN = "export it again, or remove it"
_XML_CODES = ("ascii", "utf-16-le", "utf-16-be")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A folder with its files, as sorted relative POSIX paths. only: the one annotation file that the user named.

    sniffed: the JSON files that are looked into to recognise a format; all of them where `thorough`.
    """

    root: Path
    files: tuple[str, ...]
    only: str
    images: Mapping[str, str]  # NFC relative path -> relative path
    by_name: Mapping[str, tuple[str, ...]]  # NFC file name in lower case -> relative paths
    by_stem: Mapping[str, tuple[str, ...]]  # the same without its ending
    others: Mapping[str, str]  # NFC name in lower case of a file that is no image -> relative path
    sniffed: tuple[str, ...]
    thorough: bool = False

    def ending(self, *endings: str) -> list[str]:
        """The annotation files with these endings: all, or the one that was named."""
        return [name for name in ((self.only,) if self.only else self.files) if name.lower().endswith(endings)]


def scan(named: Path) -> Source:
    """The files of a folder, or of the folder of an annotation file.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    root, only = named, ""
    if named.is_file():
        root, only = named.parent, named.name
        if not any(name.lower().endswith(EXTENSIONS) for name in walk(root, None)):
            root, only = root.resolve().parent, f"{root.resolve().name}/{named.name}"
    elif not named.is_dir():
        raise DataError(f"{named}: no such folder", "name the folder that holds the annotations and the images")
    files = tuple(walk(root, None))
    sniffed = (only,) if only else _sniffed(root, [name for name in files if name.lower().endswith(".json")])
    images = [name for name in files if name.lower().endswith(EXTENSIONS)]
    others = {last_name(name): name for name in reversed(files) if not name.lower().endswith(EXTENSIONS)}
    return among(Source(root, files, only, {}, {}, {}, others, sniffed), images)


def check_no_archive(path: Path) -> None:
    """Stop at an archive, in whose place all that lies beside it would be read.

    Raises:
        DataError: it is one.
    """
    if not path.is_file():
        return
    try:
        with open_file(path) as file:
            kind = kind_of(file.read(HEAD))
    except OSError:  # told where it is read
        return
    if kind in (ZIP, GZIP) or path.name.lower().endswith(_ARCHIVES):
        raise DataError(
            f"{path}: {kind or 'an archive'}: unpack it first",
            "unpack it into a folder of its own, and name that folder",
        )


def among(source: Source, names: Iterable[str]) -> Source:
    """The source with these images only."""
    images = {_form(name): name for name in names}
    by_name, by_stem = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for form, name in images.items():
        last = form.rpartition("/")[2].lower()
        by_name[last].append(name)
        by_stem[_bare(last)].append(name)
    named, stems = ({key: tuple(paths) for key, paths in table.items()} for table in (by_name, by_stem))
    return replace(source, images=images, by_name=named, by_stem=stems)


def _sniffed(root: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Some files, evenly spread, and the largest ones."""
    if len(names) <= _SNIFFED + _LARGEST:
        return tuple(names)
    largest = sorted(names, key=lambda name: -size_in_bytes(root / name))[:_LARGEST]
    return tuple(sorted({*largest, *(names[place] for place in spread(len(names), _SNIFFED))}))


def size_in_bytes(path: Path) -> int:
    """0 where there is no such file any more."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _bare(name: str) -> str:
    """Without the ending of a picture: some exports leave it out."""
    return name.rpartition(".")[0] if name.lower().endswith(EXTENSIONS) else name


def last_name(name: str) -> str:
    """The name of a file as tables have it."""
    return _form(name).rpartition("/")[2].lower()


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True, slots=True, eq=False)
class Finder:
    """Finds the images of an export, whose other paths say how far one of them is to be believed.

    foldered: the folders in its paths are folders here, so that a path in one never means an image of another.
    homes: folders below the root in which annotations have images: a name in one never means an image outside it.
    stated: image -> the paths that mean it, where there are several.
    """

    source: Source
    foldered: bool
    homes: frozenset[str]
    stated: Mapping[str, frozenset[str]]

    def image(self, said: object, near: str, split: str = "") -> str:
        """As `find_image`. split: of several images of a name those in a folder of this split come first."""
        path = _path(said)
        if (found := _exact(self.source, path, near)) is not None:
            return found
        found = _by_name(self.source, path, said, near, self.foldered, self.homes, split)
        if others := self.stated.get(found, frozenset()) - {_plain(path)}:
            raise Malformed(
                f"no image {excerpt(said)}: {found} has its name, and {excerpt(min(others))} means that, too"
            )
        return found


def finder(source: Source, stated: Iterable[tuple[object, str]]) -> Finder:
    """The finder of an export: all its paths of images, each with the annotation's file."""
    paths: list[tuple[str, str]] = []
    for said, near in stated:
        with contextlib.suppress(Malformed):
            paths.append((_path(said), near))
    foldered = any("/" in _plain(path) and _at_its_place(source, path, near) for path, near in paths)
    there = [(_exact(source, path, near), near) for path, near in paths]
    own = {_folder(near) for image, near in there if image and _is_below(image, _folder(near))}
    homes = frozenset(own - {"."})
    found: dict[str, set[str]] = defaultdict(set)
    for (path, near), (image, _) in zip(paths, there, strict=True):
        with contextlib.suppress(Malformed):
            found[image or _by_name(source, path, path, near, foldered, homes)].add(_plain(path))
    several = {image: frozenset(some) for image, some in found.items() if len(some) > 1}
    return Finder(source, foldered, homes, several)


def _is_below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def find_image(source: Source, said: object, near: str) -> str:
    """The image that an annotation means: relative to its own folder or to the root, else the only one of that name.

    Args:
        said: the path as the annotation has it, perhaps of another machine.
        near: the annotation's file, relative to the root.

    Raises:
        ValueError: there is none, or there are several; the text says which.
    """
    return Finder(source, False, frozenset(), {}).image(said, near)


def _path(said: object) -> str:
    if not isinstance(said, str) or not said.strip():
        raise Malformed("no name of an image")
    return _form(unquote(said.partition("?")[0]) if "://" in said else said).replace("\\", "/")


def _plain(path: str) -> str:
    """A path without the ways up in front, as which it is told from others."""
    return re.sub(r"^(\.*/)+", "", path)


def _inside(path: str, near: str) -> list[str]:
    """The places that a path may mean, seen from the annotation's folder and from the root; none = it leads out."""
    places = (_below(near.split("/")[:-1], path), _below((), path))
    return [name for name in places if name is not None]


def _exact(source: Source, path: str, near: str) -> str | None:
    places = _inside(path, near)
    if (found := next((source.images[name] for name in places if name in source.images), None)) is not None:
        return found
    bare = [name for name in _of_name(source, path) if _bare(_form(name)) in places]
    return bare[0] if len(bare) == 1 else None


def _at_its_place(source: Source, path: str, near: str) -> bool:
    """Whether an image lies in the folders that its path names, be it with others above them."""
    return _exact(source, path, near) is not None or bool(_ending(_of_name(source, path), _inside(path, near)))


def has_name(source: Source, said: str) -> bool:
    """Whether an image has the name that an annotation or a list says, be it in another folder."""
    try:
        return bool(_of_name(source, _path(said)))
    except Malformed:
        return False


def image_at(source: Source, said: str, near: str) -> str | None:
    """The image at a path, seen from the file that says it or from the root; None: there is none."""
    try:
        return _exact(source, _path(said), near)
    except Malformed:
        return None


def is_at_its_place(source: Source, said: str, near: str) -> bool:
    """Whether an image lies in the folders that a path of an annotation names, be it with others above them."""
    try:
        return _at_its_place(source, _path(said), near)
    except Malformed:
        return False


def _of_name(source: Source, path: str) -> tuple[str, ...]:
    """The images of a path's name, which may lack its ending."""
    last = path.rpartition("/")[2].lower()
    return source.by_name.get(last, ()) if last.endswith(EXTENSIONS) else source.by_stem.get(last, ())


def _ending(names: Iterable[str], inside: Sequence[str]) -> list[str]:
    ends = tuple(f"/{part}" for part in inside)
    return [name for name in names if _form(name).endswith(ends) or _bare(_form(name)).endswith(ends)]


def _by_name(
    source: Source, path: str, said: object, near: str, foldered: bool, homes: frozenset[str], split: str = ""
) -> str:
    """The only image of a path's name.

    Raises:
        ValueError: as `find_image`.
    """
    last, inside = path.rpartition("/")[2].lower(), _inside(path, near)
    candidates = list(_of_name(source, path))
    if inside and (own := _folder(near)) in homes:
        candidates = [name for name in candidates if _is_below(name, own)]
    if inside and foldered and "/" in _plain(path):
        candidates = _ending(candidates, inside)
    if len(candidates) > 1 and (split := split or split_of_file(near)):
        candidates = [name for name in candidates if split_of(name) == split] or candidates
    if len(candidates) > 1:
        ending = _ending(candidates, inside)
        candidates = ending if len(ending) == 1 else candidates
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise Malformed(f"several images are called {excerpt(last)}: {', '.join(candidates[:2])}")
    if not _of_name(source, path) and (unread := source.others.get(last)):
        raise Malformed(f"the image {unread} is of a kind that is not read; convert it to PNG or JPEG")
    outside = "" if inside else " (its path leads out of the folder, and is not followed)"
    raise Malformed(f"no image {excerpt(said)}{outside}")


def _below(folder: Sequence[str], path: str) -> str | None:
    """folder/path without . and ..; None where it leads out of the root."""
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return None
    parts: list[str] = []
    for part in (*folder, *path.split("/")):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def split_of(name: str) -> str:
    """ "train", "val" or "test" by a folder of a relative path, or by a word in its file's name; else ""."""
    path = PurePosixPath(name)
    for part in reversed(path.parent.parts):
        if (word := re.sub(r"\d{4}$", "", part.lower())) in _SPLITS:
            return _SPLITS[word]
    return ""


def split_of_file(name: str) -> str:
    """`split_of` an annotation file of many images, by a word in its own name first: instances_val2017.json."""
    words = re.split(r"[^a-z]+", PurePosixPath(name).stem.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "") or split_of(name)


def state_of(source: Source, name: str) -> str:
    """What changes when a file does: its path, size and time of change."""
    try:
        stat = (source.root / name).stat()
    except OSError as error:
        raise DataError(f"{source.root / name}: cannot be read ({error.strerror})", "check the path") from error
    return f"{name}|{stat.st_size}|{stat.st_mtime_ns}"


# ------------------------------------------------------------------------------------------------------- reading
def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: unreadable, too large, or no JSON.
        SystemFault: it does not fit into memory.
    """
    try:
        return json.loads(read_bytes(path, MOST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", _AGAIN) from error
    except MemoryError as error:
        raise SystemFault(f"{path}: does not fit into memory", "free memory, or split the export") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply to be annotations", _AGAIN) from error
    except ValueError as error:  # of JSON and of UTF-8
        raise DataError(f"{path}: damaged, or not a JSON file ({excerpt(error)})", _AGAIN) from error


def json_files(source: Source, *words: bytes, none_of: Sequence[bytes] = (), each: bool = False) -> list[str]:
    """The JSON files that hold all of these words (keys in quotes).

    each: the format has a file for each image: where some that are looked into are such, all are taken for it, so that a
    damaged one is named.
    """
    names = source.ending(".json")
    looked = names if source.thorough else [name for name in source.sniffed if name.lower().endswith(".json")]
    if not any(_holds(source.root / name, words, none_of) for name in looked):
        return []
    return names if each else [name for name in names if _holds(source.root / name, words, none_of)]


def _holds(path: Path, words: Sequence[bytes], none_of: Sequence[bytes]) -> bool:
    try:
        content = read_bytes(path, MOST_BYTES)
    except (OSError, MemoryError):
        return False
    return all(b'"%s"' % word in content for word in words) and not any(b'"%s"' % word in content for word in none_of)


def csv_rows(text: str) -> Iterator[list[str]]:
    """The rows of a CSV file; a cell may be as long as a line, beyond the csv module's own limit.

    Raises:
        csv.Error: malformed.
    """
    longest = max(map(len, text.splitlines()), default=0)
    before = csv.field_size_limit(max(longest, csv.field_size_limit()) + 1)
    try:
        yield from csv.reader(io.StringIO(text))
    finally:
        csv.field_size_limit(before)


def read_xml(path: Path) -> Iterator[ET.Element]:
    """The elements below the top of an XML file, each whole, in order; the tree holds one at a time.

    Raises:
        DataError: unreadable, damaged, nested too deeply, or with definitions of its own (entities).
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", _AGAIN) from error
    if any(word.encode(code) in content for word in ("<!DOCTYPE", "<!ENTITY") for code in _XML_CODES):
        raise DataError(f"{path}: XML with definitions of its own, which no annotation file has", _AGAIN)
    parser: Any = ET.XMLPullParser(("start", "end"))
    depth = 0
    top: Any = None
    try:
        for start in range(0, len(content) + 1, 1 << 16):
            parser.feed(content[start : start + (1 << 16)])
            for event, element in parser.read_events():
                depth += 1 if event == "start" else -1
                top = element if top is None else top
                if depth > _DEPTH:
                    raise DataError(f"{path}: nested too deeply to be annotations", _AGAIN)
                if event == "end" and depth == 1:
                    yield element
                    top.clear()
        parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:  # the last of an encoding that nobody knows
        raise DataError(f"{path}: damaged, or not an XML file ({excerpt(error)})", _AGAIN) from error
