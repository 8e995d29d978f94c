"""More kinds of folders: several in one training, lists of pairs, images without masks, groups that stay together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emaseg.data.checks import check_dataset
from emaseg.data.pipeline.loading import epoch_order
from emaseg.data.sets.doubts import file_doubts
from emaseg.data.sets.folder import folder, usable
from emaseg.data.sets.holdout import group_of, held
from emaseg.data.sets.packed import pack
from emaseg.errors import DataError
from emaseg.recipe import parse_recipe
from emaseg.recipe.data import FolderData
from tests.data.sets.test_folder import data, draw, fails, names
from tests.recipe.samples import complaint, edited

BOTH = {"train_images": ("image", "image2"), "train_masks": ("mask", "mask2")}
HERE = {"train_images": ".", "train_masks": ".", "train_list": "list.txt"}


def two(root: Path) -> Path:
    draw(root, "image/a.jpg", "image/b.jpg", "mask/a.png", "mask/b.png")
    draw(root / "x", "image/a.jpg", "mask/a.png")
    (root / "x/image").rename(root / "image2")
    (root / "x/mask").rename(root / "mask2")
    return root


def test_masks_read_by_colour_beside_masks_read_by_number_are_told(tmp_path: Path) -> None:
    """Protects from a class that is lost without a word: white, saved as grey, is 255 there and not a class."""
    draw(tmp_path, "image/a.jpg", "image/b.jpg", "mask/a.png", "mask/b.png")
    section = data(tmp_path, classes=("ground", "paint"), palette=((0, 0, 0), (255, 255, 255)))
    picture = np.zeros((4, 5), np.uint8)
    picture[1:] = 255
    Image.fromarray(np.repeat(picture[..., None], 3, axis=2)).save(tmp_path / "mask/a.png")
    Image.fromarray(picture).save(tmp_path / "mask/b.png")
    [doubt] = file_doubts(folder(section, "train"), (0, 1))
    assert doubt.kind == "ways"
    assert "a.png" in doubt.message
    assert "b.png" in doubt.message
    alike = Image.fromarray(picture // 255)
    alike.putpalette([0, 0, 0, 255, 255, 255])
    alike.save(tmp_path / "mask/b.png")
    assert file_doubts(folder(section, "train"), (0, 1)) == []


def test_a_mask_of_one_colour_does_not_hide_that_palettes_differ(tmp_path: Path) -> None:
    """Protects the warning: palettes are compared as far as two of them go, not as far as the shortest of all goes."""
    letters = "abc"
    draw(tmp_path, *(f"{kind}/{one}.png" for kind in ("image", "mask") for one in letters))
    colours = ([0, 0, 0], [0, 0, 0, 9, 0, 0, 0, 9, 0], [0, 0, 0, 0, 9, 0, 9, 0, 0])
    for one, flat in zip(letters, colours, strict=True):
        mask = Image.fromarray(np.arange(len(flat) // 3, dtype=np.uint8)[None])
        mask.putpalette(flat)
        mask.save(tmp_path / f"mask/{one}.png")
    [doubt] = file_doubts(folder(data(tmp_path), "train"), (0, 1, 2))
    assert doubt.kind == "palettes"


def test_a_band_that_was_saved_as_transparency_is_told(tmp_path: Path) -> None:
    """Protects images of four bands: programs call near infrared transparency, which lays the colours on white."""
    draw(tmp_path, "image/a.tif", "image/b.tif", "mask/a.png", "mask/b.png")
    for name, values in (("a", [0, 255, 255]), ("b", [90, 100, 110])):
        picture = Image.new("RGBA", (3, 2))
        picture.putalpha(Image.fromarray(np.array([values] * 2, np.uint8)))
        picture.save(tmp_path / f"image/{name}.tif")
    [doubt] = file_doubts(folder(data(tmp_path), "train"), (0, 1))
    assert (doubt.kind, "b.tif" in doubt.message, "a.tif" in doubt.message) == ("clear", True, False)
    assert "in_channels = 4" in doubt.hint


# --------------------------------------------------------------------------------------------------- several folders
def test_several_folders_are_one_training(tmp_path: Path) -> None:
    """Protects images of one name in two folders: each has its own mask, and check-data reads each once."""
    root = two(tmp_path)
    assert names(root, **BOTH) == ["image/a.jpg", "image/b.jpg", "image2/a.jpg"]
    dataset = folder(data(root, **BOTH), "train")
    assert dataset.items[2] == (root / "image2/a.jpg", root / "mask2/a.png")


def test_a_folder_is_drawn_as_often_as_it_says(tmp_path: Path) -> None:
    """Law: an epoch draws each image of a folder exactly so many times, and its order follows from the seed alone."""
    root = two(tmp_path)
    section = data(root, **BOTH, train_repeat=(1, 4))
    dataset = folder(section, "train")
    for epoch in range(3):
        order = epoch_order(len(dataset), 7, epoch)
        drawn = Counter(dataset.name(int(index)) for index in order)
        assert {Path(name).relative_to(root).as_posix(): count for name, count in drawn.items()} == {
            "image/a.jpg": 1,
            "image/b.jpg": 1,
            "image2/a.jpg": 4,
        }
    assert dataset.layout == "images of each folder x times drawn in an epoch: 2 x 1, 1 x 4"
    assert len(usable(section, "train")[0]) == 3
    assert len(folder(section, "eval")) == 2


def test_keys_of_folders_fit_each_other() -> None:
    """Protects from folders without masks' folders, by a message before anything starts."""
    several = ('train_images = "train"', 'train_images = ["train", "more"]')
    masks = ('train_masks = "train_masks"', 'train_masks = ["train_masks", "more_masks"]')
    recipe = parse_recipe(edited(several, masks), "my.toml").recipe
    assert isinstance(recipe.data, FolderData)
    assert recipe.data.train_images == ("train", "more")
    assert "1 mask folders for 2 image folders" in complaint(edited(several))
    assert "is empty" in complaint(edited((several[0], "train_images = []"), (masks[0], "train_masks = []")))
    assert "text in double quotes, or an array of texts" in complaint(edited((several[0], "train_images = 5")))
    assert "text in double quotes, or an array of texts" in complaint(edited((several[0], "train_images = [5]")))
    assert "1 numbers for 2 folders" in complaint(edited(several, masks), "data.train_repeat=[2]")
    assert "is for one folder" in complaint(edited(several, masks), "data.train_list='a.txt'")


# ------------------------------------------------------------------------------------------------------- background
def test_images_known_to_show_nothing(tmp_path: Path) -> None:
    """Protects negatives: of a folder without masks, or of single images, all pixels are of the first class."""
    root = draw(tmp_path, "image/a.jpg", "mask/a.png", "image2/n.jpg", "image/b.jpg")
    (root / "image2").rename(root / "none")
    fails(root, "have no mask", "unmasked", train_images=("image", "none"), train_masks=("mask", ""))
    keys = {"train_images": ("image", "none"), "train_masks": ("mask", ""), "unmasked": "background"}
    section = data(root, **keys, train_repeat=(1, 2))
    dataset = folder(section, "train")
    assert [Path(dataset.name(index)).name for index in range(4)] == ["a.jpg", "b.jpg", "n.jpg", "n.jpg"]
    for index, label in enumerate([1, 0, 0, 0]):
        np.testing.assert_array_equal(dataset.open(index).label(), np.full(dataset.open(index).size(), label))
    assert '2 images without a mask are all "ground"' in dataset.layout
    assert check_dataset(dataset).class_images == (3, 1)
    with pytest.raises(DataError, match="no mask file to pack"):
        next(iter(pack(dataset, tmp_path / "p.h5")))


# ------------------------------------------------------------------------------------------------------- pair lists
@pytest.mark.parametrize(
    "lines",
    [
        "image/a.jpg mask/b.png\nimage/b.jpg mask/a.png\n",
        "/image/a.jpg\t/mask/b.png\r\n\r\n/image/b.jpg\t/mask/a.png",
        "a.jpg, b.png\nb.jpg, a.png",
        "image,mask\na.jpg,b.png\nb.jpg,a.png",
        "id;label;filename\n1;mask/b.png;image/a.jpg\n2;mask\\a.png;image\\b.jpg",
    ],
)
def test_lists_of_pairs(lines: str, tmp_path: Path) -> None:
    """Protects sets whose masks have names of their own: the list says which mask an image has, in its order."""
    root = draw(tmp_path, "image/a.jpg", "image/b.jpg", "mask/a.png", "mask/b.png")
    (root / "list.txt").write_text(lines)
    dataset = folder(data(root, train_list="list.txt"), "train")
    found = [tuple(path.relative_to(root).as_posix() for path in pair) for pair in dataset.items]
    assert found == [("image/a.jpg", "mask/b.png"), ("image/b.jpg", "mask/a.png")]


@pytest.mark.parametrize("holdout", [0, 2])
def test_images_of_one_stem_are_each_in_a_list_of_pairs(holdout: int, tmp_path: Path) -> None:
    """Protects a.png beside a.jpg: each has its own line and mask, and none is dropped in silence."""
    root = draw(tmp_path, "image/a.jpg", "image/a.png", "image/b.jpg", "mask/1.png", "mask/2.png", "mask/3.png")
    (root / "list.txt").write_text("image/a.jpg mask/1.png\nimage/a.png mask/2.png\nimage/b.jpg mask/3.png\n")
    section = data(root, **HERE, eval_list="list.txt", eval_images=".", eval_masks=".", holdout=holdout)
    found = [[image.relative_to(root).as_posix() for image, _ in folder(section, p).items] for p in ("train", "eval")]
    everything = ["image/a.jpg", "image/a.png", "image/b.jpg"]
    assert found == ([["image/a.jpg", "image/b.jpg"], ["image/a.png"]] if holdout else [everything, everything])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,mask\n" + "A" * 400 + ",3\n", "list.txt:2: no file AAAA"),
        ("id,image,mask\n1,image/a.jpg," + "1 " * 80_000 + "\n", "list.txt: no list of images and masks"),
    ],
)
def test_lists_with_endless_cells_are_errors(text: str, words: str, tmp_path: Path) -> None:
    """Protects from a traceback: a cell longer than a name can be, or than the csv module takes."""
    root = draw(tmp_path, "image/a.jpg", "mask/a.png")
    (root / "list.txt").write_text(text)
    fails(root, words, train_list="list.txt")
    (root / "list.txt").write_text("x" * 140_000 + "\nimage/a.jpg mask/a.png\n")
    assert names(root, train_list="list.txt") == ["image/a.jpg"]


def test_names_with_blanks_and_commas_are_no_pairs(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/a b.jpg", "image/c,d.jpg", "mask/a b.png", "mask/c,d.png")
    (root / "list.txt").write_text("c,d.jpg\na b.jpg\n")
    assert names(root, train_list="list.txt") == ["image/c,d.jpg", "image/a b.jpg"]


def test_a_pair_without_a_mask_is_background_and_what_is_missing_has_its_line(tmp_path: Path) -> None:
    root = draw(tmp_path, "image/a.jpg", "image/b.jpg", "mask/a.png")
    (root / "list.txt").write_text("image,mask\na.jpg,a.png\nb.jpg,\n")
    dataset = folder(data(root, train_list="list.txt"), "train")
    assert (len(dataset.items), len(dataset.background)) == (1, 1)
    (root / "list.txt").write_text("image/a.jpg mask/a.png\nimage/b.jpg mask/b.png\n")
    fails(root, "list.txt:2: no file mask/b.png", train_list="list.txt")
    (root / "list.txt").write_text("image/a.jpg mask/a.png\nimage/a.jpg mask/a.png\n")
    fails(root, "list.txt:2: image/a.jpg stands in line 1, too", train_list="list.txt")
    (root / "list.txt").write_text("image/a.jpg mask/a.png\nnotes\n")
    fails(root, "list.txt:2: no pair of an image and a mask: 'notes'", train_list="list.txt")


# ----------------------------------------------------------------------------------------------------------- groups
SCENES = st.lists(st.integers(1, 6), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(sizes=SCENES, every=st.integers(2, 6), by_folder=st.booleans())
def test_no_scene_is_in_both_phases(sizes: list[int], every: int, by_folder: bool) -> None:
    """Law: the phases share no group, leave out no image, and every `every`-th group is held out."""
    mark = "/" if by_folder else "_"
    stems = [f"s{scene:02d}{mark}{frame:03d}" for scene, size in enumerate(sizes) for frame in range(size)]
    group = "folder" if by_folder else "^(.*)_[0-9]+$"
    train, evaluation = (held(stems, every, group, Path("x"), train=train) for train in (True, False))
    assert sorted(train + evaluation) == stems
    scenes = [{group_of(stem, group) for stem in part} for part in (train, evaluation)]
    assert not scenes[0] & scenes[1]
    assert len(scenes[1]) == len(range(every // 2, len(sizes), every))


def test_groups_of_a_folder(tmp_path: Path) -> None:
    images = [f"image/s{scene}_{frame}.jpg" for scene in range(5) for frame in range(3)]
    root = draw(tmp_path, *images, *(name.replace("image", "mask").replace("jpg", "png") for name in images))
    keys = {"holdout": 5, "holdout_group": "^(s[0-9]+)_"}
    held_out = folder(data(root, **keys), "eval")
    assert [Path(held_out.name(index)).name for index in range(3)] == ["s2_0.jpg", "s2_1.jpg", "s2_2.jpg"]
    assert len(folder(data(root, **keys), "train")) == 12
    fails(root, "fits none of the names, such as s0_0", holdout=5, holdout_group="^frame")


def sites(root: Path, **clips: range) -> dict[str, object]:
    """Keys of folders with two frames of each clip."""
    for site, numbers in clips.items():
        names = [f"c{clip}_{frame}" for clip in numbers for frame in range(2)]
        draw(root / site, *(f"image/{name}.jpg" for name in names), *(f"mask/{name}.png" for name in names))
    images, masks = (tuple(f"{site}/{kind}" for site in clips) for kind in ("image", "mask"))
    return {"train_images": images, "eval_images": images, "train_masks": masks, "eval_masks": masks, "holdout": 5}


def test_a_clip_in_several_folders_is_in_one_phase(tmp_path: Path) -> None:
    """Protects the scores: frames of one clip lie in two folders, and were trained on and evaluated."""
    keys = sites(tmp_path, a=range(1, 6), b=range(3, 8)) | {"holdout_group": "^(c[0-9]+)_"}
    parts = [folder(data(tmp_path, **keys), phase).names() for phase in ("train", "eval")]
    clips = [{Path(name).name.split("_")[0] for name in part} for part in parts]
    assert clips == [{"c1", "c2", "c4", "c5", "c6", "c7"}, {"c3"}]


def test_small_folders_are_divided_together(tmp_path: Path) -> None:
    """Protects from a refusal: no folder has five groups, but all of them together have."""
    keys = sites(tmp_path, a=range(2), b=range(2, 4), c=range(4, 6))
    for group in ("^(c[0-9]+)_", "folder"):
        held_out = folder(data(tmp_path, **keys, holdout_group=group), "eval")
        assert len(held_out) == {"folder": 4}.get(group, 2)


@pytest.mark.parametrize("group", ["^([ck][0-9]+)_", "folder"])
def test_folders_that_share_no_group_are_divided_each_by_itself(group: str, tmp_path: Path) -> None:
    """Protects runs that exist: counted over both folders, others would be held out, and these were trained on."""
    mark = "/" if group == "folder" else "_"
    for site, clip, count in (("a", "c", 7), ("b", "k", 6)):
        stems = [f"{clip}{number}{mark}{frame}" for number in range(1, count + 1) for frame in range(2)]
        draw(tmp_path / site, *(f"image/{stem}.jpg" for stem in stems), *(f"mask/{stem}.png" for stem in stems))
    images, masks = ("a/image", "b/image"), ("a/mask", "b/mask")
    keys = {"train_images": images, "eval_images": images, "train_masks": masks, "eval_masks": masks, "holdout": 5}
    train, held_out = (
        list(folder(data(tmp_path, **keys, holdout_group=group), phase).names()) for phase in ("train", "eval")
    )
    expected = [
        tmp_path / site / f"image/{clip}{mark}{n}.jpg" for site, clip in (("a", "c3"), ("b", "k3")) for n in (0, 1)
    ]
    assert sorted(held_out) == sorted(map(str, expected))
    assert len(train) == 22
    assert not set(train) & set(held_out)


def test_images_without_masks_need_not_fit_the_groups(tmp_path: Path) -> None:
    """Protects a folder of negatives, whose names are no frames: each image is then a group of its own."""
    keys = sites(tmp_path, a=range(5)) | {"holdout_group": "^(c[0-9]+)_"}
    draw(tmp_path, "negatives/foo.jpg", "negatives/bar.jpg")
    for key, more in (("images", "negatives"), ("masks", "")):
        keys |= {f"{phase}_{key}": (*keys[f"{phase}_{key}"], more) for phase in ("train", "eval")}  # type: ignore[misc]
    train, evaluation = (folder(data(tmp_path, **keys), phase) for phase in ("train", "eval"))
    assert (len(train), len(evaluation)) == (10, 2)
    assert len(train.background) == 2


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(a+)+$", "repeats a group"),
        ("(a|aa)*$", "repeats a group"),
        (".*.*.*.*.*x", "more than four parts"),
        ("a?a?a?a?a?b", "more than four parts"),
        ("(.|[^x])" * 12 + "!", "many alternatives"),
        (r"[\][](a+)+[]]", "repeats a group"),
        ("(?#[)(a+)+(?#])", "remarks"),
        ("(?ix)a b", "remarks"),
        ("([a-z]", "not a regular expression"),
        ("(" * 300, "must be text"),
    ],
)
def test_patterns_that_could_search_for_ever_are_refused(pattern: str, words: str) -> None:
    """Protects from a stranger's recipe: no pattern takes longer than a name is long to the fourth power."""
    text = edited(
        ('eval_images = "val"', 'eval_images = "train"'), ('eval_masks = "val_masks"', 'eval_masks = "train_masks"')
    )
    assert words in complaint(text, "data.holdout=5", f"data.holdout_group='{pattern}'")
    for good in (r"^(.*?)[_-]?\d+$", "^([^_]+_[^_]+)_", "folder", r"(?:cam)(\d{2})", "^(mon|tue|wed|thu|fri)_"):
        assert complaint(text, "data.holdout=5", f"data.holdout_group='{good}'") == ""
