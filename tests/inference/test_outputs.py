"""What predict writes beside masks and overlays, from what kinds of pictures, and which of them: with a real, tiny EMANet."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import emaseg
from emaseg.data.files.label_files import read_label
from emaseg.data.files.signed import is_signed
from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.own_values import own_values
from emaseg.errors import DataError, RecipeError
from emaseg.evaluation.evaluate import evaluate
from emaseg.events import Evaluated
from emaseg.inference.image_inputs import find_images, shard
from emaseg.inference.outputs import ENDINGS, Output
from emaseg.inference.predict import Predictor
from emaseg.inference.predict_files import predict_files
from emaseg.recipe import Recipe, load_recipe, parse_recipe
from emaseg.recipe.data import FolderData
from tests.helpers import TINY, tiny

UInt8 = npt.NDArray[np.uint8]
FOLDER = """
kind = "folder"
root = "{root}"
classes = ["background", "crack"]
values = [0, 255]
ignore = [128]
palette = [[10, 20, 30], [200, 0, 90]]
ignore_colours = [[255, 255, 255]]
train_images = "images"
train_masks = "masks"
eval_images = "images"
eval_masks = "masks"
"""


def made(recipe: Recipe, seed: int = 0) -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Predictor(emaseg.build_model(recipe), recipe)


def undecided(recipe: Recipe) -> Predictor:
    """A network of two classes, of which each takes about half of the pixels."""
    predictor = made(recipe)
    classifier = predictor.model.classifier
    assert isinstance(classifier, torch.nn.Conv2d)
    noise = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 4 - 2
    with torch.no_grad():
        logits = predictor.model(noise)[0]
        classifier.bias[0] -= (logits[0] - logits[1]).median()  # type: ignore[index]
    return predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return made(tiny())


@pytest.fixture(scope="module")
def cracks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """Five images with masks of 0, 255 and some ignored 128, as an annotation tool writes them."""
    root = tmp_path_factory.mktemp("cracks")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for index in range(5):
        rng = np.random.default_rng(index)
        Image.fromarray(rng.integers(0, 256, (40, 48 + index, 3), dtype=np.uint8)).save(root / f"images/{index}.png")
        mask = np.kron(rng.choice([0, 0, 255, 128], (5, 8)), np.ones((8, 8), int))[:, : 48 + index]
        mask = np.pad(mask, ((0, 0), (0, max(0, 48 + index - mask.shape[1]))), mode="edge")[:, : 48 + index]
        Image.fromarray(mask.astype(np.uint8)).save(root / f"masks/{index}.png")
    head, rest = TINY.split("[data]")
    section = FOLDER.format(root=root)
    text = f"{head}[data]{section}\n[augment]{rest.split('[augment]')[1]}"
    return root, parse_recipe(text, "cracks.toml").recipe


def written(predictor: Predictor, images: Path, out: Path, save: Sequence[Output]) -> dict[str, dict[str, Path]]:
    """Every file of every image, by the image's stem."""
    found = {}
    for done in predict_files(predictor, find_images([str(images)], out), out, save):
        assert done.error is None
        found[Path(done.image).stem] = {str(output): path for output, path in done.files.items()}
    return found


def pixels(path: Path) -> npt.NDArray[np.generic]:
    with Image.open(path) as picture:
        return np.array(picture)


# ------------------------------------------------------------------------------------------- files for programs
def test_scores_recomputed_from_written_masks_are_those_of_eval(cracks: tuple[Path, Recipe], tmp_path: Path) -> None:
    """A script that knows nothing of this program gets eval's mIoU from the files: the masks, and the user's own values."""
    root, recipe = cracks
    predictor = undecided(recipe)
    *_, last = evaluate(
        predictor.model, build_dataset(recipe.data, "eval"), recipe.inference, recipe.backbone.pixel_stats, "cpu"
    )
    assert isinstance(last, Evaluated)
    files = written(predictor, root / "images", tmp_path, ("mask", "values"))
    for name, legend in (("mask", (0, 1)), ("values", (0, 255))):
        common, union = [0, 0], [0, 0]
        for stem, paths in files.items():
            truth, own = pixels(root / "masks" / f"{stem}.png"), pixels(paths[name])
            for k, (value, stored) in enumerate(zip((0, 255), legend, strict=True)):
                true, found = truth == value, (own == stored) & (truth != 128)
                common[k] += int((true & found).sum())
                union[k] += int((true | found).sum())
        miou = sum(c / u for c, u in zip(common, union, strict=True)) / 2
        assert last.scores.miou == pytest.approx(miou, abs=1e-12)
        assert all(0 < c < u for c, u in zip(common, union, strict=True))


def test_values_and_colours_are_read_back_as_the_users_own_masks(cracks: tuple[Path, Recipe], tmp_path: Path) -> None:
    """0/255 masks give 0/255, RGB masks their declared colours; the reader of masks takes both for the labels."""
    root, recipe = cracks
    predictor = undecided(recipe)
    rule = build_dataset(recipe.data, "eval").rule  # type: ignore[attr-defined]
    for stem, paths in written(predictor, root / "images", tmp_path, ("mask", "values", "color")).items():
        labels = pixels(paths["mask"])
        values = pixels(paths["values"])
        assert set(np.unique(values).tolist()) <= {0, 255}
        assert np.array_equal(values, np.where(labels == 1, 255, 0)), stem
        assert np.array_equal(read_label(paths["values"], rule), labels)
        assert np.array_equal(read_label(paths["color"], rule), labels)


def test_ignored_pixels_get_the_declared_value_and_colour(cracks: tuple[Path, Recipe], tmp_path: Path) -> None:
    root, recipe = cracks
    predictor = undecided(recipe)
    found = predict_files(
        predictor, find_images([str(root / "images/0.png")]), tmp_path, ("values", "color"), classes=["crack"]
    )
    (done,) = found
    values, colours = pixels(done.files["values"]), pixels(done.files["color"])
    assert set(np.unique(values).tolist()) == {128, 255}
    assert (colours[values == 128] == (255, 255, 255)).all()
    assert (colours[values == 255] == (200, 0, 90)).all()


@pytest.mark.parametrize(
    ("name", "first", "last", "ignore"),
    [
        ("cityscapes_r50_d8", 7, 33, 0),
        ("ade20k_r50_d8", 1, 150, 0),
        ("voc_r50_d8", 0, 20, 255),
        ("paper_coco_stuff_r101", 1, 182, 0),
        ("demo", 0, 4, 255),
    ],
)
def test_published_sets_get_their_owners_values(name: str, first: int, last: int, ignore: int) -> None:
    own = own_values(load_recipe(name).data)
    assert (own.classes[0], own.classes[-1], own.ignore, own.wide) == (first, last, ignore, False)


def test_values_beyond_255_are_16_bits() -> None:
    data = FolderData(
        kind="folder", root="x", classes=("a", "b"), train_images="i", train_masks="m", eval_images="i", eval_masks="m",
        values=(0, 1000), ignore=(),
    )  # fmt: skip
    assert (own_values(data).ignore, own_values(data).wide) == (255, True)


def test_every_output_is_what_it_says_and_may_be_replaced(predictor: Predictor, tmp_path: Path) -> None:
    """Probabilities sum to 1 and lead to the mask, confidence is their maximum; a second run replaces all, an edited
    file stays."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    outputs: tuple[Output, ...] = tuple(output for output in get_args(Output) if output != "bases")
    for _ in range(2):
        files = written(predictor, tmp_path / "a.png", tmp_path / "out", outputs)["a"]
    assert list(files) == [output for output in ENDINGS if output != "bases"] == list(outputs)
    assert all(is_signed(path) for path in files.values())
    with np.load(files["probabilities"]) as archive:
        probabilities, names = archive["probabilities"], archive["classes"]
    assert (probabilities.dtype, probabilities.shape, tuple(names)) == (np.float16, (5, 33, 40), predictor.classes)
    assert np.allclose(probabilities.astype(np.float32).sum(0), 1, atol=3e-3)
    labels = pixels(files["mask"])
    chosen = np.take_along_axis(probabilities, labels[None].astype(int), 0)[0].astype(np.float32)
    assert np.allclose(chosen, probabilities.max(0), atol=1e-3)
    confidence = pixels(files["confidence"])
    assert confidence.dtype == np.uint8
    assert np.allclose(confidence / 255, chosen, atol=0.5 / 255 + 1e-3)
    report = json.loads(files["json"].read_text())
    assert report["files"]["confidence"] == str(files["confidence"])
    for output in ("probabilities", "json"):
        content = bytearray(files[output].read_bytes())
        content[len(content) // 2] ^= 1
        files[output].write_bytes(content)
        (done,) = predict_files(predictor, find_images([str(tmp_path / "a.png")]), tmp_path / "out", (output,))
        assert "not as predict wrote it" in str(done.error)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("average", ["logits", "probs_after_resize"])
def test_the_most_likely_classes_are_those_of_all_probabilities(average: str, tiled: bool) -> None:
    """Sorted, the label first, and each probability is the one that the whole table has; also in tiles."""
    recipe = tiny(f'inference.average="{average}"')
    predictor = made(recipe)
    predictor.max_memory = 1 if tiled else None
    image = np.random.default_rng(5).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    every, few = predictor.predict(image, probabilities=True), predictor.predict(image, probabilities=True, top_k=3)
    assert (every.tiles is not None, every.indices) == (tiled, None)
    assert every.probabilities is not None
    assert few.probabilities is not None
    assert few.indices is not None
    assert (few.probabilities.shape, few.indices.shape, few.indices.dtype) == ((3, 150, 170), (3, 150, 170), np.uint8)
    assert np.array_equal(few.probabilities, np.take_along_axis(every.probabilities, few.indices.astype(int), 0))
    assert np.array_equal(few.probabilities, -np.sort(-every.probabilities, axis=0)[:3])
    assert np.array_equal(few.indices[0], every.labels)
    assert all((few.indices[a] != few.indices[b]).all() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_label_comes_first_among_equals() -> None:
    """A network that cannot decide: whatever class is written as the mask's is the first of the archive, too."""

    class Undecided(torch.nn.Module):
        align_corners = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1, 5, 4, 4)

    result = Predictor(Undecided(), tiny()).predict(np.zeros((8, 8, 3), np.uint8), probabilities=True, top_k=5)
    assert result.indices is not None
    assert np.array_equal(result.indices[0], result.labels)
    assert (np.sort(result.indices, axis=0) == np.arange(5)[:, None, None]).all()


def test_the_most_likely_classes_as_a_file(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    inputs = find_images([str(tmp_path / "a.png")])
    (done,) = predict_files(predictor, inputs, tmp_path / "out", ("mask", "probabilities"), top_k=2)
    with np.load(done.files["probabilities"]) as archive:
        assert {name: archive[name].shape for name in archive} == {
            "probabilities": (2, 20, 24), "indices": (2, 20, 24), "classes": (5,)
        }  # fmt: skip
        assert np.array_equal(archive["indices"][0], pixels(done.files["mask"]))
    with pytest.raises(RecipeError, match="has 5 classes, not 6"):
        predictor.predict(np.zeros((8, 8, 3), np.uint8), probabilities=True, top_k=6)


def test_min_confidence_leaves_the_rest_as_ignore(predictor: Predictor) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    plain = predictor.predict(image, confidence=True)
    assert plain.confidence is not None
    least = float(np.median(plain.confidence))
    limited = predictor.predict(image, min_confidence=least)
    assert np.array_equal(limited.labels, np.where(plain.confidence < least, 255, plain.labels))
    assert sum(share for _, share in limited.shares) == pytest.approx((limited.labels != 255).mean())
    nothing = predictor.predict(image, min_confidence=1.0)
    assert (nothing.shares, set(np.unique(nothing.labels).tolist())) == ((), {255})


def test_wrong_limits_are_refused_before_any_work(predictor: Predictor) -> None:
    with pytest.raises(RecipeError, match="no class called rong"):
        predictor.predict(np.zeros((8, 8, 3), np.uint8), classes=["rong"])
    with pytest.raises(RecipeError, match="is not a probability"):
        predictor.predict(np.zeros((8, 8, 3), np.uint8), min_confidence=1.5)


# ----------------------------------------------------------------------------------------------- pictures in Python
def test_pictures_of_every_kind_mean_the_same(predictor: Predictor, tmp_path: Path) -> None:
    """Floats, tensors with channels first or last, a batch of one, Pillow, a path: the same pixels, the same labels."""
    rgb = np.random.default_rng(2).integers(0, 256, (30, 36, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    expected = predictor.predict(rgb).labels
    first = torch.from_numpy(rgb).permute(2, 0, 1)
    pictures = [
        (rgb / 255).astype(np.float32), rgb / 255, torch.from_numpy(rgb), first, first[None], first.float() / 255,
        Image.fromarray(rgb), tmp_path / "a.png", np.dstack([rgb, np.full((30, 36), 255, np.uint8)]),
    ]  # fmt: skip
    for result in predictor.predict(pictures):
        assert np.array_equal(result.labels, expected)
    grey = rgb[..., 0]
    together = np.repeat(grey[..., None], 3, axis=2)
    for picture in (grey, grey[..., None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        assert np.array_equal(predictor.predict(picture).labels, predictor.predict(together).labels)


def test_transparent_pixels_are_white_as_in_a_file(predictor: Predictor) -> None:
    rgba = np.random.default_rng(3).integers(0, 256, (24, 24, 4), dtype=np.uint8)
    rgba[..., 3] = np.where(rgba[..., 3] > 128, 255, 0)
    white = np.where(rgba[..., 3:] == 0, 255, rgba[..., :3]).astype(np.uint8)
    assert np.array_equal(predictor.predict(rgba).labels, predictor.predict(white).labels)


def test_a_notebook_shows_the_overlay(predictor: Predictor) -> None:
    """The last expression of a cell: a PNG of the picture's width, higher by the legend."""
    prediction = predictor.predict(np.zeros((40, 60, 3), np.uint8))
    shown = prediction._repr_png_()
    assert shown is not None
    with Image.open(io.BytesIO(shown)) as picture:
        assert picture.size == prediction.overlay().size
        assert (picture.width, picture.height > 40) == (60, True)


def test_a_printed_prediction_is_a_line(predictor: Predictor) -> None:
    """Protects `print(result)` from arrays: size, the largest classes, and what else it holds."""
    prediction = predictor.predict(np.zeros((40, 60, 3), np.uint8), confidence=True)
    share = f"{prediction.shares[0][0]} {100 * prediction.shares[0][1]:.1f} %"
    assert repr(prediction).startswith(f"Prediction(60 x 40, {share}")
    assert repr(prediction).endswith(", confidence)")
    many = dataclasses.replace(prediction, shares=tuple((f"k{k}", 0.1) for k in range(7)), tiles="4 tiles")
    assert repr(many).endswith("k5 10.0 %, 1 more class, confidence, tiles)")


# ---------------------------------------------------------------------------------------------------- which images
def test_a_list_names_images_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a line; relative names keep their folders, so that equal names in two folders stay apart."""
    monkeypatch.chdir(tmp_path)
    for name in ("x/a.png", "y/a.png", "deep/er/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("x/a.png\n\ny/a.png\r\ndeep\nmissing.png\n", encoding="utf-8-sig")
    inputs = find_images(["@list.txt"])
    assert [i.stem for i in inputs] == ["x/a", "y/a", "er/b", ""]
    assert inputs[-1].problem is not None
    for wrong, reason in (("@none.txt", "cannot be read"), ("@empty.txt", "is empty"), ("@x/a.png", "not a text file")):
        (tmp_path / "empty.txt").write_text("\n \n")
        with pytest.raises(DataError, match=reason):
            find_images([wrong])


def test_shards_part_all_inputs(tmp_path: Path) -> None:
    """Together all, each once, under the names that they have anyway."""
    for index in range(7):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{index}.png")
    inputs = find_images([str(tmp_path)])
    parts = [shard(inputs, f"{number}/3") for number in (1, 2, 3)]
    assert sorted((one for part in parts for one in part), key=lambda one: one.stem) == inputs
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for wrong in ("0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/3"):
        with pytest.raises(RecipeError, match="write I/N"):
            shard(inputs, wrong)


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("https://example.org/a/cat.jpg?x=1", "curl -L -o cat.jpg"),
        ("clip.MP4", "mkdir clip && ffmpeg -i clip.MP4 clip/%06d.png, then emaseg predict clip"),
    ],
)
def test_videos_and_addresses_get_the_line_that_helps(argument: str, remedy: str) -> None:
    with pytest.raises(DataError) as caught:
        find_images([argument])
    assert remedy in caught.value.hint
