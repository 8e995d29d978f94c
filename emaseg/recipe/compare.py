"""Which keys of a recipe's section differ between two recipes.

Room: recipe.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, is_dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """A key, as `section.key`, or a whole section, as `section`, with its value before and after."""

    key: str
    before: object
    after: object


def differences(section: str, before: object, after: object, free: Collection[str] = ()) -> list[Difference]:
    """The keys of a section in which two recipes differ, in the order of the section.

    A section of another kind has other keys: then `kind` alone differs. A section that only one of them has, and a plain
    value such as the title, differs as a whole.

    Args:
        section: its name, for the answer.
        before, after: the section, or None where it is left out.
        free: keys that may differ.
    """
    if not (is_dataclass(before) and is_dataclass(after)):
        return [] if before == after else [Difference(section, before, after)]
    if getattr(before, "kind", None) != getattr(after, "kind", None):
        return [Difference(f"{section}.kind", getattr(before, "kind", None), getattr(after, "kind", None))]
    keys = [field.name for field in fields(before) if field.name not in free]
    pairs = [(key, getattr(before, key), getattr(after, key)) for key in keys]
    return [Difference(f"{section}.{key}", old, new) for key, old, new in pairs if old != new]
