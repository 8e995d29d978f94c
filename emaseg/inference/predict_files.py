"""Predicting many files: every input becomes an ImageDone, and its results are written below a folder.

Room: inference; never torchvision. Legend: H W image height and width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emaseg.data.files.bands import bands_of, pixels_size, read_pixels
from emaseg.data.files.images import decode, image_header
from emaseg.data.files.signed import Identity, check_place, identities
from emaseg.errors import DataError, SystemFault, WeightsError
from emaseg.files import atomic
from emaseg.inference.image_inputs import ImageInput
from emaseg.inference.outputs import DEFAULT, ENDINGS, Output, write_output
from emaseg.inference.predict import Predictor
from emaseg.inference.prediction import Decoded, Prediction, Share, class_shares
from emaseg.inference.protocols import probe
from emaseg.recipe import Recipe
from emaseg.threads import read_ahead, write_behind

JSON_SCHEMA = 1
_LARGE = 16_000_000  # pixels: of such images one is held until it is written
_LARGE_ARRAY = 250_000_000  # bytes: of such probabilities, too
# What goes wrong with the name of one result. Disks and permissions concern them all.
_OF_ONE_NAME = {
    getattr(errno, name) for name in ("ENAMETOOLONG", "EEXIST", "ENOTDIR", "EISDIR", "ELOOP", "EILSEQ", "EINVAL")
}


@dataclass(frozen=True, slots=True)
class ImageDone:
    """What became of one input. `error` is None when all went well; `skipped`: its outputs were there already.

    files: what was written, in the order of `outputs.ENDINGS`. tiles: how the image was divided, where it did not fit into
    memory: another protocol than the recipe's.
    """

    image: str
    files: Mapping[Output, Path] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    shares: tuple[Share, ...] = ()
    error: str | None = None
    hint: str = ""
    skipped: bool = False
    tiles: str | None = None

    @property
    def mask(self) -> Path | None:
        return self.files.get("mask")

    def json(self) -> dict[str, Any]:
        """The line of `predict --json`."""
        return {
            "schema": JSON_SCHEMA,
            "image": self.image,
            "mask": None if self.mask is None else str(self.mask),
            "files": {output: str(path) for output, path in self.files.items()},
            "width": self.width,
            "height": self.height,
            "classes": [{"name": name, "share": share} for name, share in self.shares],
            "tiles": self.tiles,
            "error": self.error,
        }


def predict_files(
    predictor: Predictor,
    inputs: Sequence[ImageInput],
    out: Path,
    save: Collection[Output] = DEFAULT,
    resume: bool = False,
    *,
    classes: Collection[str] = (),
    min_confidence: float = 0.0,
    top_k: int | None = None,
    bases: int | Sequence[int] | None = None,
    overwrite: bool = False,
    kept: Collection[Identity] = (),
) -> Iterator[ImageDone]:
    """Write `<stem>_mask.png` and what else is wanted below `out` for every input.

    An image that cannot be read is reported and skipped. Files appear whole or not at all. Only earlier results, as
    they were written, and empty files are replaced: where anything else is in the place of a result, or an input, that
    is the image's error.

    Args:
        inputs: from find_images.
        save: which files.
        resume: skip inputs whose files are all there, recognised by their names and by the size of the mask; their
            shares come from the mask.
        classes, min_confidence, top_k: as for Predictor.predict.
        bases: also `<stem>_bases.png`, as Predictor.bases_picture draws it.
        overwrite: other files are replaced, too, but never an input, a link or a folder.
        kept: further files that no result may replace, such as the inputs of other processes.

    Yields:
        One ImageDone for each input, in order.

    Raises:
        RecipeError: as Predictor.predict.
        SystemFault: a file cannot be written (disk full, no permission).
    """
    classes = tuple(classes)  # read more than once
    predictor.check_limits(classes, min_confidence, top_k)
    predictor.check_scored(
        confidence="confidence" in save, probabilities="probabilities" in save, min_confidence=min_confidence
    )
    wanted = (*save, "bases") if bases is not None else tuple(save)
    taken = identities(item.source for item in inputs).union(kept)
    job = _Job(predictor, out, wanted, resume, classes, min_confidence, top_k, bases, taken, overwrite)
    # Three threads: one of read_ahead calls job.read for the next image, one of write_behind calls job.write for the last.
    # The thread that iterates over the result, usually the main one, calls job.predict for the image between them.
    predicted = map(job.predict, read_ahead(job.read, inputs))
    return write_behind(job.write, predicted, waits=job.is_large)


@dataclass(frozen=True, slots=True)
class _Job:
    """The three steps that an image takes. Each returns what the next one takes, or an ImageDone that it lets pass.

    taken: the inputs, which no result may replace.
    """

    predictor: Predictor
    out: Path
    save: Sequence[Output]
    resume: bool
    classes: Sequence[str]
    min_confidence: float
    top_k: int | None
    bases: int | Sequence[int] | None
    taken: Collection[Identity]
    overwrite: bool

    def read(self, item: ImageInput) -> ImageDone | tuple[ImageDone, Decoded]:
        """In the reading thread: whether there is anything to do, and the pixels."""
        if item.problem is not None:
            return ImageDone(item.name, error=item.problem.message, hint=item.problem.hint)
        files = {output: self.out / f"{item.stem}{end}" for output, end in ENDINGS.items() if output in self.save}
        done = ImageDone(item.name, files)
        earlier = _already(done, item, self.predictor) if self.resume else None
        if earlier is not None:
            return earlier
        try:
            for path in files.values():
                check_place(path, self.taken, self.overwrite)  # before the work
            return done, Decoded(read_pixels(item.source, item.name, self.predictor.bands))
        except (DataError, SystemFault) as error:  # too large for the memory: others are smaller
            return ImageDone(item.name, error=error.message, hint=error.hint)

    def predict(self, work: ImageDone | tuple[ImageDone, Decoded]) -> ImageDone | tuple[ImageDone, Prediction]:
        """In the caller's thread."""
        if isinstance(work, ImageDone):
            return work
        done, image = work
        try:
            drawn = None if self.bases is None else self.predictor.bases_picture(image, self.bases)
            prediction = self.predictor.predict(
                image,
                confidence="confidence" in done.files,
                probabilities="probabilities" in done.files,
                classes=self.classes,
                min_confidence=self.min_confidence,
                top_k=self.top_k,
            )
            prediction = dataclasses.replace(prediction, bases=drawn)
        except (DataError, WeightsError) as error:  # in 16 bits one image's values may become too large
            return ImageDone(done.image, error=f"{done.image}: {error.message}", hint=error.hint)
        height, width = prediction.labels.shape
        done = dataclasses.replace(done, width=width, height=height, shares=prediction.shares, tiles=prediction.tiles)
        return done, prediction

    def is_large(self, work: ImageDone | tuple[ImageDone, Prediction]) -> bool:
        """Whether two such images must not be held beside each other."""
        if isinstance(work, ImageDone):
            return False
        every = work[1].probabilities
        return work[1].labels.size > _LARGE or (every is not None and every.nbytes > _LARGE_ARRAY)

    def write(self, work: ImageDone | tuple[ImageDone, Prediction]) -> ImageDone:
        """In the writing thread.

        Raises:
            SystemFault: the disk is full or forbidden, which concerns all images.
        """
        if isinstance(work, ImageDone):
            return work
        done, prediction = work
        report = done.json()
        try:
            for output in reversed(list(done.files)):  # the mask last: it tells a resume that the others are there
                path = done.files[output]
                check_place(path, self.taken, self.overwrite)  # the network took its time
                with atomic(path) as file:
                    write_output(file, output, prediction, self.predictor.recipe.data, report)
        except DataError as error:
            return ImageDone(done.image, error=error.message, hint=error.hint)
        except SystemFault as fault:
            cause = fault.__cause__
            if not (isinstance(cause, OSError) and cause.errno in _OF_ONE_NAME and self.out.is_dir()):
                raise
            return ImageDone(done.image, error=fault.message, hint="rename it, or choose another folder with --out")
        return done


def _already(done: ImageDone, item: ImageInput, predictor: Predictor) -> ImageDone | None:
    """The report of an earlier run's files, or None where one is missing, or the mask is not of this image's size."""
    if not all(map(os.path.isfile, done.files.values())):
        return None
    if done.mask is None:
        return dataclasses.replace(done, skipped=True)
    try:
        labels = np.array(decode(done.mask))
        if labels.dtype != np.uint8 or labels.ndim != 2 or not _has_size(item, labels.shape, predictor):
            return None
    except (DataError, SystemFault):
        return None
    height, width = labels.shape
    shares = class_shares(labels, predictor.classes)
    return dataclasses.replace(done, width=width, height=height, shares=shares, skipped=True)


def _has_size(item: ImageInput, size: tuple[int, ...], predictor: Predictor) -> bool:
    """Whether an image has this size. Its header is asked first: some formats are decoded to know how they are turned.

    Raises:
        DataError, SystemFault: it cannot be read.
    """
    if predictor.bands is None and isinstance(item.source, Path):
        with contextlib.suppress(DataError):  # of numbers, for one
            if image_header(item.source).size == size:
                return True
    return pixels_size(item.source, item.name, predictor.bands) == size


def first_probe(inputs: Sequence[ImageInput], recipe: Recipe) -> torch.Tensor | None:
    """A part of the first image that can be read, for `emaseg.engine.prepare`; None where there is none."""
    for item in inputs:
        with contextlib.suppress(DataError, SystemFault):
            if item.problem is None:
                return probe(
                    read_pixels(item.source, item.name, bands_of(recipe)), recipe.inference, recipe.backbone.pixel_stats
                )
    return None
