"""YOLO segmentation: a text file for each image, a line `class x y x y x y ...` for each object, in shares of the size.

Room: convert.

    images/train/a.jpg + labels/train/a.txt, train/images/a.jpg + train/labels/a.txt, or a.jpg + a.txt; elsewhere the
    image that is called as a text file below labels/ is. data.yaml names the classes. An image without a text file, or
    with an empty one, is all background, as YOLO takes it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from emaseg.convert.export import Export, Item, Label, Left, Object, Objects, Outline
from emaseg.convert.numbers import Malformed, number
from emaseg.convert.source import Source, size_in_bytes, split_of, state_of
from emaseg.data.checks import spread
from emaseg.data.sets.pairs import read_text
from emaseg.errors import DataError
from emaseg.files import open_file
from emaseg.starter.arrangements import MASK_NAMES
from emaseg.starter.names import find_names
from emaseg.threads import Reading, read_all

__all__ = ["files", "read"]

_FOLDERS = ("images", "imgs", "img", "image")
_LABELS = ("labels", "Labels", "LABELS")
_PLOT = re.compile(
    r"(train|val|test)_batch\d+(_labels|_pred)?|labels(_correlogram)?|results|confusion_matrix.*|.*_?curve"
)
_HEAD = 1 << 12  # bytes that show whether a file holds such lines
_LEAST = len("0 1 1 1 1")  # bytes of a file with a line; in most files of a set there may be none
_LOOKED = 40
_MOST = 1.1  # of a coordinate; beyond it a line holds something else, such as key points with 2 for visible
_POSE = re.compile(r"^kpt_shape\s*:", re.MULTILINE)  # in the data.yaml of key points
_OUTLINE = re.compile(rb"\s*\d{1,6}(\s+-?[\d.]+(e-?\d+)?){6,}\s*(\r?\n|$)", re.IGNORECASE)
_LINE = re.compile(rb"\s*\d{1,6}((\s+-?[\d.]+(e-?\d+)?){4}|(\s+-?[\d.]+(e-?\d+)?){6,})\s*(\r?\n|$)", re.IGNORECASE)


def files(source: Source) -> list[str]:
    """The text files in this format: beside images, where images/ says labels/, or those in labels/."""
    beside = _beside(source)
    found = list(dict.fromkeys((beside | _by_name(source, beside)).values()))
    looked = [name for name in found if size_in_bytes(source.root / name) >= _LEAST]
    if not source.thorough:
        looked = [looked[place] for place in spread(len(looked), _LOOKED)] if looked else []
    line = _LINE if beside or source.thorough else _OUTLINE  # boxes elsewhere are no reason to pass over other formats
    return found if any(_fits(source.root / name, line) for name in looked) else []


def _texts(source: Source) -> dict[str, str]:
    """The text file of each image that has one."""
    found = _beside(source)
    return found | _by_name(source, found)


def _beside(source: Source) -> dict[str, str]:
    """The text files that lie where the images' folders say."""
    texts, found = set(source.ending(".txt")), dict[str, str]()
    for image in source.images.values():
        if name := next((place for place in _places(image) if place in texts), ""):
            found[image] = name
    return found


def _places(image: str) -> Iterator[str]:
    """Where the text file of an image may be, the likeliest first."""
    *folders, name = _parts(image)
    at = next((at for at in reversed(range(len(folders))) if folders[at].lower() in _FOLDERS), None)
    if at is not None:
        for word in sorted(_LABELS, key=lambda word: word.islower() != folders[at].islower()):
            yield "/".join((*folders[:at], word, *folders[at + 1 :], f"{name}.txt"))
    yield "/".join((*folders, f"{name}.txt"))


def _parts(file: str) -> tuple[str, ...]:
    """Of a path without its ending."""
    return tuple(file.rpartition(".")[0].split("/"))


def _by_name(source: Source, known: Mapping[str, str]) -> dict[str, str]:
    """The text files below labels/ of images in folders of other names: of day1/labels/x/a.txt the image is
    day1/<folders>/x/a.jpg; where no text file has its folder x, it is the only one called a. known: images that have a
    text file."""
    texts = sorted(set(source.ending(".txt")) - set(known.values()))
    by_stem: dict[str, list[str]] = defaultdict(list)
    above: set[tuple[str, ...]] = set()
    for image in source.images.values():
        *folders, name = _parts(image)
        if image not in known and not any(part.lower() in MASK_NAMES for part in folders):
            by_stem[name].append(image)
            above.update(tuple(folders[:count]) for count in range(len(folders) + 1))
    for with_folders in (True, False):
        pairs: list[tuple[str, str]] = []
        for text in texts:
            parts = _parts(text)
            at = next((at for at, part in enumerate(parts[:-1]) if part.lower() == _LABELS[0]), None)
            if at is None:
                continue
            before = parts[:at] if parts[:at] in above else ()
            after = parts[at + 1 :] if with_folders else parts[-1:]
            for image in by_stem.get(parts[-1], ()):
                inner = _parts(image)
                beside = inner[: len(before)] == before and inner[len(before) :][-len(after) :] == after
                pairs += [(image, text)] if beside else []
        if pairs:
            return _one_to_one(pairs)
    return {}


def _one_to_one(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Those of which neither the first nor the second is in another pair."""
    first, second = (Counter(pair[place] for pair in pairs) for place in (0, 1))
    return {one: other for one, other in pairs if first[one] == 1 and second[other] == 1}


def _fits(path: Path, line: re.Pattern[bytes]) -> bool:
    try:
        with open_file(path) as file:
            return line.match(file.read(_HEAD)) is not None
    except OSError:
        return False


def read(source: Source, names: list[str]) -> Generator[Reading, None, Export]:
    """All images; labels are the names of data.yaml, else numbers.

    Raises:
        DataError: data.yaml cannot be read, or says that the lines hold key points.
    """
    for name in source.files:
        if name.lower().endswith((".yaml", ".yml")) and _holds_poses(source.root / name):
            raise DataError(
                f"{source.root / name}: kpt_shape says that the lines are boxes with key points, not outlines",
                "export the data set for segmentation; or take the line out, if the lines are outlines",
            )
    wanted = set(names)
    texts = {image: name for image, name in _texts(source).items() if name in wanted}
    images, others = _of_the_set(list(source.images.values()), texts)
    found = yield from read_all("annotations", partial(_one, source, texts), images)
    items = [one for one, _ in found if isinstance(one, Item)]
    left = [one for one, _ in found if isinstance(one, Left)]
    left += [Left(name, "a mask or a plot by its name and folder: no image of the set", fault=False) for name in others]
    labels, notes = _labels(source, names, {label for _, used in found for label in used})
    return Export(labels, tuple(items), tuple(left), notes)


def _of_the_set(pictures: Sequence[str], texts: Collection[str]) -> tuple[list[str], list[str]]:
    """The set's images, those without a text file too; and others: masks, which are called as an image that has one, and
    the plots of a training. In images/, and where one picture has a text file, all are images. texts: those that have."""
    have = [PurePosixPath(name) for name in pictures if name in texts]
    homes, stems = {path.parent for path in have}, {path.stem for path in have}
    inside, others = list[str](), list[str]()
    for name in pictures:
        path = PurePosixPath(name)
        own = path.parent in homes or any(part.lower() in _FOLDERS for part in path.parts[:-1])
        (inside if own or not (path.stem in stems or _PLOT.fullmatch(path.stem)) else others).append(name)
    return inside, others


def _holds_poses(path: Path) -> bool:
    try:
        return _POSE.search(read_text(path)) is not None
    except DataError:  # it matters only where it is to name the classes
        return False


def _one(source: Source, texts: Mapping[str, str], image: str) -> tuple[Item | Left, set[str]]:
    """An image with the labels of its objects."""
    name = texts.get(image, "")
    try:
        labels = {one.label for one in _read(source, name).objects}
    except ValueError as error:
        return Left(name, str(error)), set()
    except DataError as error:
        return Left(name, error.message), set()
    return Item(image, split_of(image), None, partial(_read, source, name), state_of(source, name or image)), labels


def _labels(source: Source, texts: Sequence[str], used: set[str]) -> tuple[tuple[Label, ...], tuple[str, ...]]:
    """By the file of names in the folder, or else in one of those that the text files are in."""
    known, remarks = find_names(source.root, coloured=False)
    if known is None:
        folders = {source.root / folder for text in texts for folder in PurePosixPath(text).parents}
        known, remarks = find_names(source.root, sorted(folders), coloured=False)
    if known is None:
        count = max(map(int, used), default=-1) + 1
        note = "No data.yaml names the classes: they are called class_0, class_1, ... Write one, or classes.txt."
        return tuple(Label(str(key), f"class_{key}") for key in range(min(count, 1000))), (note, *remarks)
    labels = tuple(Label(str(key), entry.name) for key, entry in sorted(known.by_value().items()))
    return labels, (f"The names are those of {known.file}.", *remarks)


def _read(source: Source, name: str) -> Objects:
    objects, without = [], Counter[str]()
    lines = read_text(source.root / name).splitlines() if name else []
    for place, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        if not re.fullmatch(r"\d{1,6}", parts[0]):
            raise Malformed(f"line {place}: begins with no class number: {line[:40]!r}")
        values = [number(part, f"line {place}: a coordinate") for part in parts[1:]]
        if len(values) == 4:
            without["box without an outline"] += 1
        elif len(values) < 6 or len(values) % 2:
            raise Malformed(f"line {place}: {len(values)} numbers are not an outline")
        elif max(map(abs, values)) > _MOST:
            raise Malformed(
                f"line {place}: a coordinate of {max(values, key=abs):g}; shares of the size run from 0 to 1"
            )
        else:
            objects.append(Object(str(int(parts[0])), Outline([values], shares=True)))
    return Objects(objects, without)
