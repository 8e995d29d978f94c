"""The device that these tests need, or the reason why they are skipped."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product of the process
TRIED_ON = "EMASEG_GPU_TESTS_ON"  # "cpu" runs them there: slower, and it shows only that they run


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CUDA, or what the variable above names."""
    name = os.environ.get(TRIED_ON, "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"PyTorch sees no CUDA device here ({TRIED_ON}=cpu tries the tests on the CPU)")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)
