"""The optional packages that ONNX files need.

Room: exported; never imports torch: a refusal must appear at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from emaseg.errors import SystemFault

EXTRA = ("onnx", "onnxscript", "onnxruntime")  # packages of the optional extra emaseg[onnx]


def check_extra(packages: Sequence[str] = EXTRA, doing: str = "--format onnx") -> None:
    """
    Raises:
        SystemFault: some of `packages` are not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemFault(f"{doing}: needs {', '.join(missing)}, not installed here", "pip install 'emaseg[onnx]'")
