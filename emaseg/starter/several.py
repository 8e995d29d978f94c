"""Arrangements that cannot be trained on as they are, told as what they are: several masks for one image, JPEG masks,
outlines in JSON files.

Room: starter.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from emaseg.data.sets.folder import MASK_EXTENSIONS, stem_of
from emaseg.data.sets.pairs import first_few
from emaseg.errors import DataError
from emaseg.files import read_bytes

__all__ = [
    "check_exports",
    "class_folders",
    "endings",
    "jpeg_masks",
    "other_annotations",
    "rival_endings",
    "several_masks",
]

_JSON_BYTES = 64 << 20  # of a file that is looked into
_JSON_FILES = 20
_BRUSH = re.compile(r"(?:.*/)?task-\d+-annotation-\d+-by-.*-tag-(.+?)-\d+\.\w+")  # Label Studio's brush export
_MASK_WORD = re.compile(r"[^A-Za-z0-9]*(masks?|labels?|segs?|segmentations?|gt|annot\w*|class)", re.IGNORECASE)


def endings(images: Iterable[str], masks: Iterable[str]) -> Counter[str]:
    """How many masks have each ending: what follows the longest image name that a mask's name begins with."""
    known, counts = set(images), Counter[str]()
    for mask in sorted(masks):
        for end in range(len(mask) - 1, 0, -1):
            if mask[:end] in known:
                counts[mask[end:]] += 1
                break
    return counts


def rival_endings(counts: Counter[str], images: int) -> list[str]:
    """The endings, sorted, that at least a tenth of the images have a mask of: two or more are several masks each."""
    return sorted(ending for ending, count in counts.items() if count >= max(1, images / 10))


def class_folders(images: Iterable[str], masks: Iterable[str]) -> list[str]:
    """Sub-folders of a mask folder that each hold masks of at least half of the images, by the images' own names."""
    known = set(images)
    counts = Counter(name.partition("/")[0] for name in set(masks) if "/" in name and name.partition("/")[2] in known)
    return sorted(folder for folder, count in counts.items() if 2 * count >= len(known))


def several_masks(where: Path, kinds: Sequence[str], how: str) -> DataError:
    """Of masks of which each image has several. kinds: their endings or folders, as `how` says."""
    names = [re.sub(r"^[\W_]+|[\W_]+$", "", kind) or kind for kind in kinds]
    numbered = ", ".join(f"{place} {name}" for place, name in enumerate(names[:8], 1))
    return DataError(
        f"{where}: each image has {len(kinds)} masks, told apart by {how}: {first_few(kinds, 8)}; a recipe reads one mask "
        "for each image, and none of these is left out without a word",
        f"if each is a class, combine the masks of an image into one PNG that holds class numbers (0 background, "
        f"{numbered}; where they overlap, the one on top); if they are the same labels drawn in several ways, leave the "
        "masks with class numbers there and move the others away",
    )


def check_exports(where: Path, masks: Iterable[str]) -> None:
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
            "combine the masks of a task into one PNG of class numbers (0 background, 1 the first tag, ...) and name it "
            "after the image; the JSON export says which image a task is of",
        )


def jpeg_masks(where: Path, images: Iterable[str], files: Iterable[str], *, beside: bool) -> DataError | None:
    """Where the masks of half of the images are JPEG files, or of another kind that is not read as masks: their error.

    beside: they lie among the images.
    """
    known = {stem_of(name) for name in images}
    found = [name for name in files if not name.lower().endswith(MASK_EXTENSIONS)]
    stems = [stem_of(name) for name in found]
    counts = endings(known, stems)
    count = max((n for ending, n in counts.items() if _MASK_WORD.fullmatch(ending)), default=0)
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
    """What JSON files below `root` hold instead of masks, with the way to masks, for a message; "" = nothing known."""
    for name in [name for name in files if name.lower().endswith(".json")][:_JSON_FILES]:
        content = _json(root / name)
        if {"images", "annotations", "categories"} <= content.keys():
            return (
                f"{name} holds outlines in COCO's form, not masks: draw them into one PNG of class numbers for each image "
                "first (pycocotools: COCO.annToMask), named as the image"
            )
        if {"shapes", "imagePath"} <= content.keys():
            return (
                f"{name} and its like hold outlines in labelme's form, not masks: convert them with labelme2voc.py, which "
                "comes with labelme, and take its SegmentationClass folder as the masks"
            )
    return ""


def _json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(read_bytes(path, _JSON_BYTES))
    except (OSError, ValueError, RecursionError, MemoryError):
        return {}
    return content if isinstance(content, dict) else {}
