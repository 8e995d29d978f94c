"""`python -m tests.gpu` at the top of the repository: the tests that need a CUDA device, with no plugin of pytest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

if __name__ == "__main__":
    options = [
        "-c",
        HERE / "pytest.ini",
        "--rootdir",
        HERE.parent.parent,
        "--confcutdir",
        HERE,
        "-p",
        "no:cacheprovider",
    ]
    sys.exit(pytest.main([*map(str, options), "-ra", "--durations=5", str(HERE), *sys.argv[1:]]))
