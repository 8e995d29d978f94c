"""A disk that gets full at every moment of a run: exit 4, and once there is space --resume ends as if nothing had been.

    python -m tests.stress.full_disk [SIZES] [--small]

A small tmpfs for each size where mounting is allowed; else a limit on the size of a file.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.stress.common import DEMO, differences, small_recipe, table, train, uninterrupted, warm


def full_disk(count: int, small: bool, top: Path) -> bool:
    """Whether nothing was lost at `count` sizes of the disk."""
    base, log = small_recipe(top) if small else (*DEMO, "--set", "train.keep_every=4"), top / "log"
    codes = Counter([uninterrupted(base, top / "whole", log)])
    files = [path.stat().st_size for path in (top / "whole").rglob("*") if path.is_file()]
    mounted = can_mount(top)
    most = sum(files) + max(files) if mounted else max(files)
    wrong, resumed = [], Counter[int]()
    for i in range(count):
        size = most * i // count
        with disk(top / f"disk{i}", size, mounted) as (out, limit, free):
            codes[train((*base, "--out", out), log, limit)] += 1
            free()
            resumed[train((*base, "--out", out, "--resume"), log)] += 1
            if (out / "samples.png").is_file():
                wrong += [f"{size} bytes: {what}" for what in differences(top / "whole", out)]
    kind = "tmpfs" if mounted else "limit on files"
    rows = [("sizes", f"{count}, up to {most} bytes ({kind})"), ("exit codes when full", dict(codes))]
    rows += [("exit codes resumed", dict(resumed)), ("different at the end", str(wrong or "nothing"))]
    table(f"full disk under {base[0]}", rows)
    good = not wrong and set(codes) <= {0, 4} and codes[4] > 0 and set(resumed) == {0}
    if not good:
        print(log.read_text())
    return good


def can_mount(top: Path) -> bool:
    """Whether this user may mount a tmpfs."""
    probe = top / "probe"
    probe.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", probe], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["umount", probe], check=True)
    return True


@contextlib.contextmanager
def disk(folder: Path, size: int, mounted: bool) -> Iterator[tuple[Path, object, object]]:
    """A run folder's path, what to do in the process that shall find the disk full, and what frees the disk."""
    folder.mkdir()
    if not mounted:
        yield folder / "run", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), lambda: None
        return
    pages = max(1, size // 4096)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"nr_blocks={pages}", "tmpfs", folder], check=True)
    try:
        free = ["mount", "-o", "remount,size=1g", folder]
        yield folder / "run", lambda: None, lambda: subprocess.run(free, check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        warm(Path(top))
        sys.exit(not full_disk(given.count, given.small, Path(top)))
