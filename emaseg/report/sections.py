"""The parts of a run's page that an evaluation fills: headline, classes, confusion, borders, confidence, examples.

Room: report. Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.evaluation.evaluate import Comparison
from emaseg.metrics import Details, Example, Scores, Tally
from emaseg.metrics.calibration import BINS
from emaseg.report.confusion import largest_errors, matrix
from emaseg.report.page import bar, facts, heading, percent, picture, swatch, table, text
from emaseg.visual import palette_png

UInt8 = npt.NDArray[np.uint8]

STATUS = {
    "ok": "",
    "absent": "not in this set",
    "never_predicted": "never predicted",
    "only_predicted": "predicted, but not in this set",
    "never_right": "predicted, but never where it is",
}
_EDGE = 1  # which radius the table of classes shows: 3 pixels
_RIGHT, _WRONG, _IGNORED = (222, 226, 230), (209, 73, 91), (160, 165, 172)


@dataclass(frozen=True, slots=True)
class Result:
    """One evaluation, as a page shows it. palette: (K, 3) RGB of the classes. split: the one the images belong to."""

    scores: Scores
    details: Details
    tally: Tally
    classes: Sequence[str]
    palette: UInt8
    comparison: Comparison
    protocol: str
    remarks: Sequence[tuple[str, str]] = ()
    split: str = ""


def headline(result: Result) -> str:
    """The numbers that people look for first, the published one beside the measured one."""
    scores, details, comparison = result.scores, result.details, result.comparison
    measured = "of the classes, in percent"
    if (interval := details.interval) is not None:
        span = f"{percent(interval.low)} to {percent(interval.high)}"
        measured = f"{100 * interval.level:g} % interval over the images: {span}"
    split = f"of the split {text(result.split)}, " if result.split else ""
    cards = [("mIoU", percent(scores.miou), measured, True)]
    if comparison.miou is not None:
        away = 100 * ((scores.miou or 0.0) - comparison.miou)
        cards.append(("published mIoU", percent(comparison.miou), f"same protocol; measured {away:+.2f}", False))
    cards += [
        ("pixel accuracy", percent(scores.pixel_accuracy), "of the labelled pixels", False),
        ("mean accuracy", percent(scores.mean_accuracy), "of the labelled classes", False),
        (
            f"boundary IoU, {details.boundary[_EDGE].pixels} px",
            percent(details.boundary[_EDGE].boundary_miou),
            "of the borders alone",
            False,
        ),
        ("images", f"{scores.images:,}", f"{split}{len(result.classes)} classes", False),
    ]
    boxes = "".join(
        f'<div class="card"><span class="small soft">{name}</span><b{" class=" + chr(34) + "main" + chr(34) if main else ""}>'
        f'{value}</b><span class="small soft">{remark}</span></div>'
        for name, value, remark, main in cards
    )
    missing = f"; no published score to compare with ({text(comparison.reason)})" if comparison.reason else ""
    return f'<div class="cards">{boxes}</div><p class="soft small">Protocol: {text(result.protocol)}{missing}.</p>'


def class_table(result: Result) -> str:
    """A row a class, with its IoU and its share of the pixels as bars."""
    details, edge = result.details, result.details.boundary[_EDGE]
    labelled = sum(own.labelled for own in details.per_class) or 1
    most = max((own.labelled for own in details.per_class), default=1) or 1
    rows = []
    for k, score in enumerate(result.scores.per_class):
        own, mark = details.per_class[k], STATUS[score.status]
        rows.append(
            (
                f"{swatch(result.palette[k])}{text(score.name)}"
                + (f' <span class="mark">{mark}</span>' if mark else ""),
                f"{percent(score.iou)}",
                bar(score.iou),
                *map(percent, (own.recall, own.precision, own.dice, edge.boundary_iou[k])),
                percent(own.labelled / labelled),
                bar(own.labelled / most, "second"),
                percent(own.predicted / labelled),
            )
        )
    names = (
        "class",
        "IoU",
        "",
        "recall",
        "precision",
        "Dice",
        f"edge {edge.pixels} px",
        "% of labels",
        "",
        "% predicted",
    )
    explained = (
        "In percent. Recall is the accuracy of a class; edge: Boundary IoU. The last three columns are the class "
        "histogram: the share of all labelled pixels, and what is predicted there; the grey bar is relative to the "
        "largest class."
    )
    return heading("Classes", explained) + table(names, rows, numbers=(1, 3, 4, 5, 6, 7, 9))


def confusion_section(result: Result) -> str:
    counts, classes = result.tally.confusion.counts, result.classes
    explained = (
        "A row is a labelled class, a column what its pixels are taken for, in percent of the row; the class with most "
        "labelled pixels comes first. Green is right, red is wrong; the stronger the colour, the more."
    )
    parts = f"{matrix(counts, classes)}<div>{largest_errors(counts, classes)}</div>"
    return f'{heading("Which class is taken for which", explained)}<div class="pair">{parts}</div>'


def more_scores(result: Result) -> str:
    """What is worth a line, and the bins of the calibration."""
    details = result.details
    radii = [str(row.pixels) for row in details.boundary]
    pairs = [
        ("mIoU of labelled classes", f"{percent(details.miou_labelled)} (the other convention in circulation)"),
        ("frequency-weighted IoU", percent(details.frequency_weighted_iou)),
        ("mean Dice (F1)", percent(details.mean_dice)),
        ("mean precision", percent(details.mean_precision)),
        (
            f"boundary IoU, {'/'.join(radii)} px",
            " / ".join(percent(row.boundary_miou) for row in details.boundary),
        ),
        (f"trimap mIoU, {'/'.join(radii)} px", " / ".join(percent(row.trimap_miou) for row in details.boundary)),
        *((text(label), text(value)) for label, value in result.remarks),
    ]
    found = heading("More scores") + facts(pairs)
    if (calibration := details.calibration) is None:
        return found
    rows = [
        (f"{i / BINS:.2f} to {(i + 1) / BINS:.2f}", f"{n:,}", percent(confidence), percent(right), bar(right))
        for i, (n, right, confidence) in enumerate(calibration.bins)
        if n
    ]
    explained = (
        f"Expected calibration error {percent(calibration.error)}: how far confidence and correctness are apart."
    )
    return (
        found
        + heading("Is it as often right as it is sure?", explained)
        + table(("confidence", "pixels", "mean confidence", "right", ""), rows, numbers=(1, 2, 3))
    )


def examples_section(result: Result) -> str:
    """The worst and the best images: image, truth, prediction, errors."""
    examples = result.tally.examples
    worst = examples.worst
    best = [one for one in examples.best if one.index not in {other.index for other in worst}]
    if not worst:
        return ""
    colours = "".join(
        f"<span>{swatch(result.palette[k])}{text(result.classes[k])}</span>" for k in _shown(result, [*worst, *best])
    )
    legend = (
        f'<div class="legend">{colours}<span>{swatch(_WRONG)}wrong</span><span>{swatch(_IGNORED)}ignored</span></div>'
    )
    found = heading("Worst images", "By the mIoU of the image's own classes.") + legend
    found += "".join(_example(one, result.palette) for one in worst)
    return found + (heading("Best images") + "".join(_example(one, result.palette) for one in best) if best else "")


def _example(one: Example, palette: UInt8) -> str:
    labelled = one.label < len(palette)
    wrong = labelled & (one.label != one.prediction)
    errors = np.full((*one.label.shape, 3), _RIGHT, np.uint8)
    errors[wrong], errors[~labelled] = _WRONG, _IGNORED
    share = f"{100 * wrong.sum() / labelled.sum():.1f} % wrong" if labelled.any() else "nothing labelled"
    cells = (
        ("image", Image.fromarray(one.image), True),
        ("truth", _map(np.where(labelled, one.label, 255).astype(np.uint8), palette), False),
        ("prediction", _map(one.prediction, palette), False),
        (f"errors: {share}", Image.fromarray(errors).quantize(4), False),
    )
    figures = "".join(
        f"<figure>{picture(image, name, photograph=photo)}<figcaption>{name}</figcaption></figure>"
        for name, image, photo in cells
    )
    path = text(one.name).replace("/", "/<wbr/>")  # where a narrow page may break it
    return f'<p class="small">{path}: mIoU {percent(one.miou)}</p><div class="example">{figures}</div>'


def _map(labels: UInt8, palette: UInt8) -> Image.Image:
    shown = np.zeros((256, 3), np.uint8)
    shown[: len(palette)] = palette
    shown[255] = _IGNORED
    return palette_png(labels, shown)


def _shown(result: Result, examples: Sequence[Example]) -> list[int]:
    """The classes that occur in the pictures."""
    there = np.zeros(256, bool)
    for one in examples:
        there[np.unique(one.label)] = there[np.unique(one.prediction)] = True
    return [k for k in range(len(result.classes)) if there[k]]
