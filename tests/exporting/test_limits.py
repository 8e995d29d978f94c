"""Files that do not fit: onto the disk when they are written, into memory when they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from emaseg.errors import SystemFault, WeightsError
from emaseg.exported import run_onnx
from emaseg.exported.run_pt2 import quiet
from emaseg.exported.runtime import open_exported
from emaseg.exporting.export import Exported, _staged
from emaseg.exporting.program import _TakesAll, write_pt2
from tests.test_files import largest_file

pytestmark = pytest.mark.usefixtures("one_thread")


def small(size: int) -> ExportedProgram:
    with quiet():
        return torch.export.export(nn.Linear(size, size), (torch.zeros(2, size),))


def test_a_full_disk_is_the_machines_fault(tmp_path: Path) -> None:
    """Protects from "this is a bug", and from an end by SIGABRT: PyTorch's writer has words of its own for a disk that
    takes no more, and does not survive every moment of it. Nothing is left, wherever it comes."""
    program = small(64)
    write_pt2(program, tmp_path / "whole.pt2", {})
    size = (tmp_path / "whole.pt2").stat().st_size
    for allowed in (0, 1, 100, size // 8, size // 2, size - 3000, size - 500, size - 1):
        told = pytest.raises(SystemFault, match=rf"^{tmp_path / 'a.pt2'}: File too large")
        with told, _staged(tmp_path / "a.pt2") as file, largest_file(allowed):
            write_pt2(program, file, {})
    assert [path.name for path in tmp_path.iterdir()] == ["whole.pt2"]


def test_an_interruption_waits_for_the_writer() -> None:
    """Protects Ctrl-C while a program is written: raised inside of PyTorch's writer it would end the process by SIGABRT."""

    class Interrupted:
        def write(self, data: object) -> int:
            raise KeyboardInterrupt

    taken = _TakesAll(Interrupted())  # type: ignore[arg-type]
    with quiet():
        torch.export.save(small(4), taken)  # type: ignore[arg-type]
    assert isinstance(taken.error, KeyboardInterrupt)


def test_a_file_larger_than_any_of_its_kind_is_not_read(
    made: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects memory: an ONNX file is read whole, so its size is looked at before."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = made("plain.onnx").path
    monkeypatch.setattr(run_onnx, "LARGEST", path.stat().st_size)
    open_exported(path)
    monkeypatch.setattr(run_onnx, "LARGEST", path.stat().st_size - 1)
    with pytest.raises(WeightsError, match="more than an ONNX file can hold"):
        open_exported(path)
