"""An ONNX program with 8-bit convolutions and linear layers, its value ranges learned from images; what that costs.

Room: exporting; onnx and onnxruntime are imported when they are used. Legend: B batch, H W image.

Static quantisation in ONNX's own operations (QuantizeLinear, DequantizeLinear): a scale for each weight channel, one
scale and zero point for each tensor of activations, from the least and the largest value over the images. Products of
two activations (EM attention, pixel attention, reading the memory) stay float: their results decide between classes.
Weights use 7 of the 8 bits: processors without 8-bit dot products add pairs in 16 bits, where 8 would overflow, and the
file would give other results there than where it was checked.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from emaseg.data.dataset import Box, Dataset, Pixels, Subset
from emaseg.data.files.bands import Bands, pixels_size, read_pixels
from emaseg.data.files.images import EXTENSIONS, image_names
from emaseg.data.pipeline.resize import limit_size, resize_image
from emaseg.data.pipeline.transforms import normalise
from emaseg.errors import DataError
from emaseg.evaluation.evaluate import evaluate
from emaseg.events import Evaluated
from emaseg.exported.info import INPUT, FileInfo, supported_protocol
from emaseg.exported.runtime import open_exported
from emaseg.exporting.program import seal
from emaseg.files import is_hidden
from emaseg.free_memory import says_out_of_memory
from emaseg.resources import expanded
from emaseg.words import first_line

_WEIGHTED = ("Conv", "MatMul", "Gemm")

CALIBRATED = 64  # images read, evenly spaced over the folder
MOST_PIXELS = 1 << 20  # of an image that ranges are learned from: a network takes up to 12 kB for each
SCORED = 100  # images of the evaluation split that the cost is measured on, evenly spaced


@dataclass(frozen=True, slots=True)
class Cost:
    """mIoU (fractions) of the float and of the 8-bit file over the same images of the recipe's evaluation split."""

    full: float | None
    quantised: float | None
    images: int


@dataclass(frozen=True, slots=True)
class CalibrationImages(Sequence[Pixels]):
    """Images (H, W, C) that are read when they are asked for: all at once might not fit into memory."""

    files: tuple[Path, ...]
    bands: Bands | None

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...

    @overload
    def __getitem__(self, index: slice) -> CalibrationImages: ...

    def __getitem__(self, index: int | slice) -> Pixels | CalibrationImages:
        """
        Raises:
            DataError: the image is damaged.
        """
        if isinstance(index, slice):
            return CalibrationImages(self.files[index], self.bands)
        return read_pixels(self.files[index], bands=self.bands)


def calibration_images(folder: Path, bands: Bands | None = None) -> CalibrationImages:
    """Up to CALIBRATED images of a folder and its sub-folders but hidden ones, (H, W, C), as the recipe declares them.

    Raises:
        DataError: there is no such folder, it holds no images, or one of them is none by its first bytes.
    """
    place = expanded(str(folder))
    if not os.path.isdir(place):
        raise DataError(f"--calibrate {folder}: no such folder", "name a folder of images like those to be labelled")
    found = (file for file in place.rglob("*") if not any(map(is_hidden, file.relative_to(place).parts)))
    files = image_names(sorted(str(file) for file in found if file.is_file()))
    if not files:
        raise DataError(f"--calibrate {folder}: no images in this folder", f"images end in {' '.join(EXTENSIONS)}")
    chosen = tuple(Path(files[i]) for i in _spaced(len(files), CALIBRATED))
    for file in chosen:
        pixels_size(file, bands=bands)  # what is no image is told now, not after the program was made
    return CalibrationImages(chosen, bands)


def quantise(source: Path, path: Path, images: Sequence[Pixels], info: FileInfo) -> int:
    """Write `source`, an ONNX file of full precision, with 8-bit convolutions and linear layers as `path`.

    Args:
        images: what the ranges are learned from; each is brought to the size at which the network sees it.

    Returns:
        How many of them had more than MOST_PIXELS: of these only the middle was looked at.

    Raises:
        DataError: an image is damaged.
        MemoryError: ONNX Runtime gets no memory for one.
    """
    import onnx
    from onnxruntime import quantization as q

    model = onnx.load(str(source))
    nodes = _nodes(model)
    reader = _Reader(images, info)
    with _no_advice(), _memory_errors():
        q.quantize_static(
            model,
            str(path),
            reader,
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            nodes_to_quantize=nodes,
            op_types_to_quantize=[*_WEIGHTED, "Relu"],
            calibrate_method=q.CalibrationMethod.MinMax,
        )
    written = onnx.load(str(path))
    for tensor in written.graph.initializer:  # the quantiser states of large ones that they are in the file, as all are
        tensor.ClearField("data_location")
    onnx.helper.set_model_props(written, info.texts())
    onnx.save(written, str(path))
    seal(path)
    return reader.cut


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """
    Raises:
        MemoryError: in the place of ONNX Runtime's own exception, which has no base but Exception.
    """
    try:
        yield
    except Exception as error:
        if not says_out_of_memory(error):
            raise
        raise MemoryError(first_line(error, 1000)) from error


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Without the quantiser's hints on preparing a model, which are for others': this one is folded already."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _nodes(model: Any) -> list[str]:
    """Names of the operations that have weights (convolutions, products with a constant), and of ReLUs behind them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    weighted = [node for node in model.graph.node if node.op_type in _WEIGHTED and node.input[1] in constants]
    made = {name for node in weighted for name in node.output}
    relus = [node for node in model.graph.node if node.op_type == "Relu" and node.input[0] in made]
    return [node.name for node in (*weighted, *relus)]


class _Reader:
    """What onnxruntime asks for one input after the other. cut: images so far of which only the middle was looked at."""

    def __init__(self, images: Sequence[Pixels], info: FileInfo) -> None:
        self.cut = 0
        self._info = info
        self._images = iter(images)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: self._seen(image)}

    def _seen(self, image: Pixels) -> npt.NDArray[Any]:
        """(1, C, h, w), as the network takes it."""
        info, inference = self._info, self._info.recipe.inference
        size = limit_size(image.shape[:2], inference.resize_long_short, inference.keep_ratio)
        box = None
        if info.shape is not None:
            size = info.shape
        elif size[0] * size[1] > MOST_PIXELS:
            box = _middle(size)
            self.cut += 1
        pixels = resize_image(image, size, box)
        if "normalize" in info.include:
            return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        return normalise(pixels, info.recipe.backbone.pixel_stats)[None].numpy()


def _middle(size: tuple[int, int]) -> Box:
    """The part of an image of (H, W) around its centre that has its shape and no more than MOST_PIXELS."""
    share = math.sqrt(MOST_PIXELS / (size[0] * size[1]))
    height, width = (max(1, int(side * share)) for side in size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


# ------------------------------------------------------------------------------------------------------- the cost
def cost(full: Path, quantised: Path, info: FileInfo, dataset: Dataset) -> Cost:
    """Score both files on the same images, by the recipe's protocol as far as the file can follow it."""
    some = Subset(dataset, tuple(_spaced(len(dataset), SCORED)))
    return Cost(_miou(full, info, some), _miou(quantised, info, some), len(some))


def _miou(path: Path, info: FileInfo, dataset: Dataset) -> float | None:
    recipe = info.recipe
    protocol = supported_protocol(recipe.inference, info.include, info.shape)
    events = evaluate(open_exported(path), dataset, protocol, recipe.backbone.pixel_stats, "cpu")
    (last,) = (event for event in events if isinstance(event, Evaluated))
    return last.scores.miou


def _spaced(total: int, most: int) -> list[int]:
    """Up to `most` of 0..total-1, evenly spaced."""
    count = min(total, most)
    return [i * total // count for i in range(count)]
