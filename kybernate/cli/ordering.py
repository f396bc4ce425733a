"""What suspend, park and resume have in common: a step of one instance or of all of a workload, told or waited for."""

from __future__ import annotations

import argparse
import sys

from kybernate.cli import output, view
from kybernate.cli.connection import connect
from kybernate.cli.progress import Progress
from kybernate.errors import KybernateError

WAIT = "5m"


def arguments(parser: argparse.ArgumentParser) -> None:
    """A name, --wait and its --timeout, -o."""
    parser.add_argument("name", help="an instance (chat-0), or a workload (chat): all its instances")
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
    """Order `verb` and print each instance that took it. Raises the last error; those before it are printed."""
    with connect(options) as client, Progress(f"{verb} {options.name}"):
        ended = client.order_all(verb, options.name, wait=options.wait, deadline_seconds=options.timeout)
    failed = [each for each in ended if isinstance(each, KybernateError)]
    done = [each for each in ended if not isinstance(each, KybernateError)]
    if options.output != "table":
        view.print_all(done, options.output, one=len(ended) == 1)
    for instance in done if options.output == "table" else ():
        tier = f", state in {instance.tier}" if instance.tier else ""
        now = f"{instance.state}{tier}" if options.wait else f"{verb} ordered, now {instance.state}"
        print(f"{instance.name}: {now}", flush=True)
    for error in failed[:-1]:
        print(f"kybernate: {error}", file=sys.stderr)
    if failed:
        raise failed[-1]
    return 0
