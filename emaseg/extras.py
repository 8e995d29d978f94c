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
    """How to install an extra: with pip, or with uv, whose environments have no pip. Neither touches PyTorch."""
    packages = " ".join(EXTRAS[extra])
    return f"pip install {packages}; or with uv: uv pip install {packages}"
