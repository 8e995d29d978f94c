"""The two data sets of a recipe, opened and checked before a run begins.

Room: datasets.
"""

from __future__ import annotations

from emaseg.data.checks import check_dataset, spread
from emaseg.data.sample import Dataset
from emaseg.data.sets import build_dataset
from emaseg.data.sets.doubts import file_doubts
from emaseg.events import Note
from emaseg.recipe import Recipe


def open_datasets(recipe: Recipe) -> tuple[Dataset, Dataset, list[Note]]:
    """Training and evaluation set, with a sample of their labels checked.

    Raises:
        DataError: missing, empty, or labelled with values it must not hold.
        RecipeError: a kind of data set that this version does not read.
    """
    sets = build_dataset(recipe.data, "train"), build_dataset(recipe.data, "eval")
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
    return (*sets, notes)
