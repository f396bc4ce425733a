"""Make a named, lasting copy of an instance, awake or asleep; it goes on as it was. On a cluster only."""

from __future__ import annotations

import argparse

from kybernate.cli import output
from kybernate.cli.ordering import add_wait
from kybernate.cli.progress import Progress

SUMMARY = "make a lasting copy of an instance (needs a cluster)"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="an instance (chat-0), or a workload that has only one (chat)")
    parser.add_argument("--as", dest="named", required=True, metavar="CHECKPOINT", help="what the copy is called")
    add_wait(parser, "return when the copy is complete, and with the reason if there is none")
    output.add_format(parser)


def run(options: argparse.Namespace) -> int:
    from kybernate.api.objects import builtins
    from kybernate.cli.copies import connect_cluster

    with connect_cluster(options) as client, Progress(f"checkpoint {options.name}"):
        made = client.checkpoint(options.name, options.named, wait=options.wait, deadline_seconds=options.timeout)
    if options.output != "table":
        output.print_data(builtins(made), options.output)
    elif options.wait:
        status = made.status
        print(f"{options.named}: Ready on {status.node}, {status.size_bytes} bytes; its source stood still "
              f"{status.frozen_seconds:.3f} s")  # fmt: skip
    else:
        print(f"{options.named}: ordered; `kubectl get gck {options.named}` shows how far it is")
    return 0
