"""The table in recipes/README.md of the three EMANets is what the recipes say."""

from __future__ import annotations

import re
from pathlib import Path

from tests.recipe.differences import SOURCES, difference_table

README = (Path(__file__).parent.parent.parent / "recipes/README.md").read_text()


def test_the_readme_holds_the_table() -> None:
    """Protects readers from a table that has gone stale: `python -m tests.recipe.differences` prints the right one."""
    section = README.partition("## Three EMANets\n")[2].partition("\n## ")[0]
    assert section.strip().endswith(difference_table())


def test_every_source_belongs_to_a_difference() -> None:
    """Protects the sources from keys that no longer differ."""
    assert set(SOURCES) == set(re.findall(r"^\| `(\w+\.\w+)` \|", difference_table(), re.MULTILINE))
