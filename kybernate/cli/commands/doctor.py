"""Check whether this machine can put workloads to sleep and wake them; for each failure, say what to do.

Run it as the agent runs (as root). Nothing on the machine is changed. Exit status 5: something failed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kybernate.cli import output
from kybernate.cli.exit_codes import UNHEALTHY

if TYPE_CHECKING:
    from kybernate.cli.checks import Check

SUMMARY = "check whether this machine can put workloads to sleep"
TALKS_TO_AGENT = False
STATE = Path("/var/lib/kybernate")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, default=STATE, metavar="FOLDER", help=f"the agent's; default {STATE}")
    output.add_format(parser)


def run(options: argparse.Namespace) -> int:
    from kybernate.cli.checks import Status

    found = []
    for check in _checks(options.state):
        found.append(check)
        if options.output == "table":
            _print(check)
    count = Counter(check.status for check in found)
    if options.output != "table":
        output.print_data([_plain(check) for check in found], options.output)
    elif count[Status.FAILED]:
        print(f"\n{count[Status.FAILED]} failed: workloads cannot sleep and wake here.")
    else:
        print(f"\nThis machine is ready{f', with {count[Status.WARNING]} limits' if count[Status.WARNING] else ''}.")
    return UNHEALTHY if count[Status.FAILED] else 0


def _checks(state: Path) -> Iterator[Check]:
    """Each as soon as it is known: they take about half a second together."""
    from kybernate.cli import checks, netfilter

    yield from checks.permissions()
    yield from checks.kernel()
    yield from checks.criu()
    yield from checks.containerd()
    yield from checks.cgroups()
    yield from netfilter.netfilter()
    yield from checks.disk(state)


def _print(check: Check) -> None:
    colour = {"ok": output.GREEN, "warning": output.YELLOW, "failed": output.RED}[check.status]
    print(f"{output.paint(f'{check.status:<8}', colour)} {check.name}: {check.says}", flush=True)
    if check.remedy:
        print(f"         {check.remedy}", flush=True)


def _plain(check: Check) -> dict[str, str]:
    return {"check": check.name, "status": check.status.value, "says": check.says, "remedy": check.remedy}
