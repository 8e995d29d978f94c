"""The recorded hash of a weight file: <file>.sha256 beside it, which sha256sum -c reads.

Room: weights; never torch. Protects from weights that changed since they were first seen: nobody publishes their hashes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from emaseg.errors import WeightsError
from emaseg.files import write_text
from emaseg.weights import opened

_LINE = re.compile(
    r"(?:# size ([0-9]{1,20}) mtime_ns ([0-9]{1,20})\n)?([0-9a-fA-F]{64})(?:[ \t]+.*)?\n?"
)  # also sha256sum's own


@dataclass(frozen=True, slots=True)
class Record:
    """What a file was when it was last hashed; size in bytes, time in nanoseconds."""

    sha256: str
    size: int
    mtime_ns: int


def record_of(path: Path) -> Path:
    """Where the hash of a weight file is recorded."""
    return path.with_name(f"{path.name}.sha256")


def read_record(path: Path) -> Record | None:
    """The record of the weight file `path`; None when there is none.

    Raises:
        WeightsError: there is one, but it is damaged, or we may not read it.
    """
    file = record_of(path)
    try:
        match = _LINE.fullmatch(opened.read_text(file))
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise forbidden(file, f", so {path.name} cannot be checked") from error
    except (OSError, UnicodeDecodeError):
        match = None
    if match is None:
        raise WeightsError(
            f"{file}: not a hash record, so {path.name} cannot be checked",
            f"remove {file} if you trust the weights; they are recorded afresh when next used",
        )
    return Record(match[3].lower(), int(match[1] or -1), int(match[2] or -1))


def write_record(path: Path, record: Record) -> None:
    comment = f"# size {record.size} mtime_ns {record.mtime_ns}"
    write_text(record_of(path), f"{comment}\n{record.sha256}  {path.name}\n")


def forbidden(path: Path, consequence: str = "") -> WeightsError:
    """We may not read `path`."""
    hint = f"ask its owner to allow it (chmod a+r {path}), or use a cache of your own: export EMASEG_CACHE=/path"
    return WeightsError(f"{path}: no permission to read it{consequence}", hint)
