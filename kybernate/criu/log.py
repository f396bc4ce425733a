"""What CRIU's log means: the first line that is known, as a code, a cause, and what to do about it.

CRIU says what failed in its own terms, deep in a log of some hundred lines, and goes on to say what failed because of
it. The table is read from top to bottom, special before general; in the log the first error counts.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from kybernate.criu.causes import KNOWN, Cause

_TAIL_BYTES = 4 << 20
_LAST_ERRORS = 3


# What compel (the part of CRIU that seizes processes) warns of is an error to us.
_ERROR = re.compile(r"(?:Error|Warn +\(compel\S*\)|Error \([^)]*\)): (.*)")
_NO_CAUSE = re.compile(r"RLIMIT_NOFILE for self")  # said in every log where CAP_SYS_RESOURCE is missing


def explain(log: Path, stderr: str = "") -> Cause:
    """The cause of a failed dump or restore, from CRIU's log and from what runc said.

    Never raises for a log that is missing or strange: then the last lines that speak of an error are the cause.
    """
    errors = [match[1].strip() for match in map(_ERROR.search, _lines(log)) if match and not _NO_CAUSE.search(match[1])]
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in [*errors, *said]:
        for known in KNOWN:
            if match := known.pattern.search(line):
                return _filled(known.cause, match)
    last = "; ".join((errors or said)[-_LAST_ERRORS:]) or "CRIU said nothing"
    return Cause("unknown", f"CRIU failed: {last}", f"The whole log is {log}.")


def _filled(cause: Cause, match: re.Match[str]) -> Cause:
    """`{0}` is the whole match, `{1}` the first group that took part."""
    found = [match[0], *(group for group in match.groups() if group is not None)]
    return replace(cause, message=cause.message.format(*found, "?", "?"))


def _lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
