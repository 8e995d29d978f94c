"""Inference engine: a trained network made ready to be run, and nothing else any more. `stages.py` shows how.

Room: engine.
"""

from __future__ import annotations

from emaseg.engine.slim import slim
from emaseg.engine.stages import Agreement, Engine, Precision, check_precision, engine_lines, prepare, stays_float32

__all__ = ["Agreement", "Engine", "Precision", "check_precision", "engine_lines", "prepare", "slim", "stays_float32"]
