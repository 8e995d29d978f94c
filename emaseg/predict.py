"""Predicting: a trained model for pictures, and the files that are written for each.

Room: predict; never torchvision. Legend: H W image height and width, K classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from emaseg.data.files.images import read_image
from emaseg.data.files.signed import Identity, check_place, identities
from emaseg.data.labels import label_set
from emaseg.errors import DataError, RecipeError, SystemFault, nearest
from emaseg.files import atomic
from emaseg.image_inputs import ImageInput
from emaseg.inference import label_and_confidence, label_and_probabilities, label_map, probe
from emaseg.outputs import DEFAULT, ENDINGS, Output, encoded
from emaseg.prediction import Picture, Prediction, Share, class_shares, pixels_of
from emaseg.recipe import Recipe
from emaseg.threads import read_ahead
from emaseg.weights.kind import check_kind

UInt8 = npt.NDArray[np.uint8]
JSON_SCHEMA = 1
# What goes wrong with the name of one result. Disks and permissions concern them all.
_OF_ONE_NAME = {
    getattr(errno, name) for name in ("ENAMETOOLONG", "EEXIST", "ENOTDIR", "EISDIR", "ELOOP", "EILSEQ", "EINVAL")
}


# ------------------------------------------------------------------------------------------------------ pictures
class Predictor:
    """A trained model together with its recipe: pictures in, label maps out.

    Attributes:
        classes: K names. palette: (K, 3) uint8 RGB, a colour for each class.
        model, recipe, device: as given; the model is in eval mode.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.recipe = recipe
        labels = label_set(recipe.data)
        self.classes: tuple[str, ...] = labels.classes
        self.palette: UInt8 = labels.palette

    @classmethod
    def from_weights(
        cls, path: str | Path, *, recipe: Recipe | None = None, device: torch.device | str = "cpu"
    ) -> Predictor:
        """A predictor from a weight file.

        Args:
            path: one of our checkpoints, or weights of sssegmentation, mmsegmentation or the EMANet authors.
            recipe: what the weights belong to; may be left out for our checkpoints, which carry theirs.

        Raises:
            WeightsError: missing, damaged, of another model, or foreign and without a recipe.
        """
        from emaseg.checkpoint import load_network, read_network, recipe_inside
        from emaseg.engine import prepare

        file, state = Path(path), None
        check_kind(file)
        if recipe is None:
            text, state = read_network(file)
            recipe = recipe_inside(text, file)
        network = load_network(recipe, file, state)
        return cls(prepare(network, recipe.inference.precision, device), recipe, device)

    @overload
    def predict(
        self,
        image: Picture,
        *,
        confidence: bool = ...,
        probabilities: bool = ...,
        classes: Collection[str] = ...,
        min_confidence: float = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        confidence: bool = ...,
        probabilities: bool = ...,
        classes: Collection[str] = ...,
        min_confidence: float = ...,
    ) -> list[Prediction]: ...

    def predict(
        self,
        image: Picture | list[Any] | tuple[Any, ...],
        *,
        confidence: bool = False,
        probabilities: bool = False,
        classes: Collection[str] = (),
        min_confidence: float = 0.0,
    ) -> Prediction | list[Prediction]:
        """The label map of one picture, by the recipe's inference protocol; of a list of pictures, a list.

        Args:
            image: a file; a Pillow picture; an array or a tensor (H, W), (H, W, 3) or (H, W, 4), a tensor also
                (3, H, W): uint8, or floats in 0..1, in RGB order. Or a list of them.
            confidence: also how sure the network is of each pixel.
            probabilities: also the probability of every class, 2 K H W bytes.
            classes: keep these only; all other pixels become 255. () keeps all.
            min_confidence: pixels of which the network is less sure become 255; 0..1.

        Raises:
            DataError: a file cannot be read as an image, or an array is of another kind.
            RecipeError: a name in `classes` is none of this network's, or `min_confidence` is outside of 0..1.
        """
        self.check_limits(classes, min_confidence)
        if not isinstance(image, list | tuple):
            return self._predict(pixels_of(image), confidence, probabilities, classes, min_confidence)
        pictures = read_ahead(pixels_of, image)  # the next file is read while the network is at work
        return [self._predict(p, confidence, probabilities, classes, min_confidence) for p in pictures]

    def check_limits(self, classes: Collection[str], min_confidence: float) -> None:
        """
        Raises:
            RecipeError: no such class, or no such probability.
        """
        for name in classes:
            if name not in self.classes:
                hint = nearest(name, self.classes) or f"this network knows {', '.join(self.classes)}"
                raise RecipeError(f"classes: this network knows no class called {name}", hint)
        if not 0 <= min_confidence <= 1:
            raise RecipeError(f"min_confidence: {min_confidence:g} is no probability", "give a number from 0 to 1")

    def _predict(
        self, pixels: UInt8, confidence: bool, probabilities: bool, classes: Collection[str], least: float
    ) -> Prediction:
        stats, protocol = self.recipe.backbone.pixel_stats, self.recipe.inference
        sure, every = None, None
        if probabilities:
            found = label_and_probabilities(self.model, pixels, protocol, stats, self.device, len(self.classes))
            labels, sure, every = found
        elif confidence or least:
            labels, sure = label_and_confidence(self.model, pixels, protocol, stats, self.device)
        else:
            labels = label_map(self.model, pixels, protocol, stats, self.device)
        height, width = labels.shape
        prediction = Prediction(
            labels,
            class_shares(labels, self.classes),
            width,
            height,
            confidence=sure,
            probabilities=every,
            classes=self.classes,
            palette=self.palette,
            image=pixels,
        )
        return prediction.limited(classes, least) if classes or least else prediction


def first_probe(inputs: Sequence[ImageInput], recipe: Recipe) -> torch.Tensor | None:
    """A part of the first image that can be read, for `emaseg.engine.prepare`; None where there is none."""
    for item in inputs:
        with contextlib.suppress(DataError, SystemFault):
            if item.problem is None:
                return probe(read_image(item.source, item.name), recipe.inference, recipe.backbone.pixel_stats)
    return None


# ---------------------------------------------------------------------------------------------------- many files
@dataclass(frozen=True, slots=True)
class ImageDone:
    """What became of one input. `error` is None when all went well; `skipped`: its outputs were there already.

    files: what was written, in the order of `outputs.ENDINGS`.
    """

    image: str
    files: Mapping[Output, Path] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    shares: tuple[Share, ...] = ()
    error: str | None = None
    hint: str = ""
    skipped: bool = False

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
) -> Iterator[ImageDone]:
    """Write `<stem>_mask.png` and what else is wanted below `out` for every input, one after the other.

    An image that cannot be read is reported and skipped. Files appear whole or not at all. Only earlier results, as
    they were written, and empty files are replaced: where anything else is in the place of a result, or an input, that
    is the image's error.

    Args:
        inputs: from find_images.
        save: which files.
        resume: skip inputs whose files are all there; their shares come from the mask.
        classes, min_confidence: as for Predictor.predict.

    Yields:
        One ImageDone for each input, in order.

    Raises:
        RecipeError: as Predictor.predict.
        SystemFault: a file cannot be written (disk full, no permission).
    """
    predictor.check_limits(classes, min_confidence)
    taken = identities(item.source for item in inputs)
    for item in inputs:
        if item.problem is not None:
            yield ImageDone(item.name, error=item.problem.message, hint=item.problem.hint)
            continue
        files = {output: out / f"{item.stem}{end}" for output, end in ENDINGS.items() if output in save}
        done = ImageDone(item.name, files)
        earlier = _already(done, predictor.classes) if resume else None
        try:
            yield earlier or _predict_file(predictor, item, done, taken, classes, min_confidence)
        except DataError as error:
            yield ImageDone(item.name, error=error.message, hint=error.hint)
        except SystemFault as fault:
            cause = fault.__cause__
            if not (isinstance(cause, OSError) and cause.errno in _OF_ONE_NAME and out.is_dir()):
                raise
            yield ImageDone(item.name, error=fault.message, hint="rename it, or choose another folder with --out")


def _predict_file(
    predictor: Predictor,
    item: ImageInput,
    done: ImageDone,
    taken: Collection[Identity],
    classes: Collection[str],
    min_confidence: float,
) -> ImageDone:
    """
    Raises:
        DataError: the image cannot be read, or what is in the place of a result must stay.
        SystemFault: a file cannot be written.
    """
    for path in done.files.values():
        check_place(path, taken)  # before the work
    try:
        image = read_image(item.source, item.name)
    except SystemFault as fault:  # too large for the memory: others are smaller
        raise DataError(fault.message, fault.hint) from fault
    prediction = predictor.predict(
        image,
        confidence="confidence" in done.files,
        probabilities="probabilities" in done.files,
        classes=classes,
        min_confidence=min_confidence,
    )
    done = dataclasses.replace(done, width=prediction.width, height=prediction.height, shares=prediction.shares)
    report = done.json()
    for output in reversed(list(done.files)):  # the mask last: it tells a resume that the others are there
        _save(encoded(output, prediction, predictor.recipe.data, report), done.files[output], taken)
    return done


def _save(content: bytes, path: Path, taken: Collection[Identity]) -> None:
    check_place(path, taken)  # the network took its time
    with atomic(path) as file:
        file.write(content)


def _already(done: ImageDone, classes: Sequence[str]) -> ImageDone | None:
    """The report of an earlier run's files, or None when one is missing or is no mask."""
    if not all(path.is_file() for path in done.files.values()):
        return None
    if done.mask is None:
        return dataclasses.replace(done, skipped=True)
    try:
        with Image.open(done.mask) as picture:
            labels = np.array(picture)
    except OSError:
        return None
    if labels.dtype != np.uint8 or labels.ndim != 2:
        return None
    height, width = labels.shape
    shares = class_shares(labels, classes)
    return dataclasses.replace(done, width=width, height=height, shares=shares, skipped=True)
