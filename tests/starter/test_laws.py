"""Laws of `init` over made folders, and over the collected situations of people."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from emaseg.data.sets.build import build_dataset
from emaseg.errors import DataError
from tests.data.made import real
from tests.starter.made import blob, data_of, dry_run, grey, indexed, made, refused, start
from tests.test_check_data import report_of

# ----------------------------------------------------------------------------------------------------------------- laws
ENDINGS = st.sampled_from(["", "_mask", "-seg", "_L"])
FOLDERS = st.sampled_from(
    [("images/{}", "masks/{}"), ("JPEGImages/{}", "SegmentationClass/{}"), ("train/{}", "trainannot/{}"), ("{}", "{}")]
)
VALUES = st.sampled_from([(0, 1), (0, 1, 2), (1, 2, 3), (0, 255), (0, 1, 255), (0, 3, 9), (0, 128, 255), (2, 0, 1)])
MODES = st.sampled_from(["L", "P", "RGB", "colour", "I;16"])


def drawn(values: tuple[int, ...], mode: str) -> Image.Image:
    array = blob(*values)
    if mode == "P":
        return indexed(array, [channel for index in range(256) for channel in (index, 255 - index, index * 7 % 256)])
    if mode == "colour":
        return Image.fromarray(np.stack([array, array // 2, 255 - array], axis=2))
    if mode == "RGB":
        return Image.fromarray(np.repeat(array[..., None], 3, axis=2))
    return Image.fromarray(array.astype(np.uint16) if mode == "I;16" else array)


@settings(max_examples=30, deadline=None)
@given(ending=ENDINGS, folders=FOLDERS, values=VALUES, mode=MODES, named=st.booleans(), seed=st.integers(0, 9))
def test_what_init_writes_training_accepts(
    ending: str,
    folders: tuple[str, str],
    values: tuple[int, ...],
    mode: str,
    named: bool,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Law: init's recipe is read, its data pass the check, a crop can be cut; every mask is used, and the names stated
    for the values stay with them."""
    root = tmp_path_factory.mktemp("made")
    image, mask = folders[0].format(f"p{seed}_{{}}.jpg"), folders[1].format(f"p{seed}_{{}}{ending or '_mask'}.png")
    if folders[0] != folders[1]:
        mask = mask if ending else mask.replace("_mask", "")
    made(root, lambda _: drawn(values, mode), image=image, mask=mask, count=5)
    if named:
        (root / "classes.txt").write_text("\n".join(f"{value}: n{value}" for value in values))
    started = start(root)
    recipe = dry_run(started.text)
    parts = [build_dataset(recipe.data, part) for part in ("train", "eval")]  # type: ignore[arg-type]
    assert sum(map(len, parts)) == 5
    if mode == "colour":
        return
    data = data_of(started)
    kept = data.values or tuple(range(len(data.classes)))
    if named:
        assert dict(zip(kept, data.classes, strict=True)) == {value: f"n{value}" for value in sorted(values)}
    label = parts[0].open(0).label()
    expected = blob(*values)
    for train_id, value in enumerate(kept):
        np.testing.assert_array_equal(label == train_id, expected == value)


@settings(max_examples=20, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["_car", "_road", "_sky", "-x", ""]), min_size=1, max_size=3, unique=True),
    data=st.data(),
)
def test_no_mask_is_dropped_without_a_line(
    kinds: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: each mask file is read by the recipe, named by a note, or the reason of a refusal."""
    root = tmp_path_factory.mktemp("made")
    counts = [data.draw(st.integers(1, 12)) for _ in kinds]
    made(root, grey(0, 1), mask="other/{}.png", count=12)
    for kind, count in zip(kinds, counts, strict=True):
        made(root / "new", grey(0, 1), mask=f"masks/img_{{}}{kind}.png", count=count)
    made(root / "new", grey(0, 1), mask=f"masks/img_{{}}{kinds[0]}.png", count=12)
    try:
        started = start(root / "new")
    except DataError as error:
        reason = error.message
        started = None
    if started is None:
        event("refused")
        assert "masks" in reason
        return
    recipe = started.recipe
    used = sum(len(build_dataset(recipe.data, part)) for part in ("train", "eval"))  # type: ignore[arg-type]
    files = sum(len(names) for _, _, names in os.walk(root / "new" / "masks"))
    assert used == files or any("masks do not end in" in note for note in started.notes)


# ------------------------------------------------------------------------------------------------------------ real data
CASES: dict[str, tuple[str, ...]] = {
    "coco": ("COCO's form",),
    "floatmask": (),
    "heic": ("5 .heic", "img_000.HEIC"),
    "jpegmask": ("JPEG files",),
    "labelme": (),
    "labelme_json": ("labelme's form",),
    "labelstudio": ("Label Studio",),
    "m16full": (),
    "palettes_differ": ("the palettes of the masks differ",),
    "perclass": ("each image has 2 masks", "car, road"),
    "perclass_suffix": ("each image has 2 masks", "_car, _road"),
    "prefix": (),
    "rgba": (),
    "rgbequal": (),
    "roboflow": (),
    "sat16": (),
    "sat4": (),
    "smooth": ("smooth edges", "2.5% of the pixels"),
    "tiff_bands": ("no images with masks",),
}


@pytest.mark.realdata
@pytest.mark.parametrize("case", CASES)
def test_situations_of_people(case: str) -> None:
    """Law over the collected situations: init says the true reason, or writes what training accepts."""
    root = real("field_cases") / case
    if CASES[case]:
        refused(root, *CASES[case])
        return
    started = start(root)
    recipe = dry_run(started.text)
    assert report_of(recipe).ok
    expected = {"labelme": ("_background_", "cat", "dog"), "roboflow": ("background", "crack", "spall")}
    if case in expected:
        assert data_of(started).classes == expected[case]
        assert data_of(started).values == ()
