"""What a packed data set costs and saves beside its files: 2,000 small images, read whole in a shuffled order.

    python -m tests.benchmarks.bench_packed [rounds] [images]

Images are smooth noise: JPEGs of 96 x 128 at quality 90, labels PNG; $TMPDIR chooses the disk. They are packed as
data_scripts/pack.py does, and every stored byte and every decoded sample is first compared with the files. The sides
take turns, each round in an order of its own that both get. Shown are medians of the rounds:

    bytes        both files of each sample, not decoded: what the packed file can save
    samples      decoded, as training reads them
    warm         the files are in the page cache
    cold         before each round the kernel was asked to drop their pages (POSIX_FADV_DONTNEED); "disk" is what it
                 then fetched. Folders and inodes stay in memory: of a network file system, where each open is a
                 question to a server, this shows nothing.
    opens        files opened, counted in a round of its own
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from emaseg.data.dataset import read_pair
from emaseg.data.files.label_files import index_rule
from emaseg.data.sets.packed import PackedFiles, open_packed, pack
from emaseg.data.sets.pairs import PairedFiles
from tests.benchmarks.bench_loading import CLASSES, made

SIZE = (96, 128)

Read = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Spent:
    """One pass over all samples: seconds of CPU and of wall, bytes fetched from the disk (None = not told here)."""

    cpu: float
    wall: float
    disk: int | None


# ---------------------------------------------------------------------------------------------------- the sides
def sides(folder: Path, count: int) -> tuple[PairedFiles, PackedFiles]:
    """The same samples twice; on the disk, so that their pages can be dropped."""
    images = folder / "files"
    images.mkdir()
    rule = index_rule(tuple(map(str, range(CLASSES))), ignore=(255,))
    files = PairedFiles(made(images, count, SIZE, ".jpg"), rule, np.zeros((CLASSES, 3), np.uint8))
    for _ in pack(files, folder / "train.h5"):
        pass
    for path in paths(files):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return files, open_packed(folder / "train.h5")


def compare(files: PairedFiles, packed: PackedFiles) -> None:
    """Stop unless both sides hold the same bytes and give the same samples."""
    for index in range(len(files)):
        ours, theirs = packed.open(index), files.open(index)
        same = packed.stored(index) == stored(files, index)
        if not (same and np.array_equal(ours.image(), theirs.image()) and np.array_equal(ours.label(), theirs.label())):
            raise SystemExit(f"sample {index} differs: {packed.name(index)}")


def stored(files: PairedFiles, index: int) -> tuple[bytes, bytes]:
    image, label = files.items[index]
    return image.read_bytes(), label.read_bytes()


def paths(dataset: PairedFiles | PackedFiles) -> list[Path]:
    return [dataset.path] if isinstance(dataset, PackedFiles) else [path for pair in dataset.items for path in pair]


def readers(files: PairedFiles, packed: PackedFiles, what: str) -> tuple[Read, Read]:
    if what == "samples":
        return partial(read_pair, files), partial(read_pair, packed)
    return lambda index: stored(files, index), packed.stored


# -------------------------------------------------------------------------------------------- clock and counters
def fetched() -> int | None:
    """Bytes that this process had fetched from a disk so far; None where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)


def drop(dataset: PairedFiles | PackedFiles) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in paths(dataset):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(read: Read, order: Sequence[int]) -> Spent:
    before, cpu, wall = fetched(), time.process_time(), time.perf_counter()
    for index in order:
        read(index)
    cpu, wall, after = time.process_time() - cpu, time.perf_counter() - wall, fetched()
    return Spent(cpu, wall, None if before is None or after is None else after - before)


def opens(read: Read, order: Sequence[int]) -> int:
    """Files opened in one pass. The hook stays for good, so count after all timing."""
    counted = [0]

    def hook(event: str, told: tuple[object, ...]) -> None:
        counted[0] += event == "open" and not isinstance(told[0], int)  # a descriptor is open already

    sys.addaudithook(hook)
    for index in order:
        read(index)
    return counted[0]


# ---------------------------------------------------------------------------------------------------- the table
def measure(files: PairedFiles, packed: PackedFiles, what: str, cold: bool, rounds: int) -> None:
    datasets, both = (files, packed), readers(files, packed, what)
    spent: tuple[list[Spent], list[Spent]] = ([], [])
    for turn in range(rounds + 1):
        order = np.random.default_rng(turn).permutation(len(files)).tolist()
        for dataset, read, results in zip(datasets, both, spent, strict=True):
            if cold:
                drop(dataset)
            results.append(timed(read, order))
    for name, results in zip(("files", "packed"), spent, strict=True):
        kept = results[1:]  # the first round fills the caches
        cpu, wall = (1e3 * statistics.median(row) for row in zip(*((s.cpu, s.wall) for s in kept), strict=True))
        disk = [s.disk for s in kept if s.disk is not None]
        mib = f"{statistics.median(disk) / 2**20:.1f}" if disk else "-"
        state = "cold" if cold else "warm"
        print(f"{what:10}{state:8}{name:10}{cpu:10.0f}{wall:10.0f}{mib:>10}{len(files) / wall * 1e3:12.0f}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    rounds, count = (int(text) for text in (*sys.argv[1:], *("5", "2000")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        files, packed = sides(Path(folder), count)
        compare(files, packed)
        size = sum(path.stat().st_size for path in paths(files)) / 2**20
        print(f"{count:,} samples, {size:.1f} MiB of files, {packed.path.stat().st_size / 2**20:.1f} MiB packed; equal")
        print(f"{'':28}{'CPU ms':>10}{'wall ms':>10}{'disk MiB':>10}{'samples/s':>12}")
        for what in ("bytes", "samples"):
            for cold in (False, True) if hasattr(os, "posix_fadvise") else (False,):
                measure(files, packed, what, cold, rounds)
        order, packed = list(range(count)), open_packed(packed.path)  # anew: the one open that it needs counts
        told = [
            f"{name} {opens(read, order):,}"
            for name, read in zip(("files", "packed"), readers(files, packed, "samples"), strict=True)
        ]
        print(f"opens of one pass: {', '.join(told)}")


if __name__ == "__main__":
    main()
