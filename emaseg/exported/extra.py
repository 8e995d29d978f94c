"""The optional packages that ONNX files need, and the PyTorch that exporting needs.

Room: exported; never imports torch: a refusal must appear at once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence

from emaseg.errors import SystemFault

EXTRA = ("onnx", "onnxscript", "onnxruntime")  # packages of the optional extra emaseg[onnx]

# Earlier versions take a size that one trial image has for a rule: of an image of any size they make no program. Their
# .pt2 archives have a form of their own.
_TORCH = (2, 13)


def check_torch(installed: str | None = None) -> None:
    """
    Args:
        installed: PyTorch's version; None = that of this installation.

    Raises:
        SystemFault: it is too old to make a program of a network.
    """
    installed = importlib.metadata.version("torch") if installed is None else installed
    found = re.match(r"(\d+)\.(\d+)", installed)
    if found is not None and tuple(map(int, found.groups())) < _TORCH:
        needed = ".".join(map(str, _TORCH))
        raise SystemFault(
            f"exporting needs PyTorch {needed} or newer; this is {installed}",
            f"pip install 'torch>={needed}', or use --format weights, which any version writes",
        )


def check_extra(packages: Sequence[str] = EXTRA, doing: str = "--format onnx") -> None:
    """
    Raises:
        SystemFault: some of `packages` are not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemFault(f"{doing}: needs {', '.join(missing)}, not installed here", "pip install 'emaseg[onnx]'")
