"""Whether this machine can do the work: versions, devices, decoders, memory, folders, and what to do where it cannot.

Room: doctor. What is quick is told first: PyTorch is imported for the devices alone.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emaseg.errors import SystemFault
from emaseg.extras import EXTRAS, install
from emaseg.free_memory import device_memory, free_memory
from emaseg.resources import cache_folder, mirror, offline
from emaseg.threads import core_count
from emaseg.words import quoted_path, size

if TYPE_CHECKING:
    import torch

State = Literal["ok", "warning", "error"]

_LEAST_DISK = (
    2_000_000_000  # bytes; a checkpoint of ResNet-101 with its momentum is half a gigabyte, and there are three
)
_LEAST_MEMORY = 4_000_000_000
_LEAST_SHARED = 1 << 26  # bytes of /dev/shm that GPUs of one machine talk through
_LEAST_FILES = 1024  # that a process may have open
_PROBE = 1 << 26  # bytes of shared memory that are tried
_MADE_FOR = re.compile(r"torch\s*\(?\s*(==|>=)\s*([0-9.]+)")  # what torchvision says of itself
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. state: error = something will not work. remedy: what to do; "" = nothing."""

    name: str
    value: str
    state: State = "ok"
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything, the quick things first."""
    yield Finding("emaseg", f"{_version('emaseg')} in {Path(__file__).parent}")
    yield _python()
    yield from packages()
    yield from extras()
    yield decoders()
    yield _cores()
    yield _memory()
    yield shared_memory()
    yield from _limits()
    yield from folders()
    yield _network()
    yield from devices()


# ------------------------------------------------------------------------------------------------------ software
def _python() -> Finding:
    return Finding("Python", f"{platform.python_version()} on {platform.platform(terse=True)} {platform.machine()}")


def packages() -> Iterator[Finding]:
    """The packages that emaseg needs, and whether torchvision belongs to torch."""
    for name, least in _required():
        version = _version(name)
        if version is None:
            yield Finding(name, "not installed", "error", _install(f"'{name}>={least}'"))
        elif _numbers(version) < _numbers(least):
            yield Finding(name, f"{version}, older than {least}", "error", _install(f"'{name}>={least}'"))
        else:
            yield Finding(name, version)
    torch, vision = _version("torch"), _version("torchvision")
    made_for = next((match for text in _requires("torchvision") if (match := _MADE_FOR.match(text))), None)
    if torch and vision and made_for:
        sign, wanted = made_for.groups()
        if _numbers(torch) < _numbers(wanted) or (sign == "==" and _numbers(torch) != _numbers(wanted)):
            text = f"{vision} was made for torch {sign}{wanted}, and torch {torch} is installed"
            remedy = _install(f"'torch{sign}{wanted}' 'torchvision=={vision}'")
            yield Finding("torchvision", text, "error", remedy)


def _install(what: str) -> str:
    """With pip, or with uv, whose environments have no pip."""
    return f"pip install {what}; or with uv: uv pip install {what}"


def _reinstall(what: str) -> str:
    return f"pip install --force-reinstall {what}; or with uv: uv pip install --reinstall {what}"


def extras() -> Iterator[Finding]:
    """The optional packages; none of them must be there."""
    for extra, names in sorted(EXTRAS.items()):
        versions = {name: _version(name) for name in names}
        told = ", ".join(f"{name} {version or 'is not installed'}" for name, version in versions.items())
        hint = "" if all(versions.values()) else f"; for it: {install(extra)}"
        yield Finding(f"extra {extra}", told + hint)


def _required() -> list[tuple[str, str]]:
    """Name and least version of the packages that are always needed."""
    found = []
    for text in _requires("emaseg"):
        if (match := _REQUIREMENT.match(text)) and "extra ==" not in text:
            found.append((match[1], match[2]))
    return found


def _requires(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 11, 0) of 2.11.0+cu128."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def decoders() -> Finding:
    """What reads images, and whether Pillow has the formats that data sets come in."""
    try:
        from PIL import features

        from emaseg.data.files.decoders import jpeg_decoder, png_decoder
    except ImportError as error:
        return Finding("decoders", f"cannot be loaded ({error})", "error", _reinstall("pillow numpy"))
    names = {"jpg": "JPEG", "zlib": "PNG", "libtiff": "TIFF", "webp": "WebP"}
    missing = [name for key, name in names.items() if not features.check(key)]
    fast = [name for name, decoder in (("JPEG", jpeg_decoder), ("PNG", png_decoder)) if decoder() is not None]
    text = f"OpenCV for {' and '.join(fast)}, Pillow for the rest" if fast else "Pillow"
    if missing:
        lacks = f"{text}, which was built without {', '.join(missing)}"
        return Finding("decoders", lacks, "error", _reinstall("--only-binary :all: pillow"))
    return Finding("decoders", text)


# ------------------------------------------------------------------------------------------------------- machine
def _cores() -> Finding:
    given = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    words = "".join(f"; {name}={value}" for name, value in given.items())
    cores, threads = core_count(), given.get("OMP_NUM_THREADS", "")
    if threads == "1" and cores > 1:
        hint = "unset OMP_NUM_THREADS, or set train.threads, unless several processes share this machine"
        return Finding("cores", f"{cores}{words}: the network computes with one of them", "warning", hint)
    return Finding("cores", f"{cores}{words}")


def _memory() -> Finding:
    free = free_memory()
    if free is None:
        return Finding("memory", "this system does not say what is free")
    if free < _LEAST_MEMORY:
        hint = "close other programs, raise the limit of the container, or train with a smaller batch and crop"
        return Finding("memory", f"{size(free)} free", "warning", hint)
    return Finding("memory", f"{size(free)} free")


def shared_memory() -> Finding:
    """What loading processes hand batches over in, and what GPUs of one machine talk through."""
    try:
        with mmap.mmap(-1, _PROBE) as shared:
            shared[-1] = 1
    except (OSError, ValueError) as error:
        return Finding("shared memory", f"none ({error})", "warning", "batches travel as bytes, which is slower")
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", "works")
    free = shutil.disk_usage(place).free
    text = f"works; {size(free)} free in {place}"
    if free < _LEAST_SHARED:
        return Finding(
            "shared memory", text, "warning", "training on several GPUs needs more: docker run --shm-size=1g"
        )
    return Finding("shared memory", text)


def _limits() -> Iterator[Finding]:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < _LEAST_FILES and soft != resource.RLIM_INFINITY:
            yield Finding("open files", f"{soft} at most (hard limit {hard})", "warning", f"ulimit -n {_LEAST_FILES}")


def folders() -> Iterator[Finding]:
    """Where files go: whether one can be written there, and the free space."""
    places = {"cache": cache_folder(), "runs": Path("runs"), "temporary": Path(tempfile.gettempdir())}
    remedies = {
        "cache": "set EMASEG_CACHE to a folder that you may write to",
        "runs": "change to a folder that you may write to, or name one with --out",
        "temporary": "set TMPDIR to a folder that you may write to",
    }
    for name, folder in places.items():
        there = next(above for above in (folder, *folder.absolute().parents) if os.path.exists(above))
        shown = str(folder.absolute())
        fault = _write_fault(there)
        if fault:
            yield Finding(f"{name} folder", f"{shown}: {fault}", "error", remedies[name])
            continue
        try:
            free = shutil.disk_usage(there).free
        except OSError as error:
            yield Finding(
                f"{name} folder", f"{shown}: its free space is not told ({error.strerror})", "warning", remedies[name]
            )
            continue
        if free < _LEAST_DISK:
            hint = f"free some space ({quoted_path(there)}), or choose another disk"
            yield Finding(f"{name} folder", f"{shown}: {size(free)} free", "warning", hint)
        else:
            yield Finding(f"{name} folder", f"{shown}: {size(free)} free")


def _write_fault(folder: Path) -> str:
    """Why a file cannot be written there, or ""."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return f"no file can be written ({error.strerror or error})"
    return ""


def _network() -> Finding:
    words = [
        "off (EMASEG_OFFLINE)"
        if offline()
        else "used by download-weights, for start weights, and by predict without --weights"
    ]
    words += ["through EMASEG_MIRROR"] if mirror() else []
    return Finding("network", ", ".join(words))


# ------------------------------------------------------------------------------------------------------- devices
def devices() -> Iterator[Finding]:
    """The CPU and every GPU: what it is, and whether a small convolution runs there."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that it needs is missing
        yield Finding("PyTorch", f"cannot be loaded ({error})", "error", _reinstall("torch torchvision"))
        return
    words = f"{torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}"
    yield _tried(torch.device("cpu"), words)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _gpu(torch.device("cuda", number))
    else:
        yield _no_cuda(torch.version.cuda)
    if torch.backends.mps.is_available():
        yield _tried(torch.device("mps"), "Apple GPU")


def _gpu(device: torch.device) -> Finding:
    """A CUDA device; one whose memory is full does not even say how much it has."""
    import torch

    from emaseg.device import has_bf16

    try:
        about = torch.cuda.get_device_properties(device)
        memory = f"{size(device_memory(device) or 0)} of {size(about.total_memory)} free"
        half = "bf16 and fp16" if has_bf16(device) else "fp16"
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        return Finding(str(device), f"cannot be used: {first}", "error", "look at nvidia-smi; or use --device cpu")
    return _tried(device, f"{about.name}, {memory}, compute capability {about.major}.{about.minor}, {half}")


def _no_cuda(built_for: str | None) -> Finding:
    """Why there is no CUDA device, where a GPU seems to be there."""
    gpu = any(Path(place).exists() for place in ("/dev/nvidia0", "/proc/driver/nvidia/version"))
    gpu = gpu or shutil.which("nvidia-smi") is not None
    if not gpu:
        return Finding("cuda", "no NVIDIA GPU here; training runs on the CPU")
    if built_for is None:
        text, hint = (
            "an NVIDIA GPU is here, but this PyTorch is built without CUDA",
            "install a build of torch for CUDA",
        )
    else:
        text = f"an NVIDIA GPU is here, but PyTorch (CUDA {built_for}) does not see it"
        hint = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; update the driver, or install a torch for an older CUDA"
    return Finding("cuda", text, "error", hint)


def _tried(device: torch.device, words: str) -> Finding:
    """A convolution, forwards and backwards, as training does it."""
    import torch

    try:
        image = torch.ones(1, 8, 16, 16, device=device, requires_grad=True)
        weight = torch.ones(8, 8, 3, 3, device=device)
        torch.nn.functional.conv2d(image, weight).sum().backward()  # type: ignore[no-untyped-call]
        right = image.grad is not None and float(image.grad[0, 0, 8, 8]) == 72.0
    except (RuntimeError, SystemFault) as error:
        first = str(error).strip().partition("\n")[0]
        hint = "use another --device" if device.type == "cpu" else f"use --device cpu, or update the driver of {device}"
        return Finding(str(device), f"{words}; a convolution fails: {first}", "error", hint)
    if not right:
        return Finding(str(device), f"{words}; a convolution gives wrong numbers", "error", "use another --device")
    return Finding(str(device), words)
