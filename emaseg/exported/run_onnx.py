"""An ONNX file as a session of ONNX Runtime: read once, looked through, and its ends held against its description.

Room: exported; onnxruntime is imported when a file is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emaseg.errors import SystemFault, WeightsError
from emaseg.exported.check_onnx import check_model
from emaseg.exported.extra import check_extra
from emaseg.exported.info import INPUT, METADATA_FIELD, MOST_FIELDS, ONNX_DIGEST, FileInfo, info_of, onnx_texts
from emaseg.exported.protobuf import LARGEST, message, text, walk
from emaseg.exported.refused import Refused
from emaseg.free_memory import room, says_out_of_memory
from emaseg.recipe.data import num_classes
from emaseg.words import first_line, size
from emaseg.zip_archive import File

_LEAST = 1 << 20  # bytes of a limit: 0 and a few bytes are none
_ANY = -1  # a side of an output that may be fixed or not
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_onnx(file: File, path: Path, device: torch.device) -> tuple[FileInfo, Any]:
    """What the file says of itself, and a session that runs it on `device`.

    The bytes are read once; the session gets those that were checked.

    Raises:
        Refused: it holds anything that `emaseg export` does not write.
        ValueError: it is damaged.
        WeightsError: it is too large for an ONNX file, ONNX Runtime cannot load it, or its inputs and outputs are not as
            described.
        SystemFault: onnxruntime is missing, or cannot use the device.
    """
    check_extra(("onnxruntime",), str(path))
    import onnxruntime

    provider = _PROVIDERS.get(device.type)
    if not can_use(device):
        raise SystemFault(f"{path}: this onnxruntime cannot run on {device}", "use --device cpu")
    length = file.seek(0, os.SEEK_END)
    if length > LARGEST:
        raise WeightsError(f"{path}: has {size(length)}, more than an ONNX file can hold", "export or copy it again")
    file.seek(0)
    data = file.read(length)
    view = memoryview(data)
    info = info_of(_checked_texts(view), path)
    check_model(view)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal: what fails is raised, and its warnings are about its own optimisations
    _limit_memory(options)
    chosen = [(provider, {"device_id": device.index or 0, "use_tf32": 0})] if device.type == "cuda" else []
    try:
        session = onnxruntime.InferenceSession(data, options, [*chosen, "CPUExecutionProvider"])
    except Exception as error:  # its classes have no public base
        if says_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        raise WeightsError(f"{path}: ONNX Runtime cannot load it ({first_line(error)})", "export it again") from error
    session.disable_fallback()
    session._model_bytes = None  # else it keeps the file in memory, for a fallback that is off
    _check_ends(session, info)
    return info, session


def can_use(device: torch.device) -> bool:
    """Whether the installed ONNX Runtime has what the device needs; true where none is installed, which is told later."""
    try:
        import onnxruntime
    except ImportError:
        return True
    return _PROVIDERS.get(device.type) in onnxruntime.get_available_providers()


def run_onnx(session: Any, images: Tensor) -> Tensor:
    """The result for images. The CPU's memory that it took is given back: else the largest image's would be held to the end,
    and what the next one needs could not be measured."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    (result,) = session.run(None, {INPUT: images.contiguous().cpu().numpy()}, options)
    return torch.from_numpy(result).to(images.device)


def _limit_memory(options: Any) -> None:
    """Let a session take what this process may still have, and no more: a small file can ask for any amount, and Linux
    grants it, and kills this process or another when it is used.

    The limit is ONNX Runtime's own, of the arena that sessions take their memory from.
    """
    import onnxruntime

    most = room(torch.device("cpu"), None)
    if most is None:
        return
    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    arena = onnxruntime.OrtArenaCfg({"max_mem": max(_LEAST, most)})
    with contextlib.suppress(RuntimeError):  # before 1.23 one process has one such arena: a second file has no limit
        onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), arena)
        options.add_session_config_entry("session.use_env_allocators", "1")


def _checked_texts(data: memoryview) -> dict[str, str]:
    """The file's texts, after its digest, where it has one, was compared with the rest of the file."""
    hasher, found, entries = hashlib.sha256(), [], []
    at = 0
    for count, (number, value, begin, end) in enumerate(walk(data)):
        if count == MOST_FIELDS:
            raise Refused(f"more than {MOST_FIELDS} parts")
        if number == METADATA_FIELD and isinstance(value, memoryview):
            entries.append(value)
            fields = message(value, {1: "bytes", 2: "bytes"}, "a description")
            if fields[1] and text(fields[1][0]) == ONNX_DIGEST:
                found.append(text(fields[2][0]) if fields[2] else "")
                hasher.update(data[at:begin])
                at = end
    hasher.update(data[at:])
    texts = onnx_texts(entries)
    if found and found != [hasher.hexdigest()]:
        raise ValueError("it has been changed since emaseg export wrote it: its SHA-256 does not match")
    return texts


def _check_ends(session: Any, info: FileInfo) -> None:
    """
    Raises:
        Refused: inputs or outputs other than the file's description promises.
    """
    kind = "tensor(uint8)" if "normalize" in info.include else "tensor(float)"
    sides = info.shape or (None, None)
    ends = [(session.get_inputs(), INPUT, kind, (None, info.recipe.backbone.in_channels, *sides))]
    if info.output == "labels":
        ends.append((session.get_outputs(), info.output, "tensor(uint8)", (None, *sides)))
    else:
        classes = num_classes(info.recipe.data)
        ends.append((session.get_outputs(), info.output, "tensor(float)", (None, classes, _ANY, _ANY)))
    for found, name, kind, shape in ends:
        described = [(end.name, end.type, end.shape) for end in found]
        fits = len(found) == 1 and described[0][:2] == (name, kind) and len(found[0].shape) == len(shape)
        if not fits or any(not _fits(own, side) for own, side in zip(found[0].shape, shape, strict=True)):
            raise Refused(f"{str(described)[:200]} where its description says {name} {kind} {_shown(shape)}")


def _fits(own: int | str | None, side: int | None) -> bool:
    """Whether a side of the session's is the one wanted; None: it depends on the images."""
    return side == _ANY or (own == side if side is not None else not isinstance(own, int))


def _shown(shape: tuple[int | None, ...]) -> str:
    return " x ".join("any" if side in (None, _ANY) else str(side) for side in shape)
