"""`emaseg doctor`: whether this machine can do the work, and what to do where it cannot.

Room: cli.
"""

from __future__ import annotations

import typer

from .options import SCHEMA, Json, Verbose, session_of

_WILL_NOT_WORK = 4


def doctor(context: typer.Context, as_json: Json = False, verbose: Verbose = False) -> int:
    """Look at versions, devices, decoders, memory and folders; says what to do. Exit 4 when something will not work.

    \b
    Examples:
      emaseg doctor
      emaseg doctor --json
    """
    session_of(context, verbose)
    from emaseg.doctor import examine

    from .render import print_check, print_json, print_line

    found = []
    for finding in examine():
        found.append(finding)
        if not as_json:
            print_check(finding.name, finding.value, finding.state, finding.remedy)
    errors = sum(finding.state == "error" for finding in found)
    warnings = sum(finding.state == "warning" for finding in found)
    if as_json:
        checks = [{"name": f.name, "value": f.value, "state": f.state, "remedy": f.remedy or None} for f in found]
        print_json({"schema": SCHEMA, "works": not errors, "checks": checks})
    else:
        print_line()
        print_line(_verdict(errors, warnings))
    return _WILL_NOT_WORK if errors else 0


def _verdict(errors: int, warnings: int) -> str:
    if errors:
        return f"{errors} {'things' if errors > 1 else 'thing'} will not work"
    if warnings:
        return f"everything works; {warnings} {'warnings' if warnings > 1 else 'warning'}"
    return "everything works"
