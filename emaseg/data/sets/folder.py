"""Your own data: a folder of images and a folder of masks with the same names.

Room: data/sets.

    root/<train_images>/a/1.jpg   root/<train_masks>/a/1<mask_suffix>.png
    root/<train_images>/a/<image_prefix>1<image_suffix>.jpg   root/<train_masks>/a/<mask_prefix>1<mask_suffix>.png
    root/<train_list>             optional; one image a line, relative to the image folder, with or without extension;
                                  or pairs of image and mask (pair_lists.py)

Sub-folders are kept: an image's mask has the same relative path. Extensions may be in capitals. Hidden files are
passed over. The order is that of the relative paths, or that of the list. Where one folder serves both phases, `holdout`
divides it (holdout.py). Of several folders each is read so, and one follows the other; an epoch draws each image of a
folder as often as `train_repeat` says. Images that are known to show the first class only need no masks: in a folder
whose mask folder is "", or with `unmasked`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from emaseg.data.dataset import Phase
from emaseg.data.files.images import EXTENSIONS, images_apart
from emaseg.data.files.label_files import index_rule
from emaseg.data.label_sets import label_set
from emaseg.data.sets.folder_index import Found, Visited, found_files, index_file, read_index, write_index
from emaseg.data.sets.holdout import group_count, group_total, held_in_all, held_places
from emaseg.data.sets.names import MASK_EXTENSIONS, Naming, form, listed_names, stem_of
from emaseg.data.sets.pair_lists import PairList, read_pair_list, without_heading
from emaseg.data.sets.pairs import PairedFiles, first_few, need_folder, read_names
from emaseg.data.sets.path_lists import Names, PathList, PathPairs
from emaseg.errors import DataError, nearest
from emaseg.files import is_hidden
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import FolderData

_CLUTTER = ("thumbs.db", "desktop.ini")  # what file managers leave behind
TEXTS = (".txt", ".csv", ".json", ".xml", ".yaml", ".yml", ".md", ".toml", ".html", ".names")  # about the images


def folder(data: FolderData, phase: Phase) -> PairedFiles:
    """The image files of one phase with their masks.

    Raises:
        DataError: a folder or list is missing or empty, an image has no mask, a mask no image, or two files share a
            name; names the first few, their number and the remedy.
    """
    found, problems = _all_folders(data, phase)
    if problems:
        raise problems[0]
    return _joined(data, found, data.train_repeat if phase == "train" and data.train_repeat else (1,) * len(found))


def usable(data: FolderData, phase: Phase) -> tuple[PairedFiles, list[DataError]]:
    """As `folder`, but images without a mask and masks without an image are left out, and returned as errors; and each
    image is there once, whatever data.train_repeat says.

    Raises:
        DataError: as `folder`, where there is nothing to go on with.
    """
    found, problems = _all_folders(data, phase)
    return _joined(data, found, (1,) * len(found)), problems


def _all_folders(data: FolderData, phase: Phase) -> tuple[list[Found], list[DataError]]:
    """What each folder of a phase holds, and what is wrong.

    Raises:
        DataError: a folder or list is missing or empty, or holdout leaves no image.
    """
    places, listing = places_of(data, phase), data.train_list if phase == "train" else data.eval_list
    for images, masks in places:
        need_folder(images, f"data.{phase}_images", f"check data.{phase}_images")
        if masks is not None:
            need_folder(masks, f"data.{phase}_masks", f"check data.{phase}_masks")
    root = data_root(data.root)
    index, visited = index_file(root, phase, data), Visited()
    if (known := read_index(index)) is not None:
        return known, []
    if listing:
        visited.add(root / listing)
    table = read_pair_list(root / listing, root, *places[0]) if listing else None
    if table is not None:
        return _left_some(data, phase, [_of_list(table, data, root, train=phase == "train")]), []
    both = [_matched(data, phase, images, masks, visited) for images, masks in places]
    matched, problems = [one for one, _ in both], [problem for _, problems in both for problem in problems]
    found = _divided(matched, data, phase)
    if problems:
        return found, problems
    write_index(index, _left_some(data, phase, found), visited)
    if data.holdout and (places, listing) == (places_of(data, "eval"), data.eval_list):  # of the same folders
        write_index(index_file(root, "eval", data), _divided(matched, data, "eval"), visited)
    return found, []


def _left_some(data: FolderData, phase: Phase, found: list[Found]) -> list[Found]:
    """
    Raises:
        DataError: holdout leaves no image.
    """
    if any(one.pairs or one.background for one in found):
        return found
    raise DataError(
        f"{places_of(data, phase)[0][0]}: data.holdout = {data.holdout} leaves no image for "
        f"{'training' if phase == 'train' else 'evaluation'}",
        f"there are {max(one.groups for one in found)} {'groups' if data.holdout_group else 'images'}; set data.holdout to at most "
        "that number, and at least 2",
    )


def _of_list(table: PairList, data: FolderData, root: Path, *, train: bool) -> Found:
    """The pairs of one phase."""
    images = (*(image for image, _ in table.pairs), *table.background)
    stems = [
        stem_of(image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)) for image in images
    ]
    places = held_places(stems, data.holdout, data.holdout_group, root, train=train)
    chosen = {images[place] for place in places}
    return found_files(
        [pair for pair in table.pairs if pair[0] in chosen],
        [image for image in table.background if image in chosen],
        groups=group_count(stems, data.holdout_group),
    )


def _joined(data: FolderData, found: Sequence[Found], repeats: Sequence[int]) -> PairedFiles:
    """All folders as one data set, the images of each so many times."""
    labels = label_set(data)
    rule = index_rule(
        labels.classes, data.ignore, values=data.values, palette=data.palette, ignore_colours=data.ignore_colours
    )
    words = []
    if max(repeats) > 1:
        rows = [
            f"{len(one.pairs) + len(one.background):,} x {times}" for one, times in zip(found, repeats, strict=True)
        ]
        words.append(f"images of each folder x times drawn in an epoch: {', '.join(rows)}")
    if count := sum(len(one.background) for one in found):
        words.append(f'{count:,} images without a mask are all "{labels.classes[0]}"')
    return PairedFiles(
        items=PathPairs(
            _repeated([one.pairs.images for one in found], repeats),
            _repeated([one.pairs.masks for one in found], repeats),
        ),
        rule=rule,
        palette=labels.palette,
        layout="; ".join(words),
        left=tuple(sentence for one in found for sentence in one.left),
        background=_repeated([one.background for one in found], repeats),
    )


def _repeated(lists: Sequence[PathList], repeats: Sequence[int]) -> PathList:
    """The lists one after the other, each so many times."""
    parts = [one.parts * times for one, times in zip(lists, repeats, strict=True)]
    return PathList(tuple(part for some in parts for part in some if len(part)))


def places_of(data: FolderData, phase: Phase) -> list[tuple[Path, Path | None]]:
    """The image folders of a phase with their mask folders; None = without masks."""
    root = data_root(data.root)
    names = (data.train_images, data.train_masks) if phase == "train" else (data.eval_images, data.eval_masks)
    images, masks = ((one,) if isinstance(one, str) else one for one in names)
    several = len(images) > 1
    return [
        (root / image, root / mask if mask or not several else None) for image, mask in zip(images, masks, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Matched:
    """The files of one folder, before they are divided. image_of, mask_of: stem -> relative path."""

    images: Path
    masks: Path | None
    naming: Naming
    image_of: dict[str, str]
    mask_of: dict[str, str]
    left: tuple[str, ...]


def _matched(
    data: FolderData, phase: Phase, images: Path, masks: Path | None, visited: Visited
) -> tuple[_Matched, list[DataError]]:
    """The files of one folder, and what is wrong with it.

    Raises:
        DataError: it holds no images.
    """
    listing = data.train_list if phase == "train" else data.eval_list
    parts = (data.image_prefix or "", data.mask_prefix or "", data.mask_suffix, data.image_suffix)
    naming = Naming(*map(form, parts))
    image_files, mask_files, other = _find(images, masks, naming, visited)
    if not image_files:
        raise DataError(
            f"{images}: no images ({', '.join(EXTENSIONS)}){_beside(other.images)}",
            f"put images there, or correct data.{phase}_images",
        )
    chosen = _listed(data_root(data.root) / listing, image_files, images) if listing else image_files
    by_stem = _by_stem(chosen, images)
    mask_of = {} if masks is None else _by_stem(mask_files, masks)
    problems = _of_two(by_stem, mask_of, images, naming)
    if masks is not None and data.unmasked == "refuse":
        problems += _images_alone(by_stem, mask_of, images, masks, naming, other)
    if masks is not None and not listing:
        problems += _masks_alone(by_stem, mask_of, images, masks, naming, other)
    left = tuple(other.sentences(images, masks or images, naming))
    return _Matched(images, masks, naming, by_stem, mask_of, left), problems


def _divided(matched: Sequence[_Matched], data: FolderData, phase: Phase) -> list[Found]:
    """The images of a phase in each folder."""
    parts = [(one.images, list(one.image_of), one.masks is not None) for one in matched]
    stems = held_in_all(parts, data.holdout, data.holdout_group, train=phase == "train")
    total = group_total(parts, data.holdout_group)
    return [_of_phase(one, own, data, total) for one, own in zip(matched, stems, strict=True)]


def _of_phase(matched: _Matched, stems: Sequence[str], data: FolderData, groups: int) -> Found:
    """The images of a phase with their masks. stems: these images. groups: of all folders."""
    image_of, mask_of, mask_name = matched.image_of, matched.mask_of, matched.naming.mask
    bare = matched.masks is None or data.unmasked == "background"
    paired = [stem for stem in stems if mask_name(stem) in mask_of]
    alone = [stem for stem in stems if bare and mask_name(stem) not in mask_of]
    lone = [] if bare or data.unmasked != "leave_out" else [image_of[s] for s in stems if mask_name(s) not in mask_of]
    left = matched.left
    if lone:
        few = f"{len(lone):,} of {len(stems):,} images in {matched.images} have no mask in {matched.masks}"
        left = (f"{few} and are skipped: {first_few(lone)}", *left)
    masks = Names.of(matched.masks or matched.images, (mask_of[mask_name(stem)] for stem in paired))
    return Found(
        PathPairs(
            PathList((Names.of(matched.images, (image_of[stem] for stem in paired)),)),
            PathList((masks,)),
        ),
        PathList((Names.of(matched.images, (image_of[stem] for stem in alone)),)),
        left,
        groups,
    )


@dataclass(frozen=True, slots=True)
class _Other:
    """Files in the folders that are not read. images, masks: of other kinds. endings: masks of other names."""

    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()

    def sentences(self, images: Path, masks: Path, naming: Naming) -> Iterator[str]:
        for folder, names in ((images, self.images), (masks, self.masks)):
            if text := count_endings(names, texts=False):
                yield f"{folder}: files that are not read: {text}"
        if self.endings:
            yield (
                f"{masks}: {len(self.endings):,} masks do not {naming.words} and are not read: "
                f"{first_few(self.endings)}"
            )


def _find(images: Path, masks: Path | None, naming: Naming, visited: Visited) -> tuple[list[str], list[str], _Other]:
    """Relative paths of the images and of the masks; the two folders may be one, or one inside the other."""
    if masks is None:
        chosen, others = images_apart(walk(images, None, visited))
        return chosen, [], _Other(others)
    one_folder = images.resolve() == masks.resolve()
    there = walk(masks, None if one_folder else images, visited)
    mask_files = [name for name in there if naming.is_mask(name)]
    if one_folder:
        if not naming.words:
            raise DataError(
                f"{images}: images and masks are in one folder and nothing tells them apart",
                "give the masks a folder of their own, or set data.mask_suffix",
            )
        chosen, others = images_apart(there, without=mask_files)
        return chosen, mask_files, _Other(others)
    chosen, others = images_apart(walk(images, masks, visited))
    other = _Other(
        others,
        tuple(name for name in there if not name.lower().endswith(MASK_EXTENSIONS)),
        tuple(name for name in there if name.lower().endswith(MASK_EXTENSIONS) and not naming.is_mask(name)),
    )
    return chosen, mask_files, other


def count_endings(names: Iterable[str], *, texts: bool = True) -> str:
    """`5 .heic, 1 .txt` of the files that are no images and are not of a file manager's making; "" = there is none.

    texts: count text files, too, which lie beside images to say something about them.
    """
    counts = Counter(
        PurePosixPath(name).suffix.lower() or "without an ending"
        for name in names
        if not name.lower().endswith(EXTENSIONS)
        and PurePosixPath(name).name.lower() not in _CLUTTER
        and (texts or not name.lower().endswith(TEXTS))
    )
    return ", ".join(f"{count:,} {ending}" for ending, count in sorted(counts.items(), key=lambda c: (-c[1], c[0])))


def walk(top: Path, without: Path | None, visited: Visited | None = None) -> list[str]:
    """Relative POSIX paths of the files below `top`, sorted; hidden ones and the folder `without` are left out.

    Links to folders are followed, each folder once, so that a link to a parent does not go round for ever.

    Args:
        visited: is told every folder.

    Raises:
        DataError: a folder cannot be read.
    """
    seen = {os.path.realpath(without)} - {os.path.realpath(top)} if without is not None else set()
    found: list[str] = []
    waiting = [("", os.fspath(top))]
    while waiting:
        before, here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        if visited is not None:
            visited.add(here)
        folders = []
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if _is_folder(entry):
                        folders.append((f"{before}{entry.name}/", entry.path))
                    else:
                        found.append(before + entry.name)
        except OSError as error:
            _unreadable(error)
        waiting += sorted(folders, reverse=True)
    found.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes round
        return False


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: the folder cannot be read ({error.strerror})", "check its permissions"
    ) from error


def _by_stem(names: list[str], top: Path) -> dict[str, str]:
    """Stem -> relative path.

    Raises:
        DataError: two files share a stem.
    """
    stems: dict[str, str] = {}
    for name in names:
        other = stems.setdefault(stem_of(name), name)
        if other != name:
            raise DataError(
                f"{top}: {other} and {name} share the name {stem_of(name)}, by which masks are found",
                "rename or remove one of them",
            )
    return stems


def _listed(path: Path, image_files: list[str], top: Path) -> list[str]:
    """The images that a list file names, in its order."""
    known = {form(name): name for name in image_files}
    by_stem: dict[str, list[str]] = {}
    for name in image_files:
        by_stem.setdefault(stem_of(name), []).append(name)
    chosen, unknown = [], []
    for line in without_heading(read_names(path), top, lambda name: name in known or name in by_stem):
        name = next((name for name in listed_names(line, top) if name in known or name in by_stem), "")
        if not name:
            unknown.append(line)
        elif name in known:
            chosen.append(known[name])
        else:
            chosen += by_stem[name]  # two files of one stem: reported where stems are made
    if unknown:
        raise DataError(
            f"{path}: {len(unknown):,} of the names have no image in {top}: {first_few(unknown)}",
            nearest(unknown[0], image_files) or "write paths relative to the image folder, one a line",
        )
    return chosen


def _of_two(images: dict[str, str], masks: dict[str, str], image_top: Path, naming: Naming) -> list[DataError]:
    """What is wrong with a mask that two images would have, one with what images begin or end with and one without."""
    first: dict[str, str] = {}
    for stem, name in {} if naming.plain else images.items():
        mask = naming.mask(stem)
        if mask in masks and (other := first.setdefault(mask, name)) != name:
            return [
                DataError(
                    f"{image_top}: {other} and {name} would both have the mask {masks[mask]}",
                    "take away or rename the one that is not its image, or name the images to use in a list file",
                )
            ]
    return []


def _images_alone(
    images: dict[str, str], masks: dict[str, str], image_top: Path, mask_top: Path, naming: Naming, other: _Other
) -> list[DataError]:
    """What is wrong with images that have no mask; [] = every one has."""
    lone = [name for stem, name in images.items() if naming.mask(stem) not in masks]
    if not lone:
        return []
    what = f"{len(lone):,} of {len(images):,} images in {image_top} have no mask in {mask_top}: {first_few(lone)}"
    wanted = f"{naming.mask(stem_of(lone[0]))}.png"
    unread = [name for name in other.masks if stem_of(name) == stem_of(wanted)]
    if unread and unread[0].lower().endswith((".jpg", ".jpeg")):
        return [
            DataError(
                f"{what}; {unread[0]} is a JPEG mask: its compression has changed the class values",
                "export the masks again as PNG",
            )
        ]
    if unread:
        return [DataError(f"{what}; {unread[0]} is not read because of its ending", "save the masks as PNG")]
    used = {naming.mask(stem) for stem in images}
    free = [name for stem, name in masks.items() if stem not in used]
    return [
        DataError(
            what,
            nearest(wanted, free)
            or f"the mask of {lone[0]} would be {wanted}; correct the names, or set data.mask_suffix, data.mask_prefix, "
            "data.image_suffix, data.image_prefix or a list file; if "
            'such images show the first class only, set data.unmasked = "background", and to do without them "leave_out"',
        )
    ]


def _masks_alone(
    images: dict[str, str], masks: dict[str, str], image_top: Path, mask_top: Path, naming: Naming, other: _Other
) -> list[DataError]:
    """The same of masks without an image: a sign of a half-copied folder."""
    if naming.plain and images.keys() == masks.keys():
        return []
    used = {naming.mask(stem) for stem in images}
    lone = {stem: name for stem, name in masks.items() if stem not in used}
    if not lone:
        return []
    what = (
        f"{len(lone):,} of {len(masks):,} masks in {mask_top} have no image in {image_top}: {first_few(lone.values())}"
    )
    unread = [name for name in other.images if naming.mask(stem_of(name)) in lone]
    if unread:
        return [
            DataError(
                f"{what}; images of these names are there but are not read because of their endings "
                f"({count_endings(unread)}): {first_few(unread)}",
                "convert them to PNG or JPEG, or name the images to use in a list file",
            )
        ]
    return [DataError(what, "add the images, remove the masks, or name the images to use in a list file")]


def _beside(others: Iterable[str]) -> str:
    text = count_endings(others)
    return f"; files of other kinds are there: {text}" if text else ""
