"""Filling a network with what its training starts from.

Room: training. Which file that is: weights/start.py; how it is read: checkpoint.py.
"""

from __future__ import annotations

from emaseg.checkpoint import load_backbone, load_start
from emaseg.events import Note
from emaseg.models import Network
from emaseg.recipe import Recipe, toml_value
from emaseg.weights.start import backbone_file, start_weights


def load_start_weights(model: Network, recipe: Recipe) -> list[Note]:
    """Fill the whole network from `train.init_from`, or the backbone with the recipe's start weights.

    Raises:
        WeightsError: not there, unreadable, or of another network or backbone.
    """
    if recipe.train.init_from:
        return _load_whole_network(model, recipe)
    if recipe.backbone.weights == "none":
        untrained = f"backbone: untrained (backbone.weights = {toml_value(recipe.backbone.weights)})"
        if recipe.train.freeze == "none":
            return [Note(untrained)]
        text = f"{untrained}, and train.freeze = {toml_value(recipe.train.freeze)} keeps such values; start from trained weights"
        return [Note(text, warning=True)]
    path = backbone_file(recipe)
    load_backbone(model.backbone, path)
    return [Note(f"backbone: {path}")]


def _load_whole_network(model: Network, recipe: Recipe) -> list[Note]:
    path = start_weights(recipe.train.init_from)
    theirs = load_start(model, path)
    notes = [Note(f"start: the network of {path} (train.init_from)")]
    if theirs is not None:
        fresh = ", ".join(model.per_class)
        notes.append(Note(f"start: it has {theirs} classes, this recipe {model.num_classes}; new here: {fresh}"))
    return notes
