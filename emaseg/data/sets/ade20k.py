"""ADE20K scene parsing (ADEChallengeData2016): 150 classes, stored as 1..150; 0 = anything else, ignored.

Room: data/sets.

    root/images/<folder>/<id>.jpg       folder: training (20,210), validation (2,000), testing
    root/annotations/<folder>/<id>.png
    root/<split>.txt                    sssegmentation's lists, one id a line; the owners' archive has none

data.root is this folder or one above it, under the owners' name (ADEChallengeData2016), sssegmentation's (below
ADE20k) or mmsegmentation's (below ade). The test images come in an archive of their own, as release_test/testing;
nobody outside has their labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.data.dataset import Phase
from emaseg.data.files.label_files import ILLEGAL, LabelRule
from emaseg.data.label_sets import LabelSet, label_set
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.trees import (
    UnlabelledFiles,
    files_below,
    first_folder,
    known_split,
    listed_ids,
    pairs,
    top_folder,
)
from emaseg.recipe.data import IGNORE
from emaseg.resources import data_root

if TYPE_CHECKING:
    from emaseg.recipe.data import ADE20KData

SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
_FOLDERS = {"train": "training", "val": "validation"}
_INNER = ("ADEChallengeData2016", "ADE20k/ADEChallengeData2016", "ade/ADEChallengeData2016")
_TEST = ("images/testing", "release_test/testing", "testing")
_HINT = "unpack ADEChallengeData2016.zip (scene parsing, not the full ADE20K) and set data.root to its folder"


def ade20k(data: ADE20KData, phase: Phase) -> PairedFiles | UnlabelledFiles:
    """The images of data.train_split or data.eval_split with their masks, by id or in the order of a list file.

    Raises:
        RecipeError: there is no such split.
        DataError: folders, images or masks are missing; says what was expected, what is there, and the remedy.
    """
    split = known_split(data, phase, tuple(SPLITS))
    root = data_root(data.root)
    labels = label_set(data)
    if split == "test":
        return _test_images(root, labels)
    top = top_folder(root, _INNER, ("images", "annotations"), "ADE20K", _HINT)
    found = [_pairs(top, name) for name in SPLITS[split]]
    lists = ", ".join(f"{name}.txt" for name in SPLITS[split] if (top / f"{name}.txt").is_file())
    return PairedFiles(
        items=tuple(pair for items in found for pair in items),
        rule=ade20k_rule(labels.classes),
        palette=labels.palette,
        layout=f"ADE20K (folders {', '.join(_FOLDERS[name] for name in SPLITS[split])}; images: {lists or 'all'}) in {top}",
    )


def ade20k_rule(classes: tuple[str, ...]) -> LabelRule:
    """Raw 0 is ignored, 1..150 are train ids 0..149; nothing else occurs."""
    known = [IGNORE, *range(len(classes))]
    return LabelRule(classes, bytes(known + [ILLEGAL] * (256 - len(known))), layout="ADE20K", empty_ok=True)


def _test_images(root: Path, labels: LabelSet) -> UnlabelledFiles:
    places = [f"{top}{name}" for top in ("", *(f"{top}/" for top in _INNER)) for name in _TEST]
    folder = first_folder(root, places, "the test images", "unpack release_test.zip there")
    images = files_below(folder, ".jpg")
    return UnlabelledFiles(
        images=tuple(images.files.values()),
        classes=labels.classes,
        palette=labels.palette,
        withheld_by="the benchmark's server",
        layout=f"ADE20K's test images, without labels, in {folder}",
    )


def _pairs(top: Path, split: str) -> tuple[tuple[Path, Path], ...]:
    folder = _FOLDERS[split]
    where = first_folder(top, (f"images/{folder}",), f"the image folder of split {split}", _HINT)
    masks = first_folder(top, (f"annotations/{folder}",), f"the mask folder of split {split}", _HINT)
    images = files_below(where, ".jpg")
    chosen = listed_ids(top / f"{split}.txt", images, ".jpg")
    return pairs(images, files_below(masks, ".png"), "unpack ADEChallengeData2016.zip again", chosen=chosen)
