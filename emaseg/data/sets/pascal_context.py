"""PASCAL Context: 59 classes, or 60 with the background; images of VOC2010.

Room: data/sets.

    root/JPEGImages/<id>.jpg                              VOCtrainval_03-May-2010.tar
    root/ImageSets/SegmentationContext/<split>.txt        sssegmentation, mmsegmentation; one id a line
    root/ImageSets/Main/<split>.txt                       VOC2010's own lists: the same 4,998 and 5,105 images
and the labels in one of these, the first that is there:
    SegmentationClassContext/<id>.png                     0..59, by data.numbering
    trainval_merged.json                                  PASCAL in Detail: raw ids, drawn; its phases are the splits
    59_context_labels/<id>.png                            the owners': 0..59, VOC's classes first
    trainval/<id>.mat                                     the owners': 459 raw ids in LabelMap

data.root is the VOC2010 folder, or one above it that holds the labels too. Inside, classes are numbered by sorted raw
id (aeroplane, bag, bed, ...), as the published models are. Both numberings of the PNGs run 0..59, so that nothing
fails when they are mixed up: files made from PASCAL in Detail are "detail", the owners' "owners".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from emaseg.data.dataset import Phase
from emaseg.data.files.label_files import ILLEGAL, LabelRule
from emaseg.data.label_sets import label_set, pascal_context_owners_order, pascal_context_raw_ids
from emaseg.data.sets.drawn import Drawing, DrawnFiles, Index, check_size, open_index
from emaseg.data.sets.pairs import PairedFiles, first_few
from emaseg.data.sets.trees import Files, files_below, first_folder, known_split, listed_ids, pairs, top_folder
from emaseg.errors import DataError
from emaseg.files import is_hidden
from emaseg.recipe.data import IGNORE
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import PascalContextData

SPLITS = ("train", "val")
RAW_IDS = 460  # 0..459
PNG, JSON, OWNERS, MAT = "SegmentationClassContext", "trainval_merged.json", "59_context_labels", "trainval"
_INNER = ("VOCdevkit/VOC2010", "VOC2010")
_LISTS = ("ImageSets/SegmentationContext", "ImageSets/Main")
_HINT = "unpack VOCtrainval_03-May-2010.tar and set data.root to its VOC2010 folder"
_LABELS_HINT = "put trainval_merged.json, or the owners' 59_context_labels or trainval folder, beside JPEGImages"


def pascal_context(data: PascalContextData, phase: Phase) -> PairedFiles | DrawnFiles:
    """The images of data.train_split or data.eval_split with their labels, in the order of the list.

    Raises:
        RecipeError: there is no such split.
        DataError: folders, lists, images or labels are missing; says what was expected, what is there, and the remedy.
        SystemFault: trainval_merged.json is to be read and the cache folder cannot be written.
    """
    split = known_split(data, phase, SPLITS)
    root = data_root(data.root)
    top = top_folder(root, _INNER, ("JPEGImages",), "PASCAL Context", _HINT)
    images = files_below(first_folder(top, ("JPEGImages",), "the image folder", _HINT), ".jpg")
    source = _label_source(root, top)
    names, palette = label_set(data).classes, label_set(data).palette
    if source.name == JSON:
        index = open_index(source, "pascal_context", drawings)
        return DrawnFiles(
            items=_drawn_items(index, images, split, _listed(top, split, images)),
            index=index,
            rule=raw_rule(names),
            palette=palette,
            layout=f"PASCAL Context, labels drawn from {source}; index {index.path}",
        )
    numbering = "owners" if source.name == OWNERS else data.numbering
    labels = files_below(source, ".mat" if source.name == MAT else ".png")
    chosen = _listed(top, split, images)
    if chosen is None:
        raise _no_list(top, split)
    words = "raw ids" if source.name == MAT else f"{numbering} numbering"
    return PairedFiles(
        items=pairs(images, labels, "unpack the labels again, or correct the list", chosen=chosen),
        rule=raw_rule(names) if source.name == MAT else numbered_rule(names, numbering),
        palette=palette,
        layout=f"PASCAL Context, labels from {source} ({words})",
    )


# ------------------------------------------------------------------------------------------------ what values mean
def numbered_rule(classes: tuple[str, ...], numbering: Literal["detail", "owners"]) -> LabelRule:
    """Of label files with 0..59 in one of the two orders."""
    order = pascal_context_owners_order() if numbering == "owners" else tuple(range(60))
    return _rule(classes, dict(enumerate(order)), 256)


def raw_rule(classes: tuple[str, ...]) -> LabelRule:
    """Of label maps with the 459 raw ids: those of no class are background."""
    position = {raw: index for index, raw in enumerate(pascal_context_raw_ids())}
    return _rule(classes, {raw: position.get(raw, 0) for raw in range(RAW_IDS)}, RAW_IDS)


def _rule(classes: tuple[str, ...], meaning: Mapping[int, int], length: int) -> LabelRule:
    """meaning: stored value -> class of the sixty. With 59 classes the background is ignored."""
    sixty = range(60) if len(classes) == 60 else [IGNORE, *range(59)]
    lut = bytes(sixty[meaning[raw]] if raw in meaning else ILLEGAL for raw in range(length))
    return LabelRule(classes, lut, layout="PASCAL Context", empty_ok=True, mat=("LabelMap",))


# ----------------------------------------------------------------------------------------------------- the files
def _label_source(root: Path, top: Path) -> Path:
    """The folder or file that holds the labels."""
    places = [top, root]
    if top.parent.name == "VOCdevkit":
        places += [top.parent, top.parent.parent]
    for name in (PNG, JSON, OWNERS, MAT):
        for place in places:
            path = place / name
            if path.is_file() if name == JSON else path.is_dir():
                return path
    found = sorted(entry.name for entry in top.iterdir() if not is_hidden(entry.name))
    raise DataError(
        f"{top}: no labels: expected {PNG}, {JSON}, {OWNERS} or {MAT}, found {first_few(found, 8)}", _LABELS_HINT
    )


def _listed(top: Path, split: str, images: Files) -> list[str] | None:
    for folder in _LISTS:
        ids = listed_ids(top / folder / f"{split}.txt", images, ".jpg")
        if ids is not None:
            return ids
    return None


def _no_list(top: Path, split: str) -> DataError:
    expected = " or ".join(f"{folder}/{split}.txt" for folder in _LISTS)
    return DataError(f"{top}: no list of the images of {split}: expected {expected}", "unpack VOC2010's ImageSets")


# --------------------------------------------------------------------------------------------- PASCAL in Detail
def drawings(content: Mapping[str, Any]) -> Iterator[Drawing]:
    """The images of trainval_merged.json with their raw ids, later annotations on top; groups are its phases."""
    shapes: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for note in content["annos_segmentation"]:
        category = int(note["category_id"])
        if not 0 <= category < RAW_IDS:
            raise ValueError(f"category {category}; there are 0..{RAW_IDS - 1}")
        shapes[note["image_id"]].append((category, note["segmentation"]))
    for image in content["images"]:
        size = (int(image["height"]), int(image["width"]))
        check_size(image["file_name"], size)
        yield Drawing(str(image["file_name"]), str(image["phase"]), size, tuple(shapes.get(image["image_id"], ())))


def _drawn_items(index: Index, images: Files, split: str, chosen: list[str] | None) -> tuple[tuple[Path, int], ...]:
    """The images of a split, by the list if there is one and else by the file's phases, with their index lines."""
    lines = {Path(name).stem: line for line, name in enumerate(index.names)}
    if chosen is None:
        chosen = [name for name, line in lines.items() if index.groups[line] == split]
        if not chosen:
            known = ", ".join(sorted(set(index.groups))) or "none"
            raise DataError(f"{index.source}: no image of phase {split}; phases are {known}", _LABELS_HINT)
    for names, what in ((lines, f"annotations in {index.source}"), (images.files, f"file {images.pattern}")):
        missing = [name for name in chosen if name not in names]
        if missing:
            raise DataError(
                f"{len(missing):,} of {len(chosen):,} images of {split} have no {what}: {first_few(missing)}", _HINT
            )
    return tuple((images.files[name], lines[name]) for name in chosen)
