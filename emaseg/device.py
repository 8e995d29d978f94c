"""Choosing where to compute, and how this process treats its memory.

Room: device.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator

import torch

from emaseg.distributed.ranks import this_rank
from emaseg.errors import RecipeError, SystemFault, nearest

_KINDS = ("auto", "cpu", "cuda", "mps")
_ALIASES = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps"}  # what people write; by its letters gpu is next to cpu
# The process's setting of TF32, once for each thread that is in a block of full_float32.
_before: list[tuple[bool, bool]] = []
_turning = threading.Lock()
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def pick_device(name: str) -> torch.device:
    """The device called `name`: auto (CUDA, else CPU), cpu, cuda, cuda:N or mps.

    Of several processes on a machine each gets a GPU of its own; where Slurm has bound one to each, that is the first.

    Raises:
        RecipeError: no such name.
        SystemFault: this machine has no such device.
    """
    kind, _, number = name.partition(":")
    if kind not in _KINDS or (number and (kind != "cuda" or not number.isdecimal())):
        alias = _ALIASES.get(kind.lower())
        meant = f'did you mean "{alias}"?' if alias else nearest(kind, _KINDS)
        hint = f"{meant} known are auto (CUDA where there is one), cpu, cuda, cuda:N and mps".strip()
        raise RecipeError(f"--device {name}: no such device name", hint)
    rank = this_rank()
    if rank.world > 1 and (number or kind == "mps"):
        raise RecipeError(f"--device {name}: {rank.world} processes cannot share it", "use auto, cuda or cpu")
    if kind == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if rank.world > 1 and kind in ("auto", "cuda"):
        own = 0 if rank.bound and torch.cuda.device_count() == 1 else rank.local
        kind, number, name = "cuda", str(own), f"cuda:{own}"
    if kind == "auto":
        return torch.device("cuda")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise SystemFault(f"--device {name}: PyTorch sees no CUDA device here", "use --device cpu")
        if rank.world > 1 and int(number or 0) >= count:
            raise SystemFault(
                f"process {rank.local} of this machine has no GPU of its own: PyTorch sees {count} CUDA device(s)",
                "start as many processes as there are GPUs, or use --device cpu",
            )
        if int(number or 0) >= count:
            raise SystemFault(f"--device {name}: this machine has {count} CUDA device(s)", "count from cuda:0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SystemFault(f"--device {name}: PyTorch sees no Apple GPU here", "use --device cpu")
    return torch.device(name)


_ENOUGH = {0: "use --device cpu", 1: "leave --nproc out, or use --device cpu"}  # by the number of GPUs


def check_gpus(processes: int, name: str) -> None:
    """Refuse more processes of one machine than it has GPUs for, where the device called `name` is a GPU.

    Raises:
        SystemFault: says how many there are.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (name == "cuda" or (name == "auto" and count)) and processes > count:
        raise SystemFault(
            f"--nproc {processes}: each process needs a GPU of its own, and PyTorch sees {count} CUDA device(s) here",
            _ENOUGH.get(count, f"--nproc {count}, or --device cpu"),
        )


def slow_precision(precision: str, device: torch.device) -> list[str]:
    """A line where a precision that is chosen for speed takes longer than float32: bf16 on a processor without AVX-512 or
    another unit for it (on Zen 3 eleven times as long)."""
    works = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not there without oneDNN
    if precision != "bf16" or device.type != "cpu" or (works and works()):
        return []
    return ["bf16 takes longer than fp32 on this processor, which has no instructions for it"]


def has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device, of several perhaps unlike ones, computes in bfloat16 itself."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within the block, float32 products on a GPU keep all their bits: PyTorch's convolutions compute in TF32 otherwise,
    whose numbers have 10 bits of float32's 23. It is a setting of the whole process, and is what it was when the last of
    the threads that are in such a block has left it."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with _turning:
        _before.append(_before[-1] if _before else (matmul.allow_tf32, cudnn.allow_tf32))
        matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        with _turning:
            before = _before.pop()
            if not _before:
                matmul.allow_tf32, cudnn.allow_tf32 = before


def keep_freed_memory() -> None:
    """Let this process keep large blocks that it frees: the next of that size is served from them.

    glibc returns such blocks (activations, batches, decoded images) to the system at once and fetches them again,
    cleared, one page fault for every 4 KiB. That was an eighth of the time of a training step on a CPU; kept, the
    peak rose by 7 %. Only training gains: an engine is at most 5 % faster with it, and at several scales the peak of
    `eval --tta` was 1.8 times as high. It is a setting of the whole process, so a program calls this, not a library
    function. Nothing happens with another C library.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
