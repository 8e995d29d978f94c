"""Exporting: slim the network, write the file, prove it against the network, and only then give it its name.

Room: exporting.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from emaseg.checkpoint import Checkpoint, load_network, save_checkpoint
from emaseg.data.files.bands import bands_of
from emaseg.data.sets.build import build_dataset
from emaseg.engine import slim
from emaseg.errors import DataError, RecipeError, SystemFault, WeightsError
from emaseg.events import Note
from emaseg.exported.info import FileInfo
from emaseg.exported.runtime import open_exported
from emaseg.exporting.network import InferenceNetwork
from emaseg.exporting.program import program_of, write_onnx, write_pt2
from emaseg.exporting.quantise import MOST_PIXELS, Cost, calibration_images, cost, quantise
from emaseg.exporting.request import Request, check_windows
from emaseg.exporting.verify import TOLERANCES, Check, Tolerance, compare, failed, logits_of, probes
from emaseg.extras import EXTRAS
from emaseg.files import fault
from emaseg.free_memory import is_out_of_memory
from emaseg.models import Network
from emaseg.recipe import Recipe
from emaseg.words import counted, lines_of

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of an export.

    Attributes:
        path: the file; it exists only when `passed`. size: its bytes.
        info: what the file says of itself; None for plain weights.
        checks: the comparisons with the network. tolerance: what they had to keep.
        cost: of 8 bits, in mIoU; None where it was not measured.
    """

    path: Path
    size: int
    info: FileInfo | None
    checks: tuple[Check, ...]
    tolerance: Tolerance
    cost: Cost | None = None

    @property
    def passed(self) -> bool:
        return all(check.within(self.tolerance) for check in self.checks)


def export(network: Network, recipe: Recipe, request: Request, path: Path) -> Iterator[Note | Exported]:
    """Write a trained network as a file for other programs, or (format "weights") as a checkpoint of ours.

    Args:
        network: in eval mode on the CPU; it is used up.
        path: where to; nothing stands there unless the comparison passes.

    Yields:
        Notes while it works, Exported at the end.

    Raises:
        DataError: an image of --calibrate cannot be read.
        RecipeError: the recipe's images have no 8-bit pixels that --include normalize could take, or its windows are not
            of the one size that the file would take.
        WeightsError: the network cannot be held by such a file.
        SystemFault: disk full, no permission.
    """
    bands = bands_of(recipe)
    if bands is not None and bands.floats and "normalize" in request.include:
        raise RecipeError(
            "--include normalize: makes 8-bit pixels the input, and data.range is for values of more than 8 bits",
            "leave normalize out; the file's metadata say how values are scaled and normalised",
        )
    check_windows(request, recipe.inference)
    images = () if request.calibrate is None else calibration_images(request.calibrate, bands)
    trials = probes(request, images, recipe.backbone.in_channels)
    references = logits_of(network, trials, recipe)
    info: FileInfo | None = None
    score: Cost | str | None = None
    with _staged(path) as file:
        if request.format == "weights":
            yield Note("writing the weights")
            own: nn.Module | None = _write_weights(network, recipe, request, file)
        else:
            own = None
            info = file_info(network, recipe, request)
            yield Note(f"making a program for {_sizes(request)}")
            _write_program(network, file, request, info)
            if request.precision == "int8":
                full = file.rename(file.with_name(f"full{file.suffix}"))
                yield Note(f"learning the range of every value from {len(images)} images")
                cut = quantise(full, file, images, info)
                if cut:
                    larger = f"{counted(cut, 'image')} of more than {MOST_PIXELS / 1e6:.1f} megapixels"
                    yield Note(f"{larger}: the ranges were learned from the middle only")
                score = _cost(full, file, info)
                if isinstance(score, str):
                    yield Note(score, warning=True)
        yield Note("comparing the written file with the network")
        labels = "argmax" in request.include
        try:
            written = own or open_exported(file)
            checks = tuple(compare(written, trials, references, recipe, labels=labels))
        except WeightsError as error:  # values that the precision does not hold, for one
            yield Note(error.message.replace(str(file), path.name), warning=True)
            checks = tuple(failed(trials))
        cost_ = score if isinstance(score, Cost) else None
        done = Exported(path, file.stat().st_size, info, checks, TOLERANCES[request.precision], cost_)
        if done.passed:
            _publish(file, path)
    yield done


def file_info(network: Network, recipe: Recipe, request: Request) -> FileInfo:
    """What the file will say of itself."""
    packages = ("torch", *(EXTRAS["onnx"] if request.format == "onnx" else ()))
    versions = {name: version(name) for name in ("emaseg", *packages)}
    return FileInfo(recipe, request.precision, request.include, request.shape, network.align_corners, versions)


def _write_program(network: Network, file: Path, request: Request, info: FileInfo) -> None:
    slim(network)
    backbone = info.recipe.backbone
    whole = InferenceNetwork(network, request.include, backbone.mean, backbone.std, DTYPES[request.precision])
    program = program_of(whole.eval(), request.shape, backbone.in_channels)
    if request.format == "torch":
        write_pt2(program, file, info.texts())
    else:
        write_onnx(program, file, info.output, info.texts(), request.shape)


def _write_weights(network: Network, recipe: Recipe, request: Request, file: Path) -> Network:
    """Our checkpoint without an optimiser's state; returns the network that is read back from it.

    Raises:
        WeightsError: a value is beyond what the precision holds.
    """
    dtype = DTYPES[request.precision]
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    beyond = [k for k, v in network.state_dict().items() if bool((v.isfinite() & ~state[k].isfinite()).any())]
    if beyond:
        largest = max(float(network.state_dict()[k].abs().max()) for k in beyond)
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise WeightsError(
            f"--precision {request.precision}: the weights do not fit: {beyond[0]}{more} has values up to {largest:.3g}, "
            f"and {request.precision} holds {torch.finfo(dtype).max:.3g}",
            "use --precision bf16 or fp32",
        )
    save_checkpoint(file, Checkpoint(state, {}, 0, 0, {}, {}, {}, recipe))
    return load_network(recipe, file)


def _cost(full: Path, quantised: Path, info: FileInfo) -> Cost | str:
    """What 8 bits cost on the recipe's evaluation split, or why that cannot be said."""
    try:
        return cost(full, quantised, info, build_dataset(info.recipe.data, "eval", bands_of(info.recipe)))
    except (DataError, RecipeError, SystemFault, WeightsError) as error:
        reason = f"{lines_of(error.message)[0]} ({error.hint})"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = "out of memory"
    return f"the cost of 8 bits in mIoU was not measured: {reason}"


def _sizes(request: Request) -> str:
    return "images of any size" if request.shape is None else "images of {1} x {0} pixels".format(*request.shape)


# ---------------------------------------------------------------------------------------------------- the file
@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A place for a file of `path`'s suffix, in a folder beside it that vanishes with all that is left there.

    Raises:
        SystemFault: disk full, no permission.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem[:40]}.", dir=path.parent) as folder:
            file = Path(folder) / f"export{path.suffix}"
            try:
                yield file
            except SystemFault as error:
                if str(file) not in error.message:
                    raise
                raise SystemFault(error.message.replace(str(file), str(path)), error.hint) from error
    except OSError as error:
        raise fault(error, path, "writing it") from error


def _publish(file: Path, path: Path) -> None:
    """The whole file under its name, on the disk."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(file, path)
