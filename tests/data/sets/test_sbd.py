"""SBD's .mat labels for VOC's trainaug: where they may lie, which mask wins, how the list is made, and damaged files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from emaseg.data.dataset import read_pair
from emaseg.data.files.mat import read_mat
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.voc import voc
from emaseg.errors import DataError
from emaseg.open_datasets import open_datasets
from emaseg.recipe.data import VOCData
from tests.data.made import fails, image, label, real
from tests.data.test_data_scripts import script
from tests.helpers import tiny


def mat(path: Path, value: int) -> None:
    """A file as SBD's: a structure with the label map and more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "Boundaries": np.zeros((20, 1), object),
        "Segmentation": np.full((2, 3), value, np.uint8),
        "CategoriesPresent": np.array([[value]], np.uint8),
    }
    savemat(path, {"GTcls": content}, do_compression=True)


def tree(top: Path, sbd: str) -> Path:
    """VOC with train a and val v, both with masks; SBD with a and c in train, b and v in val."""
    root = top / "VOCdevkit/VOC2012"
    for name in "abcv":
        image(root / "JPEGImages" / f"{name}.jpg")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for split, name in (("train", "a"), ("val", "v")):
        label(root / "SegmentationClass" / f"{name}.png", [1])
        (lists / f"{split}.txt").write_text(f"{name}\n")
    dataset = Path(os.path.normpath(root / sbd))
    for value, name in enumerate("abcv", 11):
        mat(dataset / "cls" / f"{name}.mat", value)
    (dataset / "train.txt").write_text("a\nc\n")
    (dataset / "val.txt").write_text("v\nb\n")
    return root


def trainaug(root: Path, **keys: object) -> PairedFiles:
    return voc(VOCData(kind="voc", root=str(root), **keys), "train")  # type: ignore[arg-type]


def found(dataset: PairedFiles) -> list[tuple[str, int]]:
    return [(Path(dataset.name(i)).stem, int(dataset.open(i).label()[0, 0])) for i in range(len(dataset))]


@pytest.mark.parametrize(
    "sbd",
    [
        "benchmark_RELEASE/dataset",
        "dataset",
        "../benchmark_RELEASE/dataset",
        "../../benchmark_RELEASE/dataset",
        "../VOCaug/dataset",
        "../../SBD",
    ],
)
def test_the_owners_download_is_enough(tmp_path: Path, sbd: str) -> None:
    """trainaug = (VOC train, SBD train and val) less VOC val; VOC's own mask goes before SBD's."""
    dataset = trainaug(tree(tmp_path, sbd))
    assert found(dataset) == [("a", 1), ("b", 12), ("c", 13)]
    assert f"2 from {sbd}/cls (.mat)" in dataset.layout
    assert "1 from SegmentationClass" in dataset.layout
    assert "trainaug made from the lists of" in dataset.layout


def test_a_list_goes_before_a_made_one(tmp_path: Path) -> None:
    root = tree(tmp_path, "dataset")
    (root / "ImageSets/Segmentation/trainaug.txt").write_text("c\na\n")
    dataset = trainaug(root)
    assert found(dataset) == [("c", 13), ("a", 1)]
    assert "made from" not in dataset.layout


def test_the_folders_decide_which_mask_is_taken(tmp_path: Path) -> None:
    """PNGs of SegmentationClassAug go before SBD's files; a named folder of .mat files goes where it stands."""
    root = tree(tmp_path, "dataset")
    label(root / "SegmentationClassAug/b.png", [2])
    assert found(trainaug(root)) == [("a", 1), ("b", 2), ("c", 13)]
    swapped = trainaug(root, label_folders=("dataset/cls", "SegmentationClass"))
    assert found(swapped) == [("a", 11), ("b", 12), ("c", 13)]


def test_the_source_of_the_masks_is_told_before_training(tmp_path: Path) -> None:
    """As a note of the plan, one for each part."""
    root = tree(tmp_path, "dataset")
    recipe = dataclasses.replace(tiny(), data=VOCData(kind="voc", root=str(root)))
    train, held, notes = open_datasets(recipe)
    texts = [note.text for note in notes]
    assert f"training: {train.layout}" in texts
    assert f"evaluation: {held.layout}" in texts
    assert "2 from dataset/cls (.mat)" in train.layout
    assert held.layout == f"PASCAL VOC: {root}; masks: 1 from SegmentationClass"


def test_without_the_labels_the_download_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "dataset")
    (root / "dataset/cls/c.mat").unlink()
    fails(lambda: trainaug(root), DataError, "1 of the 3 masks", "are missing: c", "benchmark.tgz")


def test_values_beyond_the_classes_and_other_sizes(tmp_path: Path) -> None:
    root = tree(tmp_path, "dataset")
    mat(root / "dataset/cls/b.mat", 21)
    fails(lambda: read_pair(trainaug(root), 1), DataError, "b.mat", "holds 21 (6 pixels)", "PASCAL VOC")
    image(root / "JPEGImages/c.jpg", (2, 4))
    fails(lambda: read_pair(trainaug(root), 2), DataError, "c.jpg is 2 x 4", "c.mat is 2 x 3")


def test_the_script_writes_pngs_that_replace_the_mat_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same labels afterwards; a second run after an interruption writes only what is missing."""
    root = tree(tmp_path, "dataset")
    before = found(trainaug(root))
    scripts = script(monkeypatch, "voc")
    monkeypatch.setattr(scripts, "PUBLISHED", {"train": 1, "val": 1, "trainaug": 3})
    assert scripts.main([str(root), "--png"]) == 0
    assert "2 masks written" in capsys.readouterr().out
    after = trainaug(root)
    assert found(after) == before
    assert ".mat" not in after.layout
    (root / "SegmentationClassAug/b.png").unlink()
    assert scripts.main([str(root), "--png"]) == 0
    assert "1 masks written" in capsys.readouterr().out
    (root / "dataset/cls/b.mat").unlink()
    (root / "SegmentationClassAug/b.png").unlink()
    assert scripts.main([str(root), "--png"]) == 3
    assert "are missing: b" in capsys.readouterr().err
    assert scripts.main([str(root)]) == 1


# ------------------------------------------------------------------------------------------------ MATLAB files
def test_doubles_are_whole_numbers_too(tmp_path: Path) -> None:
    """MATLAB's default number is a double; the values are what counts."""
    savemat(tmp_path / "a.mat", {"S": np.array([[0.0, 182.0], [3.0, 4.0]])})
    assert read_mat(tmp_path / "a.mat", "S").tolist() == [[0, 182], [3, 4]]
    savemat(tmp_path / "b.mat", {"S": np.array([[300, 2]], ">u2")}, format="4")
    assert read_mat(tmp_path / "b.mat", "S").tolist() == [[300, 2]]


def test_what_is_not_a_label_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    fails(lambda: read_mat(path, "S"), DataError, str(path), "No such file")
    mat(path, 3)
    whole = path.read_bytes()
    fails(lambda: read_mat(path, "GTinst"), DataError, 'no "GTinst"; found GTcls')
    fails(
        lambda: read_mat(path, "GTcls", "Segmentatio"), DataError, "GTcls.Segmentatio", 'did you mean "Segmentation"?'
    )
    fails(lambda: read_mat(path, "GTcls", "Segmentation", "x"), DataError, "GTcls.Segmentation.x", "nothing there")
    fails(lambda: read_mat(path, "GTcls"), DataError, "not a map of class numbers")
    for content in (whole[:150], whole[:-20], b"", b"MATLAB 5.0", b"\x89PNG" * 60, whole[:130] + bytes(200)):
        path.write_bytes(content)
        fails(lambda: read_mat(path, "GTcls", "Segmentation"), DataError, str(path))
    for values in (np.array([[0.5, 1.0]]), np.array([[np.nan, 1.0]]), np.zeros((0, 0)), np.zeros((2, 2, 2)), "text"):
        savemat(path, {"S": values})
        fails(lambda: read_mat(path, "S"), DataError, "not a map of class numbers")


def test_a_matlab_7_3_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["S"] = np.zeros((2, 2))
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    path.write_bytes(header + path.read_bytes()[128:])
    fails(lambda: read_mat(path, "S"), DataError, "7.3")


# ---------------------------------------------------------------------------------------------------- real data
@pytest.mark.realdata
def test_the_rebuilt_files_equal_their_pngs(tmp_path: Path) -> None:
    """The .mat files of the collection were made from masks that it holds as PNG too."""
    source = real("reconstructed_mat/sbd/benchmark_RELEASE/dataset")
    masks = real("voc2012/VOCdevkit/VOC2012")
    (tmp_path / "JPEGImages").symlink_to(source / "img")
    (tmp_path / "benchmark_RELEASE").symlink_to(source.parent)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    names = sorted(path.stem for path in (source / "cls").glob("*.mat"))
    (lists / "trainaug.txt").write_text("\n".join(names))
    dataset = trainaug(tmp_path)
    assert len(dataset) == 4
    for index, name in enumerate(names):
        with Image.open(masks / "SegmentationClassAug" / f"{name}.png") as stored:
            np.testing.assert_array_equal(dataset.open(index).label(), np.asarray(stored))
