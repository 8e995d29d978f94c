"""OpenCV, where it is installed (`emaseg[opencv]`): for what it does to the same bits in less time.

Room: data/files.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def opencv() -> Any | None:
    """The module, told to compute in the calling thread; None where it is not installed.

    Its own threads would crowd the cores that the loading processes share, and are gone in a process that was forked
    after their start, which then waits for them.
    """
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return None
    cv2.setNumThreads(0)
    return cv2
