"""Many cases: a few processes at a time, each killed when a case takes too long, and the findings kept."""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.cage import Job, serve, warm
from tests.fuzz.targets import TARGETS, damaged

_KEPT = 3  # files of one kind of finding
_EACH = 40  # cases of one process


@dataclass(slots=True)
class Tally:
    """What is known of a target."""

    valid: tuple[str, frozenset[str]] | None = None
    next: int = 1
    cases: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    longest: float = 0.0  # ms
    peak: int = 0
    findings: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Process:
    """A forked process at its cases."""

    job: Job
    pid: int
    pipe: int
    rest: bytes = b""
    number: int | None = None  # of the case that it is at
    since: float = 0.0
    spent: float = 0.0  # seconds of CPU time at its beginning
    left: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Campaign:
    """Seeds, where to work, where findings go, the seed number and the seconds that a case may take."""

    seeds: Path
    work: Path
    kept: Path
    seed: int = 1
    limit: float = 10.0
    tallies: dict[str, Tally] = field(default_factory=dict)

    def run(self, targets: list[str], *, seconds: float, most: int, jobs: int = 2) -> None:
        """Cases of the targets in turn, until the time is over or each has had `most`.

        Raises:
            RuntimeError: a valid file fails, or the harness itself.
        """
        self.prepare(targets)
        end = time.monotonic() + seconds
        running: dict[int, _Process] = {}
        slots = list(range(jobs))
        try:
            while True:
                while slots and time.monotonic() < end and (target := self._due(targets, most)):
                    tally = self.tallies[target]
                    numbers = range(tally.next, min(tally.next + _EACH, most + 1))
                    tally.next = numbers.stop
                    self._fork(running, self._job(target, list(numbers), slots.pop()))
                if not running:
                    return
                self._listen(running, slots, end)
        finally:
            for process in running.values():
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)
                os.close(process.pipe)

    def prepare(self, targets: list[str]) -> None:
        """Learn what the valid files give.

        Raises:
            RuntimeError: one fails.
        """
        here = os.environ.copy(), os.getcwd(), tempfile.tempdir
        for target in targets:
            if target in ("onnx", "dry-run") or TARGETS[target].tree == "run":
                continue  # these start threads, which a fork must not meet
            warm(target, self.seeds, self.work / "0")
        os.chdir(here[1])
        os.environ.clear()
        os.environ.update(here[0])
        tempfile.tempdir = here[2]
        gc.freeze()  # what is here stays; its pages are shared with the processes
        for target in targets:
            self._valid(target)

    def one(self, target: str, number: int) -> dict[str, Any]:
        """One case, and everything that is known about it."""
        self.prepare([target])
        return self._alone(self._job(target, [number], 0))

    def _due(self, targets: list[str], most: int) -> str | None:
        """The target that has had the least time; slow ones get half."""
        open_ = [target for target in targets if self.tallies[target].next <= most]
        return min(
            open_,
            key=lambda target: (
                (self.tallies[target].seconds + self.tallies[target].next * 1e-3) * (1 + TARGETS[target].slow)
            ),
            default=None,
        )

    def _job(self, target: str, numbers: list[int], slot: int) -> Job:
        return Job(target, tuple(numbers), self.seed, self.seeds, self.work / str(slot), self.tallies[target].valid)

    def _valid(self, target: str) -> None:
        tally = self.tallies.setdefault(target, Tally())
        done = self._alone(self._job(target, [0], 0))
        if done.get("code") != 0 or done["findings"]:
            raise RuntimeError(f"{target}: the valid file fails: {json.dumps(done, indent=1)}")
        tally.valid = (done["result"], frozenset(done["ran"]))

    def _alone(self, job: Job) -> dict[str, Any]:
        running: dict[int, _Process] = {}
        self._fork(running, job)
        done: list[dict[str, Any]] = []
        end = time.monotonic() + 6 * self.limit
        while running:
            self._listen(running, [], end, done)
        return done[-1]

    def _fork(self, running: dict[int, _Process], job: Job) -> None:
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            serve(job, theirs)
        os.close(theirs)
        running[ours] = _Process(job, pid, ours, since=time.monotonic(), left=list(job.numbers))

    def _listen(
        self,
        running: dict[int, _Process],
        slots: list[int],
        end: float,
        done: list[dict[str, Any]] | None = None,
    ) -> None:
        """Take what the processes tell; end those that hang, and go on behind the case at which one died."""
        ready, _, _ = select.select(list(running), [], [], 0.2)
        for pipe in list(running):
            process = running[pipe]
            data = os.read(pipe, 2**20) if pipe in ready else None
            limit = self.limit * (6 if process.job.valid is None else 1)
            if data:
                self._hear(process, data, done)
            elif data == b"":
                self._gone(running, process, done, "")
            elif _hangs(process, limit):
                os.kill(process.pid, signal.SIGUSR2)  # it tells where it is, if it can (cage.py)
                time.sleep(0.5)
                os.kill(process.pid, signal.SIGKILL)
                self._gone(running, process, done, f"hang: more than {limit:.0f} s")
            if pipe not in running:
                if process.left and time.monotonic() < end:
                    job = process.job
                    fresh = Job(job.target, tuple(process.left), job.seed, job.seeds, job.work, job.valid)
                    self._fork(running, fresh)
                else:
                    slots.append(int(process.job.work.name))

    def _hear(self, process: _Process, data: bytes, done: list[dict[str, Any]] | None) -> None:
        *rows, process.rest = (process.rest + data).split(b"\n")
        for row in rows:
            told = json.loads(row)
            if "broken" in told:
                raise RuntimeError(f"the harness failed at {process.job.target} {process.number}:\n{told['broken']}")
            process.number, process.since, process.spent = told["number"], time.monotonic(), _cpu(process.pid)
            if "code" in told:
                process.left.remove(told["number"])
                process.number = None
                self._count(process.job, told)
                if done is not None:
                    done.append(told)

    def _gone(
        self, running: dict[int, _Process], process: _Process, done: list[dict[str, Any]] | None, hang: str
    ) -> None:
        """Bury a process; the case that it was at, if any, is a finding."""
        _, status = os.waitpid(process.pid, 0)
        os.close(process.pipe)
        del running[process.pipe]
        if process.number is None:
            return
        number = process.number
        process.left.remove(number)
        how = hang or f"died: {os.waitstatus_to_exitcode(status)}"
        _, damage = damaged(process.job.target, number, self.seed, self.seeds)
        said = [path for path in (process.job.work / "stderr", process.job.work / "where") if path.exists()]
        told = {
            "number": number,
            "code": "hang" if hang else "died",
            "ms": 1000 * (time.monotonic() - process.since),
            "peak": 0,
            "how": damage,
            "findings": [how],
            "result": "",
            "ran": [],
            "out": "",
            "error": "\n".join(path.read_text("utf-8", "replace")[-3000:] for path in said),
        }
        self._count(process.job, told)
        if done is not None:
            done.append(told)

    def _count(self, job: Job, told: dict[str, Any]) -> None:
        if job.valid is None:
            return
        tally = self.tallies[job.target]
        tally.cases += 1
        tally.codes[str(told["code"])] += 1
        tally.seconds += told["ms"] / 1000
        tally.longest = max(tally.longest, told["ms"])
        tally.peak = max(tally.peak, told["peak"])
        for finding in told["findings"]:
            kind = _kind(finding)
            tally.findings[kind] += 1
            if tally.findings[kind] <= _KEPT:
                self._keep(job, told)

    def _keep(self, job: Job, told: dict[str, Any]) -> None:
        folder = self.kept / f"{job.target}-{told['number']}"
        folder.mkdir(parents=True, exist_ok=True)
        data, _ = damaged(job.target, told["number"], job.seed, job.seeds)
        (folder / Path(TARGETS[job.target].file).name).write_bytes(data)
        again = f"python -m tests.fuzz --case {job.target} {told['number']} --seed {job.seed}"
        parts = (*told["findings"], told["how"], again, "", told["error"])
        (folder / "finding.txt").write_text("\n".join(parts) + "\n", "utf-8", "backslashreplace")


def _hangs(process: _Process, limit: float) -> bool:
    """Whether a case has taken too long; one that got little of a busy machine has six times as long."""
    took = time.monotonic() - process.since
    return took > 6 * limit or (took > limit and _cpu(process.pid) - process.spent > limit / 2)


def _cpu(pid: int) -> float:
    """Seconds of CPU time that a process has had; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kind(finding: str) -> str:
    """Findings that differ in numbers and names only are of one kind."""
    words = finding.split()
    return " ".join("N" if any(c.isdigit() for c in word) and i > 1 else word for i, word in enumerate(words))[:110]


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
