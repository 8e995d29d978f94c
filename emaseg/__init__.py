"""emaseg: EMANet and MemoryNet semantic segmentation from recipes.

The public names; each is imported when first used, so that `import emaseg` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emaseg.api import evaluate, export, load_weights, train
    from emaseg.inference.predict import Predictor
    from emaseg.models import build_model
    from emaseg.recipe import load_recipe

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "__version__",
    "build_model",
    "evaluate",
    "export",
    "load_recipe",
    "load_weights",
    "train",
]

_HOMES = {
    "load_recipe": "emaseg.recipe",
    "build_model": "emaseg.models",
    "load_weights": "emaseg.api",
    "Predictor": "emaseg.inference.predict",
    "train": "emaseg.api",
    "evaluate": "emaseg.api",
    "export": "emaseg.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
