"""What a network says of one picture, and what counts as a picture.

Room: inference; never torchvision. Legend: H W image height and width, K classes.
"""

from __future__ import annotations

import dataclasses
import io
import numbers
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from emaseg.data.dataset import Pixels
from emaseg.data.files.bands import Bands, from_array, read_pixels, stored_values
from emaseg.data.files.images import read_image, translated
from emaseg.errors import DataError, RecipeError, nearest, need_type
from emaseg.recipe.data import IGNORE
from emaseg.visual import label_counts, overlay
from emaseg.words import printable

if TYPE_CHECKING:
    import torch

UInt8 = npt.NDArray[np.uint8]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Share = tuple[str, float]
# labels (H, W), confidence (H, W), probabilities (K, H, W) or of the k most likely classes (k, H, W), and which those are
Maps = tuple[UInt8, Float32 | None, Float16 | None, UInt8 | None]
Picture: TypeAlias = "Path | str | npt.NDArray[Any] | torch.Tensor | Image.Image | Decoded"

_SHOWN = 6  # classes that a printed prediction names
_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Pixels that are as the network's recipe declares them already: what data.files.bands.read_pixels gave."""

    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is made of an image beside its labels. top_k: of how many classes the probabilities are kept; None = of all."""

    confidence: bool
    probabilities: bool
    top_k: int | None = None

    def bytes_kept(self, size: tuple[int, int], classes: int) -> int:
        """What the probabilities of an image of (H, W) take."""
        each = 3 * self.top_k if self.top_k else 2 * classes
        return each * size[0] * size[1] if self.probabilities else 0

    def empty(self, size: tuple[int, int], classes: int) -> Maps:
        """Room for it."""
        sure = np.empty(size, np.float32) if self.confidence or self.probabilities else None
        every = np.empty((self.top_k or classes, *size), np.float16) if self.probabilities else None
        ranks = np.empty((self.top_k, *size), np.uint8) if self.probabilities and self.top_k else None
        return np.empty(size, np.uint8), sure, every, ranks


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prediction:
    """The label map of one picture.

    Attributes:
        labels: (H, W) uint8 class ids; 255 = no class was asked for or sure enough.
        shares: (class name, share of the pixels in 0..1), the largest first.
        width, height: of the picture, in pixels.
        confidence: (H, W) float32, the probability of each pixel's most likely class; None unless asked for.
        probabilities: (K, H, W) float16, of every class; None unless asked for. With `top_k` (k, H, W): those of each
            pixel's k most likely classes, the most likely first.
        indices: (k, H, W) uint8, the ids of those k classes; None without `top_k`.
        bases: what the bases attend to, drawn by `predict --bases`; else None.
        classes: K names. palette: (K, 3) uint8 RGB. image: the picture itself, (H, W, 3) uint8 RGB, or (H, W, C)
            on 0..255 where the recipe declares other channels.
        tiles: how it was divided, where it did not fit into memory whole: another protocol than the recipe's.
    """

    labels: UInt8
    shares: tuple[Share, ...]
    width: int
    height: int
    confidence: Float32 | None = None
    probabilities: Float16 | None = None
    indices: UInt8 | None = None
    classes: tuple[str, ...] = ()
    palette: UInt8 = field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    image: Pixels | None = None
    bases: Image.Image | None = None
    tiles: str | None = None

    def __repr__(self) -> str:
        """What a person wants to know, without the pixels: size, classes, and what else it holds."""
        found = [f"{printable(name)} {100 * share:.1f} %" for name, share in self.shares[:_SHOWN]]
        left = len(self.shares) - _SHOWN
        found += [f"{left} more {'class' if left == 1 else 'classes'}"] if left > 0 else []
        held = [name for name in ("confidence", "probabilities", "bases", "tiles") if getattr(self, name) is not None]
        return f"Prediction({', '.join([f'{self.width} x {self.height}', *found, *held])})"

    def overlay(self) -> Image.Image:
        """The picture in class colours, with a legend: width W, height H plus the legend."""
        if self.image is None:
            raise DataError("this prediction does not hold its picture", "use emaseg.Predictor to make it")
        return overlay(self.image, self.labels, self.palette, self.classes)

    def _repr_png_(self) -> bytes | None:
        """How notebooks show it when it is the last expression of a cell."""
        if self.image is None:
            return None
        file = io.BytesIO()
        self.overlay().save(file, format="PNG", compress_level=1)
        return file.getvalue()

    def limited(self, keep: Collection[str] = (), min_confidence: float = 0.0) -> Prediction:
        """The same with 255 (ignore) in place of every class that is not kept, and of what is less sure than that.

        Args:
            keep: names of classes; () keeps all.
            min_confidence: 0..1; needs `confidence`.

        Raises:
            RecipeError: there is no such class, no such probability, or no `confidence` to compare with.
        """
        keep = names_of(keep)
        check_limits(self.classes, keep, min_confidence)
        if min_confidence and self.confidence is None:
            raise RecipeError("min_confidence: this prediction holds no confidence", "predict with confidence=True")
        gone = np.zeros(self.labels.shape, bool)
        if keep:
            dropped = [k for k, name in enumerate(self.classes) if name not in keep]
            gone |= np.isin(self.labels, dropped)
        if min_confidence and self.confidence is not None:
            gone |= self.confidence < min_confidence
        labels = np.where(gone, np.uint8(IGNORE), self.labels)
        return dataclasses.replace(self, labels=labels, shares=class_shares(labels, self.classes))


def names_of(classes: Collection[str]) -> tuple[str, ...]:
    """The names of classes that a caller gave, to be read more than once.

    Raises:
        RecipeError: a text, whose letters would be the names.
    """
    if isinstance(classes, str):
        raise RecipeError(f'classes: "{classes}" is a text, not a list', f'give classes=["{classes}"]')
    return tuple(classes)


def check_limits(
    known: Sequence[str], classes: Collection[str], min_confidence: float = 0.0, top_k: int | None = None
) -> None:
    """What `Predictor.predict` is asked for. known: the network's K classes.

    Raises:
        RecipeError: no such class, no such probability, or not so many classes.
    """
    for name in classes:
        if name not in known:
            hint = nearest(name, known) or f"this network knows {', '.join(known)}"
            raise RecipeError(f"classes: this network knows no class called {name}", hint)
    need_type("min_confidence", min_confidence, numbers.Real, "a number from 0 to 1")
    if top_k is not None:
        need_type("top_k", top_k, numbers.Integral, f"a number from 1 to {len(known)}")
    if not 0 <= min_confidence <= 1:
        raise RecipeError(f"min_confidence: {min_confidence:g} is not a probability", "give a number from 0 to 1")
    if top_k is not None and not 1 <= top_k <= len(known):
        raise RecipeError(f"top_k: this network has {len(known)} classes, not {top_k}", f"give 1 to {len(known)}")


def class_shares(labels: UInt8, classes: Sequence[str]) -> tuple[Share, ...]:
    """(class name, share of all pixels) of the classes present in `labels`, the largest first."""
    counts = label_counts(labels)[: len(classes)]
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    return tuple((classes[k], int(counts[k]) / labels.size) for k in order)


# ------------------------------------------------------------------------------------------------------- pictures
def pixels_of(image: Picture, bands: Bands | None = None) -> Pixels:
    """(H, W, 3) uint8 RGB of a file, a Pillow picture, an array or a tensor.

    With `bands`, (H, W, C) as read_pixels gives it: arrays are (H, W, C), or (H, W) of one channel, and tensors may be
    (C, H, W); their values are those of the image files, or without data.range floats in 0..1, too.

    Arrays: (H, W) grey, (H, W, 1), (H, W, 3) or (H, W, 4), whose transparent pixels become white, as in a file. Tensors:
    the same, or channels first, as torch has pictures: (3, H, W), also with a batch of 1 before it; one whose last side is
    1, 3 or 4 counts as channels last. Values: uint8, or floats in 0..1.

    Raises:
        DataError: the file cannot be read as an image, or the array is of another kind.
    """
    if isinstance(image, Decoded):
        return image.pixels
    if isinstance(image, (str, Path)):
        return read_pixels(Path(image), bands=bands)
    if bands is not None:
        return _declared(image, bands)
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if _is_tensor(image):
        return _from_array(_channels_last(image.detach().cpu()), f"a tensor of shape {tuple(image.shape)}")
    if isinstance(image, np.ndarray):
        return _from_array(image, f"an array of shape {image.shape}")
    raise DataError(f"{type(image).__name__} is not an image", "give a path, a Pillow picture, an array or a tensor")


def _declared(image: Picture, bands: Bands) -> Pixels:
    """pixels_of what lies in memory."""
    if isinstance(image, Image.Image):
        return from_array(stored_values(_upright(image)), bands, f"a picture of mode {image.mode}")
    if _is_tensor(image):
        what, array = f"a tensor of shape {tuple(image.shape)}", _channels_last(image.detach().cpu(), (bands.channels,))
    elif isinstance(image, np.ndarray):
        what, array = f"an array of shape {image.shape}", image
    else:
        raise DataError(
            f"{type(image).__name__} is not an image", "give a path, a Pillow picture, an array or a tensor"
        )
    if array.dtype.kind == "f" and array.size and not bands.ranges and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    return from_array(array, bands, what)


def _is_tensor(image: object) -> TypeGuard[torch.Tensor]:
    """A tensor is one only where torch is imported, which takes seconds; this room does without."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _channels_last(tensor: torch.Tensor, channels: Collection[int] = _CHANNELS) -> npt.NDArray[Any]:
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim == 3 and tensor.shape[0] in channels and tensor.shape[2] not in channels:
        tensor = tensor.permute(1, 2, 0)
    values: npt.NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return values


def _from_array(array: npt.NDArray[Any], what: str) -> UInt8:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or array.size == 0:
        raise DataError(
            f"{what} and type {array.dtype} is not an image", "give (H, W), (H, W, 3) or (H, W, 4), RGB order"
        )
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # NaN, too
            raise DataError(
                f"{what} and type {array.dtype} is not an image: its values go from {low:g} to {high:g}",
                "floats must be in 0..1; for 0..255 convert it: image.astype(numpy.uint8)",
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"{what} and type {array.dtype} is not an image", "give uint8, or floats in 0..1")
    if array.shape[2] == 4:
        return _from_pillow(Image.fromarray(np.ascontiguousarray(array), "RGBA"))
    # A copy: the caller may read the next picture into the same memory.
    return np.array(array, order="C") if array.shape[2] == 3 else np.repeat(array, 3, axis=2)


def _upright(picture: Image.Image) -> Image.Image:
    """As a viewer shows it; a picture that was opened, but not yet read, is read now.

    Raises:
        DataError: its file is damaged.
    """
    with translated("picture"):
        return ImageOps.exif_transpose(picture)


def _from_pillow(picture: Image.Image) -> UInt8:
    """As read_image would give it from a file: upright, transparency on white, 16 bits scaled to 8."""
    if 0 in picture.size:
        raise DataError(
            f"a picture of {picture.width} x {picture.height} pixels is not an image", "give one with pixels"
        )
    picture = _upright(picture)
    if picture.mode in ("RGB", "L", "1", "CMYK", "YCbCr", "HSV", "LAB") and not picture.has_transparency_data:
        return np.array(picture.convert("RGB"))
    file = io.BytesIO()
    try:
        picture.save(file, format="PNG", compress_level=0)
    except OSError as error:
        raise DataError(f"a picture of mode {picture.mode} has no defined colours", "convert it to RGB") from error
    return read_image(file.getvalue(), "picture")
