"""What 8 bits cost is told where it can be measured; where it cannot, the file is there all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from emaseg.errors import SystemFault
from emaseg.exporting import export
from emaseg.exporting.request import make_request
from tests.exporting.made import network, recipe


@pytest.mark.parametrize("error", [SystemFault("disk full", "free some"), MemoryError("refused")])
def test_a_cost_that_cannot_be_measured_is_a_note(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a finished file from what happens while it is scored."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("emaseg.exporting.export.cost", fail)
    made = recipe("emanet")
    info = export.file_info(network(made), made, make_request("torch"))
    told = export._cost(Path("full.onnx"), Path("quantised.onnx"), info)
    assert isinstance(told, str)
    assert told.startswith("the cost of 8 bits in mIoU was not measured: ")
