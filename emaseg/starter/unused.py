"""Images beside those of the splits that are used: in images/extra beside images/train, or extra/images beside train/images.

Room: starter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from emaseg.data.sets.pairs import first_few
from emaseg.starter.arrangements import TRAIN_NAMES, folders_in
from emaseg.starter.layout import TEST_UNUSED, Layout
from emaseg.starter.naming import files_in

__all__ = ["with_unused"]


def with_unused(layout: Layout) -> Layout:
    """The layout with a note on folders of images that it does not read.

    Raises:
        DataError: a folder cannot be read.
    """
    if others := list(_others(layout)):
        note = f"Images in folders that are not used: {first_few(others)}. Name them in data.train_images to train on them."
        return replace(layout, notes=(*layout.notes, note))
    return layout


def _others(layout: Layout) -> Iterator[str]:
    """The folders that lie as that of the training split does, with their images."""
    parts, masks = PurePosixPath(layout.train.images).parts, PurePosixPath(layout.train.masks)
    place = next((place for place, part in enumerate(parts) if part.lower() in TRAIN_NAMES), None)
    if place is None:
        return
    above, rest = PurePosixPath(*parts[:place]), parts[place + 1 :]
    used = [one.images for one in (layout.train, layout.eval, *layout.more)]
    names = folders_in(layout.root / above)
    for name in names:
        images = above.joinpath(name, *rest).as_posix()
        if any(f"{one}/".startswith(f"{images}/") for one in used):
            continue
        if name.lower() in ("test", "testing") and TEST_UNUSED in layout.notes:
            continue
        if not rest and masks.parent == above and masks.as_posix() != layout.train.images:  # train/ + trainannot/
            tail = masks.name.lower().removeprefix(parts[place].lower())
            if f"{name}{tail}".lower() not in map(str.lower, names):
                continue
        files = files_in(layout.root / images)
        if masks.as_posix() == layout.train.images:
            files = [file for file in files if not layout.naming.is_mask(file)]
        if files:
            yield f"{images} ({len(files):,})"
