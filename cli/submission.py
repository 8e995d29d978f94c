"""`emaseg eval --submit`: the ZIP for a server that has the labels, before the work and after it.

Room: cli.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emaseg.errors import RecipeError
from emaseg.files import fault
from emaseg.words import quoted_path

from .options import SCHEMA

if TYPE_CHECKING:
    from emaseg.data.dataset import Dataset
    from emaseg.evaluation.evaluate import Comparison
    from emaseg.evaluation.submit import Submission
    from emaseg.recipe.data import Data


def check_archive(path: Path) -> None:
    """Before any work: the name and the place of the ZIP.

    Raises:
        RecipeError: the name is not a ZIP's.
        SystemFault: it cannot be written there.
    """
    if path.is_dir() or path.suffix.lower() != ".zip":
        name = path / "results.zip" if path.is_dir() else path.with_name(path.stem.removesuffix(".tar") + ".zip")
        raise RecipeError(f"--submit {path}: not the name of a ZIP file", f"--submit {quoted_path(name)}")
    if os.path.lexists(path):
        raise RecipeError(f"--submit {path}: already exists", "remove it, or name another file with --submit")
    folder = next(above for above in path.absolute().parents if os.path.exists(above))
    if not os.path.isdir(folder):
        raise fault(NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), folder, "writing the ZIP there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise fault(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), folder, "writing the ZIP there")


def submission_of(path: Path, data: Data) -> Submission:
    """
    Raises:
        RecipeError: what the data set's server takes is not known.
    """
    from emaseg.evaluation.submit import KINDS, Submission, layout_of

    layout = layout_of(data)
    if layout is None:
        raise RecipeError(
            f"--submit {path}: what a server of {data.kind} takes is not known; possible: data of kind {', '.join(KINDS)}",
            "leave --submit out; emaseg predict writes the label maps of any images",
        )
    return Submission(path, layout)


def check_unscored(dataset: Dataset, data: Data, submission: Submission | None, scoring: Sequence[str]) -> None:
    """Before any work on images whose labels are not published. scoring: the given options that need scores.

    Raises:
        RecipeError: scores are asked for.
    """
    from emaseg.evaluation.submit import layout_of

    what = f"the labels of these {len(dataset):,} images are not published, so nothing can be scored here"
    if submission is None:
        labelled = "choose labelled images: --split val"
        server = f"write the label maps for {dataset.withheld_by}: --submit results.zip"
        hint = labelled if layout_of(data) is None else f"{server}; or {labelled}"
        raise RecipeError(f"{what} ({dataset.layout or data.kind})", hint)
    if scoring:
        raise RecipeError(f"{scoring[0]}: {what}", f"leave {' and '.join(scoring)} out")


def tell_submission(
    submission: Submission,
    images: int,
    comparison: Comparison,
    protocol: str,
    weights_sha256: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """What is in a ZIP that only its server can score."""
    from .render import percent, print_grid, print_json, print_lines, print_path

    if as_json:
        content = {"submission": str(submission.path), "images": images, "published": comparison.miou}
        print_json({"schema": SCHEMA, **content, "protocol": protocol, "weights_sha256": weights_sha256})
    else:
        published = comparison.reason or percent(comparison.miou)
        print_grid(
            [
                ("label maps", str(images)),
                ("scored by", submission.layout.server),
                ("published", published),
                ("protocol", protocol),
            ]
        )
        print_path(submission.path)
    if submission.layout.repack and not quiet:
        command = submission.layout.repack.format(quoted_path(submission.path))
        print_lines(["users report that this server takes .tar.gz only; to repack the ZIP:", f"  {command}"])
