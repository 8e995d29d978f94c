"""What an earlier run left in the output, and what of it may go: never a file that somebody made or changed.

Room: convert.
"""

from __future__ import annotations

import contextlib
import filecmp
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from emaseg.convert.classes import read_names
from emaseg.convert.export import Left
from emaseg.convert.mask_files import Made, as_written, read_made
from emaseg.convert.output import Done, Job
from emaseg.data.sets.folder import walk
from emaseg.data.sets.names import stem_of
from emaseg.errors import RecipeError
from emaseg.words import quoted_path

__all__ = ["Swept", "check_names", "sweep"]


@dataclass(frozen=True, slots=True)
class Swept:
    """Relative paths. gone: masks that were removed, with their images. failed: masks of images that could not be
    converted this time. foreign: what no conversion left there as it is, or whose original is gone."""

    gone: tuple[str, ...]
    failed: tuple[str, ...]
    foreign: tuple[str, ...]


def check_names(out: Path, names: Sequence[str]) -> bool:
    """Whether the classes are other ones than those that are there; stops where masks are there, too, that somebody has
    changed.

    Raises:
        RecipeError: they would mean other classes.
    """
    before = read_names(out)
    if before is None or before == dict(enumerate(names)):
        return False
    if before and before.items() <= dict(enumerate(names)).items():  # others were added after them
        return False
    for name in walk(out / "masks", None) if (out / "masks").is_dir() else ():
        if name.lower().endswith(".png") and not as_written(out / "masks" / name):
            raise RecipeError(
                f"--out {out}: masks/{name} was changed since it was written, and the classes are no longer those of "
                f"{out.name}: its numbers would mean other ones",
                f"name a new folder, such as --out {quoted_path(f'{out}_new')}",
            )
    return True


def sweep(job: Job, done: Sequence[Done], left: Iterable[Left], originals: Iterable[Path], *, renamed: bool) -> Swept:
    """Remove the pairs of an earlier run whose annotations are gone: each with a mask as it was written, and an image as
    it was put there, whose original is there still, wherever it lies now. Those of images that only failed this time stay.

    A mask of other classes goes in any case, for its numbers would mean others. renamed: those of older versions, which
    do not say their classes, have other ones. originals: all images of the source.
    """
    root, out = job.root, job.out
    wanted = {name for one in done for name in (one.place.image, one.place.mask)}
    failing = {stem for one in left if one.fault for stem in _stems(one.name)}
    there = {
        f"{part}/{name}" for part in ("images", "masks") if (out / part).is_dir() for name in walk(out / part, None)
    }
    sizes: dict[int, list[Path]] = {}
    for path in originals:
        with contextlib.suppress(OSError):
            sizes.setdefault(path.stat().st_size, []).append(path)
    gone, failed, foreign = list[str](), list[str](), set[str]()
    stale = there - wanted
    images = {stem_of(name.removeprefix("images/")): name for name in stale if name.startswith("images/")}
    for mask in sorted(name for name in stale if name.startswith("masks/")):
        image = images.pop(stem_of(mask.removeprefix("masks/")), "")
        made = read_made(out / mask)
        if made is None or not as_written(out / mask):
            foreign |= {mask, image}
            continue
        other = made.names != job.classes.names[: len(made.names)] if made.names else renamed
        whole = bool(image) and _may_go(root, out / image, made, sizes)
        if _stems(made.item or mask) & failing and not other:
            failed.append(mask)
        elif whole or other:
            (out / mask).unlink()
            gone.append(mask)
            if whole:
                (out / image).unlink()
            else:
                foreign.add(image)
        else:
            foreign |= {mask, image}
    return Swept(tuple(gone), tuple(failed), tuple(sorted({*foreign, *images.values()} - {""})))


def _may_go(root: Path, image: Path, made: Made, sizes: Mapping[int, Sequence[Path]]) -> bool:
    """Whether an image is as it was put there and its original is there still, or whether the source has the same one.

    sizes: the images of the source by their bytes' number.
    """
    if image.is_symlink():
        return False
    stat = image.stat()
    if made.item and (root / made.item).is_file() and (stat.st_size, stat.st_mtime_ns) == made.file:
        return True
    alike = sizes.get(stat.st_size, ())
    return any(path.samefile(image) for path in alike) or any(filecmp.cmp(path, image, shallow=False) for path in alike)


def _stems(name: str) -> frozenset[str]:
    """What an image and its annotation may have in common: a.jpg, a.json, a.jpg.json, or 1234abcd-a.jpg."""
    stem = PurePosixPath(name.replace("\\", "/")).stem
    short = re.sub(r"^[0-9a-f]{8}-", "", stem)
    return frozenset({stem, short, PurePosixPath(stem).stem, PurePosixPath(short).stem} - {""})
