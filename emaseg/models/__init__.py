"""Networks. `build_model` makes the one a recipe describes; it never touches the network or a file.

Room: models.
"""

from __future__ import annotations

from emaseg.errors import need_type
from emaseg.models.emanet import EMANet
from emaseg.models.memorynet import MemoryNet
from emaseg.models.network import Network, Report
from emaseg.recipe.data import num_classes
from emaseg.recipe.models import EMANetModel
from emaseg.recipe.schema import Recipe


def build_model(recipe: Recipe) -> Network:
    """The network of a recipe, randomly initialised, in training mode.

    Works under `torch.device("meta")` too, where it costs nothing.

    Raises:
        RecipeError: `recipe` is no Recipe.
    """
    need_type("recipe", recipe, Recipe, "what emaseg.load_recipe returns")
    classes = num_classes(recipe.data)
    network: Network
    if isinstance(recipe.model, EMANetModel):
        network = EMANet(recipe.model, recipe.backbone, recipe.loss, classes)
    else:
        network = MemoryNet(recipe.model, recipe.backbone, recipe.loss, classes)
    network.freeze(recipe.train.freeze)
    return network


__all__ = ["Network", "Report", "build_model"]
