"""Networks. `build_model` makes the one a recipe describes; it never touches the network or a file.

Room: models; imports torch, recipe, losses, distributed; never data.
"""

from __future__ import annotations

from emaseg.models.emanet import EMANet
from emaseg.recipe import not_available
from emaseg.recipe.check import num_classes
from emaseg.recipe.schema import EMANetModel, Recipe

AVAILABLE = ("emanet",)


def build_model(recipe: Recipe) -> EMANet:
    """The network of a recipe, randomly initialised, in training mode.

    Works under `torch.device("meta")` too, where it costs nothing.

    Raises:
        RecipeError: a model or backbone kind that this version does not build.
    """
    if isinstance(recipe.model, EMANetModel):
        return EMANet(recipe.model, recipe.backbone, recipe.loss, num_classes(recipe.data))
    raise not_available("model.kind", recipe.model.kind, AVAILABLE)
