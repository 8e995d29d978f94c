"""Scoring a model on a labelled data set, at the images' own size.

Room: evaluate; imports inference, metrics, events, models, errors and the recipe's dataclasses.
Legend: H W image size, K classes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emaseg.data.sample import Dataset, Sample
from emaseg.errors import DataError, WeightsError
from emaseg.events import Evaluated, Evaluating
from emaseg.inference import label_map
from emaseg.metrics import Confusion, Scores
from emaseg.models import Report
from emaseg.recipe.schema import Inference, Published

JSON_SCHEMA = 1


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    inference: Inference,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
) -> Iterator[Evaluating | Evaluated]:
    """Predict every image and compare it with its labels, pixel by pixel at the image's own size.

    The labels are never resized; one confusion matrix is kept over the whole set (published protocols).

    Args:
        model: on `device`; it is put into eval mode and left there.
        mean, std: of the RGB channels, in 0..255.

    Yields:
        Evaluating after each image, Evaluated at the end.

    Raises:
        DataError: there are no images, or one cannot be read.
    """
    total = len(dataset)
    if total == 0:
        raise DataError("the split to be evaluated holds no images", "check the split's list file or folder")
    model.eval()
    confusion = Confusion.empty(len(dataset.classes))
    began = time.perf_counter()
    for done, sample in enumerate(_read_ahead(dataset), start=1):
        confusion.add(sample.label, label_map(model, sample.image, inference, mean, std, device))
        rate = done / max(time.perf_counter() - began, 1e-9)
        yield Evaluating(done, total, images_per_second=rate, seconds_left=(total - done) / rate)
    yield Evaluated(confusion.scores(dataset.classes, total))


def _read_ahead(dataset: Dataset) -> Iterator[Sample]:
    """Every sample in order; the next one is decoded in a thread while the network works on this one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        ahead = reader.submit(dataset.read, 0)
        for index in range(1, len(dataset)):
            sample = ahead.result()
            ahead = reader.submit(dataset.read, index)
            yield sample
        yield ahead.result()


def evaluation_json(
    scores: Scores,
    published: Published | None,
    inference: Inference,
    weights_sha256: str | None,
    report: Report | None = None,
) -> dict[str, Any]:
    """metrics.json: every fraction in 0..1, None where undefined.

    "published" is the table's mIoU for this protocol (single scale, mirrored, or several scales and mirrored). What
    the network tells about itself (`Network.report`) stands under its own name.
    """
    content = {
        "schema": JSON_SCHEMA,
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "images": scores.images,
        "per_class": [
            {"name": c.name, "iou": c.iou, "accuracy": c.accuracy, "status": c.status} for c in scores.per_class
        ],
        "published": published_miou(published, inference),
        "protocol": protocol(inference),
        "weights_sha256": weights_sha256,
    }
    return content if report is None else {**content, report.name: dict(report.content)}


def published_miou(published: Published | None, inference: Inference) -> float | None:
    """The published mIoU that belongs to this protocol, as a fraction; None when the table has none for it."""
    if published is None:
        return None
    percent = published.miou
    if len(inference.scales) > 1:
        percent = published.miou_ms_flip
    elif inference.flip:
        percent = published.miou_flip
    return None if percent is None else round(percent / 100, 6)


def protocol(inference: Inference) -> str:
    """How the label maps are made, in one line, e.g. `resize 2048x512; whole; scales 1; logits`."""
    parts = ["own size"]
    if inference.resize_long_short:
        parts = ["resize {}x{}".format(*inference.resize_long_short) + ("" if inference.keep_ratio else " stretched")]
    if inference.pad != "none":
        parts.append(f"pad {inference.pad}")
    if inference.mode == "slide":
        parts.append("windows {}x{}".format(*inference.window) + " every {}x{}".format(*inference.stride))
    else:
        parts.append("whole")
    scales = "scales " + " ".join(f"{scale:g}" for scale in inference.scales)
    parts.append(scales + (" of the image" if inference.scale_source == "image" else ""))
    if inference.flip:
        parts.append("flip")
    parts.append(inference.average.replace("_", " "))
    if inference.logits_path == "via_input":
        parts.append("over the input size")
    return "; ".join(parts)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})", "check the path") from error
