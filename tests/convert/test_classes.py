"""The classes of an export: their number is counted before anything is made of their names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from emaseg.convert.classes import class_list, read_names
from emaseg.convert.export import Label
from emaseg.errors import DataError


@pytest.mark.parametrize("name", ["a", "ignore"])
def test_very_many_labels_of_one_name(name: str) -> None:
    """Protects from an export of a few hundred kilobytes that holds convert for hours."""
    labels = [Label(str(key), name) for key in range(20_000)]
    start = time.process_time()
    if name == "a":
        with pytest.raises(DataError, match="20,001 classes; 254 fit"):
            class_list(labels, unlabelled="background")
    else:
        found = class_list([*labels, Label("x", "car")], unlabelled="background")
        assert (found.names, found.values["19999"], found.values["x"]) == (("background", "car"), 255, 1)
    assert time.process_time() - start < 5


def test_labels_that_share_a_name_get_numbers() -> None:
    """Protects each label's value where two labels have one name, and no label at all from becoming a data set."""
    labels = [Label("1", "car"), Label("2", "bg"), Label("3", "car"), Label("4", "void"), Label("5", "car_2")]
    found = class_list(labels, unlabelled="background")
    assert found.names == ("bg", "car", "car_2", "car_2_2")
    assert found.values == {"": 0, "2": 0, "1": 1, "3": 2, "5": 3, "4": 255}
    with pytest.raises(DataError, match="name no classes"):
        class_list([Label("4", "void")], unlabelled="background")


def test_a_huge_file_of_names_is_none(tmp_path: Path) -> None:
    """Protects the memory from a file that lies where a run keeps its names."""
    with (tmp_path / "classes.json").open("wb") as file:
        file.truncate(1 << 30)
    start = time.process_time()
    assert read_names(tmp_path) == {}
    assert time.process_time() - start < 1
