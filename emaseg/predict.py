"""Predicting: a model for pictures, which pictures are meant, and a file or two for each.

Room: predict; never torchvision. Legend: H W image height and width, K classes.
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import io
import os
import sys
import unicodedata
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
from emaseg.data.files.signed import Identity, check_place, identities, signed
from emaseg.data.labels import label_set
from emaseg.data.sets.folder import count_endings, walk
from emaseg.errors import DataError, RecipeError, SystemFault
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
_MOST_OF_STDIN = 2**31  # bytes: more than any image that read_image accepts; /dev/zero has no end
# What goes wrong with the name of one result. Disks and permissions concern them all.
_OF_ONE_NAME = {
    getattr(errno, name) for name in ("ENAMETOOLONG", "EEXIST", "ENOTDIR", "EISDIR", "ELOOP", "EILSEQ", "EINVAL")
}


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
        from emaseg.checkpoint import load_network, read_network, recipe_inside

        file, state = Path(path), None
        check_kind(file)
        if recipe is None:
            text, state = read_network(file)
            recipe = recipe_inside(text, file)
        return cls(load_network(recipe, file, state), recipe, device)

    def predict(self, image: Path | str | UInt8 | Image.Image) -> Prediction:
        """The label map of one picture, by the recipe's inference protocol.

        Args:
            image: a file, a Pillow picture, or an array (H, W, 3) uint8 RGB.

        Raises:
            DataError: the file cannot be read as an image, or the array is of another kind.
        """
        pixels = _pixels(image)
        stats = self.recipe.backbone.pixel_stats
        labels = label_map(self.model, pixels, self.recipe.inference, stats, self.device)
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
    problem: why there is no image; its error is reported like that of an image that cannot be read.
    """

    source: Path | bytes
    name: str
    stem: str
    problem: DataError | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """What an argument led to: an image and its place below the argument, or why there is none."""

    source: Path | bytes
    name: str
    relative: Path
    problem: DataError | None = None


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

    Where some arguments or sub-folders lead to no image, that is the problem of an input of its own, and the other
    images are found as ever.

    Raises:
        RecipeError: an argument is the empty text, or stdin is a terminal.
        DataError: no image at all; says why the first argument leads to none.
    """
    found: dict[str, _Found] = {}
    results = None if out is None else _real(out)
    for text in inputs:
        if not text:
            raise RecipeError("IMAGE: an empty name was given", "is it a shell variable that is not set?")
        if text == "-" and "-" not in found:
            found["-"] = _standard_input()
        elif text != "-":
            for one in _files(text, results):
                key = (
                    f"problem of {one.name}" if one.problem or isinstance(one.source, bytes) else str(_real(one.source))
                )
                found.setdefault(key, one)
    good = [one for one in found.values() if one.problem is None]
    for one in found.values():
        if one.problem is not None and not good:
            raise one.problem
    if not good:
        raise DataError(f"{out}: no images here but the results of an earlier run", "name the images or their folder")
    stems = iter(_stems([one.relative for one in good]))
    return [ImageInput(one.source, one.name, "" if one.problem else next(stems), one.problem) for one in found.values()]


def unread_files(inputs: Sequence[str]) -> list[str]:
    """Of each argument that is a folder, the number and the endings of files that find_images leaves out, as sentences."""
    folders = [expanded(text) for text in inputs if text not in ("", "-") and expanded(text).is_dir()]
    counts = [(folder, count_endings(walk(folder, None), texts=False)) for folder in folders]
    return [f"{folder}: files that are not read: {text}" for folder, text in counts if text]


def _problem(name: str, message: str, hint: str) -> _Found:
    return _Found(b"", name, Path(), DataError(f"{name[:200]}: {message}", hint))


def _standard_input() -> _Found:
    """All bytes of stdin, up to the limit.

    Raises:
        RecipeError: somebody would have to type the image.
    """
    if sys.stdin.isatty():
        raise RecipeError("-: stdin is a terminal, no image", "send an image there: emaseg predict - < photo.jpg")
    parts: list[bytes] = []
    size = 0
    try:
        while part := sys.stdin.buffer.read(1 << 20):
            parts.append(part)
            size += len(part)
            if size > _MOST_OF_STDIN:
                return _problem("stdin", f"more than {_MOST_OF_STDIN:,} bytes, which no image has", "send one image")
    except OSError as error:
        return _problem("stdin", f"cannot be read ({error.strerror})", "send an image there: ... - < photo.jpg")
    return _Found(b"".join(parts), "stdin", Path("stdin"))


def _files(text: str, results: Path | None) -> list[_Found]:
    """The images of one argument and the problems on the way; of the folder of `results` there may be none."""
    try:
        return list(_search(text, results))
    except (OSError, ValueError) as error:  # a name that the system does not take
        reason = error.strerror if isinstance(error, OSError) else error
        return [_problem(text, f"cannot be looked up ({reason})", "check the path")]


def _search(text: str, results: Path | None) -> Iterator[_Found]:
    endings = f"images end in {' '.join(EXTENSIONS)}"
    path = expanded(text)
    if path.is_dir():
        files, problems = _below(path, results)
        if not files and not problems and not _is_results(path, results):
            apart = results is not None and results.is_relative_to(_real(path)) and results.is_dir()
            where = f" outside of {results}, where results go" if apart else ""
            yield _problem(text, f"no images in this folder{where}", endings)
        yield from (_Found(file, str(file), file.relative_to(path)) for file in files)
        yield from problems
    elif os.path.lexists(path):  # a link to nothing or to itself, too: reading it says what is wrong
        yield _Found(path, str(path), Path(path.name))
    elif not glob.has_magic(text):
        yield _problem(text, "no such file or folder", "check the path")
    else:
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        images = [match for match in matches if match.suffix.lower() in EXTENSIONS and not match.is_dir()]
        if results is not None and not _real(_fixed_part(path)).is_relative_to(results):
            images = [image for image in images if not _real(image.parent).is_relative_to(results)]
        if not images:
            yield _problem(text, "no image matches this pattern", endings)
        yield from (_Found(image, str(image), Path(image.name)) for image in images)


def _real(path: Path) -> Path:
    """The path without links; unlike Path.resolve it does not fail where a link leads to itself."""
    return Path(os.path.realpath(path))


def _fixed_part(pattern: Path) -> Path:
    """The folder in which the search for a pattern begins."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _is_results(folder: Path, results: Path | None) -> bool:
    return results is not None and _real(folder) == results


def _below(folder: Path, results: Path | None) -> tuple[list[Path], list[_Found]]:
    """The images in a folder and its sub-folders, and the sub-folders that cannot be read."""
    problems: list[_Found] = []

    def note(error: OSError) -> None:
        problems.append(_problem(str(error.filename), f"cannot be read ({error.strerror})", "check the permissions"))

    images: list[Path] = []
    shared = _is_results(folder, results)
    for root, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not _is_results(Path(root, name), results)]
        here = [Path(root, name) for name in names if not name.startswith(".")]
        here = [file for file in here if file.suffix.lower() in EXTENSIONS]
        stems = {stem for file in here for stem in (file.stem, file.name)}
        images += [file for file in here if not _is_output(file.name, None if shared else stems)]
    return sorted(images), problems


def _is_output(name: str, stems: Collection[str] | None) -> bool:
    """Whether a file is called as a result of one of `stems`, or with None of any image."""
    return any(name.endswith(end) and (stems is None or name.removesuffix(end) in stems) for end in _RESULTS)


def _stems(relatives: Sequence[Path]) -> list[str]:
    """An output stem for each file, no two alike; capitals, and the ways to write an accent, count as equal: some
    file systems think so."""
    plain = [relative.with_suffix("").as_posix() for relative in relatives]
    times = Counter(map(_folded, plain))
    taken: set[str] = set()
    stems = []
    for relative, short in zip(relatives, plain, strict=True):
        base = stem = short if times[_folded(short)] == 1 else relative.as_posix()
        number = 2
        while _folded(stem) in taken:
            stem, number = f"{base}-{number}", number + 1
        taken.add(_folded(stem))
        stems.append(stem)
    return stems


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


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

    An image that cannot be read is reported and skipped. Files appear whole or not at all. Only earlier results, as
    they were written, and empty files are replaced: where anything else is in the place of a result, or an input, that
    is the image's error.

    Args:
        inputs: from find_images.
        save: which of the two files; the mask is a palette PNG that holds the class ids.
        resume: skip inputs whose files are all there; their shares come from the mask.

    Yields:
        One ImageDone for each input, in order.

    Raises:
        SystemFault: a file cannot be written (disk full, no permission).
    """
    taken = identities(item.source for item in inputs)
    for item in inputs:
        if item.problem is not None:
            yield ImageDone(item.name, error=item.problem.message, hint=item.problem.hint)
            continue
        mask = out / f"{item.stem}_mask.png" if "mask" in save else None
        picture = out / f"{item.stem}_overlay.png" if "overlay" in save else None
        done = ImageDone(item.name, mask, picture)
        earlier = _already(done, predictor.classes) if resume else None
        try:
            yield earlier or _predict_file(predictor, item, done, taken)
        except DataError as error:
            yield ImageDone(item.name, error=error.message, hint=error.hint)
        except SystemFault as fault:
            cause = fault.__cause__
            if not (isinstance(cause, OSError) and cause.errno in _OF_ONE_NAME and out.is_dir()):
                raise
            yield ImageDone(item.name, error=fault.message, hint="rename it, or choose another folder with --out")


def _predict_file(predictor: Predictor, item: ImageInput, done: ImageDone, taken: Collection[Identity]) -> ImageDone:
    """
    Raises:
        DataError: the image cannot be read, or what is in the place of a result must stay.
        SystemFault: a file cannot be written.
    """
    for path in (done.mask, done.overlay):
        if path is not None:
            check_place(path, taken)  # before the work
    try:
        image = read_image(item.source, item.name)
    except SystemFault as fault:  # too large for the memory: others are smaller
        raise DataError(fault.message, fault.hint) from fault
    prediction = predictor.predict(image)
    if done.overlay is not None:
        # Level 1: a quarter of the time for a tenth more bytes, and the overlay is for looking at.
        picture = overlay(image, prediction.labels, predictor.palette, predictor.classes)
        _save(_png(picture, level=1), done.overlay, taken)
    if done.mask is not None:
        _save(mask_png(prediction.labels, predictor.palette), done.mask, taken)
    return dataclasses.replace(done, width=prediction.width, height=prediction.height, shares=prediction.shares)


def mask_png(labels: UInt8, palette: UInt8) -> bytes:
    """The file of a mask: class ids (H, W) as a palette PNG, with the mark by which `predict_files` knows its own."""
    return _png(palette_png(labels, palette), level=6)


def _png(picture: Image.Image, *, level: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=level)
    return signed(file.getvalue())


def _save(content: bytes, path: Path, taken: Collection[Identity]) -> None:
    check_place(path, taken)  # the network took its time
    with atomic(path) as file:
        file.write(content)


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
