"""The recipe: one frozen dataclass for each TOML section, every key with its meaning, unit and limits.

Room: recipe.

A recipe is complete in one file. The keys of models.py, backbones.py, data.py, training.py and this file are the only
ones; renamed.py has those that once had another name. reader.py checks names, types and limits, and its messages name
file and line. Where published systems differ, the difference is a named option here.
Sizes are (height, width) unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emaseg.recipe.backbones import Backbone
from emaseg.recipe.data import Data
from emaseg.recipe.models import Model
from emaseg.recipe.rule import FACTOR, SCALE, SIDE, key
from emaseg.recipe.training import Augment, Loss, Optim, Train

SCHEMA_VERSION = 1

IGNORE = 255  # the label, everywhere inside the program, of a pixel that is neither trained nor scored


# Keys that nothing reads: they tell people where a row comes from.
DOCUMENTATION = frozenset(f"published.{key}" for key in ("checkpoint_mirrors", "log", "note"))


# ------------------------------------------------------------------------------------------------ inference
@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """From an image to its label map, at evaluation and prediction."""

    resize_long_short: tuple[int, ...] = key(
        "limits (long side, short side); [] keeps the image's own size", (), low=1, lengths=(0, 2), ceiling=SIDE
    )
    keep_ratio: bool = key("keep the aspect ratio inside the limits", True)
    pad: Literal["none", "8k+1"] = key('"8k+1" pads below and right to multiples of 8 plus 1 (EMANet authors)', "none")
    mode: Literal["whole", "slide"] = key("the whole image at once, or a sliding window", "whole")
    window: tuple[int, ...] = key("window (height, width) of slide", (), low=1, lengths=(0, 2), ceiling=SIDE)
    stride: tuple[int, ...] = key("window step (down, right) of slide", (), low=1, lengths=(0, 2), ceiling=SIDE)
    scales: tuple[float, ...] = key(
        "scales whose results are averaged", (1.0,), above=0, floor=0.01, ceiling=SCALE, most=32
    )
    scale_source: Literal["tensor", "image"] = key(
        "rescale the normalised tensor by the factor (sssegmentation), or the original image again (mmseg)", "tensor"
    )
    flip: bool = key("average with the mirrored image", False)
    flip_pairs: tuple[tuple[int, int], ...] = key(
        "pairs of classes that swap when mirrored", (), low=0, ceiling=255, most=128
    )
    average: Literal["logits", "probs_before_resize", "probs_after_resize"] = key(
        "what is averaged; the softmax comes before resizing (sssegmentation) or after it (mmseg)", "logits"
    )
    logits_path: Literal["direct", "via_input"] = key(
        "resize logits to the original size directly (sssegmentation), or via the input size (mmseg, authors)", "direct"
    )
    precision: Literal["fp32", "bf16", "fp16"] = key(
        "what the network computes in at eval and predict; every published score is fp32", "fp32", extra=True
    )


# ------------------------------------------------------------------------------------------------ published
@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the published table says of this row; scores in percent."""

    table: str = key("document and row")
    miou: float | None = key("mIoU, single scale", None, low=0, high=100)
    miou_ms_flip: float | None = key("mIoU, several scales and mirrored", None, low=0, high=100)
    miou_flip: float | None = key("mIoU, mirrored", None, low=0, high=100)
    miou_other: float | None = key("mIoU whose protocol the table does not state", None, low=0, high=100)
    checkpoint: str = key("URL of the released weights", "")
    checkpoint_mirrors: tuple[str, ...] = key("the same weights under newer names", (), most=16)
    log: str = key("URL of the training log", "")
    memory_gb: float | None = key("training memory of one GPU", None, low=0, ceiling=FACTOR)
    images_per_second: float | None = key("inference speed", None, low=0, ceiling=FACTOR)
    hardware: str = key("hardware that those two were measured on", "")
    note: str = key("anything else that a reader should know", "")


# --------------------------------------------------------------------------------------------------- recipe
@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One run: everything that decides its result."""

    schema: Literal[1] = key("version of this format", SCHEMA_VERSION)
    name: str = key("short name; the run folder carries it", longest=100)
    title: str = key("one line for people", "", longest=1000)
    model: Model = key("the network")
    backbone: Backbone = key("its feature extractor")
    data: Data = key("images and labels")
    augment: Augment = key("training pipeline")
    loss: Loss = key("training loss", Loss())
    optim: Optim = key("optimiser and schedule")
    train: Train = key("length, batch, checkpoints")
    inference: Inference = key("evaluation and prediction", Inference())
    inference_tta: Inference | None = key("protocol of eval --tta: several scales, mirroring", None)
    published: Published | None = key("the results-table row this recipe mirrors", None)
