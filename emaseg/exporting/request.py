"""What may be asked of an export: format, precision, shape, what goes inside; and why a combination is refused.

Room: exporting; never torch: a refusal must appear at once.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emaseg.errors import RecipeError, nearest
from emaseg.exported.extra import check_extra, check_torch
from emaseg.exported.info import SMALLEST_SIDE, SUFFIXES
from emaseg.files import fault, make_folder
from emaseg.recipe.inference import Inference

FORMATS = tuple(SUFFIXES)
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
INCLUDES = ("normalize", "argmax")
LARGEST_SIDE = 8192

# (format, precision) that cannot be made, and why
REFUSED = {
    ("torch", "int8"): "int8 files are made for ONNX only; PyTorch's own 8-bit programs run on one backend each",
    ("weights", "int8"): "weights are plain tensors; 8 bits need the ranges of a program's values: use --format onnx",
    ("onnx", "bf16"): "ONNX Runtime has no bfloat16 convolution on a CPU, so the file could be neither run nor checked",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A combination that can be made.

    shape: (H, W) of the only size the file takes; None = any size. calibrate: folder of images (int8).
    """

    format: str
    precision: str = "fp32"
    shape: tuple[int, int] | None = None
    include: tuple[str, ...] = ()
    calibrate: Path | None = None

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.format]


def make_request(
    format_: str,
    precision: str = "fp32",
    shape: str | None = None,
    *,
    dynamic: bool = False,
    include: str = "",
    calibrate: Path | None = None,
) -> Request:
    """The words of the command line as a request.

    Raises:
        RecipeError: a word that is none, or a combination that cannot be made; says why.
        SystemFault: packages that the format needs are not installed, or are too old.
    """
    _known("--format", format_, FORMATS)
    _known("--precision", precision, PRECISIONS)
    inside = _inside(include)
    if (format_, precision) in REFUSED:
        raise RecipeError(
            f"--format {format_} --precision {precision}: {REFUSED[format_, precision]}", _possible(format_)
        )
    if shape is not None and dynamic:
        raise RecipeError(f"--shape {shape} --dynamic: one size, or any size?", "leave one of the two out")
    if format_ == "weights" and (shape is not None or dynamic or inside):
        raise RecipeError(
            "--format weights: holds tensors and the recipe, no program; it has no shape and nothing inside",
            "leave --shape, --dynamic and --include out, or use --format onnx or torch",
        )
    if precision == "int8" and calibrate is None:
        raise RecipeError(
            "--precision int8: needs images to learn the range of each value from",
            "add --calibrate DIR: a hundred training images will do",
        )
    if precision != "int8" and calibrate is not None:
        raise RecipeError("--calibrate: is for --precision int8 only", "leave it out")
    request = Request(format_, precision, None if shape is None else _size(shape), inside, calibrate)
    if format_ != "weights":  # what was typed is judged before what is installed
        check_torch(format_, any_size=shape is None)
    if format_ == "onnx":
        check_extra()
    return request


def check_windows(request: Request, inference: Inference) -> None:
    """
    Raises:
        RecipeError: the recipe looks through windows, and the file would take images of another size only.
    """
    if request.shape is None or inference.mode != "slide" or inference.window == request.shape:
        return
    if "argmax" in request.include:  # such a file is run on whole images, and its command says so
        return
    shape, window = ("{}x{}".format(*size) for size in (request.shape, inference.window))
    whole = "--set inference.mode=whole --set 'inference.window=[]' --set 'inference.stride=[]'"
    raise RecipeError(
        f"--shape {shape}: the recipe's windows (inference.window) are {window}, and such a file could take none of them",
        f"--shape {window}, or --dynamic; or {whole}, which stretches every image to {shape}",
    )


def target(request: Request, out: Path | None, name: str) -> Path:
    """The file to be written, in a folder that can be written to; by default named after the recipe, here.

    Raises:
        RecipeError: it exists, is a folder, or its suffix is another format's.
        SystemFault: its folder cannot be written to, or no file can have its name.
    """
    path = out if out is not None else Path(f"{name}{request.suffix}")
    if os.path.isdir(path):  # unlike Path.is_dir, no OSError where no file can have the name
        raise RecipeError(f"--out {path}: a folder, not a file", f"use {path / name}{request.suffix}")
    if path.suffix.lower() != request.suffix:
        raise RecipeError(
            f"--out {path}: a file of --format {request.format} ends in {request.suffix}",
            f"use {path.with_suffix(request.suffix)}",
        )
    if os.path.exists(path):
        raise RecipeError(f"{path}: already exists", "remove it, or name another file with --out")
    make_folder(path.parent)
    _check_name(path)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise fault(error, path, "writing it") from error
    return path


def snippet_target(request: Request, place: Path | None, exported: Path) -> Path | None:
    """Where the program that runs the file `exported` goes.

    Raises:
        RecipeError: a file is there or will be, or the format has no program.
        SystemFault: its folder cannot be made, or no file can have its name.
    """
    if place is None:
        return None
    if request.format == "weights":
        raise RecipeError(f"--snippet {place}: --format weights holds no program to run", "use --format onnx or torch")
    if os.path.isdir(place):
        raise RecipeError(f"--snippet {place}: a folder, not a file", f"use {place / 'run_model.py'}")
    if os.path.realpath(place) == os.path.realpath(exported):
        raise RecipeError(f"--snippet {place}: is the exported file itself", "name another file, e.g. run_model.py")
    if os.path.exists(place):
        raise RecipeError(f"--snippet {place}: already exists", "remove it, or name another file with --snippet")
    make_folder(place.parent)
    _check_name(place)
    return place


def _check_name(path: Path) -> None:
    """Whether a file may be called so in a folder that is there: the system says it when it looks.

    Raises:
        SystemFault: none may (the name is too long, for one), or the folder does not let us look.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise fault(error, path, "looking at it") from error


def _known(option: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise RecipeError(f"{option} {word}: is none of {', '.join(words)}", nearest(word, words))


def _inside(text: str) -> tuple[str, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        _known("--include", word, INCLUDES)
    return tuple(word for word in INCLUDES if word in words)


def _possible(format_: str) -> str:
    return "possible are " + ", ".join(p for p in PRECISIONS if (format_, p) not in REFUSED)


def _size(text: str) -> tuple[int, int]:
    """ "512x1024" -> (512, 1024).

    Raises:
        RecipeError: not two numbers, or out of bounds.
    """
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text)
    if match is None:
        raise RecipeError(f"--shape {text}: is not HEIGHTxWIDTH", "for example --shape 512x1024")
    height, width = int(match[1]), int(match[2])
    if min(height, width) < SMALLEST_SIDE or max(height, width) > LARGEST_SIDE:
        raise RecipeError(
            f"--shape {text}: the sides must be {SMALLEST_SIDE} to {LARGEST_SIDE} pixels",
            "for example --shape 512x1024",
        )
    return height, width
