"""The ground under every reader: opening strangers' files, hashing them, and telling what they are."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import socket
import stat
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path
from typing import NoReturn

import pytest

from emaseg.errors import SystemFault
from emaseg.files import append_text, atomic, open_file, open_regular, read_bytes, sha256_of, write_text
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


def refused(*_: object, **__: object) -> NoReturn:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within the block a file takes no more bytes than these; a full disk says the same in another word."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0])
def test_a_new_file_has_the_rights_of_any_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    """Protects people on FAT and on shares without owners, where every chmod is refused; and the umask, which threads
    have in common: who sets it to read it may leave it at 0 for all of them."""
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            for name in ("chmod", "fchmod", "umask"):
                patch.setattr(os, name, refused)
            for text in ("first", "second"):
                write_text(tmp_path / "a", text)
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "second"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_lines_are_added_to_files_alone(tmp_path: Path) -> None:
    """Protects ~/.bashrc and the like: a run folder from somebody else may hold a link in the place of log.txt. The
    folder may be reached through a link."""
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "dangling").symlink_to("none")
    for name in ("link", "dangling"):
        with pytest.raises(SystemFault, match=f"{name}: is a link"):
            append_text(tmp_path / name, "line\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SystemFault, match="not an ordinary file"):
        append_text(tmp_path / "pipe", "line\n")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert not (tmp_path / "none").exists()
    (tmp_path / "folder").mkdir()
    (tmp_path / "way").symlink_to("folder")
    append_text(tmp_path / "way/log.txt", "a\n")
    append_text(tmp_path / "way/log.txt", "b\n")
    assert (tmp_path / "folder/log.txt").read_text() == "a\nb\n"
    assert not (tmp_path / "folder/log.txt").stat().st_mode & 0o111


def test_what_the_disk_says_is_told_whatever_the_writer_makes_of_it(tmp_path: Path) -> None:
    """Protects from "this is a bug" on a full disk, and from half a file: a writer may replace or hide what the system
    said."""

    def replaces(file: BufferedRandom) -> None:
        try:
            file.write(bytes(1 << 16))
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file") from None

    def hides(file: BufferedRandom) -> None:
        with contextlib.suppress(OSError):
            file.write(bytes(1 << 16))

    told = pytest.raises(SystemFault, match=r"File too large \(writing it\)")
    for writer in (replaces, hides):
        with largest_file(100), told, atomic(tmp_path / "a") as file:
            writer(file)
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


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
