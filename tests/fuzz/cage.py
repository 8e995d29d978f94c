"""Cases in a forked process that watches itself: what ran, what was written, how much memory and time it took.

The parent has imported everything, so that a process costs a fork; each serves some cases. It tells the parent before
and after each, so that a death or a hang belongs to a case.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS, damaged, lay_out, result

MEMORY = 2 * 2**30  # bytes that a case may take beyond what the process had
ALLOWED = (0, 1, 2, 3, 4, 5)
_HARMLESS = (os.devnull, "/proc/self/clear_refs")  # the second: a dry run starts its peak of memory again

_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn", "subprocess.Popen", "os.kill")
_REACHES = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
_CODE = ("exec", "ctypes.dlopen")
_ESCAPES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(slots=True)
class Watch:
    """The audit hook's memory; it belongs to one process."""

    folder: Path = Path("/nowhere")
    on: bool = False
    known: frozenset[str] | None = None  # code that the valid file runs, too; None = this is the valid file
    code: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _RUNS or event in _REACHES:
            self.events.append(f"{event} {str(arguments)[:200]}")
        elif event in _CODE:
            self._code(event, arguments)
        elif event == "open" and _writes(arguments):
            self._inside(event, arguments[0])
        elif event in _CHANGES:
            for path in arguments[:2]:
                self._inside(event, path)

    def _inside(self, event: str, path: object) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # a number: was opened by name before
        absolute = os.path.abspath(os.fsdecode(path))
        if not absolute.startswith(f"{self.folder}/") and absolute not in (*_HARMLESS, str(self.folder)):
            self.events.append(f"{event} {absolute[:200]}")

    def _code(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "exec":
            name = getattr(arguments[0], "co_filename", "?")
        else:
            name = os.fsdecode(arguments[-1]) if isinstance(arguments[-1], (str, bytes)) else "?"
        if name.endswith((".py", ".so")) and os.path.exists(name) and not name.startswith(str(self.folder)):
            return  # a module, imported late
        name = f"{event} {re.sub('[0-9]+', 'N', name)}"
        self.code.add(name)
        if self.known is not None and name not in self.known:
            self.events.append(name)


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


@dataclass(frozen=True, slots=True)
class Job:
    """Some cases of one target. valid: what the valid file gave, and the code that ran; None for that case itself."""

    target: str
    numbers: tuple[int, ...]
    seed: int
    seeds: Path
    work: Path  # where this process may write
    valid: tuple[str, frozenset[str]] | None


def serve(job: Job, pipe: int) -> None:
    """Run the cases; two JSON lines about each go to `pipe`. Never returns."""
    try:
        _limit()
        job.work.mkdir(parents=True, exist_ok=True)
        where = (job.work / "where").open("wb")
        faulthandler.enable(where)
        faulthandler.register(signal.SIGUSR2, where)
        watch = Watch()
        sys.dont_write_bytecode = True  # the watch would report what a module writes that is imported late
        sys.addaudithook(watch.hook)
        for number in job.numbers:
            _tell(pipe, {"number": number})
            _tell(pipe, {"number": number, **_case(job, number, watch)})
        os._exit(0)
    except BaseException:  # noqa: BLE001  (a fault of the harness)
        _tell(pipe, {"broken": traceback.format_exc()})
        os._exit(3)


def _tell(pipe: int, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode() + b"\n"
    while data:
        data = data[os.write(pipe, data) :]


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MEMORY, mapped + 2 * MEMORY))


def warm(target: str, seeds: Path, work: Path) -> None:
    """Run the valid file's command here: what it imports and prepares, every forked process has then."""
    folder = _folder(work)
    arguments = lay_out(target, (seeds / TARGETS[target].file).read_bytes(), seeds, folder)
    with _streams(work):
        importlib.import_module("emaseg.cli").main(arguments)


def _folder(work: Path) -> Path:
    """An empty folder that is the current one, for temporary files, too."""
    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    os.chdir(folder)
    os.environ.update(TMPDIR=str(folder / "tmp"), EMASEG_CACHE=str(folder / "tmp"), EMASEG_OFFLINE="1")
    tempfile.tempdir = str(folder / "tmp")
    return folder


def _case(job: Job, number: int, watch: Watch) -> dict[str, Any]:
    folder = _folder(job.work)
    data, how = damaged(job.target, number, job.seed, job.seeds)
    arguments = lay_out(job.target, data, job.seeds, folder)
    watch.folder, watch.events, watch.code = folder, [], set()
    watch.known = job.valid[1] if job.valid else None
    before = _memory("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    main = importlib.import_module("emaseg.cli").main
    began = time.monotonic()
    with _streams(job.work) as streams:
        watch.on = True
        try:
            code = main(arguments)
        except BaseException as error:  # noqa: BLE001  (the boundary lets nothing pass: a finding)
            code = 999
            print(f"{type(error).__name__} passed the boundary: {error}", file=sys.stderr)
        finally:
            watch.on = False
    ms, peak = 1000 * (time.monotonic() - began), max(0, _memory("VmHWM") - before)
    out, error = streams
    outcome = result(job.target, folder, out) if code == 0 else ""
    findings = _findings(job, code, out, error, peak, watch)
    digest = TARGETS[job.target].digest
    if code == 0 and job.valid and outcome != job.valid[0] and digest and digest in data:
        findings.append("silent: another result than the valid file's")
    return {
        "code": code,
        "ms": ms,
        "peak": peak,
        "how": how,
        "findings": findings,
        "result": outcome,
        "ran": sorted(watch.code),
        "error": error[-2000:],
        "out": out[-2000:],
    }


def _memory(what: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return 1024 * int(line.split()[1])
    return 0


@contextlib.contextmanager
def _streams(work: Path) -> Any:
    """Standard output and error, Python's and everyone else's, as text in the yielded list when the block is left."""
    texts: list[str] = []
    names = [work / "stdout", work / "stderr"]
    sys.stdout.flush()
    sys.stderr.flush()
    kept, python = [os.dup(1), os.dup(2)], (sys.stdout, sys.stderr)
    files = [os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for name in names]
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    try:
        yield texts
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = python
        for number, (old, file) in enumerate(zip(kept, files, strict=True), 1):
            os.dup2(old, number)
            os.close(old)
            texts.append(os.pread(file, 2**22, 0).decode("utf-8", "replace"))
            os.close(file)


def _findings(job: Job, code: int, out: str, error: str, peak: int, watch: Watch) -> list[str]:
    found = [f"executed: {event}" for event in dict.fromkeys(watch.events)]
    if code not in ALLOWED:
        found.append(f"exit {code}: {_last_error(error)}")
    elif code and not error.strip() and not out.strip():
        found.append(f"exit {code} without a word")
    if "Traceback (most recent" in error:
        found.append("a traceback")
    if peak > MEMORY or (code == 4 and "out of memory" in error):
        found.append(f"memory: {_last_error(error) or 'succeeded'}")
    if (job.work / "case" / "ownd").exists():
        found.append("executed: touch")
    if escape := _ESCAPES.search(error + out):
        found.append(f"control character {escape.group()!r}")
    return found


def _last_error(error: str) -> str:
    rows = [row for row in error.splitlines() if row.startswith("error: ")] or error.splitlines()[-1:]
    return rows[-1][:160] if rows else ""
