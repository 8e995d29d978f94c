"""emaseg: EMANet and MemoryNet semantic segmentation from recipes.

The public names; each is imported when first used, so that `import emaseg` costs nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emaseg.api import evaluate, export, load_weights, train
    from emaseg.models import build_model
    from emaseg.predict import Predictor
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
    "Predictor": "emaseg.predict",
    "train": "emaseg.api",
    "evaluate": "emaseg.api",
    "export": "emaseg.api",
}


class _Package(ModuleType):
    """This package. Some public functions have the name of the module whose work they start.

    The import system stores every sub-module in its package under its name: without this, `emaseg.train` would be a
    function until something imports emaseg/train.py, and that module from then on. Here it is always the function;
    `from emaseg.train import ...` finds the module all the same, since it looks in sys.modules.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
