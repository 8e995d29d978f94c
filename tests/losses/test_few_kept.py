"""A run whose hard-example mining keeps next to nothing says so, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from emaseg.events import Note
from tests.helpers import run, tiny


@pytest.mark.parametrize(("least", "times"), [(1, 1), (500, 0)])
def test_few_hard_pixels_are_said_once(tmp_path: Path, least: int, times: int) -> None:
    """Protects people whose loss falls because a handful of outliers is all that is trained."""
    options = ("loss.ohem_threshold=1e-9", f"loss.ohem_min_kept={least}", "train.log_every=1", "train.iterations=3")
    events = run(tiny(*options, "train.evaluate_every=0"), tmp_path / "run")
    notes = [event.text for event in events if isinstance(event, Note) and "OHEM keeps" in event.text]
    assert len(notes) == times
    assert (tmp_path / "run/log.txt").read_text().count("OHEM keeps") == times
