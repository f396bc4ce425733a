"""Make a new pod that goes on where a checkpoint was made, on the node where it lies. On a cluster only."""

from __future__ import annotations

import argparse

from kybernate.cli import output
from kybernate.cli.ordering import add_wait
from kybernate.cli.progress import Progress

SUMMARY = "make a new pod of a checkpoint (needs a cluster)"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a GpuCheckpoint that is Ready, or will be")
    parser.add_argument("--pod", required=True, metavar="NAME", help="what the new pod is called")
    add_wait(parser, "return when its processes run, and with the reason if they do not")
    output.add_format(parser)


def run(options: argparse.Namespace) -> int:
    from kybernate.api.objects import builtins
    from kybernate.cli.copies import connect_cluster

    with connect_cluster(options) as client, Progress(f"restore {options.checkpoint}"):
        job = client.restore(options.checkpoint, options.pod, wait=options.wait, deadline_seconds=options.timeout)
    if options.output != "table":
        output.print_data(builtins(job), options.output)
    elif options.wait:
        seconds = job.status.seconds
        took = f"; restored in {seconds.restoring:.3f} s" if seconds else ""
        print(f"{options.pod}: runs on {job.status.node}{took}")
    else:
        print(f"{options.pod}: ordered; `kubectl get grj {job.metadata.name}` shows how far it is")
    return 0
