"""Your own data: a folder of images and a folder of masks with the same names.

Room: data. Imports errors, resources, the schema and the data room's readers.

    root/<train_images>/a/1.jpg   root/<train_masks>/a/1<mask_suffix>.png
    root/<train_list>             optional; one image a line, relative to the image folder, with or without extension

Sub-folders are kept: an image's mask has the same relative path. Extensions may be in capitals. Hidden files are
passed over. The order is that of the relative paths, or that of the list. Where one folder serves both parts, `holdout`
divides it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from emaseg.data.files.images import EXTENSIONS
from emaseg.data.files.label_files import index_rule
from emaseg.data.labels import label_set
from emaseg.data.sets.pairs import PairedFiles, first_few, need_folder, read_names
from emaseg.errors import DataError, nearest
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.schema import FolderData

MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")


def folder(data: FolderData, part: Literal["train", "eval"]) -> PairedFiles:
    """The image files of one part with their masks.

    Raises:
        DataError: a folder or list is missing or empty, an image has no mask, a mask no image, or two files share a
            name; names the first few, their number and the remedy.
    """
    dataset, problems = usable(data, part)
    if problems:
        raise problems[0]
    return dataset


def usable(data: FolderData, part: Literal["train", "eval"]) -> tuple[PairedFiles, list[DataError]]:
    """As `folder`, but images without a mask and masks without an image are left out, and returned as errors.

    Raises:
        DataError: as `folder`, where there is nothing to go on with.
    """
    root = data_root(data.root)
    train = part == "train"
    images = root / (data.train_images if train else data.eval_images)
    masks = root / (data.train_masks if train else data.eval_masks)
    listing = data.train_list if train else data.eval_list
    need_folder(images, f"data.{part}_images", f"check data.{part}_images")
    need_folder(masks, f"data.{part}_masks", f"check data.{part}_masks")
    image_files, mask_files = _find(images, masks, data.mask_suffix)
    if not image_files:
        raise DataError(
            f"{images}: no images ({', '.join(EXTENSIONS)})", f"put images there, or correct data.{part}_images"
        )
    chosen = _listed(root / listing, image_files, images) if listing else image_files
    by_stem = _by_stem(chosen, images)
    mask_of = _by_stem(mask_files, masks)
    problems = _images_alone(by_stem, mask_of, images, masks, data.mask_suffix)
    if not listing:
        problems += _masks_alone(by_stem, mask_of, images, masks, data.mask_suffix)
    pairs = tuple(
        (images / name, masks / mask_of[stem + data.mask_suffix])
        for stem, name in _held(by_stem, data.holdout, train)
        if stem + data.mask_suffix in mask_of
    )
    if not pairs and not problems:
        raise DataError(
            f"{images}: data.holdout = {data.holdout} leaves no image for {'training' if train else 'evaluation'}",
            f"there are {len(by_stem)}; set data.holdout to at most that number, and at least 2",
        )
    labels = label_set(data)
    rule = index_rule(
        labels.classes, data.ignore, values=data.values, palette=data.palette, ignore_colours=data.ignore_colours
    )
    return PairedFiles(items=pairs, rule=rule, palette=labels.palette), problems


def _held(by_stem: dict[str, str], every: int, train: bool) -> list[tuple[str, str]]:
    """The images of one part: all, or those that every `every`-th is, or is not; the first held out is in mid-group."""
    if not every:
        return list(by_stem.items())
    return [item for place, item in enumerate(by_stem.items()) if (place % every != every // 2) == train]


def _find(images: Path, masks: Path, suffix: str) -> tuple[list[str], list[str]]:
    """Relative paths of the images and of the masks; the two folders may be one, or one inside the other."""
    one_folder = images.resolve() == masks.resolve()
    mask_files = [name for name in walk(masks, None if one_folder else images) if _is_mask(name, suffix)]
    if one_folder:
        if not suffix:
            raise DataError(
                f"{images}: images and masks are in one folder and nothing tells them apart",
                "give the masks a folder of their own, or set data.mask_suffix",
            )
        taken = set(mask_files)
        return [name for name in walk(images, None) if _is_image(name) and name not in taken], mask_files
    return [name for name in walk(images, masks) if _is_image(name)], mask_files


def walk(top: Path, without: Path | None) -> Iterator[str]:
    """Relative POSIX paths of the files below `top`, sorted; hidden ones and the folder `without` are left out.

    Links to folders are followed, each folder once, so that a link to a parent does not go round for ever.
    """
    seen = {without.resolve()} if without is not None and without.resolve() != top.resolve() else set()
    found = []
    for here, folders, files in os.walk(top, onerror=_unreadable, followlinks=True):
        real = Path(here).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here, name).relative_to(top).as_posix() for name in files if not name.startswith(".")]
    yield from sorted(found)


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: the folder cannot be read ({error.strerror})", "check its permissions"
    ) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_mask(name: str, suffix: str) -> bool:
    return name.lower().endswith(MASK_EXTENSIONS) and _stem(name).endswith(suffix)


def _stem(name: str) -> str:
    """The relative path without its extension."""
    return str(PurePosixPath(name).with_suffix(""))


def _by_stem(names: list[str], top: Path) -> dict[str, str]:
    """Stem -> relative path.

    Raises:
        DataError: two files share a stem.
    """
    stems: dict[str, str] = {}
    for name in names:
        other = stems.setdefault(_stem(name), name)
        if other != name:
            raise DataError(
                f"{top}: {other} and {name} share the name {_stem(name)}, by which masks are found",
                "rename or remove one of them",
            )
    return stems


def _listed(path: Path, image_files: list[str], top: Path) -> list[str]:
    """The images that a list file names, in its order."""
    known = set(image_files)
    by_stem: dict[str, list[str]] = {}
    for name in image_files:
        by_stem.setdefault(_stem(name), []).append(name)
    chosen, unknown = [], []
    for line in read_names(path):
        name = line.replace("\\", "/").removeprefix("./")
        if name in known:
            chosen.append(name)
        elif name in by_stem:
            chosen += by_stem[name]  # two files of one stem: reported where stems are made
        else:
            unknown.append(line)
    if unknown:
        raise DataError(
            f"{path}: {len(unknown):,} of the names have no image in {top}: {first_few(unknown)}",
            nearest(unknown[0], image_files) or "write paths relative to the image folder, one a line",
        )
    return chosen


def _images_alone(
    images: dict[str, str], masks: dict[str, str], image_top: Path, mask_top: Path, suffix: str
) -> list[DataError]:
    """What is wrong with images that have no mask; [] = every one has."""
    lone = [name for stem, name in images.items() if stem + suffix not in masks]
    if not lone:
        return []
    wanted = f"{_stem(lone[0])}{suffix}.png"
    used = {stem + suffix for stem in images}
    free = [name for stem, name in masks.items() if stem not in used]
    return [
        DataError(
            f"{len(lone):,} of {len(images):,} images in {image_top} have no mask in {mask_top}: {first_few(lone)}",
            nearest(wanted, free)
            or f"the mask of {lone[0]} would be {wanted}; correct the names, or set data.mask_suffix or a list file",
        )
    ]


def _masks_alone(
    images: dict[str, str], masks: dict[str, str], image_top: Path, mask_top: Path, suffix: str
) -> list[DataError]:
    """The same of masks without an image: a sign of a half-copied folder."""
    used = {stem + suffix for stem in images}
    lone = [name for stem, name in masks.items() if stem not in used]
    if not lone:
        return []
    return [
        DataError(
            f"{len(lone):,} of {len(masks):,} masks in {mask_top} have no image in {image_top}: {first_few(lone)}",
            "add the images, remove the masks, or name the images to use in a list file",
        )
    ]
