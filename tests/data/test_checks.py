"""The look at the labels before step 1: quick, evenly spread, and it stops a run that could only fail later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from emaseg.data.checks import check_dataset, spread
from emaseg.data.dataset import MemorySample, Sample
from emaseg.data.files.label_files import index_rule
from emaseg.data.sets.pairs import PairedFiles
from emaseg.errors import DataError, SystemFault

CLASSES = ("a", "b", "c")


def files(folder: Path, masks: list[list[int]], classes: tuple[str, ...] = CLASSES) -> PairedFiles:
    items = []
    for i, row in enumerate(masks):
        image, mask = folder / f"{i:03}.jpg", folder / f"{i:03}.png"
        Image.new("RGB", (len(row), 1)).save(image)
        Image.fromarray(np.array([row], np.uint8)).save(mask)
        items.append((image, mask))
    return PairedFiles(tuple(items), index_rule(classes), np.zeros((len(classes), 3), np.uint8))


@dataclass(frozen=True)
class Drawn:
    """A data set without files."""

    labels: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...] = CLASSES

    @property
    def palette(self) -> np.ndarray:
        return np.zeros((len(self.classes), 3), np.uint8)

    @property
    def withheld_by(self) -> str:
        return ""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"drawn/{index}"

    def open(self, index: int) -> Sample:
        label = np.array([self.labels[index]], np.uint8)
        return MemorySample(self.name(index), np.zeros((*label.shape, 3), np.uint8), label)


def test_report_counts_pixels_images_and_the_ignored_share(tmp_path: Path) -> None:
    masks = [[0, 0, 1, 255], [1, 1, 1, 1]]
    for dataset in (files(tmp_path, masks), Drawn(tuple(map(tuple, masks)))):
        report = check_dataset(dataset)
        assert (report.images, report.checked) == (2, 2)
        assert report.class_pixels == (2, 5, 0)
        assert report.class_images == (1, 2, 0)
        assert report.never_seen == ("c",)
        assert report.ignored_share == 1 / 8


def test_a_sample_says_nothing_about_classes_never_seen() -> None:
    report = check_dataset(Drawn(((0, 1),) * 10), limit=3)
    assert (report.images, report.checked, report.never_seen) == (10, 3, ())


@given(total=st.integers(1, 500), limit=st.integers(1, 100))
def test_the_sample_is_spread_evenly(total: int, limit: int) -> None:
    chosen = spread(total, limit)
    assert len(chosen) == min(total, limit)
    assert chosen[0] == 0
    assert limit == 1 or chosen[-1] == total - 1
    steps = np.diff(chosen)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_problems_are_collected_five_shown_and_counted(tmp_path: Path) -> None:
    dataset = files(tmp_path, [[0, 1, 2]] * 3 + [[0, 1, 7]] * 7)
    with pytest.raises(DataError) as caught:
        check_dataset(dataset)
    message = caught.value.message
    assert "7 of 10 samples checked (of 10)" in message
    assert "and 2 more" in message
    assert message.count("7 (1 pixel)") == 5
    assert str(dataset.items[3][1]) in message
    assert caught.value.hint.count("data.ignore") == 1  # one remedy, said once


def test_size_mismatch_and_missing_image_are_found_without_decoding_images(tmp_path: Path) -> None:
    dataset = files(tmp_path, [[0, 1], [0, 1], [0, 1]])
    Image.new("RGB", (9, 9)).save(dataset.items[0][0])
    dataset.items[1][0].unlink()
    with pytest.raises(DataError) as caught:
        check_dataset(dataset)
    assert "9 x 9" in caught.value.message
    assert "no such file" in caught.value.message


def test_binary_masks_hidden_by_the_ignored_value(tmp_path: Path) -> None:
    """0 and 255 pass value by value where 255 is ignored, and would train a network of one class."""
    with pytest.raises(DataError) as caught:
        check_dataset(files(tmp_path, [[0, 255], [0, 0]], ("ground", "crack")))
    assert 'other than "ground"' in caught.value.message
    assert str(tmp_path / "000.jpg") in caught.value.message
    assert "save the second class as 1" in caught.value.hint


def test_a_rare_class_outside_the_sample_is_no_binary_mask() -> None:
    labels = [(0, 255)] * 20
    labels[7] = (0, 1)
    assert check_dataset(Drawn(tuple(labels)), limit=2).class_pixels == (2, 0, 0)


def test_labels_of_the_first_class_alone_are_legal() -> None:
    assert check_dataset(Drawn(((0, 0),))).class_pixels == (2, 0, 0)


def test_any_data_set_is_held_to_its_number_of_classes() -> None:
    with pytest.raises(DataError, match=r"drawn/0: its label holds 3 \(1 pixel"):
        check_dataset(Drawn(((0, 3),)))


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        check_dataset(Drawn(()))


def test_faults_of_the_machine_stop_at_once() -> None:
    """A full memory is not a finding about the labels."""

    @dataclass(frozen=True)
    class Failing(Drawn):
        def open(self, index: int) -> Sample:
            raise SystemFault("no memory")

    with pytest.raises(SystemFault):
        check_dataset(Failing(((0,),)))
