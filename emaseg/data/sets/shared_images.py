"""Image files that are trained on and evaluated too.

Room: data/sets.
"""

from __future__ import annotations

from emaseg.data.dataset import Dataset
from emaseg.data.doubts import Doubt
from emaseg.data.sets.pairs import PairedFiles

__all__ = ["shared_images"]


def shared_images(train: Dataset, evaluation: Dataset) -> Doubt | None:
    """A warning where some files are in both phases, by their paths; None: they are not.

    Phases that are one and the same are no mistake: whoever has a single image has no other choice.
    """
    if not isinstance(train, PairedFiles) or not isinstance(evaluation, PairedFiles):
        return None
    held = set(evaluation.names())
    trained = set(train.names())
    both = held & trained
    if not both or held == trained:
        return None
    return Doubt(
        "duplicate",
        f"{len(both):,} of the {len(held):,} images that are evaluated are trained on, too, such as {min(both)}",
        "leave them out of one of the two, or the scores will be too good",
    )
