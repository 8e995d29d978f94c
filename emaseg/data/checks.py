"""Looking at a data set before the first step: a sample of its labels, read as training will read them.

Room: data. Legend: H W image height and width, K classes.

A label that is out of range otherwise ends a run hours later, on a GPU as an assertion without file or value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from emaseg.data.dataset import Dataset, UInt8, published_label
from emaseg.data.doubts import Doubt, label_doubts
from emaseg.errors import DataError
from emaseg.recipe.data import IGNORE
from emaseg.words import Lines, lines_of

Counts = npt.NDArray[np.int64]

_SHOWN = 5  # problems listed in full


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the labels hold.

    images: size of the data set. checked: how many of its labels were read. class_pixels: K pixel counts.
    class_images: K counts of labels that hold the class. never_seen: names of the classes in no label; () unless all
    labels were read. ignored_share: ignored pixels / all pixels read, 0..1. doubts: what would spoil the result.
    """

    images: int
    checked: int
    class_pixels: tuple[int, ...]
    class_images: tuple[int, ...]
    never_seen: tuple[str, ...]
    ignored_share: float
    doubts: tuple[Doubt, ...] = ()


def check_dataset(dataset: Dataset, limit: int = 64) -> CheckReport:
    """Read the labels of `limit` samples, evenly spread (all, where there are no more), and count what they hold.

    Of image files only the header is read.

    Raises:
        DataError: the data set is empty; labels cannot be used (up to five are listed, with their number); or the
            masks never hold a class but the first, with ignored pixels: two-valued masks saved as 0 and 255.
    """
    total = len(dataset)
    if total == 0:
        raise DataError("the data set is empty", "check data.root and the list files")
    chosen = spread(total, limit)
    histograms = _histograms(dataset, chosen)
    if hidden_binary(histograms, len(dataset.classes)):
        _check_not_binary(dataset, set(range(total)) - set(chosen))
    report = summed(dataset, histograms)
    return replace(report, doubts=tuple(label_doubts(dataset.classes, report.class_pixels, report.ignored_share)))


def summed(dataset: Dataset, histograms: Counts) -> CheckReport:
    """The report of (samples, 256) pixel counts, at least one."""
    counts, classes = histograms.sum(axis=0), len(dataset.classes)
    pixels = counts[:classes]
    return CheckReport(
        images=len(dataset),
        checked=len(histograms),
        class_pixels=tuple(pixels.tolist()),
        class_images=tuple((histograms[:, :classes] > 0).sum(axis=0).tolist()),
        never_seen=tuple(name for name, count in zip(dataset.classes, pixels, strict=True) if not count)
        if len(histograms) == len(dataset)
        else (),
        ignored_share=float(counts[IGNORE] / counts.sum()),
    )


def spread(total: int, limit: int) -> list[int]:
    """At most `limit` different positions of 0..total-1, evenly spread, first and last among them."""
    if limit >= total:
        return list(range(total))
    return sorted({round(place * (total - 1) / max(limit - 1, 1)) for place in range(max(limit, 1))})


def _histograms(dataset: Dataset, chosen: Iterable[int]) -> Counts:
    """(samples, 256) pixel counts; all problems of the sample in one DataError."""
    rows: list[Counts] = []
    problems: list[DataError] = []
    for index in chosen:
        try:
            rows.append(_histogram(dataset, index))
        except DataError as error:
            problems.append(error)
    if problems:
        raise _summary(problems, len(rows) + len(problems), len(dataset))
    return np.stack(rows)


def _histogram(dataset: Dataset, index: int) -> Counts:
    """(256,) pixel counts of one label; of its image only the header is read."""
    sample = dataset.open(index)
    label = published_label(sample)
    sample.size()  # which is held against the label's
    return histogram(label, dataset, index)


def histogram(label: UInt8, dataset: Dataset, index: int) -> Counts:
    """(256,) pixel counts of the label of sample `index`.

    Raises:
        DataError: it holds a value that is neither a class nor ignored.
    """
    counts = np.bincount(label.ravel(), minlength=256)
    classes = len(dataset.classes)
    if counts[classes:IGNORE].any():
        value = classes + int(np.flatnonzero(counts[classes:IGNORE])[0])
        raise DataError(
            f"{dataset.name(index)}: its label holds {value} ({counts[value]:,} pixels), but there are {classes} classes",
            "train ids run from 0, and 255 is ignored",
        )
    return counts


def _summary(problems: list[DataError], checked: int, total: int) -> DataError:
    """One error for all of them; a single problem speaks for itself."""
    if len(problems) == 1 and checked == 1:
        return problems[0]
    lines = [f"{len(problems):,} of {checked:,} samples checked (of {total:,}) cannot be used:"]
    lines += [f"  {line}" for error in problems[:_SHOWN] for line in lines_of(error.message)]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN:,} more")
    hints = list(dict.fromkeys(error.hint for error in problems[:_SHOWN] if error.hint))  # each once, in order
    return DataError(Lines(*lines), "; ".join(hints))


def hidden_binary(histograms: Counts, classes: int) -> bool:
    """Whether labels hold the first class and ignored pixels only, as masks saved as 0 and 255 do."""
    counts = histograms.sum(axis=0)
    return bool(classes > 1 and counts[IGNORE] and counts[0] == counts[:classes].sum())


def binary_masks(dataset: Dataset) -> DataError:
    """The error of a data set whose every label looks like that."""
    return DataError(
        f'no label holds a class other than "{dataset.classes[0]}", and the rest of the pixels is ignored: '
        f"binary masks (0 and 255)? The first is that of {dataset.name(0)}",
        "save the second class as 1, or set data.values = [0, 255] and data.ignore = []",
    )


def _check_not_binary(dataset: Dataset, rest: set[int]) -> None:
    """The sample holds the first class and ignored pixels only: read on until another class turns up.

    Masks saved as 0 and 255 look like that where 255 is ignored, and would train a network of one class.

    Raises:
        DataError: no label of the data set holds another class.
    """
    for index in sorted(rest):
        counts = _histogram(dataset, index)
        if counts[1:IGNORE].any():
            return
    raise binary_masks(dataset)
