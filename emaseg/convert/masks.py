"""One binary mask for each class of an image: by the ends or beginnings of their names, or by the folders they are in.

Room: convert.

    images/a.jpg   masks/car/a.png masks/road/a.png, or masks/a_car.png masks/a_road.png, or car/a.png road/a.png

Recognised as `emaseg init` recognises them. Masks lie in the order of their classes, so the later class covers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

from emaseg.convert.export import Export, Item, Label, Left, MaskFile, Object, Objects
from emaseg.convert.labelme import in_order
from emaseg.convert.source import Source, split_of, state_of
from emaseg.data.sets.folder import walk
from emaseg.data.sets.names import MASK_EXTENSIONS, stem_of
from emaseg.data.sets.pairs import first_few
from emaseg.starter.layout import find_several
from emaseg.starter.mask_kinds import is_word
from emaseg.starter.several import SeveralMasks, class_of
from emaseg.threads import Reading

__all__ = ["files", "read"]


def files(source: Source) -> list[str]:
    """The folders of such masks."""
    return sorted({str(found.masks) for found in find_several(source.root).values()}) if not source.only else []


def read(source: Source, _names: list[str]) -> Generator[Reading, None, Export]:
    """All images that have such a mask.

    Raises:
        DataError: a folder cannot be read.
    """
    yield from ()
    places = find_several(source.root)
    label_of = _labels(list(places.values()))
    masks_of: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    splits, kinds_of = dict[str, str](), defaultdict[str, set[str]](set)
    left: list[Left] = []
    lone: list[str] = []
    for split, found in places.items():
        names = [name for name in walk(found.images, None) if name.lower().endswith(tuple(_images(source)))]
        by_stem = _by_stem(names)
        stems = {stem: several[0] for stem, several in by_stem.items() if len(several) == 1}
        left += _unclear(source, found.images, by_stem)
        files_of = _by_stem(_files(found))
        for kind, mask_of in found.kinds.items():
            label = label_of[kind]
            for stem, mask in sorted(mask_of.items()):
                if stem not in stems:
                    continue
                image = _relative(source, found.images / stems[stem])
                masks_of[image] += [(label, found.masks / name) for name in files_of[mask]]
                splits[image] = split_of(f"{split}/x") or split_of(image)
                kinds_of[label].add(kind)
        lone += [_relative(source, found.masks / name) for name in _lone(found, files_of)]
    ordered, notes = in_order(source, sorted(kinds_of))
    notes = (*notes, *(_merged(label, kinds_of[label]) for label in ordered if len(kinds_of[label]) > 1))
    notes += (f"Masks that belong to no image, not read: {len(lone):,} ({first_few(lone)}).",) if lone else ()
    items = [
        Item(image, splits[image], None, partial(_objects, masks, ordered), _state(source, masks))
        for image, masks in sorted(masks_of.items())
    ]
    labels = tuple(Label(label, label) for label in ordered)
    used = frozenset(_relative(source, mask) for masks in masks_of.values() for _, mask in masks)
    return Export(labels, tuple(items), tuple(left), notes, masks=used | frozenset(lone))


def _labels(places: Sequence[SeveralMasks]) -> dict[str, str]:
    """The class of each kind; endings that say no more than that they are masks' are one class: _mask and _label_2."""
    label_of = {kind: class_of(kind, found.how) for found in places for kind in found.kinds}
    words = [kind for found in places if found.how != "folder" for kind in found.kinds if is_word(label_of[kind])]
    return label_of | {kind: label_of[min(words)] for kind in words}


def _by_stem(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[stem_of(name)].append(name)
    return found


def _files(found: SeveralMasks) -> list[str]:
    """The files in which masks of these kinds lie, relative to the folder of masks."""
    names = [name for name in walk(found.masks, None) if name.lower().endswith(MASK_EXTENSIONS)]
    if found.masks in found.images.parents:  # beside the images' folder there is more than the kinds' folders
        names = [name for name in names if name.partition("/")[0] in found.kinds]
    return names


def _lone(found: SeveralMasks, files_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Masks of no image, where the folder holds nothing but masks."""
    if found.masks == found.images:
        return []
    taken = {mask for mask_of in found.kinds.values() for mask in mask_of.values()}
    return [name for stem, names in files_of.items() if stem not in taken for name in names]


def _unclear(source: Source, folder: Path, by_stem: Mapping[str, Sequence[str]]) -> list[Left]:
    """Images whose masks may be those of another one."""
    return [
        Left(
            _relative(source, folder / name),
            f"{len(several)} images have this name but for its ending ({first_few(several, 2)}), and the masks may be of any; "
            "rename the others",
        )
        for several in by_stem.values()
        for name in several
        if len(several) > 1
    ]


def _merged(label: str, kinds: set[str]) -> str:
    named = first_few(sorted(kinds))
    return f"One class, {label}: the masks {named}. If they are several, put each into a folder of its own."


def _images(source: Source) -> set[str]:
    return {Path(name).suffix.lower() for name in source.images.values()}


def _objects(masks: Sequence[tuple[str, Path]], order: Sequence[str]) -> Objects:
    return Objects(
        [Object(label, MaskFile(path)) for label, path in sorted(masks, key=lambda m: order.index(m[0]))], {}
    )


def _state(source: Source, masks: Sequence[tuple[str, Path]]) -> str:
    return " ".join(state_of(source, _relative(source, mask)) for _, mask in masks)


def _relative(source: Source, path: Path) -> str:
    """Below the root, which find_several names without links."""
    return path.relative_to(source.root.resolve()).as_posix()
