"""A data set of image files, each with a mask file; and the list files and folders that such sets are made of.

Room: data. Imports errors, images, label_files, part, reading, sample. Legend: H W image height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emaseg.data.images import image_size, read_image
from emaseg.data.label_files import LabelRule, read_label
from emaseg.data.part import read_part
from emaseg.data.reading import read_ordinary
from emaseg.data.sample import Box, Part, Sample, UInt8, Unread
from emaseg.errors import DataError, nearest

_LONGEST = 256 << 20  # bytes of a list file: millions of names


@dataclass(frozen=True, slots=True, eq=False)
class PairedFiles:
    """Images with masks, as files; satisfies sample.LabelFirst.

    items: (image, mask) paths. rule: what the masks' values mean. palette: (K, 3) uint8 RGB, for pictures of results.
    layout: how the files were recognised, for people, where a data set has several layouts; "" = nothing to say.
    """

    items: tuple[tuple[Path, Path], ...]
    rule: LabelRule
    palette: UInt8
    layout: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.rule.classes

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return str(self.items[index][0])

    def read(self, index: int) -> Sample:
        """Read image and mask.

        Raises:
            DataError: one of them is missing, damaged or mislabelled, or their sizes differ.
        """
        image_path, label_path = self.items[index]
        image = read_image(image_path)
        label = read_label(label_path, self.rule)
        check_sizes(image_path, image.shape[:2], label_path, label.shape)
        return Sample(image=image, label=label, name=str(image_path))

    def begin(self, index: int) -> Unread:
        """Read the mask; the image waits until a crop is drawn on it."""
        image_path, label_path = self.items[index]
        return unread(image_path, str(image_path), read_label(label_path, self.rule), label_path)

    def read_label(self, index: int) -> UInt8:
        """(H, W) uint8 train ids of one mask, its size checked against the image's header; several times faster.

        Raises:
            DataError: as read, but damage behind the image's header stays unseen.
        """
        image_path, label_path = self.items[index]
        label = read_label(label_path, self.rule)
        check_sizes(image_path, image_size(image_path), label_path, label.shape)
        return label


def unread(image: Path | bytes, name: str, label: UInt8, label_path: Path) -> Unread:
    """A sample whose image is still a file, or the bytes of one that messages call `name`."""

    def part(box: Box) -> Part:
        read = read_part(image, name, box)
        check_sizes(Path(name), read.size, label_path, label.shape)
        return read

    return Unread(label, name, part)


def check_sizes(image_path: Path, image: Sequence[int], label_path: Path, label: Sequence[int]) -> None:
    """Stop unless image and mask have one size.

    Raises:
        DataError: they have not.
    """
    if tuple(image) == tuple(label):
        return
    turned = tuple(image) == tuple(label)[::-1]
    raise DataError(
        f"{image_path} is {image[0]} x {image[1]} (height x width), but its mask {label_path} is {label[0]} x {label[1]}",
        "the mask seems drawn on the unrotated picture (EXIF orientation): turn it by 90 degrees"
        if turned
        else "image and mask must have one size: export the mask again, or resize it by nearest neighbour",
    )


# -------------------------------------------------------------------------------------- folders and list files
def need_folder(path: Path, what: str, hint: str) -> None:
    """Stop unless `path` is a folder.

    Raises:
        DataError: it is missing or a file; says which folders its nearest existing parent holds.
    """
    try:
        if path.is_dir():
            return
        if path.exists():
            raise DataError(f"{path}: {what} should be a folder, but is a file", hint)
        parent = next(above for above in path.parents if above.is_dir() or above == above.parent)
        found = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error.strerror})", "check the permissions") from error
    near = nearest(path.relative_to(parent).parts[0], found)
    raise DataError(
        f"{path}: {what} is missing; {parent} holds {first_few(found, 8) or 'no folders'}",
        f"{near} {hint}" if near else hint,
    )


def read_names(path: Path) -> list[str]:
    """The lines of a list file, stripped, blank ones dropped; any line ending.

    Raises:
        DataError: the file is unreadable, is not text, or names nothing.
    """
    try:
        text = read_ordinary(path, _LONGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})", "save the list as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: the list file cannot be read ({error.strerror})", "check the path") from error
    if "\0" in text:  # no file name holds one
        raise DataError(f"{path}: not a text file (character {text.index(chr(0)) + 1} is null)", "write the list again")
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name]
    if not names:
        raise DataError(f"{path}: the list file is empty", "write one image name a line")
    return names


def first_few(names: Iterable[object], count: int = 3) -> str:
    """`a, b, c and 7 more`."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - count:,} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
