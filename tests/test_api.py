"""The public names: few, lazy, and as documented."""

from __future__ import annotations

import subprocess
import sys

import pytest

import emaseg


def test_public_names_are_exact() -> None:
    """Protects users' imports: these names and no others."""
    assert emaseg.__all__ == ["Predictor", "__version__", "build_model", "load_recipe", "load_weights"]
    assert all(callable(getattr(emaseg, name)) for name in emaseg.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = emaseg.nothing


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code + "; import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_is_free() -> None:
    """Protects start-up: importing the package, or reading a recipe, loads neither torch nor numpy."""
    loaded = modules_after("import emaseg; emaseg.load_recipe('voc_r50_d8')")
    assert not {"torch", "numpy", "torchvision", "rich", "typer"} & loaded


def test_prediction_does_without_torchvision() -> None:
    """Protects the first prediction from seconds of imports it does not need."""
    loaded = modules_after(
        "import emaseg, numpy as np; r = emaseg.load_recipe('demo'); "
        "emaseg.Predictor(emaseg.build_model(r), r).predict(np.zeros((64, 64, 3), np.uint8))"
    )
    assert "torch" in loaded
    assert not {"torchvision", "rich", "typer", "torch._dynamo", "torch._inductor"} & loaded
