"""Memory: how much a device has left, how much was taken at most, and a limit that refuses instead of killing.

Room: free_memory. Sizes are bytes; None = this system does not say.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

_SHARE = 0.9  # of what is free: the rest is left to others
# What PyTorch, oneDNN, cuDNN, cuBLAS, ONNX Runtime and C++ call it; Python itself raises MemoryError. cuDNN finds no
# engine where there is no room for any engine's workspace.
_REFUSED = re.compile(
    "can't allocate memory|not enough memory|[Ff]ailed to allocate memory|bad_alloc|out of memory|"
    "could not create a (memory|primitive)(?! descriptor)|Available memory of|"
    "unable to find an engine to execute this computation|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
)
# Of a control group: its limit, what it uses, and the page cache in that, which the system takes back when it must.
_GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """What this process may still take on Linux, the limits of its control groups (container, batch job) included."""
    free = _status(proc / "meminfo", "MemAvailable")
    if free is None:
        return None
    for version, folder in _groups(proc, cgroups):
        limit, used, cache = _GROUP_FILES[version]
        with contextlib.suppress(OSError, ValueError):  # no such group seen from here, or no limit: "max"
            room = int((folder / limit).read_text("ascii")) - int((folder / used).read_text("ascii"))
            free = min(free, max(0, room + _cache(folder / "memory.stat", cache)))
    return free


def device_memory(device: torch.device) -> int | None:
    """What this process can have on a device in all: what it holds, and what is free."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    free, held = free_memory(), _status(PROC / "self/status", "VmRSS")
    if free is not None and held is not None:
        return free + held
    with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS: half of what is built in can be had
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def room(device: torch.device, most: int | None) -> int | None:
    """What this process may still take on a device: `most` in all, or nine tenths of what it can have."""
    whole = device_memory(device)
    if device.type == "cuda":
        import torch

        held: int | None = torch.cuda.memory_allocated(device)
    else:
        held = _status(PROC / "self/status", "VmRSS")
    if held is None or (whole is None and most is None):
        return None
    limit = most if whole is None else min(most or whole, held + int(_SHARE * (whole - held)))
    return (limit or 0) - held


def give_back() -> None:
    """`trim`, and what only a collection frees."""
    gc.collect()
    trim()


def trim() -> None:
    """Return freed blocks to the system, as far as it can be: malloc keeps some for the next of their size."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Let `peak_memory` count from here on, as far as the system can; freed memory is given back first."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        trim()  # else blocks of the last step's sizes stay, beside those of the next
        with contextlib.suppress(OSError):
            (PROC / "self/clear_refs").write_text("5", "ascii")  # Linux: resets the peak of the resident size


def peak_memory(device: torch.device) -> int | None:
    """The most that was held since `reset_peak`: by the allocator on CUDA, by the whole process otherwise."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device)
    peak = _status(PROC / "self/status", "VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS; in bytes there


@contextlib.contextmanager
def allocation_limit(more: int | None) -> Iterator[None]:
    """Within the block this process gets at most `more` bytes beyond what it has: a larger request fails, as
    `is_out_of_memory` recognises. Without that Linux grants it, and kills this process or another when it is used.

    Nothing happens for None, and on other systems.
    """
    data = _status(PROC / "self/status", "VmData")
    if more is None or data is None:
        yield
        return
    try:
        import resource
    except ImportError:
        yield
        return

    soft, hard = before = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (data + max(0, more), soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def start_threads() -> None:
    """Start the threads that PyTorch computes with, forwards and backwards.

    Under `allocation_limit` the system may refuse their stacks, and OpenMP then crashes the process.
    """
    import torch

    image = torch.zeros(2, 16, 64, 64, requires_grad=True)
    weight = torch.zeros(16, 16, 3, 3, requires_grad=True)
    torch.relu(torch.nn.functional.conv2d(image, weight, padding=1)).sum().backward()  # type: ignore[no-untyped-call]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation was refused."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and says_out_of_memory(error))


def says_out_of_memory(error: BaseException) -> bool:
    """As `is_out_of_memory`, of the words alone: ONNX Runtime's exceptions have no base but Exception."""
    return bool(_REFUSED.search(str(error)))


def _status(path: Path, key: str) -> int | None:
    """The value of `key` in one of proc's files, which count in kB."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = path.read_text("utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    return None


def _cache(path: Path, key: str) -> int:
    """Bytes of files that a control group's memory.stat counts as not lately used."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = path.read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == key)
    return 0


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of every control group that may limit this process: its own, and all those around it.

    A container sees its own group as the top one, under whatever name the host has for it.
    """
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            version, top = (1, cgroups / "memory") if controllers else (2, cgroups)
            own = top / path.strip("/")
            yield from ((version, folder) for folder in (own, *own.parents) if folder == top or top in folder.parents)
