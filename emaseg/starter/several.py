"""Arrangements that cannot be trained on as they are, told as what they are: several masks for one image, JPEG masks,
outlines of annotation tools.

Room: starter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from emaseg.data.sets.names import MASK_EXTENSIONS, stem_of
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError
from emaseg.files import read_bytes
from emaseg.starter.mask_kinds import Kinds, by_ending
from emaseg.words import quoted_path

__all__ = ["How", "SeveralMasks", "check_exports", "class_of", "jpeg_masks", "other_annotations"]

How = Literal["ending", "beginning", "folder"]  # what tells the kinds of masks apart
_HOW: dict[How, str] = {
    "ending": "the endings of their names",
    "beginning": "what their names begin with",
    "folder": "the folders they are in",
}

_LARGEST = 512 << 20  # bytes of a file that is looked into
_LOOKED = 20
# The keys by which the files of annotation tools are known.
_TOOLS = (
    ("labelme", (b'"shapes"', b'"imagePath"')),
    ("COCO", (b'"images"', b'"annotations"', b'"categories"')),
    ("VIA", (b'"shape_attributes"', b'"filename"')),
    ("VIA", (b'"metadata"', b'"fname"', b'"av"')),
    ("Label Studio", (b'"annotations"', b'"data"', b'"result"')),
    ("Label Studio", (b'"original_width"', b'"annotator"')),
    ("Supervisely", (b'"objects"', b'"size"', b'"classTitle"')),
    ("CVAT", (b"<annotations", b"<image ")),
)
_BRUSH = re.compile(r"(?:.*/)?task-\d+-annotation-\d+-by-.*-tag-(.+?)-\d+\.\w+")  # Label Studio's brush export
_YOLO = re.compile(rb"\d{1,6}((\s+[\d.]+){2}){3,}\s*(\r?\n|$)")
_MASK_WORD = re.compile(r"[^A-Za-z0-9]*(masks?|labels?|segs?|segmentations?|gt|annot\w*|class)", re.IGNORECASE)


def class_of(kind: str, how: How) -> str:
    """The class that an ending or folder names: _car, car_, _car_2, car_masks and mask_car are car.

    The number of an ending counts the objects of an image; a folder's is its name: class_1 and class_2 are two.
    """
    plain = re.sub(r"^[\W_]+|[\W_]+$", "", kind)
    number = () if how == "folder" else (r"[\W_]+\d+$",)
    for extra in (*number, r"[\W_]+(masks?|labels?|segs?|gt)$", r"^(masks?|labels?|segs?|gt)[\W_]+"):
        plain = re.sub(extra, "", plain, flags=re.IGNORECASE) or plain
    return plain or kind


class SeveralMasks(DataError):
    """Of images with masks of several kinds, which `emaseg convert` makes into one mask each.

    images, masks: the folders. kinds: the endings or beginnings of the masks' names, or their folders, as `how` says,
    each with its masks by image, relative to the folders.
    """

    def __init__(self, root: Path, images: Path, masks: Path, kinds: Kinds, how: How) -> None:
        names = list(dict.fromkeys(class_of(kind, how) for kind in kinds))
        numbered = ", ".join(f"{place} {name}" for place, name in enumerate(names[:8], 1))
        super().__init__(
            f"{masks}: {_claim(kinds)}, told apart by {_HOW[how]}: {first_few(kinds, 8)}; a recipe reads "
            "one mask for each image, and none of these is left out without a word",
            f"if each is a class, or an object of one, let `{_command(root)}` combine the masks of an image into one "
            f"of class numbers (0 background, {numbered}; where they overlap, the later on top); if they are the same "
            "labels drawn in several ways, leave the masks with class numbers there and move the others away",
        )
        self.root, self.images, self.masks, self.kinds, self.how = root, images, masks, kinds, how

    def __reduce__(self) -> tuple[type[SeveralMasks], tuple[Path, Path, Path, Kinds, How]]:  # type: ignore[override]
        return type(self), (self.root, self.images, self.masks, self.kinds, self.how)


def _claim(kinds: Kinds) -> str:
    """How many masks an image has, as far as it is true of all that have any."""
    counts = Counter(image for of in kinds.values() for image in of)
    most = max(counts.values(), default=0)
    if most == min(counts.values(), default=0) == len(kinds):
        return f"each image has {most} masks"
    if most == len(kinds):
        return f"images have up to {most} masks each"
    return f"the masks are of {len(kinds)} kinds" + (f", up to {most} for an image" if most > 1 else "")


def check_exports(root: Path, where: Path, masks: Iterable[str]) -> None:
    """Stop at masks that an annotation tool named after its tasks instead of the images.

    Raises:
        DataError: they are Label Studio's brush exports.
    """
    found = [match for name in masks if (match := _BRUSH.fullmatch(name))]
    if found:
        tags = sorted({match[1] for match in found})
        raise DataError(
            f"{where}: {len(found):,} masks are Label Studio's brush exports ({Path(found[0][0]).name}): each holds one tag "
            f"of one task ({first_few(tags, 8)}), and their names do not say which image they belong to",
            "put the project's JSON export, which says which image a task is of, into the folder, and let "
            f"`{_command(root)}` make one mask of class numbers for each image",
        )


def _command(root: Path) -> str:
    return f"emaseg convert {quoted_path(root)} --out {quoted_path(f'{root}_labels')}"


def jpeg_masks(where: Path, images: Iterable[str], files: Iterable[str], *, beside: bool) -> DataError | None:
    """Where the masks of half of the images are JPEG files, or of another kind that is not read as masks: their error.

    beside: they lie among the images.
    """
    known = {stem_of(name) for name in images}
    found = [name for name in files if not name.lower().endswith(MASK_EXTENSIONS)]
    stems = [stem_of(name) for name in found]
    count = max((len(of) for ending, of in by_ending(known, stems).items() if _MASK_WORD.fullmatch(ending)), default=0)
    total = len(known) - count if beside else min(len(known), len(found))
    if not beside:
        count = max(count, sum(stem in known for stem in stems))
    if not count or 2 * count < total:
        return None
    kinds = sorted({Path(name).suffix.lower() for name in found})
    if not {".jpg", ".jpeg"} & set(kinds):
        return DataError(
            f"{where}: the masks end in {first_few(kinds)}; they are read from PNG, TIFF, BMP and GIF files only",
            "save the masks as PNG, without changing their values",
        )
    return DataError(
        f"{where}: the masks are JPEG files, whose compression has changed the class values",
        "export the masks again as PNG; saving these as PNG does not bring the values back",
    )


def other_annotations(root: Path, files: Sequence[str]) -> str:
    """What files below `root` hold instead of masks, with the way to masks, for a message; "" = nothing known."""
    texts = [name for name in files if name.lower().endswith((".json", ".xml"))][:_LOOKED]
    texts += [name for name in files if name.lower().endswith(".txt")][:_LOOKED]
    for name in texts:
        try:
            content = read_bytes(root / name, _LARGEST)
        except (OSError, MemoryError):
            continue
        if name.lower().endswith(".txt"):
            if _YOLO.match(content):
                return f"{name} holds outlines in YOLO's form, not masks: `{_command(root)}` draws them into masks"
            continue
        for tool, words in _TOOLS:
            if all(word in content for word in words):
                return f"{name} holds outlines in {tool}'s form, not masks: `{_command(root)}` draws them into masks"
    return ""
