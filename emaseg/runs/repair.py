"""What the files of metrics have in common when a resumed run repairs them: reading one, and putting back what is kept.

Room: runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from emaseg.files import fault, is_file, is_shared, read_bytes, set_aside, write_text


def read_metrics(path: Path) -> tuple[bytes | None, list[str]]:
    """What a file holds, None where there is none; and a line where something else had its name, which is set aside.

    Raises:
        SystemFault: it cannot be read.
    """
    if not is_file(path):
        return None, [f"{path}: is not a file; it is kept as {set_aside(path).name}"] if os.path.lexists(path) else []
    try:
        return read_bytes(path), []
    except OSError as error:
        raise fault(error, path, "reading it") from error


def put_back(
    path: Path, before: bytes, head: Sequence[bytes], kept: Sequence[bytes], *, damaged: str, torn: bytes
) -> list[str]:
    """Let a file hold the lines that are kept, below its head; a file that none is left of goes.

    It is then a file of this run alone: lines that are added later must not come into what a link leads to, nor into a
    second name of the same file.

    Args:
        before: what it holds.
        damaged: what its lines are called, such as rows, where it is to be set aside as it was; "" = it is not.
        torn: what stands behind the last line end.

    Returns:
        Lines that say what was not as it should be.
    """
    notes, shared = [], is_shared(path)
    if damaged:
        aside = set_aside(path)
        notes.append(f"{path}: damaged; {len(kept)} {damaged} could be kept, the file as it was is {aside.name}")
    elif torn:
        notes.append(f"{path}: its last line was half written and is gone")
    whole = b"".join(line + b"\n" for line in (*head, *kept))
    if whole != before or shared:
        if kept:
            write_text(path, whole.decode("ascii"))
        else:
            path.unlink(missing_ok=True)
    return notes
