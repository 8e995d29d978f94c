"""Packed data sets: the stored bytes and nothing else, whole or not at all, and readable by any number of processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from emaseg.data.files.label_files import LabelRule, index_rule
from emaseg.data.pipeline.loading import batches
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.packed import PackedFiles, open_packed, pack, partial_path, verify
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.shapes import Shapes
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.data import PackedData, ShapesData, num_classes
from emaseg.recipe.training import Augment
from tests.benchmarks import bench_packed
from tests.data.pipeline_golden import STATS

CLASSES = ("ground", "crack", "leaf")
RULE = index_rule(CLASSES, ignore=(255,))
AUGMENT = Augment(crop=(8, 8), scale=(0.5, 2.0))
PALETTE = np.array([[0, 0, 0], [10, 20, 30], [40, 50, 60]], np.uint8)


def files(folder: Path, count: int = 5, seed: int = 0, rule: LabelRule = RULE) -> PairedFiles:
    """Small pictures, PNG and JPEG in turn, with labels of 0..2 and 255."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    items = []
    for i in range(count):
        size = (int(rng.integers(9, 20)), int(rng.integers(9, 20)))
        image, label = folder / f"{i}.{'jpg' if i % 2 else 'png'}", folder / f"{i}_mask.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
        Image.fromarray(rng.choice(np.array([0, 1, 2, 255], np.uint8), size)).save(label)
        items.append((image, label))
    return PairedFiles(tuple(items), rule, PALETTE, "drawn here")


def packed_file(dataset: PairedFiles, path: Path) -> PackedFiles:
    assert list(pack(dataset, path))[-1:] == [(len(dataset), len(dataset))]
    return open_packed(path)


@settings(max_examples=6, deadline=None)
@given(count=st.integers(1, 6), seed=st.integers(0, 1000))
def test_packed_is_unpacked_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int) -> None:
    """Image files, label files, samples, classes and colours; and the checksum agrees."""
    folder = tmp_path_factory.mktemp("packed")
    dataset = files(folder / "files", count, seed)
    found = packed_file(dataset, folder / "train.h5")
    assert (len(found), found.classes, found.rule) == (count, CLASSES, RULE)
    assert np.array_equal(found.palette, PALETTE)
    for i, (image, label) in enumerate(dataset.items):
        assert found.stored(i) == (image.read_bytes(), label.read_bytes())
        a, b = dataset.open(i), found.open(i)
        assert np.array_equal(a.image(), b.image())
        assert np.array_equal(a.label(), b.label())
        assert str(image) in found.name(i)
    verify(folder / "train.h5")
    assert not partial_path(folder / "train.h5").exists()


def test_any_hdf5_reader_gets_the_files(tmp_path: Path) -> None:
    """The layout is what the module says it is."""
    dataset = files(tmp_path / "files")
    packed_file(dataset, tmp_path / "train.h5")
    with h5py.File(tmp_path / "train.h5") as file:
        offset, size = file["spans"][2, :2]
        assert file["bytes"][offset : offset + size].tobytes() == dataset.items[2][0].read_bytes()


def test_every_label_rule_survives(tmp_path: Path) -> None:
    """Tables of other values, colours and MATLAB files mean the same out of a packed file."""
    folder = tmp_path / "files"
    pairs = files(folder, 2)
    savemat(folder / "1.mat", {"S": np.full(pairs.open(1).label().shape, 2, np.uint8)})
    rule = replace(index_rule(CLASSES, values=(0, 2, 1), palette=((0, 0, 0), (9, 9, 9), (8, 8, 8))), mat=("S",))
    dataset = PairedFiles((pairs.items[0], (pairs.items[1][0], folder / "1.mat")), rule, PALETTE)
    found = packed_file(dataset, tmp_path / "train.h5")
    assert found.rule == rule
    assert all(np.array_equal(found.open(i).label(), dataset.open(i).label()) for i in range(2))
    assert (found.open(1).label() == 1).all()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_training_reads_the_same_batches(tmp_path: Path, workers: int) -> None:
    """Each loading process opens the file for itself, also after the parent has."""
    dataset = files(tmp_path / "files")
    found = packed_file(dataset, tmp_path / "train.h5")
    found.open(0)
    sides = [
        batches(source, AUGMENT, STATS, batch=2, start=0, total=4, seed=0, workers=workers)
        for source in (dataset, found)
    ]
    for a, b in zip(*sides, strict=True):
        assert np.array_equal(a.images, b.images)
        assert np.array_equal(a.labels, b.labels)


def test_the_data_set_travels_to_other_processes(tmp_path: Path) -> None:
    """By pickle, as under the spawn method, with no open file."""
    found = packed_file(files(tmp_path / "files"), tmp_path / "train.h5")
    expected = found.stored(1)
    assert pickle.loads(pickle.dumps(found)).stored(1) == expected


def _killed(dataset: PairedFiles, path: Path, after: int) -> None:
    for done, _ in pack(dataset, path):
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_run_leaves_a_part_that_the_next_continues(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a file under the final name; and what was noted as done is not read again."""
    monkeypatch.setattr("emaseg.data.sets.packed._STEP", 1)  # note each sample at once
    dataset, path = files(tmp_path / "files"), tmp_path / "train.h5"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(dataset, path, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    with pytest.raises(DataError, match="not finished"):
        open_packed(path)
    assert next(iter(pack(dataset, path))) == (after + 1, 5)
    assert [done for done, _ in pack(dataset, path)] == list(range(after + 2, 6))
    verify(path)
    assert open_packed(path).stored(0)[0] == dataset.items[0][0].read_bytes()


def test_other_files_are_packed_from_the_start(tmp_path: Path) -> None:
    """A .part of another data set, or one that is no HDF5 file, is not continued."""
    path = tmp_path / "train.h5"
    stopped = pack(files(tmp_path / "first", seed=1), path)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    found = packed_file(files(tmp_path / "second"), path)
    assert "second" in found.name(0)
    path.unlink()
    partial_path(path).write_bytes(b"\x89HDF nonsense")
    assert len(packed_file(files(tmp_path / "second"), path)) == 5


def test_damage_is_found(tmp_path: Path) -> None:
    """A flipped bit by the checksum, a cut at opening, another file at once."""
    path = tmp_path / "train.h5"
    found = packed_file(files(tmp_path / "files"), path)
    whole = path.read_bytes()
    place = int(found.spans[3, 0])
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(DataError, match="checksum"):
        verify(path)
    path.write_bytes(whole[: int(found.spans[4, 2])])
    with pytest.raises(DataError, match=r"cut short|damaged"):
        open_packed(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="not one that"):
        open_packed(path)
    path.write_text("text")
    with pytest.raises(DataError, match="not a packed file"):
        open_packed(path)


def test_labels_that_are_not_files_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no stored bytes"):
        list(pack(Shapes(ShapesData(kind="shapes"), "train"), tmp_path / "train.h5"))
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_names_packed_files(tmp_path: Path) -> None:
    """K is known without opening them, and other classes than theirs are refused."""
    packed_file(files(tmp_path / "files"), tmp_path / "eval.h5")
    data = PackedData(kind="packed", root=str(tmp_path), classes=CLASSES)
    assert num_classes(data) == 3
    assert len(build_dataset(data, "eval")) == 5
    with pytest.raises(DataError, match=r"train\.h5: no such file"):
        build_dataset(data, "train")
    with pytest.raises(RecipeError, match="3 classes"):
        build_dataset(replace(data, classes=("a", "b")), "eval")
    coloured = build_dataset(replace(data, palette=((1, 1, 1), (2, 2, 2), (3, 3, 3))), "eval")
    assert coloured.palette.tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def test_what_packing_saves_can_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the benchmark, which nothing else runs, from a way of reading that is no more."""
    files, packed = bench_packed.sides(tmp_path, 3)
    bench_packed.compare(files, packed)
    for what in ("bytes", "samples"):
        bench_packed.measure(files, packed, what, cold=False, rounds=1)
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert lines == [[what, "warm", side] for what in ("bytes", "samples") for side in ("files", "packed")]
