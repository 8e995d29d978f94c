"""Whether a recipe reads in a checkpoint's tensors what the checkpoint's own recipe reads in them.

Room: weights. Names and shapes cannot tell: a network with other pixel statistics or another order of classes takes the
same tensors, and its predictions are silently worse or called otherwise.
"""

from __future__ import annotations

from emaseg.data.label_sets import label_set
from emaseg.recipe import Recipe, toml_value
from emaseg.recipe.compare import differences

# Keys that change what a network computes, but not its tensors. Not among them: strides and dilations (networks are
# trained at stride 16 and evaluated at 8) and model.em_iterations_eval.
_COMPUTED = {
    "model": ("activation", "align_corners", "attention_epsilon", "downsample", "memory_hard", "norm_epsilon"),
    "backbone": ("mean", "std", "stem_relu", "taps"),
}


def other_meaning(own: Recipe, recipe: Recipe) -> list[str]:
    """In which way tensors that were trained by `own` would mean something else in `recipe`; [] where they would not."""
    found = [
        f"{difference.key} = {toml_value(difference.before)} there, {toml_value(difference.after)} here"
        for section, keys in _COMPUTED.items()
        for difference in differences(section, getattr(own, section), getattr(recipe, section))
        if difference.key.removeprefix(f"{section}.") in keys
    ]
    there, here = label_set(own.data).classes, label_set(recipe.data).classes
    if there != here and sorted(there) == sorted(here):
        first = next(i for i, names in enumerate(zip(there, here, strict=True)) if names[0] != names[1])
        found.append(f"class {first} is {there[first]} there, {here[first]} here")
    return found
