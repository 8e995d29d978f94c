"""`emaseg init` finds common arrangements of images and masks, and its recipe trains with nothing edited."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from emaseg.cli.app import main
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from emaseg.data.sets.build import build_dataset
from emaseg.errors import DataError, UserError
from emaseg.recipe import FolderData, load_recipe, parse_recipe
from emaseg.starter import Machine, Started, start_recipe
from emaseg.words import printable
from tests.data.made import label, real
from tests.test_check_data import report_of

SIZE = (40, 56)
CAMVID = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip


def start(folder: Path, machine: Machine | None = None) -> Started:
    events = start_recipe(folder, lambda: machine or Machine())
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def data_of(folder: Path) -> FolderData:
    data = start(folder).recipe.data
    assert isinstance(data, FolderData)
    return data


def make(root: Path, pairs: dict[str, str], values: list[int]) -> Path:
    """Images of random pixels (no two alike) and their masks; paths below root."""
    rng = np.random.default_rng(0)
    for image, mask in pairs.items():
        path = root / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path)
        label(root / mask, values, SIZE)
    return root


def plain(root: Path, values: list[int], count: int = 10) -> Path:
    return make(root, {f"images/{i}.jpg": f"masks/{i}.png" for i in range(count)}, values)


def both(left: str, right: str, first: str = "train", second: str = "val") -> dict[str, str]:
    """Two images a split; {} is the split, {i} the image."""
    return {left.format(s, i=i): right.format(s, i=i) for s in (first, second) for i in range(2)}


@pytest.mark.parametrize(
    "pairs",
    [
        both("images/{}/{i}.jpg", "masks/{}/{i}.png"),
        both("Images/{}/sub/{i}.JPG", "Labels/{}/sub/{i}.PNG"),
        both("img/{}/{i}.png", "annotations/{}/{i}_seg.png", "training", "validation"),
        both("{}/images/{i}.jpg", "{}/labels/{i}.png", "train", "test"),
        both("{}/{i}.jpg", "{}annot/{i}.png"),
        both("{}/{i}.png", "{}_labels/{i}_L.png"),
        both("{}/{i}.jpg", "{}/{i}_mask.png"),
        both("unpacked/images/{}/{i}.jpg", "unpacked/masks/{}/{i}.png"),
    ],
    ids=lambda pairs: next(iter(pairs)) + " " + next(iter(pairs.values())),
)
def test_arrangements_with_a_split(pairs: dict[str, str], tmp_path: Path) -> None:
    """Protects each common arrangement: the recipe's own reader finds every pair, and none of them twice."""
    data = data_of(make(tmp_path, pairs, [0, 1, 2]))
    parts = [build_dataset(data, "train"), build_dataset(data, "eval")]
    assert [len(part) for part in parts] == [2, 2]
    assert len({part.name(i) for part in parts for i in range(2)}) == 4
    assert data.holdout == 0


BESIDE = {f"{i}.jpg": f"{i}_mask.png" for i in range(11)}
TWINS = {f"photos/{i}.jpg": f"extra/{i}.png" for i in range(11)}


@pytest.mark.parametrize("pairs", [BESIDE, TWINS], ids=["beside", "twins"])
def test_without_a_split_every_fifth_image_is_held_out(pairs: dict[str, str], tmp_path: Path) -> None:
    """Protects the split that needs no file: the parts are disjoint and together everything."""
    started = start(make(tmp_path, pairs, [0, 1]))
    parts = [build_dataset(started.recipe.data, part) for part in ("train", "eval")]  # type: ignore[arg-type]
    names = [{part.name(i) for i in range(len(part))} for part in parts]
    assert [len(part) for part in names] == [9, 2]
    assert not names[0] & names[1]
    assert any("no split" in note for note in started.notes)


def test_list_files_are_the_split(tmp_path: Path) -> None:
    """Protects lists; one that does not name the images is passed over, and said so."""
    root = plain(tmp_path, [0, 1])
    (root / "train.txt").write_text("0\n1\n2.jpg\n")
    (root / "val.txt").write_text("3\n")
    data = data_of(root)
    assert (data.train_list, data.eval_list, data.holdout) == ("train.txt", "val.txt", 0)
    (root / "train.txt").write_text("a b\n")
    assert any("train.txt is not used" in note for note in start(root).notes)


@pytest.mark.parametrize(
    ("values", "classes", "keys"),
    [
        ([0, 1, 2], ("class_0", "class_1", "class_2"), ((), (255,))),
        ([0, 1, 255], ("background", "foreground"), ((), (255,))),
        ([0, 255], ("background", "foreground"), ((0, 255), ())),
        ([0, 128], ("background", "foreground"), ((0, 128), (255,))),
        ([1, 2, 3], ("class_1", "class_2", "class_3"), ((1, 2, 3), (255,))),
        ([0, 3, 9, 255], ("class_0", "class_3", "class_9"), ((0, 3, 9), (255,))),
    ],
)
def test_classes_from_values(
    values: list[int], classes: tuple[str, ...], keys: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    """Protects the reading of masks: binary, counted from 1, with gaps, with 255."""
    data = data_of(plain(tmp_path, values))
    assert (data.classes, (data.values, data.ignore)) == (classes, keys)
    assert set(np.unique(build_dataset(data, "train").open(0).label())) <= {*range(len(classes)), 255}


@pytest.mark.parametrize(
    ("text", "values", "classes", "keys"),
    [
        ("sky\nroad\n", [0, 1], ("sky", "road"), ((), (255,))),
        ("0: sky\n1: road\n2: void\n", [0, 1, 2], ("sky", "road"), ((), (2, 255))),
        ("0 unlabeled\n1 sky\n2 road\n", [0, 1, 2], ("sky", "road"), ((1, 2), (0, 255))),
        ("sky\nroad\n", [1, 2], ("sky", "road"), ((1, 2), (255,))),
        ("car\nbus\n", [0, 0, 0, 1, 2], ("background", "car", "bus"), ((), (255,))),
        ("car\nbus\n", [0, 1, 1, 1, 2], ("car", "bus"), ((), (2, 255))),
        ("car\ncar\nbus\n", [0, 1, 2], ("car", "car_2", "bus"), ((), (255,))),
    ],
)
def test_names_from_a_file(
    text: str, values: list[int], classes: tuple[str, ...], keys: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    """Protects names beside the data: positions, stated values, a void, a background that has no name."""
    root = plain(tmp_path, values)
    (root / "classes.txt").write_text(text)
    data = data_of(root)
    assert (data.classes, (data.values, data.ignore)) == (classes, keys)


def test_colour_masks_with_and_without_names(tmp_path: Path) -> None:
    """Protects RGB masks: the palette is theirs, or the file's, whose void is ignored."""
    root = plain(tmp_path, [0])
    rgb = np.zeros((*SIZE, 3), np.uint8)
    rgb[:10], rgb[10:16] = (200, 10, 10), (1, 2, 3)
    for i in range(10):
        Image.fromarray(rgb).save(root / f"masks/{i}.png")
    data = data_of(root)
    assert data.palette == ((0, 0, 0), (200, 10, 10), (1, 2, 3))
    (root / "class_dict.csv").write_text("name,r,g,b\nroad,200,10,10\nsky,0,0,0\nvoid,1,2,3\nrare,9,9,9\n")
    data = data_of(root)
    assert data.classes == ("road", "sky", "rare")
    assert (data.palette[0], data.ignore_colours) == ((200, 10, 10), ((1, 2, 3),))
    assert report_of(start(root).recipe).ok


def test_a_class_that_covers_nearly_everything_refuses_no_crop(tmp_path: Path) -> None:
    """Protects cracks, cells and defects: the usual limit would draw every crop ten times for nothing."""
    rare, common = start(plain(tmp_path / "rare", [0, 0, 0, 0, 1])), start(plain(tmp_path / "common", [0, 0, 1]))
    assert (rare.recipe.augment.max_class_share, common.recipe.augment.max_class_share) == (1.0, 0.75)
    assert any(note.startswith("background covers 80.0% of the pixels") for note in rare.notes)
    assert "every crop" in rare.text
    assert "every crop" not in common.text


def test_rare_classes_get_a_loss_that_sees_them(tmp_path: Path) -> None:
    """Protects who trains on cracks: the recipe adds a Dice loss where a class is under 5 % of the pixels, and says why."""
    rare, common = start(plain(tmp_path / "rare", [0] * 24 + [1])), start(plain(tmp_path / "common", [0, 0, 0, 1]))
    assert (rare.recipe.loss.dice_weight, common.recipe.loss.dice_weight) == (1.0, 0.0)
    share = "foreground covers 4.0% of the pixels"
    assert f"{share}: a Dice loss is added (loss.dice_weight)." in rare.notes
    assert f"# {share}: the cross entropy" in rare.text
    assert "dice" not in common.text


@pytest.mark.parametrize(("machine", "batch"), [(Machine(), 8), (Machine(memory_gb=80.0), 8)])
def test_sizes_are_multiples_of_8_and_fit(machine: Machine, batch: int, tmp_path: Path) -> None:
    """Protects the choices: crops inside the images, a batch that the data fill."""
    recipe = start(plain(tmp_path, [0, 1]), machine).recipe
    assert recipe.train.batch == batch  # ten images, two held out
    assert all(side % 8 == 0 and side <= limit for side, limit in zip(recipe.augment.crop, SIZE, strict=True))
    assert (recipe.backbone.kind, recipe.backbone.output_stride, recipe.backbone.weights) == ("resnet50", 16, "none")


def test_what_is_not_recognised_says_what_was_looked_for(tmp_path: Path) -> None:
    """Protects users of an odd arrangement, and of masks that are none."""
    (tmp_path / "stuff").mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="looked for: images/") as caught:
        start(tmp_path)
    assert "stuff/ (0 images)" in caught.value.message
    with pytest.raises(DataError, match="single class"):
        start(plain(tmp_path / "one", [0]))
    root = plain(tmp_path / "lone", [0, 1])
    for name in ("3.png", "4.png"):
        (root / "masks" / name).unlink()
    with pytest.raises(DataError, match=r"2 of 10 images .* have no mask"):
        start(root)


def test_the_command_prints_a_recipe_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects `emaseg init X > x.toml`: TOML alone on stdout, notes on stderr; --out never overwrites; check-data
    finds nothing to mend."""
    root = plain(tmp_path / "my data", [0, 255])
    assert main(["init", str(root), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    content = tomllib.loads(captured.out)
    assert content["name"] == "my_data"
    assert content["data"]["root"] == str(root.resolve())
    assert '"voc_r50_d16", a released network' in captured.out
    assert "two classes" in captured.err
    file = tmp_path / "x.toml"
    assert main(["init", str(root), "--out", str(file), "-q", "--name", "mine"]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert load_recipe(file).name == "mine"
    assert "emaseg train my_data.toml\n" in captured.out
    assert f"emaseg train {file}\n" in file.read_text(encoding="utf-8")
    assert main(["init", str(root), "--out", str(file)]) == 2
    assert main(["check-data", str(file), "-q"]) == 0
    assert main(["init", str(tmp_path / "nowhere")]) == 3


@pytest.mark.realdata
def test_real_folders() -> None:
    """Protects from surprises of real data: CamVid is known, labelme's names are read."""
    camvid = data_of(real("camvid"))
    assert camvid.classes == load_recipe("camvid_r50_d16").data.classes  # type: ignore[union-attr]
    assert (camvid.ignore, camvid.eval_masks) == ((11,), "valannot")
    labelme = data_of(real("labelme_voc"))
    assert (len(labelme.classes), labelme.classes[0], labelme.holdout) == (21, "_background_", 3)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("folder", "counts", "split", "classes", "ignore"),
    [
        (
            "camvid",
            (367, 101),
            ("train", "trainannot", "", "val", "valannot", ""),
            CAMVID,
            (11,),
        ),
        (
            "crackforest",
            (72, 46),
            ("images", "labels", "train.txt", "images", "labels", "val.txt"),
            ("background", "foreground"),
            (255,),
        ),
    ],
)
def test_what_is_written_for_real_data_is_read(
    folder: str,
    counts: tuple[int, int],
    split: tuple[str, ...],
    classes: tuple[str, ...],
    ignore: tuple[int, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Protects the way from a folder to training: the file says the published split and classes, the reader takes it,
    the parts share no image, a step's crops fit, and check-data finds nothing."""
    file = tmp_path / f"{folder}.toml"
    assert main(["init", str(real(folder)), "--out", str(file), "--device", "cpu", "-q"]) == 0
    recipe = load_recipe(file)
    data = recipe.data
    assert isinstance(data, FolderData)
    assert (data.classes, data.values, data.ignore, data.holdout) == (classes, (), ignore, 0)
    train, evaluation = (data.train_images, data.train_masks), (data.eval_images, data.eval_masks)
    assert (*train, data.train_list, *evaluation, data.eval_list) == split
    parts = [build_dataset(data, "train"), build_dataset(data, "eval")]
    assert tuple(map(len, parts)) == counts
    names = [{part.name(i) for i in range(len(part))} for part in parts]
    assert not names[0] & names[1]
    sample = parts[0].open(0)
    assert set(np.unique(sample.label())) <= {*range(len(classes)), 255}
    assert all(side <= whole for side, whole in zip(recipe.augment.crop, sample.image().shape[:2], strict=True))
    capsys.readouterr()
    assert main(["check-data", str(file), "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == []
    assert tuple(report["parts"][part]["read"] for part in ("train", "eval")) == counts


@pytest.mark.realdata
def test_cracks_are_told_to_be_rare() -> None:
    """Protects users of CrackForest from 98 % pixel accuracy that means nothing, and from refused crops."""
    started = start(real("crackforest"))
    assert any(note.startswith("background covers 98.4% of the pixels") for note in started.notes)
    assert started.recipe.augment.max_class_share == 1.0
    assert started.recipe.loss.dice_weight == 1.0


# ------------------------------------------------------------------------------------------------- hostile names
NAMES = st.text(
    st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from("\x1b\x7f\x85\u2028\u202e\t\r\"\\#'")),
    min_size=1,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=2, max_size=4, unique=True))
@example(["a\nb = 1", "\x1b[31mred\x85\u2028x"])
def test_any_class_names_give_a_recipe_without_control_characters(tmp_path: Path, names: list[str]) -> None:
    """Protects whoever shows, edits or trains what init wrote: comments and texts hold nothing that ends or hides them."""
    folder = tmp_path / "set"
    if not folder.exists():
        plain(folder, list(range(4)), 4)
    folder.joinpath("classes.txt").write_text("\n".join((*names, "c", "d", "e")[:6]), encoding="utf-8")
    try:
        started = start(folder)
    except UserError:
        return  # names that a list file cannot hold, such as blanks or two that are one
    lines = started.text.split("\n")
    assert [printable(line) for line in lines] == lines
    assert parse_recipe(started.text, "again").recipe == started.recipe


@pytest.mark.skipif(os.name == "nt", reason="POSIX file names")
@pytest.mark.parametrize("name", ["x\x1b[31m\nname = 'forged'", "-dash", "~", 'it\'s "quoted"', "a\u2028b\u202e", "#"])
def test_any_folder_name_gives_a_recipe_that_reads_its_images(tmp_path: Path, name: str) -> None:
    """Protects from a folder's name that ends the comment it stands in, and from a path that is written wrongly."""
    started = start(plain(tmp_path / name / "in" / name, [0, 1], 4))
    lines = started.text.split("\n")
    assert [printable(line) for line in lines] == lines
    assert started.recipe.name != "forged"
    assert len(build_dataset(started.recipe.data, "train")) + len(build_dataset(started.recipe.data, "eval")) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_folder_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    """Protects from a recipe that no TOML reader accepts."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/x\xff"))
    with pytest.raises(UserError, match=r"not UTF-8"):
        start(plain(folder, [0, 1], 4))
