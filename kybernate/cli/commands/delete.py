"""End a workload and forget it. An instance that sleeps ends without being woken, and its stored state goes with it."""

from __future__ import annotations

import argparse

from kybernate.cli.connection import connect
from kybernate.cli.ordering import add_wait
from kybernate.cli.progress import Progress

SUMMARY = "end a workload and forget it"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a workload (chat), or its only instance (chat-0)")
    add_wait(parser, "return when its containers are gone")


def run(options: argparse.Namespace) -> int:
    with connect(options) as client, Progress(f"delete {options.name}"):
        workload = client.delete(options.name, wait=options.wait, deadline_seconds=options.timeout)
    print(f"gpuworkload {workload} {'deleted' if options.wait else 'is being deleted'}")
    return 0
