"""Evaluation: scores at the images' own size, errors that surface, and the metrics.json contract."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emaseg.data.sample import Sample
from emaseg.errors import DataError, WeightsError
from emaseg.evaluate import evaluate, evaluation_json, protocol, published_miou, sha256_of
from emaseg.events import Evaluated, Evaluating
from emaseg.metrics import Confusion, Scores
from emaseg.recipe import Inference, Published

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


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

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> Sample:
        self.read_in.append(threading.current_thread().name)
        if index == self.broken:
            raise DataError("image 1: damaged", "replace it")
        label = np.random.default_rng(index).integers(0, 3, (20 + index, 31), dtype=np.uint8)
        image = np.repeat((label * 100)[..., None], 3, axis=2)
        label[0, :5] = 255
        return Sample(image, label, self.name(index))


def run(dataset: Painted, model: nn.Module | None = None) -> list[Evaluating | Evaluated]:
    return list(evaluate(model or Reader(), dataset, Inference(), MEAN, STD, "cpu"))


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
        sample = Painted().read(index)
        truth = Painted().read(index).image[..., 0] // 100
        confusion.add(sample.label, np.roll(truth, 1, axis=1))
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


def test_an_abandoned_evaluation_leaves_no_thread() -> None:
    """Training stops an evaluation when it is interrupted."""
    events = evaluate(Reader(), Painted(), Inference(), MEAN, STD, "cpu")
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_an_empty_split_is_an_error() -> None:
    """0 images must not look like a score."""
    with pytest.raises(DataError, match="holds no images"):
        run(Painted(count=0))


def test_metrics_json_contract() -> None:
    """The documented keys, fractions, null where undefined; it survives strict JSON."""
    confusion = Confusion.empty(2)
    confusion.add(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8))
    scores: Scores = confusion.scores(("road", "car"), 1)
    published = Published(table="t", miou=75.29, miou_ms_flip=77.5)
    content = evaluation_json(scores, published, Inference(), "ab" * 32)
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


def test_published_score_belongs_to_the_protocol() -> None:
    """A multi-scale score is never compared with the single-scale table."""
    published = Published(table="t", miou=70.0, miou_ms_flip=72.0, miou_flip=None)
    assert published_miou(published, Inference()) == 0.7
    assert published_miou(published, Inference(flip=True)) is None
    assert published_miou(published, Inference(scales=(0.5, 1.0), flip=True)) == 0.72
    assert published_miou(None, Inference()) is None


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


def test_sha256(tmp_path: Path) -> None:
    """The hash ties a score to a weight file."""
    (tmp_path / "w.pt").write_bytes(b"weights")
    assert sha256_of(tmp_path / "w.pt") == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(WeightsError, match="No such file"):
        sha256_of(tmp_path / "none.pt")
