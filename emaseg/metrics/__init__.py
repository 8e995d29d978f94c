"""What a segmentation is scored by: counts of pixels that can be added over images and processes, and scores of them.

Room: metrics.
"""

from emaseg.metrics.boundary import RADII
from emaseg.metrics.confusion import ClassScore, Confusion, Scores, Status
from emaseg.metrics.details import BoundaryScore, CalibrationScore, ClassDetail, Details, Interval, details_of
from emaseg.metrics.examples import Example, Examples
from emaseg.metrics.tally import ImageCounts, Tally

__all__ = [
    "RADII",
    "BoundaryScore",
    "CalibrationScore",
    "ClassDetail",
    "ClassScore",
    "Confusion",
    "Details",
    "Example",
    "Examples",
    "ImageCounts",
    "Interval",
    "Scores",
    "Status",
    "Tally",
    "details_of",
]
