"""The recipe: its sections, put together. A section is a frozen dataclass; each key has its meaning, unit and limits.

Room: recipe.

A recipe is complete in one file. The keys of this file and of models.py, backbones.py, data.py, training.py, inference.py
and published.py are the only ones; renamed.py has those that once had another name. reader.py checks names, types and
limits, and its messages name file and line. Where published systems differ, the difference is a named option.
Sizes are (height, width) unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emaseg.recipe.backbones import Backbone
from emaseg.recipe.data import Data
from emaseg.recipe.inference import Inference
from emaseg.recipe.models import Model
from emaseg.recipe.published import Published
from emaseg.recipe.rule import key
from emaseg.recipe.training import Augment, Loss, Optim, Train

SCHEMA_VERSION = 1


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
    inference_tta: Inference | None = key("protocol of eval --tta: several scales, flipping", None)
    published: Published | None = key("the results-table row this recipe mirrors", None)
