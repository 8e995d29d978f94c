"""Recipes: one TOML file says everything that decides a run's result. Never imports torch."""

from __future__ import annotations

from emaseg.recipe.backbones import Backbone, HRNetBackbone, PixelStats, ResNeStBackbone, ResNetBackbone, ViTBackbone
from emaseg.recipe.check import check
from emaseg.recipe.data import (
    ADE20KData,
    CityscapesData,
    CocoStuffData,
    CocoVOCData,
    Data,
    FolderData,
    LIPData,
    PackedData,
    PascalContextData,
    ShapesData,
    VOCData,
)
from emaseg.recipe.inference import Inference
from emaseg.recipe.models import EMANetModel, MemoryNetModel, Model
from emaseg.recipe.overrides import for_tta
from emaseg.recipe.published import Published
from emaseg.recipe.reader import LoadedRecipe, load_recipe, load_recipe_with_origins, old_names, parse_recipe
from emaseg.recipe.rule import Rule
from emaseg.recipe.schema import SCHEMA_VERSION, Recipe
from emaseg.recipe.sections import Problem
from emaseg.recipe.training import Augment, Group, Loss, Optim, Train
from emaseg.recipe.writer import recipe_to_toml, toml_value

__all__ = [
    "SCHEMA_VERSION",
    "ADE20KData",
    "Augment",
    "Backbone",
    "CityscapesData",
    "CocoStuffData",
    "CocoVOCData",
    "Data",
    "EMANetModel",
    "FolderData",
    "Group",
    "HRNetBackbone",
    "Inference",
    "LIPData",
    "LoadedRecipe",
    "Loss",
    "MemoryNetModel",
    "Model",
    "Optim",
    "PackedData",
    "PascalContextData",
    "PixelStats",
    "Problem",
    "Published",
    "Recipe",
    "ResNeStBackbone",
    "ResNetBackbone",
    "Rule",
    "ShapesData",
    "Train",
    "VOCData",
    "ViTBackbone",
    "check",
    "for_tta",
    "load_recipe",
    "load_recipe_with_origins",
    "old_names",
    "parse_recipe",
    "recipe_to_toml",
    "toml_value",
]
