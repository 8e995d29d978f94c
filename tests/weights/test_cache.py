"""The cache: what was seen first holds, and files that the user has come in whole."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from emaseg.errors import WeightsError
from emaseg.weights.cache import import_from, locate, state, verified
from emaseg.weights.record import read_record, record_of
from emaseg.weights.released import Released
from tests.weights.server import weights

NET = Released(
    "net",
    "network",
    "Net",
    "net.pth",
    "https://owner.example/net.pth",
    "ssseg",
    "",
    0,
    mirrors=("https://x/other.pth",),
)
CONTENT = weights()


@pytest.fixture
def path(cache: Path) -> Path:
    cache.mkdir()
    (cache / "net.pth").write_bytes(CONTENT)
    return cache / "net.pth"


def test_the_first_sight_is_recorded_and_enforced(path: Path) -> None:
    """Protects from silent change: same size, other bytes, found by the time; and by hashing when even that agrees."""
    assert state(NET) == "here"
    record = verified(NET, path)
    assert record.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert state(NET) == "recorded"
    before = path.stat()
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(WeightsError, match="not the content that was here first"):
        verified(NET, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    verified(NET, path)  # the fast way looks at size and time only
    with pytest.raises(WeightsError, match="not the content that was here first"):
        verified(NET, path, full=True)


def test_a_touched_file_is_hashed_once(path: Path) -> None:
    """Protects from hashing at every use after a copy of the cache: same content, new time, a new record."""
    first = verified(NET, path)
    os.utime(path, ns=(1, 1))
    assert verified(NET, path).sha256 == first.sha256
    assert read_record(path) == verified(NET, path)
    assert verified(NET, path).mtime_ns == 1


def test_sha256sum_reads_our_record_and_we_read_its(path: Path) -> None:
    """Protects the record's format: the usual tool checks it, and what the tool writes is enforced as well."""
    verified(NET, path)
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", record_of(path).name], cwd=path.parent, capture_output=True, check=False
    )
    assert check.returncode == 0, check
    made = subprocess.run(["sha256sum", "net.pth"], cwd=path.parent, capture_output=True, text=True, check=True)
    record_of(path).write_text(made.stdout)
    assert verified(NET, path).sha256 == hashlib.sha256(CONTENT).hexdigest()
    record_of(path).write_text(f"{'0' * 64}  net.pth\n")
    with pytest.raises(WeightsError, match="not the content"):
        verified(NET, path)


@pytest.mark.parametrize(
    "text", ["", "no hash", "12ab  net.pth", "\x00" * 70, f"# size {'9' * 5000} mtime_ns 1\n{'0' * 64}"]
)
def test_a_damaged_record_is_an_error_not_a_pass(path: Path, text: str) -> None:
    """Protects the enforcement: an unreadable record does not mean that anything goes."""
    record_of(path).write_text(text)
    with pytest.raises(WeightsError, match="not a hash record") as caught:
        verified(NET, path)
    assert f"remove {record_of(path)}" in caught.value.hint


def test_known_under_its_newer_name(cache: Path) -> None:
    cache.mkdir()
    (cache / "other.pth").write_bytes(CONTENT)
    assert locate(NET) == cache / "other.pth"


@pytest.mark.parametrize("name", NET.files)
def test_a_file_that_the_user_has_comes_in(cache: Path, tmp_path: Path, name: str) -> None:
    """Protects --from: any known name, saved under the first, as a link where the disk can; and once is enough."""
    source = tmp_path / "mine"
    source.mkdir()
    (source / name).write_bytes(CONTENT)
    assert import_from(NET, source) == cache / "net.pth"
    assert import_from(NET, source) == cache / "net.pth"
    assert (cache / "net.pth").samefile(source / name)
    assert {file.name for file in cache.iterdir()} == {"net.pth", "net.pth.sha256"}
    assert import_from(NET, tmp_path) is None


def test_a_link_means_the_file_behind_it(cache: Path, tmp_path: Path) -> None:
    """Protects from a dangling cache: symbolic links are resolved before they are taken."""
    (tmp_path / "store").write_bytes(CONTENT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/net.pth").symlink_to(tmp_path / "store")
    import_from(NET, tmp_path / "mine")
    assert not (cache / "net.pth").is_symlink()
    (tmp_path / "mine/net.pth").unlink()
    assert (cache / "net.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\n\n <html>", "HTML page"),
        (CONTENT[:-100], "incomplete archive"),
        (b"GIF89a", "not a weight file"),
    ],
)
def test_what_is_no_weight_file_is_not_taken(cache: Path, tmp_path: Path, content: bytes, message: str) -> None:
    """Protects the cache from the user's debris: refused by name, the cache as it was."""
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        import_from(NET, tmp_path)
    assert str(tmp_path / "net.pth") in caught.value.message
    assert list(cache.iterdir()) == []


def test_another_file_than_the_recorded_is_not_taken(path: Path, tmp_path: Path) -> None:
    verified(NET, path)
    (tmp_path / "net.pth").write_bytes(weights(seed=1))
    with pytest.raises(WeightsError, match="not the content that was here first"):
        import_from(NET, tmp_path)
    assert path.read_bytes() == CONTENT


def zipped(names: list[str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), bytes(1000))
    return file.getvalue()


def overlapping() -> bytes:
    """An archive whose second part claims to hold the first one's bytes once more."""
    content = bytearray(zipped(["archive/data.pkl", "archive/data.pkl.b"]))
    second = content.rindex(b"PK\x01\x02")
    for field in (20, 24):  # sizes
        content[second + field : second + field + 4] = (2500).to_bytes(4, "little")
    return bytes(content)


def long_directory(count: int) -> bytes:
    """An archive that says that its directory has so many bytes."""
    content = bytearray(zipped(["archive/data.pkl"]))
    content[-10:-6] = count.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(["a.txt"]), "no data.pkl"),
        (overlapping(), "overlap"),
        (long_directory(2**30), "more members than any network"),
        (long_directory(10_000), "incomplete archive"),  # it would begin before the file
        (b"PK\x03\x04", "incomplete archive"),
        (b"PK\x03\x04" + b"PK\x05\x06" + bytes(18), "without members"),
    ],
)
def test_an_archive_that_no_torch_wrote_is_not_taken(cache: Path, tmp_path: Path, content: bytes, message: str) -> None:
    """Protects time and memory of the check, and the record from archives of something else."""
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        import_from(NET, tmp_path)
    assert list(cache.iterdir()) == []
