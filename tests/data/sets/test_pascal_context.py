"""PASCAL Context: four kinds of label files mean the same classes, both numberings and both protocols, wrong trees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from emaseg.data.dataset import read_pair
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.drawn import DrawnFiles
from emaseg.data.sets.pairs import PairedFiles
from emaseg.data.sets.pascal_context import numbered_rule, pascal_context, raw_rule
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.data import PascalContextData
from tests.data.made import fails, image, label, real
from tests.data.test_data_scripts import script

SIXTY, FIFTY_NINE = tuple(map(str, range(60))), tuple(map(str, range(59)))
# One label map in the numbers of each kind of file: background, aeroplane, bag, bicycle, wood, and in raw ids an
# object that is none of the classes.
DETAIL, OWNERS, RAW = [0, 1, 2, 6, 59, 0], [0, 1, 21, 2, 59, 0], [0, 2, 9, 23, 458, 459]


def tree(top: Path, lists: str | None = "ImageSets/SegmentationContext") -> Path:
    """Images 2008_b, 2008_a of train and 2008_c of val, without labels."""
    for name in ("2008_a", "2008_b", "2008_c", "2008_unused"):
        image(top / "JPEGImages" / f"{name}.jpg")
    if lists:
        (top / lists).mkdir(parents=True)
        (top / lists / "train.txt").write_text("2008_b\n2008_a\n")
        (top / lists / "val.txt").write_text("2008_c\n")
    return top


def pngs(folder: Path, values: list[int]) -> None:
    for name in ("2008_a", "2008_b", "2008_c"):
        label(folder / f"{name}.png", values)


def mats(folder: Path, values: list[int]) -> None:
    folder.mkdir(parents=True)
    for name in ("2008_a", "2008_b", "2008_c"):
        savemat(folder / f"{name}.mat", {"LabelMap": np.array(values, np.uint16).reshape(2, 3)})


def merged(path: Path, values: list[int]) -> None:
    """trainval_merged.json with a one-pixel annotation for every value but 0; two of them lie on one pixel."""
    phases = {2008000001: "train", 2008000002: "train", 2008000003: "val", 2008000004: "test"}
    names = dict(zip(phases, ("2008_a", "2008_b", "2008_c", "2008_unused"), strict=True))
    notes = []
    for number in phases:
        pixels = [(place, value) for place, value in enumerate(values) if value]
        for place, value in [(pixels[0][0], 3), *pixels]:  # 3 is covered by what comes later
            first = place % 3 * 2 + place // 3  # down the columns
            counts = {"size": [2, 3], "counts": [first, 1, 5 - first]}
            note = {"id": len(notes), "image_id": number, "category_id": value, "segmentation": counts}
            notes.append(note)
    images = [
        {"image_id": number, "file_name": f"{names[number]}.jpg", "phase": phase, "height": 2, "width": 3}
        for number, phase in phases.items()
    ]
    path.write_text(json.dumps({"info": {}, "images": images, "annos_segmentation": notes}))


def data(root: Path, **keys: object) -> PascalContextData:
    return PascalContextData(kind="pascal_context", root=str(root), **keys)  # type: ignore[arg-type]


def ids(dataset: PairedFiles | DrawnFiles) -> list[str]:
    return [Path(dataset.name(i)).stem for i in range(len(dataset))]


# --------------------------------------------------------------------------------------------------- the values
def test_names_tell_what_the_numbers_mean(tmp_path: Path) -> None:
    """The owners' list begins with VOC's classes; the other numbering is alphabetical."""
    pngs(tree(tmp_path) / "SegmentationClassContext", [0])
    names = pascal_context(data(tmp_path), "eval").classes
    by_owner = [names[index] for index in numbered_rule(names, "owners").lut[:60]]
    assert by_owner[:4] == ["__background__", "aeroplane", "bicycle", "bird"]
    assert by_owner[11] == "table"
    assert by_owner[19:23] == ["train", "tvmonitor", "bag", "bed"]
    assert by_owner[58:] == ["window", "wood"]
    assert sorted(by_owner) == sorted(names)
    assert list(names[1:]) == sorted(names[1:])


def test_sixty_and_fifty_nine() -> None:
    """With 59 classes the background is ignored and all others move down by one; nothing else is ever ignored."""
    assert list(numbered_rule(SIXTY, "detail").lut) == [*range(60), *[254] * 196]
    assert list(numbered_rule(FIFTY_NINE, "detail").lut) == [255, *range(59), *[254] * 196]
    assert list(numbered_rule(FIFTY_NINE, "owners").lut[:3]) == [255, 0, 5]
    for count in (60, 59):
        rule = raw_rule(SIXTY[:count])
        assert len(rule.lut) == 460
        assert sum(meaning not in (0, 255) for meaning in rule.lut) == (59 if count == 60 else 58)
        assert sorted(set(rule.lut)) == ([*range(60)] if count == 60 else [*range(59), 255])


# -------------------------------------------------------------------------------------------------- the layouts
def labels_of(kind: str, top: Path) -> dict[str, str]:
    """Write the labels of one kind; the keys that the recipe then needs."""
    match kind:
        case "SegmentationClassContext":
            pngs(top / kind, DETAIL)
        case "SegmentationClassContext, owners":
            pngs(top / "SegmentationClassContext", OWNERS)
            return {"numbering": "owners"}
        case "59_context_labels":
            pngs(top / kind, OWNERS)
        case "trainval":
            mats(top / kind, RAW)
        case "trainval_merged.json":
            merged(top / kind, RAW)
    return {}


KINDS = (
    "SegmentationClassContext",
    "SegmentationClassContext, owners",
    "59_context_labels",
    "trainval",
    "trainval_merged.json",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_label_file_gives_the_same_labels(tmp_path: Path, kind: str) -> None:
    """And names itself, so that a reader of the log sees which were used."""
    keys = labels_of(kind, tree(tmp_path))
    train = build_dataset(data(tmp_path, **keys), "train")
    assert isinstance(train, PairedFiles | DrawnFiles)
    assert ids(train) == ["2008_b", "2008_a"]
    assert kind.partition(",")[0] in train.layout
    for count, expected in ((60, DETAIL), (59, [255, 0, 1, 5, 58, 255])):
        held = build_dataset(data(tmp_path, num_classes=count, **keys), "eval")
        assert isinstance(held, PairedFiles | DrawnFiles)
        assert len(held.classes) == len(held.palette) == count
        assert held.open(0).label().ravel().tolist() == expected
        np.testing.assert_array_equal(held.open(0).label(), held.open(0).label())


@pytest.mark.parametrize("lists", ["ImageSets/SegmentationContext", "ImageSets/Main"])
@pytest.mark.parametrize(
    ("below", "root", "labels"),
    [
        (".", ".", "."),
        ("VOC2010", ".", "."),
        ("VOCdevkit/VOC2010", ".", "."),
        ("VOCdevkit/VOC2010", ".", "VOCdevkit/VOC2010"),
        ("VOCdevkit/VOC2010", "VOCdevkit/VOC2010", "."),
        ("VOCdevkit/VOC2010", "VOCdevkit/VOC2010", "VOCdevkit"),
    ],
)
def test_where_things_may_be(tmp_path: Path, lists: str, below: str, root: str, labels: str) -> None:
    """VOC2010's own lists will do, and the owners' labels may lie beside VOCdevkit."""
    tree(tmp_path / below, lists)
    mats(tmp_path / labels / "trainval", RAW)
    assert ids(pascal_context(data(tmp_path / root), "train")) == ["2008_b", "2008_a"]


def test_the_phases_of_the_json_are_the_splits_where_no_list_is(tmp_path: Path) -> None:
    merged(tree(tmp_path, None) / "trainval_merged.json", RAW)
    assert ids(pascal_context(data(tmp_path), "train")) == ["2008_a", "2008_b"]
    assert ids(pascal_context(data(tmp_path), "eval")) == ["2008_c"]


# ------------------------------------------------------------------------------------------------------- errors
def test_wrong_trees_name_what_is_missing(tmp_path: Path) -> None:
    fails(lambda: pascal_context(data(tmp_path), "train"), DataError, "PASCAL Context is not here", "JPEGImages")
    tree(tmp_path)
    fails(
        lambda: pascal_context(data(tmp_path), "train"),
        DataError,
        "no labels",
        *KINDS[2:],
        "found ImageSets, JPEGImages",
    )
    pngs(tmp_path / "59_context_labels", OWNERS)
    fails(lambda: pascal_context(data(tmp_path, train_split="tran"), "train"), RecipeError, 'did you mean "train"?')
    (tmp_path / "59_context_labels/2008_b.png").unlink()
    fails(lambda: pascal_context(data(tmp_path), "train"), DataError, "1 of 2 images", "2008_b")
    (tmp_path / "JPEGImages/2008_a.jpg").unlink()
    fails(lambda: pascal_context(data(tmp_path), "train"), DataError, "train.txt", "1 of its 2 images", "2008_a")
    shutil.rmtree(tmp_path / "ImageSets")
    fails(
        lambda: pascal_context(data(tmp_path), "train"), DataError, "no list of the images of train", "Main/train.txt"
    )


def test_values_out_of_range_name_file_and_value(tmp_path: Path) -> None:
    tree(tmp_path)
    mats(tmp_path / "trainval", [0, 0, 0, 0, 0, 460])
    found = pascal_context(data(tmp_path), "eval")
    fails(lambda: read_pair(found, 0), DataError, "2008_c.mat", "holds 460 (1 pixel)", "PASCAL Context")
    pngs(tmp_path / "59_context_labels", [60])
    owners = pascal_context(data(tmp_path), "eval")
    fails(lambda: read_pair(owners, 0), DataError, "2008_c.png", "holds 60 (6 pixels)")


def test_a_json_without_the_images_or_annotations(tmp_path: Path) -> None:
    tree(tmp_path, None)
    path = tmp_path / "trainval_merged.json"
    path.write_text(json.dumps({"images": [], "annotations": []}))
    fails(lambda: pascal_context(data(tmp_path), "train"), DataError, "annos_segmentation", "images, annotations")
    path.write_text(json.dumps({"images": [], "annos_segmentation": []}))
    fails(lambda: pascal_context(data(tmp_path), "train"), DataError, "no image of phase train")
    merged(path, [0, 460])
    fails(lambda: pascal_context(data(tmp_path), "train"), DataError, "category 460")
    merged(path, RAW)
    (tmp_path / "JPEGImages/2008_c.jpg").unlink()
    fails(lambda: pascal_context(data(tmp_path), "eval"), DataError, "1 of 1 images of val", "2008_c")


def test_a_json_with_an_image_too_large_to_be_one(tmp_path: Path) -> None:
    """Protects from a label of petabytes: the size is an error about the file, as in COCO's."""
    path = tree(tmp_path, None) / "trainval_merged.json"
    merged(path, RAW)
    path.write_text(path.read_text().replace('"height": 2, "width": 3', '"height": 10000000, "width": 10000000'))
    fails(lambda: pascal_context(data(tmp_path), "train"), DataError, "10000000 x 10000000")


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its histogram is of the classes, whichever numbering the files have."""
    scripts = script(monkeypatch, "pascal_context")
    monkeypatch.setitem(scripts.IMAGES, "pascal_context", {"train": 2, "val": 1})
    pngs(tree(tmp_path) / "SegmentationClassContext", OWNERS)
    assert scripts.main([str(tmp_path), "--numbering", "owners"]) == 0
    assert "16.667 %        3  bicycle" in capsys.readouterr().out
    (tmp_path / "SegmentationClassContext/2008_c.png").unlink()
    assert scripts.main([str(tmp_path)]) == 1


# ---------------------------------------------------------------------------------------------------- real data
@pytest.mark.realdata
def test_the_real_sample_shows_what_its_pictures_show(tmp_path: Path) -> None:
    """Ducks on grass, motorbikes, a bus, a dog: with the wrong numbering these would be other classes."""
    for folder in ("JPEGImages", "59_context_labels"):
        (tmp_path / folder).symlink_to(real("pascal_context") / folder)
    names = ["2008_008376", "2009_000637", "2010_000682", "2010_003321"]
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("\n".join(names))
    shown = {
        "2008_008376": {"bird", "grass", "ground", "water", "wood"},
        "2009_000637": {"__background__", "grass", "ground", "motorbike", "person", "sky"},
        "2010_000682": {"__background__", "building", "bus", "car", "grass", "light"}
        | {"person", "road", "sidewalk", "sky", "tree"},
        "2010_003321": {"cloth", "dog", "floor", "person", "table", "wall"},
    }
    dataset = pascal_context(data(tmp_path), "eval")
    for index, name in enumerate(names):
        assert {dataset.classes[value] for value in np.unique(dataset.open(index).label())} == shown[name]
