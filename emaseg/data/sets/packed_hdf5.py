"""A program of its own: the structure of an old packed file, read by HDF5's library and written to stdout as JSON.

Room: data/sets. `packed_index` starts it, with a limit on its time.
"""

from __future__ import annotations

import json
import sys
from typing import Any

FORMAT = "emaseg packed 1"
_MEMORY = 8 << 30  # bytes of address space
_LARGEST = 1 << 24  # entries of a table
_MOST_BYTES = 1 << 30  # of a table, unfolded


def structure(path: str) -> dict[str, Any]:
    """The JSON value for one file; its key "error" says why there is no other."""
    import h5py

    with h5py.File(path, "r") as file:
        if file.attrs.get("format") != FORMAT:
            return {"error": "an HDF5 file, but not one that data_scripts/pack.py made"}
        keys = ("names", "spans", "state", "bytes")
        if not all(isinstance(file.get(key, getlink=True), h5py.HardLink) for key in keys):
            return {"error": "no tables where they should be"}
        names, spans, state, stored = tables = [file[key] for key in keys]
        if not all(isinstance(table, h5py.Dataset) for table in tables):
            return {"error": "no tables where they should be"}
        if any(table.is_virtual or table.external for table in tables):
            return {"error": "tables that lie in other files"}
        if max(table.size * table.dtype.itemsize for table in (names, spans, state)) > _MOST_BYTES:
            return {"error": "tables of another form"}
        if max(names.size, spans.size, state.size) > _LARGEST or stored.ndim != 1 or stored.dtype != "u1":
            return {"error": "tables of another form"}
        if names.ndim != 2 or state.shape != (40,) or state.dtype != "u1" or spans.dtype.kind != "i":
            return {"error": "tables of another form"}
        return {
            "about": str(file.attrs["about"]),
            "names": names.asstr()[()].tolist(),
            "spans": spans[()].tolist(),
            "start": stored.id.get_offset(),
            "total": stored.shape[0],
            "state": state[()].tolist(),
        }


def answer(path: str) -> dict[str, Any]:
    """`structure`, or what the library says instead."""
    try:
        return structure(path)
    except Exception as error:  # noqa: BLE001 (the library raises whatever the bytes lead it to)
        return {"error": f"{type(error).__name__}: {error}"}


def main(path: str) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # the time limit stays
    json.dump(answer(path), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
