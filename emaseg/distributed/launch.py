"""`--nproc N`: this program once for each of N processes of this machine, by torch's launcher.

Room: distributed.

It is the part of torchrun that starts and ends processes (torch.distributed.elastic.multiprocessing), with the store in
which they meet. torchrun's agent above it is left out for two reasons: it kills ranks 30 s after a signal, which may be
too soon for a checkpoint, and its own exit code is 1 whatever the ranks' were. Here a signal goes to every rank once, all
the time is theirs that a signal leaves, and the first rank's exit code is the program's.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, start_processes

from emaseg.distributed.ranks import OWN_RUN
from emaseg.errors import SystemFault
from emaseg.threads import core_count

_GRACE = 8.0  # seconds that the other ranks have once one has failed: they notice by themselves, GPUs may not
_SAVING = 60.0  # seconds more for rank 0 where it writes a checkpoint then
_TICK = 0.1
_KILL = 2  # seconds in which the system removes what was killed
_HERE = "127.0.0.1"
_FORWARDED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def launch(arguments: Sequence[str], count: int, *, saves: bool = False) -> int:
    """Run `emaseg ARGUMENTS` as so many ranks and return their exit code: of several the first that is not 0.

    Ctrl-C and other signals reach every rank once. When one fails, the others end within seconds.

    Args:
        saves: rank 0 has a minute more then, in which it saves.

    Raises:
        SystemFault: a rank was killed, or the ranks cannot be started.
    """
    for name in ("torch.distributed.elastic", "torch.distributed.nn.jit"):  # ranks say what is to be said
        logging.getLogger(name).setLevel(logging.CRITICAL)
    store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    environments = dict(enumerate(_environments(count, store.port)))
    command = ("-P", "-m", "emaseg.cli", *arguments)
    asked: list[int] = []
    with tempfile.TemporaryDirectory(prefix="emaseg-") as folder, _signals_kept():
        try:
            ranks = start_processes(
                name="emaseg",
                entrypoint=sys.executable,
                args=dict.fromkeys(range(count), command),
                envs=environments,
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
        except OSError as error:
            raise SystemFault(
                f"{count} processes cannot be started ({error.strerror})", "use a smaller --nproc"
            ) from error
        try:
            _forward_signals(ranks, asked)
            codes, killed = _watch(ranks, _SAVING if saves else 0.0)
        finally:
            ranks.close(signal.SIGKILL, timeout=_KILL)
    return _outcome(codes, killed, asked)


def end_with_launcher() -> None:
    """Let this rank save and end, as by SIGTERM, when the process that started it is killed. Linux only."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _environments(count: int, port: int) -> Iterator[dict[str, str]]:
    run = OWN_RUN + secrets.token_hex(4)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, core_count() // count))
    for rank in range(count):
        yield {
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK", "GROUP_RANK")},
            **{name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
            "MASTER_ADDR": _HERE,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": run,
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": threads,
        }


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Whatever handles signals within the block, after it they are handled as before."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _forward_signals(ranks: PContext, asked: list[int]) -> None:
    """Send what comes to every rank; torch's own handlers, which would end this process, give way."""

    def forward(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        for pid in ranks.pids().values():
            with contextlib.suppress(OSError):
                os.kill(pid, signum)

    for name in _FORWARDED:
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), forward)


def _watch(ranks: PContext, saving: float) -> tuple[dict[int, int], set[int]]:
    """Wait for the end of all ranks. Returns their exit codes, in the order in which they ended, and who was killed here."""
    processes = {rank: handler.proc for rank, handler in ranks.subprocess_handlers.items()}  # type: ignore[attr-defined]
    codes: dict[int, int] = {}
    deadline: float | None = None
    while len(codes) < len(processes):
        for rank, process in processes.items():
            code = process.poll()
            if code is not None and rank not in codes:
                codes[rank] = code
        if deadline is None and any(codes.values()):
            deadline = time.monotonic() + _GRACE
        late = 0.0 if deadline is None else time.monotonic() - deadline
        if late > (0.0 if 0 in codes else saving):
            return codes, set(processes) - set(codes)
        time.sleep(_TICK)
    return codes, set()


def _outcome(codes: Mapping[int, int], killed: set[int], asked: Sequence[int]) -> int:
    """The exit code that the ranks' make.

    Raises:
        SystemFault: a rank was killed by somebody else.
    """
    for rank, code in codes.items():
        if code < 0 and -code not in asked:
            name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
            by_system = name == "SIGKILL"
            why = "the system does that when memory is short, mostly" if by_system else "lines above may say why"
            raise SystemFault(
                f"rank {rank} of {len(codes) + len(killed)} was killed by {name}; the others have ended",
                f"{why}; --resume continues from the newest checkpoint",
            )
    positive = [code for code in codes.values() if code > 0]
    if positive:
        return positive[0]
    return 128 + asked[0] if any(codes.values()) or killed else 0
