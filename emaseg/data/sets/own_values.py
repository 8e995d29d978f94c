"""The values that a data set's own mask files hold: the reader's rule, the other way round.

Room: data/sets. Legend: K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from emaseg.data.files.label_files import LabelRule, index_rule
from emaseg.data.label_sets import label_set
from emaseg.data.sets.ade20k import ade20k_rule
from emaseg.data.sets.cityscapes import label_rule
from emaseg.data.sets.coco_voc import coco_voc_rule
from emaseg.data.sets.cocostuff import cocostuff_rule
from emaseg.data.sets.pascal_context import numbered_rule
from emaseg.recipe.data import IGNORE, CocoStuffData, Data, FolderData, PascalContextData

_WIDE_IGNORE = 65535  # where 255 is a class


@dataclass(frozen=True, slots=True)
class OwnValues:
    """classes: the value of each of the K classes. ignore: of pixels without a class. Both 0..65535."""

    classes: tuple[int, ...]
    ignore: int

    @property
    def wide(self) -> bool:
        """Whether they need 16 bits."""
        return max(*self.classes, self.ignore) > 255


def own_values(data: Data) -> OwnValues:
    """What a mask file of this data set holds for each class.

    Of a data set with several kinds of label files those of its owner: Cityscapes' labelIds, COCO-Stuff's categories.
    """
    classes = label_set(data).classes
    match data:
        case FolderData():
            return _of_folder(data)
        case CocoStuffData():
            return _turned(cocostuff_rule(classes, "mat" if data.kind == "cocostuff10k" else "pixelmap"))
        case PascalContextData():
            return _turned(numbered_rule(classes, data.numbering))
    rules = {
        "cityscapes": lambda: label_rule(classes, "labelIds"),
        "ade20k": lambda: ade20k_rule(classes),
        "coco_voc21": lambda: coco_voc_rule(classes),
    }
    return _turned(rules[data.kind]() if data.kind in rules else index_rule(classes))


def _turned(rule: LabelRule) -> OwnValues:
    ignored = rule.lut.find(IGNORE)
    return OwnValues(tuple(rule.lut.index(k) for k in range(rule.num_classes)), ignored if ignored >= 0 else IGNORE)


def _of_folder(data: FolderData) -> OwnValues:
    values = data.values or tuple(range(len(data.classes)))
    free = (value for value in (*data.ignore, IGNORE, _WIDE_IGNORE) if value not in values)
    return OwnValues(tuple(values), next(free))
