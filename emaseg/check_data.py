"""Checking a whole data set before it is trained on: every file read once, all problems told, each with its remedy.

Room: check_data; above data and recipe. Legend: H W image height and width, K classes.

Training itself looks at a sample of the labels (data/checks.py) and stops at the first problem; here nothing stops but
a failing machine. An error is what would end a training; a warning is what would spoil its result.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emaseg.data.checks import CheckReport, Counts, binary_masks, hidden_binary, histogram, spread, summed
from emaseg.data.dataset import Dataset, LabelError, Phase, SizeError
from emaseg.data.doubts import label_doubts
from emaseg.data.files.bands import bands_of
from emaseg.data.pipeline.resize import limit_size
from emaseg.data.sets.banded import with_bands
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.doubts import file_doubts
from emaseg.data.sets.folder import usable
from emaseg.duplicates import fingerprint, look_alikes, same_files
from emaseg.errors import DataError
from emaseg.recipe import FolderData, Recipe
from emaseg.schedule import build_schedule
from emaseg.threads import Reading, read_all
from emaseg.visual import as_picture

Level = Literal["error", "warning"]
Size = tuple[int, int]

PHASES: tuple[Phase, ...] = ("train", "eval")
WORDS = {"train": "training", "eval": "evaluation", "both": "both"}
_SPREAD = 9  # pictures of a phase that are evenly spread
_RARE = 24  # classes that get a picture of their own, the rarest first
EXAMPLES = 20  # of each kind of finding that are kept; all are counted

KINDS: dict[str, str] = {
    "files": "missing files, or files without a partner",
    "image": "images that cannot be read",
    "mask": "masks that cannot be read",
    "values": "masks with values that are not a class",
    "colours": "colour masks, or colours that are not declared",
    "ignored": "masks without a labelled pixel",
    "size": "image and mask of different size",
    "binary": "binary masks, half of them ignored",
    "batch": "too few images for one batch",
    "unseen": "classes never seen",
    "duplicate": "images that are in training and evaluation",
    "alike": "evaluation images that look like training images",
    "small": "images much smaller than the crop",
    "left": "files that are not read",
    "palettes": "indexed masks whose palettes differ",
    "ways": "RGB masks among masks of class numbers",
    "bits": "masks of 1 bit among masks that hold 255",
    "mostly": "masks that are mostly ignored",
    "one": "one class that covers nearly everything",
    "range": "16-bit images that use little of their range, or of data.range",
    "clear": "TIFF images that are half transparent everywhere",
    "pages": "files of several pages",
    "turned": "images turned or mirrored within their size by EXIF",
}
_WARNINGS = {
    "unseen", "duplicate", "alike", "small", "left", "palettes", "ways", "bits", "mostly", "one", "range", "clear",
    "pages", "turned",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """Problems of one kind that have one remedy. kind: a key of KINDS. examples: messages of the first EXAMPLES."""

    kind: str
    phase: Phase | Literal["both"]
    count: int
    examples: tuple[str, ...]
    remedy: str

    @property
    def level(self) -> Level:
        return "warning" if self.kind in _WARNINGS else "error"


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """What the images of one phase hold.

    images: of the phase; chosen: of them, that were read. classes: K names. labels: None where none could be read.
    sizes: (H, W) of the images and how many have it, the most common first. pictures: numbers of samples that show the
    data set, some evenly spread and for each class the one with most of it. dataset: opens them.
    """

    phase: Phase
    images: int
    chosen: int
    classes: tuple[str, ...]
    labels: CheckReport | None
    sizes: tuple[tuple[Size, int], ...]
    pictures: tuple[int, ...]
    dataset: Dataset = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class DataReport:
    """All of it; findings: errors first."""

    recipe: str
    phases: tuple[PhaseReport, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether training would start: there may be warnings."""
        return all(finding.level == "warning" for finding in self.findings)


def check_data(recipe: Recipe, sample: int = 0) -> Generator[Reading, None, DataReport]:
    """Read the training and the evaluation images of a recipe, or `sample` images of each, evenly spread.

    Raises:
        RecipeError: a kind or split of data set that this version does not read.
        SystemFault: the machine gave up.
    """
    notes = _Notes()
    reports, opened = [], {}
    for phase in PHASES:
        dataset = _opened(recipe, phase, notes)
        if dataset is None:
            continue
        chosen = spread(len(dataset), sample) if sample else list(range(len(dataset)))
        looks = yield from read_all(WORDS[phase], partial(_look, dataset), chosen)
        reports.append(_summary(dataset, chosen, looks, phase, notes))
        labels = reports[-1].labels
        doubts = label_doubts(dataset.classes, labels.class_pixels, labels.ignored_share) if labels else []
        for doubt in (*doubts, *file_doubts(dataset, chosen)):
            notes.add(doubt.kind, phase, DataError(doubt.message, doubt.hint))
        if phase == "train":
            _train_only(recipe, dataset, chosen, looks, notes)
        opened[phase] = _Opened(dataset, chosen, looks)
    if len(opened) == len(PHASES):
        _duplicates(opened["train"], opened["eval"], notes)
    return DataReport(recipe.name, tuple(reports), notes.findings())


def report_json(report: DataReport) -> dict[str, Any]:
    """The report as plain values; shares are fractions in 0..1."""
    return {
        "recipe": report.recipe,
        "ok": report.ok,
        "parts": {one.phase: _phase_json(one) for one in report.phases},
        "findings": [
            {
                "level": finding.level,
                "kind": finding.kind,
                "part": finding.phase,
                "count": finding.count,
                "examples": list(finding.examples),
                "remedy": finding.remedy,
            }
            for finding in report.findings
        ],
    }


def _phase_json(one: PhaseReport) -> dict[str, Any]:
    content: dict[str, Any] = {"images": one.images, "read": one.labels.checked if one.labels else 0}
    if one.labels is None:
        return content | {"ignored_share": None, "classes": []}
    labels, shares = one.labels, class_shares(one.labels)
    classes = [
        {"name": name, "share": share, "pixels": pixels, "images": images}
        for name, share, pixels, images in zip(
            one.classes, shares, labels.class_pixels, labels.class_images, strict=True
        )
    ]
    return content | {"ignored_share": labels.ignored_share, "classes": classes}


def class_shares(labels: CheckReport) -> tuple[float | None, ...]:
    """Of the labelled pixels, the share of each class; None where no pixel is labelled."""
    total = sum(labels.class_pixels)
    return tuple(pixels / total if total else None for pixels in labels.class_pixels)


# --------------------------------------------------------------------------------------------------- findings
@dataclass(slots=True)
class _Notes:
    """Problems as they are found, sorted by kind, phase and remedy."""

    groups: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    counts: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))

    def add(self, kind: str, phase: Phase | Literal["both"], error: DataError) -> None:
        place = (kind, phase, error.hint)
        self.counts[place] += 1
        messages = self.groups.setdefault(place, [])
        if len(messages) < EXAMPLES:
            messages.append(error.message)

    def findings(self) -> tuple[Finding, ...]:
        """Errors first, then in the order of KINDS."""
        order = {kind: (kind in _WARNINGS, place) for place, kind in enumerate(KINDS)}
        found = [
            Finding(kind, phase, self.counts[kind, phase, hint], tuple(messages), hint)  # type: ignore[arg-type]
            for (kind, phase, hint), messages in self.groups.items()
        ]
        return tuple(sorted(found, key=lambda finding: order[finding.kind]))


def _opened(recipe: Recipe, phase: Phase, notes: _Notes) -> Dataset | None:
    """The data set of one phase; without the images that lack a mask, where the rest can be had."""
    problems: list[DataError] = []
    try:
        if isinstance(recipe.data, FolderData):
            pairs, problems = usable(recipe.data, phase)
            dataset = with_bands(pairs, bands_of(recipe))
        else:
            dataset = build_dataset(recipe.data, phase, bands_of(recipe))
        if not len(dataset) and not problems:
            raise DataError("the data set is empty", "check data.root and the list files")
    except DataError as error:
        notes.add("files", phase, error)
        return None
    for problem in problems:
        notes.add("files", phase, problem)
    return dataset if len(dataset) else None


# ---------------------------------------------------------------------------------------------------- reading
@dataclass(frozen=True, slots=True)
class _Look:
    """One sample read. counts: (256,) pixels of its label. size: (H, W) of its image; signs: its fingerprint.

    None = could not be read (or, of signs, too flat).
    """

    counts: Counts | None
    size: Size | None
    signs: int | None
    problems: tuple[tuple[str, DataError], ...]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A phase's data set and what was read of it; chosen: the samples' numbers, in the order of the looks."""

    dataset: Dataset
    chosen: list[int]
    looks: list[_Look]

    def name(self, position: int) -> str:
        return self.dataset.name(self.chosen[position])

    def image_files(self) -> list[Path]:
        return [path for index in self.chosen for path in self.dataset.files(index)[:1]]


def _look(dataset: Dataset, index: int) -> _Look:
    """Read the label and the whole image of a sample, each whatever is wrong with the other."""
    problems: list[tuple[str, DataError]] = []
    try:
        sample = dataset.open(index)
    except DataError as error:  # of a packed file
        return _Look(None, None, None, (("image", error),))
    counts: Counts | None = None
    size: Size | None = None
    signs: int | None = None
    try:
        label = sample.label()
        counts = None if label is None else histogram(label, dataset, index)
    except LabelError as error:
        problems.append((error.kind, error))
    except DataError as error:
        problems.append(("mask", error))
    try:
        image = sample.image()
        size, signs = (image.shape[0], image.shape[1]), fingerprint(as_picture(image))
    except SizeError as error:
        problems.append(("size", error))
    except DataError as error:
        problems.append(("image", error))
    return _Look(counts, size, signs, tuple(problems))


# ------------------------------------------------------------------------------------------------ what was read
def _summary(dataset: Dataset, chosen: list[int], looks: list[_Look], phase: Phase, notes: _Notes) -> PhaseReport:
    for look in looks:
        for kind, error in look.problems:
            notes.add(kind, phase, error)
    rows = [look.counts for look in looks if look.counts is not None]
    labels = summed(dataset, np.stack(rows)) if rows else None
    if rows and hidden_binary(np.stack(rows), len(dataset.classes)):
        notes.add("binary", phase, binary_masks(dataset))
    elif labels is not None:
        for name in labels.never_seen:
            notes.add("unseen", phase, _unseen(name, phase))
    sizes = tuple(Counter(look.size for look in looks if look.size is not None).most_common())
    pictures = _pictures(chosen, looks, len(dataset.classes))
    return PhaseReport(phase, len(dataset), len(looks), dataset.classes, labels, sizes, pictures, dataset)


def _pictures(chosen: list[int], looks: list[_Look], classes: int) -> tuple[int, ...]:
    """Numbers of samples that show a data set: some evenly spread, and for each of the rarest classes one with most."""
    good = [at for at, look in enumerate(looks) if look.size is not None]
    shown = {good[place] for place in spread(len(good), _SPREAD)} if good else set()
    rows = [(at, looks[at].counts) for at in good]
    counts = (
        np.stack([row[:classes] if row is not None else np.zeros(classes, int) for _, row in rows]) if rows else None
    )
    if counts is not None:
        rare = [int(k) for k in np.argsort(counts.sum(axis=0), kind="stable") if counts[:, k].any()]
        shown |= {rows[int(counts[:, k].argmax())][0] for k in rare[:_RARE]}
    return tuple(chosen[at] for at in sorted(shown))


def _unseen(name: str, phase: Phase) -> DataError:
    if phase == "train":
        return DataError(
            f'"{name}" is in no training mask',
            "a class that is never seen is never predicted: add images that show it, or take it out of the classes",
        )
    return DataError(f'"{name}" is in no evaluation mask', "it has no IoU and does not count in the mIoU: add images")


def _train_only(recipe: Recipe, dataset: Dataset, chosen: list[int], looks: list[_Look], notes: _Notes) -> None:
    try:
        build_schedule(recipe, len(dataset))
    except DataError as error:
        notes.add("batch", "train", error)
    augment = recipe.augment
    largest = max(augment.scale_choices or augment.scale)
    sizes = [(index, look.size) for index, look in zip(chosen, looks, strict=True) if look.size is not None]
    half = [int(np.median([size[axis] for _, size in sizes])) if sizes else 0 for axis in (0, 1)]
    for index, size in sizes:
        height, width = limit_size(size, augment.resize_long_short, augment.keep_ratio, largest)
        covered = min(1.0, height / augment.crop[0]) * min(1.0, width / augment.crop[1])
        if covered < 0.25:
            median = [max(8, side // 8 * 8) for side in half]
            notes.add("small", "train", _too_small(dataset.name(index), size, recipe, covered, median))


def _too_small(name: str, size: Size, recipe: Recipe, covered: float, median: list[int]) -> DataError:
    crop = list(recipe.augment.crop)
    return DataError(
        f"{name}: {size[0]} x {size[1]} (height x width) fills at most {covered:.0%} of augment.crop = {crop}; "
        "the rest is padding",
        f"enlarge the images with augment.resize_long_short, or use a smaller crop (half of them are about {median})",
    )


# --------------------------------------------------------------------------------------------------- duplicates
_LEAVE_OUT = "the scores would be too good: leave these images out of one of the splits"
_HOLD_OUT = "frames of one scene belong into one split: see data.holdout_group, or look at them with --sheet"


def _duplicates(train: _Opened, evaluation: _Opened, notes: _Notes) -> None:
    """Images of one content in both phases, and images that look the same."""
    same = same_files(train.image_files(), evaluation.image_files())
    for one, other in same:
        text = "is in both splits" if one == other else f"is the same image as {other}"
        notes.add("duplicate", "both", DataError(f"{one} {text}", _LEAVE_OUT))
    known = {str(other) for _, other in same}
    looks = [[look.signs for look in opened.looks] for opened in (train, evaluation)]
    for ours, theirs in look_alikes(*looks):
        mine, yours = train.name(ours), evaluation.name(theirs)
        if yours not in known:
            notes.add("alike", "both", DataError(f"{yours} looks like the training image {mine}", _HOLD_OUT))
