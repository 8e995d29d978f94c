"""Second masks of an image, where masks lie beside their images: no images of their own, and united by `convert`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emaseg.data.dataset import Phase
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.pairs import PairedFiles
from tests.convert.made import masks, names, run
from tests.starter.made import SIZE, blob, data_of, dry_run, grey, made, refused, start


def second(path: Path) -> None:
    """A mask of another object."""
    Image.fromarray(blob(0, 0, 255)).save(path)


def test_second_masks_beside_their_images_are_united(tmp_path: Path) -> None:
    """Protects the second lesion of an image (BUSI): its mask is not taken for an image without one."""
    root, out = made(tmp_path / "in", grey(0, 255), image="{}.png", mask="{}_mask.png", count=12), tmp_path / "out"
    for number in (2, 11):
        second(root / f"{number}_mask_1.png")
    refused(root, "_mask, _mask_1", "emaseg convert", "an object of one")
    done = run(root, out)
    assert not done.left
    assert not any("Images without annotations" in note for note in done.notes)
    assert names(out) == ["background", "mask"]
    found = masks(out)
    assert set(found) == {str(number) for number in range(12)}
    for name, label in found.items():
        np.testing.assert_array_equal(label, blob(0, 1, 1) if name in ("2", "11") else blob(0, 1), err_msg=name)
    assert data_of(start(out)).classes == ("background", "mask")


def test_a_second_mask_of_every_image(tmp_path: Path) -> None:
    """Protects sets in which each image has two masks: as many names end in the number as in the suffix."""
    root = made(tmp_path / "in", grey(0, 255), image="benign ({}).png", mask="benign ({})_mask.png", count=4)
    for number in range(4):
        second(root / f"benign ({number})_mask_1.png")
    refused(root, "_mask, _mask_1", "emaseg convert")
    run(root, tmp_path / "out")
    for label in masks(tmp_path / "out").values():
        np.testing.assert_array_equal(label, blob(0, 1, 1))


def test_a_split_without_second_masks_is_converted_too(tmp_path: Path) -> None:
    """Protects the evaluation images, of which none happens to have two masks."""
    root, out = tmp_path / "in", tmp_path / "out"
    for split, count in (("train", 4), ("val", 2)):
        made(root, grey(0, 255), image=f"{split}/{{}}.jpg", mask=f"{split}/{{}}_mask.png", count=count)
    second(root / "train/1_mask_1.png")
    refused(root, "_mask, _mask_1", "emaseg convert")
    assert run(root, out).splits == {"train": 4, "val": 2}
    np.testing.assert_array_equal(masks(out)["train/1"], blob(0, 1, 1))


@pytest.mark.parametrize("image", ["{}.png", "{}.jpg"])
def test_an_image_that_is_called_as_a_second_mask(image: str, tmp_path: Path) -> None:
    """Protects images whose names happen to be a mask's and a number: each has a mask of its own."""
    root = made(tmp_path, grey(0, 1), image=f"p{image}", mask="p{}_L.png", count=6)
    made(root, grey(0, 1), image=f"p3_L_{image}", mask="p3_L_{}_L.png", count=2)
    assert data_of(start(root)).mask_suffix == "_L"


@pytest.mark.parametrize(
    ("image", "mask", "drawn"),
    [
        ("img_{}.png", "img_{}_label.png", "img_{}_label_viz.png"),
        ("a{}_json/img.png", "a{}_json/label.png", "a{}_json/label_viz.png"),
        ("img_{}.jpg", "img_{}_mask.png", "img_{}_mask_overlay.png"),
    ],
)
def test_pictures_of_masks_are_neither_images_nor_masks(image: str, mask: str, drawn: str, tmp_path: Path) -> None:
    """Protects what labelme exports: its coloured pictures were the masks, and the masks the images."""
    made(tmp_path, grey(0, 1), image, mask)
    made(tmp_path, lambda _: Image.new("RGB", SIZE[::-1], (9, 99, 0)), image, drawn)
    started = start(tmp_path)
    pairs = [pair for phase in ("train", "eval") for pair in items(started.text, phase)]
    assert sorted(pairs) == sorted((tmp_path / image.format(n), tmp_path / mask.format(n)) for n in range(6))
    assert any("skipped" in note and Path(drawn.format(0)).name in note for note in started.notes)


def items(text: str, phase: Phase) -> list[tuple[Path, Path]]:
    dataset = build_dataset(dry_run(text).data, phase)
    assert isinstance(dataset, PairedFiles)
    return list(dataset.items)


def test_a_pair_whose_image_is_a_mask_by_its_name_is_none(tmp_path: Path) -> None:
    """Protects from a wrong remedy, and from a training on masks as images, where other pictures lie beside them."""
    made(tmp_path, grey(0, 1), "x{}/img.png", "x{}/label.png")
    made(tmp_path, grey(0, 1), "x{}/img.png", "x{}/label_blend.png")
    assert "img_blend" not in refused(tmp_path).hint


@pytest.mark.parametrize(
    ("pairs", "suffix"),
    [
        ({"s{}.jpg": "s{}_mask.png", "s{}_label.jpg": "s{}_label_mask.png"}, "_mask"),
        ({"c{}/seg.png": "c{}/seg_gt.png"}, "_gt"),
        ({"target_{}.png": "target_{}_mask.png", "target_{}_color.png": "target_{}_color_mask.png"}, "_mask"),
    ],
)
def test_images_with_masks_of_their_own_are_images_whatever_they_are_called(
    pairs: dict[str, str], suffix: str, tmp_path: Path
) -> None:
    """Protects images that are called as masks, or as pictures of masks, are: what has a mask beside it is an image."""
    for image, mask in pairs.items():
        made(tmp_path, grey(0, 1), image, mask)
    started = start(tmp_path)
    assert data_of(started).mask_suffix == suffix
    found = [pair for phase in ("train", "eval") for pair in items(started.text, phase)]
    expected = [
        (tmp_path / image.format(n), tmp_path / mask.format(n)) for image, mask in pairs.items() for n in range(6)
    ]
    assert sorted(found) == sorted(expected)
