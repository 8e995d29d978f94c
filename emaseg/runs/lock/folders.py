"""Folders that are made for a run, and go again if nothing comes into them.

Room: runs/lock. Threat: two starts at once make and remove the same folders, and choose the same free name.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from emaseg.errors import SystemFault
from emaseg.files import fault


@contextlib.contextmanager
def reserve(root: Path) -> Iterator[Path]:
    """A folder of this name that nobody else has, `<name>-2` where somebody has; gone after the block if it is empty.

    Raises:
        SystemFault: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        path = None
        while path is None:  # again where another start that ends takes the folder above away
            stack.enter_context(kept_if_used(root.parent))
            path = _first_free(root)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()


def _first_free(root: Path) -> Path | None:
    """A new folder of the first free name; None where the one above is gone."""
    path = root
    for number in itertools.count(2):
        try:
            path.mkdir()
            break
        except FileExistsError:
            path = root.with_name(f"{root.name}-{number}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise fault(error, path, "creating the folder") from error
    return path


@contextlib.contextmanager
def kept_if_used(root: Path) -> Iterator[None]:
    """A folder and those above it within the block; those that were not there go again if they are empty."""
    made: list[Path] = []
    try:
        while not root.is_dir():  # again where one is taken away by another start that ends
            for folder in reversed([root, *root.parents]):
                if folder.is_dir():
                    continue
                try:
                    folder.mkdir()
                    made.insert(0, folder)
                except FileExistsError:
                    if os.path.lexists(folder) and not folder.is_dir():
                        raise SystemFault(
                            f"{folder}: is not a folder, or a link to nowhere", "choose another"
                        ) from None
                except FileNotFoundError:
                    break
                except OSError as error:
                    raise fault(error, folder, "creating the folder") from error
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
