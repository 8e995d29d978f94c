"""What the scripts of this folder share: compare the splits of a published data set with the owners' numbers.

Not a script of its own. Prints a plain-text table of the splits and a histogram of the labels that were read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emaseg.data.checks import CheckReport, check_dataset
from emaseg.data.dataset import Dataset
from emaseg.errors import DataError, UserError

# Opens a split of the data set below the folder.
Opener = Callable[[Path, str], Dataset]


@dataclass(frozen=True, slots=True)
class Line:
    """One split: what was found, and the findings (nothing = as published)."""

    split: str
    published: int
    images: int | None = None
    report: CheckReport | None = None
    finding: str = ""
    layout: str = ""


def parser(description: str, *, sampling: bool = True) -> argparse.ArgumentParser:
    """The arguments that every script takes. sampling: whether it can read some of the labels only."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("root", type=Path, help="folder of the data set")
    if sampling:
        made.add_argument(
            "--sample",
            type=_count,
            default=100,
            metavar="N",
            help="labels to read of each split; 0 reads all (default 100)",
        )
    return made


def check_published(arguments: list[str], description: str, published: Mapping[str, int], opener: Opener) -> int:
    """What a script does that takes a folder and nothing else; the test split, which few people download, may lack."""
    given = parser(description).parse_args(arguments)
    return verify(given.root.resolve(), published, opener, given.sample, optional=("test",))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: not a number of labels")
    return int(text)


def verify(
    root: Path, published: Mapping[str, int], opener: Opener, sample: int, optional: tuple[str, ...] = ()
) -> int:
    """Check every split and print what was found; the exit code: 0 as published, 1 findings, 3 nothing to read.

    published: split -> number of images. sample: labels to read of each split, 0 = all. optional: splits that many
    people do not download; their absence is no finding.
    """
    if not root.is_dir():
        print(f"error: {root}: no such folder", file=sys.stderr)
        return DataError.exit_code
    lines = [
        _line(split, count, lambda name: opener(root, name), sample, optional) for split, count in published.items()
    ]
    _print_table(lines)
    _print_histogram([line.report for line in lines if line.report], _class_names(lines, root, opener))
    findings = [f"{line.split}: {line.finding}" for line in lines if line.finding]
    print("\n".join(findings) if findings else "everything agrees with the published set")
    return 1 if findings else 0


def _line(split: str, count: int, opener: Callable[[str], Dataset], sample: int, optional: tuple[str, ...]) -> Line:
    try:
        dataset = opener(split)
    except UserError as error:
        return Line(split, count, finding="" if split in optional else _words(error))
    images, findings, report = len(dataset), [], None
    if images != count:
        findings.append(f"{images:,} images, published are {count:,}")
    try:
        if dataset.withheld_by:
            for index in range(0, images, max(1, images // sample) if sample else 1):
                dataset.open(index).size()
        else:
            report = check_dataset(dataset, limit=sample or images)
    except UserError as error:
        findings.append(_words(error))
    return Line(split, count, images, report, "; ".join(findings), dataset.layout)


def _words(error: UserError) -> str:
    return error.message + (f"\n  try: {error.hint}" if error.hint else "")


def _class_names(lines: list[Line], root: Path, opener: Opener) -> tuple[str, ...]:
    split = next((line.split for line in lines if line.report), None)
    return opener(root, split).classes if split else ()


def _print_table(lines: list[Line]) -> None:
    print(f"{'split':<10}{'images':>10}{'published':>11}{'labels read':>13}{'ignored':>10}  result")
    for line in lines:
        images = "-" if line.images is None else f"{line.images:,}"
        read = f"{line.report.checked:,}" if line.report else "-"
        ignored = f"{100 * line.report.ignored_share:.1f} %" if line.report else "-"
        result = "see below" if line.finding else "ok" if line.images is not None else "not here"
        print(f"{line.split:<10}{images:>10}{line.published:>11,}{read:>13}{ignored:>10}  {result}")
    print()
    for line in lines:
        if line.layout:
            print(f"{line.split}: {line.layout}")


def _print_histogram(reports: list[CheckReport], names: tuple[str, ...]) -> None:
    """Share of the labelled pixels and number of labels for each class, over all splits."""
    if not reports:
        return
    total = max(sum(sum(report.class_pixels) for report in reports), 1)
    print(f"\n{'id':>4}{'pixels':>11}{'labels':>9}  class")
    for index, name in enumerate(names):
        pixels = sum(report.class_pixels[index] for report in reports)
        images = sum(report.class_images[index] for report in reports)
        print(f"{index:>4}{100 * pixels / total:>9.3f} %{images:>9,}  {name}")
    print()
