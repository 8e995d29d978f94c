"""What an exported file says of itself: the recipe and all that another program needs to use it.

Room: exported; never torch. Legend: H W image height and width, K classes.

The same texts stand in both formats: in an ONNX file as `metadata_props`, in a .pt2 as one JSON object, `emaseg.json`.
They are read without the format's library, so a file is refused before anything of it runs.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emaseg.errors import DataError, RecipeError, WeightsError
from emaseg.exported.protobuf import message, text, varint
from emaseg.exported.pt2_archive import ABOUT, content, read_directory, read_json
from emaseg.exported.refused import Refused
from emaseg.files import fault, open_file
from emaseg.recipe import Recipe, parse_recipe, recipe_to_toml
from emaseg.recipe.channels import channel_names, ranges
from emaseg.recipe.inference import Inference
from emaseg.zip_archive import AmbiguousError, File

FORMAT = "emaseg-export/1"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "weights": ".pt"}
INPUT, ONNX_DIGEST = "image", "sha256"
SMALLEST_SIDE = 33  # of a program for any size: below it HRNet's coarsest grid is one cell, which is another program

METADATA_FIELD = 14  # of ONNX's ModelProto, a list of (key = 1, value = 2)
_LONGEST_TEXT = 1 << 24
MOST_FIELDS = 1000  # of a whole ONNX file: a model has a dozen, and a few texts
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

    def fixed_size(self, inference: Inference) -> tuple[int, int] | None:
        """(H, W) that every image is brought to by `inference`, because the file takes no other size; else None."""
        return self.shape if inference.mode == "whole" and inference.scales == (1.0,) else None

    def texts(self) -> dict[str, str]:
        """The file's metadata: every value a text, lists as JSON."""
        from emaseg.data.label_sets import label_set  # it needs numpy; a wrong REF is told before that is imported

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
            "channels": json.dumps(channel_names(self.recipe)),
            "mean": json.dumps(self.recipe.backbone.mean),
            "std": json.dumps(self.recipe.backbone.std),
            **({"range": json.dumps(ranges(self.recipe.data))} if ranges(self.recipe.data) else {}),
            **self._ends(),
            "versions": json.dumps(dict(self.versions)),
        }

    def _ends(self) -> dict[str, str]:
        """What goes in and comes out, and the size to which the recipe brings an image before; for other programs."""
        pixels, labels = "normalize" in self.include, self.output == "labels"
        protocol = self.recipe.inference
        limits = protocol.resize_long_short
        resize = (
            {"long_side": max(limits), "short_side": min(limits), "keep_ratio": protocol.keep_ratio} if limits else None
        )
        scale = ", to which range is mapped and beyond which values are cut off" if ranges(self.recipe.data) else ""
        given = {
            "name": INPUT,
            "layout": f"batch, channel ({', '.join(channel_names(self.recipe))}), height, width",
            "type": "uint8" if pixels else "float32",
            "units": "0 to 255"
            if pixels
            else f"(value - mean) / std of values from 0 to 255{scale}, each channel its own",
        }
        made = {
            "name": self.output,
            "layout": "batch, height, width" if labels else "batch, class, rows of the grid, columns of the grid",
            "type": "uint8" if labels else "float32",
            "units": "position in classes"
            if labels
            else "logits; resize them to the image (bilinear, align_corners as said here), then take the largest",
        }
        return {"resize": json.dumps(resize), "input": json.dumps(given), "output": json.dumps(made)}

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
    return info_of(_texts(path), path, overrides)


def info_of(texts: Mapping[str, str], path: Path, overrides: Sequence[str] = ()) -> FileInfo:
    """What the texts in an exported file say; else as `read_info`."""
    if texts.get("format") != FORMAT:
        found = f"says {texts['format']!r:.60}" if "format" in texts else "says nothing of its classes and protocol"
        raise WeightsError(f"{path}: not a file of emaseg export (it {found})", _ALIKE)
    source = f"{path} (recipe inside)"
    try:
        values = {key: read_json(texts[key].encode(), key) for key in ("include", "shape", "align_corners", "versions")}
        _check_values(texts["precision"], values)
        return FileInfo(
            recipe=parse_recipe(texts["recipe"], source, overrides).recipe,
            precision=texts["precision"],
            include=tuple(values["include"]),
            shape=None if values["shape"] is None else (values["shape"][0], values["shape"][1]),
            align_corners=values["align_corners"],
            versions=values["versions"],
        )
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}: its description is incomplete ({error})", _ALIKE) from error
    except RecipeError as error:
        if overrides:
            info_of(texts, path)  # the file's own fault?
            raise
        raise WeightsError(f"{path}: the recipe inside is damaged: {error.message}", _ALIKE) from error


def _check_values(precision: str, values: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: a value that `FileInfo.texts` does not write.
    """
    include, shape, versions = values["include"], values["shape"], values["versions"]
    sides = shape if isinstance(shape, list) else []
    good = {
        "precision": precision in ("fp32", "fp16", "bf16", "int8"),
        "include": include in ([], ["normalize"], ["argmax"], ["normalize", "argmax"]),
        "shape": shape is None or (len(sides) == 2 and all(type(n) is int and 0 < n <= 1 << 16 for n in sides)),
        "align_corners": isinstance(values["align_corners"], bool),
        "versions": isinstance(versions, dict) and all(isinstance(v, str) for v in versions.values()),
    }
    for key, right in good.items():
        if not right:
            raise ValueError(key)


# ------------------------------------------------------------------------------------------------- the protocol
def supported_protocol(inference: Inference, include: Sequence[str], shape: tuple[int, int] | None = None) -> Inference:
    """The nearest protocol that a file with `include` inside, for images of `shape`, can follow; the same where it can
    follow it already.

    Class ids cannot be averaged; uint8 pixels are neither the mean colour nor a resized float image. A file for one size
    sees windows of that size, or whole images that are brought to it: other windows, other scales and padding would
    be other sizes.
    """
    if "argmax" in include:
        return replace(inference, pad="none", mode="whole", window=(), stride=(), scales=(1.0,), flip=False)
    if shape is not None and inference.mode == "slide" and inference.window != shape:
        inference = replace(inference, mode="whole", window=(), stride=())
    if shape is not None and inference.mode == "whole":
        pad = "none" if any((side - 1) % 8 for side in shape) else inference.pad
        inference = replace(inference, pad=pad, scales=(1.0,))
    elif shape is not None and min(inference.scales) < 1:  # of a smaller image a window may be smaller, too
        inference = replace(inference, scales=(1.0,))
    if "normalize" in include:
        many = inference.scales != (1.0,) and inference.scale_source == "tensor"
        return replace(inference, pad="none", scales=(1.0,) if many else inference.scales)
    return inference


def needed_overrides(inference: Inference, include: Sequence[str], shape: tuple[int, int] | None = None) -> list[str]:
    """`--set` values that turn a protocol into one the file can follow; [] where it is one."""
    possible = supported_protocol(inference, include, shape)
    texts = {
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
@contextlib.contextmanager
def opened_file(path: Path) -> Iterator[File]:
    """An exported file to read.

    Raises:
        WeightsError: there is no such file; or what is read of it is damaged or refused.
        SystemFault: it cannot be read.
    """
    try:
        with open_file(path) as file:
            yield file
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file", "check the path") from None
    except (Refused, AmbiguousError) as error:
        raise WeightsError(
            f"{path}: refused: it holds more or other things than emaseg export writes ({error})",
            "do not trust it: export it again from its checkpoint",
        ) from error
    except (ValueError, KeyError, EOFError) as error:
        raise WeightsError(f"{path}: not an exported file, or damaged ({error})", "export or copy it again") from error
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENODEV):
            raise WeightsError(f"{path}: is not a file ({error.strerror})", "check the path") from error
        raise fault(error, path, "reading it") from error


def _texts(path: Path) -> dict[str, str]:
    with opened_file(path) as file:
        if path.suffix.lower() == SUFFIXES["torch"]:
            members = read_directory(file)
            return pt2_texts(content(file, members[ABOUT])) if ABOUT in members else {}
        return _onnx_texts(file)


def pt2_texts(raw: bytes) -> dict[str, str]:
    """The texts in the member ABOUT of a .pt2."""
    texts = read_json(raw, ABOUT)
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{ABOUT} is damaged")
    return texts


def onnx_texts(entries: Iterable[memoryview]) -> dict[str, str]:
    """The texts in the `metadata_props` of an ONNX file.

    Raises:
        Refused: one is there twice.
    """
    texts: dict[str, str] = {}
    for entry in entries:
        fields = message(entry, {1: "bytes", 2: "bytes"}, "a description")
        key, value = (text(fields[number][0]) if fields[number] else "" for number in (1, 2))
        if key in texts:
            raise Refused(f"two descriptions {key!r:.60}")
        texts[key] = value
    return texts


def _onnx_texts(file: File) -> dict[str, str]:
    """The same from the file, of which nothing else is read."""
    end = file.seek(0, 2)
    file.seek(0)
    entries: list[memoryview] = []
    for _ in range(MOST_FIELDS):
        if file.tell() >= end:
            return onnx_texts(entries)
        number, value = _field(file, end)
        if value is not None and number == METADATA_FIELD:
            entries.append(memoryview(value))
    raise Refused(f"more than {MOST_FIELDS} parts")


def _field(file: File, end: int) -> tuple[int, bytes | None]:
    """Number and content of the next field of a protocol-buffer message; no content where it is not wanted.

    Raises:
        ValueError: this is no such message.
    """
    tag = _varint(file)
    number, kind = tag >> 3, tag & 7
    if number == 0:
        raise ValueError("not a protocol-buffer message")
    if kind == 0:
        _varint(file)
        return number, None
    length = {1: 8, 2: -1, 5: 4}.get(kind)
    if length is None:
        raise ValueError("not a protocol-buffer message")
    if length < 0:
        length = _varint(file)
    if file.tell() + length > end:
        raise ValueError("it ends too early")
    if number == METADATA_FIELD and kind == 2 and length < _LONGEST_TEXT:
        return number, file.read(length)
    file.seek(length, 1)
    return number, None


def _varint(file: File) -> int:
    start = file.tell()
    value, size = varint(memoryview(file.read(10)), 0)
    file.seek(start + size)
    return value
