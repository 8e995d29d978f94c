"""Downloads over real sockets: whatever a server, a disk or a signal does, a file is right or it is not there."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emaseg.errors import NetworkFault, RecipeError, SystemFault, UserError, WeightsError
from emaseg.events import Downloading, Note
from emaseg.weights.download import fetch
from emaseg.weights.record import record_of
from emaseg.weights.released import Released
from emaseg.weights.transfer import Patience
from tests.weights import server as faulty
from tests.weights.server import QUICK, Fault, Server, drop_at, entry, status, weights

CONTENT = weights()

# Fetches one entry in a process of its own: python -c CHILD URL FOLDER [LIMIT]
CHILD = """
import resource, sys
from pathlib import Path
from emaseg.weights.download import fetch
from emaseg.weights.transfer import Patience
from emaseg.weights.released import Released
url, folder, *limit = sys.argv[1:]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), int(limit[0])))
entry = Released("net", "network", "Net", "net.pth", url, "ssseg", "", 0)
for event in fetch(entry, Path(folder), Patience(timeout=250.0, poll=0.02)):
    print(event, flush=True)
assert "torch" not in sys.modules
"""


def events_of(wanted: Released, patience: Patience = QUICK) -> list[Downloading | Note]:
    return list(fetch(wanted, None, patience))


def child(wanted: Released, cache: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, wanted.url, str(cache), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_whole(path: Path, content: bytes = CONTENT) -> None:
    """The file, its hash record, and nothing half done beside them."""
    assert path.read_bytes() == content
    assert record_of(path).read_text().splitlines()[1] == f"{hashlib.sha256(content).hexdigest()}  {path.name}"
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.sha256"}


@pytest.fixture
def net(server: Server) -> Released:
    server.files["/owner/net.pth"] = CONTENT
    return entry(server)


def test_a_download_is_announced_counted_and_recorded(net: Released, server: Server, cache: Path) -> None:
    """Protects the plain case: what and how large, progress to the end, file and record; then no more requests."""
    first, *counted, last = events_of(net)
    assert isinstance(first, Note)
    assert first.text == "downloading net (Net, some data, published mIoU 50.00): 300 kB from 127.0.0.1"
    downloading = [event for event in counted if isinstance(event, Downloading)]
    assert downloading == counted
    assert [event.done for event in downloading] == sorted(event.done for event in downloading)
    assert (downloading[-1].done, downloading[-1].total) == (len(CONTENT), len(CONTENT))
    assert isinstance(last, Note)
    assert str(cache / "net.pth") in last.text
    assert_whole(cache / "net.pth")
    assert events_of(net) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("seed", range(10))
def test_a_broken_connection_resumes_where_it_broke(net: Released, server: Server, cache: Path, seed: int) -> None:
    """Protects long downloads: breaks at ten random bytes; the rest alone is asked for, and the file is exact."""
    offset = random.Random(seed).randrange(1, len(CONTENT))
    server.faults = [drop_at(offset)]
    events_of(net)
    assert_whole(cache / "net.pth")
    resumed = [headers.get("Range") for _, headers in server.requests]
    assert resumed == [None, f"bytes={offset}-"] or (offset < 16 and resumed == [None, None])


def test_as_long_as_something_comes_it_goes_on(net: Released, server: Server, cache: Path) -> None:
    """Protects bad lines: more breaks than tries, but each brings some bytes."""
    server.faults = [drop_at(30_000 * i) for i in range(1, 9)]
    events_of(net)
    assert_whole(cache / "net.pth")
    assert len(server.requests) == 9


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again(net: Released, server: Server, cache: Path, code: int) -> None:
    server.faults = [status(code)]
    events = events_of(net)
    assert any(isinstance(event, Note) and str(code) in event.text for event in events)
    assert_whole(cache / "net.pth")


@pytest.mark.parametrize(
    ("faults", "message", "kind"),
    [
        ([status(500)] * 3, "answers 500", NetworkFault),
        ([faulty.stall] * 9, "does not answer any more", NetworkFault),
        ([status(404)], "is not there any more", WeightsError),
        ([status(403)], "answers 403", WeightsError),
        ([faulty.page], "an HTML page instead of weights", WeightsError),
        ([faulty.to_itself], "redirects in a circle", WeightsError),
        ([faulty.compressed], "although asked not to", WeightsError),
        ([faulty.another_range], "another part of the file", WeightsError),
        ([faulty.cut_without_length], "incomplete archive", WeightsError),
        ([faulty.instead(b"")], "an empty file", WeightsError),
        ([faulty.instead(b"version https://git-lfs.github.com/spec/v1\n")], "Git LFS pointer", WeightsError),
        ([faulty.instead(CONTENT[:5000] + b"?" + CONTENT[5001:])], "damaged archive", WeightsError),
        ([faulty.instead(b'{"error": "quota exceeded"}')], "not a weight file", WeightsError),
    ],
)
def test_what_is_not_the_weights_is_named_and_leaves_nothing(
    net: Released, server: Server, cache: Path, faults: list[Fault], message: str, kind: type[UserError]
) -> None:
    """Protects the cache: each failure in its own words, with the manual way, and no file under the final name."""
    server.faults = list(faults)
    patience = Patience(timeout=0.15 if faulty.stall in faults else 60.0, tries=3, pause=0.01)
    with pytest.raises(UserError, match=message) as caught:
        events_of(net, patience)
    assert type(caught.value) is kind
    assert f"save it as {cache / 'net.pth'}" in caught.value.hint
    assert "emaseg download-weights net --from" in caught.value.hint
    left = {file.name for file in cache.iterdir()}
    assert left <= {"net.pth.part", "net.pth.part.json"}
    server.faults = []
    events_of(net)  # and it is no obstacle to the next try
    assert_whole(cache / "net.pth")


def test_the_next_mirror_takes_over(net: Released, server: Server, cache: Path) -> None:
    """Protects from dead links: the same weights under a newer name, saved under the first."""
    server.files = {"/newer/other.pth": CONTENT}
    events = events_of(entry(server, mirrors=("/gone.pth", "/newer/other.pth")))
    assert [path for path, _ in server.requests] == ["/owner/net.pth", "/gone.pth", "/newer/other.pth"]
    assert sum(isinstance(event, Note) and event.warning for event in events) == 2
    assert "newer name other.pth" in events[-1].text  # type: ignore[union-attr]
    assert_whole(cache / "net.pth")


def test_published_size_and_hash_hold(net: Released, server: Server, cache: Path) -> None:
    """Protects what is published: a wrong length is refused before it is fetched, a wrong hash after."""
    with pytest.raises(WeightsError, match="the published file 7"):
        events_of(entry(server, size=7))
    with pytest.raises(WeightsError, match=f"the published one {'0' * 64}"):
        events_of(entry(server, sha256="0" * 64))
    assert list(cache.iterdir()) == []
    events_of(entry(server, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()))
    assert_whole(cache / "net.pth")


def test_a_file_that_changed_on_the_server_starts_again(net: Released, server: Server, cache: Path) -> None:
    """Protects from a file of two halves: If-Range turns the old beginning down."""
    server.faults = [drop_at(200_000), status(404)]
    with pytest.raises(WeightsError):
        events_of(net)
    server.faults = [drop_at(200_000)]
    events = fetch(net, None, QUICK)
    for event in events:
        if isinstance(event, Note) and "trying again" in event.text:
            server.files["/owner/net.pth"] = weights(seed=1)
    assert_whole(cache / "net.pth", weights(seed=1))


def test_another_range_than_asked_for_starts_again(net: Released, server: Server, cache: Path) -> None:
    """Protects from a server that resumes somewhere else."""
    server.faults = [drop_at(100_000), faulty.another_range]
    events_of(net)
    assert_whole(cache / "net.pth")
    assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=100000-", None]


def test_other_content_than_the_first_is_refused(net: Released, server: Server, cache: Path) -> None:
    """Protects from a replaced release: the first hash holds, until its record is removed."""
    events_of(net)
    (cache / "net.pth").unlink()
    server.files["/owner/net.pth"] = weights(seed=1)
    with pytest.raises(WeightsError, match="not the content that was here first") as caught:
        events_of(net)
    assert f"remove {cache / 'net.pth.sha256'}" in caught.value.hint
    assert not (cache / "net.pth").exists()
    (cache / "net.pth.sha256").unlink()
    events_of(net)
    assert_whole(cache / "net.pth", weights(seed=1))


def test_no_length_and_slow_servers_work(net: Released, server: Server, cache: Path) -> None:
    server.faults = [faulty.without_length]
    first, *_ = events_of(net)
    assert "at least 0 MB" in first.text  # type: ignore[union-attr]
    assert_whole(cache / "net.pth")
    (cache / "net.pth").unlink()
    server.faults = [faulty.slowly(0.05)]
    events_of(net)
    assert_whole(cache / "net.pth")


def test_stopping_in_the_middle_keeps_what_has_arrived(net: Released, server: Server, cache: Path) -> None:
    """Protects Ctrl-C: the lock is released, the next run continues."""
    events = fetch(net, None, QUICK)
    server.faults = [faulty.slowly(0.02)]
    for event in events:
        if isinstance(event, Downloading):
            break
    events.close()
    assert 0 < (cache / "net.pth.part").stat().st_size < len(CONTENT)
    assert not list(cache.glob("*.lock"))
    events_of(net)
    assert "Range" in server.requests[-1][1]
    assert_whole(cache / "net.pth")


def test_a_killed_process_leaves_nothing_wrong(net: Released, server: Server, cache: Path) -> None:
    """Protects from SIGKILL at any moment: no final name, no lock that stays; the next run continues."""
    dead = threading.Event()
    server.faults = [faulty.held(dead)]
    process = child(net, cache)
    part = cache / "net.pth.part"
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    dead.set()
    assert not (cache / "net.pth").exists()
    events_of(net)
    assert "Range" in server.requests[-1][1]
    assert_whole(cache / "net.pth")


def test_two_processes_share_one_download(net: Released, server: Server, cache: Path) -> None:
    """Protects a node's ranks: one request, both get the file, the second says that it waits."""
    waiting = threading.Event()
    server.faults = [faulty.held(waiting)]
    first = child(net, cache)
    while not server.requests:
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    second = child(net, cache)
    assert second.stdout is not None
    assert "another process is downloading it" in second.stdout.readline()
    waiting.set()
    outputs = [process.communicate(timeout=250) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert len(server.requests) == 1
    assert_whole(cache / "net.pth")


def test_space_is_asked_for_before_the_transfer(net: Released, server: Server, cache: Path) -> None:
    """Protects the disk: too little space is said at once, with both numbers, and nothing is written."""
    with pytest.raises(SystemFault, match="300 kB are needed, 17 MB are free") as caught:
        events_of(net, Patience(free=lambda folder: (16 << 20) + 1000))
    assert "EMASEG_CACHE" in caught.value.hint
    assert not (cache / "net.pth").exists()
    events_of(net)


def test_a_disk_that_fills_up(net: Released, server: Server, cache: Path) -> None:
    """Protects from a write that fails half-way: a real limit on the size of files, in a process of its own."""
    process = child(net, cache, "100000")
    _, err = process.communicate(timeout=250)
    assert process.returncode == 1
    assert "SystemFault" in err
    assert "what has arrived is kept" in err
    assert not (cache / "net.pth").exists()
    events_of(net)
    assert_whole(cache / "net.pth")


def test_a_cache_that_cannot_be_written(net: Released, tmp_path: Path) -> None:
    """Protects from a traceback when the folder cannot be made: here a file is in its place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFault, match="creating the folder") as caught:
        list(fetch(net, tmp_path / "file" / "cache", QUICK))
    assert "EMASEG_CACHE" in caught.value.hint


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become someone else")
def test_a_read_only_cache_serves_but_takes_nothing(net: Released, cache: Path) -> None:
    """Protects shared caches: what is there is used, what is not cannot be fetched, each without a traceback."""
    cache.mkdir()
    (cache / "net.pth").write_bytes(CONTENT)
    for folder in (cache, *cache.parents[:5]):
        folder.chmod(0o755)
        if folder.name.startswith("pytest-of-"):  # pytest's own folders end here
            break
    os.seteuid(65534)
    try:
        assert events_of(net) == []
        with pytest.raises(SystemFault, match="no permission") as caught:
            events_of(Released("other", "network", "Other", "other.pth", net.url, "ssseg", "", 0))
    finally:
        os.seteuid(0)
    assert {file.name for file in cache.iterdir()} == {"net.pth"}
    assert "EMASEG_CACHE" in caught.value.hint


def test_offline_is_a_wall(net: Released, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects EMASEG_OFFLINE: not one request; what is here is used."""
    monkeypatch.setenv("EMASEG_OFFLINE", "1")
    with pytest.raises(WeightsError, match="EMASEG_OFFLINE") as caught:
        events_of(net)
    assert f"download {net.url} and save it as {cache / 'net.pth'}" in caught.value.hint
    assert server.requests == []
    cache.mkdir()
    (cache / "net.pth").write_bytes(CONTENT)
    assert events_of(net) == []
    assert_whole(cache / "net.pth")


def test_a_mirror_of_ones_own_replaces_the_owners(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects EMASEG_MIRROR: a served folder of the files, asked for by all their names, and nobody else."""
    wanted = entry(server, url="http://owner.invalid/net.pth", mirrors=("/newer/other.pth",))
    monkeypatch.setenv("EMASEG_MIRROR", server.url("/folder/"))
    server.files["/folder/other.pth"] = CONTENT
    events_of(wanted)
    assert [path for path, _ in server.requests] == ["/folder/net.pth", "/folder/other.pth"]
    assert_whole(cache / "net.pth")
    monkeypatch.setenv("EMASEG_MIRROR", "/mnt/weights")
    with pytest.raises(RecipeError, match="not an http"):
        events_of(entry(server, name="second"))


def test_proxies_are_obeyed(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects http_proxy and no_proxy: the proxy is asked for the whole address."""
    wanted = entry(server, url="http://owner.invalid/net.pth")
    server.files["http://owner.invalid/net.pth"] = CONTENT
    monkeypatch.setenv("http_proxy", server.url(""))
    events_of(wanted)
    assert_whole(cache / "net.pth")


def test_no_address_at_all(server: Server, cache: Path) -> None:
    """Protects the files that lie on a file-sharing page only: the error says which page and where to put them."""
    with pytest.raises(WeightsError, match="no address") as caught:
        events_of(entry(server, url="", page="https://owner.example/page"))
    assert caught.value.hint == (
        f"look for net.pth on https://owner.example/page, download it and save it as {cache / 'net.pth'}"
    )


def test_a_refused_connection_is_the_networks_fault(server: Server) -> None:
    with pytest.raises(SystemFault, match="the connection is refused"):
        events_of(entry(server, url="http://127.0.0.1:9/net.pth"))


@pytest.mark.parametrize("note", ["", "[]", '{"url": 1}', '{"url": "URL", "mark": 7, "total": "x"}', "\x00"])
def test_a_damaged_note_beside_a_part_starts_again(net: Released, cache: Path, note: str) -> None:
    """Protects from debris of other versions or crashes: what cannot be trusted is fetched anew."""
    cache.mkdir()
    (cache / "net.pth.part").write_bytes(b"old")
    (cache / "net.pth.part.json").write_text(note.replace("URL", net.url))
    events_of(net)
    assert_whole(cache / "net.pth")
