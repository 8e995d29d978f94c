"""Archives that show one thing to a check and another to a reader, and numbers that changed on the disk: refused."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emaseg.checkpoint import load_weights, read_checkpoint
from emaseg.errors import WeightsError
from emaseg.models import build_model
from emaseg.weights.reading import read_content
from emaseg.weights.weight_archive import COMMENT
from tests.helpers import equal, run, tiny
from tests.weights.test_hostile import archive, calling, tensor

HONEST = archive(tensor(3, (3,), (1,)), {"data/0": bytes(12)})
ARMED = archive(calling("os", "system", "true"))
END = 22  # bytes of an archive's end


def parts(data: bytes) -> tuple[bytes, bytes, int]:
    """Members, directory and member count of an archive."""
    count, _, length, at = struct.unpack("<2H2L", data[-END + 8 : -2])
    return data[:at], data[at : at + length], count


def end(count: int, length: int, at: int) -> bytes:
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, at, 0)


def renamed(data: bytes, old: bytes, new: bytes, which: int) -> bytes:
    """One of the places where a name stands changed: 0 = in the member's own header, -1 = in the directory."""
    places = [i for i in range(len(data)) if data.startswith(old, i)]
    at = places[which]
    return data[:at] + new + data[at + len(old) :]


def two_members_of_one_name() -> bytes:
    file = io.BytesIO(HONEST)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as zipped:
        zipped.writestr("archive/data.pkl", calling("os", "system", "true"))
    return file.getvalue()


def overlapping() -> bytes:
    """Two members that are the same bytes, as in the archives that unfold a megabyte into a petabyte."""
    members, directory, count = parts(HONEST)
    entry = directory[directory.index(b"PK\1\2", 4) :]
    first = entry[: 46 + struct.unpack_from("<H", entry, 28)[0]]
    return members + directory + first + end(count + 1, len(directory) + len(first), len(members))


def two_directories() -> bytes:
    """The harmless archive's end is at the very end; the armed one's lies before it, for who looks elsewhere."""
    members, directory, count = parts(HONEST)
    return members + ARMED + directory + end(count, len(directory), len(members) + len(ARMED))


def wide_end_elsewhere() -> bytes:
    """An end for large archives that points to another directory than the plain end."""
    members, directory, count = parts(HONEST)
    at, length = len(members) + len(directory), len(directory)
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, len(members) - 8)
    return members + directory + wide + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1) + end(count, length, len(members))


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "something in front": lambda: b"PK\3\4" + bytes(26) + HONEST,
    "something behind": lambda: HONEST + b"x",
    "a second archive behind": lambda: HONEST + ARMED,
    "a comment": lambda: HONEST[:-2] + b"\x05\x00hello",
    "two members of one name": two_members_of_one_name,
    "members that overlap": overlapping,
    "two directories": two_directories,
    "a wide end that says something else": wide_end_elsewhere,
    "another name in the member's header": lambda: renamed(HONEST, b"archive/data.pkl", b"archive/evil.pkl", 0),
    "another name in the directory": lambda: renamed(HONEST, b"archive/data.pkl", b"archive/evil.pkl", -1),
    "a member outside the folder": lambda: renamed(
        renamed(HONEST, b"archive/version", b"brchive/version", 0), b"archive/version", b"brchive/version", -1
    ),
    "compressed": lambda: archive(tensor(3, (3,), (1,)), {"data/0": bytes(12)}, zipfile.ZIP_DEFLATED),
    "no end": lambda: HONEST[:-END],
    "no program": lambda: renamed(renamed(HONEST, b"data.pkl", b"data.abc", 0), b"data.pkl", b"data.abc", -1),
    "fewer members than it says": lambda: HONEST[: -END + 8] + struct.pack("<2H", 9, 9) + HONEST[-END + 12 :],
}


def test_the_honest_archive_loads(tmp_path: Path) -> None:
    """Protects the next test from refusing everything."""
    (tmp_path / "weights.pth").write_bytes(HONEST)
    assert torch.equal(read_content(tmp_path / "weights.pth")["model"]["backbone_net.weight"], torch.zeros(3))


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_of_two_meanings_is_refused(tmp_path: Path, name: str) -> None:
    """Protects the check from being shown another archive than the reader: every layout but torch.save's is refused."""
    (tmp_path / "weights.pth").write_bytes(ARCHIVES[name]())
    with pytest.raises(WeightsError, match=r"weights\.pth: not a weight file, or damaged"):
        read_content(tmp_path / "weights.pth")


# ------------------------------------------------------------------------------------------------------- integrity
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny("train.iterations=2"), out)
    return out / "checkpoints/last.pt"


def without_digest(data: bytes) -> bytes:
    """The checkpoint as earlier versions wrote it."""
    return data[: -COMMENT - 2] + b"\0\0"


def test_a_checkpoint_ends_with_its_digest_and_any_reader_reads_it(trained: Path, tmp_path: Path) -> None:
    """Protects the contract: torch.load and zipfile read the file, and files of earlier versions still load."""
    content = torch.load(trained, weights_only=True)
    with zipfile.ZipFile(trained) as zipped:
        assert zipped.comment.startswith(b"emaseg sha256 ")
        assert zipped.testzip() is None
    old = tmp_path / "old.pt"
    old.write_bytes(without_digest(trained.read_bytes()))
    with zipfile.ZipFile(old) as zipped:
        assert zipped.comment == b""
    assert equal(read_checkpoint(old).model, content["model"])
    torch.save(content, old)
    assert equal(read_checkpoint(old).optimizer, content["optimizer"])


def test_a_large_checkpoint_is_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the digest of files that are hashed while they are written: pieces, and the end that changes last."""
    monkeypatch.setattr("emaseg.checkpoint._PIECE", 4096)
    run(tiny("train.iterations=1"), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt").step == 1


@pytest.mark.parametrize("flips", [1, 200])
@pytest.mark.parametrize("signed", [True, False])
def test_flipped_bits_are_noticed(trained: Path, tmp_path: Path, flips: int, signed: bool) -> None:
    """Protects from a disk that forgets: wherever bits change, the file is refused or its content is the same (a name's
    time stamp, padding). PyTorch compares no checksum."""
    whole = trained.read_bytes() if signed else without_digest(trained.read_bytes())
    honest = read_checkpoint(trained)
    rng, path = random.Random(flips), tmp_path / "flipped.pt"
    for _ in range(12):
        data = bytearray(whole)
        for _ in range(flips):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with contextlib.suppress(WeightsError):
            again = read_checkpoint(path)
            assert not signed
            assert equal(again.model, honest.model)
            assert equal(again.optimizer, honest.optimizer)


def test_a_changed_number_in_a_foreign_file_is_noticed(tmp_path: Path) -> None:
    """Protects weights of others: a member whose checksum is not its content's."""
    at = HONEST.index(bytes(12)) + 5
    (tmp_path / "weights.pth").write_bytes(HONEST[:at] + b"\x01" + HONEST[at + 1 :])
    with pytest.raises(WeightsError, match="not what was written"):
        read_content(tmp_path / "weights.pth")


@pytest.mark.parametrize("make", ["pipe", "device", "folder", "empty"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: str) -> None:
    """Protects from waiting for ever on a pipe, or reading /dev/zero without end."""
    path = tmp_path / "weights.pth"
    if make == "pipe":
        os.mkfifo(path)
    elif make == "device":
        path.symlink_to("/dev/zero")
    elif make == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_weights(build_model(tiny()), path)
