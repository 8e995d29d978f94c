"""Fetching released weights: resumed, retried, from mirrors, checked, and put into place whole or not at all.

Room: weights; never torch. Yields events, prints nothing. Sizes are bytes, times seconds.

What has arrived lies in <file>.part, with <file>.part.json saying of which address and version it is. A later try
continues there when the server confirms that version (Range with If-Range), and starts again when it does not.
Standard proxy variables and SSL_CERT_FILE are obeyed; EMASEG_OFFLINE and EMASEG_MIRROR are ours (resources.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path

from emaseg.errors import NetworkFault, SystemFault, UserError, WeightsError
from emaseg.events import Downloading, Note
from emaseg.files import fault, make_folder
from emaseg.resources import cache_folder, mirror, offline
from emaseg.weights.address import Source, mirrored
from emaseg.weights.cache import by_hand_advice, install, locate, verified
from emaseg.weights.lock import Lock, UnusableError
from emaseg.weights.partial import Partial, claim
from emaseg.weights.released import Released, file_name
from emaseg.weights.transfer import Patience, transfer
from emaseg.weights.web import UselessError
from emaseg.words import Lines

Events = Generator[Downloading | Note, None, Path]


# ------------------------------------------------------------------------------------------------------- the way in
def fetch(entry: Released, folder: Path | None = None, patience: Patience | None = None) -> Events:
    """Bring released weights into the cache, unless they are there.

    Several processes may do this at once: one downloads, the others wait.

    Args:
        folder: the cache; None = the usual one.

    Yields:
        Note and Downloading events.

    Returns:
        The file.

    Raises:
        WeightsError: it is not here and EMASEG_OFFLINE is set; no address has it; what arrived is something else.
        SystemFault: network or disk.
        RecipeError: EMASEG_MIRROR or a proxy variable is no address.
    """
    folder = folder or cache_folder()
    patience = patience or Patience()
    path = locate(entry, folder)
    if path is not None:
        verified(entry, path)
        return path
    urls = sources(entry)
    if offline():
        raise WeightsError(
            f"{entry.name}: not on this machine, and EMASEG_OFFLINE is set, so it cannot be downloaded",
            f"unset EMASEG_OFFLINE, or {by_hand_advice(entry, folder)}",
        )
    if not urls:
        raise WeightsError(
            f"{entry.name}: its owners give no address to download it from", by_hand_advice(entry, folder)
        )
    try:
        make_folder(folder)
    except SystemFault as error:
        raise SystemFault(error.message, "give the weights another place: export EMASEG_CACHE=/path") from error
    final = folder / entry.file
    if final.is_dir():
        raise SystemFault(f"{final}: a folder is in the place of the weights", "move or remove it")
    lock = Lock(folder / f".{entry.file}.lock")
    yield from _wait_for(lock, entry, patience)
    try:
        path = locate(entry, folder)  # another process may have been faster
        if path is not None:
            return path
        partial = claim(final)
        try:
            yield from _from_any(entry, urls, partial, final, patience, lock)
        finally:
            partial.close()
        return final
    finally:
        lock.release()


def sources(entry: Released) -> tuple[Source, ...]:
    """The addresses to try, in order: the owner's, or with EMASEG_MIRROR that place alone (the files by name).

    Raises:
        RecipeError: EMASEG_MIRROR is no http(s) address.
    """
    base = mirror()
    if base:
        return mirrored(base, entry.files)
    urls = (entry.url, *entry.mirrors) if entry.url else ()
    return tuple(Source(url, url, file_name(url)) for url in urls)


def _wait_for(lock: Lock, entry: Released, patience: Patience) -> Generator[Note, None, None]:
    """Until the lock is ours, or is no use: then the download goes on without it, into a file of its own."""
    told, seen, since = False, frozenset[tuple[str, int, int]](), time.monotonic()
    while True:
        try:
            if lock.acquire():
                return
        except UnusableError as error:
            reason = f"{lock.path}: cannot be locked ({error})"
            yield Note(f"{reason}; other processes may download {entry.name} too", warning=True)
            return
        except OSError as error:
            why = fault(error, lock.path, "locking the download")
            raise SystemFault(why.message, f"{why.hint}; the weights' place: export EMASEG_CACHE=/path") from error
        if not told:
            yield Note(f"{entry.name}: another process is downloading it; waiting")
            told = True
        now = _traces(lock.path.parent, entry)
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > patience.stale:
            yield Note(f"{entry.name}: nothing is heard of the other process any more; no longer waiting", warning=True)
            return
        time.sleep(patience.poll)


def _traces(folder: Path, entry: Released) -> frozenset[tuple[str, int, int]]:
    """Names, sizes and times of what lies there for the entry: what changes while another process is at work."""
    found = set()
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                if entry.file in item.name:
                    status = item.stat(follow_symlinks=False)
                    found.add((item.name, status.st_size, status.st_mtime_ns))
    except OSError:
        pass
    return frozenset(found)


def _from_any(
    entry: Released, urls: tuple[Source, ...], partial: Partial, final: Path, patience: Patience, lock: Lock
) -> Generator[Downloading | Note, None, None]:
    """The file from the first address that has it."""
    failures: list[tuple[str, str]] = []
    refused: WeightsError | None = None  # it answered, but with something else than the weights
    for source in urls:
        if failures:
            yield Note(f"{failures[-1][0]}: {failures[-1][1]}; trying {source.shown}", warning=True)
        try:
            yield from transfer(entry, source, partial, patience, lock)
            if os.name == "nt":
                partial.release()
            install(entry, partial.path, final, source.shown)
        except UselessError as error:
            failures.append((source.shown, str(error)))
            if error.content:
                refused = WeightsError(str(error))
                partial.clear()
        except WeightsError as error:
            failures.append((source.shown, error.message.removeprefix(f"{source.shown}: ")))
            refused = error
            partial.clear()
        else:
            other = "" if source.name == entry.file else f" (from its newer name {source.name})"
            yield Note(f"{entry.name}: {final}{other}")
            return
    tried = [f"  {shown}: {reason}" for shown, reason in failures]
    by_hand = f"{by_hand_advice(entry, final.parent)}; or run emaseg download-weights {entry.name} --from FOLDER_THAT_HOLDS_IT"
    kind: type[UserError] = WeightsError if refused else NetworkFault
    hint = refused.hint if refused else "try again later"
    message = Lines(f"{entry.name}: could not be downloaded", *tried)
    raise kind(message, f"{hint}; or {by_hand}" if hint else by_hand)
