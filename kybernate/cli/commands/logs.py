"""What an instance's container wrote: its stdout to stdout, its stderr to stderr. Reading does not wake it."""

from __future__ import annotations

import argparse
import sys

from kybernate.cli.connection import connect

SUMMARY = "print what an instance's container wrote"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="an instance (chat-0), or a workload that has only one (chat)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument("--tail", type=_lines, metavar="LINES", help="begin with the last so many lines; default: all")


def run(options: argparse.Namespace) -> int:
    with connect(options) as client:
        for chunk in client.logs(options.name, follow=options.follow, tail_lines=options.tail):
            stream = sys.stderr if chunk.stream == "stderr" else sys.stdout
            stream.buffer.write(chunk.data)
            stream.flush()
    return 0


def _lines(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of lines, got {text!r}")
    return int(text)
