"""Run the agent of this machine in the foreground, until SIGTERM or SIGINT; workloads go on without it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kybernate.cli.programs import become_module

SUMMARY = "run the agent of this machine"
TALKS_TO_AGENT = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """None of our own: `pass_on` gives the agent what is its."""


def run(options: argparse.Namespace) -> int:
    return pass_on([])


def pass_on(arguments: Sequence[str]) -> int:
    """Become the agent. It is a room of its own that this library never imports."""
    return become_module("kybernate_agent", arguments)
