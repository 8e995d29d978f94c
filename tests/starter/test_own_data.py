"""Folders as annotation tools leave them: `init`, `check-data` and the start of training say the same, and are right."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from emaseg.cli.app import main
from PIL import Image

from emaseg.data.sets.build import build_dataset
from emaseg.errors import UserError
from emaseg.inference.image_inputs import unread_files
from emaseg.open_datasets import open_datasets
from emaseg.recipe import parse_recipe
from tests.starter.made import SIZE, Draw, blob, data_of, dry_run, grey, indexed, labels, made, refused, start
from tests.test_check_data import report_of


# ---------------------------------------------------------------------------------------------------- several masks
@pytest.mark.parametrize(
    ("masks", "kinds"),
    [
        (("masks/car/img_{}.png", "masks/road/img_{}.png"), "car, road"),
        (("masks/img_{}_car.png", "masks/img_{}_road.png"), "_car, _road"),
        (("masks/car_img_{}.png", "masks/road_img_{}.png"), "car_, road_"),
        (("images/img_{}_car.png", "images/img_{}_road.png"), "_car, _road"),
        (("car/img_{}.png", "road/img_{}.png"), "car, road"),
    ],
)
def test_several_masks_of_an_image_are_recognised(masks: tuple[str, str], kinds: str, tmp_path: Path) -> None:
    """Protects from a data set without road: no mask is dropped without a word, whatever tells the masks apart."""
    for mask in masks:
        made(tmp_path, grey(0, 255), mask=mask)
    error = refused(tmp_path, "each image has 2 masks", kinds, "emaseg convert", "combine the masks", "1 car, 2 road")
    assert "mask_suffix" not in error.hint


def test_a_few_masks_of_another_ending_are_named(tmp_path: Path) -> None:
    """Protects masks that a suffix leaves out: `init`, check-data and the start of training name them."""
    made(tmp_path, grey(0, 1), mask="masks/img_{}_m.png", count=24)
    made(tmp_path, grey(0, 1), mask="masks/img_{}_old.png", count=2)
    started = start(tmp_path)
    words = "2 masks do not end in _m (data.mask_suffix) and are not read: img_0_old.png"
    assert any(words in note for note in started.notes)
    _, _, notes = open_datasets(started.recipe)
    assert any(words in note.text and note.warning for note in notes)
    assert [finding.kind for finding in report_of(started.recipe).findings if words in finding.examples[0]] == [
        "left"
    ] * 2


def test_a_second_folder_of_masks_is_named(tmp_path: Path) -> None:
    """Protects the choice between masks/ and labels/: it does not depend on any order, and is told."""
    made(tmp_path, grey(0, 1))
    made(tmp_path, grey(0, 2), mask="labels/img_{}.png")
    started = start(tmp_path)
    assert data_of(started).train_masks == "masks"
    assert "labels holds masks of the same images, too; masks is the one used." in started.notes


def test_label_studio_and_jpeg_masks(tmp_path: Path) -> None:
    """Protects users of exports that cannot be paired, or whose values are gone, from a search for the right names."""
    brush = made(tmp_path / "a", grey(0, 255), mask="masks/task-{}-annotation-3-by-1-tag-Car-0.png")
    refused(brush, "Label Studio's brush exports", "Car")
    refused(made(tmp_path / "b", grey(0, 255), mask="masks/img_{}.jpg"), "JPEG files", "PNG")
    refused(made(tmp_path / "c", grey(0, 255), image="{}.jpg", mask="{}_mask.jpg"), "JPEG files")


# ------------------------------------------------------------------------------------------------------ what masks hold
def blurred(values: np.ndarray) -> Image.Image:
    """With edges as a smooth drawing tool leaves them."""
    large = Image.fromarray(values).resize((SIZE[1] * 4, SIZE[0] * 4), Image.Resampling.BICUBIC)
    return large.rotate(7).resize((SIZE[1], SIZE[0]), Image.Resampling.BOX)


def coloured(values: np.ndarray) -> np.ndarray:
    return np.array([(0, 0, 0), (220, 40, 30), (30, 60, 250)], np.uint8)[values]


@pytest.mark.parametrize(
    "draw",
    [
        lambda _: blurred(blob(0, 255)),
        lambda _: blurred(blob(0, 128, 255)),
        lambda _: blurred(coloured(blob(0, 1, 2))),
    ],
    ids=["grey", "three values", "colours"],
)
def test_smooth_edges_are_named_with_their_share(draw: Draw, tmp_path: Path) -> None:
    """Protects the object, which was ignored for being 255, and from classes made of greys."""
    error = refused(made(tmp_path, draw), "smooth edges", "% of the pixels", "without smoothing")
    assert "in 6 of 6 masks" in error.message


def test_a_few_smooth_masks_among_sharp_ones_are_named(tmp_path: Path) -> None:
    """Protects from classes made of the greys of a few files, beside which 255 would be ignored."""
    error = refused(
        made(tmp_path, lambda n: blurred(blob(0, 255)) if n == 3 else Image.fromarray(blob(0, 255))), "edges"
    )
    assert "in 1 of 6 masks" in error.message


def test_close_class_numbers_that_were_smoothed_are_named(tmp_path: Path) -> None:
    """Protects class numbers 0, 10, 20, which smoothing makes into 0 to 20: far more values of edges than of areas."""
    refused(made(tmp_path, lambda _: blurred(blob(0, 10, 20))), "smooth edges")


@pytest.mark.parametrize("top", [255, 65535])
def test_one_object_saved_in_two_ways_is_told(top: int, tmp_path: Path) -> None:
    """Protects the object of half of the masks, ignored for being 255, or taken for an unlabelled area; with names that
    say which values are classes, 255 is what it usually is."""
    root = made(tmp_path, lambda n: Image.fromarray(blob(0, top if n % 2 else 1, dtype=np.uint16)))
    refused(root, f"3 others 0 and {top}", "one object saved in two ways")
    (root / "classes.txt").write_text("0: ground\n1: thing")
    assert (data_of(start(root)).classes, top in data_of(start(root)).ignore) == (("ground", "thing"), True)


@pytest.mark.parametrize("values", [(0, 255), (0, 1, 255), (0, 65535)])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_one_bit_masks_among_those_that_hold_255_are_told(values: tuple[int, ...], ending: str, tmp_path: Path) -> None:
    """Protects the object of a single mask that a program has made smaller: its white became 1, and the object of all
    others would be ignored, or be another class; where they hold 0 and 1 nothing is wrong."""

    def draw(number: int) -> Image.Image:
        picture = blob(*values, dtype=np.uint16 if values[-1] > 255 else np.uint8)
        return Image.fromarray(blob(0, 1).astype(bool) if number == 3 else picture)

    root = made(tmp_path, draw, mask=f"masks/img_{{}}{ending}", count=12)
    refused(root, f"img_3{ending} is a mask of 1 bit", "holds 255", "save all masks with 8 bits")
    like = made(tmp_path / "like", lambda n: Image.fromarray(blob(0, 1).astype(bool if n % 2 else np.uint8)), count=12)
    started = start(like)
    assert not [note for note in started.notes if "1 bit" in note]
    if values != (0, 1, 255):  # training refuses the others for their values
        return
    recipe = parse_recipe(started.text.replace(str(like), str(root)).replace(".png", ending), "x").recipe
    assert any("img_3" in note.text and "1 bit" in note.text and note.warning for note in open_datasets(recipe)[2])
    assert "bits" in {finding.kind for finding in report_of(recipe).findings}


def test_masks_of_several_pages_are_warned_of(tmp_path: Path) -> None:
    """Protects the classes on the pages of a TIFF behind the first, which is the one that is read."""
    root = made(tmp_path, grey(0, 1), mask="masks/img_{}.tif")
    for path in (root / "masks").iterdir():
        Image.fromarray(blob(0, 1)).save(path, save_all=True, append_images=[Image.fromarray(blob(0, 2))])
    assert any("6 of 6 masks have several pages" in note for note in start(root).notes)


@pytest.mark.parametrize(
    "values",
    [[0, 128, 255], [0, 1, 2, 255], [0, 60, 120, 180], [0, 15, 255]],
)
def test_thin_classes_are_not_smooth_edges(values: list[int], tmp_path: Path) -> None:
    """Protects contours and thin objects: lines of one pixel between other classes are classes."""
    rng = np.random.default_rng(1)

    def draw(_: int) -> Image.Image:
        array = blob(values[0], values[-1])
        array[4:20, 11] = array[20, 3:12] = values[1]
        for value in values[1:-1]:
            array[rng.integers(0, SIZE[0]), 20:30] = value
        return Image.fromarray(array)

    started = start(made(tmp_path, draw))
    dry_run(started.text)


def test_stretched_values_reach_255_as_a_class(tmp_path: Path) -> None:
    """Protects the brightest class of masks stretched for viewing, and says so."""
    started = start(made(tmp_path, grey(0, 128, 255)))
    assert (data_of(started).values, data_of(started).ignore) == ((0, 128, 255), ())
    assert any("stretched for viewing" in note for note in started.notes)


@pytest.mark.parametrize(
    ("mask", "dtype", "values"),
    [
        ("masks/img_{}.png", np.uint16, (0, 65535)),
        ("masks/img_{}.tif", np.uint16, (0, 1000)),
        ("masks/img_{}.tif", np.float32, (0, 7)),
    ],
)
def test_masks_of_16_bits_and_of_whole_float_numbers(
    mask: str, dtype: type, values: tuple[int, ...], tmp_path: Path
) -> None:
    """Protects masks whose numbers do not fit into 8 bits, or are stored as floats: they are read exactly."""
    started = start(made(tmp_path, lambda _: Image.fromarray(blob(*values, dtype=dtype)), mask=mask))
    recipe = dry_run(started.text)
    assert data_of(started).values == values
    assert labels(build_dataset(recipe.data, "train")) == {0, 1}


def test_floats_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    draw = lambda _: Image.fromarray(blob(0, 1, dtype=np.float32) / 3)
    refused(made(tmp_path, draw, mask="masks/img_{}.tif"), "not whole numbers", "0.333333")


def test_equal_channels_are_class_numbers(tmp_path: Path) -> None:
    """Protects the order of the classes, which was that of their frequency, and the colours of pictures."""
    started = start(made(tmp_path, lambda _: Image.fromarray(np.repeat(blob(0, 2, 1)[..., None], 3, 2))))
    recipe = dry_run(started.text)
    assert (data_of(started).classes, data_of(started).palette) == (("class_0", "class_1", "class_2"), ())
    train = build_dataset(recipe.data, "train")
    assert labels(train) == {0, 1, 2}
    assert (train.palette.max(axis=1) > 100)[1:].all()
    np.testing.assert_array_equal(train.open(0).label(), blob(0, 2, 1))


def test_grey_colours_that_a_file_names_stay_colours(tmp_path: Path) -> None:
    """Protects colour masks that happen to be grey: a file that gives the colours decides."""
    made(tmp_path, lambda _: Image.fromarray(np.repeat(blob(0, 128)[..., None], 3, 2)))
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,255,0,0\nsky,128,128,128\nother,0,0,0\n")
    started = start(tmp_path)
    assert data_of(started).palette == ((255, 0, 0), (128, 128, 128), (0, 0, 0))
    assert labels(build_dataset(dry_run(started.text).data, "train")) == {1, 2}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_the_background(mode: str, tmp_path: Path) -> None:
    """Protects what init writes: it said class_0 and training refused the masks."""

    def draw(_: int) -> Image.Image:
        object_ = blob(0, 1).astype(bool)
        picture = Image.fromarray((object_ * 255).astype(np.uint8)).convert(mode)
        picture.putalpha(Image.fromarray((object_ * 255).astype(np.uint8)))
        return picture

    started = start(made(tmp_path, draw))
    assert data_of(started).classes == ("background", "foreground")
    assert any(note.startswith("Transparent pixels (6 masks) are read as") for note in started.notes)
    assert labels(build_dataset(dry_run(started.text).data, "train")) == {0, 1}


def test_transparent_beside_opaque_black_is_unclear(tmp_path: Path) -> None:
    def draw(number: int) -> Image.Image:
        picture = Image.fromarray(coloured(blob(0, 1))).convert("RGBA")
        if number % 2:
            picture.putalpha(Image.fromarray(blob(0, 255)))
        return picture

    refused(made(tmp_path, draw), "transparent", "opaque black", "without transparency")


def test_swapped_palettes(tmp_path: Path) -> None:
    """Protects from indices that mean another class in every second file: refused at first, told for a recipe."""
    swapped = ([0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0])
    draw = lambda n: indexed(blob(0, 1) if n % 2 else 1 - blob(0, 1), swapped[n % 2])
    words = ("the palettes of the masks differ", "index 0 is [0, 0, 0] in img_0.png and [255, 0, 0] in img_1.png")
    refused(made(tmp_path, draw), *words)
    text = start(made(tmp_path / "like", grey(0, 1))).text.replace(str(tmp_path / "like"), str(tmp_path))
    recipe = parse_recipe(text, "x").recipe
    _, _, notes = open_datasets(recipe)
    assert any(words[0] in note.text and note.warning for note in notes)
    assert "palettes" in {finding.kind for finding in report_of(recipe).findings}


def test_palettes_of_other_colours_or_lengths(tmp_path: Path) -> None:
    """Protects masks with one palette cut to different lengths, of which nothing is said, from a false alarm; where an
    index has two colours that stand for nothing else there is a warning."""
    long, short = [0, 0, 0, 255, 0, 0, 9, 9, 9], [0, 0, 0, 255, 0, 0]
    started = start(made(tmp_path / "a", lambda n: indexed(blob(0, 1), long if n % 2 else short)))
    assert not [note for note in started.notes if "palettes of" in note]
    other = [0, 0, 0, 0, 200, 0]
    started = start(made(tmp_path / "b", lambda n: indexed(blob(0, 1), other if n % 2 else short)))
    assert [note for note in started.notes if note.startswith("warning: the palettes of the masks differ")]
    dry_run(started.text)


def test_names_of_a_palette_go_to_its_colours(tmp_path: Path) -> None:
    """Protects CVAT's labelmap.txt, which is in the order of the alphabet, not of the indices."""
    made(tmp_path, lambda _: indexed(blob(0, 1, 2), [0, 0, 0, 9, 9, 200, 200, 9, 9]))
    lines = "# label:color_rgb:parts:actions\nant:200,9,9::\nbackground:0,0,0::\nbee:9,9,200::\n"
    (tmp_path / "labelmap.txt").write_text(lines)
    assert data_of(start(tmp_path)).classes == ("background", "bee", "ant")


@pytest.mark.parametrize(
    ("text", "values", "classes", "ignore"),
    [
        ("__ignore__\n_background_\ncat\ndog", (0, 1, 2), ("_background_", "cat", "dog"), (255,)),
        ("__ignore__\n_background_\ncat\ndog", (0, 1), ("_background_", "cat", "dog"), (255,)),
        ("void\nroad\ncar", (0, 1, 2), ("road", "car"), (0, 255)),
        ("sky\nroad\ncar", (0, 100, 200), ("sky", "road", "car"), (255,)),
        ("sky\nroad\ncar", (0, 1, 2, 65535), ("sky", "road", "car"), (255, 65535)),
    ],
)
def test_positions(
    text: str, values: tuple[int, ...], classes: tuple[str, ...], ignore: tuple[int, ...], tmp_path: Path
) -> None:
    """Protects lists of names alone: labelme's first line is number -1, a void first line is value 0."""
    made(tmp_path, lambda _: Image.fromarray(blob(*values, dtype=np.uint16)))
    (tmp_path / "labels.txt").write_text(text)
    started = start(tmp_path)
    assert (data_of(started).classes, data_of(started).ignore) == (classes, ignore)
    dry_run(started.text)


# --------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("ending", [".HEIC", ".jp2", ".avif"])
def test_images_of_unread_endings_are_counted_and_named(ending: str, tmp_path: Path) -> None:
    """Protects half a data set from going missing: counted without masks, and named as the masks' partners."""
    made(tmp_path, grey(0, 1), count=8)
    for number in range(3):
        (tmp_path / f"images/img_{number}.jpg").rename(tmp_path / f"images/img_{number}{ending}")
    refused(tmp_path, "3 of 8 masks", f"3 {ending.lower()}", f"img_0{ending}")
    for number in range(3):
        (tmp_path / f"masks/img_{number}.png").unlink()
    started = start(tmp_path)
    assert any(f"files that are not read: 3 {ending.lower()}" in note for note in started.notes)
    assert "left" in {finding.kind for finding in report_of(started.recipe).findings}


def test_names_in_two_unicode_forms_match(tmp_path: Path) -> None:
    """Protects folders of which one half was copied by macOS."""
    apart, joined = unicodedata.normalize("NFD", "Öl_{}"), unicodedata.normalize("NFC", "Öl_{}")
    root = made(tmp_path, grey(0, 1), image=f"images/{apart}.jpg", mask=f"masks/{joined}.png")
    (root / "train.txt").write_text("\n".join(joined.format(n) for n in range(4)))
    (root / "val.txt").write_text("\n".join(apart.format(n) + ".jpg" for n in (4, 5)))
    started = start(root)
    assert (data_of(started).train_list, data_of(started).eval_list) == ("train.txt", "val.txt")
    dry_run(started.text)


@pytest.mark.parametrize(
    ("image", "mask", "prefixes"),
    [
        ("images/image_{}.jpg", "masks/mask_{}.png", ("image", "mask")),
        ("images/{}.jpg", "masks/label-{}.png", (None, "label-")),
        ("images/sub/img{}.jpg", "masks/sub/seg{}.png", ("img", "seg")),
        ("img_{}.png", "mask_{}.png", ("img", "mask")),
    ],
)
def test_prefixes(image: str, mask: str, prefixes: tuple[str | None, str], tmp_path: Path) -> None:
    """Protects image_000.jpg with mask_000.png: found, written down, and each mask goes to its own image."""
    draw = lambda n: Image.fromarray(
        np.where(np.arange(SIZE[1]) < 2 + n, 1, 0)[None].repeat(SIZE[0], 0).astype(np.uint8)
    )
    started = start(made(tmp_path, draw, image=image, mask=mask))
    data = data_of(dry_run(started.text) and started)
    assert (data.image_prefix, data.mask_prefix) == prefixes
    for part in ("train", "eval"):
        dataset = build_dataset(data, part)  # type: ignore[arg-type]
        for place in range(len(dataset)):
            number = int(re.sub(r"\D", "", Path(dataset.name(place)).stem))
            assert dataset.open(place).label()[0].sum() == 2 + number


@pytest.mark.parametrize(
    ("image", "mask", "suffixes"),
    [
        ("train/{}_sat.jpg", "train/{}_mask.png", ("sat", "mask")),
        ("images/f_{}_image.png", "masks/f_{}_label.png", ("image", "label")),
    ],
)
def test_endings_of_both(image: str, mask: str, suffixes: tuple[str, str], tmp_path: Path) -> None:
    """Protects data sets whose images and masks both have an ending: it is recognised, and trains."""
    started = start(made(tmp_path, grey(0, 1), image, mask))
    assert (data_of(started).image_suffix, data_of(started).mask_suffix) == suffixes
    assert "image_suffix" in started.text
    assert labels(open_datasets(dry_run(started.text))[0]) == {0, 1}


def test_folders_in_folders_of_an_archive(tmp_path: Path) -> None:
    started = start(made(tmp_path / "data" / "data", grey(0, 1)).parent.parent)
    assert data_of(started).root.endswith("data/data")


def test_what_macos_packs_into_archives_is_passed_over(tmp_path: Path) -> None:
    """Protects data sets zipped on a Mac: a second folder lies beside the only one, with a twin of each file."""
    made(tmp_path / "data", grey(0, 1))
    twins = tmp_path / "__MACOSX" / "data" / "images"
    for folder in (twins, tmp_path / "data" / "__MACOSX" / "images", tmp_path / "data" / "images" / "__MACOSX"):
        folder.mkdir(parents=True)
        (folder / "._img_0.jpg").write_bytes(b"\0\5\x16\7")
    started = start(tmp_path)
    assert data_of(started).root.endswith("/data")
    assert not any("__MACOSX" in note for note in started.notes)
    sites = tmp_path / "sites"
    for site in ("a", "b"):
        made(sites / site, grey(0, 1), image=f"images/{site}_{{}}.jpg", mask=f"masks/{site}_{{}}.png")
    (sites / "__MACOSX").mkdir()
    assert not any("__MACOSX" in note for note in start(sites).notes)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [(".npy", "the masks end in .npy"), *((end, "such files are not read") for end in (".nii.gz", ".cr2"))],
)
def test_unread_files_with_the_names_of_the_others_are_the_reason(ending: str, reason: str, tmp_path: Path) -> None:
    """Protects from the advice to rename what must be converted."""
    made(tmp_path, grey(0, 1))
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}{ending}"))
    named = () if ending == ".npy" else (f"img_0{ending} have the names of the others",)
    refused(tmp_path, reason, *named)


def test_dark_16_bit_images_and_pages(tmp_path: Path) -> None:
    """Protects satellite images that are black to the network, and pages that are bands: told with the remedy."""
    root = made(tmp_path, grey(0, 1))
    for file in sorted((root / "images").iterdir()):
        file.unlink()
        Image.fromarray(blob(300, 2400, dtype=np.uint16)).save(file.with_suffix(".tif"))
    started = start(root)
    assert [note for note in started.notes if "6 images of 16 bits use about" in note and "gdal_translate" in note]
    assert {"range"} <= {finding.kind for finding in report_of(started.recipe).findings}
    pages = [Image.fromarray(blob(10, 200)) for _ in range(4)]
    for file in sorted((root / "images").iterdir()):
        pages[0].save(file, save_all=True, append_images=pages[1:])
    assert [note for note in start(root).notes if "several pages" in note]


@pytest.mark.parametrize("spoilt", ["saturated", "no data", "hot"])
def test_a_few_far_values_do_not_hide_dark_16_bit_images(spoilt: str, tmp_path: Path) -> None:
    """Protects satellite images in which one pixel is saturated, a border has no data, or a few pixels are hot."""
    root = made(tmp_path, grey(0, 1))
    for file in sorted((root / "images").iterdir()):
        file.unlink()
        array = np.linspace(300, 2400, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
        if spoilt == "hot":
            array[1, :3] = 20000, 40000, 60000
        else:
            array[1, : 1 if spoilt == "saturated" else 32] = 65535
        Image.fromarray(array).save(file.with_suffix(".tif"))
    started = start(root)
    assert [note for note in started.notes if "use about 256 to 2559 of 0 to 65535" in note]
    assert "range" in {finding.kind for finding in report_of(started.recipe).findings}


def test_16_bit_images_with_a_black_border_or_few_lights_are_no_doubt(tmp_path: Path) -> None:
    """Protects from a warning about pictures that use their range: at night, or beside a white border."""
    root = made(tmp_path, grey(0, 1))
    for number, file in enumerate(sorted((root / "images").iterdir())):
        file.unlink()
        array = np.linspace(0, 30000, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
        array[0] = 65535 if number % 2 else 0
        Image.fromarray(array).save(file.with_suffix(".tif"))
    assert not [note for note in start(root).notes if "16 bits" in note]


def test_mostly_ignored_and_one_class_nearly_everywhere(tmp_path: Path) -> None:
    """Protects from hours on pixels that say nothing."""
    recipe = start(made(tmp_path / "a", grey(255, 0, 1))).recipe
    recipe_of = {finding.kind: finding for finding in report_of(recipe).findings}
    assert recipe_of["mostly"].level == "warning"
    assert any("of the pixels are ignored" in note.text for note in open_datasets(recipe)[2] if note.warning)

    def spot(_: int) -> Image.Image:
        array = np.zeros(SIZE, np.uint8)
        array[3, 3:6] = 1
        return Image.fromarray(array)

    recipe = start(made(tmp_path / "b", spot)).recipe
    assert any('"background" covers 99.6%' in note.text for note in open_datasets(recipe)[2] if note.warning)
    assert "one" in {finding.kind for finding in report_of(recipe).findings}


@pytest.mark.parametrize("path", ["C:\\Users\\me", "C:\\data\\new", "C:\\temp\\new", "D:\\bilder\\"])
def test_windows_paths(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects Windows users: whether the backslash is refused or read as an escape, the message says how to write it."""
    text = start(made(tmp_path, grey(0, 1))).text
    line = next(line for line in text.splitlines() if line.startswith("root = "))
    file = tmp_path / "win.toml"
    file.write_text(text.replace(line, f'root = "{path}"'))
    assert main(["check-data", str(file), "-q"]) == 2
    said = capsys.readouterr().err
    assert "backslash" in said
    assert "single quotes" in " ".join(said.split())


def test_a_folder_named_as_a_recipe_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a run in ./demo, which `eval demo` does not mean: the message says how to write it."""
    from emaseg.reference import resolve

    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    with pytest.raises(UserError) as caught:
        resolve("demo")
    assert "./demo" in caught.value.hint
    with pytest.raises(UserError) as caught:
        resolve("demo", checkpoint="last")
    assert "./demo" in caught.value.hint


def test_predict_names_what_it_leaves_out(tmp_path: Path) -> None:
    """Protects half a folder from going unpredicted without a word; text files beside the images are nothing to tell."""
    made(tmp_path, grey(0, 1), count=2)
    for name in ("a.HEIC", "b.heic", "c.nef", "notes.txt", "Thumbs.db"):
        (tmp_path / "images" / name).write_bytes(b"x")
    folder = tmp_path / "images"
    assert unread_files([str(folder), str(folder / "a.HEIC"), "-"]) == [
        f"{folder}: files that are not read: 2 .heic, 1 .nef"
    ]
