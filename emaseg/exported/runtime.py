"""An exported file in the place of a network: images in, logits out, whatever runs it.

Room: export; imports torch, export.info, errors; onnxruntime when an ONNX file is opened.
Legend: B batch, H W image, h w feature grid, K classes.

An ONNX file is data: ONNX Runtime executes known operations only. A .pt2 is loaded by PyTorch, which trusts it: it may
hold pickles, and texts that become Python. So a .pt2 is looked through first, and refused unless it consists of the
few things that `emaseg export` writes: plain tensors, names, sizes, and operations of PyTorch's own library.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emaseg.errors import SystemFault, WeightsError
from emaseg.exported.extra import check_extra
from emaseg.exported.info import INPUT, SUFFIXES, FileInfo, read_info
from emaseg.models import Report
from emaseg.recipe.check import num_classes

Run = Callable[[Tensor], Tensor]

_MEMBERS = re.compile(
    r"(data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/emaseg\.json|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|version)"
)
_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_(max|min)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge)"
)
_NAME = re.compile(r"[\w.]*")
_TREE = re.compile(r'[\w.\s"\[\]{}:,]*')
_EXPRESSION = re.compile(r"[\w\s'(),=\-]*")
_FUNCTIONS = re.compile(
    "Symbol|Integer|Rational|Add|Mul|Pow|Min|Max|Mod|PythonMod|FloorDiv|CleanDiv|CeilToInt|FloorToInt|ToFloat"
    "|IntTrueDiv|TruncToInt|positive|integer|nonnegative|True|False"
)


class ExportedNetwork(nn.Module):
    """Behaves as a network in eval mode does: normalised images (B, 3, H, W) -> logits (B, K, h, w).

    A file with normalisation inside is given back the pixels that the images were made of. One with the arg max inside
    gives class ids, shown here as scores of 1 and 0 at the image's own size.

    Attributes:
        info: what the file says of itself. num_classes: K. align_corners: how its logits are resized.
    """

    def __init__(self, info: FileInfo, run: Run) -> None:
        super().__init__()
        self.info = info
        self.num_classes = num_classes(info.recipe.data)
        self.align_corners = info.align_corners
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        """
        Raises:
            DataError: the file does not take images of this size.
        """
        self.info.check_size(images.shape[2], images.shape[3])
        result = self._run(self.pixels(images) if "normalize" in self.info.include else images.float())
        if "argmax" not in self.info.include:
            return result
        one_hot = torch.zeros(len(result), self.num_classes, *result.shape[1:], device=result.device)
        return one_hot.scatter_(1, result.long().unsqueeze(1), 1.0)

    def pixels(self, images: Tensor) -> Tensor:
        """The uint8 RGB values of normalised images."""
        backbone = self.info.recipe.backbone
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
        return (images * std + mean).round_().clamp_(0, 255).to(torch.uint8)

    def report(self, classes: Sequence[str]) -> Report | None:
        """As a network's: an exported file keeps nothing to tell."""
        return None


def open_exported(path: Path, device: torch.device | str = "cpu") -> ExportedNetwork:
    """An exported file, ready to run on `device`.

    Raises:
        WeightsError: missing, damaged, not of `emaseg export`, or a .pt2 that could run code of its own.
        SystemFault: onnxruntime is missing, or cannot use the device.
    """
    info = read_info(path)
    where = torch.device(device)
    run = _pt2(path, where) if path.suffix.lower() == SUFFIXES["torch"] else _onnx(path, where)
    return ExportedNetwork(info, run).eval()


def _onnx(path: Path, device: torch.device) -> Run:
    check_extra(("onnxruntime",), str(path))
    import onnxruntime

    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    provider = providers.get(device.type)
    if provider not in onnxruntime.get_available_providers():
        raise SystemFault(f"{path}: this onnxruntime cannot run on {device}", "use --device cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; its warnings are about its own optimisations
    chosen = [(provider, {"device_id": device.index or 0})] if device.type == "cuda" else []
    try:
        session = onnxruntime.InferenceSession(str(path), options, [*chosen, "CPUExecutionProvider"])
    except Exception as error:  # its classes have no public base
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path}: ONNX Runtime cannot load it ({reason})", "export it again") from error

    def run(images: Tensor) -> Tensor:
        (result,) = session.run(None, {INPUT: images.contiguous().cpu().numpy()})
        return torch.from_numpy(result).to(device)

    return run


def _pt2(path: Path, device: torch.device) -> Run:
    _check_program(path)
    try:
        program = torch.export.load(str(path))
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module()
    except Exception as error:  # a damaged file fails in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path}: this PyTorch cannot load it ({reason})", "export it again with the PyTorch that shall run it"
        ) from error

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = module(images)
        return result

    return run


# ------------------------------------------------------------------------------------------ what a .pt2 may hold
def _check_program(path: Path) -> None:
    """
    Raises:
        WeightsError: the archive holds anything that `emaseg export` does not write.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            odd = next(_oddities(archive), None)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(f"{path}: not an exported file, or damaged", "export or copy it again") from error
    if odd is not None:
        raise WeightsError(
            f"{path}: refused: a .pt2 is a program, and this one holds more than emaseg export writes ({odd})",
            "do not trust it: export it again from its checkpoint",
        )


def _oddities(archive: zipfile.ZipFile) -> Iterator[str]:
    """What in an archive PyTorch might execute."""
    names = [member.filename.partition("/")[2] for member in archive.infolist()]
    if len(set(names)) != len(names):
        yield "two members of one name"
    for member, name in zip(archive.infolist(), names, strict=True):
        if not _MEMBERS.fullmatch(name) or member.compress_type != zipfile.ZIP_STORED:
            yield f"member {name!r}"
        elif name == "data/sample_inputs/model.pt" and member.file_size:
            yield "sample inputs"
        elif name.endswith("config.json"):
            entries = json.loads(archive.read(member))["config"].values()
            if any(entry["use_pickle"] or not _NAME.fullmatch(entry["path_name"]) for entry in entries):
                yield "a pickle"
        elif name == "models/model.json":
            yield from _odd_texts(json.loads(archive.read(member)), "")


def _odd_texts(value: Any, key: str) -> Iterator[str]:
    """Texts of the program that are neither a name, an operation, a size, nor the shape of the arguments."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not _NAME.fullmatch(name):
                yield f"the key {name!r}"
            yield from _odd_texts(item, name)
    elif isinstance(value, list):
        if key == "guards_code" and value:
            yield "guards_code"
        for item in value:
            yield from _odd_texts(item, key)
    elif isinstance(value, str) and not _plain(value, key):
        yield f"{key} {value[:60]!r}"


def _plain(text: str, key: str) -> bool:
    if key == "target":
        return _TARGET.fullmatch(text) is not None
    if key == "expr_str":
        words = re.findall(r"[A-Za-z_]\w*", re.sub(r"'[a-z]\d+'", "", text))
        return _EXPRESSION.fullmatch(text) is not None and all(_FUNCTIONS.fullmatch(w) for w in words)
    if key in ("in_spec", "out_spec"):
        return _TREE.fullmatch(text) is not None
    return key == "torch_version" or _NAME.fullmatch(text) is not None
