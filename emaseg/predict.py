"""Predicting: a model for pictures, which pictures are meant, and a file or two for each.

Room: predict; imports inference, visual, files, data.images, data.labels and weights.kind; never torchvision.
Legend: H W image height and width, K classes.
"""

from __future__ import annotations

import dataclasses
import glob
import io
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import nn

from emaseg.data.files.images import EXTENSIONS, read_image
from emaseg.data.labels import label_set
from emaseg.data.sets.folder import count_endings, walk
from emaseg.errors import DataError, RecipeError
from emaseg.files import atomic
from emaseg.inference import label_map
from emaseg.recipe import Recipe
from emaseg.resources import expanded
from emaseg.visual import overlay, palette_png
from emaseg.weights.kind import check_kind

UInt8 = npt.NDArray[np.uint8]
Output = Literal["mask", "overlay"]
Share = tuple[str, float]

JSON_SCHEMA = 1
_RESULTS = ("_mask.png", "_overlay.png")  # how the files end that predict_files writes


# ------------------------------------------------------------------------------------------------------ one image
@dataclass(frozen=True, slots=True)
class Prediction:
    """labels: (H, W) uint8 class ids. shares: (class name, share of the pixels in 0..1), the largest first."""

    labels: UInt8
    shares: tuple[Share, ...]
    width: int
    height: int


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
        from emaseg.checkpoint import load_weights, read_checkpoint
        from emaseg.models import build_model

        check_kind(Path(path))
        if recipe is None:
            recipe = read_checkpoint(Path(path)).recipe
        with torch.device("meta"):  # no random start values for what is loaded anyway
            model = build_model(recipe)
        load_weights(model, path)
        return cls(model, recipe, device)

    def predict(self, image: Path | str | UInt8 | Image.Image) -> Prediction:
        """The label map of one picture, by the recipe's inference protocol.

        Args:
            image: a file, a Pillow picture, or an array (H, W, 3) uint8 RGB.

        Raises:
            DataError: the file cannot be read as an image, or the array is of another kind.
        """
        pixels = _pixels(image)
        backbone = self.recipe.backbone
        labels = label_map(self.model, pixels, self.recipe.inference, backbone.mean, backbone.std, self.device)
        height, width = labels.shape
        return Prediction(labels, class_shares(labels, self.classes), width, height)


def class_shares(labels: UInt8, classes: Sequence[str]) -> tuple[Share, ...]:
    """(class name, share of all pixels) of the classes present in `labels`, the largest first."""
    counts = np.bincount(labels.reshape(-1), minlength=len(classes))[: len(classes)]
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    return tuple((classes[k], int(counts[k]) / labels.size) for k in order)


def _pixels(image: Path | str | UInt8 | Image.Image) -> UInt8:
    """(H, W, 3) uint8 RGB."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(
            f"an array of shape {image.shape} and type {image.dtype} is no image", "give (H, W, 3) uint8 in RGB order"
        )
    return image


def _from_pillow(picture: Image.Image) -> UInt8:
    """As read_image would give it from a file: upright, transparency on white, 16 bits scaled to 8."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGB", "L", "1", "CMYK", "YCbCr", "HSV", "LAB") and not picture.has_transparency_data:
        return np.array(picture.convert("RGB"))
    file = io.BytesIO()
    try:
        picture.save(file, format="PNG", compress_level=0)
    except OSError as error:
        raise DataError(f"a picture of mode {picture.mode} has no defined colours", "convert it to RGB") from error
    return read_image(file.getvalue(), "picture")


# ---------------------------------------------------------------------------------------------- which files
@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image to predict. source: its file, or its bytes (standard input). name: what messages call it.

    stem: where its outputs go below the output folder, without `_mask.png`; posix, e.g. `street/cat`.
    """

    source: Path | bytes
    name: str
    stem: str


def find_images(inputs: Sequence[str], out: Path | None = None) -> list[ImageInput]:
    """The images that the arguments mean: files, folders (searched recursively), patterns (`*.jpg`), `-` = stdin.

    Each argument's images are sorted; an image that is meant twice comes once. Outputs keep the structure below a
    given folder. Where two images would write to one stem, both use the file name instead (`cat.jpg`, `cat.png`).
    In folders, hidden files and an earlier run's own `<stem>_mask.png` and `<stem>_overlay.png` are left out.

    A search that meets `out` passes it by: it often lies among the images (`predict .` writes below it), and its
    masks and overlays are images, too, which every further run would label again. Where `out` itself is searched,
    because images and results share a folder or the shell made `predictions` of `*`, what ends as results do is left
    out. A file that is named is always taken.

    Args:
        out: the folder that results go to; links on the way make no difference. None: none.

    Raises:
        RecipeError: an argument is the empty text.
        DataError: no such path, or no image in a folder or for a pattern.
    """
    found: dict[str, tuple[Path | bytes, str, Path]] = {}
    results = None if out is None else out.resolve()
    for text in inputs:
        if not text:
            raise RecipeError("IMAGE: an empty name was given", "is it a shell variable that is not set?")
        if text == "-":
            found.setdefault("-", (sys.stdin.buffer.read(), "stdin", Path("stdin")))
            continue
        try:
            files = _files(text, results)
        except OSError as error:  # a name that the system does not take
            raise DataError(f"{text[:80]}: cannot be looked up ({error.strerror})", "check the path") from error
        for path, relative in files:
            found.setdefault(str(path.resolve()), (path, str(path), relative))
    if not found:
        raise DataError(f"{out}: no images here but the results of an earlier run", "name the images or their folder")
    stems = _stems([relative for _, _, relative in found.values()])
    return [ImageInput(source, name, stem) for (source, name, _), stem in zip(found.values(), stems, strict=True)]


def unread_files(inputs: Sequence[str]) -> list[str]:
    """Of each argument that is a folder, the number and the endings of files that find_images leaves out, as sentences."""
    folders = [expanded(text) for text in inputs if text not in ("", "-") and expanded(text).is_dir()]
    counts = [(folder, count_endings(walk(folder, None), texts=False)) for folder in folders]
    return [f"{folder}: files that are not read: {text}" for folder, text in counts if text]


def _files(text: str, results: Path | None) -> list[tuple[Path, Path]]:
    """(file, its place below the argument) of one argument; of the folder of `results` it may be none."""
    path = expanded(text)
    if path.is_dir():
        files = _below(path, results)
        if not files and not _is_results(path, results):
            apart = results is not None and results.is_relative_to(path.resolve()) and results.is_dir()
            where = f" outside of {results}, where results go" if apart else ""
            raise DataError(f"{text}: no images in this folder{where}", f"images end in {' '.join(EXTENSIONS)}")
        return [(file, file.relative_to(path)) for file in files]
    if path.exists():
        return [(path, Path(path.name))]
    if not glob.has_magic(text):
        raise DataError(f"{text}: no such file or folder", "check the path")
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    images = [match for match in matches if match.suffix.lower() in EXTENSIONS and match.is_file()]
    if results is not None and not _fixed_part(path).resolve().is_relative_to(results):
        images = [image for image in images if not image.parent.resolve().is_relative_to(results)]
    if not images:
        raise DataError(f"{text}: no image matches this pattern", f"images end in {' '.join(EXTENSIONS)}")
    return [(image, Path(image.name)) for image in images]


def _fixed_part(pattern: Path) -> Path:
    """The folder in which the search for a pattern begins."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _is_results(folder: Path, results: Path | None) -> bool:
    return results is not None and folder.resolve() == results


def _below(folder: Path, results: Path | None) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})", "check the permissions") from error

    images: list[Path] = []
    shared = _is_results(folder, results)
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not _is_results(Path(root, name), results)]
        here = [Path(root, name) for name in names if not name.startswith(".")]
        here = [file for file in here if file.suffix.lower() in EXTENSIONS]
        stems = {stem for file in here for stem in (file.stem, file.name)}
        images += [file for file in here if not _is_output(file.name, None if shared else stems)]
    return sorted(images)


def _is_output(name: str, stems: Collection[str] | None) -> bool:
    """Whether a file is called as a result of one of `stems`, or with None of any image."""
    return any(name.endswith(end) and (stems is None or name.removesuffix(end) in stems) for end in _RESULTS)


def _stems(relatives: Sequence[Path]) -> list[str]:
    """An output stem for each file, no two alike (capitals count as equal: some file systems think so)."""
    plain = [relative.with_suffix("").as_posix() for relative in relatives]
    times = Counter(stem.casefold() for stem in plain)
    taken: set[str] = set()
    stems = []
    for relative, short in zip(relatives, plain, strict=True):
        base = stem = short if times[short.casefold()] == 1 else relative.as_posix()
        number = 2
        while stem.casefold() in taken:
            stem, number = f"{base}-{number}", number + 1
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


# ---------------------------------------------------------------------------------------------------- many files
@dataclass(frozen=True, slots=True)
class ImageDone:
    """What became of one input. `error` is None when all went well; `skipped`: its outputs were there already."""

    image: str
    mask: Path | None = None
    overlay: Path | None = None
    width: int | None = None
    height: int | None = None
    shares: tuple[Share, ...] = ()
    error: str | None = None
    hint: str = ""
    skipped: bool = False

    def json(self) -> dict[str, Any]:
        """The line of `predict --json`."""
        return {
            "schema": JSON_SCHEMA,
            "image": self.image,
            "mask": None if self.mask is None else str(self.mask),
            "width": self.width,
            "height": self.height,
            "classes": [{"name": name, "share": share} for name, share in self.shares],
            "error": self.error,
        }


def predict_files(
    predictor: Predictor,
    inputs: Sequence[ImageInput],
    out: Path,
    save: Collection[Output] = ("mask", "overlay"),
    resume: bool = False,
) -> Iterator[ImageDone]:
    """Write `<stem>_mask.png` and `<stem>_overlay.png` below `out` for every input, one after the other.

    An image that cannot be read is reported and skipped. Files appear whole or not at all.

    Args:
        inputs: from find_images.
        save: which of the two files; the mask is a palette PNG that holds the class ids.
        resume: skip inputs whose files are all there; their shares come from the mask.

    Yields:
        One ImageDone for each input, in order.

    Raises:
        SystemFault: a file cannot be written (disk full, no permission).
    """
    for item in inputs:
        mask = out / f"{item.stem}_mask.png" if "mask" in save else None
        picture = out / f"{item.stem}_overlay.png" if "overlay" in save else None
        done = ImageDone(item.name, mask, picture)
        earlier = _already(done, predictor.classes) if resume else None
        yield earlier or _predict_file(predictor, item, done)


def _predict_file(predictor: Predictor, item: ImageInput, done: ImageDone) -> ImageDone:
    try:
        image = read_image(item.source, item.name)
        prediction = predictor.predict(image)
    except DataError as error:
        return ImageDone(item.name, error=error.message, hint=error.hint)
    if done.overlay is not None:
        # Level 1: a quarter of the time for a tenth more bytes, and the overlay is for looking at.
        _save(overlay(image, prediction.labels, predictor.palette, predictor.classes), done.overlay, level=1)
    if done.mask is not None:
        _save(palette_png(prediction.labels, predictor.palette), done.mask, level=6)
    return dataclasses.replace(done, width=prediction.width, height=prediction.height, shares=prediction.shares)


def _save(picture: Image.Image, path: Path, *, level: int) -> None:
    with atomic(path) as file:
        picture.save(file, format="PNG", compress_level=level)


def _already(done: ImageDone, classes: Sequence[str]) -> ImageDone | None:
    """The report of an earlier run's files, or None when one is missing or is no mask."""
    if not all(path.is_file() for path in (done.mask, done.overlay) if path is not None):
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
