"""Run a command in an instance's container. A sleeping instance is woken first.

This process becomes the command: it ends with the command's status, and signals reach it.
"""

from __future__ import annotations

import argparse
import os
import sys

from kybernate.cli.connection import connect
from kybernate.errors import ExternalError, InvalidError

SUMMARY = "run a command in an instance's container"
_SWITCHES = {"-i": "i", "--stdin": "i", "-t": "t", "--tty": "t", "-it": "it", "-ti": "it"}


class NotStartedError(ExternalError):
    """{program} cannot be started: {reason}. Is this the agent's machine, and its installation complete?"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kybernate exec [-h] [--socket PATH] [-i] [-t] NAME [--] COMMAND [ARGUMENT ...]"
    parser.add_argument(
        "-i", "--stdin", action="store_true", help="pass stdin on; without it the command reads nothing"
    )
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal; needs one itself")
    parser.add_argument("name", help="an instance (chat-0), or a workload that has only one (chat)")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")


def run(options: argparse.Namespace) -> int:
    command = _command(options)
    if options.tty and not sys.stdin.isatty():
        raise InvalidError("-t needs a terminal: stdin is none. Leave -t out.")
    with connect(options) as client:
        argv = [*client.exec_target(options.name, tty=options.tty), *command]
    if not options.stdin and not options.tty:
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    try:
        os.execvp(argv[0], argv)  # noqa: S606  # an argv, no shell
    except OSError as error:
        raise NotStartedError(program=argv[0], reason=error.strerror) from error


def _command(options: argparse.Namespace) -> list[str]:
    """The command; switches between the name and `--` are ours, as with kubectl."""
    before, behind = options.argv, options.behind_dashes
    if behind and all(each in _SWITCHES for each in before):
        switches = "".join(_SWITCHES[each] for each in before)
        options.stdin, options.tty = options.stdin or "i" in switches, options.tty or "t" in switches
        before, behind = [], behind[1:]
    command = [*before, *behind]
    if not command or command[0].startswith("-"):
        raise InvalidError("exec needs a command: kybernate exec [-i] [-t] NAME -- COMMAND [ARGUMENT ...]")
    return command
