"""Evaluation: scores at the images' own size, errors that surface, and the metrics.json contract."""

from __future__ import annotations

import dataclasses
import importlib
import json
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emaseg.data.dataset import MemorySample, Sample
from emaseg.data.sets.published_counts import published_images
from emaseg.errors import DataError, ImageTooLarge
from emaseg.evaluation.evaluate import (
    Comparison,
    compare_with_published,
    evaluate,
    evaluation_json,
    on_images,
    other_split,
    protocol,
)
from emaseg.events import Evaluated, Evaluating
from emaseg.metrics import Confusion, Scores
from emaseg.metrics.tally import Tally
from emaseg.recipe import FolderData, Inference, PixelStats, Recipe, load_recipe
from emaseg.resources import shipped_recipes
from tests.helpers import tiny

STATS = PixelStats((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Reader(nn.Module):
    """Reads the class off the red channel: 100 * class. Exact wherever an image is not resized."""

    align_corners = False

    def forward(self, x: Tensor) -> Tensor:
        distances = (x[:, :1] - torch.tensor([0.0, 100.0, 200.0]).reshape(1, 3, 1, 1)).abs()
        return -distances


@dataclasses.dataclass(frozen=True, slots=True)
class Painted:
    """Images of different sizes whose red channel gives the class away; `broken` cannot be read."""

    count: int = 3
    broken: int = -1
    read_in: list[str] = dataclasses.field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        return ("a", "b", "c")

    @property
    def palette(self) -> np.ndarray:
        return np.zeros((3, 3), np.uint8)

    @property
    def withheld_by(self) -> str:
        return ""

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"image {index}"

    def open(self, index: int) -> Sample:
        self.read_in.append(threading.current_thread().name)
        if index == self.broken:
            raise DataError("image 1: damaged", "replace it")
        label = np.random.default_rng(index).integers(0, 3, (20 + index, 31), dtype=np.uint8)
        image = np.repeat((label * 100)[..., None], 3, axis=2)
        label[0, :5] = 255
        return MemorySample(self.name(index), image, label)


def run(dataset: Painted, model: nn.Module | None = None) -> list[Evaluating | Evaluated]:
    return list(evaluate(model or Reader(), dataset, Inference(), STATS, "cpu"))


def test_a_perfect_model_scores_one() -> None:
    """Image, label and prediction stay aligned at the original size; every image counts once."""
    *steps, last = run(Painted())
    assert [(e.done, e.total) for e in steps if isinstance(e, Evaluating)] == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(last, Evaluated)
    assert (last.scores.miou, last.scores.pixel_accuracy, last.scores.images) == (1.0, 1.0, 3)
    assert (last.step, last.best) == (None, False)


def test_scores_equal_one_confusion_matrix() -> None:
    """A wrong model: the same numbers as counting all images into one matrix."""

    class Shifted(Reader):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.roll(1, -1))

    last = run(Painted(), Shifted())[-1]
    confusion = Confusion.empty(3)
    for index in range(3):
        sample = Painted().open(index)
        truth = Painted().open(index).image()[..., 0] // 100
        confusion.add(sample.label(), np.roll(truth, 1, axis=1))
    assert isinstance(last, Evaluated)
    assert last.scores == confusion.scores(("a", "b", "c"), 3)
    assert 0 < (last.scores.miou or 0) < 0.5


def test_the_model_is_put_into_eval_mode() -> None:
    """Batch norm and dropout must not act as in training."""
    model = Reader().train()
    run(Painted(), model)
    assert not model.training


def test_images_are_read_ahead_and_their_errors_surface() -> None:
    """Decoding runs beside the network, and a damaged image fails as itself, not as a thread."""
    dataset = Painted(broken=1)
    with pytest.raises(DataError, match="image 1: damaged"):
        run(dataset)
    assert all(name.startswith("read-ahead") for name in dataset.read_in)


def test_an_image_that_does_not_fit_is_named() -> None:
    """Protects people from advice for training steps: the image is named, and what takes less memory for it."""

    class Large(Reader):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] == 21:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().forward(x)

    with pytest.raises(ImageTooLarge, match="image 1: out of memory when an image of 31 x 21 pixels") as caught:
        run(Painted(), Large())
    assert "inference.mode=slide" in caught.value.hint

    class Broken(Reader):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(Painted(), Broken())


def test_an_abandoned_evaluation_leaves_no_thread() -> None:
    """Training stops an evaluation when it is interrupted."""
    events = evaluate(Reader(), Painted(), Inference(), STATS, "cpu")
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


@pytest.mark.parametrize(("asked", "ends"), [(1, False), (2, True)])
def test_a_stop_during_the_last_image_keeps_the_scores(asked: int, ends: bool) -> None:
    """Protects an evaluation that is done from being thrown away by a Ctrl-C in its last image."""
    stop = threading.Event()
    events = []
    for event in evaluate(Reader(), Painted(count=3), Inference(), STATS, "cpu", stop=stop):
        events.append(event)
        if isinstance(event, Evaluating) and event.done == asked:
            stop.set()
    assert isinstance(events[-1], Evaluated) == ends


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_in_a_last_turn_without_an_image_for_all_keeps_the_scores(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the above where two ranks share three images: the one without a third asks the other as often, and neither
    throws the scores away."""
    asked: list[list[int]] = []

    def largest(values: list[int]) -> list[int]:
        asked.append(values)
        return values

    module = importlib.import_module("emaseg.evaluation.evaluate")
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "rank_number", lambda: rank)
    monkeypatch.setattr(module, "largest_over_ranks", largest)
    monkeypatch.setattr(
        module, "from_all_ranks", lambda tally: [tally if i == rank else Tally.empty(3) for i in (0, 1)]
    )
    stop = threading.Event()
    events = []
    for event in evaluate(Reader(), Painted(count=3), Inference(), STATS, "cpu", shared=True, stop=stop):
        events.append(event)
        if isinstance(event, Evaluating) and event.done == 2:
            stop.set()
    assert isinstance(events[-1], Evaluated)
    assert [event.done for event in events if isinstance(event, Evaluating)] == [2, 3]
    assert asked == [[0]]


def test_an_empty_split_is_an_error() -> None:
    """0 images must not look like a score."""
    with pytest.raises(DataError, match="holds no images"):
        run(Painted(count=0))


def test_metrics_json_contract() -> None:
    """The documented keys, fractions, null where undefined; it survives strict JSON."""
    confusion = Confusion.empty(2)
    confusion.add(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8))
    scores: Scores = confusion.scores(("road", "car"), 1)
    content = evaluation_json(scores, 0.7529, Inference(), "ab" * 32)
    assert json.loads(json.dumps(content, allow_nan=False)) == {
        "schema": 1,
        "miou": 1.0,
        "pixel_accuracy": 1.0,
        "mean_accuracy": 1.0,
        "images": 1,
        "per_class": [
            {"name": "road", "iou": 1.0, "accuracy": 1.0, "status": "ok"},
            {"name": "car", "iou": None, "accuracy": None, "status": "absent"},
        ],
        "published": 0.7529,
        "protocol": "own size; whole; scales 1; logits",
        "weights_sha256": "ab" * 32,
    }


LIP = "memorynet_lip_r50_d8"  # 53.73, mirrored 54.08
ADE20K = "memorynet_ade20k_r50_d8"  # 44.39, several scales and mirrored 45.95
SCALES = "inference.scales=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]"


@pytest.mark.parametrize(
    ("name", "sets", "miou"),
    [
        (LIP, (), 0.5373),
        (LIP, ("inference.flip=true", "inference.flip_pairs=[[14, 15], [16, 17], [18, 19]]"), 0.5408),
        (ADE20K, (SCALES, "inference.flip=true", 'inference.average="probs_before_resize"'), 0.4595),
        (LIP, ("inference.flip_pairs=[[1, 2]]",), 0.5373),  # nothing is mirrored
        (ADE20K, ('inference.scale_source="image"',), 0.4439),  # nothing is scaled
        (ADE20K, ('data.root="/elsewhere"', 'data.train_split="trainval"', "train.batch=2"), 0.4439),
        (ADE20K, ("published.miou=40",), 0.4),
    ],
)
def test_the_published_score_of_the_same_protocol(name: str, sets: tuple[str, ...], miou: float) -> None:
    """Protects comparisons that hold: whoever asks for a row's protocol, and wherever its data lie, has its number."""
    assert compare_with_published(load_recipe(name, sets), load_recipe(name)) == Comparison(miou)


@pytest.mark.parametrize(
    ("name", "sets", "reason"),
    [
        (LIP, ("inference.flip=true",), "inference.flip_pairs"),  # mirrored, but left stays left
        (ADE20K, ("inference.flip=true",), "inference.flip"),
        (ADE20K, (SCALES,), "inference.scales"),
        (ADE20K, (SCALES, "inference.flip=true"), "inference.average"),
        (ADE20K, ("inference.resize_long_short=[]",), "inference.resize_long_short"),
        (ADE20K, ('data.eval_split="train"',), "data.eval_split"),
        (
            "paper_pascal_context_r50",
            ("data.num_classes=59", 'inference.pad="none"'),
            "inference.pad, data.num_classes",
        ),
        (ADE20K, ('data={kind="voc", root="VOC2012"}',), "data.kind"),
        ("voc_r50_d8", ("backbone.output_stride=16",), "backbone.output_stride"),
        ("voc_r50_d8", ("model.em_iterations_eval=1",), "model.em_iterations_eval"),
    ],
)
def test_no_published_score_for_another_protocol(name: str, sets: tuple[str, ...], reason: str) -> None:
    """Protects from two numbers side by side that mean different things; the reason names what is different."""
    expected = Comparison(None, f"not comparable; changed: {reason}")
    assert compare_with_published(load_recipe(name, sets), load_recipe(name)) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("memorynet_cityscapes_r50_d8", "with --tta only"),
        ("paper_pascal_context_r50", "with a protocol that the table does not state"),
        ("demo", ""),
    ],
)
def test_a_row_without_a_number_for_its_own_protocol(name: str, reason: str) -> None:
    assert compare_with_published(load_recipe(name), load_recipe(name)) == Comparison(None, reason)


def test_a_run_is_compared_with_the_row_and_not_with_itself() -> None:
    """Protects from a protocol that was changed at training, whose recipe then travels with the weights."""

    def compared(*sets: str) -> Comparison:
        trained = load_recipe("voc_r50_d8", sets)
        return compare_with_published(trained, trained)

    assert compared("train.batch=4", 'model.norm="batch"', "optim.lr=0.001") == Comparison(0.7529)
    changed = Comparison(None, "not comparable; changed: inference.resize_long_short")
    assert compared("inference.resize_long_short=[1024, 512]") == changed
    assert compared("model.em_iterations=4").reason.endswith("model.em_iterations_eval")
    own = dataclasses.replace(load_recipe("voc_r50_d8", ["inference.flip=true"]), name="mine")
    assert compare_with_published(own, own).reason == "not with this protocol"  # the only word on its row's protocol


def test_stretched_images_have_no_published_score() -> None:
    """Protects from a score of a file for one size beside the published one, whose images keep their shape."""
    row = load_recipe("voc_r50_d8")
    expected = Comparison(None, "not comparable; every image is stretched to 96x48")
    assert compare_with_published(row, row, stretched=(48, 96)) == expected
    assert compare_with_published(load_recipe("demo"), load_recipe("demo"), stretched=(48, 96)) == Comparison(None)


def test_the_training_images_have_no_published_score() -> None:
    def with_row(*sets: str) -> Recipe:
        return tiny('published={table="t", miou=50.0}', *sets)

    assert compare_with_published(with_row(), with_row()) == Comparison(0.5)
    assert compare_with_published(with_row("data.train_images=7"), with_row()) == Comparison(0.5)
    assert (
        compare_with_published(with_row(), with_row(), "train").reason
        == "not comparable; changed: data (the training images)"
    )
    assert (
        compare_with_published(with_row("data.eval_images=2"), with_row()).reason
        == "not comparable; changed: data.eval_images"
    )


def test_a_score_over_other_images_stands_alone() -> None:
    """Four images of VOC's val, listed in a val.txt of one's own, are not the table's 1,449."""
    data = load_recipe("voc_r50_d8").data
    published = Comparison(0.7529)
    assert on_images(published, data, "eval", 1449) is published
    assert on_images(published, data, "eval", 4).reason == "not comparable: 4 images, where the table's are 1,449"
    changed = Comparison(None, "not comparable; changed: model.em_iterations_eval")
    assert on_images(changed, data, "eval", 4) is changed
    assert on_images(published, dataclasses.replace(data, eval_split="mine"), "eval", 4) is published
    assert on_images(published, tiny().data, "eval", 4) is published
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert recipe.published is None or published_images(recipe.data, "eval")


def test_protocol_names_every_choice() -> None:
    """Two results can be told apart by how they were made."""
    everything = Inference(
        resize_long_short=(2048, 512),
        mode="slide",
        window=(512, 512),
        stride=(341, 341),
        scales=(0.5, 1.75),
        flip=True,
        scale_source="image",
        average="probs_after_resize",
        logits_path="via_input",
    )
    assert protocol(everything) == (
        "resize 2048x512; windows 512x512 every 341x341; scales 0.5 1.75 of the image; flip; probs after resize; "
        "over the input size"
    )
    assert protocol(Inference(pad="8k+1")) == "own size; pad 8k+1; whole; scales 1; logits"
    shrunk = Inference(resize_long_short=(2048, 512))
    assert protocol(shrunk, (48, 96)) == "stretched to 96x48; whole; scales 1; logits"


def test_what_is_another_split() -> None:
    """Protects a run's own page: another place, other training images or other colours are the same scores."""
    folders: dict[str, Any] = dict.fromkeys(("train_images", "train_masks", "eval_images", "eval_masks"), "some")
    data = FolderData(kind="folder", root=".", classes=("a", "b"), **folders)
    for same in ({"root": "/elsewhere"}, {"train_images": "others"}, {"palette": ((0, 0, 0), (9, 9, 9))}):
        assert other_split(dataclasses.replace(data, **same), data, "eval") == ""
    assert other_split(data, data, "train") == "train"
    assert other_split(dataclasses.replace(data, eval_images="others"), data, "eval") == "eval"
