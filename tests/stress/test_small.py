"""The stress scripts with small numbers; the full ones: `python -m tests.stress.kills 40`, `.full_disk`, `.two_trainers`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.stress.common import warm
from tests.stress.full_disk import full_disk
from tests.stress.kills import kills
from tests.stress.two_trainers import two_trainers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def test_kills_lose_nothing(tmp_path: Path, one_thread: None) -> None:
    """Protects weights, scores and metrics.csv: killed at random moments and resumed, the end is the uninterrupted one's."""
    warm(tmp_path)
    assert kills(2, True, 0, tmp_path)


def test_full_disks_lose_nothing(tmp_path: Path, one_thread: None) -> None:
    """Protects the run on a disk that gets full: exit 4, then --resume ends as if nothing had been."""
    assert full_disk(2, True, tmp_path)


def test_of_two_trainers_one_trains(tmp_path: Path, one_thread: None) -> None:
    """Protects a folder from a second trainer."""
    assert two_trainers(1, True, tmp_path)
