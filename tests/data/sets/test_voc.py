"""The VOC layout: pairs in the list's order, masks from the first folder that has one, and plain words when it is not there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.dataset import published_label, read_pair
from emaseg.data.files.file_sample import FileSample
from emaseg.data.files.images import read_image
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.trees import UnlabelledFiles
from emaseg.data.sets.voc import voc
from emaseg.errors import DataError
from emaseg.recipe.data import VOCData


def picture(path: Path, size: tuple[int, int] = (4, 6), value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "L" if path.suffix == ".png" else "RGB"
    Image.new(mode, size[::-1], value if mode == "L" else (value,) * 3).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images a, b, c; a and b with a mask of VOC's own, b and c with one of SBD's."""
    top = tmp_path / "VOC2012"
    for name in "abc":
        picture(top / "JPEGImages" / f"{name}.jpg")
    for name, folder, value in [
        ("a", "SegmentationClass", 1),
        ("b", "SegmentationClass", 2),
        ("b", "SegmentationClassAug", 3),
        ("c", "SegmentationClassAug", 4),
    ]:
        picture(top / folder / f"{name}.png", value=value)
    lists = top / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(b"b\r\n\r\na\r\n")
    (lists / "val.txt").write_bytes(b"\xef\xbb\xbfa")
    (lists / "trainaug.txt").write_text("c\nb\na\n")
    return top


def data(root: Path, **keys: object) -> VOCData:
    return VOCData(kind="voc", root=str(root), **keys)  # type: ignore[arg-type]


def fails(recipe: VOCData, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        voc(recipe, "train")
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message + "\n" + caught.value.hint


def test_pairs_follow_the_list_and_the_order_of_the_label_folders(root: Path) -> None:
    """Blank lines, CRLF and a byte-order mark do not matter; b's own mask goes before SBD's."""
    names = [[Path(found.name(i)).stem for i in range(len(found))] for found in _all(root)]
    assert names == [["c", "b", "a"], ["b", "a"], ["a"]]
    trainaug = voc(data(root), "train")
    assert [int(trainaug.open(i).label()[0, 0]) for i in range(3)] == [4, 2, 1]
    swapped = voc(data(root, label_folders=("SegmentationClassAug", "SegmentationClass")), "train")
    assert [int(swapped.open(i).label()[0, 0]) for i in range(3)] == [4, 3, 1]


def _all(root: Path) -> list[PairedFiles]:
    return [voc(data(root), "train"), voc(data(root, train_split="train"), "train"), voc(data(root), "eval")]


def test_a_data_set_goes_to_a_worker_and_describes_its_samples(root: Path) -> None:
    found = pickle.loads(pickle.dumps(build_dataset(data(root), "eval")))
    sample = found.open(0)
    assert sample.name == found.name(0) == str(root / "JPEGImages" / "a.jpg")
    assert sample.image().shape == (4, 6, 3)
    assert sample.label().shape == (4, 6)
    assert len(found.classes) == len(found.palette) == 21


def test_missing_root_is_named(root: Path) -> None:
    fails(data(root.parent / "VOC2021"), "VOC2021", "no such folder", "data.root=")


def test_root_one_level_too_high_names_the_right_one(root: Path) -> None:
    fails(data(root.parent), "no JPEGImages here, but in VOC2012", f'set data.root = "{root.as_posix()}"')


def test_root_without_images_or_lists(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(data(tmp_path / "empty"), "JPEGImages: the image folder is missing", "holds no folders")
    (root / "ImageSets" / "Segmentation").rename(root / "ImageSets" / "Main")
    fails(data(root), "the folder of the split lists is missing", "holds Main")


def test_missing_split_lists_the_others(root: Path) -> None:
    fails(data(root, train_split="vall"), "available: train, trainaug, val", 'did you mean "val"?')
    fails(data(root, train_split="zzz"), "available:", "data.train_split")
    (root / "ImageSets/Segmentation/trainaug.txt").unlink()
    fails(data(root), "trainaug.txt: no such split", 'data.train_split = "train"')


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n\n", "the list file is empty"),
        (b"/JPEGImages/a.jpg /SegmentationClass/b.png", "is not an image id"),
        (b"a\n\xff\xfe", "not a text file in UTF-8"),
    ],
)
def test_unusable_list(root: Path, content: bytes, words: str) -> None:
    path = root / "ImageSets/Segmentation/trainaug.txt"
    path.write_bytes(content)
    fails(data(root), str(path), words)


def test_a_list_of_images_with_their_masks_names_ids(root: Path) -> None:
    """Protects users of the usual list of trainaug, whose lines name a JPEG and its mask."""
    path = root / "ImageSets/Segmentation/train.txt"
    before, ids = _all(root)[0].items, path.read_text().split()
    path.write_text("\n".join(f"/JPEGImages/{one}.jpg /SegmentationClassAug/{one}.png" for one in ids))
    assert _all(root)[0].items == before


def test_missing_images_and_masks_are_counted_and_the_first_three_named(root: Path) -> None:
    path = root / "ImageSets/Segmentation/trainaug.txt"
    path.write_text("\n".join(["a", *(f"x{i}" for i in range(5))]))
    fails(data(root), "5 of the 6 images", "x0, x1, x2 and 2 more", str(root / "JPEGImages"))
    for i in range(5):
        picture(root / "JPEGImages" / f"x{i}.jpg")
    fails(data(root), "5 of the 6 masks", "SegmentationClass/<id>.png or", "x0, x1, x2 and 2 more", "SBD")
    fails(data(root, label_folders=("Wrong",)), "6 of the 6 masks", "Wrong")


def test_sizes_that_differ_are_both_named(root: Path) -> None:
    """For the whole read and for the quick one that only opens the image's header."""
    picture(root / "SegmentationClass" / "a.png", size=(4, 5), value=1)
    dataset = voc(data(root), "eval")
    for read in (FileSample.image, FileSample.size):
        sample = dataset.open(0)
        sample.label()
        with pytest.raises(DataError) as caught:
            read(sample)
        for word in ("a.jpg is 4 x 6", "a.png is 4 x 5", "height x width"):
            assert word in caught.value.message
    picture(root / "SegmentationClass" / "a.png", size=(6, 4), value=1)
    with pytest.raises(DataError) as caught:
        read_pair(dataset, 0)
    assert "EXIF" in caught.value.hint


# --------------------------------------------------------------------------------------------------- real data
def real(part: str) -> Path:
    top = os.environ.get("EMASEG_TEST_DATA")
    if not top:
        pytest.skip("EMASEG_TEST_DATA is not set")
    return Path(top, part)


@pytest.mark.realdata
def test_voc_subset_reads_whole() -> None:
    """143 + 82 official and 66 SBD pairs: every class but the aeroplane, borders in the official masks only."""
    root = real("voc2012/VOCdevkit/VOC2012")
    counts = np.zeros(256, np.int64)
    for split, count in {"train": 143, "trainaug": 209, "val": 82}.items():
        dataset = voc(data(root, train_split=split), "train")
        assert len(dataset) == count
        for i in range(count):
            label = dataset.open(i).label()
            if split != "train":  # trainaug contains it
                counts += np.bincount(label.ravel(), minlength=256)
    assert np.flatnonzero(counts).tolist() == [0, *range(2, 21), 255]


@pytest.mark.realdata
def test_voc_sample_is_the_stored_one() -> None:
    """The indices of the palette PNG, not its colours or their luma."""
    root = real("voc2012/VOCdevkit/VOC2012")
    dataset = voc(data(root), "eval")
    sample = dataset.open(3)
    with Image.open(root / "SegmentationClass" / f"{Path(sample.name).stem}.png") as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(sample.label(), np.asarray(stored))
    np.testing.assert_array_equal(sample.image(), read_image(Path(sample.name)))


def test_the_test_split_has_images_only(root: Path) -> None:
    """Protects the rows scored by VOC's server: their split is listed, its images are read, labels are refused."""
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("c\na\n")
    found = voc(data(root, eval_split="test"), "eval")
    assert isinstance(found, UnlabelledFiles)
    assert [Path(found.name(i)).stem for i in range(len(found))] == ["c", "a"]
    assert found.open(0).image().shape == (4, 6, 3)
    with pytest.raises(DataError, match="not published"):
        published_label(found.open(0))
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("gone\n")
    with pytest.raises(DataError, match="gone"):
        voc(data(root, eval_split="test"), "eval")
