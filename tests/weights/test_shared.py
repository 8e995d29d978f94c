"""A cache that others can write to: nothing of ours is overwritten, nobody's leftovers block, nothing waits for ever."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emaseg.errors import SystemFault, UserError, WeightsError
from emaseg.events import Downloading, Note
from emaseg.weights.cache import import_from, locate, state, verified
from emaseg.weights.download import fetch
from emaseg.weights.lock import STALE_SECONDS, Lock
from emaseg.weights.partial import Version, claim
from emaseg.weights.record import read_record, record_of
from emaseg.weights.released import Released
from emaseg.weights.transfer import Patience
from tests.weights import server as faulty
from tests.weights.server import QUICK, Server, drop_at, entry, weights

CONTENT = weights()
ALICE, BOB = 64001, 64002  # numbers that need no name
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become others")


@pytest.fixture
def net(server: Server) -> Released:
    server.files["/owner/net.pth"] = CONTENT
    return entry(server)


# ------------------------------------------------------------------------------------------------------------ traps
VICTIM = b"my thesis"
TRAPS: dict[str, Callable[[Path, Path], None]] = {
    "a symbolic link": lambda place, victim: place.symlink_to(victim),
    "a hard link": lambda place, victim: os.link(victim, place),
    "a link to nothing": lambda place, victim: place.symlink_to(victim.with_name("nothing")),
    "a link to itself": lambda place, victim: place.symlink_to(place),
    "a FIFO": lambda place, victim: os.mkfifo(place),
    "a folder": lambda place, victim: place.mkdir(),
}
PLACES = ("net.pth", "net.pth.part", "net.pth.part.json", "net.pth.sha256", ".net.pth.lock")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_in_the_cache(net: Released, server: Server, cache: Path, tmp_path: Path, trap: str, place: str) -> None:
    """Protects files outside the cache from being written through a link, and the process from a FIFO: the download
    works, also after a break, or is refused; the victim's content, times and rights stay."""
    cache.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(VICTIM)
    os.utime(victim, ns=(10**9, 10**9))
    TRAPS[trap](cache / place, victim)
    before = victim.stat()
    server.faults = [drop_at(100_000)]
    try:
        list(fetch(net, None, QUICK))
    except UserError as error:
        assert place in error.message  # noqa: PT017
        assert place in ("net.pth", "net.pth.sha256")
    else:
        assert (cache / "net.pth").read_bytes() in (CONTENT, VICTIM)
    after = victim.stat()
    assert victim.read_bytes() == VICTIM
    assert (after.st_mtime_ns, after.st_mode, after.st_size) == (before.st_mtime_ns, before.st_mode, before.st_size)
    assert not (tmp_path / "nothing").exists()
    if (cache / "net.pth").is_file() and (cache / "net.pth").read_bytes() == VICTIM:
        assert not record_of(cache / "net.pth").exists()  # and it is not taken for the first copy


def test_all_traps_together(net: Released, server: Server, cache: Path, tmp_path: Path) -> None:
    """Protects from who closes every known name: a temporary one serves, and goes."""
    cache.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(VICTIM)
    for name in ("net.pth.part", f"net.pth.{os.geteuid()}.part", ".net.pth.lock", "net.pth.part.json"):
        (cache / name).symlink_to(victim)
    events = list(fetch(net, None, QUICK))
    assert any(isinstance(event, Note) and event.warning and ".lock" in event.text for event in events)
    assert (cache / "net.pth").read_bytes() == CONTENT
    assert victim.read_bytes() == VICTIM
    assert not list(cache.glob(".net.pth.*.part"))
    (cache / "net.pth").unlink()
    server.faults = [drop_at(100_000), faulty.status(404)]
    with pytest.raises(WeightsError):
        list(fetch(net, None, QUICK))
    assert not list(cache.glob(".net.pth.*.part"))


def test_a_folder_in_the_weights_place_is_said_before_anything_is_fetched(
    net: Released, server: Server, cache: Path
) -> None:
    (cache / "net.pth").mkdir(parents=True)
    with pytest.raises(SystemFault, match="a folder is in the place"):
        list(fetch(net, None, QUICK))
    assert server.requests == []


def test_an_endless_record_is_not_read(net: Released, cache: Path) -> None:
    """Protects memory: a record that is a device, or far too long."""
    cache.mkdir()
    (cache / "net.pth").write_bytes(CONTENT)
    record_of(cache / "net.pth").symlink_to("/dev/zero")
    with pytest.raises(WeightsError, match="not a hash record"):
        verified(net, cache / "net.pth")
    record_of(cache / "net.pth").unlink()
    record_of(cache / "net.pth").write_bytes(b"a" * 70_000)
    with pytest.raises(WeightsError, match="not a hash record"):
        verified(net, cache / "net.pth")


@pytest.mark.parametrize("note", ["[" * 60_000, '{"url": "URL", "mark": "a\\r\\nX: y", "total": 9}', '{"url": "URL"}'])
def test_a_forged_note_is_no_note(net: Released, cache: Path, note: str) -> None:
    """Protects the next request's headers and the parser from what lies beside a .part file."""
    cache.mkdir()
    (cache / "net.pth.part").write_bytes(CONTENT[:5])
    (cache / "net.pth.part.json").write_text(note.replace("URL", net.url))
    list(fetch(net, None, QUICK))
    assert (cache / "net.pth").read_bytes() == CONTENT


def test_two_never_write_to_one_part(cache: Path) -> None:
    """Protects the bytes when the lock file was removed under its owner: the second gets a file of its own."""
    cache.mkdir()
    parts = [claim(cache / "net.pth") for _ in range(3)]
    assert len({part.path for part in parts}) == 3
    for i, part in enumerate(parts):
        part.write(bytes([i]) * 5)
    assert [part.path.read_bytes() for part in parts] == [bytes([i]) * 5 for i in range(3)]
    for part in parts:
        part.close()
    assert {file.name for file in cache.iterdir()} == {"net.pth.part", f"net.pth.{os.geteuid()}.part"}
    first = claim(cache / "net.pth")
    assert (first.path.name, first.length) == ("net.pth.part", 5)
    first.begin(Version("url", '"mark"', 9))
    assert first.length == 0
    first.close()  # nothing in it: nothing stays
    assert {file.name for file in cache.iterdir()} == {f"net.pth.{os.geteuid()}.part"}


def test_a_part_that_was_closed_to_be_renamed(cache: Path) -> None:
    """Protects Windows, which renames no open file: after a refusal the same part starts again."""
    cache.mkdir()
    part = claim(cache / "net.pth")
    part.write(b"not the weights")
    part.release()
    part.clear()
    part.write(b"these")
    assert part.path.read_bytes() == b"these"
    part.release()
    os.replace(part.path, cache / "net.pth")
    part.close()
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == {"net.pth": b"these"}


def test_a_cache_on_a_disk_without_owners(net: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a cache on FAT or on a share, where rights cannot be set; and one that is reached through a link."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to("disk")
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    parts = [claim(tmp_path / "disk/net.pth") for _ in range(3)]  # the third has a name of its own
    list(fetch(net, None, QUICK))
    for part in parts:
        part.close()
    assert {file.name for file in (tmp_path / "disk").iterdir()} == {"net.pth", "net.pth.sha256"}
    assert (tmp_path / "disk/net.pth").read_bytes() == CONTENT


# ------------------------------------------------------------------------------------------------------------ users
@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like /tmp that is the cache: everybody may write, nobody may remove another's files."""
    folder = Path(tempfile.mkdtemp(prefix="emaseg-shared-"))
    folder.chmod(0o1777)
    monkeypatch.setenv("EMASEG_CACHE", str(folder))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def being(user: int, mask: int = 0o022) -> Iterator[None]:
    """This process with another user's rights."""
    before = os.umask(mask)
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.umask(before)


@as_root
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o000])
def test_a_lock_that_another_user_left(net: Released, shared: Path, mode: int) -> None:
    """Protects everybody from a killed process of one: its lock file is no obstacle, whatever its rights."""
    with being(ALICE):
        (shared / ".net.pth.lock").touch()
        (shared / ".net.pth.lock").chmod(mode)
    with being(BOB):
        list(fetch(net, None, QUICK))
    assert (shared / "net.pth").read_bytes() == CONTENT


@as_root
def test_a_lock_that_another_user_holds(net: Released, shared: Path) -> None:
    """Protects both: who comes second waits while there is a sign of life, and no longer."""
    with being(ALICE, 0o077):
        lock = Lock(shared / ".net.pth.lock")
        assert lock.acquire()
    with being(BOB):
        assert not Lock(shared / ".net.pth.lock").acquire()
        events = list(fetch(net, None, Patience(poll=0.01, stale=0.1)))
    texts = [event.text for event in events if isinstance(event, Note)]
    assert "another process is downloading it" in texts[0]
    assert "nothing is heard of the other process" in texts[1]
    with being(ALICE):
        lock.release()
    assert {file.name for file in shared.iterdir()} == {"net.pth", "net.pth.sha256"}


@as_root
def test_a_part_that_another_user_left(net: Released, server: Server, shared: Path) -> None:
    """Protects both users' beginnings: each goes on with its own file, and the rights let others read only."""
    for user in (ALICE, BOB):
        with being(user, 0o002):
            events = fetch(net, None, QUICK)
            server.faults = [faulty.slowly(0.01)]
            next(event for event in events if isinstance(event, Downloading))
            events.close()
    parts = sorted(shared.glob("*.part"))
    assert [part.name for part in parts] == [f"net.pth.{BOB}.part", "net.pth.part"]
    assert [stat.S_IMODE(part.stat().st_mode) for part in parts] == [0o644, 0o644]
    alices = (shared / "net.pth.part").read_bytes()
    with being(BOB):
        list(fetch(net, None, QUICK))
    assert "Range" in server.requests[-1][1]
    assert (shared / "net.pth").read_bytes() == CONTENT
    assert (shared / "net.pth.part").read_bytes() == alices
    assert not (shared / f"net.pth.{BOB}.part.json").exists()


@as_root
def test_what_one_user_fetched_serves_the_others(net: Released, server: Server, shared: Path) -> None:
    """Protects a shared cache: readable files, and the first user's record holds for the second."""
    with being(ALICE):
        list(fetch(net, None, QUICK))
    with being(BOB):
        assert list(fetch(net, None, QUICK)) == []
        assert verified(net, shared / "net.pth", full=True).sha256 == hashlib.sha256(CONTENT).hexdigest()
        assert state(net) == "recorded"
    (shared / "net.pth").write_bytes(weights(seed=1))
    with being(BOB), pytest.raises(WeightsError, match="not the content that was here first"):
        verified(net, shared / "net.pth")
    (shared / "net.pth").unlink()
    with being(BOB):
        list(fetch(net, None, QUICK))  # Alice's record says the same; that it cannot be renewed does not matter
    assert len(server.requests) == 2


@as_root
def test_what_may_not_be_read_is_called_so(net: Released, shared: Path) -> None:
    """Protects from wrong remedies: no permission is neither damage nor a missing record."""
    with being(ALICE, 0o077):
        list(fetch(net, None, QUICK))
    (shared / "net.pth.sha256").chmod(0o644)
    os.utime(shared / "net.pth", ns=(1, 1))
    with being(BOB), pytest.raises(WeightsError, match="no permission to read it") as caught:
        verified(net, shared / "net.pth")
    assert f"chmod a+r {shared / 'net.pth'}" in caught.value.hint
    (shared / "net.pth.sha256").chmod(0o600)
    with being(BOB), pytest.raises(WeightsError, match=r"no permission to read it, so net\.pth cannot be checked"):
        read_record(shared / "net.pth")
    shared.chmod(0o700)
    with being(BOB), pytest.raises(SystemFault, match="no permission"):
        locate(net)
    with being(BOB), pytest.raises(SystemFault, match="no permission"):
        list(fetch(net, None, QUICK))


@as_root
def test_a_private_file_comes_in_as_a_copy(shared: Path, tmp_path: Path, net: Released) -> None:
    """Protects the other users of the cache: --from of a file that only its owner may read is readable there."""
    (tmp_path / "net.pth").write_bytes(CONTENT)
    (tmp_path / "net.pth").chmod(0o600)
    import_from(net, tmp_path)
    assert not (shared / "net.pth").samefile(tmp_path / "net.pth")
    with being(BOB):
        assert (shared / "net.pth").read_bytes() == CONTENT


# ------------------------------------------------------------------------------------------------------------- lock
def test_a_killed_owner_leaves_the_lock_free(tmp_path: Path) -> None:
    """Protects from SIGKILL of a process that holds the lock."""
    path = tmp_path / "lock"
    code = "import sys, time; from pathlib import Path; from emaseg.weights.lock import Lock\n"
    code += "lock = Lock(Path(sys.argv[1])); print(lock.acquire(), flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert not Lock(path).acquire()
    process.kill()
    process.communicate()
    lock = Lock(path)
    assert lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_of_many_heirs_of_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    """Protects the take-over where the system has no locks: however many find the old one, no two are inside."""
    path = tmp_path / "lock"
    inside, most, turns = [0], [0], [0]

    def work() -> None:
        for _ in range(10):
            lock = Lock(path, portable=True)
            while not lock.acquire():
                time.sleep(0.0001)
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.0005)
            turns[0] += 1
            inside[0] -= 1
            lock.release()
            dead = Lock(path, portable=True)
            if dead.acquire():  # one more that dies with it
                old = time.time() - STALE_SECONDS - 1
                os.utime(path, (old, old))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == ([1], [40])
