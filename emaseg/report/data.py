"""A data set on one page, or on one picture: do the masks sit on the images?

Room: report. Legend: H W image height and width, K classes.

Each image stands beside itself with its labels, tinted as an overlay has them: outlines would hide the thin things that
they are drawn around. Ignored pixels keep their own colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from emaseg.check_data import KINDS, WORDS, DataReport, Finding, PhaseReport, class_shares
from emaseg.data.dataset import UInt8
from emaseg.errors import DataError
from emaseg.report.page import bar, document, heading, percent, picture, swatch, table, text
from emaseg.visual import as_picture, contact_sheet, tinted

_PAINTED = 1280  # longest side at which labels are painted, so that thin objects keep their outline
_SHOWN = 240  # width of an image, of which two make a picture
_BETWEEN = 4  # pixels between the two
_SIZES = 8  # sizes of images that are listed


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """One sample as people see it. picture: its image, and beside it the image tinted by its labels. name: of the image,
    from outside."""

    picture: Image.Image
    name: str
    phase: str


def thumbnails(report: DataReport) -> list[Thumbnail]:
    """The chosen samples of both phases; one that can no longer be read is left out."""
    found = []
    for one in report.phases:
        for index in one.pictures:
            sample = one.dataset.open(index)
            try:
                label, image = sample.label(), sample.image()
            except DataError:  # a finding of the report says it
                continue
            if label is None:  # of a split without labels, which is never checked
                continue
            found.append(Thumbnail(_both(as_picture(image), label, one.dataset.palette), sample.name, WORDS[one.phase]))
    return found


def _both(image: UInt8, label: UInt8, palette: UInt8) -> Image.Image:
    """An image and its labels, side by side."""
    height, width = image.shape[:2]
    scale = min(1.0, _PAINTED / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    photograph = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    labels = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    shown = (min(_SHOWN, size[0]), max(1, round(size[1] * min(1.0, _SHOWN / size[0]))))
    pair = Image.new("RGB", (2 * shown[0] + _BETWEEN, shown[1]), "white")
    for place, one in enumerate((photograph, tinted(np.asarray(photograph), labels, palette))):
        pair.paste(one.resize(shown, Image.Resampling.LANCZOS), (place * (shown[0] + _BETWEEN), 0))
    return pair


def data_sheet(report: DataReport, pictures: Sequence[Thumbnail]) -> Image.Image:
    """All pictures on one, each with its name, the classes and their colours below."""
    names, palette = _classes(report)
    named = [(one.picture, f"{one.phase}: {Path(one.name).name}") for one in pictures]
    return contact_sheet(named, palette, names, 2 * _SHOWN + _BETWEEN)


# ------------------------------------------------------------------------------------------------------ the page
def data_page(report: DataReport, pictures: Sequence[Thumbnail]) -> str:
    """HTML: what was counted, what is wrong and in which files, the samples in colours, classes and sizes."""
    body = [f"<h1>{text(report.recipe)}: its data</h1>", _cards(report), _findings(report.findings)]
    body += [_pictures(report, pictures), _histogram(report), _sizes(report.phases)]
    return document(f"{report.recipe}: its data", body)


def _cards(report: DataReport) -> str:
    errors = sum(finding.level == "error" for finding in report.findings)
    cards = [("errors", f"{errors}", "training would fail" if errors else "training would start")]
    cards.append(("warnings", f"{len(report.findings) - errors}", "kinds of things to look at"))
    for one in report.phases:
        ignored = f"{percent(one.labels.ignored_share)} % of the pixels ignored" if one.labels else "no mask was read"
        read = "" if one.chosen == one.images else f"{one.chosen:,} read; "
        cards.append((f"{WORDS[one.phase]} images", f"{one.images:,}", read + ignored))
    boxes = "".join(
        f'<div class="card"><span class="small soft">{name}</span><b>{value}</b>'
        f'<span class="small soft">{remark}</span></div>'
        for name, value, remark in cards
    )
    return f'<div class="cards">{boxes}</div>'


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return heading("Nothing to correct")
    parts = [heading("What is wrong, and what to do", "Each kind of problem with its first files.")]
    for one in findings:
        mark = f'<span class="mark">{one.level}</span>' if one.level == "error" else one.level
        files = "".join(f"<li>{text(example)}</li>" for example in one.examples)
        more = f"<li>and {one.count - len(one.examples):,} more</li>" if one.count > len(one.examples) else ""
        opened = ' open="open"' if one.level == "error" else ""
        parts.append(
            f"<details{opened}><summary>{mark}: {WORDS[one.phase]}: {text(KINDS[one.kind])} ({one.count:,})</summary>"
            f'<p>{text(one.remedy)}</p><ul class="small">{files}{more}</ul></details>'
        )
    return "\n".join(parts)


def _pictures(report: DataReport, pictures: Sequence[Thumbnail]) -> str:
    explained = (
        "Each image, and the same with its labels. Some are evenly spread, and of each of the rarest classes it is the image "
        "with most of it. Ignored pixels keep their colour."
    )
    names, palette = _classes(report)
    legend = "".join(f"<span>{swatch(colour)}{text(name)}</span>" for name, colour in zip(names, palette, strict=True))
    figures = "".join(
        f"<figure>{picture(one.picture, 'image with its labels', photograph=True)}"
        f"<figcaption>{one.phase}: {text(Path(one.name).name)}</figcaption></figure>"
        for one in pictures
    )
    return (
        heading("Do the masks sit on the images?", explained)
        + f'<div class="legend">{legend}</div><div class="pairs">{figures}</div>'
    )


def _histogram(report: DataReport) -> str:
    """A row a class: its share and in how many masks it is, for each phase."""
    counted = [(one, one.labels) for one in report.phases if one.labels is not None]
    if not counted:
        return ""
    headings, columns = ["class"], []
    for one, labels in counted:
        shares = class_shares(labels)
        most = max((share or 0.0 for share in shares), default=0.0) or 1.0
        headings += [f"{WORDS[one.phase]} %", "", "masks"]
        columns += [[percent(share) for share in shares], [bar((share or 0.0) / most) for share in shares]]
        columns.append([f"{count:,}" for count in labels.class_images])
    names, palette = _classes(report)
    first = [f"{swatch(colour)}{text(name)}" for name, colour in zip(names, palette, strict=True)]
    numbers = [i for i in range(1, len(headings)) if i % 3 != 2]
    explained = "The share of the labelled pixels; a bar is relative to the largest class."
    return heading("Classes", explained) + table(headings, list(zip(first, *columns, strict=True)), numbers)


def _sizes(phases: Sequence[PhaseReport]) -> str:
    rows = []
    for one in phases:
        rows += [(WORDS[one.phase], f"{w} x {h}", f"{count:,}") for (h, w), count in one.sizes[:_SIZES]]
        if len(one.sizes) > _SIZES:
            rest = sum(count for _, count in one.sizes[_SIZES:])
            rows.append((WORDS[one.phase], f"{len(one.sizes) - _SIZES} more sizes", f"{rest:,}"))
    return heading("Sizes of the images", "Width x height.") + table(("split", "size", "images"), rows, numbers=(2,))


def _classes(report: DataReport) -> tuple[tuple[str, ...], UInt8]:
    """Names and (K, 3) colours of the classes; none where no data set could be opened."""
    if not report.phases:
        return (), np.zeros((0, 3), np.uint8)
    first = report.phases[0]
    return first.classes, first.dataset.palette[: len(first.classes)]
