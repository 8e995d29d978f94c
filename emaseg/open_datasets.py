"""The two data sets of a recipe, opened and checked before a run begins.

Room: open_datasets.
"""

from __future__ import annotations

from dataclasses import replace

from emaseg.data.checks import check_dataset, spread
from emaseg.data.dataset import Dataset, Phase
from emaseg.data.files.bands import bands_of
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.doubts import file_doubts
from emaseg.data.sets.shared_images import shared_images
from emaseg.errors import RecipeError
from emaseg.events import Note
from emaseg.recipe import Data, Recipe
from emaseg.recipe.data import FolderData, PackedData, ShapesData


def open_datasets(recipe: Recipe) -> tuple[Dataset, Dataset, list[Note]]:
    """Training and evaluation set, with a sample of their labels checked.

    Raises:
        DataError: missing, empty, or labelled with values it must not hold.
        RecipeError: the data set has no such split.
    """
    bands = bands_of(recipe)
    sets = build_dataset(recipe.data, "train", bands), build_dataset(recipe.data, "eval", bands)
    notes = []
    for split, dataset in zip(("training", "evaluation"), sets, strict=True):
        if dataset.layout:
            notes.append(Note(f"{split}: {dataset.layout}"))
        if split == "evaluation" and dataset.withheld_by:
            notes.append(Note(f"{split}: {len(dataset)} images whose labels are not published; nothing is scored"))
            continue
        report = check_dataset(dataset)
        text = f"{split}: {report.images} images, labels of {report.checked} checked"
        if report.never_seen:
            text += f"; not seen in them: {', '.join(report.never_seen[:8])}"
            text += " ..." if len(report.never_seen) > 8 else ""
        notes.append(Note(text))
        doubts = (*report.doubts, *file_doubts(dataset, spread(len(dataset), report.checked)))
        notes += [Note(f"{split}: {doubt.message}; {doubt.hint}", warning=True) for doubt in doubts]
    shared = shared_images(*sets)
    if shared is not None:
        notes.append(Note(f"{shared.message}; {shared.hint}", warning=True))
    return (*sets, notes)


def choose_split(data: Data, split: str | None) -> tuple[Data, Phase]:
    """The data section and the phase whose images are meant.

    Args:
        split: as the data set names it; train or eval where its splits have no names; None = what the recipe is scored on.

    Raises:
        RecipeError: not a split of this kind.
    """
    if split is None:
        return data, "eval"
    if not isinstance(data, FolderData | PackedData | ShapesData):
        return replace(data, eval_split=split), "eval"
    if split == "train":
        return data, "train"
    if split == "eval":
        return data, "eval"
    raise RecipeError(f"--split {split}: data of kind {data.kind} has the splits train and eval")
