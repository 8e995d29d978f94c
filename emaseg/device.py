"""Choosing where to compute.

Room: bottom; imports torch and errors.
"""

from __future__ import annotations

import torch

from emaseg.errors import RecipeError, SystemFault, nearest

_KINDS = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str) -> torch.device:
    """The device called `name`: auto (CUDA, else CPU), cpu, cuda, cuda:N or mps.

    Raises:
        RecipeError: no such name.
        SystemFault: this machine has no such device.
    """
    kind, _, number = name.partition(":")
    if kind not in _KINDS or (number and (kind != "cuda" or not number.isdecimal())):
        hint = nearest(kind, _KINDS) or "use auto, cpu, cuda, cuda:N or mps"
        raise RecipeError(f"--device {name}: no such device name", hint)
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise SystemFault(f"--device {name}: PyTorch sees no CUDA device here", "use --device cpu")
        if int(number or 0) >= count:
            raise SystemFault(f"--device {name}: this machine has {count} CUDA device(s)", "count from cuda:0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SystemFault(f"--device {name}: PyTorch sees no Apple GPU here", "use --device cpu")
    return torch.device(name)
