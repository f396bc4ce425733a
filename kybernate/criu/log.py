"""What CRIU's log means: the first line that is known, as a code, a cause, and what to do about it.

CRIU says what failed in its own terms, deep in a log of some hundred lines, and goes on to say what failed because of
it. The table is read from top to bottom, special before general; in the log the first error counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kybernate.criu.causes import KNOWN, Cause

_TAIL_BYTES = 4 << 20
_LAST_ERRORS = 3


_ERROR = re.compile(r"Error \(([^)]*)\): (.*)")


def explain(log: Path, stderr: str = "") -> Cause:
    """The cause of a failed dump or restore, from CRIU's log and from what runc said.

    Never raises for a log that is missing or strange: then the last lines that speak of an error are the cause.
    """
    errors = [match[2].strip() for match in map(_ERROR.search, _lines(log)) if match]
    for line in [*errors, *_warnings(log), *stderr.splitlines()]:
        for known in KNOWN:
            if match := known.pattern.search(line):
                return _filled(known.cause, match)
    last = errors[-_LAST_ERRORS:] or [line.strip() for line in stderr.splitlines() if line.strip()][-_LAST_ERRORS:]
    said = "; ".join(last) if last else "CRIU said nothing"
    return Cause("unknown", f"CRIU failed: {said}", f"The whole log is {log}.")


def _filled(cause: Cause, match: re.Match[str]) -> Cause:
    found = [match[0], *(group or "?" for group in match.groups())]
    return Cause(cause.code, cause.message.format(*found), cause.remedy, cause.transient)


def _warnings(log: Path) -> Iterable[str]:
    """Some causes are no errors to CRIU, as a process that it may not interrupt."""
    return (line.partition("): ")[2].strip() for line in _lines(log) if "Warn " in line)


def _lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
