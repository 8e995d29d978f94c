"""Cityscapes: both kinds of label file give the same train ids, trainval needs no copies, test has no labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.checks import check_dataset
from emaseg.data.dataset import published_label
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.cityscapes import cityscapes, label_rule
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.trees import UnlabelledFiles
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.data import CityscapesData
from tests.data.made import fails, image, label, real

CLASSES = tuple(map(str, range(19)))

# The owners' table, id -> train id, of those that are scored.
TRAIN_IDS = dict(
    zip([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], range(19), strict=True)
)

FRAMES = {
    "train": ("aachen_000000_000019", "bochum_000000_000313"),
    "val": ("frankfurt_000000_000294",),
    "test": ("berlin_000000_000019",),
}


def tree(top: Path, kinds: tuple[str, ...] = ("labelIds",), *, cities: bool = True) -> Path:
    """The owners' two archives side by side; the label is road, void, bicycle."""
    for split, frames in FRAMES.items():
        for name in frames:
            city = name.partition("_")[0] if cities else "."
            image(top / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            for kind in kinds:
                values = [7, 0, 33] if kind == "labelIds" else [0, 255, 18]
                label(top / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", values)
            (top / "gtFine" / split / city / f"{name}_gtFine_polygons.json").write_text("{}")
    return top


def data(root: Path, **keys: str) -> CityscapesData:
    return CityscapesData(kind="cityscapes", root=str(root), **keys)


def frames(dataset: PairedFiles | UnlabelledFiles) -> list[str]:
    return [Path(dataset.name(i)).name.removesuffix("_leftImg8bit.png") for i in range(len(dataset))]


def test_label_ids_become_train_ids() -> None:
    """19 ids are classes, the other 15 are ignored, and what is no id is an error, 255 too: -1 is never drawn."""
    lut = label_rule(CLASSES, "labelIds").lut
    assert {raw: lut[raw] for raw in range(34)} == {raw: TRAIN_IDS.get(raw, 255) for raw in range(34)}
    assert set(lut[34:]) == {254}


def test_label_train_ids_are_read_as_they_are() -> None:
    lut = label_rule(CLASSES, "labelTrainIds").lut
    assert (list(lut[:19]), set(lut[19:255]), lut[255]) == (list(range(19)), {254}, 255)


@pytest.mark.parametrize("kinds", [("labelIds",), ("labelTrainIds",), ("labelTrainIds", "labelIds")])
@pytest.mark.parametrize("below", [".", "cityscapes", "CityScapes"])
def test_the_layouts(tmp_path: Path, kinds: tuple[str, ...], below: str) -> None:
    """The owners' ids, mmsegmentation's train ids, or both: one result; the note says which were read."""
    tree(tmp_path / below, kinds)
    train, held = (build_dataset(data(tmp_path), part) for part in ("train", "eval"))
    assert isinstance(train, PairedFiles)
    assert isinstance(held, PairedFiles)
    assert (frames(train), frames(held)) == (list(FRAMES["train"]), list(FRAMES["val"]))
    assert train.open(1).label().tolist() == [[0, 255, 18], [0, 255, 18]]
    assert f"labels: {kinds[-1]}" in train.layout
    assert len(train.classes) == len(train.palette) == 19


def test_archives_unpacked_into_folders_of_their_own(tmp_path: Path) -> None:
    """As file managers unpack them."""
    tree(tmp_path)
    for name in ("leftImg8bit", "gtFine"):
        (tmp_path / f"{name}_trainvaltest").mkdir()
        (tmp_path / name).rename(tmp_path / f"{name}_trainvaltest" / name)
    assert frames(cityscapes(data(tmp_path), "train")) == list(FRAMES["train"])


def test_trainval_needs_no_copies(tmp_path: Path) -> None:
    """train and val are joined; sssegmentation's copied folders are read where only they are there."""
    recipe = data(tree(tmp_path), train_split="trainval")
    assert frames(cityscapes(recipe, "train")) == [*FRAMES["train"], *FRAMES["val"]]
    for top in ("leftImg8bit", "gtFine"):
        (tmp_path / top / "train").rename(tmp_path / top / "trainval")
    assert frames(cityscapes(recipe, "train")) == list(FRAMES["train"])


def test_cities_may_be_missing(tmp_path: Path) -> None:
    """sssegmentation's copied folders are flat."""
    tree(tmp_path, cities=False)
    assert frames(cityscapes(data(tmp_path), "train")) == list(FRAMES["train"])


@pytest.mark.parametrize("line", ["bochum/{}_leftImg8bit", "bochum/{}", "{}", "bochum/{}_leftImg8bit.png"])
def test_lists_choose_and_order(tmp_path: Path, line: str) -> None:
    """sssegmentation's and mmsegmentation's lists name an image in different ways."""
    top = tree(tmp_path)
    (top / "train.txt").write_text(line.format(FRAMES["train"][1]) + "\n")
    found = cityscapes(data(top), "train")
    assert frames(found) == [FRAMES["train"][1]]
    assert "train.txt" in found.layout
    (top / "train.txt").write_text(line.format("bochum_000000_000314") + "\n")
    fails(lambda: cityscapes(data(top), "train"), DataError, "train.txt", "1 of its 1 images", FRAMES["train"][1])


def test_the_test_images_have_no_labels(tmp_path: Path) -> None:
    """gtFine/test holds files, but they label the car's bonnet and the borders only: they must not be scored."""
    found = cityscapes(data(tree(tmp_path), eval_split="test"), "eval")
    assert isinstance(found, UnlabelledFiles)
    assert frames(found) == list(FRAMES["test"])
    assert found.open(0).image().shape == (2, 3, 3)
    for call in (lambda: published_label(found.open(0)), lambda: check_dataset(found)):
        fails(call, DataError, "berlin_000000_000019", "not published", "val")


def test_wrong_trees_are_named(tmp_path: Path) -> None:
    """Whatever is missing is named, with what is there instead and the archive that holds it."""
    (tmp_path / "gtCoarse").mkdir()
    fails(
        lambda: cityscapes(data(tmp_path), "train"),
        DataError,
        "leftImg8bit",
        "gtFine",
        "found gtCoarse",
        "leftImg8bit_trainvaltest.zip",
    )
    tree(tmp_path)
    (tmp_path / "gtFine/train").rename(tmp_path / "gtFine/training")
    fails(
        lambda: cityscapes(data(tmp_path), "train"), DataError, "gtFine/train:", "test, training, val", "gtFine_train"
    )
    (tmp_path / "gtFine").rename(tmp_path / "gt")
    fails(
        lambda: cityscapes(data(tmp_path), "train"), DataError, "gtFine", "gt, gtCoarse, leftImg8bit", "gtFine_trainv"
    )


def test_lone_images_and_labels_are_named(tmp_path: Path) -> None:
    """The kind of label that most images have is the one that is missed."""
    top = tree(tmp_path)
    lone = FRAMES["train"][0]
    path = top / f"gtFine/train/aachen/{lone}_gtFine_labelIds.png"
    path.unlink()
    fails(lambda: cityscapes(data(top), "train"), DataError, "1 of 2 images", lone, "_gtFine_labelIds.png")
    label(path, [7])
    (top / f"leftImg8bit/train/aachen/{lone}_leftImg8bit.png").unlink()
    fails(lambda: cityscapes(data(top), "train"), DataError, "1 of 2 labels", lone, "no image")


def test_one_frame_twice_is_an_error(tmp_path: Path) -> None:
    top = tree(tmp_path)
    image(top / f"leftImg8bit/train/copies/{FRAMES['train'][0]}_leftImg8bit.png")
    fails(lambda: cityscapes(data(top), "train"), DataError, "share a name", "copies")


def test_other_files_under_the_labels_name_are_refused(tmp_path: Path) -> None:
    """Train ids or colours saved as labelIds would train a nonsense network without a word."""
    top = tree(tmp_path)
    path = top / "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png"
    found = cityscapes(data(top), "eval")
    label(path, [0, 18, 255])
    fails(lambda: published_label(found.open(0)), DataError, str(path), "255 (2 pixels)", "labelIds")
    Image.new("RGB", (3, 2), (128, 64, 128)).save(path)
    fails(lambda: published_label(found.open(0)), DataError, str(path), "three-channel", "not their coloured pictures")


def test_unknown_split(tmp_path: Path) -> None:
    recipe = data(tree(tmp_path), train_split="trainvaltest")
    fails(lambda: cityscapes(recipe, "train"), RecipeError, "train, val, trainval, test", "trainval")


@pytest.mark.realdata
def test_samples() -> None:
    """The full-size pairs: both kinds of label agree everywhere; streets hold roads, cars and houses."""
    root = real("cityscapes")
    both = cityscapes(data(root, train_split="trainval"), "train")
    assert frames(both) == [
        "aachen_000000_000019",
        "aachen_000006_000019",
        "frankfurt_000001_030310",
        "frankfurt_000001_082087",
    ]
    assert isinstance(both, PairedFiles)
    for i, (_, path) in enumerate(both.items):
        sample = both.open(i)
        stored = np.asarray(Image.open(str(path).replace("labelIds", "labelTrainIds")))
        np.testing.assert_array_equal(sample.label(), stored)
        assert sample.image().shape == (1024, 2048, 3)
        counts = np.bincount(sample.label().ravel(), minlength=256)
        assert {0, 8, 10, 13} <= set(np.flatnonzero(counts[:19]))  # road, vegetation, sky, car
        assert counts[0] > 0.2 * sample.label().size


@pytest.mark.realdata
def test_small_sample() -> None:
    """A pair shrunk to 256 x 128."""
    found = cityscapes(data(real("cityscapes_mmseg_small")), "eval")
    counts = np.bincount(found.open(0).label().ravel(), minlength=256)
    assert [found.classes[i] for i in np.argsort(-counts[:19])[:3]] == ["building", "road", "sidewalk"]


@pytest.mark.realdata
def test_coloured_sample_is_refused(tmp_path: Path) -> None:
    """A file that is going around: labelIds by name, colours by content."""
    name = "frankfurt_000001_030310"
    image(tmp_path / f"leftImg8bit/val/frankfurt/{name}_leftImg8bit.png")
    colours = real(f"cityscapes/gtFine/val/frankfurt/{name}_gtFine_colour_rgb_as_found.png")
    target = tmp_path / f"gtFine/val/frankfurt/{name}_gtFine_labelIds.png"
    target.parent.mkdir(parents=True)
    target.symlink_to(colours)
    found = cityscapes(data(tmp_path), "eval")
    fails(lambda: published_label(found.open(0)), DataError, str(target), "three-channel")
