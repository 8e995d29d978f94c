"""Annotations of any tool into one label map for each image: `emaseg convert`.

Room: convert; above starter and data. source.py finds files, formats.py recognises the tool, a file for each format
reads what it wrote, painting.py draws it, output.py writes it, run.py does all of it.
"""

from __future__ import annotations

from emaseg.convert.export import Left
from emaseg.convert.formats import FORMATS
from emaseg.convert.painting import OVERLAPS, Overlap
from emaseg.convert.run import ClassTotal, Conversion, Options, convert, report_json

__all__ = ["FORMATS", "OVERLAPS", "ClassTotal", "Conversion", "Left", "Options", "Overlap", "convert", "report_json"]
