"""The [published] section: what the results table says of the row that a recipe mirrors.

Room: recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

from emaseg.recipe.rule import FACTOR, key

# Keys that nothing reads: they tell people where a row comes from.
DOCUMENTATION = frozenset(f"published.{key}" for key in ("checkpoint_mirrors", "log", "note"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the published table says of this row; scores in percent."""

    table: str = key("document and row")
    miou: float | None = key("mIoU, single scale", None, low=0, high=100)
    miou_ms_flip: float | None = key("mIoU, several scales and flipping", None, low=0, high=100)
    miou_flip: float | None = key("mIoU, flipping", None, low=0, high=100)
    miou_other: float | None = key("mIoU whose protocol the table does not state", None, low=0, high=100)
    checkpoint: str = key("URL of the released weights", "")
    checkpoint_mirrors: tuple[str, ...] = key("the same weights under newer names", (), most=16)
    log: str = key("URL of the training log", "")
    memory_gb: float | None = key("training memory of one GPU", None, low=0, ceiling=FACTOR)
    images_per_second: float | None = key("inference speed", None, low=0, ceiling=FACTOR)
    hardware: str = key("hardware that those two were measured on", "")
    note: str = key("anything else that a reader should know", "")
