"""Which network some weights are of, and which shipped recipes have that network.

Room: weights. Used only to explain why weights do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from emaseg.errors import RecipeError
from emaseg.models import build_model
from emaseg.recipe import Recipe, load_recipe
from emaseg.recipe.data import num_classes
from emaseg.resources import shipped_recipes

_CLASSIFIERS = (("MemoryNet", "final.classifier.weight"), ("EMANet", "classifier.weight"))
_OWN_STATE = (".age", ".num_batches_tracked")  # ours alone, or absent from old files: a loader fills these
_DEPTHS = {1: "ResNet-14", 6: "ResNet-50", 23: "ResNet-101", 36: "ResNet-152"}  # by blocks of layer3


def describe(state: Mapping[str, torch.Tensor]) -> str:
    """Family, backbone and class count of a state with our names, as far as the names tell: "EMANet, ResNet-50, ..."."""
    family = _family(state)
    words = [family] if family else []
    words += [word for word in (_backbone(state),) if word]
    count = classes(state)
    return ", ".join([*words, f"{count} classes"] if count else words)


def classes(state: Mapping[str, torch.Tensor]) -> int | None:
    """The class count of the main classifier; None when there is none."""
    for _, key in _CLASSIFIERS:
        if key in state and state[key].ndim:
            return int(state[key].shape[0])
    return None


def fitting_recipes(state: Mapping[str, torch.Tensor]) -> list[str]:
    """The shipped recipes whose network takes this state exactly, by names and shapes.

    Recipes of the same network (two output strides, say) all fit; each network is built once, without memory.
    """
    count = classes(state)
    built: dict[object, bool] = {}
    names = []
    for name in shipped_recipes() if count else ():
        try:
            recipe = load_recipe(name)
            if num_classes(recipe.data) != count or recipe.model.kind != (_family(state) or "").lower():
                continue
            key = (recipe.model, recipe.backbone)
            if key not in built:
                built[key] = _takes(recipe, state)
        except RecipeError:  # a recipe that this version does not build
            continue
        if built[key]:
            names.append(name)
    return names


def _takes(recipe: Recipe, state: Mapping[str, torch.Tensor]) -> bool:
    with torch.device("meta"):
        own = build_model(recipe).state_dict()
    missing = [key for key in own if key not in state and not key.endswith(_OWN_STATE)]
    return not missing and all(key in own and own[key].shape == value.shape for key, value in state.items())


def _family(state: Mapping[str, torch.Tensor]) -> str:
    return next((family for family, key in _CLASSIFIERS if key in state), "")


def _backbone(state: Mapping[str, torch.Tensor]) -> str:
    names = [key.removeprefix("backbone.") for key in state if key.startswith("backbone.")]
    if "cls_token" in names:
        return "ViT"
    if any(name.startswith("stage4.") for name in names):
        return "HRNet"
    blocks = {name.split(".")[1] for name in names if name.startswith("layer3.")}
    depth = _DEPTHS.get(len(blocks), f"a ResNet with {len(blocks)} blocks in layer3" if blocks else "")
    split = any(name.endswith("conv2.fc1.weight") for name in names)
    return depth.replace("ResNet", "ResNeSt") if split else depth
