"""Take over the workloads of manifests: create them, or bring them to what the manifests say.

Without a cluster all manifests are checked first, every problem is told with file, line and field, and nothing is sent
to the agent before all of them are right. On a cluster the API server checks them, one after the other, and names the
field of the first problem; what came before it is applied.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kybernate.cli import output
from kybernate.cli.connection import connect, in_cluster
from kybernate.cli.ordering import add_wait
from kybernate.cli.progress import Progress
from kybernate.errors import DeadlineError, ExternalError, InvalidError, StateLostError

if TYPE_CHECKING:
    from kybernate.agentapi.client import AgentClient
    from kybernate.cli.cluster import AppliedWorkload, ClusterClient

SUMMARY = "take over the workloads of manifests"
SUFFIXES = {".yaml", ".yml", ".json"}


class NotRunningError(DeadlineError):
    """{workload}: not running after {seconds:g} s. Look with `kybernate describe {workload}` and `kybernate logs`."""


class FailedError(ExternalError):
    """{workload}: {state} before it ran. `kybernate describe {workload}` says why."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--filename",
        action="append",
        required=True,
        metavar="FILE",
        help="a manifest, a folder of them, or - for stdin; may be given more than once",
    )
    add_wait(parser, "return when the workloads run; on a cluster: when all is as they say")
    output.add_format(parser)


def run(options: argparse.Namespace) -> int:
    from kybernate.api import ManifestError, load

    texts = dict(text for name in options.filename for text in _read(name))
    wrong = []
    # A cluster's API server knows all kinds of pods, and checks types, rules and unknown fields itself.
    for name, text in () if in_cluster(options, options.program) else texts.items():
        try:
            load(text, name)
        except ManifestError as error:
            wrong.append(str(error))
    if wrong:
        raise InvalidError("\n".join(["nothing was applied:", *wrong]))
    with connect(options) as client:
        applied = [each for name, text in texts.items() for each in client.apply(text, name)]
        if options.output == "table":
            for each in applied:
                print(f"gpuworkload {each.name} {each.outcome}", flush=True)
        else:
            output.print_data([{"name": each.name, "outcome": each.outcome} for each in applied], options.output)
        if options.wait:
            for each in applied:
                if in_cluster(options, options.program):
                    _wait_until_settled(cast("ClusterClient", client), cast("AppliedWorkload", each), options.timeout)
                else:
                    _wait_until_running(cast("AgentClient", client), each.name, options.timeout)
    return 0


def _read(name: str) -> list[tuple[str, str]]:
    """(name, text) of a file, of stdin, or of every manifest in a folder."""
    try:
        if name == "-":
            return [("stdin", sys.stdin.read())]
        path = Path(name)
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
            if not found:
                raise InvalidError(f"{name}: no manifest (*.yaml, *.yml, *.json) in this folder")
            return [(str(file), file.read_text()) for file in found]
        return [(name, path.read_text())]
    except OSError as error:
        raise InvalidError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidError(f"{name}: not UTF-8 at byte {error.start}") from error


def _wait_until_settled(client: ClusterClient, applied: AppliedWorkload, seconds: float) -> None:
    with Progress(f"waiting until {applied.name} is as it says"):
        client.await_settled(applied, seconds)


def _wait_until_running(client: AgentClient, workload: str, seconds: float) -> None:
    """Follow the workload's instance until it runs, or sleeps again already. Of an earlier workload of that name there
    may be one that is on its way out: its end is no failure."""
    leaving: set[str] = set()
    with Progress(f"waiting until {workload} runs"), contextlib.suppress(DeadlineError):
        for event in client.watch(workload, deadline_seconds=seconds):
            state, name = event.instance.state, event.instance.name
            if event.type == event.ADDED and state == "Ending":
                leaving.add(name)
            elif event.type == event.DELETED and name in leaving:
                leaving.discard(name)
                continue
            if state in ("Running", "Suspending", "Suspended", "Parking", "Parked"):
                return
            if state == "StateLost":
                raise StateLostError(f"{workload}: its state is lost; `kybernate describe {workload}` says why")
            if state == "Failed" or event.type == event.DELETED:
                raise FailedError(workload=workload, state=state or "deleted")
    raise NotRunningError(workload=workload, seconds=seconds)
