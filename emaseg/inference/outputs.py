"""The files that `predict` writes for an image, as bytes: masks for programs, pictures for people, numbers for both.

Room: inference. Legend: H W image height and width, K classes.

    mask           palette PNG: the values are the class ids, 255 = ignore; viewers show the colours
    overlay        PNG: the photograph in class colours, with a legend
    color          RGB PNG in the data set's colours, as RGB masks hold them
    values         grey PNG, 8 or 16 bits, with the values of the data set's own masks (0 and 255, label ids, ...)
    probabilities  NumPy archive: "probabilities" (K, H, W) float16 and "classes" (K,) names; 2 K H W bytes. With top_k = k:
                   "probabilities" (k, H, W), the largest first, and "indices" (k, H, W) uint8, whose they are; 3 k H W bytes
    confidence     grey PNG: the probability of each pixel's most likely class, 0..255 for 0..1
    json           what `--json` prints for the image
    bases          PNG: what the bases attend to, of `--bases` (attention_maps.py)
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from io import BufferedRandom
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from emaseg.data.files.signed import sign_archive, signed, signed_json
from emaseg.data.sets.own_values import own_values
from emaseg.inference.prediction import Prediction
from emaseg.recipe import Data
from emaseg.recipe.data import FolderData
from emaseg.visual import IGNORE_COLOUR, palette_png

UInt8 = npt.NDArray[np.uint8]

Output = Literal["mask", "overlay", "color", "values", "probabilities", "confidence", "json", "bases"]

ENDINGS: dict[Output, str] = {
    "mask": "_mask.png",
    "overlay": "_overlay.png",
    "color": "_color.png",
    "values": "_values.png",
    "probabilities": "_probabilities.npz",
    "confidence": "_confidence.png",
    "json": "_result.json",
    "bases": "_bases.png",
}
DEFAULT: tuple[Output, ...] = ("mask", "overlay")
_SPARE = 256 - 1  # index of ignored pixels


def write_output(
    file: BufferedRandom, output: Output, prediction: Prediction, data: Data, report: Mapping[str, Any]
) -> None:
    """The content of one file, with the mark by which `predict` knows its own.

    Args:
        file: empty.
        prediction: with probabilities or confidence where they are to be written.
        data: the recipe's section, which says what its masks hold.
        report: the JSON line of the image.
    """
    if output == "probabilities":
        _write_probabilities(file, prediction)
    else:
        file.write(_ENCODERS[output](prediction, data, report))


def mask_png(labels: UInt8, palette: UInt8) -> bytes:
    """The file of a mask: class ids (H, W) as a palette PNG."""
    return _png(palette_png(labels, palette), level=6)


def _mask(prediction: Prediction, data: Data, report: Mapping[str, Any]) -> bytes:
    return mask_png(prediction.labels, prediction.palette)


def _overlay(prediction: Prediction, data: Data, report: Mapping[str, Any]) -> bytes:
    # Level 1: a quarter of the time for a tenth more bytes, and the overlay is for looking at.
    return _png(prediction.overlay(), level=1)


def _color(prediction: Prediction, data: Data, report: Mapping[str, Any]) -> bytes:
    declared = data.ignore_colours if isinstance(data, FolderData) else ()
    table = np.zeros((256, 3), np.uint8)
    table[: len(prediction.palette)] = prediction.palette
    table[_SPARE] = declared[0] if declared else IGNORE_COLOUR
    return _png(Image.fromarray(table[prediction.labels]), level=6)


def _values(prediction: Prediction, data: Data, report: Mapping[str, Any]) -> bytes:
    own = own_values(data)
    table = np.zeros(256, np.uint16 if own.wide else np.uint8)
    table[: len(own.classes)] = own.classes
    table[_SPARE] = own.ignore
    return _png(Image.fromarray(table[prediction.labels]), level=6)


def _write_probabilities(file: BufferedRandom, prediction: Prediction) -> None:
    assert prediction.probabilities is not None  # predict_files asks for what it writes
    names = np.array(prediction.classes)
    if prediction.indices is None:
        np.savez(file, probabilities=prediction.probabilities, classes=names)
    else:
        np.savez(file, probabilities=prediction.probabilities, indices=prediction.indices, classes=names)
    sign_archive(file)


def _confidence(prediction: Prediction, data: Data, report: Mapping[str, Any]) -> bytes:
    assert prediction.confidence is not None
    return _png(Image.fromarray(np.rint(255 * prediction.confidence).astype(np.uint8)), level=6)


def _json(prediction: Prediction, data: Data, report: Mapping[str, Any]) -> bytes:
    return signed_json(json.dumps(report, allow_nan=False, indent=2).encode())


def _bases(prediction: Prediction, data: Data, report: Mapping[str, Any]) -> bytes:
    assert prediction.bases is not None
    return _png(prediction.bases, level=6)


_ENCODERS: dict[Output, Callable[[Prediction, Data, Mapping[str, Any]], bytes]] = {
    "mask": _mask,
    "overlay": _overlay,
    "color": _color,
    "values": _values,
    "confidence": _confidence,
    "json": _json,
    "bases": _bases,
}


def _png(picture: Image.Image, *, level: int) -> bytes:
    """A PNG with our mark. level: of compression, 1..9."""
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=level)
    return signed(file.getbuffer())
