"""The optional packages that ONNX files need, and the PyTorch that exporting needs.

Room: exported; never imports torch: a refusal must appear at once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence

from emaseg.errors import SystemFault
from emaseg.extras import EXTRAS, install

# The first PyTorch that makes a program. Before 2.13 a size that one trial image has is taken for a rule, so that there are
# programs of one size alone; and 2.8 writes a .pt2 of another form.
_ANY_SIZE, _ONE_SIZE = (2, 13), {"onnx": (2, 8), "torch": (2, 9)}


def check_torch(format_: str, *, any_size: bool, installed: str | None = None) -> None:
    """
    Args:
        format_: "onnx" or "torch". any_size: the program is to take images of any size.
        installed: PyTorch's version; None = that of this installation.

    Raises:
        SystemFault: it is too old to make such a program.
    """
    installed = importlib.metadata.version("torch") if installed is None else installed
    found = re.match(r"(\d+)\.(\d+)", installed)
    version = tuple(map(int, found.groups())) if found else _ANY_SIZE
    if version >= (_ANY_SIZE if any_size else _ONE_SIZE[format_]):
        return
    one_size = version >= _ONE_SIZE[format_]
    needed = ".".join(map(str, _ANY_SIZE if one_size else _ONE_SIZE[format_]))
    sizes = "for images of any size " if one_size else ""
    other = "name one size, such as --shape 512x1024" if one_size else "use --format onnx with --shape HEIGHTxWIDTH"
    raise SystemFault(
        f"--format {format_} {sizes}needs PyTorch {needed} or newer; this is {installed}",
        f"pip install 'torch>={needed}'; or {other}; or use --format weights, which any version writes",
    )


def check_extra(packages: Sequence[str] = EXTRAS["onnx"], doing: str = "--format onnx") -> None:
    """
    Raises:
        SystemFault: some of `packages` are not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemFault(f"{doing}: needs {', '.join(missing)}, not installed here", install("onnx"))
