"""What tests of several rooms share, and the surroundings of every test: no variable of the machine, no network.

A test that needs a variable sets it with monkeypatch; a test that needs a server starts one on this machine.
Nothing here imports torch for all: the process that hands out the tests does not need it, and would take 2 s for it.
"""

from __future__ import annotations

import gc
import ipaddress
import itertools
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

# They change what the program finds, asks for or prints: of the machine, nobody's choice here.
FOREIGN = {
    *("EMASEG_DATA", "EMASEG_MIRROR", "EMASEG_OFFLINE"),
    *(f"{kind}_proxy" for kind in ("http", "https", "ftp", "all", "no")),
    *(f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "FTP", "ALL", "NO")),
    *("COLUMNS", "LINES", "TERMINAL_WIDTH", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PY_COLORS"),
    *("GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    "MKL_NUM_THREADS",  # PyTorch heeds it before OMP_NUM_THREADS
    "PYTHONDONTWRITEBYTECODE",  # each command that a test starts would compile PyTorch's modules again: 3 s
}
# The same examples in every run: a red run blames the change under test. `--hypothesis-profile=search` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("repeatable")

_CACHES = Path(tempfile.gettempdir(), f"emaseg-tests-{os.getpid()}")
_number = itertools.count()


def pytest_sessionstart() -> None:
    """Before any test module is imported: some libraries read variables as they are imported."""
    for name in list(os.environ):
        if name in FOREIGN or name.startswith("XDG_"):
            del os.environ[name]
    sys.dont_write_bytecode = False  # the tests' own bytecode is kept, too
    os.environ["EMASEG_CACHE"] = str(_CACHES / "modules")  # of fixtures that several tests share
    os.environ["TERM"] = "xterm"
    # For PyTorch here, which nothing has imported yet, and in commands that tests start: the tests' processes fill the cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.fsync = os.fstat  # 9,000 waits for the disk; no test cuts the power, and a descriptor that is none still fails
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, _guarded_lookup(getattr(socket, name)))


def pytest_collection_finish() -> None:
    """What lives until the end need not be looked at again: a search for dead cycles takes 0.6 s with it, 0.01 without."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def few_objects() -> None:
    """As above, for dry runs: they collect before each step, and what tests before them left takes 0.2 s each time."""

    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what is frozen at the end of Python is never freed, of which PyTorch's compiler complains in 60 lines
    shutil.rmtree(_CACHES, ignore_errors=True)


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """A cache folder of the test's own, not made yet; and the working directory is where it was."""
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMASEG_CACHE", str(_CACHES / str(next(_number))))
        yield
    if Path.cwd() != before:
        left = Path.cwd()
        os.chdir(before)
        pytest.fail(f"the test left the working directory at {left}; use monkeypatch.chdir")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as the tests' run fastest on one thread; the next module gets its threads back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _guarded(method: Any) -> Any:
    """A method of socket whose last argument is an address: refused unless that is on this machine."""

    def guarded(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
            _refuse(address[0])
        return method(self, *arguments)

    return guarded


def _guarded_lookup(function: Any) -> Any:
    def guarded(host: Any, *arguments: Any, **named: Any) -> Any:
        if host not in (None, "", b"") and not _is_here(host):
            _refuse(host)
        return function(host, *arguments, **named)

    return guarded


def _is_here(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _refuse(host: Any) -> NoReturn:
    """Ends the test at once: no handler of Exception, which may try again for half a minute, sees this."""
    pytest.fail(f"a test asked the network for {host!r}; only this machine may be asked")
