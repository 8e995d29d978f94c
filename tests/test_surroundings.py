"""The surroundings that tests/conftest.py gives every test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from emaseg.resources import cache_folder
from emaseg.weights.download import fetch
from emaseg.weights.released import by_name
from tests.conftest import FOREIGN

REFUSED = pytest.fail.Exception
SAVED: list[Path] = []


def test_no_variable_of_the_machine_is_seen() -> None:
    """Protects results from where they are made: no cache, data, mirror, proxy or terminal of the machine's."""
    assert FOREIGN.isdisjoint(os.environ)
    assert not any(name.startswith("XDG_") for name in os.environ)
    assert os.environ["TERM"] == "xterm"


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_cache_of_its_own(turn: int) -> None:
    """Protects tests from each other, and the user's own cache from all of them."""
    folder = cache_folder()
    assert not folder.exists()
    assert folder not in SAVED
    SAVED.append(folder)
    folder.mkdir(parents=True)


def test_variables_of_the_machine_are_dropped() -> None:
    """Protects the two tests above from passing by chance: they pass on a machine that has set everything."""
    hostile = dict.fromkeys(FOREIGN, "1") | {"EMASEG_CACHE": "/nowhere", "XDG_CACHE_HOME": "/nowhere", "TERM": "dumb"}
    command = [sys.executable, "-m", "pytest", "-n0", "-vv", "--color=no", "-p", "no:cacheprovider", __file__]
    command += ["-k", "no_variable or each_test"]
    done = subprocess.run(command, env=os.environ | hostile, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 3


def test_the_network_is_refused_at_once() -> None:
    """Protects against an accidental download: an address, a name and a datagram end the test, not its time limit."""
    start = time.monotonic()
    with pytest.raises(REFUSED, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=30)
    with pytest.raises(REFUSED, match=r"example\.org"):
        urllib.request.urlopen("http://example.org/")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, pytest.raises(REFUSED, match=r"192\.0\.2\.1"):
        one.sendto(b"x", ("192.0.2.1", 9))
    with socket.socket() as one, pytest.raises(REFUSED, match=r"192\.0\.2\.1"):
        one.connect_ex(("192.0.2.1", 80))
    assert time.monotonic() - start < 2


def test_a_real_download_is_refused_at_once() -> None:
    """Protects the above against the program's own patience: it tries again after errors, but not after this one."""
    start = time.monotonic()
    with pytest.raises(REFUSED, match="asked the network"):
        list(fetch(by_name("voc_r50_d8")))
    assert time.monotonic() - start < 2


def test_this_machine_may_be_asked() -> None:
    """Protects the tests that start a server: loopback works, by number and by name."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, port), timeout=5).close()
