"""A sample whose image is a file, or the bytes of one.

Room: data/files. Legend: H W image height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from emaseg.data.dataset import Box, Pixels, Region, UInt8, check_sizes
from emaseg.data.files.bands import Bands, pixels_size, read_pixels
from emaseg.data.files.region import read_region

__all__ = ["FileSample"]


class FileSample:
    """An image file and the label that belongs to it; satisfies data.dataset.Sample.

    Args:
        image: the file, or its bytes.
        name: what messages call the image.
        read_label: reads the (H, W) label; None where it is not published.
        label_name: what messages call the label's file.
        bands: how the image is read; None = as 8-bit RGB.
    """

    __slots__ = ("_bands", "_image", "_label", "_label_name", "_read_label", "name")

    def __init__(
        self,
        image: Path | bytes,
        name: str,
        read_label: Callable[[], UInt8] | None = None,
        label_name: str = "",
        bands: Bands | None = None,
    ) -> None:
        self.name = name
        self._image = image
        self._read_label = read_label
        self._label_name = label_name
        self._bands = bands
        self._label: UInt8 | None = None

    def label(self) -> UInt8 | None:
        if self._label is None and self._read_label is not None:
            self._label = self._read_label()
        return self._label

    def image(self) -> Pixels:
        image = read_pixels(self._image, self.name, self._bands)
        self._check(image.shape[:2])
        return image

    def region(self, box: Box) -> Region:
        region = read_region(self._image, self.name, box) if self._bands is None else Region.whole(self.image())
        self._check(region.size)
        return region

    def size(self) -> tuple[int, int]:
        size = pixels_size(self._image, self.name, self._bands)
        self._check(size)
        return size

    def _check(self, size: tuple[int, ...]) -> None:
        if self._label is not None:
            check_sizes(self.name, size, self._label_name, self._label.shape)
