"""Help on a command, or on the exit statuses."""

from __future__ import annotations

import argparse

from kybernate.cli import exit_codes
from kybernate.errors import InvalidError

SUMMARY = "help on a command, or on exit-codes"
TALKS_TO_AGENT = False


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", default="", help="a command, or exit-codes")


def run(options: argparse.Namespace) -> int:
    from kybernate.cli import main  # which imports this module

    if options.topic == "exit-codes":
        print(exit_codes.table())
    elif options.topic and options.topic not in main.COMMANDS:
        raise InvalidError(f"no help on {options.topic!r}; topics: {', '.join(main.COMMANDS)}, exit-codes")
    elif options.topic:
        main.main([options.topic, "--help"])
    else:
        main.parser().print_help()
    return 0
