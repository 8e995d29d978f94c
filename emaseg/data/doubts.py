"""What does not stop a training but would spoil its result, as the labels show it.

Room: data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Doubt", "label_doubts"]

_MOST_IGNORED = 0.5
_NEARLY_ALL = 0.99  # of the labelled pixels


@dataclass(frozen=True, slots=True)
class Doubt:
    """kind: "left", "palettes", "ways", "bits", "range", "clear", "pages", "turned", "mostly", "one" or "duplicate".
    message: what and where.

    hint: the remedy.
    """

    kind: str
    message: str
    hint: str


def label_doubts(classes: Sequence[str], pixels: Sequence[int], ignored_share: float) -> list[Doubt]:
    """Of what the labels hold, in pixels of each class: mostly ignored pixels, or one class nearly everywhere."""
    found = []
    if ignored_share > _MOST_IGNORED:
        found.append(
            Doubt(
                "mostly",
                f"{ignored_share:.1%} of the pixels are ignored: neither learnt nor scored",
                "check data.ignore and data.ignore_colours: an object drawn in 255 is a class only with data.values; the "
                "value or colour of the background may be among the ignored ones",
            )
        )
    total, most = sum(pixels), max(pixels, default=0)
    binary = ignored_share and pixels[0] == total  # told as an error of its own
    if total and not binary and len(pixels) > 1 and most > _NEARLY_ALL * total:
        name = classes[pixels.index(most)]
        found.append(
            Doubt(
                "one",
                f'"{name}" covers {most / total:.1%} of the labelled pixels',
                "are all classes in the masks, and none of them ignored? If they are rare, judge by the IoU of each class, "
                "and set augment.max_class_share = 1.0, or nearly every crop is refused",
            )
        )
    return found
