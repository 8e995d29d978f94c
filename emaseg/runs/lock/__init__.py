"""A run folder has one owner: RUN/lock while it is being trained.

Room: runs/lock. Threat: a second trainer on the same folder, here, in another container or on another machine that
shares the disk, would write over what the first one writes.

The lock is a file of a few lines of JSON: who holds it. It appears under its name complete (link, which is atomic on
network disks, too) and its owner renews its time every few seconds.

    owner.py    what a process says of itself, and whether the owner of a lock still lives
    folders.py  folders that are made for a run, and go again if they stay empty
    lock.py     taking the lock, also from a dead owner, keeping it and giving it back
"""

from emaseg.runs.lock.folders import reserve
from emaseg.runs.lock.lock import NAME, RunLock, alive_owner, hold, is_lock

__all__ = ["NAME", "RunLock", "alive_owner", "hold", "is_lock", "reserve"]
