"""A first recipe for a folder of images and masks: `emaseg init`.

Room: starter; above data and recipe. layout.py finds the files, values.py reads what the masks hold,
names.py the class names that lie beside them, write.py makes the recipe. Writes nothing.
"""

from __future__ import annotations

from emaseg.starter.write import Machine, Started, start_recipe

__all__ = ["Machine", "Started", "start_recipe"]
