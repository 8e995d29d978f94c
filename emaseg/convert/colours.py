"""Masks whose colours are the classes: RGB, or indexed with palettes that differ from file to file.

Room: convert. CVAT's and other tools' mask exports with labelmap.txt or another file of names and colours.

The masks are found as `emaseg init` finds them, and their colours named as there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from emaseg.convert.export import Codes, Export, Item, Label, Object, Objects
from emaseg.convert.source import Source, split_of, state_of
from emaseg.data.checks import spread
from emaseg.data.files.images import image_header
from emaseg.data.files.label_files import MAX_CLASSES
from emaseg.data.files.mask_values import Colour, mask_values, packed
from emaseg.data.sets.mixed_palettes import mixed_palettes
from emaseg.errors import DataError
from emaseg.recipe.data import IGNORE
from emaseg.starter.arrangements import EVAL_NAMES
from emaseg.starter.kinds import any_layout
from emaseg.starter.layout import Layout
from emaseg.starter.names import find_names
from emaseg.starter.naming import Place
from emaseg.starter.values import Held, classes_of, read_masks
from emaseg.starter.write import name_folders, paired_files
from emaseg.threads import Reading, read_all

__all__ = ["files", "read"]

_LOOKED = 24


def files(source: Source) -> list[str]:
    """The folder of such masks."""
    if source.only:
        return []
    try:
        layout = any_layout(source.root)
        masks = _masks(layout)
        some = [masks[place] for place in spread(len(masks), _LOOKED)]
        stored = [(mask, mask_values(mask, mask)) for mask in some]
        if any(one.palette for _, one in stored):
            others = _of_other_palettes(masks)
            stored += [(mask, mask_values(mask, mask)) for mask in others if mask not in some]
    except DataError:
        return []
    coloured = any(one.coloured and not one.equal for _, one in stored)
    mixed = mixed_palettes([(mask, one.palette, np.unique(one.values).tolist()) for mask, one in stored])
    return [layout.train.masks] if coloured or mixed is not None else []


def _of_other_palettes(masks: list[Path]) -> list[Path]:
    """The first mask of each palette, of few palettes."""
    found: dict[tuple[Colour, ...], Path] = {}
    for mask in masks:
        if (
            (palette := image_header(mask).palette)
            and found.setdefault(palette, mask) is mask
            and len(found) == _LOOKED
        ):
            break
    return list(found.values())


def _masks(layout: Layout) -> list[Path]:
    return sorted({mask for part in paired_files(layout) for _, mask in part.items})


def read(source: Source, _names: list[str]) -> Generator[Reading, None, Export]:
    """All images of both parts, and of a test part beside them.

    Raises:
        DataError: the masks cannot be used; or as any_layout.
    """
    layout = any_layout(source.root)
    train, evaluation = paired_files(layout)
    test, notes = _test_part(layout)
    own, passed = _masks(layout), [mask for _, mask in test]
    try:
        held = yield from _values(sorted({*own, *passed}))
    except DataError as error:
        if not test:
            raise
        held = yield from _values(own)
        test, notes = (), (f"The images of {_relative(source, passed[0].parent)} are not converted: {error.message}.",)
    names, remarks = find_names(layout.root, name_folders(layout), coloured=True)
    classes = classes_of(held, names)
    labels = [
        Label(str(place), name, colour)
        for place, (name, colour) in enumerate(zip(classes.names, classes.palette, strict=True))
    ]
    table = {packed(colour): str(place) for place, colour in enumerate(classes.palette)}
    table |= {packed(colour): "ignored" for colour in classes.ignore_colours}
    labels += [Label("ignored", "__ignore__")] if classes.ignore_colours else []
    pairs = {image: (mask, "") for image, mask in train.items}
    if set(train.items) != set(evaluation.items) and not layout.holdout:
        pairs = {image: (mask, "train") for image, mask in train.items}
        pairs |= {image: (mask, "val") for image, mask in evaluation.items}
        pairs |= {image: (mask, "test") for image, mask in test if image not in pairs}
    else:
        pairs |= {image: (mask, "") for image, mask in evaluation.items}
    items = [_item(source, image, mask, split, table) for image, (mask, split) in sorted(pairs.items())]
    reasons = tuple(reason for reason in classes.reasons if "data." not in reason)
    used = frozenset(_relative(source, mask) for mask in (*own, *passed))
    return Export(tuple(labels), tuple(items), notes=(*reasons, *remarks, *notes), complete=True, masks=used)


def _values(masks: list[Path]) -> Generator[Reading, None, Held]:
    """
    Raises:
        DataError: they cannot be used together.
    """
    indexed = any(image_header(mask).palette for mask in masks)
    return (yield from _held(masks)) if indexed else (yield from read_masks(masks))


def _test_part(layout: Layout) -> tuple[Sequence[tuple[Path, Path]], tuple[str, ...]]:
    """The images and masks of a third part beside the evaluated one, and a note where they cannot be used."""
    if layout.holdout or layout.train.listing or layout.train == layout.eval:
        return (), ()
    for word in ("test", "testing", "Test", "Testing"):
        images, masks = (_of_split(name, word) for name in (layout.eval.images, layout.eval.masks))
        if layout.eval.images == images or not all((layout.root / name).is_dir() for name in (images, masks)):
            continue
        try:
            return paired_files(replace(layout, eval=Place(images, masks)))[1].items, ()
        except DataError as error:
            return (), (f"The images in {images} are not converted: {error.message}.",)
    return (), ()


def _of_split(folder: str, split: str) -> str:
    """A folder's path with another word for its split: images/val, or valannot."""
    words = "|".join(sorted(EVAL_NAMES, key=len, reverse=True))
    return re.sub(rf"(?<![^/])({words})", split, folder, count=1, flags=re.IGNORECASE)


def _item(source: Source, image: Path, mask: Path, split: str, table: Mapping[int, str]) -> Item:
    name, mask_name = _relative(source, image), _relative(source, mask)
    objects = Objects([Object("", Codes(mask, table, colours=True))], {})
    return Item(name, split or split_of(name), None, partial(_same, objects), state_of(source, mask_name))


def _relative(source: Source, path: Path) -> str:
    """Below the root, which any_layout names without links."""
    return path.relative_to(source.root.resolve()).as_posix()


def _same(objects: Objects) -> Objects:
    return objects


def _held(masks: list[Path]) -> Generator[Reading, None, Held]:
    """What indexed masks hold, by the colours of their own palettes."""
    rows = yield from read_all("masks", _colours, masks)
    pixels, files_ = Counter[int](), Counter[int]()
    for row in rows:
        pixels.update(row)
        files_.update(row.keys())
    if len(pixels) > MAX_CLASSES:
        raise DataError(f"the masks hold {len(pixels):,} different colours: {masks[0]}", "export them as class numbers")
    return Held(colours=True, pixels=pixels, masks=files_)


def _colours(path: Path) -> dict[int, int]:
    stored = mask_values(path, path)
    if not stored.coloured and not stored.palette and (numbers := set(np.unique(stored.values).tolist()) - {0, IGNORE}):
        raise DataError(
            f"{path}: has no palette, as other masks have, and holds {min(numbers)}: which colour that is is unclear",
            "save it with the palette of the others",
        )
    values, counts = np.unique(stored.by_colour(), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
