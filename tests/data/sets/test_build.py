"""Opening the data set that a recipe names."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from emaseg.data.sets.build import build_dataset
from emaseg.errors import DataError
from emaseg.recipe.data import Data

SECTIONS = [(kind, section) for section in get_args(Data) for kind in get_args(get_type_hints(section)["kind"])]


@pytest.mark.parametrize(("kind", "section"), SECTIONS, ids=[kind for kind, _ in SECTIONS])
def test_every_kind_of_data_has_a_reader(kind: str, section: Any, tmp_path: Path) -> None:
    """No recipe passes the reader of recipes only to find that its data set cannot be read: an empty folder is told."""
    needed = {"kind": kind, "root": str(tmp_path), "classes": ("a", "b")}
    keys = [field.name for field in dataclasses.fields(section) if field.default is dataclasses.MISSING]
    data = section(**{key: needed.get(key, "none") for key in keys})
    if kind == "shapes":  # drawn, not read
        assert len(build_dataset(data, "train")) == data.train_images
        return
    with pytest.raises(DataError) as caught:
        build_dataset(data, "train")
    assert str(tmp_path) in caught.value.message


def test_one_data_set_does_not_import_the_others() -> None:
    """Protects the start of commands that look into folders only, such as predict."""
    code = (
        "import sys, emaseg.data.sets.folder\n"
        "print(sorted(m for m in sys.modules if m.endswith(('sets.voc', 'sets.packed', 'sets.build'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
