"""The golden numbers are described: where each file comes from, and which test reads it."""

from __future__ import annotations

import re

from tests.parity import GOLDEN

TEXT = (GOLDEN / "README.md").read_text()
NAMED = re.findall(r"`([\w./]+\.(?:npz|json))`", TEXT)


def test_every_file_is_described_and_every_described_file_exists() -> None:
    """Protects against numbers of unknown origin, and against a description of what is gone."""
    files = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file()} - {"README.md"}
    assert sorted(NAMED, key=str) == sorted(files), "each file is named once, in backticks"


def test_the_tests_that_are_said_to_read_a_file_read_it() -> None:
    """Protects the last column: each test there exists and reads golden files, itself or through a helper."""
    tests = set(re.findall(r"`(tests/[\w/]+\.py)`", TEXT))
    assert tests
    for name in tests:
        source = (GOLDEN.parents[1] / name).read_text()
        assert re.search(r"golden|filled_file|filled_backbone|tests\.data\.pipeline", source), name
