"""The optional packages, and the command that installs them.

Room: extras.
"""

from __future__ import annotations

# As in pyproject.toml: the names of the extras and of what they bring.
EXTRAS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "opencv": ("opencv-python-headless",),
    "tensorboard": ("tensorboard",),
    "tiff": ("tifffile", "imagecodecs"),
}


def install(extra: str) -> str:
    """How to install an extra: with pip in any environment, or with uv in a checkout, whose environment has no pip."""
    return f"pip install {' '.join(EXTRAS[extra])}; or in a checkout: uv sync --no-dev --inexact --extra {extra}"
