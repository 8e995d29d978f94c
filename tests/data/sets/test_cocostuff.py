"""COCO-Stuff: four ways in which published labels number the classes become the same train ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from emaseg.data.dataset import read_pair
from emaseg.data.label_sets import label_set
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.cocostuff import Storage, cocostuff, cocostuff_rule
from emaseg.data.sets.pairs import PairedFiles
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.data import CocoStuffData
from tests.data.made import fails, image, label, real

ILLEGAL = 254  # the reader's mark of a value that must not occur

NEVER = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # categories, from 0, that nobody annotated
KEPT = [category for category in range(182) if category not in NEVER]

PICTURES = {
    "train": ("COCO_train2014_000000000009", "COCO_train2014_000000000025"),
    "test": ("COCO_train2014_000000000077",),
}


def data(root: Path, kind: str = "cocostuff10k", classes: int = 171, **keys: str) -> CocoStuffData:
    keys = {"eval_split": "test" if kind == "cocostuff10k" else "val", **keys}
    return CocoStuffData(kind=kind, root=str(root), num_classes=classes, **keys)  # type: ignore[arg-type]


def mat(path: Path, values: list[int], kind: type = np.uint16, name: str = "S") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: np.resize(np.array(values, kind), (2, 3)), "names": np.array(["person"], object)})
    return path


def tree_10k(top: Path) -> Path:
    """The owners' archive; the label is unlabelled, person, wood."""
    for name in (name for names in PICTURES.values() for name in names):
        image(top / "images" / f"{name}.jpg")
        mat(top / "annotations" / f"{name}.mat", [0, 1, 182])
    (top / "imageLists").mkdir()
    for split, names in {**PICTURES, "all": (*PICTURES["test"], *PICTURES["train"])}.items():
        (top / "imageLists" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return top


def tree_164k(top: Path, images: str = "images/", labels: str = "annotations/", ending: str = ".png") -> Path:
    """One pair of each part; the label is unlabelled, person, wood."""
    for part in ("train2017", "val2017"):
        image(top / f"{images}{part}" / "000000000009.jpg")
        wood = 181 if ending == ".png" else 170
        label(top / f"{labels}{part}" / f"000000000009{ending}", [255, 0, wood])
    return top


def ids(dataset: PairedFiles) -> list[str]:
    return [Path(dataset.name(i)).stem for i in range(len(dataset))]


# ------------------------------------------------------------------------------------------------------ numbers
@pytest.mark.parametrize("classes", [182, 171])
@pytest.mark.parametrize("stored", ["mat", "pixelmap", "mmseg10k", "mmseg164k"])
def test_stored_values_become_train_ids(stored: Storage, classes: int) -> None:
    """Every value of every kind of file, through its category, against the owners' and mmsegmentation's tables."""
    train_id = {category: category for category in range(182)}
    if classes == 171:
        train_id = {category: position for position, category in enumerate(KEPT)}
    wanted = {"mat": 0, "mmseg10k": 0, "pixelmap": 255, "mmseg164k": 255}
    expected = {wanted[stored]: 255}
    for category in range(182):
        value = {
            "mat": category + 1,
            "pixelmap": category,
            "mmseg10k": KEPT.index(category) + 1 if category in KEPT else None,
            "mmseg164k": KEPT.index(category) if category in KEPT else None,
        }[stored]
        if value is not None:
            expected[value] = train_id.get(category, ILLEGAL)
    rule = cocostuff_rule(tuple(map(str, range(classes))), stored)
    assert {value: meaning for value, meaning in enumerate(rule.lut) if value in expected} == expected
    assert {meaning for value, meaning in enumerate(rule.lut) if value not in expected} == {ILLEGAL}


@pytest.mark.parametrize(
    ("category", "name"), [(0, "person"), (12, "stop sign"), (89, "toothbrush"), (91, "banner"), (181, "wood")]
)
def test_names_go_with_the_numbers(tmp_path: Path, category: int, name: str) -> None:
    """Known pairs of the owners' labels.txt (which counts from 1), in all four kinds of file and both numberings."""
    for classes in (182, 171):
        names = label_set(data(tmp_path, classes=classes)).classes
        stored = {"mat": category + 1, "pixelmap": category}
        stored |= {"mmseg10k": KEPT.index(category) + 1, "mmseg164k": KEPT.index(category)}
        for kind, value in stored.items():
            assert names[cocostuff_rule(names, kind).lut[value]] == name  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- 10k
@pytest.mark.parametrize("below", [".", "COCOStuff10k", "coco_stuff10k", "cocostuff-10k-v1.1"])
@pytest.mark.parametrize("classes", [182, 171])
def test_10k_as_published(tmp_path: Path, below: str, classes: int) -> None:
    """The .mat files are read as they are, in the order of the owners' lists."""
    tree_10k(tmp_path / below) if below != "." else tree_10k(tmp_path)
    train, held = (build_dataset(data(tmp_path, classes=classes), part) for part in ("train", "eval"))
    assert isinstance(train, PairedFiles)
    assert isinstance(held, PairedFiles)
    assert (ids(train), ids(held)) == (list(PICTURES["train"]), list(PICTURES["test"]))
    assert held.open(0).label().tolist() == [[255, 0, classes - 1]] * 2
    assert held.open(0).label().dtype == np.uint8
    assert ".mat" in held.layout
    every = cocostuff(data(tmp_path, train_split="all"), "train")
    assert ids(every) == [*PICTURES["test"], *PICTURES["train"]]


@pytest.mark.parametrize("classes", [182, 171])
def test_10k_converted(tmp_path: Path, classes: int) -> None:
    """mmsegmentation's folders of PNGs, where the owners' lists are not there (its converter needs them, but copies)."""
    for split, names in PICTURES.items():
        for name in names:
            image(tmp_path / f"images/{split}2014/{name}.jpg")
            label(tmp_path / f"annotations/{split}2014/{name}_labelTrainIds.png", [0, 1, 171])
    found = cocostuff(data(tmp_path, classes=classes), "train")
    assert ids(found) == list(PICTURES["train"])
    assert found.open(0).label().tolist() == [[255, 0, classes - 1]] * 2
    assert "mmsegmentation" in found.layout
    assert len(cocostuff(data(tmp_path, train_split="all"), "train")) == 3


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float64])
def test_mat_files_of_any_number_type(tmp_path: Path, kind: type) -> None:
    """MATLAB stores doubles unless told otherwise."""
    top = tree_10k(tmp_path)
    mat(top / "annotations" / f"{PICTURES['test'][0]}.mat", [0, 1, 182], kind)
    assert cocostuff(data(top), "eval").open(0).label().tolist() == [[255, 0, 170]] * 2


def test_unusable_mat_files_are_named(tmp_path: Path) -> None:
    """Other variables (the annotation tool's files), other values, damage, and a size that is not the image's."""
    top = tree_10k(tmp_path)
    path = top / "annotations" / f"{PICTURES['test'][0]}.mat"
    found = cocostuff(data(top), "eval")

    def refused(*words: str) -> None:
        fails(lambda: read_pair(found, 0), DataError, str(path), *words)

    mat(path, [1], name="labelMapThings")
    refused('no "S"', "labelMapThings")
    mat(path, [1, 183, 300])
    refused("183 (2 pixels), 300 (2 pixels)", "0 is ignored", "COCO-Stuff 10k")
    mat(path, [12])
    refused("12 (6 pixels)")
    savemat(path, {"S": np.ones((3, 2), np.uint16)})
    refused("2 x 3", "3 x 2")
    path.write_bytes(b"not a mat file" * 20)
    refused("not a .mat file")


def test_10k_wrong_trees_are_named(tmp_path: Path) -> None:
    """Whatever is missing is named; either set under the other's kind is recognised."""
    fails(lambda: cocostuff(data(tmp_path), "train"), DataError, "imageLists", "no folders", "cocostuff-10k-v1.1.zip")
    tree_10k(tmp_path)
    (tmp_path / "imageLists/test.txt").rename(tmp_path / "imageLists/val.txt")
    fails(
        lambda: cocostuff(data(tmp_path), "eval"), DataError, "test.txt: the list is missing", "all.txt, train.txt, val"
    )
    (tmp_path / "imageLists").rename(tmp_path / "imagesLists")
    fails(lambda: cocostuff(data(tmp_path), "train"), DataError, "imageLists:", 'did you mean "imagesLists"')
    tree_164k(tmp_path / "large")
    fails(lambda: cocostuff(data(tmp_path / "large"), "train"), DataError, 'data.kind = "cocostuff164k"')
    tree_10k(tmp_path / "small")
    fails(lambda: cocostuff(data(tmp_path / "small", "cocostuff164k"), "train"), DataError, "this is COCO-Stuff 10k")


def test_10k_missing_files_are_counted(tmp_path: Path) -> None:
    top = tree_10k(tmp_path)
    lone = PICTURES["train"][0]
    (top / "annotations" / f"{lone}.mat").unlink()
    fails(lambda: cocostuff(data(top), "train"), DataError, "1 of 2 images", "no label", lone)
    (top / "images" / f"{lone}.jpg").unlink()
    fails(lambda: cocostuff(data(top), "train"), DataError, "train.txt", "1 of its 2 images are missing", lone)


# --------------------------------------------------------------------------------------------------------- 164k
@pytest.mark.parametrize("classes", [182, 171])
@pytest.mark.parametrize(
    ("images", "labels", "ending"),
    [
        ("images/", "annotations/", ".png"),  # the owners' instructions
        ("", "stuffthingmaps/", ".png"),  # the archives where they fell
        ("", "stuffthingmaps_trainval2017/", ".png"),
        ("", "", ".png"),  # sssegmentation: labels beside the images
        ("images/", "annotations/", "_labelTrainIds.png"),  # mmsegmentation, the originals deleted
    ],
)
def test_164k_layouts(tmp_path: Path, images: str, labels: str, ending: str, classes: int) -> None:
    """255 is unlabelled and person is 0: the two sets differ by one."""
    tree_164k(tmp_path, images, labels, ending)
    for part in ("train", "eval"):
        found = build_dataset(data(tmp_path, "cocostuff164k", classes), part)  # type: ignore[arg-type]
        assert isinstance(found, PairedFiles)
        assert found.open(0).label().tolist() == [[255, 0, classes - 1]] * 2
        assert ("mmsegmentation" in found.layout) == (ending != ".png")


def test_164k_the_owners_labels_win(tmp_path: Path) -> None:
    """mmsegmentation's converter writes its files between the owners'."""
    tree_164k(tree_164k(tmp_path), ending="_labelTrainIds.png")
    found = cocostuff(data(tmp_path, "cocostuff164k"), "train")
    assert ids(found) == ["000000000009"]
    assert found.items[0][1].name == "000000000009.png"


def test_164k_wrong_trees_are_named(tmp_path: Path) -> None:
    recipe = data(tmp_path, "cocostuff164k")
    fails(lambda: cocostuff(recipe, "train"), DataError, "images/train2017, annotations/train2017", "train2017.zip")
    image(tmp_path / "images/train2017/000000000009.jpg")
    fails(
        lambda: cocostuff(recipe, "train"), DataError, "annotations/train2017", "holds images", "stuffthingmaps_train"
    )
    fails(lambda: cocostuff(recipe, "eval"), DataError, "val2017", "found images")
    label(tmp_path / "annotations/train2017/000000000025.png", [0])
    fails(lambda: cocostuff(recipe, "train"), DataError, "1 of 1 labels", "no image", "000000000025")
    image(tmp_path / "images/train2017/000000000025.jpg")
    fails(lambda: cocostuff(recipe, "train"), DataError, "1 of 2 images", "no label", "000000000009")


def test_164k_values_of_the_other_numbering_are_refused(tmp_path: Path) -> None:
    """182 occurs only where somebody counted from 1."""
    top = tree_164k(tmp_path)
    label(top / "annotations/val2017/000000000009.png", [0, 182])
    found = cocostuff(data(top, "cocostuff164k", 182), "eval")
    fails(lambda: read_pair(found, 0), DataError, "182 (3 pixels)", "255 is ignored", "COCO-Stuff 164k")


def test_unknown_splits(tmp_path: Path) -> None:
    """The two sets name their held-out part differently."""
    fails(lambda: cocostuff(data(tree_10k(tmp_path), eval_split="val"), "eval"), RecipeError, "train, test, all")
    recipe = data(tmp_path, "cocostuff164k", eval_split="test")
    fails(lambda: cocostuff(recipe, "eval"), RecipeError, "train, val", "data.eval_split")


# ---------------------------------------------------------------------------------------------------- real data
@pytest.mark.realdata
@pytest.mark.parametrize("classes", [182, 171])
def test_164k_samples(classes: int) -> None:
    """All 21 published pairs, against the stored values and the owners' names of them."""
    root = real("cocostuff164k")
    official = dict(line.split(": ") for line in (root / "labels.txt").read_text().splitlines())
    wanted = {"train": 13, "eval": 8}
    for part, count in wanted.items():
        found = cocostuff(data(root, "cocostuff164k", classes), part)  # type: ignore[arg-type]
        assert len(found) == count
        for i, (_, path) in enumerate(found.items):
            stored, sample = np.asarray(Image.open(path)), found.open(i).label()
            np.testing.assert_array_equal(stored == 255, sample == 255)
            for value in np.unique(stored[stored != 255]):
                (train_id,) = np.unique(sample[stored == value])
                assert found.classes[train_id] == official[str(value + 1)]


@pytest.mark.realdata
@pytest.mark.parametrize("classes", [182, 171])
def test_10k_samples_equal_their_pixelmaps(classes: int) -> None:
    """The .mat samples were made from four pictures of the 164k set: both readers must give the same labels."""
    small = cocostuff(data(real("reconstructed_mat/cocostuff-10k-v1.1"), classes=classes, train_split="all"), "train")
    parts = [cocostuff(data(real("cocostuff164k"), "cocostuff164k", classes), part) for part in ("train", "eval")]
    large = {Path(part.name(i)).stem: part.open(i).label() for part in parts for i in range(len(part))}
    assert len(small) == 4
    for i, name in enumerate(ids(small)):
        np.testing.assert_array_equal(small.open(i).label(), large[name.removeprefix("COCO_train2014_")])


@pytest.mark.realdata
def test_the_annotation_tools_files_are_no_labels() -> None:
    """The owner's .mat files of another kind, under the annotations' names."""
    path = next(real("cocostuff10k").rglob("things/*.mat"))
    found = PairedFiles(
        ((path, path),), cocostuff_rule(tuple(map(str, range(182))), "mat"), np.zeros((182, 3), np.uint8)
    )
    fails(lambda: found.open(0).label(), DataError, str(path), 'no "S"', "labelMapThings")
