"""Class weights from the training labels: loss.class_balance.

Room: training. Legend: K classes.

The labels are counted once, and the counts are kept in the cache under a name that is a hash of what they depend on: the
[data] section and the path, size and time of every label file that was read. So a label that is written again is
counted again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from pathlib import Path

import numpy as np

from emaseg.data.checks import Counts, histogram, spread
from emaseg.data.dataset import Dataset, published_label
from emaseg.errors import SystemFault
from emaseg.events import Note
from emaseg.files import read_bytes, write_text
from emaseg.recipe import Data, Recipe, toml_value
from emaseg.recipe.rule import FACTOR
from emaseg.resources import cache_folder
from emaseg.threads import read_all

_FORMAT = 1
_MOST_READ = 2000  # labels: a share then has an error of a few per cent of itself, and the rule needs no more
_SHOWN = 24  # weights that the log lists
_DIGITS = 4  # of a weight; a recipe states them


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """What labels hold, K entries each. read: labels that were counted.

    pixels: of each class. around: labelled pixels of the labels that hold the class.
    """

    read: int
    pixels: tuple[int, ...]
    around: tuple[int, ...]


def with_class_weights(recipe: Recipe, train_set: Dataset) -> tuple[Recipe, list[Note]]:
    """The recipe with the weights that loss.class_balance asks for in loss.class_weights, and a line that says which.

    Weights that the recipe lists win over a rule, and a line says so.

    Raises:
        DataError: a label cannot be read.
    """
    rule = recipe.loss.class_balance
    if rule == "none" or recipe.loss.class_weights:
        return recipe, given_weights(recipe)
    counts = count_classes(train_set, recipe.data)
    weights = median_frequency(counts) if rule == "median_frequency" else inverse_log(counts)
    names = [f"{name} {weight:g}" for name, weight in zip(train_set.classes, weights, strict=True)]
    shown = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    text = f"class weights ({rule}, labels of {counts.read} of {len(train_set)} images): {shown}"
    return replace(recipe, loss=replace(recipe.loss, class_weights=weights)), [Note(text)]


def given_weights(recipe: Recipe) -> list[Note]:
    """A line where a recipe lists class weights, so that its loss.class_balance counts no labels."""
    rule = recipe.loss.class_balance
    if rule == "none" or not recipe.loss.class_weights:
        return []
    text = f"class weights: the recipe's own list (loss.class_weights), not counted anew for loss.class_balance = {toml_value(rule)}"
    return [Note(f"{text}; to count the labels: --set 'loss.class_weights=[]'")]


def median_frequency(counts: ClassCounts) -> tuple[float, ...]:
    """Median of the frequencies / the own one; frequency: the share of a class where it occurs (Eigen, Fergus, ICCV 2015).

    A class that was not seen gets the largest weight of the others.
    """
    frequencies = [pixels / max(1, around) for pixels, around in zip(counts.pixels, counts.around, strict=True)]
    median = statistics.median([frequency for frequency in frequencies if frequency] or [1.0])
    return _rounded([median / frequency if frequency else 0.0 for frequency in frequencies])


def inverse_log(counts: ClassCounts) -> tuple[float, ...]:
    """1 / log(1.02 + p) with p the share of all labelled pixels (ENet, Paszke et al. 2016): from 1.4 to 50.

    A class that was not seen gets the largest weight of the others.
    """
    total = max(1, sum(counts.pixels))
    return _rounded([1 / log(1.02 + pixels / total) if pixels else 0.0 for pixels in counts.pixels])


def _rounded(weights: Sequence[float]) -> tuple[float, ...]:
    """As a recipe may state them: it has no weight above FACTOR."""
    most = max(weights) or 1.0
    return tuple(float(f"{min(weight or most, FACTOR):.{_DIGITS}g}") for weight in weights)


# ----------------------------------------------------------------------------------------------------- counting
def count_classes(dataset: Dataset, data: Data) -> ClassCounts:
    """The counts of a data set's labels, of at most 2,000 of them, evenly spread; from the cache where they lie there.

    Args:
        data: the section that the data set was opened from.

    Raises:
        DataError: a label cannot be read, or holds what is no class.
    """
    chosen = spread(len(dataset), _MOST_READ)
    path = _cache_file(dataset, data, chosen)
    known = None if path is None else _read(path, len(dataset.classes))
    if known is not None:
        return known
    reading = read_all("labels", partial(_count, dataset), chosen)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            rows: list[Counts] = end.value
            break
    table = np.stack(rows)[:, : len(dataset.classes)]
    around = (table.sum(axis=1, keepdims=True) * (table > 0)).sum(axis=0)
    counts = ClassCounts(len(chosen), tuple(table.sum(axis=0).tolist()), tuple(around.tolist()))
    if path is not None:
        with contextlib.suppress(SystemFault):  # then they are counted again the next time
            write_text(path, json.dumps([_FORMAT, counts.read, counts.pixels, counts.around]) + "\n")
    return counts


def _count(dataset: Dataset, index: int) -> Counts:
    return histogram(published_label(dataset.open(index)), dataset, index)


def _cache_file(dataset: Dataset, data: Data, chosen: Sequence[int]) -> Path | None:
    """Where the counts of these labels lie; None where labels are drawn, not read."""
    files = [path for index in chosen for path in dataset.files(index)[-1:]] + list(dataset.common_files)
    if not files:
        return None
    states = [[str(path.resolve()), *_state(path)] for path in files]
    identity = json.dumps([_FORMAT, toml_value(data), dataset.classes, list(chosen), states])
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_folder() / "class_counts" / f"{name}.json"


def _state(path: Path) -> tuple[int, int]:
    """Size and time in nanoseconds; what is wrong with a file is said when it is read."""
    try:
        state = os.stat(path)
    except OSError:
        return -1, 0
    return state.st_size, state.st_mtime_ns


def _read(path: Path, classes: int) -> ClassCounts | None:
    """The counts of a cache file; None where there is none or it holds anything else."""
    try:
        version, read, pixels, around = json.loads(read_bytes(path).decode("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    lists = isinstance(pixels, list) and isinstance(around, list) and len(pixels) == len(around) == classes
    if version != _FORMAT or not lists or not all(type(n) is int and n >= 0 for n in (read, *pixels, *around)):
        return None
    return ClassCounts(read, tuple(pixels), tuple(around))
