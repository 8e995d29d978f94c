"""What the schema says of one key, and the limits that many keys share.

Room: recipe.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any

# Upper limits. Threat: a recipe also comes inside an untrusted checkpoint, and a number without a limit is a machine
# that computes for ever or a memory that is full. They lie far above what any published or sensible run needs.
CHANNELS = 8192
EM_ITERATIONS = 100
SIDE = 16384  # pixels
SCALE = 8  # of an image
COUNT = 1_000_000_000  # steps or epochs
IMAGES = 10_000_000
SEED = 2**63 - 1  # what NumPy and PyTorch both take
FACTOR = 1_000_000  # loss weights and factors
RATE = 1e30  # a learning rate; beyond that single precision ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What a key means and which values it may hold; lives in the field's metadata under "rule".

    floor, ceiling, most and longest keep out what no run needs; messages and lists of keys name them only when a value
    lies beyond. extra: no published row sets it; a recipe that leaves it at its default is written without it.
    """

    doc: str
    low: float | None = None
    high: float | None = None
    above: float | None = None  # exclusive lower limit
    choices: tuple[Any, ...] = ()
    lengths: tuple[int, ...] = ()  # allowed lengths of an array
    floor: float | None = None
    ceiling: float | None = None
    most: int | None = None  # items of an array without such lengths; None = as many as a recipe file holds
    longest: int = 4096  # characters of a text
    extra: bool = False


def key(
    doc: str,
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] = (),
    lengths: tuple[int, ...] = (),
    floor: float | None = None,
    ceiling: float | None = None,
    most: int | None = None,
    longest: int = 4096,
    extra: bool = False,
) -> Any:
    """A recipe key: its one-line meaning, its default (none = the recipe must state it), its limits, and `extra`."""
    rule = Rule(
        doc=doc,
        low=low,
        high=high,
        above=above,
        choices=choices,
        lengths=lengths,
        floor=floor,
        ceiling=ceiling,
        most=most,
        longest=longest,
        extra=extra,
    )
    return field(default=default, metadata={"rule": rule})
