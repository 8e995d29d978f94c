"""What a file is that was given in a weight file's place, by its first bytes.

Room: weights; never torch.

PyTorch takes anything for a pickle. Of a photograph it says that loading it could run code, which is true of no
photograph and helps nobody; so this is asked first.
"""

from __future__ import annotations

from pathlib import Path

from emaseg.errors import WeightsError
from emaseg.files import open_file
from emaseg.signatures import GIT_LFS, HEAD, HTML, SAFETENSORS, kind_of

_GIVE = "give a run folder or a checkpoint of `emaseg train`, or a recipe with its weight file (.pt, .pth)"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def check_kind(path: Path) -> None:
    """Refuse what cannot be a file of torch.save, before it is loaded.

    What cannot be read, or is empty, passes: loading tells.

    Raises:
        WeightsError: an image, a web page, text or the like; says what it looks like and what to give instead.
    """
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
    except OSError:
        return
    reason = not_weights(head)
    if head and reason:
        safetensors = kind_of(head) == SAFETENSORS
        remedy = "load it with safetensors and keep it with torch.save" if safetensors else _GIVE
        raise WeightsError(f"{path}: {reason}", remedy)


def not_weights(head: bytes, content_type: str = "") -> str:
    """Why a file that begins with these bytes is no weight file; "" when it may be one (a zip archive or a pickle).

    Args:
        content_type: what the server that sends it says of it.
    """
    if head.startswith((b"PK\3\4", *_PICKLES)):
        return ""
    kind = kind_of(head)
    if kind == HTML or "html" in content_type or head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "an HTML page instead of weights (a login page, a proxy's or a provider's message?)"
    if kind == GIT_LFS:
        return "a Git LFS pointer instead of the weights it points to"
    if kind:
        return f"{kind}, not a weight file"
    return f"not a weight file (it begins with {head[:8]!r})" if head else "an empty file"
