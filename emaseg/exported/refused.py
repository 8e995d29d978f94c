"""What a file is refused for, in both formats.

Room: exported; never torch.
"""

from __future__ import annotations


class Refused(ValueError):
    """Something that `emaseg export` does not write; the text says what."""
