"""What an exported file says of itself: the recipe and all that another program needs to use it.

Room: export; imports recipe, data.labels, errors; never torch. Legend: H W image height and width, K classes.

The same texts stand in both formats: in an ONNX file as `metadata_props`, in a .pt2 as one JSON object, `emaseg.json`.
They are read without the format's library, so a file is refused before anything of it runs.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from emaseg.data.labels import label_set
from emaseg.errors import DataError, WeightsError
from emaseg.files import fault
from emaseg.recipe import Recipe, parse_recipe, recipe_to_toml
from emaseg.recipe.schema import Inference

FORMAT = "emaseg-export/1"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "weights": ".pt"}
INPUT, EXTRA_FILE = "image", "emaseg.json"
SMALLEST_SIDE = 33  # of a program for any size: below it HRNet's coarsest grid is one cell, which is another program

_METADATA_FIELD = 14  # of ONNX's ModelProto, a list of (key = 1, value = 2)
_LONGEST_TEXT = 1 << 24
_ALIKE = "use a file that `emaseg export` wrote"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What an exported file computes.

    recipe: of the network; its protocol is the one to follow. precision: fp32, fp16, bf16 or int8.
    include: "normalize": the input is uint8 RGB, else normalised float32; "argmax": the output is class ids (B, H, W)
    uint8 at the input's size, else logits (B, K, h, w) float32. shape: (H, W) of the input, None = any.
    align_corners: how logits are resized. versions: of what made the file.
    """

    recipe: Recipe
    precision: str
    include: tuple[str, ...]
    shape: tuple[int, int] | None
    align_corners: bool
    versions: Mapping[str, str]

    @property
    def output(self) -> str:
        """The name of what comes out."""
        return "labels" if "argmax" in self.include else "logits"

    def texts(self) -> dict[str, str]:
        """The file's metadata: every value a text, lists as JSON."""
        labels = label_set(self.recipe.data)
        return {
            "format": FORMAT,
            "name": self.recipe.name,
            "recipe": recipe_to_toml(self.recipe),
            "precision": self.precision,
            "include": json.dumps(self.include),
            "shape": json.dumps(self.shape),
            "align_corners": json.dumps(self.align_corners),
            "classes": json.dumps(labels.classes, ensure_ascii=False),
            "palette": json.dumps(labels.palette.tolist()),
            "mean": json.dumps(self.recipe.backbone.mean),
            "std": json.dumps(self.recipe.backbone.std),
            "versions": json.dumps(dict(self.versions)),
        }

    def check_size(self, height: int, width: int) -> None:
        """
        Raises:
            DataError: the file's network does not take images of this size.
        """
        if self.shape is not None and (height, width) != self.shape:
            raise DataError(
                f"the exported network takes images of {self.shape[1]} x {self.shape[0]} pixels, not {width} x {height}",
                "export it with --dynamic, or bring the images to that size",
            )
        if min(height, width) < SMALLEST_SIDE:
            raise DataError(
                f"the exported network takes images from {SMALLEST_SIDE} pixels a side, not {width} x {height}",
                "use larger images, or the checkpoint",
            )


def is_exported(path: Path) -> bool:
    """Whether a path names an exported file; its suffix tells."""
    return path.suffix.lower() in (SUFFIXES["onnx"], SUFFIXES["torch"])


def read_info(path: Path, overrides: Sequence[str] = ()) -> FileInfo:
    """What an exported file says of itself; nothing of it is run.

    Args:
        overrides: `--set` values for its recipe.

    Raises:
        WeightsError: missing, damaged, or not written by `emaseg export`.
        RecipeError: an override that its recipe does not take.
    """
    texts = _texts(path)
    if texts.get("format") != FORMAT:
        found = f'says "{texts["format"]}"' if "format" in texts else "says nothing of its classes and protocol"
        raise WeightsError(f"{path}: not a file of emaseg export (it {found})", _ALIKE)
    try:
        shape = json.loads(texts["shape"])
        return FileInfo(
            recipe=parse_recipe(texts["recipe"], f"{path} (recipe inside)", overrides).recipe,
            precision=texts["precision"],
            include=tuple(json.loads(texts["include"])),
            shape=None if shape is None else (int(shape[0]), int(shape[1])),
            align_corners=bool(json.loads(texts["align_corners"])),
            versions=json.loads(texts["versions"]),
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise WeightsError(f"{path}: its description is incomplete ({error})", _ALIKE) from error


# ------------------------------------------------------------------------------------------------- the protocol
def followed(inference: Inference, include: Sequence[str]) -> Inference:
    """The nearest protocol that a file with `include` inside can follow; the same where it can follow it already.

    Class ids cannot be averaged or resized; uint8 pixels are neither the mean colour nor a resized float image.
    """
    if "argmax" in include:
        return replace(
            inference, resize_long_short=(), pad="none", mode="whole", window=(), stride=(), scales=(1.0,), flip=False
        )
    if "normalize" in include:
        many = inference.scales != (1.0,) and inference.scale_source == "tensor"
        return replace(inference, pad="none", scales=(1.0,) if many else inference.scales)
    return inference


def settings(inference: Inference, include: Sequence[str]) -> list[str]:
    """`--set` values that turn a protocol into one the file can follow; [] where it is one."""
    possible = followed(inference, include)
    texts = {
        "resize_long_short": "[]",
        "pad": '"none"',
        "mode": '"whole"',
        "window": "[]",
        "stride": "[]",
        "scales": "[1.0]",
        "flip": "false",
    }
    changed = (key for key in texts if getattr(inference, key) != getattr(possible, key))
    return [f"inference.{key}={texts[key]}" for key in changed]


# -------------------------------------------------------------------------------------------------- the two files
def _texts(path: Path) -> dict[str, str]:
    try:
        if path.suffix.lower() == SUFFIXES["torch"]:
            return _pt2_texts(path)
        with path.open("rb") as file:
            return _onnx_texts(file)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file", "check the path") from None
    except IsADirectoryError:
        raise WeightsError(f"{path}: is a folder, not an exported file", "check the path") from None
    except OSError as error:
        raise fault(error, path, "reading it") from error
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(f"{path}: not an exported file, or damaged", "export or copy it again") from error


def _pt2_texts(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(f"/extra/{EXTRA_FILE}") and member.file_size < _LONGEST_TEXT:
                content = json.loads(archive.read(member))
                return {str(key): str(value) for key, value in content.items()}
    return {}


def _onnx_texts(file: IO[bytes]) -> dict[str, str]:
    """The metadata of an ONNX file: a walk over the outermost fields of the message, the network itself skipped."""
    end = file.seek(0, 2)
    file.seek(0)
    texts: dict[str, str] = {}
    while file.tell() < end:
        number, content = _field(file, end)
        if number == _METADATA_FIELD and content is not None:
            texts |= _entry(content)
    return texts


def _entry(content: bytes) -> dict[str, str]:
    parts: dict[int, str] = {}
    file = io.BytesIO(content)
    while file.tell() < len(content):
        number, part = _field(file, len(content), keep=(1, 2))
        if part is not None:
            parts[number] = part.decode("utf-8")
    return {parts[1]: parts.get(2, "")} if 1 in parts else {}


def _field(file: IO[bytes], end: int, keep: Sequence[int] = (_METADATA_FIELD,)) -> tuple[int, bytes | None]:
    """Number and content of the next field of a protocol-buffer message; no content where it is not wanted.

    Raises:
        ValueError: this is no such message.
    """
    tag = _varint(file)
    number, kind = tag >> 3, tag & 7
    if kind == 0:
        _varint(file)
        return number, None
    length = {1: 8, 2: -1, 5: 4}.get(kind)
    if length is None or number == 0:
        raise ValueError("not a protocol-buffer message")
    if length < 0:
        length = _varint(file)
    if file.tell() + length > end:
        raise ValueError("ends too early")
    if number in keep and kind == 2 and length < _LONGEST_TEXT:
        return number, file.read(length)
    file.seek(length, 1)
    return number, None


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("ends too early")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("not a protocol-buffer message")
