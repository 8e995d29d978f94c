"""The ground under every reader: opening strangers' files, hashing them, and telling what they are."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from pathlib import Path

import pytest

from emaseg.files import open_file, open_regular, read_bytes, sha256_of
from emaseg.signatures import kind_of


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
