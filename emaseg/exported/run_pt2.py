"""A .pt2 as a function of images: looked through, rebuilt, loaded by PyTorch, and its weights compared once loaded.

Room: exported.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from emaseg.errors import WeightsError
from emaseg.exported.check_onnx import not_finite
from emaseg.exported.check_pt2 import check_texts
from emaseg.exported.info import FileInfo, info_of, pt2_texts
from emaseg.exported.pt2_archive import (
    ABOUT,
    DIGEST,
    WEIGHTS,
    content,
    digest_of,
    program_archive,
    read_directory,
)
from emaseg.exported.refused import Refused
from emaseg.words import first_line
from emaseg.zip_archive import File, Member

MOST_VALUES = 1024, 1 << 26  # of one tensor, for each pixel of the images and in any case: 25 times what ours need

_CHANGED = "it has been changed since emaseg export wrote it: its SHA-256 does not match"


def open_pt2(file: File, path: Path, device: torch.device) -> tuple[FileInfo, nn.Module]:
    """What the file says of itself, and its program on `device`.

    Raises:
        Refused: it holds anything that `emaseg export` does not write.
        ValueError: it is damaged.
        WeightsError: this PyTorch cannot load it.
    """
    members = read_directory(file)
    texts = {
        name: content(file, member) for name, member in members.items() if not name.startswith(f"{WEIGHTS}weight_")
    }
    info = info_of(pt2_texts(texts[ABOUT]), path)
    rewritten, files = check_texts(texts, members)
    pieces: dict[str, bytes | Member] = {name: texts[name] for name in texts if not name.startswith("extra/")}
    pieces |= rewritten
    pieces |= {name: member for name, member in members.items() if name not in texts}
    program = _load(file, pieces, path)
    hashes = {name: hashlib.sha256(raw).hexdigest() for name, raw in texts.items()}
    hashes |= _check_loaded(program, files, members)
    if DIGEST in members and texts[DIGEST].decode() != digest_of(hashes):
        raise ValueError(_CHANGED)
    return info, _module(program, device, path)


def _load(file: File, pieces: Mapping[str, bytes | Member], path: Path) -> ExportedProgram:
    try:
        with quiet():
            return torch.export.load(cast(IO[bytes], program_archive(file, pieces)))
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in any way
        raise _unusable(path, error) from error


def _module(program: ExportedProgram, device: torch.device, path: Path) -> nn.Module:
    try:
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        return program.module()
    except MemoryError:
        raise
    except Exception as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path}: this PyTorch cannot load it ({first_line(error)})",
        "export it again with the PyTorch that shall run it",
    )


def _check_loaded(program: ExportedProgram, files: Mapping[str, str], members: Mapping[str, Member]) -> dict[str, str]:
    """SHA-256 of each file of weights, from the very bytes that PyTorch has loaded.

    Raises:
        ValueError: the bytes are not what the archive's checksums say.
        Refused: some are NaN or infinite.
    """
    hashes: dict[str, str] = {}
    for name, file in files.items():
        member = members[WEIGHTS + file]
        if member.name in hashes:
            continue
        storage = program.state_dict[name].untyped_storage()
        raw: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if len(raw) != member.size or zlib.crc32(raw) != member.crc:
            raise ValueError(f"the checksum of {member.name} does not match")
        hashes[member.name] = hashlib.sha256(raw).hexdigest()
    wrong = list(_not_finite({name: program.state_dict[name] for name in files}))
    if wrong:
        raise Refused(not_finite(wrong))
    return hashes


def _not_finite(weights: Mapping[str, Tensor]) -> Iterable[str]:
    for name, weight in weights.items():
        if weight.is_floating_point() and weight.numel():
            least, largest = torch.aminmax(weight)  # both are NaN where any value is
            if not (torch.isfinite(least) and torch.isfinite(largest)):
                yield name


class Bounded:
    """A program that is run only for sizes of images at which no tensor in it grows out of bounds.

    Threat: sizes are computed, so a short program may ask for any amount of memory, and on a CPU the system may grant
    it and then end the process. On a GPU, asking for too much is an error, so there is nothing to prevent.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._good: set[tuple[int, ...]] = set()

    def __call__(self, images: Tensor) -> Tensor:
        """
        Raises:
            Refused: a tensor would be far larger than in any network of ours.
        """
        with torch.no_grad():
            if images.device.type == "cpu" and tuple(images.shape) not in self._good:
                with FakeTensorMode(allow_non_fake_inputs=True), _Limit(images):
                    self._module(torch.empty(images.shape, dtype=images.dtype))
                self._good.add(tuple(images.shape))
            result: Tensor = self._module(images)
        return result


class _Limit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at the size of every result. Tensors have no memory while it is used."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        each, always = MOST_VALUES
        self._most = each * images.numel() // images.shape[1] + always

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, Tensor) and result.numel() > self._most:
                raise Refused(f"a tensor of {result.numel()} values, {tuple(result.shape)}")
        return results


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters' remarks on their own future are not the user's; what fails is raised, and the file is checked."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
