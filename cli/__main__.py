"""`python -m emaseg.cli`: the same command where no script is installed (launchers of several processes)."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
