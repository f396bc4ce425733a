"""What suspend, park and resume have in common: one instance, one step, told or waited for."""

from __future__ import annotations

import argparse

from kybernate.cli import output, view
from kybernate.cli.connection import connect
from kybernate.cli.progress import Progress

WAIT = "5m"


def arguments(parser: argparse.ArgumentParser) -> None:
    """A name, --wait and its --timeout, -o."""
    parser.add_argument("name", help="an instance (chat-0), or a workload that has one (chat)")
    add_wait(parser, "return when the step is done, and with its error if it fails")
    output.add_format(parser)


def add_wait(parser: argparse.ArgumentParser, says: str) -> None:
    """--wait, and --timeout as Kubernetes writes durations."""
    parser.add_argument("--wait", action="store_true", help=says)
    parser.add_argument("--timeout", type=duration, default=WAIT, metavar="DURATION", help=f"of --wait; default {WAIT}")


def duration(text: str) -> float:
    """Seconds, for argparse, which shows the message of its own error only."""
    from kybernate.api.quantity import Duration

    try:
        return Duration.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def order(verb: str, options: argparse.Namespace) -> int:
    """Order `verb` from the agent and print the instance."""
    with connect(options) as client, Progress(f"{verb} {options.name}"):
        instance = client.order(verb, options.name, wait=options.wait, deadline_seconds=options.timeout)
    if options.output != "table":
        output.print_data(view.plain(instance), options.output)
    elif options.wait:
        tier = f", state in {instance.tier}" if instance.tier else ""
        print(f"{instance.name}: {instance.state}{tier}")
    else:
        print(f"{instance.name}: {verb} ordered, now {instance.state}")
    return 0
