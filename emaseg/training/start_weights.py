"""Filling a network with what its training starts from.

Room: training. Which file that is: weights/init_from.py and weights/backbone.py; how it is read: checkpoint.py.
"""

from __future__ import annotations

from emaseg.checkpoint import load_backbone, load_start
from emaseg.events import Note
from emaseg.models import Network
from emaseg.recipe import Recipe, toml_value
from emaseg.weights.backbone import backbone_file
from emaseg.weights.init_from import init_from_file

# What became of a first convolution for RGB, by the channels that it has now; 3 stands for more, too.
_ADAPTED = {
    1: "its first convolution reads RGB; for 1 channel it starts with the sum of the red, green and blue filters",
    2: "its first convolution reads RGB; each of 2 channels starts with the mean of the three filters, times 3/2",
    3: "its first convolution reads RGB; the first three of {0} channels keep their filters, the others start with the "
    "mean of the three, all times 3/{0}",
}


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
    path, channels = backbone_file(recipe), recipe.backbone.in_channels
    if not load_backbone(model.backbone, path):
        return [Note(f"backbone: {path}")]
    return [Note(f"backbone: {path}"), Note(f"backbone: {_ADAPTED[min(channels, 3)].format(channels)}")]


def _load_whole_network(model: Network, recipe: Recipe) -> list[Note]:
    path = init_from_file(recipe.train.init_from)
    theirs = load_start(model, path)
    notes = [Note(f"start: the network of {path} (train.init_from)")]
    if theirs is not None:
        fresh = ", ".join(model.per_class)
        notes.append(Note(f"start: it has {theirs} classes, this recipe {model.num_classes}; new here: {fresh}"))
    return notes
