"""The ground under every reader: opening strangers' files, hashing them, and telling what they are."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import socket
import zipfile
from pathlib import Path

import pytest

from emaseg.files import open_file, open_regular, read_bytes, sha256_of
from emaseg.signatures import kind_of
from emaseg.zip_archive import AmbiguousError, DamagedError, read_member, read_members, rebuilt


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects every reader from waiting for ever or reading without end: what is no file is refused at once."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        os.symlink("/dev/zero", "endless")
        for name in ("pipe", "socket", "endless", "/dev/tty", "/dev/null"):
            with pytest.raises(OSError, match=r"ordinary file|No such device") as caught:
                open_regular(name)
            assert caught.value.errno in (errno.ENODEV, errno.ENXIO)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="no file can have this name"):
        open_regular("a\0b")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")


def test_bytes_and_their_hash(tmp_path: Path) -> None:
    """Protects records and digests: the hash of a stretch is that of its bytes, and no file is larger than allowed."""
    content = bytes(range(256)) * 10
    (tmp_path / "a").write_bytes(content)
    assert read_bytes(tmp_path / "a") == content
    with pytest.raises(OSError, match="larger than 100 bytes"):
        read_bytes(tmp_path / "a", 100)
    with open_file(tmp_path / "a") as file:
        assert sha256_of(file) == hashlib.sha256(content).hexdigest()
        assert sha256_of(file, 5, 700) == hashlib.sha256(content[5:705]).hexdigest()
        assert sha256_of(file, 2560) == sha256_of(file, 0, 0) == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP image"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "a sound or video file"),
        (b"BM\x10\0\0\0\0\0\0\0", "a BMP image"),
        (b"BMW and other cars", ""),
        (b"\xef\xbb\xbf \r\n<HTML>", "an HTML page"),
        (b"\0\0\0\x18ftypheic", "a HEIC image"),
        (b"\x40\0\0\0\0\0\0\0{", ""),
        (b'\x40\0\0\0\0\0\0\0{"a":', "a safetensors file"),
        (b"milk, eggs", ""),
        (b"", ""),
    ],
)
def test_first_bytes_tell_the_kind(head: bytes, kind: str) -> None:
    """Protects messages from calling a file what it is not."""
    assert kind_of(head) == kind


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


@pytest.mark.parametrize("flags", [0x0001, 0x0002, 0x0020, 0x2000])
def test_members_of_a_kind_that_pytorch_does_not_write(tmp_path: Path, flags: int) -> None:
    """Protects from encrypted members and the like, whose bytes are not what they seem."""
    content = bytearray(zipped(a=b"first"))
    entry = content.index(b"PK\1\2")
    content[entry + 8 : entry + 10] = flags.to_bytes(2, "little")
    (tmp_path / "a.zip").write_bytes(content)
    with open_file(tmp_path / "a.zip") as file, pytest.raises(AmbiguousError, match="encrypted"):
        read_members(file)
