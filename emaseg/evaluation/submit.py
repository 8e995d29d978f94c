"""The ZIP of label maps that a benchmark's server expects, of images whose labels are published or not.

Room: evaluation.
Legend: H W image size, K classes.

    PASCAL VOC  results/VOC2012/Segmentation/comp6_test_cls/<id>.png: palette PNGs of the classes 0..20. comp5 is for
                networks that have seen VOC's own images only, comp6 for all others: that is every one whose backbone
                starts from ImageNet weights, as the published rows' do (development kit, section 5)
    Cityscapes  <id>_pred.png: 8-bit grey, the owners' label ids, not train ids. Their script takes the one file named
                <city>_<sequence>_<frame>*.png (cityscapesScripts, evalPixelLevelSemanticLabeling.py, getPrediction)
    ADE20K      <id>.png: 8-bit grey, 1..150, as its label files have them (sceneparsing, README, "Submission format")
"""

from __future__ import annotations

import functools
import io
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import torch
from PIL import Image
from torch import nn

from emaseg.data.dataset import Dataset, UInt8, read_pair
from emaseg.data.files.label_files import LabelRule, index_rule
from emaseg.data.label_sets import label_set
from emaseg.data.sets.ade20k import ade20k_rule
from emaseg.data.sets.cityscapes import label_rule
from emaseg.errors import DataError
from emaseg.events import Evaluated, Evaluating
from emaseg.files import atomic
from emaseg.inference.protocols import label_map
from emaseg.metrics import Tally
from emaseg.recipe import Data, Inference, PixelStats
from emaseg.threads import read_ahead
from emaseg.visual import as_picture, palette_png

KINDS = ("voc", "cityscapes", "ade20k")  # of data that a layout is known for


@dataclass(frozen=True, slots=True)
class Layout:
    """What a server expects.

    server: its name, for people. file: a label map's place in the ZIP; {} stands for the image's id. ending: what
    follows the id in an image's file name. stored: K bytes, the value of each class. coloured: palette PNGs; else 8-bit
    grey.
    repack: the command that makes a .tar.gz of the ZIP, for which {} stands, where users report that the server takes
    nothing else.
    """

    server: str
    file: str
    ending: str
    stored: bytes
    coloured: bool = False
    repack: str = ""


@dataclass(frozen=True, slots=True)
class Submission:
    """A ZIP to be written, and what goes into it."""

    path: Path
    layout: Layout


def layout_of(data: Data) -> Layout | None:
    """What the server of a data set expects; None where none is known."""
    classes = label_set(data).classes
    match data.kind:
        case "voc":
            return Layout(
                "PASCAL VOC's evaluation server",
                "results/VOC2012/Segmentation/comp6_test_cls/{}.png",
                ".jpg",
                _stored(index_rule(classes)),
                coloured=True,
                repack="python3 -m zipfile -e {} . && tar czf results.tar.gz results",
            )
        case "cityscapes":
            rule = label_rule(classes, "labelIds")
            return Layout("Cityscapes' server", "{}_pred.png", "_leftImg8bit.png", _stored(rule))
        case "ade20k":
            return Layout("ADE20K's server", "{}.png", ".jpg", _stored(ade20k_rule(classes)))
    return None


def _stored(rule: LabelRule) -> bytes:
    """The value that label files have for each class: the reader's rule, the other way round."""
    return bytes(rule.lut.index(train_id) for train_id in range(rule.num_classes))


def write_submission(
    submission: Submission,
    model: nn.Module,
    dataset: Dataset,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
) -> Generator[Evaluating | Evaluated, None, None]:
    """Predict every image at its own size and store the label maps, sorted by name; score them where labels are there.

    The ZIP appears when it is complete; closing the generator earlier leaves nothing. The same label maps give the same
    bytes. One image is held, and the next one is read ahead.

    Args:
        model: on `device`; it is put into eval mode and left there.
        dataset: of the kind that submission.layout belongs to.
        stats: mean and standard deviation of the channels.

    Yields:
        Evaluating after each image; Evaluated at the end, unless the labels are not published.

    Raises:
        DataError: there are no images, one is named twice, or one cannot be read.
        SystemFault: the ZIP cannot be written.
    """
    total, layout = len(dataset), submission.layout
    items = sorted(zip(_files(dataset, layout), range(total), strict=True))
    model.eval()
    tally = Tally.empty(len(dataset.classes))
    began = time.perf_counter()
    with atomic(submission.path) as file, ZipFile(file, "w", ZIP_STORED) as archive:  # PNGs are compressed already
        samples = read_ahead(functools.partial(read_pair, dataset), [index for _, index in items])
        for done, ((name, index), (image, truth)) in enumerate(zip(items, samples, strict=True), start=1):
            labels = label_map(model, image, inference, stats, device)
            archive.writestr(_entry(name), _png(labels, layout, dataset.palette))
            tally.add(index, dataset.name(index), truth, labels, image=as_picture(image))
            rate = done / max(time.perf_counter() - began, 1e-9)
            yield Evaluating(done, total, images_per_second=rate, seconds_left=(total - done) / rate)
    if not dataset.withheld_by:
        yield Evaluated(tally.scores(dataset.classes), tally=tally)


def _files(dataset: Dataset, layout: Layout) -> list[str]:
    """The place in the ZIP of every image's label map."""
    ids = [Path(dataset.name(index)).name.removesuffix(layout.ending) for index in range(len(dataset))]
    if not ids:
        raise DataError("the split to be submitted holds no images", "check the split's list file or folder")
    image, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{image}: the split names this image {times} times, but its server takes one label map of each",
            "correct the split's list file",
        )
    return [layout.file.format(image) for image in ids]


def _png(labels: UInt8, layout: Layout, palette: UInt8) -> bytes:
    """A PNG file of (H, W) train ids, stored as the values that the server expects."""
    stored = np.frombuffer(layout.stored, np.uint8)[labels]
    picture = palette_png(stored, palette) if layout.coloured else Image.fromarray(stored)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _entry(name: str) -> ZipInfo:
    """A readable file without a time of its own (1980), written by any system as if by Unix."""
    entry = ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    return entry
