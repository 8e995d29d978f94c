"""Submissions: each server's names and values, the same bytes each time, the scored label maps, whole or not at all."""

from __future__ import annotations

import fnmatch
import io
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from emaseg.data.dataset import Dataset, UInt8
from emaseg.data.label_sets import voc_colours
from emaseg.data.sets.build import build_dataset
from emaseg.errors import DataError
from emaseg.evaluation.evaluate import evaluate
from emaseg.evaluation.submit import KINDS, Submission, layout_of, write_submission
from emaseg.events import Evaluated, Evaluating
from emaseg.recipe import Data, Inference, PixelStats
from emaseg.recipe.data import ADE20KData, CityscapesData, CocoVOCData, LIPData, ShapesData, VOCData
from tests.data.made import label
from tests.data.sets.test_cityscapes import TRAIN_IDS

STATS = PixelStats((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IDS = {
    "voc": ("2008_000010", "2008_000006", "2012_004331"),  # not in order
    "cityscapes": ("mainz_000000_000019", "berlin_000001_000019", "berlin_000000_000019"),
    "ade20k": ("ADE_test_00000003", "ADE_test_00000001", "ADE_test_00000002"),
}
CLASSES = {"voc": 21, "cityscapes": 19, "ade20k": 150}


class Reader(nn.Module):
    """Takes the red value as the class; exact wherever an image is not resized."""

    align_corners = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, :1] - torch.arange(self.classes).reshape(1, -1, 1, 1)).abs()


def truth(kind: str, place: int) -> UInt8:
    """The train ids of an image: each has a size of its own, the last class is in one of them, the first in another."""
    classes = CLASSES[kind]
    labels = np.full((16 + 8 * place, 24), (classes - 1) * place // 2, np.uint8)
    labels[:8, 8:16] = classes // 3
    return labels


def picture(path: Path, labels: UInt8) -> None:
    """Grey of the class: areas of 8 x 8 pixels survive JPEG's best quality unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).convert("RGB").save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))


def tree(kind: str, top: Path, split: str = "test") -> Data:
    """A data set whose images give their classes away; with labels unless the split is test."""
    for place, name in enumerate(IDS[kind]):
        labels = truth(kind, place)
        if kind == "voc":
            picture(top / "JPEGImages" / f"{name}.jpg", labels)
            label(top / "SegmentationClass" / f"{name}.png", labels.ravel().tolist(), labels.shape)
        elif kind == "cityscapes":
            city = name.partition("_")[0]
            picture(top / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", labels)
            stored = [int(raw) for raw in np.array(list(TRAIN_IDS))[labels].ravel()]
            label(top / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", stored, labels.shape)
        else:
            picture(top / "images/testing" / f"{name}.jpg", labels)
    if kind == "cityscapes":
        return CityscapesData(kind="cityscapes", root=str(top), eval_split=split)
    if kind == "ade20k":
        return ADE20KData(kind="ade20k", root=str(top), eval_split=split)
    lists = top / "ImageSets/Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("\n".join(IDS["voc"]))
    return VOCData(kind="voc", root=str(top), eval_split=split)


def write(data: Data, path: Path, dataset: Dataset | None = None) -> list[Evaluating | Evaluated]:
    layout = layout_of(data)
    assert layout is not None
    dataset = dataset or build_dataset(data, "eval")
    model = Reader(len(dataset.classes))
    return list(write_submission(Submission(path, layout), model, dataset, Inference(), STATS, "cpu"))


def stored(path: Path) -> dict[str, tuple[str, UInt8]]:
    """Place in the ZIP -> mode and values of the PNG."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        opened = {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}
    return {name: (image.mode, np.asarray(image)) for name, image in opened.items()}


NAMES = {
    "voc": "results/VOC2012/Segmentation/comp6_test_cls/{}.png",
    "cityscapes": "{}_pred.png",
    "ade20k": "{}.png",
}
VALUES: dict[str, Callable[[UInt8], UInt8]] = {  # as the owners' own label files have them
    "voc": lambda labels: labels,
    "cityscapes": lambda labels: np.array(list(TRAIN_IDS), np.uint8)[labels],
    "ade20k": lambda labels: labels + 1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_gets_its_names_modes_values_and_sizes(kind: str, tmp_path: Path) -> None:
    """Protects a submission from being refused, or worse: scored with shifted classes."""
    events = write(tree(kind, tmp_path), tmp_path / "out.zip")
    assert [(event.done, event.total) for event in events if isinstance(event, Evaluating)] == [(1, 3), (2, 3), (3, 3)]
    assert len(events) == 3  # no scores: there are no labels
    found = stored(tmp_path / "out.zip")
    assert list(found) == [NAMES[kind].format(name) for name in sorted(IDS[kind])]
    for place, name in enumerate(IDS[kind]):
        mode, values = found[NAMES[kind].format(name)]
        assert mode == ("P" if kind == "voc" else "L")
        np.testing.assert_array_equal(values, VALUES[kind](truth(kind, place)))


def test_voc_pngs_have_vocs_colours_and_eight_bits(tmp_path: Path) -> None:
    write(tree("voc", tmp_path), tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        content = archive.read(NAMES["voc"].format(IDS["voc"][0]))
    palette = Image.open(io.BytesIO(content)).getpalette()
    assert palette is not None
    assert palette[: 3 * 21] == voc_colours(21).ravel().tolist()
    assert content[24] == 8  # bit depth in the header


def test_cityscapes_script_finds_exactly_one_file_for_each_image(tmp_path: Path) -> None:
    """Its pattern is <city>_<sequence>_<frame>*.png; two matches are an error there, none is one too."""
    write(tree("cityscapes", tmp_path), tmp_path / "out.zip")
    names = list(stored(tmp_path / "out.zip"))
    assert [len(fnmatch.filter(names, f"{name}*.png")) for name in IDS["cityscapes"]] == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_label_maps_are_the_same_bytes(kind: str, tmp_path: Path) -> None:
    """Protects comparing two submissions: no time, no order of the file system or of the list is in the file."""
    data = tree(kind, tmp_path)
    write(data, tmp_path / "one.zip")
    if kind == "voc":
        (tmp_path / "ImageSets/Segmentation/test.txt").write_text("\n".join(sorted(IDS["voc"])))
    for path in tmp_path.rglob("*.[jp][pn]g"):
        path.touch()
    write(data, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED  # PNGs only grow when they are compressed again
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("kind", ["voc", "cityscapes"])
def test_labelled_images_are_scored_in_the_same_pass(kind: str, tmp_path: Path) -> None:
    """A rehearsal: evaluate's scores, and the ZIP of the unlabelled set."""
    data = tree(kind, tmp_path / "val", "val")
    *_, last = write(data, tmp_path / "val.zip")
    dataset = build_dataset(data, "eval")
    *_, expected = evaluate(Reader(CLASSES[kind]), dataset, Inference(), STATS, "cpu")
    assert last == expected
    assert isinstance(last, Evaluated)
    assert (last.scores.miou, last.scores.images) == (1.0, 3)
    write(tree(kind, tmp_path / "test"), tmp_path / "test.zip")
    assert (tmp_path / "val.zip").read_bytes() == (tmp_path / "test.zip").read_bytes()


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    """No half ZIP that could be sent, no temporary file, no thread; an earlier ZIP stays as it was."""
    data = tree("cityscapes", tmp_path / "data")
    layout = layout_of(data)
    assert layout is not None
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.zip").write_bytes(b"earlier")
    for name in ("new.zip", "old.zip"):
        dataset, submission = build_dataset(data, "eval"), Submission(out / name, layout)
        events = write_submission(submission, Reader(19), dataset, Inference(), STATS, "cpu")
        next(events)
        events.close()
        assert [path.name for path in out.iterdir()] == ["old.zip"]
    assert (out / "old.zip").read_bytes() == b"earlier"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_a_damaged_image_is_named_and_leaves_no_zip(tmp_path: Path) -> None:
    data = tree("voc", tmp_path)
    (tmp_path / "JPEGImages" / f"{IDS['voc'][2]}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=IDS["voc"][2]):
        write(data, tmp_path / "out" / "results.zip")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_images_and_images_named_twice_are_errors(tmp_path: Path) -> None:
    """Protects from a ZIP that its server refuses: empty, or with two files of one name."""
    data = tree("voc", tmp_path)
    (tmp_path / "ImageSets/Segmentation/test.txt").write_text("2008_000010\n2008_000006\n2008_000010\n")
    with pytest.raises(DataError, match="2008_000010: the split names this image 2 times"):
        write(data, tmp_path / "out.zip")
    (tmp_path / "city/leftImg8bit/test").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        write(CityscapesData(kind="cityscapes", root=str(tmp_path / "city"), eval_split="test"), tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@dataclass(frozen=True)
class Counting:
    """A data set that notes which images were read."""

    inner: Dataset
    read_in: list[int]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.inner.classes

    @property
    def palette(self) -> UInt8:
        return self.inner.palette

    @property
    def layout(self) -> str:
        return self.inner.layout

    @property
    def withheld_by(self) -> str:
        return self.inner.withheld_by

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def open(self, index: int):  # type: ignore[no-untyped-def]
        self.read_in.append(index)
        return self.inner.open(index)


def test_only_the_next_image_is_read_ahead(tmp_path: Path) -> None:
    """Protects memory: a test set of thousands of images is never held."""
    data = tree("cityscapes", tmp_path, "val")
    layout = layout_of(data)
    assert layout is not None
    dataset = Counting(build_dataset(data, "eval"), [])
    submission = Submission(tmp_path / "out.zip", layout)
    for event in write_submission(submission, Reader(19), dataset, Inference(), STATS, "cpu"):
        if isinstance(event, Evaluating):
            assert len(dataset.read_in) <= event.done + 1
    assert sorted(dataset.read_in) == [0, 1, 2]


def test_other_kinds_have_no_layout() -> None:
    """COCO drawn as VOC has VOC's classes, but not its server."""
    for data in (
        ShapesData(kind="shapes"),
        LIPData(kind="lip", root="LIP", eval_split="test"),
        CocoVOCData(kind="coco_voc21", root="COCO"),
    ):
        assert data.kind not in KINDS
        assert layout_of(data) is None
