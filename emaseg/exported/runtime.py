"""An exported file in the place of a network: images in, logits out, whatever runs it.

Room: exported. Legend: B batch, H W image, h w feature grid, K classes.

Threat: the file may be untrusted. It is looked through before PyTorch or ONNX Runtime sees any of it, and what it
computes is looked at before it becomes a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emaseg.device import full_float32
from emaseg.errors import WeightsError
from emaseg.exported.info import SUFFIXES, FileInfo, opened_file
from emaseg.exported.run_onnx import open_onnx, run_onnx
from emaseg.exported.run_pt2 import Bounded, open_pt2
from emaseg.free_memory import says_out_of_memory
from emaseg.models import Report
from emaseg.recipe.data import num_classes
from emaseg.words import first_line

Run = Callable[[Tensor], Tensor]


class ExportedNetwork(nn.Module):
    """Behaves as a network in eval mode does: normalised images (B, C, H, W) -> logits (B, K, h, w).

    A file with normalisation inside is given back the pixels that the images were made of. One with the arg max inside
    gives class ids, shown here as scores of 1 and 0 at the image's own size.

    Attributes:
        info: what the file says of itself. num_classes: K. align_corners: how its logits are resized.
        input_size: (H, W) of the only images that it takes, None = any. decides: it gives class ids, not logits.
    """

    def __init__(self, info: FileInfo, run: Run, path: Path) -> None:
        super().__init__()
        self.info = info
        self.num_classes = num_classes(info.recipe.data)
        self.align_corners = info.align_corners
        self.input_size = info.shape
        self.decides = info.output == "labels"
        self._run = run
        self._path = path

    def forward(self, images: Tensor) -> Tensor:
        """
        Raises:
            DataError: the file does not take images of this size.
            WeightsError: its program fails, or gives what is no result.
        """
        self.info.check_size(images.shape[2], images.shape[3])
        try:
            given = self.pixels(images) if "normalize" in self.info.include else images.float()
            with full_float32(images.device):
                result = self._run(given)
        except Exception as error:
            raise self._failed(error) from error
        wrong = self._wrong(result, images)
        if wrong:
            raise WeightsError(
                f"{self._path}: its program gives {wrong} for images {tuple(images.shape)}",
                "do not use it: export it again from its checkpoint",
            )
        if "argmax" not in self.info.include:
            return result
        one_hot = torch.zeros(len(result), self.num_classes, *result.shape[1:], device=result.device)
        return one_hot.scatter_(1, result.long().unsqueeze(1), 1.0)

    def _failed(self, error: Exception) -> Exception:
        """What is said of a program that fails: no memory is the machine's fault, all else the file's."""
        if isinstance(error, MemoryError) or says_out_of_memory(error):
            return MemoryError(first_line(error, 1000))  # how much was asked for stands at its end
        return WeightsError(
            f"{self._path}: its program fails ({first_line(error)})", "export it again from its checkpoint"
        )

    def _wrong(self, result: Any, images: Tensor) -> str:
        """What makes a result none; "" for a good one. An untrusted program may give anything."""
        batch, _, height, width = images.shape
        labels = "argmax" in self.info.include
        if not isinstance(result, Tensor):
            return "no tensor"
        if result.dtype != (torch.uint8 if labels else torch.float32):
            return f"values of type {result.dtype}"
        shape = tuple(result.shape)
        whole = (batch, height, width) if labels else (batch, self.num_classes, *shape[2:])
        if shape != whole or len(shape) != (3 if labels else 4) or 0 in shape or max(shape[2:]) > max(height, width):
            return f"the shape {shape}"
        least, largest = torch.aminmax(result)
        if labels and largest >= self.num_classes:
            return f"class {int(largest)}, where there are {self.num_classes} classes,"
        if not labels and not (torch.isfinite(least) and torch.isfinite(largest)):
            return "NaN or infinite logits"
        return ""

    def pixels(self, images: Tensor) -> Tensor:
        """The uint8 RGB values of normalised images."""
        backbone = self.info.recipe.backbone
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (backbone.mean, backbone.std))
        return (images * std + mean).round_().clamp_(0, 255).to(torch.uint8)

    def report(self, classes: Sequence[str]) -> Report | None:
        """As a network's: an exported file keeps nothing to tell."""
        return None


def open_exported(path: Path, device: torch.device | str = "cpu") -> ExportedNetwork:
    """An exported file, ready to run on `device`.

    Raises:
        WeightsError: missing, damaged, changed, not of `emaseg export`, or a file that could run code of its own.
        SystemFault: onnxruntime is missing, or cannot use the device.
    """
    where = torch.device(device)
    run: Run
    with opened_file(path) as file:
        if path.suffix.lower() == SUFFIXES["torch"]:
            info, module = open_pt2(file, path, where)
            run = Bounded(module)
        else:
            info, session = open_onnx(file, path, where)
            run = partial(run_onnx, session)
    return ExportedNetwork(info, run, path).eval()
