"""Reading masks: values become train ids exactly, and a wrong mask is named with values, pixel counts and remedy."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from emaseg.data.dataset import LabelError
from emaseg.data.files import png
from emaseg.data.files.label_files import ILLEGAL, LabelRule, apply_rule, index_rule, read_label
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.data import IGNORE

pytestmark = pytest.mark.usefixtures("each_decoder")

CLASSES = ("road", "car", "tree")
RULE = index_rule(CLASSES)
STRICT = index_rule(CLASSES, ignore=())
COLOURS = index_rule(
    CLASSES, palette=((128, 64, 128), (0, 0, 142), (107, 142, 35)), ignore_colours=((0, 0, 0), (255, 255, 255))
)


def dealt(number: int, channel: int) -> int:
    return sum(((number >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))


VOC = tuple((dealt(number, 0), dealt(number, 1), dealt(number, 2)) for number in range(256))  # PASCAL VOC's colour map


def saved(folder: Path, mask: object, mode: str | None = None, name: str = "m.png", **options: object) -> Path:
    picture = mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask))
    if mode == "P":
        picture.putpalette([(7 * i) % 256 for i in range(768)])
    picture.save(folder / name, **options)
    return folder / name


def grey(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def fails(path: Path, rule: LabelRule, *words: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read_label(path, rule)
    error = caught.value
    assert str(path) in error.message
    assert error.hint
    for word in words:
        assert word in error.message + "\n" + error.hint
    return error


# ------------------------------------------------------------------------------------------------ what is read
@settings(max_examples=30, deadline=None)
@given(
    mask=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 9)),
    mode=st.sampled_from(["L", "P"]),
)
def test_index_masks_survive_png_as_grey_and_as_palette(
    tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray, mode: str
) -> None:
    """The palette's colours must never leak into the labels; Pillow packs few indices into 1, 2 or 4 bits."""
    path = saved(tmp_path_factory.mktemp("m"), mask, mode)
    label = read_label(path, index_rule(tuple("abcdefghij")))
    np.testing.assert_array_equal(label, mask)
    assert label.dtype == np.uint8


@settings(max_examples=20, deadline=None)
@given(ids=hnp.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 255])))
def test_colour_masks_survive_a_round_trip(tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray) -> None:
    ids[0, 0] = 1  # at least one labelled pixel
    table = np.zeros((256, 3), np.uint8)
    table[:3] = COLOURS.palette
    label = read_label(saved(tmp_path_factory.mktemp("m"), table[ids]), COLOURS)
    np.testing.assert_array_equal(label, ids)


def test_ignored_values_become_255(tmp_path: Path) -> None:
    rule = index_rule(CLASSES, ignore=(11, 255))
    assert read_label(saved(tmp_path, grey([0, 11, 255, 2])), rule).tolist() == [[0, 255, 255, 2]]


def test_a_class_may_be_ignored(tmp_path: Path) -> None:
    """ignore = [0] leaves the numbering of the other classes alone."""
    assert read_label(saved(tmp_path, grey([0, 1, 2])), index_rule(CLASSES, ignore=(0,))).tolist() == [[255, 1, 2]]


def test_one_bit_and_sixteen_bit_masks(tmp_path: Path) -> None:
    assert read_label(saved(tmp_path, np.array([[True, False]])), RULE).tolist() == [[1, 0]]
    for dtype, name in [(np.uint16, "a.png"), (np.uint16, "a.tif"), (np.int32, "b.tif")]:
        mask = np.array([[2, 0, 255]], dtype)
        assert read_label(saved(tmp_path, mask, name=name), RULE).tolist() == [[2, 0, 255]]


def test_opaque_alpha_is_passed_over(tmp_path: Path) -> None:
    rgb = np.array([[COLOURS.palette[2], COLOURS.ignore_colours[1]]], np.uint8)
    rgba = np.dstack([rgb, np.full((1, 2), 255, np.uint8)])
    assert read_label(saved(tmp_path, rgba), COLOURS).tolist() == [[2, 255]]
    la = np.dstack([grey([1, 2]), np.full((1, 2), 255, np.uint8)])
    assert read_label(saved(tmp_path, Image.fromarray(la, "LA")), RULE).tolist() == [[1, 2]]


def test_palette_masks_with_a_transparent_index_keep_it(tmp_path: Path) -> None:
    """Drawing tools make the background transparent; it is class 0 all the same."""
    picture = Image.fromarray(grey([0, 1, 2]))
    picture.putpalette([9, 9, 9] * 3)
    assert read_label(saved(tmp_path, picture, transparency=0), RULE).tolist() == [[0, 1, 2]]


def test_a_mask_is_turned_like_its_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, grey([0, 1, 2]), exif=exif.tobytes())
    assert read_label(path, RULE).tolist() == [[0], [1], [2]]


# --------------------------------------------------------------------------------------------- what is refused
def test_value_out_of_range_names_file_value_count_and_remedy(tmp_path: Path) -> None:
    path = saved(tmp_path, grey([0, 1, 7], [7, 2, 9]))
    fails(path, RULE, "7 (2 pixels), 9 (1 pixel)", "0..2 are classes, 255 is ignored", "data.classes", "data.ignore")


def test_many_wrong_values_are_cut_off(tmp_path: Path) -> None:
    fails(saved(tmp_path, np.arange(256, dtype=np.uint8)[None]), RULE, "and 247 more values", "nearest neighbour")


def test_binary_mask_of_0_and_255(tmp_path: Path) -> None:
    fails(saved(tmp_path, grey([0, 255, 255])), STRICT, "255 (2 pixels)", "binary mask", "save the second class as 1")


def test_one_bit_among_masks_of_0_and_255(tmp_path: Path) -> None:
    """Protects from a remedy that would make the object of one file another class."""
    rule = index_rule(("ground", "thing"), ignore=(), values=(0, 255))
    fails(saved(tmp_path, np.array([[True, False]])), rule, "1 (1 pixel)", "a mask of 1 bit", "1 as 255")


def test_255_among_other_classes_suggests_data_ignore(tmp_path: Path) -> None:
    fails(saved(tmp_path, grey([0, 1, 255])), STRICT, "255 (1 pixel)", "set data.ignore = [255]")


def test_values_counted_from_1(tmp_path: Path) -> None:
    fails(saved(tmp_path, grey([1, 2, 3, 3])), RULE, "3 (2 pixels)", "counted from 1?", "subtract 1")


def test_missing_class_names(tmp_path: Path) -> None:
    fails(saved(tmp_path, grey([0, 1, 3])), RULE, "3 (1 pixel)", "name the missing classes in data.classes")


def test_four_bit_grey(tmp_path: Path) -> None:
    """Pillow stretches a 4-bit grey PNG to 0..255, as the PNG standard says: class 1 arrives as 17."""
    fails(saved(tmp_path, grey([0, 17, 34])), RULE, "17 (1 pixel)", "4-bit grey", "plain class numbers")


def test_sixteen_bit_values_beyond_255(tmp_path: Path) -> None:
    fails(saved(tmp_path, np.array([[0, 1, 1001]], np.uint16)), RULE, "1001 (1 pixel)")
    fails(saved(tmp_path, np.array([[0, -1]], np.int32), name="a.tif"), RULE, "-1 (1 pixel)")


def test_every_pixel_ignored(tmp_path: Path) -> None:
    path = saved(tmp_path, grey([255, 255]))
    fails(path, RULE, "every pixel of the mask is ignored", "out of the list")
    allowed = LabelRule(RULE.classes, RULE.lut, empty_ok=True)
    assert read_label(path, allowed).tolist() == [[255, 255]]


def test_rgb_mask_without_declared_colours(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    fails(path, RULE, "three-channel mask", "declare data.palette", "class numbers")


def test_class_numbers_saved_as_rgb(tmp_path: Path) -> None:
    """Three equal channels are a number where no colours are declared, and a colour where they are."""
    rgb = np.repeat(grey([0, 2], [1, 255])[..., None], 3, axis=2)
    assert read_label(saved(tmp_path, rgb), RULE).tolist() == [[0, 2], [1, 255]]
    fails(saved(tmp_path, rgb), COLOURS, "[2, 2, 2] (1 pixel)")
    fails(saved(tmp_path, rgb), index_rule(CLASSES, layout="PASCAL VOC"), "three-channel mask")


def test_values_and_ignored_ones_of_16_bits(tmp_path: Path) -> None:
    rule = index_rule(("a", "b"), ignore=(65535,), values=(0, 1000))
    assert read_label(saved(tmp_path, np.array([[0, 1000, 65535]], np.uint16)), rule).tolist() == [[0, 1, 255]]
    fails(saved(tmp_path, np.array([[0, 255]], np.uint16)), rule, "255 (1 pixel)", "0 and 1000 are classes, 65535")
    fails(saved(tmp_path, np.array([[0, 65535]], np.uint16)), STRICT, "binary mask (0 and 65535)?", "[0, 65535]")


def smooth() -> np.ndarray:
    """An object of 255 whose edges go down to 0 in five steps."""
    far = np.abs(np.arange(24)[:, None] - 12) + np.abs(np.arange(24)[None] - 12)
    return np.clip(255 * (12 - far) / 5, 0, 255).astype(np.uint8)


def test_smooth_edges_are_the_cause(tmp_path: Path) -> None:
    """Greys and colours between two classes, along their border, are named as smooth edges with their share."""
    fails(saved(tmp_path, smooth()), STRICT, "smooth edges: ", "% of the pixels hold", "without smoothing")
    rgb = np.stack([smooth(), smooth() // 2, 255 - smooth()], axis=2)
    two = index_rule(("a", "b"), palette=((0, 0, 255), (255, 127, 0)))
    fails(saved(tmp_path, rgb), two, "smooth edges: ", "without smoothing")
    fails(saved(tmp_path, rgb), RULE, "three-channel mask with smooth edges", "without smoothing")


def test_transparent_pixels_of_a_colour_mask_are_black(tmp_path: Path) -> None:
    """Whatever colour hides there; beside opaque black they are unclear."""
    rgba = np.array([[(9, 9, 9, 0), (0, 0, 142, 255)]], np.uint8)
    assert read_label(saved(tmp_path, rgba), COLOURS).tolist() == [[255, 1]]
    rgba[0, 1] = (0, 0, 0, 255)
    fails(saved(tmp_path, rgba), COLOURS, "transparent pixels and with opaque black", "without transparency")


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 254),
    first=st.integers(0, 255),
    ignored=st.sampled_from(["before", "none", "two", "twice"]),
    values=st.lists(st.integers(0, 255), min_size=1, max_size=12),
)
def test_a_subtraction_stands_for_a_table_only_where_it_is_one(
    count: int, first: int, ignored: str, values: list[int]
) -> None:
    """Masks are mapped by the quick way where the rule allows it: the same labels and errors as value by value."""
    lut = [ILLEGAL] * 256
    for train_id in range(count):
        lut[(first + train_id) % 256] = train_id
    if ignored != "none":
        lut[(first - 1) % 256] = IGNORE
    if ignored == "two":
        lut[(first + count) % 256] = IGNORE
    if ignored == "twice":
        lut[(first + count) % 256] = 0
    rule = LabelRule(tuple(map(str, range(count))), bytes(lut), empty_ok=True)
    raw = np.array([values], np.uint8)
    if ILLEGAL in [lut[v] for v in values]:
        with pytest.raises(DataError):
            apply_rule(raw, Path("a.png"), rule)
    else:
        assert apply_rule(raw, Path("a.png"), rule).tolist() == [[lut[v] for v in values]]


def test_unknown_colour_is_named_with_count_and_nearest_class(tmp_path: Path) -> None:
    rgb = np.array([[COLOURS.palette[0], (0, 0, 140), (0, 0, 140)]], np.uint8)
    fails(saved(tmp_path, rgb), COLOURS, "[0, 0, 140] (2 pixels)", '[0, 0, 142], "car"', "data.ignore_colours")


def test_a_smoothed_colour_mask(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    fails(saved(tmp_path, rgb), COLOURS, "81 colours", "without smoothing")


def test_a_colour_declared_twice(tmp_path: Path) -> None:
    """ADE20K's and PASCAL Context's palettes hold one colour twice: their pictures cannot be turned back."""
    rule = index_rule(("a", "b"), palette=((1, 1, 1), (1, 1, 1)))
    fails(saved(tmp_path, np.full((1, 1, 3), 1, np.uint8)), rule, "[1, 1, 1] is declared twice", "data.palette")


def test_transparent_rgb_mask(tmp_path: Path) -> None:
    fails(saved(tmp_path, Image.new("RGBA", (2, 2), (0, 0, 142, 90))), COLOURS, "transparent", "without transparency")


def test_float_and_transparent_grey_masks(tmp_path: Path) -> None:
    ones = np.ones((2, 2), np.float32)
    assert read_label(saved(tmp_path, ones, name="f.tif"), RULE).tolist() == [[1, 1], [1, 1]]
    for wrong in (ones / 2, -ones, ones * np.inf, ones * np.nan, ones * 1e9):
        fails(saved(tmp_path, wrong, name="f.tif"), RULE, "mode F", "8-bit grey or palette PNG")
    fails(saved(tmp_path, Image.new("LA", (2, 2), (1, 3))), RULE, "mode LA", "8-bit grey or palette PNG")


def test_jpeg_under_a_png_name(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(grey([0, 1, 2])).save(file, "JPEG")
    path = tmp_path / "m.png"
    path.write_bytes(file.getvalue())
    fails(path, RULE, "JPEG mask", "PNG")


def indexed(folder: Path, mask: np.ndarray, *colours: tuple[int, int, int], name: str = "m.png") -> Path:
    picture = Image.fromarray(mask)
    picture.putpalette([part for colour in colours for part in colour])
    picture.save(folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.gif"])
def test_palette_masks_in_another_order_than_the_recipe_are_refused(name: str, tmp_path: Path) -> None:
    """Protects from classes that change places: an optimiser numbers the colours of a mask as it likes."""
    road, car, tree = COLOURS.palette
    mask = grey([0, 1, 2], [0, 1, 2])
    error = fails(indexed(tmp_path, mask, road, tree, car, name=name), COLOURS, "[107, 142, 35]", '"car"', '"tree"')
    assert isinstance(error, LabelError)
    assert error.kind == "colours"
    assert "data.palette in the order of the masks' numbers, as `emaseg init FOLDER` writes them" in error.hint
    assert "only if the palettes of the masks differ among themselves" in error.hint  # else convert has nothing to do
    padded = [road, tree, car, *[(9, 9, 9)] * 253]
    fails(indexed(tmp_path, mask, *padded, name=name), COLOURS, '"car"', '"tree"')
    fails(indexed(tmp_path, grey([0, 1]), tree, car, *[(9, 9, 9)] * 254, name=name), COLOURS, '"road"', '"tree"')
    fails(indexed(tmp_path, mask, road, tree, car, *VOC[3:], name=name), COLOURS, '"car"', '"tree"')
    fails(indexed(tmp_path, grey([0, 0]), tree), COLOURS, '"road"', '"tree"')  # all of its palette is declared
    fails(indexed(tmp_path, grey([0, 1]), (0, 0, 0), car), COLOURS, '"road"', "ignored")


def test_palette_masks_whose_colours_say_nothing_are_read_by_their_numbers(tmp_path: Path) -> None:
    """Protects index masks: with the recipe's colours in order, with any others, or with one in common by chance."""
    road, car, tree = COLOURS.palette
    mask = grey([0, 1, 2, 255])
    for colours in ([road, car, tree], [(1, 2, 3), (4, 5, 6), (7, 8, 9)], [tree, (4, 5, 6), (7, 8, 9)]):
        everything = [*colours, *[(9, 9, raw) for raw in range(253)]]
        np.testing.assert_array_equal(read_label(indexed(tmp_path, mask, *everything), COLOURS), mask)
    chance = indexed(tmp_path, grey([0, 0]), tree, (4, 5, 6), (7, 8, 9))
    np.testing.assert_array_equal(read_label(chance, COLOURS), [[0, 0]])


CAMVID = index_rule(
    ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    (11, 255),
    palette=(
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
)
BLACK = index_rule(CAMVID.classes, palette=CAMVID.palette, ignore_colours=((0, 0, 0),))
FEW = index_rule(("a", "b"), tuple(v for v in range(256) if v not in (0, 15)), values=(0, 15), palette=VOC[:2])


@pytest.mark.parametrize(
    ("rule", "held", "meaning"),
    [
        (CAMVID, [1, 3], [1, 3]),
        (CAMVID, [3, 7], [3, 7]),
        (CAMVID, [1, 255], [1, 255]),
        (BLACK, [0, 1], [0, 1]),
        (FEW, [0, 1], [0, 255]),
        (FEW, [0, 15, 1], [0, 1, 255]),
    ],
)
def test_a_colour_map_for_all_numbers_says_nothing_of_the_classes(
    rule: LabelRule, held: list[int], meaning: list[int], tmp_path: Path
) -> None:
    """Protects index masks with PASCAL VOC's colour map, which many tools write: some of its colours are declared by
    chance, in another order, and whole data sets were refused for the masks that hold only those."""
    for name in ("m.png", "m.tif"):
        np.testing.assert_array_equal(read_label(indexed(tmp_path, grey(held), *VOC, name=name), rule), [meaning])


def deep_png(path: Path, values: np.ndarray, kind: int) -> Path:
    """A file of 16 bits with (H, W, bands) values, its rows stored in all five ways."""
    raw = values.astype(">u2").view(np.uint8).reshape(len(values), -1).astype(np.int64)
    step, rows = 2 * values.shape[2], b""
    for number, row in enumerate(raw):
        up = raw[number - 1] if number else row * 0
        left, corner = (np.concatenate([np.zeros(step, np.int64), line[:-step]]) for line in (row, up))
        guess = left + up - corner
        near = np.array([left, up, corner])
        paeth = near[np.abs(near - guess).argmin(axis=0), np.arange(len(row))]
        told = (row * 0, left, up, (left + up) // 2, paeth)[number % 5]
        rows += bytes([number % 5]) + ((row - told) & 255).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = png.chunk(b"IHDR", header) + png.chunk(b"IDAT", zlib.compress(rows)) + png.chunk(b"IEND", b"")
    path.write_bytes(png.START + parts)
    return path


@pytest.mark.parametrize(("kind", "bands"), [(2, 3), (4, 2), (6, 4)])
def test_an_empty_mask_in_channels_of_16_bits_is_the_first_class(kind: int, bands: int, tmp_path: Path) -> None:
    """Protects empty tiles, whose values are all 0: only lower bytes that hold something make such a mask unreadable."""
    values = np.zeros((7, 5, bands), np.uint16)
    if bands in (2, 4):
        values[..., -1] = 65535
    np.testing.assert_array_equal(read_label(deep_png(tmp_path / "m.png", values, kind), RULE), np.zeros((7, 5)))
    for row in range(7):
        one = values.copy()
        one[row, 3, 0] = 1
        fails(deep_png(tmp_path / "m.png", one, kind), RULE, "16 bits", "8-bit")


def test_an_empty_tiff_mask_in_channels_of_16_bits_is_the_first_class(tmp_path: Path) -> None:
    """Protects empty tiles that are TIFF, as the test above those that are PNG."""
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "m.tif"
    values = np.zeros((4, 5, 3), np.uint16)
    tifffile.imwrite(path, values, photometric="rgb")
    np.testing.assert_array_equal(read_label(path, RULE), np.zeros((4, 5)))
    values[2, 2, 1] = 3
    tifffile.imwrite(path, values, photometric="rgb")
    fails(path, RULE, "16 bits", "8-bit")


def test_is_black_looks_at_all_passes_of_an_interlaced_file() -> None:
    """Protects interlaced masks: their pixels lie in seven tables, of which some have no pixels."""
    for height, width in ((1, 1), (3, 2), (9, 10)):
        sizes = [
            (-(-(height - top) // down), -(-(width - left) // across))
            for top, left, down, across in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
        ]  # fmt: skip
        for marked in (None, *[place for place, size in enumerate(sizes) if min(size) > 0]):
            rows = b""
            for place, (count, columns) in enumerate(sizes):
                last = b"\0\0\0\0\0\1" if place == marked else bytes(6)
                rows += b"".join(b"\0" + bytes(6 * (columns - 1)) + last for _ in range(count) if columns > 0)
            header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 1)
            content = png.START + png.chunk(b"IHDR", header) + png.chunk(b"IDAT", zlib.compress(rows))
            content += png.chunk(b"IEND", b"")
            parts = png.read_parts(content)
            assert not isinstance(parts, str)
            assert png.holds_rows(content, parts, more=False)
            assert png.is_black(content, parts) == (marked is None), (height, width, marked)


@pytest.mark.parametrize(("kind", "bands"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("scale", [1, 257])
def test_class_numbers_in_channels_of_16_bits_are_refused(kind: int, bands: int, scale: int, tmp_path: Path) -> None:
    """Protects from masks that become class 0 everywhere: of such channels Pillow gives the upper bytes alone."""
    values = np.repeat(np.array([[1, 2, 1]], ">u2")[..., None] * scale, bands, axis=2).astype(">u2")
    if bands in (2, 4):
        values[..., -1] = 65535
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    header = struct.pack(">IIBBBBB", 3, 1, 16, kind, 0, 0, 0)
    path = tmp_path / "m.png"
    path.write_bytes(
        png.START + png.chunk(b"IHDR", header) + png.chunk(b"IDAT", rows) + png.chunk(b"IEND", b""),
    )
    if scale == 1:
        fails(path, RULE, "16 bits", "8-bit")
    else:  # scaled to the whole range, as programs save colours
        np.testing.assert_array_equal(read_label(path, RULE), [[1, 2, 1]])


def test_a_negative_value_is_not_one_to_ignore(tmp_path: Path) -> None:
    """Protects from a remedy that no recipe takes: data.ignore holds values from 0 to 65535."""
    path = saved(tmp_path, np.array([[0, 1, -1]], np.int32), name="m.tif")
    error = fails(path, RULE, "-1 (1 pixel)", "save the pixels below 0 as 255")
    assert "list the values" not in error.hint


def test_missing_and_truncated_masks(tmp_path: Path) -> None:
    fails(tmp_path / "none.png", RULE, "no such file")
    noise = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    path = saved(tmp_path, noise)
    path.write_bytes(path.read_bytes()[:200])
    fails(path, RULE, "cut short")


def test_masks_of_a_published_layout_do_not_mention_recipe_keys(tmp_path: Path) -> None:
    """VOC's values are fixed: there is no data.ignore to set."""
    rule = index_rule(CLASSES, layout="PASCAL VOC")
    for mask in (grey([0, 9]), np.array([[[1, 2, 3]]], np.uint8), grey([255])):
        error = fails(saved(tmp_path, mask), rule)
        assert "data." not in error.message + error.hint


def test_rules_that_cannot_be() -> None:
    with pytest.raises(RecipeError, match="255 classes"):
        index_rule(tuple(map(str, range(255))))
    with pytest.raises(RecipeError, match=r"data\.palette has 1 colours for 3 classes"):
        index_rule(CLASSES, palette=((0, 0, 0),))
    assert index_rule(tuple(map(str, range(254))), ignore=()).words == "0..253 are classes, nothing is ignored"


# --------------------------------------------------------------------------------------------------- real data
@pytest.mark.realdata
def test_coloured_cityscapes_masks_are_rejected() -> None:
    """Some copies of Cityscapes carry colour pictures under the name of label files."""
    root = os.environ.get("EMASEG_TEST_DATA")
    if not root:
        pytest.skip("EMASEG_TEST_DATA is not set")
    found = sorted(Path(root, "cityscapes").rglob("*_colour_rgb_as_found.png"))
    assert found
    fails(found[0], RULE, "three-channel mask")
