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
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emaseg.data.dataset import Dataset, Pixels, Subset
from emaseg.data.files.bands import Bands, read_pixels
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
from emaseg.resources import expanded

_WEIGHTED = ("Conv", "MatMul", "Gemm")

CALIBRATED = 64  # images read, evenly spaced over the folder
SCORED = 100  # images of the evaluation split that the cost is measured on, evenly spaced


@dataclass(frozen=True, slots=True)
class Cost:
    """mIoU (fractions) of the float and of the 8-bit file over the same images of the recipe's evaluation split."""

    full: float | None
    quantised: float | None
    images: int


def calibration_images(folder: Path, bands: Bands | None = None) -> list[Pixels]:
    """Up to CALIBRATED images of a folder and its sub-folders but hidden ones, (H, W, C), as the recipe declares them.

    Raises:
        DataError: there is no such folder, it holds no images, or one cannot be read.
    """
    place = expanded(str(folder))
    if not os.path.isdir(place):
        raise DataError(f"--calibrate {folder}: no such folder", "name a folder of images like those to be labelled")
    found = (file for file in place.rglob("*") if not any(map(is_hidden, file.relative_to(place).parts)))
    files = image_names(sorted(str(file) for file in found if file.is_file()))
    if not files:
        raise DataError(f"--calibrate {folder}: no images in this folder", f"images end in {' '.join(EXTENSIONS)}")
    return [read_pixels(Path(files[i]), bands=bands) for i in _spaced(len(files), CALIBRATED)]


def quantise(source: Path, path: Path, images: Sequence[Pixels], info: FileInfo) -> None:
    """Write `source`, an ONNX file of full precision, with 8-bit convolutions and linear layers as `path`.

    Args:
        images: what the ranges are learned from; each is brought to the size at which the network sees it.
    """
    import onnx
    from onnxruntime import quantization as q

    model = onnx.load(str(source))
    nodes = _nodes(model)
    with _no_advice():
        q.quantize_static(
            model,
            str(path),
            _Reader(images, info),
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
    """What onnxruntime asks for one input after the other."""

    def __init__(self, images: Sequence[Pixels], info: FileInfo) -> None:
        self._inputs = _network_inputs(images, info)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._inputs, None)


def _network_inputs(images: Sequence[Pixels], info: FileInfo) -> Iterator[dict[str, npt.NDArray[Any]]]:
    recipe = info.recipe
    for image in images:
        limits = recipe.inference.resize_long_short
        size = info.shape or limit_size(image.shape[:2], limits, recipe.inference.keep_ratio)
        pixels = resize_image(image, size)
        if "normalize" in info.include:
            yield {INPUT: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}
        else:
            yield {INPUT: normalise(pixels, recipe.backbone.pixel_stats)[None].numpy()}


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
