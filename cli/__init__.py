"""The terminal: arguments in, one engine call, something readable out.

Room: cli, above everything. The only place that imports typer and rich, prints, or installs signal handlers.
Inside it imports are relative; engine modules are imported inside the command that needs them, so that help and
recipe errors appear at once (they never import torch).
"""

from __future__ import annotations

from .app import main

__all__ = ["main"]
