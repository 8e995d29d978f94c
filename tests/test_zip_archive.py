"""Archives read in one way only, and new ones made of their members."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from emaseg.files import open_file
from emaseg.weights.reading import read_content
from emaseg.zip_archive import AmbiguousError, DamagedError, Member, read_member, read_members, rebuilt


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"folder/{name}"), content)
    return file.getvalue()


def test_an_archive_is_read_and_rebuilt(tmp_path: Path) -> None:
    """Protects the one reading: any reader finds in the new archive what the strict one found in the old."""
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(a=b"first", b=b"", c=b"third" * 1000))
    with open_file(path) as file:
        members = read_members(file)
        assert list(members) == ["a", "b", "c"]
        assert read_member(file, members["c"]) == b"third" * 1000
        new = io.BufferedReader(rebuilt(file, {"new/c": members["c"], "new/a": b"other", "new/b": members["b"]}))
        with zipfile.ZipFile(new) as archive:
            assert archive.testzip() is None
            assert [archive.read(f"new/{name}") for name in "abc"] == [b"other", b"", b"third" * 1000]


def test_every_cut_and_every_addition_is_refused(tmp_path: Path) -> None:
    """Protects both readers of archives at every byte: one that is cut, or has bytes in front or behind, is no archive;
    and whatever byte is changed, the members are the same or the archive is refused."""
    whole, path = zipped(a=b"first", b=b"second"), tmp_path / "a.zip"
    for other in (*(whole[:end] for end in range(len(whole))), b"x" + whole, whole + b"\0"):
        path.write_bytes(other)
        with open_file(path) as file, pytest.raises(DamagedError):
            read_members(file)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with open_file(path) as file:
            try:
                found = [read_member(file, member) for member in read_members(file).values()]
            except DamagedError:
                continue
            assert found == [b"first", b"second"]


def test_an_extra_field_that_is_shorter_than_it_says(tmp_path: Path) -> None:
    """Protects from a struct.error: an entry whose size stands in an extra field, of which a part is missing."""
    content = bytearray(zipped(a=b"first"))
    entry, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    content[entry + 24 : entry + 28] = b"\xff" * 4
    content[entry + 30 : entry + 32] = (12).to_bytes(2, "little")
    content[end + 12 : end + 16] = (end - entry + 12).to_bytes(4, "little")
    content[end:end] = b"\1\0\x20\0" + bytes(8)
    (tmp_path / "a.zip").write_bytes(content)
    with open_file(tmp_path / "a.zip") as file, pytest.raises(DamagedError, match="its directory is damaged"):
        read_members(file)


@pytest.mark.parametrize("flags", [0x0001, 0x0002, 0x0020, 0x2000])
def test_members_of_a_kind_that_pytorch_does_not_write(tmp_path: Path, flags: int) -> None:
    """Protects from encrypted members and the like, whose bytes are not what they seem."""
    content = bytearray(zipped(a=b"first"))
    entry = content.index(b"PK\1\2")
    content[entry + 8 : entry + 10] = flags.to_bytes(2, "little")
    (tmp_path / "a.zip").write_bytes(content)
    with open_file(tmp_path / "a.zip") as file, pytest.raises(AmbiguousError, match="encrypted"):
        read_members(file)


def test_places_beyond_4_gib(tmp_path: Path) -> None:
    """Protects checkpoints of the largest networks with AdamW and an average: what lies behind 4 GiB is found there."""
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(3 << 30)  # takes no room on the disk
    with open_file(tmp_path / "holes") as file:
        hole = Member("hole", 0, 3 << 30, 0)
        new = io.BufferedReader(rebuilt(file, {"new/a": hole, "new/b": hole, "new/c": b"the last"}))
        with zipfile.ZipFile(new) as archive:
            places = [info.header_offset for info in archive.infolist()]
            assert archive.read("new/c") == b"the last"
        assert places[2] > 6 << 30
        assert places == sorted(places)


@pytest.mark.slow
def test_weights_of_more_than_4_gib(tmp_path: Path) -> None:
    """Protects days of training: PyTorch writes such a file, and this program reads it again, whole and strictly."""
    parts = {name: torch.full((600_000_000,), value) for name, value in (("a", 1.0), ("b", 2.0))}
    torch.save({**parts, "last": torch.arange(5)}, tmp_path / "large.pth")
    size = (tmp_path / "large.pth").stat().st_size
    assert size > 1 << 32
    del parts
    content = read_content(tmp_path / "large.pth")
    assert content["last"].tolist() == [0, 1, 2, 3, 4]
    assert [(float(content[name].min()), float(content[name].max())) for name in "ab"] == [(1.0, 1.0), (2.0, 2.0)]
