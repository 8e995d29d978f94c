"""Scoring a model on a labelled data set, at the images' own size, and the published score to compare it with.

Room: evaluation. Legend: H W image size, K classes.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from emaseg.data.dataset import Dataset, Phase, Pixels, UInt8, published_label, read_pair
from emaseg.data.sets.published_counts import published_images
from emaseg.distributed.collectives import from_all_ranks, largest_over_ranks, rank_number, world_size
from emaseg.errors import DataError, ImageTooLarge
from emaseg.events import Evaluated, Evaluating
from emaseg.free_memory import is_out_of_memory
from emaseg.inference.protocols import Float32, check_scored, label_and_confidence, label_map
from emaseg.metrics import Details, Scores, Tally
from emaseg.models import Report
from emaseg.recipe import Data, EMANetModel, Inference, PixelStats, Published, Recipe, load_recipe
from emaseg.recipe.compare import differences
from emaseg.resources import shipped_recipes
from emaseg.threads import read_ahead
from emaseg.visual import as_picture

_TIMED = 3  # images that tell how long all take
JSON_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """The published mIoU that a measured one is compared with.

    Attributes:
        miou: published for the same protocol on the same images, a fraction; None = there is no such number.
        reason: why there is none; "" where there is one, or where the recipe mirrors no row.
    """

    miou: float | None
    reason: str = ""


def missed_classes(scores: Scores) -> str:
    """Which classes of the images are found nowhere, and what helps; "" where each is found somewhere."""
    missed = [one.name for one in scores.per_class if one.iou == 0 and one.status in ("never_predicted", "never_right")]
    if not missed:
        return ""
    several, named = len(missed) > 1, ", ".join(missed[:5])
    more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
    return (
        f"{'these classes have' if several else 'this class has'} an IoU of 0: {named}{more}. What helps: more training "
        f"images that show {'them' if several else 'it'}, more iterations, a Dice loss "
        "(loss.dice_weight=1), and for small or thin things a larger augment.crop; check-data counts the pixels of each "
        "class"
    )


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
    *,
    calibration: bool = False,
    shared: bool = False,
    stop: threading.Event | None = None,
) -> Iterator[Evaluating | Evaluated]:
    """Predict every image and compare it with its labels, pixel by pixel at the image's own size.

    The labels are never resized; one confusion matrix is kept over the whole set (published protocols).

    Args:
        model: on `device`; it is put into eval mode and left there.
        stats: mean and standard deviation of the channels.
        calibration: also count how sure the network is, which costs an exponential for each class and pixel.
        shared: all processes call this, each predicts its part of the images, every image once, and all get the scores
            of the whole set.
        stop: when set, in whichever process, the evaluation ends early, unless that was its last image.

    Yields:
        Evaluating after each image, Evaluated with its tally at the end, unless it was stopped.

    Raises:
        DataError: there are no images, or one cannot be read.
        ImageTooLarge: one does not fit into memory.
        RecipeError: `calibration` of an exported file that gives class ids only.
    """
    if calibration:
        check_scored(model, "calibration")
    total = len(dataset)
    if total == 0:
        raise DataError("the split to be evaluated holds no images", "check the split's list file or folder")
    if dataset.withheld_by:
        published_label(dataset.open(0))
    model.eval()
    tally = Tally.empty(len(dataset.classes), calibrated=calibration)
    began = time.perf_counter()
    first, each = (rank_number(), world_size()) if shared else (0, 1)
    own = range(first, total, each)
    with contextlib.closing(read_ahead(partial(read_pair, dataset), own)) as pairs:
        turns = -(-total // each)
        for turn in range(turns):
            if turn < len(own):
                (image, label), index = next(pairs), own[turn]
                name = dataset.name(index)
                labels, confidence = _predicted(model, image, name, inference, stats, device, calibration)
                tally.add(index, name, label, labels, confidence, as_picture(image))
            more = turn + 1 < turns  # after the last image all is done: the scores are there
            if more and stop is not None and (largest_over_ranks([int(stop.is_set())])[0] if shared else stop.is_set()):
                stop.set()  # another process may have been asked: the caller sees here that this was no end
                return
            done = min(total, (turn + 1) * each)
            rate = done / max(time.perf_counter() - began, 1e-9)
            yield Evaluating(done, total, images_per_second=rate, seconds_left=(total - done) / rate)
    for number, other in enumerate(from_all_ranks(tally) if shared else ()):
        if number != first:
            tally.merge(other)
    yield Evaluated(tally.scores(dataset.classes), tally=tally)


def _predicted(
    model: nn.Module,
    image: Pixels,
    name: str,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
    calibration: bool,
) -> tuple[UInt8, Float32 | None]:
    try:
        if calibration:
            return label_and_confidence(model, image, inference, stats, device)
        return label_map(model, image, inference, stats, device), None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        height, width = image.shape[:2]
        raise ImageTooLarge(
            f"{name}: out of memory when an image of {width} x {height} pixels was evaluated", _in_windows(inference)
        ) from error


def _in_windows(inference: Inference) -> str:
    """What takes less memory for an image. An evaluation never divides one by itself: that would be another protocol."""
    if inference.mode == "slide":
        return "free memory, use another device, or smaller windows (inference.window), which is another protocol"
    return (
        "free memory, use another device, or evaluate in windows, which is another protocol: --set inference.mode=slide "
        "--set inference.window=[769,769] --set inference.stride=[512,512]"
    )


def evaluation_seconds(
    model: nn.Module, dataset: Dataset, inference: Inference, stats: PixelStats, device: torch.device | str
) -> float:
    """What `evaluate` takes on all images, from its first ones; the model goes on in the mode in which it was."""
    mode, rate = model.training, 0.0
    for event in itertools.islice(evaluate(model, dataset, inference, stats, device), _TIMED):
        rate = event.images_per_second if isinstance(event, Evaluating) else rate
    model.train(mode)
    return len(dataset) / rate / world_size()


def evaluation_json(
    scores: Scores,
    published: float | None,
    inference: Inference,
    weights_sha256: str | None,
    report: Report | None = None,
    details: Details | None = None,
    split: str = "",
) -> dict[str, Any]:
    """metrics.json: every fraction in 0..1, None where undefined.

    "published" is `Comparison.miou`. What the network tells about itself (`Network.report`) stands under its own name.
    The keys of `details` come after those of the scores. split: `other_split`; "split" is there where it is not "".
    """
    content = {
        "schema": JSON_SCHEMA,
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "images": scores.images,
        "per_class": [
            {"name": c.name, "iou": c.iou, "accuracy": c.accuracy, "status": c.status}
            | ({} if details is None else details.class_json(k))
            for k, c in enumerate(scores.per_class)
        ],
        "published": published,
        "protocol": protocol(inference),
        "weights_sha256": weights_sha256,
    } | ({} if details is None else details.json())
    content |= {"split": split} if split else {}
    return content if report is None else {**content, report.name: dict(report.content)}


def compare_with_published(
    recipe: Recipe, written: Recipe, phase: Phase = "eval", stretched: tuple[int, int] | None = None
) -> Comparison:
    """The published mIoU that may stand beside one measured with `recipe`.

    Two scores compare where label maps are made the same way, from the same images: [inference] must be the row's, or
    the row's [inference_tta], and so must be what is scored. How the network was trained may differ; that is what a
    comparison is for.

    Args:
        recipe: as it is evaluated. written: the same before `--set` and `--tta`. phase: of the data, that is scored.
        stretched: (H, W) that every image is brought to, because an exported file takes no other size; None = none.
    """
    published = recipe.published
    if published is None:
        return Comparison(None)
    if stretched is not None:
        return Comparison(None, f"not comparable; every image is {_stretched(stretched)}")
    row = _row(recipe, written)
    changed = _changed(recipe, written, row)
    if phase == "train":
        changed.append("data (the training images)")
    if changed:
        return Comparison(None, f"not comparable; changed: {', '.join(changed)}")
    percent = _published_by(recipe.inference, published)
    if percent is not None:
        return Comparison(round(percent / 100, 6))
    if row.inference_tta is not None and _published_by(row.inference_tta, published) is not None:
        return Comparison(None, "with --tta only")
    if published.miou_other is not None:
        return Comparison(None, "with a protocol that the table does not state")
    return Comparison(None, "not with this protocol")


def split_name(data: Data, phase: Phase) -> str:
    """The split that is scored, as --split names it."""
    return "train" if phase == "train" else str(getattr(data, "eval_split", "eval"))


def other_split(data: Data, written: Data, phase: Phase) -> str:
    """The name of the split that is scored, where it holds other images than the recipe is scored on; else "".

    Args:
        data: as it is evaluated. written: the same before --split and --set.
    """
    own = phase == "eval" and not differences("data", written, data, _unscored(written) | {"palette"})
    return "" if own else split_name(data, phase)


def on_images(comparison: Comparison, data: Data, phase: Phase, images: int) -> Comparison:
    """The comparison where so many images are scored: other images than the table's have another mean."""
    expected = published_images(data, phase)
    if comparison.miou is None or expected in (None, images):
        return comparison
    return Comparison(None, f"not comparable: {images:,} images, where the table's are {expected:,}")


def _published_by(inference: Inference, published: Published) -> float | None:
    """The column of the table (percent) that a protocol's scales and mirroring belong to."""
    match len(inference.scales) > 1, inference.flip:
        case False, False:
            return published.miou
        case False, True:
            return published.miou_flip
        case True, True:
            return published.miou_ms_flip
    return None


def _row(recipe: Recipe, written: Recipe) -> Recipe:
    """The recipe with the row's own protocol: the shipped one, as a run's may have been changed; else `written`."""
    if written.name in shipped_recipes():
        shipped = load_recipe(written.name)
        if shipped.published and recipe.published and shipped.published.table == recipe.published.table:
            return shipped
    return written


def _changed(recipe: Recipe, written: Recipe, row: Recipe) -> list[str]:
    """The keys in which an evaluation deviates from the row's, of its two protocols from the nearer one.

    The network is compared with the one it is trained as: one that is run otherwise gives other scores.
    """
    protocols = [own for own in (row.inference, row.inference_tta) if own is not None]
    protocols.sort(key=lambda own: own.flip != recipe.inference.flip)  # of two equally near ones the like
    effective = _effective(recipe.inference)
    differing = min((differences("inference", _effective(own), effective) for own in protocols), key=len)
    differing += differences("data", row.data, recipe.data, _unscored(row.data))
    differing += differences("model", written.model, recipe.model, {"em_iterations_eval"})
    differing += differences("backbone", written.backbone, recipe.backbone, {"weights"})
    changed = [difference.key for difference in differing]
    if isinstance(recipe.model, EMANetModel) and recipe.model.em_iterations_eval != recipe.model.em_iterations:
        changed.append("model.em_iterations_eval")
    return changed


def _effective(inference: Inference) -> Inference:
    """The protocol with default values where a key does nothing: classes swap in a mirror, only other scales rescale."""
    flip_pairs = inference.flip_pairs if inference.flip else ()
    scale_source = "tensor" if inference.scales == (1.0,) else inference.scale_source
    return replace(inference, flip_pairs=flip_pairs, scale_source=scale_source)


def _unscored(data: Data) -> set[str]:
    """The keys of a data section that do not change what is scored: where it lies, and what is trained on."""
    return {"root", *(field.name for field in fields(data) if field.name.startswith("train_"))}


def _stretched(size: tuple[int, int]) -> str:
    return "stretched to {1}x{0}".format(*size)


def protocol(inference: Inference, stretched: tuple[int, int] | None = None) -> str:
    """How the label maps are made, in one line, e.g. `resize 2048x512; whole; scales 1; logits`.

    Args:
        stretched: (H, W) that every image is brought to instead, because an exported file takes no other size.
    """
    parts = ["own size"]
    if stretched is not None:
        parts = [_stretched(stretched)]
    elif inference.resize_long_short:
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
    if inference.precision != "fp32":
        parts.append(inference.precision)
    return "; ".join(parts)
