"""In what the three published EMANets differ, as the table of recipes/README.md: made from the recipes, not written by hand.

`python -m tests.recipe.differences` prints it; test_differences.py compares the two.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from emaseg.recipe import load_recipe
from emaseg.recipe.models import EMANetModel
from emaseg.recipe.schema import Recipe
from emaseg.recipe.training import Group
from emaseg.recipe.writer import toml_value

SECTIONS = ("model", "backbone", "augment", "loss", "optim", "inference")

# A system's row, and sssegmentation's row of the same data set and depth: only what differs between those two is the
# system's doing.
SHOWN = {
    "sssegmentation": ("voc_r50_d8", "voc_r50_d8"),
    "mmsegmentation": ("mmseg_cityscapes_r50_d8_512x1024_80k", "cityscapes_r50_d8"),
    "authors": ("paper_voc_val_r101_emanet512", "voc_r101_d8"),
}

# Where each difference can be read: the paper, or a file or setting of the system that deviates.
SOURCES = {
    "model.bottleneck_channels": "authors' `network.py`, `fc1`; mmsegmentation's `channels`",
    "model.concat_input": "not in paper section 5.1; mmsegmentation's `concat_input`",
    "model.decoder_channels": "mmsegmentation's `channels`",
    "model.auxiliary_channels": "not in the paper; mmsegmentation's `auxiliary_head`",
    "model.bases_average": "paper equation 15; authors' `train.py`",
    "model.attention_epsilon": "authors' `network.py`, `EMAU`",
    "model.align_corners": "authors' `network.py`; mmsegmentation's 769 crop has it too",
    "model.norm_momentum": "authors' `settings.py`, `BN_MOM`",
    "model.init": "authors' `network.py`, `EMAU`; mmsegmentation's `ConvModule`",
    "backbone.stem_channels": "authors' `network.py`, `ResNet`",
    "backbone.multi_grid": "paper section 6.1; authors' `network.py`, `grids`",
    "backbone.weights": "authors' `network.py`, `pretrained_path`",
    "augment.resize_long_short": "authors' `dataset.py`, `scale`",
    "augment.scale": "paper section 6.1; `scale_range`, `ratio_range`",
    "augment.scale_choices": "authors' `settings.py`, `SCALES`",
    "augment.interpolation": "authors' `dataset.py`, `scale`",
    "augment.crop": "authors' `settings.py`, `CROP_SIZE`",
    "augment.crop_draws": "authors' `dataset.py`, `crop`; mmsegmentation's `RandomCrop`",
    "augment.max_class_share": "`one_category_max_ratio`, `cat_max_ratio`",
    "augment.photometric": "`PhotoMetricDistortion` of both; paper section 6.1 has none",
    "augment.pad": "sssegmentation's `Padding`",
    "augment.pad_before_crop": "authors' `dataset.py`, `pad`",
    "loss.reduction": "authors' `network.py`, `CrossEntropyLoss2d`; mmsegmentation's `cross_entropy`",
    "loss.ranks": "DistributedDataParallel averages the gradients of sssegmentation's processes",
    "loss.auxiliary_weight": "sssegmentation's `loss_aux`; mmsegmentation's `loss_weight`",
    "optim.lr": "authors' `settings.py`, `LR`",
    "optim.min_lr": "authors' `train.py`; mmsegmentation's `min_lr`",
    "optim.lr_every": "authors' `settings.py`, `LR_DECAY`",
    "optim.weight_decay": "authors' `settings.py`, `WEIGHT_DECAY`",
    "optim.groups": "authors' `train.py`",
    "inference.resize_long_short": "authors' `dataset.py`: none",
    "inference.pad": "authors' `dataset.py`, `pad_inf`",
    "inference.scale_source": "of several scales; mmsegmentation's test pipeline",
    "inference.logits_path": "authors' `network.py`; mmsegmentation's `whole_inference`",
}

NOTES = (
    "– not used.",
    "\\* the data set's, not the system's: sssegmentation has it on the same data.",
)


def difference_table() -> str:
    """The table in Markdown, one row for each recipe key, and its two notes.

    Raises:
        KeyError: a key differs and SOURCES does not say where to read it.
    """
    shown = {system: _values(load_recipe(row)) for system, (row, _) in SHOWN.items()}
    twins = {system: _values(load_recipe(twin)) for system, (_, twin) in SHOWN.items()}
    base = shown["sssegmentation"]
    lines = [_line("key", *SHOWN, "source"), _line(*["---"] * (len(SHOWN) + 2))]
    for key in base:
        if all(shown[system][key] == twins[system][key] for system in SHOWN):
            continue
        cells = []
        for system in SHOWN:
            value, twin = shown[system][key], twins[system][key]
            cells.append(_cell(value) + (" \\*" if value == twin != base[key] else ""))
        lines.append(_line(f"`{key}`", *cells, SOURCES[key]))
    return "\n".join([*lines, "", "<br>\n".join(NOTES)])


def _values(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value, None where another key of the recipe switches it off."""
    values = {
        f"{section}.{field.name}": getattr(getattr(recipe, section), field.name)
        for section in SECTIONS
        for field in dataclasses.fields(getattr(recipe, section))
    }
    assert isinstance(recipe.model, EMANetModel)
    if not recipe.model.concat_input:
        values["model.decoder_channels"] = None
    if not recipe.model.auxiliary_channels:
        values["loss.auxiliary_weight"] = None
    if recipe.loss.reduction == "all_pixels":  # every process has as many
        values["loss.ranks"] = None
    if recipe.augment.scale_choices:
        values["augment.scale"] = None
    else:
        values["augment.scale_choices"] = None
    return values


def _cell(value: Any) -> str:
    """A value as the recipe writes it; of a URL its last part, of parameter groups their factors."""
    if value is None:
        return "–"
    if isinstance(value, tuple) and value and isinstance(value[0], Group):
        return "; ".join(f"`{g.match}`: lr × {g.lr_scale:g}, decay × {g.weight_decay_scale:g}" for g in value)
    if isinstance(value, str):
        value = value.rpartition("/")[2]
    return f"`{toml_value(value)}`"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(difference_table())
